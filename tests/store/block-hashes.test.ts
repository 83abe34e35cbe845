// Hashing on the thread gives what hashing here gives.

import assert from 'node:assert/strict';
import { createHash } from 'node:crypto';
import { test } from 'node:test';
import { hashesOf, hashesOnThread } from '../../host/store/block-hashes.js';
import { BLOCK_SIZE, ZERO_HASH } from '../../host/store/tree.js';

function slab(count: number, seed: number): Buffer {
  const blocks = Buffer.from(new SharedArrayBuffer(count * BLOCK_SIZE));
  // Every third block is zero; one differs from zeroes in its last byte only.
  for (let index = 0; index < count; index++)
    if (index % 3 !== 0) blocks.writeUInt32LE(seed + index, index * BLOCK_SIZE + (index % 5) * 1000);
  blocks[4 * BLOCK_SIZE - 1] = 1;
  return blocks;
}

test('a block has the hash of its bytes, one of zeroes the hash 0', () => {
  const blocks = slab(10, 7);
  const hashes = hashesOf(blocks, 9);
  assert.equal(hashes.length, 9 * 32);
  for (let index = 0; index < 9; index++) {
    const expected =
      index % 3 === 0 && index !== 3
        ? ZERO_HASH
        : createHash('sha256')
            .update(blocks.subarray(index * BLOCK_SIZE, (index + 1) * BLOCK_SIZE))
            .digest();
    assert.ok(hashes.subarray(index * 32, (index + 1) * 32).equals(expected), `block ${index}`);
  }
});

test('the thread takes several slabs at once and answers each with its own hashes', async () => {
  const slabs = Array.from({ length: 5 }, (_, index) => slab(64 + 50 * index, 1000 * index));
  const answers = slabs.map((blocks) => hashesOnThread(blocks, blocks.length / BLOCK_SIZE));
  assert.ok(answers.every((answer) => answer instanceof Promise));
  for (const [index, blocks] of slabs.entries())
    assert.ok((await answers[index]).equals(hashesOf(blocks, blocks.length / BLOCK_SIZE)), `slab ${index}`);
  // Few blocks are not worth waking it.
  assert.ok(Buffer.isBuffer(hashesOnThread(slabs[0], 10)));
});
