// The cards' CRC-32C against the host tools' own, which goes byte by byte: any length, any alignment, zeroes at the end, in parts.

import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import { randomBytes } from 'node:crypto';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test } from 'node:test';
import { crc32c } from '../../host/card/crc32c.js';
import { ROOT } from './builds.js';

test('CRC-32C', () => {
  const folder = mkdtempSync(join(tmpdir(), 'ribbon-crc-'));
  try {
    const program = join(folder, 'crc32c');
    const runtime = join(ROOT, 'boards', 'runtime');
    const sources = [join(ROOT, 'tests', 'boards', 'crc32c.c'), join(runtime, 'crc32c.c')];
    const flags = [
      '-std=c11',
      '-O2',
      '-Wall',
      '-Wextra',
      '-Werror',
      '-fsanitize=address,undefined',
      '-fno-sanitize-recover=all',
    ];
    execFileSync('gcc', [...flags, `-I${runtime}`, ...sources, '-o', program]);
    const records: Buffer[] = [Buffer.from('123456789'), Buffer.alloc(0)];
    for (let length = 1; length < 80; length++) records.push(randomBytes(length), Buffer.alloc(length));
    for (const zeroes of [1, 31, 32, 33, 223, 224, 255, 256, 257, 4000, 4095, 4096, 65_536, 100_003]) {
      for (const content of [0, 1, 7, 8, 9, 300, 4096])
        records.push(Buffer.concat([randomBytes(content), Buffer.alloc(zeroes)]));
    }
    const input = Buffer.concat(
      records.flatMap((record) => {
        const length = Buffer.alloc(4);
        length.writeUInt32LE(record.length);
        return [length, record];
      }),
    );
    const printed = execFileSync(program, { input, encoding: 'utf8', maxBuffer: 1 << 24 })
      .trim()
      .split('\n')
      .map(Number);
    assert.deepEqual(
      printed,
      records.map((record) => crc32c(record) >>> 0),
    );
    assert.equal(printed[0], 0xe3069283);
  } finally {
    rmSync(folder, { recursive: true, force: true });
  }
});
