// The memory of a board: what does not fit does not link.

import assert from 'node:assert/strict';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test } from 'node:test';
import { buildZynq } from '../../tools/build-boards.js';
import { FIRMWARE, ROOT } from './builds.js';

async function build(ddrMegabytes: number, linkFlags: string[] = []): Promise<void> {
  const folder = mkdtempSync(join(tmpdir(), 'ribbon-memory-'));
  try {
    const output = join(folder, 'card.elf');
    await buildZynq(ROOT, { firmwares: [FIRMWARE], board: 'qemu', ddrMegabytes, output, linkFlags });
  } finally {
    rmSync(folder, { recursive: true, force: true });
  }
}

test('64 and 256 MB are enough', async () => {
  await build(64);
  await build(256);
});

test('32 MB are not: the build says what is missing', async () => {
  await assert.rejects(build(32), /the linear memory needs at least 16 MiB/);
});

for (const [region, flag] of [
  ['PROGRAM', '-Wl,--defsym=PROGRAM_SIZE=256K'],
  ['DMA', '-Wl,--defsym=DMA_SIZE=256K'],
] as const) {
  test(`a region ${region} that overflows fails the build`, async () => {
    await assert.rejects(build(64, [flag]), new RegExp(`region .${region}. overflowed`));
  });
}
