// A local store in memory: it survives the card, not the process.

import { type BlockStore, STORE_BLOCK_SIZE } from './store.js';

export class MemoryStore implements BlockStore {
  readonly blocks: number;
  /** What is on it. */
  readonly bytes: Uint8Array;

  constructor(sizeBytes: number) {
    this.blocks = Math.floor(sizeBytes / STORE_BLOCK_SIZE);
    this.bytes = new Uint8Array(this.blocks * STORE_BLOCK_SIZE);
  }

  read(block: number, target: Uint8Array): void {
    const start = block * STORE_BLOCK_SIZE;
    target.set(this.bytes.subarray(start, start + target.length));
  }

  write(block: number, source: Uint8Array): void {
    this.bytes.set(source, block * STORE_BLOCK_SIZE);
  }

  flush(done: (error: Error | null) => void): void {
    done(null);
  }

  trim(): void {}

  close(): void {}
}
