// What other caches of as many blocks would have to fetch for the same accesses: one that forgets what was used longest ago, and
// one that knows the future.

import type { TraceAccess } from './trace.js';

const SECTORS_PER_BLOCK = 8;

/** Accesses of single blocks, in order. */
export interface References {
  blocks: Uint32Array;
  /** 1: the block is written, which costs no fetch and leaves it in the cache. */
  writes: Uint8Array;
  /** How many are reads. */
  reads: number;
  distinct: number;
}

export function references(trace: readonly TraceAccess[]): References {
  const blocks: number[] = [];
  const writes: number[] = [];
  for (const { kind, lba, count } of trace) {
    const last = Math.floor((lba + count - 1) / SECTORS_PER_BLOCK);
    for (let block = Math.floor(lba / SECTORS_PER_BLOCK); block <= last; block++) {
      blocks.push(block);
      writes.push(kind === 'write' ? 1 : 0);
    }
  }
  return {
    blocks: Uint32Array.from(blocks),
    writes: Uint8Array.from(writes),
    reads: writes.filter((write) => write === 0).length,
    distinct: new Set(blocks).size,
  };
}

/** Blocks that are fetched when the one used longest ago makes room. */
export function lruMisses({ blocks, writes }: References, capacity: number): number {
  // A Map keeps its keys in the order in which they came.
  const held = new Map<number, true>();
  let misses = 0;
  for (let i = 0; i < blocks.length; i++) {
    const block = blocks[i];
    if (!held.delete(block) && writes[i] === 0) misses += 1;
    held.set(block, true);
    if (held.size > capacity) held.delete(held.keys().next().value as number);
  }
  return misses;
}

/** The fewest blocks that any cache fetches (Belady 1966): it keeps those that are read again soonest, and none that is written
 * before it is read again or that is read later than all that it has. */
export function optimumMisses({ blocks, writes }: References, capacity: number): number {
  const never = blocks.length;
  const nextRead = nextReads(blocks, writes);
  /** When each block that is held is read again, and the same sorted by that; the heap may hold what is out of date. */
  const held = new Map<number, number>();
  const heap = new LatestFirst();
  let misses = 0;
  for (let i = 0; i < blocks.length; i++) {
    const block = blocks[i];
    if (writes[i] === 0 && !held.has(block)) misses += 1;
    held.delete(block);
    if (nextRead[i] === never) continue;
    held.set(block, nextRead[i]);
    heap.push(nextRead[i]);
    while (held.size > capacity) {
      const latest = blocks[heap.pop()];
      held.delete(latest);
    }
  }
  return misses;
}

/** For each access when its block is accessed next, if that is a read; the number of accesses when it is not. */
function nextReads(blocks: Uint32Array, writes: Uint8Array): Uint32Array {
  const next = new Uint32Array(blocks.length);
  const last = new Map<number, number>();
  for (let i = blocks.length - 1; i >= 0; i--) {
    const at = last.get(blocks[i]);
    next[i] = at === undefined || writes[at] === 1 ? blocks.length : at;
    last.set(blocks[i], i);
  }
  return next;
}

/** A heap of access numbers, the greatest at its root. */
class LatestFirst {
  readonly #items: number[] = [];

  push(item: number): void {
    const items = this.#items;
    let at = items.push(item) - 1;
    while (at > 0) {
      const parent = (at - 1) >> 1;
      if (items[parent] >= item) break;
      items[at] = items[parent];
      at = parent;
    }
    items[at] = item;
  }

  pop(): number {
    const items = this.#items;
    const root = items[0];
    const item = items.pop() as number;
    if (items.length === 0) return root;
    let at = 0;
    for (;;) {
      let child = 2 * at + 1;
      if (child >= items.length) break;
      if (child + 1 < items.length && items[child + 1] > items[child]) child += 1;
      if (items[child] <= item) break;
      items[at] = items[child];
      at = child;
    }
    items[at] = item;
    return root;
  }
}
