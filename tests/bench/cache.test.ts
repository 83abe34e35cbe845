// The caches that `ribbon bench cache` compares the card with, and what a scan does to the card's own.

import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import { lruMisses, optimumMisses, type References, references } from '../../host/bench/cache/models.js';
import { ReplayRig } from '../../host/bench/cache/replay.js';
import { Random } from '../../host/fuzz/random.js';

const SECTORS_PER_BLOCK = 8;

/** One letter a block, a capital where it is written. */
function string(letters: string): References {
  return references(
    [...letters].map((letter) => ({
      kind: letter === letter.toUpperCase() ? 'write' : 'read',
      lba: (letter.toLowerCase().charCodeAt(0) - 97) * SECTORS_PER_BLOCK,
      count: SECTORS_PER_BLOCK,
    })),
  );
}

describe('cache models', () => {
  it('LRU and the optimum on a string from the textbooks', () => {
    // 7 0 1 2 0 3 0 4 2 3 0 3 2 1 2 0 1 7 0 1 (Silberschatz, Operating System Concepts, 10.4): with 3 frames 12 faults by LRU, 9 by the
    // optimum, which may not refuse a page there; ours may, and saves none of them with that.
    const textbook = string('habcadaecdadcbcabhab');
    assert.equal(textbook.reads, 20);
    assert.equal(textbook.distinct, 6);
    assert.equal(lruMisses(textbook, 3), 12);
    assert.ok(optimumMisses(textbook, 3) <= 9);
    assert.equal(optimumMisses(textbook, 3), fewest(textbook, 3));
  });

  it('a block that is written is there, and one that will be is not worth keeping', () => {
    assert.equal(lruMisses(string('Aa'), 1), 0);
    // LRU gives b up for c; the optimum knows that A needs no room.
    assert.equal(lruMisses(string('bacAb'), 2), 4);
    assert.equal(optimumMisses(string('bacAb'), 1), 3);
  });

  it('the optimum is what trying everything finds', () => {
    const random = new Random(3);
    for (let run = 0; run < 60; run++) {
      const letters = Array.from({ length: 14 }, () => random.pick([...'abcdeABC'])).join('');
      const capacity = random.between(1, 3);
      assert.equal(
        optimumMisses(string(letters), capacity),
        fewest(string(letters), capacity),
        `${letters} ${capacity}`,
      );
    }
  });
});

/** The fewest misses of all ways to keep `capacity` blocks. */
function fewest({ blocks, writes }: References, capacity: number): number {
  let best = new Map<string, number>([['', 0]]);
  for (let i = 0; i < blocks.length; i++) {
    const after = new Map<string, number>();
    for (const [key, misses] of best) {
      const held = key === '' ? [] : key.split(',').map(Number);
      const cost = misses + (writes[i] === 0 && !held.includes(blocks[i]) ? 1 : 0);
      const all = [...new Set([...held, blocks[i]])].sort((a, b) => a - b);
      const ways = all.length <= capacity ? [all] : all.map((_, out) => all.filter((_, at) => at !== out));
      for (const way of ways) {
        const name = way.join(',');
        after.set(name, Math.min(cost, after.get(name) ?? Number.POSITIVE_INFINITY));
      }
    }
    best = after;
  }
  return Math.min(...best.values());
}

describe('local store as a cache', () => {
  it('a scan of ten times the store does not drive out what is read again and again', () => {
    const rig = new ReplayRig({ sectors: 40_000 * SECTORS_PER_BLOCK, storeBlocks: 2048 });
    try {
      // More than the RAM cache has room for, less than the store.
      const readHot = (): number => {
        const before = rig.fetched;
        for (let i = 0; i < 1200; i++) {
          // Strewn over the disk: nothing is read ahead.
          rig.read(((i * 7919) % 16_000) * SECTORS_PER_BLOCK, SECTORS_PER_BLOCK);
          rig.pass(1);
        }
        return rig.fetched - before;
      };
      assert.equal(readHot(), 1200);
      for (let i = 0; i < 3; i++) readHot();
      // Then, every now and then while the scan goes on: a scan is long.
      for (let block = 16_000; block < 36_000; block += 32) {
        rig.read(block * SECTORS_PER_BLOCK, 32 * SECTORS_PER_BLOCK);
        rig.pass(1);
      }
      const missed = readHot();
      assert.ok(missed < 400, `${missed} of 1200 blocks must be fetched anew`);
    } finally {
      rig.close();
    }
  });
});
