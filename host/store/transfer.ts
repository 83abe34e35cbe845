// Images in and out as raw disk image files.

import fs from 'node:fs';
import { Failure } from '../failure.js';
import type { Store } from './store.js';
import { BLOCK_SIZE, TreeView, ZERO_HASH } from './tree.js';

export type Progress = (done: number, total: number) => void;

/** Blocks hashed and brought into the tree at once: 64 MiB. */
const CHUNK_BLOCKS = 16384;
const COPY_SIZE = 1024 * 1024;

/** Makes a raw disk image file an image. Zero blocks cost nothing. */
export async function importRaw(
  store: Store,
  name: string,
  path: string,
  who = 'administrator',
  onProgress: Progress = () => {},
): Promise<void> {
  if (store.has(name)) throw new Failure(`there is an image "${name}" already`);
  const fd = openFile(path);
  const live = { root: ZERO_HASH as Buffer, size: 0 };
  store.liveRoots.add(live);
  try {
    const size = fileSize(fd, path);
    live.size = size;
    const total = Math.ceil(size / BLOCK_SIZE);
    for (let first = 0; first < total; first += CHUNK_BLOCKS) {
      const count = Math.min(CHUNK_BLOCKS, total - first);
      const blocks = Float64Array.from({ length: count }, (_, index) => first + index);
      const source = {
        read(at: number, many: number, target: Buffer) {
          const done = readFully(fd, target, many * BLOCK_SIZE, (first + at) * BLOCK_SIZE);
          target.fill(0, done, many * BLOCK_SIZE);
        },
      };
      live.root = await store.builder.addBlocks(live.root, size, size, blocks, source, []);
      onProgress(Math.min((first + count) * BLOCK_SIZE, size), size);
    }
    await store.images.createFromRoot(name, size, live.root, `import of ${path}`, who);
  } finally {
    store.liveRoots.delete(live);
    fs.closeSync(fd);
  }
}

/** Writes one generation to a raw file; ranges of zeroes become holes. */
export async function exportRaw(
  store: Store,
  name: string,
  at: number | string | null,
  path: string,
  onProgress: Progress = () => {},
): Promise<void> {
  const record = await store.needGeneration(name, at);
  const view = new TreeView(store.nodes, Buffer.from(record.root, 'hex'), record.size);
  const fd = fs.openSync(path, 'w');
  try {
    fs.ftruncateSync(fd, record.size);
    const buffer = Buffer.alloc(COPY_SIZE);
    for (let position = 0; position < record.size; ) {
      const block = Math.floor(position / BLOCK_SIZE);
      const { allocated, count } = view.allocation(block, COPY_SIZE / BLOCK_SIZE);
      const length = Math.min(count * BLOCK_SIZE, record.size - position);
      if (allocated) {
        await view.read(position, buffer, 0, length);
        fs.writeSync(fd, buffer, 0, length, position);
      }
      position += length;
      onProgress(position, record.size);
    }
    fs.fdatasyncSync(fd);
  } finally {
    view.close();
    fs.closeSync(fd);
  }
}

function openFile(path: string): number {
  try {
    return fs.openSync(path, 'r');
  } catch (error) {
    throw new Failure(`cannot read ${path}: ${(error as Error).message}`);
  }
}

function fileSize(fd: number, path: string): number {
  const status = fs.fstatSync(fd);
  if (!status.isFile()) throw new Failure(`${path} is not a regular file`);
  if (status.size === 0) throw new Failure(`${path} is empty: an image has at least one byte`);
  return status.size;
}

function readFully(fd: number, target: Buffer, length: number, position: number): number {
  let done = 0;
  while (done < length) {
    const count = fs.readSync(fd, target, done, length - done, position + done);
    if (count === 0) break;
    done += count;
  }
  return done;
}
