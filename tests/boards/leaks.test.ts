// valgrind over a card's life: start, TLS connections that are made and broken, work, traps, a clean end. Nothing may be lost, nothing read
// that was never written. RIBBON_LONG=1: an hour of it.

import assert from 'node:assert/strict';
import { chmodSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { before, test } from 'node:test';
import { PosixCard } from '../../host/card/posix.js';
import { DEFAULT_SETTINGS } from '../../host/card/settings.js';
import { Cable } from '../../host/front-end/cable.js';
import { buildPosixCard, FIRMWARE, POSIX_CARD } from './builds.js';
import { IMAGE_NAME, pattern, TestImage } from './image.js';
import { Command, Pc } from './pc.js';

const SECTORS = 16_384;
const LONG_MS = process.env.RIBBON_LONG === '1' ? 3_600_000 / 2 : 0;
const ROUNDS = 3;

before(buildPosixCard);

for (const engine of ['wasm3', 'aot'] as const) {
  test(`valgrind finds nothing: ${engine}`, async () => {
    const folder = mkdtempSync(join(tmpdir(), 'ribbon-valgrind-'));
    const program = join(folder, 'card');
    // What linear memory holds is the firmware's business: wasm memory is zero at first, never undefined.
    writeFileSync(
      program,
      `#!/bin/sh\nexec valgrind --quiet --leak-check=full --show-leak-kinds=all --errors-for-leak-kinds=all --error-exitcode=99 --log-file=${folder}/valgrind ${POSIX_CARD} "$@"\n`,
    );
    chmodSync(program, 0o755);
    const image = new TestImage(SECTORS);
    const log: string[] = [];
    const card = new PosixCard({
      program,
      firmware: FIRMWARE,
      engine,
      settings: { ...DEFAULT_SETTINGS, exportName: IMAGE_NAME, tls: true },
      path: await image.serveTcp({ tls: true }),
      memorySize: 32 << 20,
      startTimeoutMs: 120_000,
    });
    card.onLog = (level, line) => log.push(`${level}: ${line}`);
    const crashes: string[] = [];
    card.onCrash = (error) => crashes.push(error.message);
    try {
      await card.start();
      const pc = new Pc(new Cable([card.frontEnd]));
      await pc.ready();
      const end = Date.now() + LONG_MS;
      for (let round = 0; round < ROUNDS || Date.now() < end; round++) {
        const lba = 100 + (round % 10) * 1000;
        await pc.read(lba, 300, Command.READ_DMA_EXT);
        await pc.write(lba + 400, pattern(round, 200), Command.WRITE_DMA_EXT);
        await pc.flush();
        if (round % 3 === 1) {
          // The firmware traps and is started again; a command that it is at then would end in ABRT.
          const traps = (): number => log.filter((line) => line.includes('watchdog')).length;
          const before = traps();
          process.kill(card.pid ?? 0, 'SIGUSR1');
          while (traps() === before && card.pid !== null) await new Promise((done) => setTimeout(done, 20));
        }
        if (round % 3 === 2) {
          await image.stopServer('SIGKILL');
          await image.serveTcp({ tls: true });
        }
        assert.ok((await pc.read(lba + 400, 200)).equals(pattern(round, 200)));
        // A firmware that traps three times within a minute is given up.
        if (LONG_MS > 0) await new Promise((done) => setTimeout(done, 25_000));
      }
      await card.stop(60_000);
      const found = readdirSync(folder)
        .filter((name) => name.startsWith('valgrind'))
        .map((name) => readFileSync(join(folder, name), 'utf8'))
        .join('');
      assert.equal(found, '', found);
      assert.deepEqual(crashes, []);
      assert.ok(
        log.some((line) => line.includes('watchdog')),
        'no trap, no test',
      );
    } finally {
      await card.stop(0);
      await image.close();
      rmSync(folder, { recursive: true, force: true });
    }
  });
}
