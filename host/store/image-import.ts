// `ribbon image import`: a disk image file becomes an image. An import that was cut short goes on where it stopped: how far it came is a
// record of the index (SPEC.md "Index"), and its tree so far is kept by it.

import fs from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import { Failure } from '../failure.js';
import { checkSize, type Progress } from './images.js';
import { emptyBatch } from './index.js';
import { type ByteExtent, dataExtents, type Format, formatOfContent, imageSize, readWindow } from './qemu-img.js';
import type { Store } from './store.js';
import { BLOCK_SIZE, ZERO_HASH } from './tree.js';

/** Blocks that are hashed and brought into the tree at once, and after which the import can go on: 64 MiB. */
const CHUNK_BLOCKS = 16384;
const CHUNK = CHUNK_BLOCKS * BLOCK_SIZE;
/** What one run of qemu-img reads. */
const WINDOW = 4 * CHUNK;
/** An import that nobody has gone on with for this long is forgotten by garbage collection. */
const FORGOTTEN_MS = 7 * 86_400_000;

export interface ImportRecord {
  version: 1;
  /** What is imported: another file, or one that has changed, begins anew. */
  source: string;
  size: number;
  /** Bytes that are in the tree. */
  done: number;
  root: string;
  timeMs: number;
}

/** Makes a disk image file an image; `format` null: the file's content says it. */
export async function importImage(
  store: Store,
  name: string,
  file: string,
  format: Format | null,
  who: string,
  onProgress: Progress = () => {},
): Promise<void> {
  if (store.has(name)) throw new Failure(`there is an image "${name}" already`);
  const status = statusOf(file);
  const actual = format ?? formatOfContent(file);
  const size = actual === 'raw' ? status.size : await imageSize(file, actual);
  checkSize(size);
  const identity = [path.resolve(file), actual, status.dev, status.ino, status.size, status.mtimeMs].join(' ');
  const found = importRecords(store).get(name);
  const begun = found?.source === identity && found.size === size ? found : null;
  const live = { root: begun === null ? (ZERO_HASH as Buffer) : Buffer.from(begun.root, 'hex'), size };
  let done = begun?.done ?? 0;
  const source = actual === 'raw' ? new RawSource(file) : await FormatSource.open(file, actual, size);
  store.liveRoots.add(live);
  try {
    while (done < size) {
      const length = Math.min(CHUNK, size - done);
      const chunk = await source.chunk(done, length);
      if (chunk !== null) {
        const first = done / BLOCK_SIZE;
        const blocks = Float64Array.from({ length: Math.ceil(length / BLOCK_SIZE) }, (_, index) => first + index);
        live.root = await store.builder.addBlocks(live.root, size, size, blocks, chunk, []);
      }
      done += length;
      onProgress(done, size);
      if (done < size)
        await putRecord(store, name, {
          version: 1,
          source: identity,
          size,
          done,
          root: live.root.toString('hex'),
          timeMs: store.nowMs(),
        });
    }
    await store.images.createFromRoot(name, size, live.root, `import of ${file}`, who);
  } finally {
    store.liveRoots.delete(live);
    source.close();
  }
  await forgetImport(store, name);
}

/** Imports that were cut short, by the name of the image. */
export function importRecords(store: Store): Map<string, ImportRecord> {
  return new Map(store.index.records('import/').map(([key, value]) => [key.slice(7), value as ImportRecord]));
}

export async function forgetImport(store: Store, name: string): Promise<void> {
  await putRecord(store, name, undefined);
}

/** Gives up the imports that have been left lying. */
export async function forgetOldImports(store: Store): Promise<void> {
  for (const [name, { timeMs }] of importRecords(store)) {
    if (store.nowMs() - timeMs > FORGOTTEN_MS) await forgetImport(store, name);
  }
}

async function putRecord(store: Store, name: string, record: ImportRecord | undefined): Promise<void> {
  const batch = emptyBatch();
  batch.records.push([`import/${name}`, record]);
  await store.index.apply(batch);
}

function statusOf(file: string): fs.Stats {
  let status: fs.Stats;
  try {
    status = fs.statSync(file);
    fs.accessSync(file, fs.constants.R_OK);
  } catch (error) {
    throw new Failure(`cannot read ${file}: ${(error as Error).message}`);
  }
  if (!status.isFile()) throw new Failure(`${file} is not a regular file`);
  if (status.size === 0) throw new Failure(`${file} is empty: an image has at least one byte`);
  return status;
}

/** A chunk's blocks; `first` counts from the chunk's first block. */
interface Chunk {
  read(first: number, count: number, target: Buffer): void;
}

class RawSource {
  private readonly fd: number;

  constructor(file: string) {
    this.fd = fs.openSync(file, 'r');
  }

  async chunk(offset: number, _length: number): Promise<Chunk> {
    return { read: (first, count, target) => readBlocks(this.fd, target, count, offset + first * BLOCK_SIZE) };
  }

  close(): void {
    fs.closeSync(this.fd);
  }
}

/** Windows of the image file are unpacked one after the other into a raw file; what qemu-img knows to be zero is skipped. */
class FormatSource {
  private readonly folder = fs.mkdtempSync(path.join(os.tmpdir(), 'ribbon-import-'));
  private readonly window = path.join(this.folder, 'window');
  private windowAt = -1;
  private fd = -1;
  private next = 0;

  private constructor(
    private readonly file: string,
    private readonly format: Format,
    private readonly size: number,
    private readonly extents: ByteExtent[],
  ) {}

  static async open(file: string, format: Format, size: number): Promise<FormatSource> {
    return new FormatSource(file, format, size, await dataExtents(file, format));
  }

  /** Null: zeroes. Chunks are asked for in order. */
  async chunk(offset: number, length: number): Promise<Chunk | null> {
    const { extents } = this;
    while (this.next < extents.length && extents[this.next].offset + extents[this.next].length <= offset) this.next++;
    if (this.next >= extents.length || extents[this.next].offset >= offset + length) return null;
    const at = offset - (offset % WINDOW);
    if (at !== this.windowAt) {
      this.closeWindow();
      await readWindow(this.file, this.format, { offset: at, length: Math.min(WINDOW, this.size - at) }, this.window);
      this.fd = fs.openSync(this.window, 'r');
      this.windowAt = at;
    }
    return { read: (first, count, target) => readBlocks(this.fd, target, count, offset - at + first * BLOCK_SIZE) };
  }

  close(): void {
    this.closeWindow();
    fs.rmSync(this.folder, { recursive: true, force: true });
  }

  private closeWindow(): void {
    if (this.fd >= 0) fs.closeSync(this.fd);
    this.fd = -1;
  }
}

/** What lies behind the end of the file is zero. */
function readBlocks(fd: number, target: Buffer, count: number, position: number): void {
  const length = count * BLOCK_SIZE;
  let done = 0;
  while (done < length) {
    const got = fs.readSync(fd, target, done, length - done, position + done);
    if (got === 0) break;
    done += got;
  }
  target.fill(0, done, length);
}
