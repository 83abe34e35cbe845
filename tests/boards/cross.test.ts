// The card as a program for ARM single-board computers: cross-compiled, and run by QEMU's user mode, both engines.

import assert from 'node:assert/strict';
import { chmodSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test } from 'node:test';
import { PosixCard } from '../../host/card/posix.js';
import { DEFAULT_SETTINGS } from '../../host/card/settings.js';
import { Cable } from '../../host/front-end/cable.js';
import { buildCross, CROSS_SYSTEMS } from '../../tools/build-boards.js';
import { FIRMWARE, ROOT } from './builds.js';
import { IMAGE_NAME, pattern, TestImage } from './image.js';
import { Command, Pc } from './pc.js';

const EMULATORS = { arm64: 'qemu-aarch64', armhf: 'qemu-arm' } as const;
const SECTORS = 16_384;

for (const system of ['arm64', 'armhf'] as const) {
  test(`${system}: a PC reads and writes, on wasm3 and on compiled code`, async () => {
    const folder = mkdtempSync(join(tmpdir(), 'ribbon-cross-'));
    const program = join(folder, 'card');
    const card = await buildCross(ROOT, [FIRMWARE], system);
    writeFileSync(program, `#!/bin/sh\nexec ${EMULATORS[system]} -L /usr/${CROSS_SYSTEMS[system]} ${card} "$@"\n`);
    chmodSync(program, 0o755);
    try {
      for (const engine of ['wasm3', 'aot'] as const) await readAndWrite(program, engine);
    } finally {
      rmSync(folder, { recursive: true, force: true });
    }
  });
}

async function readAndWrite(program: string, engine: 'wasm3' | 'aot'): Promise<void> {
  const image = new TestImage(SECTORS);
  const log: string[] = [];
  const card = new PosixCard({
    program,
    firmware: FIRMWARE,
    engine,
    settings: { ...DEFAULT_SETTINGS, exportName: IMAGE_NAME, tls: true },
    path: await image.serveTcp({ tls: true }),
    memorySize: 32 << 20,
  });
  card.onLog = (level, line) => log.push(`${level}: ${line}`);
  try {
    await card.start();
    assert.ok(
      log.some((line) => line.includes(`engine=${engine}`)),
      log.join('\n'),
    );
    const pc = new Pc(new Cable([card.frontEnd]));
    await pc.ready();
    assert.deepEqual(await pc.read(300, 40), pattern(300, 40));
    const data = pattern(9, 600);
    await pc.write(1000, data, Command.WRITE_DMA_EXT);
    assert.equal(await card.stop(30_000), 0, log.join('\n'));
    const expected = pattern(0, SECTORS);
    expected.set(data, 1000 * 512);
    assert.ok(image.content().equals(expected), 'the master image is not what the PC wrote');
  } finally {
    await card.stop(0);
    await image.close();
  }
}
