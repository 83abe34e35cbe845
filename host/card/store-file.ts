// A local store in a file or on a block device: what an SD card is to a board.
//
// Reads and writes end in the system's page cache: microseconds, done at once. A flush is fdatasync(2), which takes
// milliseconds: a thread of Node's waits for it, while the PC, whose processor is this thread, goes on.

import { closeSync, constants, fdatasync, fstatSync, ftruncateSync, openSync, readSync, writeSync } from 'node:fs';
import { Failure } from '../failure.js';
import { type BlockStore, STORE_BLOCK_SIZE } from './store.js';

/** A sparse file of `sizeBytes`, for its owner only. One that exists keeps its size; an empty one is one whose making was cut short. */
export function makeStoreFile(path: string, sizeBytes: number): void {
  try {
    const file = openSync(path, constants.O_RDWR | constants.O_CREAT, 0o600);
    try {
      const about = fstatSync(file);
      if (about.isFile() && about.size === 0) ftruncateSync(file, sizeBytes);
    } finally {
      closeSync(file);
    }
  } catch (error) {
    throw new Failure(`cannot open the local store ${path}: ${(error as Error).message}`);
  }
}

export class FileStore implements BlockStore {
  readonly blocks: number;
  readonly #file: number;
  #flushes = 0;
  #closed = false;

  /** Opens `path`, and makes it if it does not exist: see makeStoreFile(). */
  constructor(path: string, sizeBytes: number) {
    makeStoreFile(path, sizeBytes);
    try {
      this.#file = openSync(path, constants.O_RDWR);
    } catch (error) {
      throw new Failure(`cannot open the local store ${path}: ${(error as Error).message}`);
    }
    this.blocks = Math.floor(fstatSync(this.#file).size / STORE_BLOCK_SIZE);
  }

  read(block: number, target: Uint8Array): void {
    let done = 0;
    while (done < target.length) {
      const count = readSync(this.#file, target, done, target.length - done, block * STORE_BLOCK_SIZE + done);
      if (count === 0) throw new Error('the file is shorter than it was');
      done += count;
    }
  }

  write(block: number, source: Uint8Array): void {
    let done = 0;
    while (done < source.length) {
      done += writeSync(this.#file, source, done, source.length - done, block * STORE_BLOCK_SIZE + done);
    }
  }

  flush(done: (error: Error | null) => void): void {
    if (this.#closed) {
      done(new Error('the file is closed'));
      return;
    }
    this.#flushes += 1;
    fdatasync(this.#file, (error) => {
      this.#flushes -= 1;
      this.#closeWhenIdle();
      done(error);
    });
  }

  trim(): void {}

  /** A flush on its way ends first: the file's number must not be another file's while a thread still has it. */
  close(): void {
    if (this.#closed) return;
    this.#closed = true;
    this.#closeWhenIdle();
  }

  #closeWhenIdle(): void {
    if (this.#closed && this.#flushes === 0) closeSync(this.#file);
  }
}
