// SD cards that time out, answer with CRC errors, stay busy, lie about their size, are pulled: the driver of the Zynq board on a model
// of its controller (QEMU's never fails). Compiled for 32-bit ARM, as the driver gives the controller addresses of 32 bits.

import assert from 'node:assert/strict';
import { execFileSync, spawnSync } from 'node:child_process';
import { copyFileSync, mkdtempSync, readdirSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test } from 'node:test';
import { ROOT } from './builds.js';

test('an SD card that misbehaves: operations end, no read is wrong, and a card that is well again is used', () => {
  const folder = mkdtempSync(join(tmpdir(), 'ribbon-sd-'));
  try {
    const zynq = join(ROOT, 'boards', 'zynq');
    const model = join(ROOT, 'tests', 'boards', 'sd-model');
    // Headers are looked for beside the file that names them: the driver is compiled beside the model's.
    for (const name of ['store_sd.c', 'store_sd.h', 'mmu.h', 'timer.h'])
      copyFileSync(join(zynq, name), join(folder, name));
    for (const name of readdirSync(model)) copyFileSync(join(model, name), join(folder, name));
    const program = join(folder, 'model');
    const flags = [
      '-std=c11',
      '-O2',
      '-g',
      '-Wall',
      '-Wextra',
      '-Werror',
      '-static',
      `-I${join(ROOT, 'boards', 'runtime')}`,
    ];
    execFileSync('arm-linux-gnueabihf-gcc', [
      ...flags,
      join(folder, 'store_sd.c'),
      join(folder, 'model.c'),
      '-o',
      program,
    ]);
    const { status, stdout, stderr } = spawnSync('qemu-arm', [program], { encoding: 'utf8', timeout: 120_000 });
    assert.equal(status, 0, `${stdout}\n${stderr}`);
    assert.match(stdout, /^done$/m);
  } finally {
    rmSync(folder, { recursive: true, force: true });
  }
});
