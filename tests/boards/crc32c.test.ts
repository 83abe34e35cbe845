// The cards' CRC-32C against the host tools' own, which goes byte by byte: any length, any alignment, zeroes at the end, in parts; in C
// under the sanitizers, and with NEON in QEMU's user mode.

import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import { randomBytes } from 'node:crypto';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test } from 'node:test';
import { crc32c } from '../../host/card/crc32c.js';
import { ROOT } from './builds.js';

const SANITIZED = ['-fsanitize=address,undefined', '-fno-sanitize-recover=all'];
const BUILDS = [
  { name: 'C', compiler: 'gcc', flags: SANITIZED, run: [] },
  {
    name: 'NEON',
    compiler: 'arm-linux-gnueabihf-gcc',
    flags: ['-static', '-mcpu=cortex-a9', '-mfpu=neon'],
    run: ['qemu-arm'],
  },
];

/** With and without a fold, one and several, around each limit. */
function records(): Buffer[] {
  const found: Buffer[] = [Buffer.from('123456789'), Buffer.alloc(0)];
  for (let length = 1; length < 80; length++) found.push(randomBytes(length), Buffer.alloc(length));
  for (const zeroes of [0, 1, 127, 128, 129, 255, 256, 257, 4000, 4095, 4096, 65_536, 100_003]) {
    for (const content of [0, 1, 8, 9, 300, 575, 576, 577, 640, 4060, 4084, 4095, 4096, 4097, 4672, 8192, 20_001])
      found.push(Buffer.concat([randomBytes(content), Buffer.alloc(zeroes)]));
  }
  return found;
}

for (const { name, compiler, flags, run } of BUILDS) {
  test(`CRC-32C in ${name}`, () => {
    const folder = mkdtempSync(join(tmpdir(), 'ribbon-crc-'));
    try {
      const program = join(folder, 'crc32c');
      const runtime = join(ROOT, 'boards', 'runtime');
      const sources = [join(ROOT, 'tests', 'boards', 'crc32c.c'), join(runtime, 'crc32c.c')];
      const common = ['-std=c11', '-O2', '-Wall', '-Wextra', '-Werror'];
      execFileSync(compiler, [...common, ...flags, `-I${runtime}`, ...sources, '-o', program]);
      const all = records();
      const input = Buffer.concat(
        all.flatMap((record) => {
          const length = Buffer.alloc(4);
          length.writeUInt32LE(record.length);
          return [length, record];
        }),
      );
      const [command, ...args] = [...run, program];
      const printed = execFileSync(command, args, { input, encoding: 'utf8', maxBuffer: 1 << 24 })
        .trim()
        .split('\n')
        .map(Number);
      assert.deepEqual(
        printed,
        all.map((record) => crc32c(record) >>> 0),
      );
      assert.equal(printed[0], 0xe3069283);
    } finally {
      rmSync(folder, { recursive: true, force: true });
    }
  });
}

test("what is folded by is a multiple of the CRC's polynomial, x^8 put in for x too", () => {
  const POLYNOMIAL = 0x11edc6f41n;
  for (const unit of [1, 8]) {
    let rest = [209, 144, 54, 39, 14, 0].reduce((sum, exponent) => sum | (1n << BigInt(exponent * unit)), 0n);
    for (let degree = 209 * unit; degree >= 32; degree--) {
      if ((rest >> BigInt(degree)) & 1n) rest ^= POLYNOMIAL << BigInt(degree - 32);
    }
    assert.equal(rest, 0n);
  }
});
