// A firmware that breaks the rules, or breaks, cannot take the runtime with it: it is refused or trapped, the crash record
// says why, and the previous firmware runs. On both engines, and under the sanitizers.

import assert from 'node:assert/strict';
import { mkdtempSync, rmSync } from 'node:fs';
import net from 'node:net';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { before, describe, test } from 'node:test';
import { assemble, GOOD, REFUSED, SENDS_TO_NOBODY, STORE_ROUND_TRIP, TRAPPING } from './modules.js';
import { buildTestCard, MODULES, TestCard } from './posix-card.js';

const KINDS = [
  'none',
  'refused',
  'out-of-bounds',
  'import-argument',
  'integer',
  'unreachable',
  'stack',
  'abort',
  'watchdog',
  'init',
  'native',
];

for (const sanitized of [false, true]) {
  describe(sanitized ? 'posix runtime under ASan and UBSan' : 'posix runtime', () => {
    let binary: string;
    let good: string;

    before(async () => {
      binary = await buildTestCard(sanitized);
      good = assemble(GOOD, MODULES);
    });

    async function run(firmwares: string[], engine: string, until: RegExp): Promise<TestCard> {
      const card = new TestCard();
      try {
        card.start(binary, firmwares, engine);
        await card.line(until);
      } finally {
        await card.stop();
        card.remove();
      }
      assert.equal(card.exitCode, 0, `the runtime did not end cleanly:\n${card.lines.join('\n')}`);
      return card;
    }

    for (const engine of ['wasm3', 'aot']) {
      test(`${engine}: a good firmware runs`, async () => {
        const card = await run([good], engine, /^info: good firmware$/);
        assert.ok(card.lines.some((line) => line.includes(`engine=${engine}`)));
      });

      test(`${engine}: the local store keeps what is written`, async () => {
        await run([assemble(STORE_ROUND_TRIP, MODULES)], engine, /^info: good store$/);
      });

      test(`${engine}: what cannot be sent is followed by the end of the stream`, async (context) => {
        const path = join(mkdtempSync(join(tmpdir(), 'ribbon-stream-')), 'socket');
        const server = net.createServer((socket) => socket.write('four', () => socket.destroy()));
        await new Promise<void>((listening) => server.listen(path, listening));
        context.after(() => server.close());
        const card = new TestCard();
        try {
          card.start(binary, [assemble(SENDS_TO_NOBODY, MODULES)], engine, { paths: `unix ${path}\n` });
          await card.line(/^info: closed$/);
        } finally {
          await card.stop();
          card.remove();
          rmSync(dirname(path), { recursive: true });
        }
      });

      for (const module of TRAPPING) {
        // The watchdog takes a second of processor time; under the sanitizers nothing about it differs.
        if (module.slow && sanitized) continue;
        test(`${engine}: ${module.name} traps as ${module.kind}; the previous firmware runs`, async () => {
          const card = new TestCard();
          try {
            card.start(binary, [assemble(module, MODULES), good], engine);
            await card.line(/^info: good firmware$/);
            const reports = card.lines.filter((line) => line.startsWith(`error: firmware 0: ${module.kind}:`));
            assert.equal(reports.length, 3, card.lines.join('\n'));
            assert.equal(KINDS[card.crashKind()], module.kind);
            await card.stop();
            // The record outlives the run and is told at the next start.
            card.lines.length = 0;
            card.start(binary, [good], engine);
            const told = await card.line(/^warning: last crash: /);
            assert.match(told, new RegExp(`last crash: ${module.kind}: .*count=3 .*engine=${engine}`));
            if (module.name === 'failed-assertion') assert.match(told, /: boom in .*line=17 column=5/);
          } finally {
            await card.stop();
            card.remove();
          }
          assert.equal(card.exitCode, 0, card.lines.join('\n'));
        });
      }
    }

    for (const module of REFUSED) {
      test(`refused: ${module.name}; the previous firmware runs`, async () => {
        const card = await run([assemble(module, MODULES), good], 'wasm3', /^info: good firmware$/);
        const report = card.lines.find((line) => line.startsWith('error: firmware 0: refused:'));
        assert.match(report ?? '(none)', module.reason);
      });
    }

    test('no firmware left: halts with a clear message', async () => {
      const card = new TestCard();
      card.start(binary, [assemble(REFUSED[0], MODULES)], 'auto');
      await card.ended();
      card.remove();
      assert.equal(card.exitCode, 3);
      assert.ok(card.lines.includes('error: halted: no firmware image runs'), card.lines.join('\n'));
    });
  });
}
