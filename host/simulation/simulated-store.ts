// A local store in memory that can lose its power: what was not flushed may be gone, there, or there in part.

import { STORE_BLOCK_SIZE, type StoreDevice, type StoreOperation } from '../card/store.js';
import type { Random } from '../fuzz/random.js';

const SECTOR_SIZE = 512;

/** What becomes of the writes that were not flushed when the power goes. */
export type PowerCut =
  | { kind: 'lose-all' }
  /** Everything that had ended is there, and of the write under way the first `sectors`. */
  | { kind: 'keep-all'; sectors: number }
  /** Of the writes that had ended those of which the first block is one of these: a device writes in any order. */
  | { kind: 'keep-some'; blocks: (block: number) => boolean }
  /** Every sector on its own. */
  | { kind: 'chance'; random: Random };

interface Write {
  block: number;
  data: Uint8Array;
}

/** What recycled stores had, by size, all zeroes again: thousands of new ones would keep the garbage collector busy. */
const pool = new Map<number, Uint8Array[]>();

function takeBytes(length: number): Uint8Array {
  return pool.get(length)?.pop() ?? new Uint8Array(length);
}

export class SimulatedStore implements StoreDevice {
  readonly blocks: number;
  /** What the card reads. */
  readonly bytes: Uint8Array;
  /** Operations started since the beginning. */
  operations = 0;
  /** The power goes when this operation starts: it and those after it never end. */
  cutAt = Number.POSITIVE_INFINITY;
  onCut: () => void = () => {};
  /** Sectors of the write that was under way when the power went, 0 for another operation. */
  cutSectors = 0;
  /** Flushes wait until this is false again; see release(). */
  holdFlushes = false;
  /** Blocks that cannot be read. */
  readonly unreadable = new Set<number>();
  /** Every write fails, every flush fails. */
  failWrites = false;
  failFlushes = false;
  /** Lets an operation end later; at once without. A PC that is told too early then has time to rely on it. */
  later: ((end: () => void) => void) | null = null;
  /** Starts of operations, for tests that choose what to cut. */
  onStart: (operation: StoreOperation) => void = () => {};
  readonly #durable: Uint8Array;
  /** Blocks that were ever written. */
  readonly #written = new Set<number>();
  #unflushed: Write[] = [];
  #underWay: Write | null = null;
  /** Operations that have started and not ended, when operations take time. */
  #started = new Set<StoreOperation>();
  #held: StoreOperation[] = [];
  #dead = false;

  constructor(sizeBytes: number) {
    this.blocks = Math.floor(sizeBytes / STORE_BLOCK_SIZE);
    this.bytes = takeBytes(this.blocks * STORE_BLOCK_SIZE);
    this.#durable = takeBytes(this.bytes.length);
  }

  start(operation: StoreOperation): void {
    if (this.#dead) return;
    this.operations += 1;
    this.onStart(operation);
    if (this.operations >= this.cutAt) {
      this.#dead = true;
      if (operation.kind === 'write') this.#underWay = this.#writeUnderWay(operation);
      this.cutSectors = this.#underWay === null ? 0 : this.#underWay.data.length / SECTOR_SIZE;
      this.onCut();
      return;
    }
    if (operation.kind === 'flush' && this.holdFlushes) this.#held.push(operation);
    else if (this.later === null) this.#run(operation);
    else {
      this.#started.add(operation);
      this.later(() => {
        // Not if the power has gone meanwhile.
        if (!this.#dead && this.#started.delete(operation)) this.#run(operation);
      });
    }
  }

  /** Lets the flushes go that were held. */
  release(): void {
    this.holdFlushes = false;
    for (const operation of this.#held.splice(0)) this.#run(operation);
  }

  #run(operation: StoreOperation): void {
    const { kind, block, count, memory, done } = operation;
    const at = block * STORE_BLOCK_SIZE;
    if (kind === 'read') {
      for (let i = block; i < block + count; i++) {
        if (this.unreadable.has(i)) {
          done(true);
          return;
        }
      }
      memory.set(this.bytes.subarray(at, at + memory.length));
    } else if (kind === 'write') {
      if (this.failWrites) {
        done(true);
        return;
      }
      this.bytes.set(memory, at);
      this.#noteWritten(block, count);
      this.#unflushed.push(write(operation));
    } else if (kind === 'flush') {
      if (this.failFlushes) {
        done(true);
        return;
      }
      for (const { block: first, data } of this.#unflushed.splice(0)) this.#durable.set(data, first * STORE_BLOCK_SIZE);
    }
    done(false);
  }

  /** A write that has not ended may be there all the same when the power has gone. */
  #writeUnderWay(operation: StoreOperation): Write {
    this.#noteWritten(operation.block, operation.count);
    return write(operation);
  }

  #noteWritten(block: number, count: number): void {
    for (let i = block; i < block + count; i++) this.#written.add(i);
  }

  /** The store is used no more: its memory is for others. */
  recycle(): void {
    this.#dead = true;
    for (const bytes of [this.bytes, this.#durable]) {
      for (const block of this.#written) bytes.fill(0, block * STORE_BLOCK_SIZE, (block + 1) * STORE_BLOCK_SIZE);
      const free = pool.get(bytes.length);
      if (free === undefined) pool.set(bytes.length, [bytes]);
      else free.push(bytes);
    }
    this.#written.clear();
  }

  /** The power is gone: decides what is left. The store can be used again afterwards. */
  powerCut(how: PowerCut): void {
    const touched = [...this.#unflushed];
    if (how.kind !== 'lose-all') {
      for (const operation of this.#started)
        if (operation.kind === 'write') touched.push(this.#writeUnderWay(operation));
    }
    this.#started.clear();
    if (this.#underWay !== null) touched.push(this.#underWay);
    if (how.kind === 'keep-all') {
      for (const { block, data } of this.#unflushed) this.#durable.set(data, block * STORE_BLOCK_SIZE);
      if (this.#underWay !== null) {
        const { block, data } = this.#underWay;
        this.#durable.set(data.subarray(0, how.sectors * SECTOR_SIZE), block * STORE_BLOCK_SIZE);
      }
    } else if (how.kind === 'keep-some') {
      for (const { block, data } of this.#unflushed)
        if (how.blocks(block)) this.#durable.set(data, block * STORE_BLOCK_SIZE);
    } else if (how.kind === 'chance') {
      // Devices write in any order: of two writes to one place the earlier may win.
      for (const { block, data } of how.random.shuffle([...touched])) {
        const odds = how.random.pick([0, 0.1, 0.5, 0.9, 1]);
        for (let at = 0; at < data.length; at += SECTOR_SIZE) {
          if (how.random.chance(odds))
            this.#durable.set(data.subarray(at, at + SECTOR_SIZE), block * STORE_BLOCK_SIZE + at);
        }
      }
    }
    for (const { block, data } of touched) {
      const at = block * STORE_BLOCK_SIZE;
      this.bytes.set(this.#durable.subarray(at, at + data.length), at);
    }
    this.#unflushed = [];
    this.#underWay = null;
    this.#held = [];
    this.#dead = false;
    this.cutAt = Number.POSITIVE_INFINITY;
  }

  /** Changes what is stored, behind the card's back. */
  tamper(block: number, change: (data: Uint8Array) => void): void {
    const at = block * STORE_BLOCK_SIZE;
    this.#noteWritten(block, 1);
    change(this.bytes.subarray(at, at + STORE_BLOCK_SIZE));
    this.#durable.set(this.bytes.subarray(at, at + STORE_BLOCK_SIZE), at);
  }
}

function write({ block, memory }: StoreOperation): Write {
  return { block, data: memory.slice() };
}
