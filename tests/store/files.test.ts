// Real files: what was brought along by a thread is what is read.

import assert from 'node:assert/strict';
import crypto from 'node:crypto';
import fs from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import { test } from 'node:test';
import { DiskFiles } from '../../host/store/files.js';

test('bytes that have been brought are those of the file, wherever they are read from, and however many parts there are', async () => {
  const folder = fs.mkdtempSync(path.join(os.tmpdir(), 'ribbon-test-'));
  try {
    const content = crypto.randomBytes(3_000_001);
    fs.writeFileSync(path.join(folder, 'a'), content);
    const file = new DiskFiles(folder).open('a');
    const check = (position: number, length: number) => {
      const target = Buffer.alloc(length + 7);
      const expected = content.subarray(position, position + length);
      assert.equal(file.read(target, 7, length, position), expected.length, `at ${position} + ${length}`);
      assert.ok(target.subarray(7, 7 + expected.length).equals(expected), `at ${position} + ${length}`);
    };
    // A large part in several steps, then pieces of it, also over its ends and once it has been forgotten.
    await file.prefetch!(4096, 2_500_000);
    for (const [position, length] of [
      [4096, 10],
      [100_000, 4096],
      [1_100_000, 100_000],
      [4000, 200],
      [2_504_000, 96],
      [2_503_000, 1096],
      [2_503_000, 5000],
      [100_000, 4096],
    ])
      check(position, length);
    // More parts than are kept, and one behind the end.
    await Promise.all(Array.from({ length: 100 }, (_, index) => file.prefetch!(index * 5000, 4096)));
    for (let index = 0; index < 100; index++) check(index * 5000, 4096);
    // Of more than is kept for all files, what was brought first is read from the file again, and one that is closed keeps nothing.
    const other = new DiskFiles(folder).open('a');
    for (let round = 0; round < 20; round++) await other.prefetch!(0, 2_500_000);
    check(10_000, 4096);
    other.close();
    check(20_000, 4096);
    await file.prefetch!(2_999_000, 4096);
    check(2_999_000, 1001);
    check(2_999_000, 4096);
    file.close();
  } finally {
    fs.rmSync(folder, { recursive: true });
  }
});
