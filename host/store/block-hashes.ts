// The hashes of many blocks, made on a thread of their own: a block takes 3 us, in which the server answers nobody.

import { Worker } from 'node:worker_threads';
import { sha256 } from './sha256.js';

const BLOCK_SIZE = 4096;
const HASH = 32;
/** Fewer are hashed before the thread has been woken. */
const THREAD_BLOCKS_MIN = 64;
const ZERO_BLOCK = Buffer.alloc(BLOCK_SIZE);

/** What the thread is asked for, and its answer. */
export interface HashTask {
  number: number;
  blocks: SharedArrayBuffer;
  count: number;
}
export interface HashResult {
  number: number;
  hashes: Uint8Array;
}

/** 32 bytes for each of the first `count` blocks; 0 for a block of zeroes (SPEC.md "Tree"). */
export function hashesOf(blocks: Buffer, count: number): Buffer {
  const hashes = Buffer.alloc(count * HASH);
  for (let index = 0; index < count; index++) {
    const block = blocks.subarray(index * BLOCK_SIZE, (index + 1) * BLOCK_SIZE);
    // Most blocks differ from zeroes in their first bytes.
    if (block.readUInt32LE(0) === 0 && block.equals(ZERO_BLOCK)) continue;
    sha256(block).copy(hashes, index * HASH);
  }
  return hashes;
}

/** The same, of blocks in shared memory from its beginning, which must not change meanwhile. */
export function hashesOnThread(blocks: Buffer, count: number): Buffer | Promise<Buffer> {
  if (count < THREAD_BLOCKS_MIN) return hashesOf(blocks, count);
  thread ??= new HashThread();
  return thread.hashes(blocks.buffer as unknown as SharedArrayBuffer, count);
}

let thread: HashThread | null = null;

class HashThread {
  private readonly worker = new Worker(new URL('./block-hashes-thread.js', import.meta.url));
  private readonly waiting = new Map<number, { resolve(hashes: Buffer): void; reject(error: Error): void }>();
  private next = 0;

  constructor() {
    // It has nothing to do of its own: the process may end.
    this.worker.unref();
    this.worker.on('message', ({ number, hashes }: HashResult) => {
      this.waiting.get(number)?.resolve(Buffer.from(hashes.buffer, hashes.byteOffset, hashes.byteLength));
      this.ended(number);
    });
    this.worker.on('error', (error) => this.fail(error));
    this.worker.on('exit', () => this.fail(new Error('the thread that hashes blocks has ended')));
  }

  hashes(blocks: SharedArrayBuffer, count: number): Promise<Buffer> {
    const number = this.next++;
    return new Promise((resolve, reject) => {
      this.waiting.set(number, { resolve, reject });
      // Somebody waits for it.
      this.worker.ref();
      this.worker.postMessage({ number, blocks, count } satisfies HashTask);
    });
  }

  private ended(number: number): void {
    this.waiting.delete(number);
    if (this.waiting.size === 0) this.worker.unref();
  }

  /** Whoever comes next gets a new thread. */
  private fail(error: Error): void {
    if (thread === this) thread = null;
    for (const { reject } of this.waiting.values()) reject(error);
    this.waiting.clear();
  }
}
