// A local store in a file or on a block device: what an SD card is to a board. A flush is fdatasync(2).

import { closeSync, constants, fdatasyncSync, fstatSync, ftruncateSync, openSync, readSync, writeSync } from 'node:fs';
import { Failure } from '../failure.js';
import { type BlockStore, STORE_BLOCK_SIZE } from './store.js';

export class FileStore implements BlockStore {
  readonly blocks: number;
  readonly #file: number;

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

  flush(): void {
    fdatasyncSync(this.#file);
  }

  trim(): void {}

  close(): void {
    closeSync(this.#file);
  }
}
