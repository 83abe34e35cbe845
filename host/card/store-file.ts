// A local store in a file or on a block device: what an SD card is to a board.
//
// The PC's processor is this thread. Reads, and small writes, end in the system's page cache: microseconds, done at once. Large writes
// and flushes are left to threads of Node's.

import {
  closeSync,
  constants,
  fdatasync,
  fstatSync,
  ftruncateSync,
  openSync,
  readSync,
  write,
  writeSync,
} from 'node:fs';
import { Failure } from '../failure.js';
import { STORE_BLOCK_SIZE, type StoreDevice, type StoreOperation } from './store.js';

/** From here on a write costs more than to leave it to a thread. */
const LATER_BLOCKS = 8;

export class FileStore implements StoreDevice {
  /** Hears what the firmware is not told of an operation that has failed. */
  onError: (message: string) => void = () => {};
  readonly blocks: number;
  readonly #file: number;
  /** Calls that threads are at. */
  #calls = 0;
  #closed = false;

  /** Opens `path`. A file that does not exist is made, sparse, `sizeBytes` long; one that exists keeps its size. */
  constructor(path: string, sizeBytes: number) {
    try {
      this.#file = openSync(path, constants.O_RDWR | constants.O_CREAT, 0o600);
    } catch (error) {
      throw new Failure(`cannot open the local store ${path}: ${(error as Error).message}`);
    }
    let size = fstatSync(this.#file).size;
    if (size === 0) {
      ftruncateSync(this.#file, sizeBytes);
      size = sizeBytes;
    }
    this.blocks = Math.floor(size / STORE_BLOCK_SIZE);
  }

  start(operation: StoreOperation): void {
    const { kind, block, count, memory } = operation;
    const position = block * STORE_BLOCK_SIZE;
    if (this.#closed) this.#end(operation, new Error('the file is closed'));
    else if (kind === 'read') this.#now(operation, () => this.#read(memory, position));
    else if (kind === 'write' && count < LATER_BLOCKS) this.#now(operation, () => this.#write(memory, position));
    else if (kind === 'write') this.#later(operation, (done) => this.#writeLater(memory, position, done));
    else if (kind === 'flush') this.#later(operation, (done) => fdatasync(this.#file, done));
    else operation.done(false);
  }

  /** Calls of threads end first: the file's number must not be another file's while one still has it. */
  close(): void {
    if (this.#closed) return;
    this.#closed = true;
    this.#closeWhenIdle();
  }

  #now(operation: StoreOperation, work: () => void): void {
    try {
      work();
    } catch (error) {
      this.#end(operation, error as Error);
      return;
    }
    this.#end(operation, null);
  }

  #later(operation: StoreOperation, work: (done: (error: Error | null) => void) => void): void {
    this.#calls += 1;
    work((error) => {
      this.#calls -= 1;
      this.#end(operation, error);
      this.#closeWhenIdle();
    });
  }

  #end({ kind, block, done }: StoreOperation, error: Error | null): void {
    if (error !== null) this.onError(`${kind} of block ${block}: ${error.message}`);
    done(error !== null);
  }

  #read(target: Uint8Array, position: number): void {
    for (let at = 0; at < target.length; ) {
      const count = readSync(this.#file, target, at, target.length - at, position + at);
      if (count === 0) throw new Error('the file is shorter than it was');
      at += count;
    }
  }

  #write(source: Uint8Array, position: number): void {
    for (let at = 0; at < source.length; ) {
      at += writeSync(this.#file, source, at, source.length - at, position + at);
    }
  }

  #writeLater(source: Uint8Array, position: number, done: (error: Error | null) => void): void {
    write(this.#file, source, 0, source.length, position, (error, count) => {
      if (error !== null || count === source.length) done(error);
      else this.#writeLater(source.subarray(count), position + count, done);
    });
  }

  #closeWhenIdle(): void {
    if (!this.#closed || this.#calls > 0) return;
    this.#calls = Number.POSITIVE_INFINITY; // once
    closeSync(this.#file);
  }
}
