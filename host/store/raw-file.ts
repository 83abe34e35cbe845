// Raw disk image files as exports: what a client commits lands in the file itself.
//
// An epoch is collected in memory and becomes part of the file at commit, all or nothing: it is written and synced to a
// journal beside the file first (FILE.ribbon-journal), then to the file, then the journal is removed. A journal that is
// whole when the file is opened is written to the file again; one that is not was never committed.
//
//   journal: magic "RBJ1"  count u32  count * { block number u64 }  count * { block, 4096 bytes }  SHA-256 of all before

import { createHash } from 'node:crypto';
import fs from 'node:fs';
import { Failure } from '../failure.js';
import {
  type Client,
  type Done,
  ExportError,
  type ExportListing,
  ExportRefused,
  type Exports,
  type Extent,
  type OpenExport,
} from '../server/export.js';

const BLOCK_SIZE = 4096;
const JOURNAL_SUFFIX = '.ribbon-journal';
const JOURNAL_MAGIC = 0x314a4252; // "RBJ1"
const JOURNAL_HEADER_SIZE = 8;
const DIGEST_SIZE = 32;

/** Exports named by the caller, each one raw file. */
export class RawFiles implements Exports {
  onCommit: (name: string, generation: number) => void = () => {};
  readonly #files = new Map<string, RawFile>();

  /** Throws a Failure when a file cannot be opened for reading and writing. */
  constructor(files: Record<string, string>) {
    for (const [name, path] of Object.entries(files)) {
      const file = new RawFile(path);
      file.onCommit = (generation) => this.onCommit(name, generation);
      this.#files.set(name, file);
    }
  }

  list(): ExportListing[] {
    return [...this.#files].map(([name, file]) => ({ name, description: file.path }));
  }

  has(name: string): boolean {
    return this.#files.has(name);
  }

  open(name: string, _client: Client): OpenExport {
    const file = this.#files.get(name);
    if (file === undefined) throw new ExportRefused('unknown', `there is no image "${name}"`);
    return new RawFileExport(file);
  }

  close(): void {
    for (const file of this.#files.values()) file.close();
    this.#files.clear();
  }
}

class RawFile {
  onCommit: (generation: number) => void = () => {};
  readonly path: string;
  readonly size: number;
  /** The opening that has uncommitted writes. */
  writer: RawFileExport | null = null;
  readonly #descriptor: number;
  readonly #journal: string;
  #generation = 0;

  constructor(path: string) {
    this.path = path;
    this.#journal = path + JOURNAL_SUFFIX;
    try {
      this.#descriptor = fs.openSync(path, 'r+');
    } catch (error) {
      throw new Failure(`cannot open the disk image "${path}" for writing: ${(error as Error).message}`);
    }
    const stat = fs.fstatSync(this.#descriptor);
    if (!stat.isFile()) throw new Failure(`the disk image "${path}" is not a file`);
    this.size = stat.size;
    this.#recover();
  }

  close(): void {
    fs.closeSync(this.#descriptor);
  }

  get generation(): number {
    return this.#generation;
  }

  read(offset: number, target: Buffer): void {
    for (let at = 0; at < target.length; ) {
      const count = fs.readSync(this.#descriptor, target, at, target.length - at, offset + at);
      if (count === 0) throw new ExportError('EIO', `"${this.path}" has become shorter`);
      at += count;
    }
  }

  commit(blocks: Map<number, Buffer>): void {
    writeSynced(this.#journal, encodeJournal(blocks));
    this.#apply(blocks);
    fs.unlinkSync(this.#journal);
    this.#generation++;
    this.onCommit(this.#generation);
  }

  #recover(): void {
    if (!fs.existsSync(this.#journal)) return;
    const blocks = decodeJournal(fs.readFileSync(this.#journal));
    if (blocks !== null) this.#apply(blocks);
    fs.unlinkSync(this.#journal);
  }

  #apply(blocks: Map<number, Buffer>): void {
    for (const [number, block] of blocks) {
      const offset = number * BLOCK_SIZE;
      // The last block of a file whose size is not a multiple of 4096 is shorter.
      fs.writeSync(this.#descriptor, block, 0, Math.min(BLOCK_SIZE, this.size - offset), offset);
    }
    fs.fdatasyncSync(this.#descriptor);
  }
}

class RawFileExport implements OpenExport {
  readonly readOnly = false;
  readonly multiConnection = false;
  readonly #file: RawFile;
  /** The open epoch. */
  readonly #blocks = new Map<number, Buffer>();

  constructor(file: RawFile) {
    this.#file = file;
  }

  get size(): number {
    return this.#file.size;
  }

  get description(): string {
    return this.#file.path;
  }

  read(offset: number, target: Buffer): Done {
    this.#file.read(offset, target);
    for (const { number, at, within, count } of piecesOf(offset, target.length)) {
      this.#blocks.get(number)?.copy(target, at, within, within + count);
    }
    return undefined;
  }

  write(offset: number, data: Buffer): Done {
    const file = this.#file;
    if (file.writer !== null && file.writer !== this) {
      throw new ExportError('EPERM', 'another client is writing to this image');
    }
    file.writer = this;
    for (const { number, at, within, count } of piecesOf(offset, data.length)) {
      data.copy(this.#block(number), within, at, at + count);
    }
    return undefined;
  }

  zero(offset: number, length: number): Done {
    return this.write(offset, Buffer.alloc(length));
  }

  commit(): Done {
    if (this.#blocks.size === 0) return undefined;
    this.#file.commit(this.#blocks);
    this.#blocks.clear();
    return undefined;
  }

  metaContexts(): string[] {
    return [];
  }

  status(_context: string, _offset: number, length: number): Extent[] {
    return [{ length, flags: 0 }];
  }

  close(clean: boolean): Done {
    if (clean) this.commit();
    if (this.#file.writer === this) this.#file.writer = null;
    return undefined;
  }

  #block(number: number): Buffer {
    let block = this.#blocks.get(number);
    if (block === undefined) {
      block = Buffer.alloc(BLOCK_SIZE);
      const offset = number * BLOCK_SIZE;
      this.#file.read(offset, block.subarray(0, Math.min(BLOCK_SIZE, this.#file.size - offset)));
      this.#blocks.set(number, block);
    }
    return block;
  }
}

/** A range cut at block boundaries: block number, offset in the range, offset in the block, length. */
function* piecesOf(offset: number, length: number): Generator<Record<'number' | 'at' | 'within' | 'count', number>> {
  for (let at = 0; at < length; ) {
    const within = (offset + at) % BLOCK_SIZE;
    const count = Math.min(BLOCK_SIZE - within, length - at);
    yield { number: Math.floor((offset + at) / BLOCK_SIZE), at, within, count };
    at += count;
  }
}

function encodeJournal(blocks: Map<number, Buffer>): Buffer {
  const header = Buffer.alloc(JOURNAL_HEADER_SIZE + 8 * blocks.size);
  header.writeUInt32LE(JOURNAL_MAGIC, 0);
  header.writeUInt32LE(blocks.size, 4);
  let at = JOURNAL_HEADER_SIZE;
  for (const number of blocks.keys()) at = header.writeBigUInt64LE(BigInt(number), at);
  const body = Buffer.concat([header, ...blocks.values()]);
  return Buffer.concat([body, digest(body)]);
}

/** Null when the journal is not whole. */
function decodeJournal(journal: Buffer): Map<number, Buffer> | null {
  if (journal.length < JOURNAL_HEADER_SIZE + DIGEST_SIZE || journal.readUInt32LE(0) !== JOURNAL_MAGIC) return null;
  const count = journal.readUInt32LE(4);
  const body = journal.subarray(0, -DIGEST_SIZE);
  const data = JOURNAL_HEADER_SIZE + 8 * count;
  if (body.length !== data + BLOCK_SIZE * count || !digest(body).equals(journal.subarray(-DIGEST_SIZE))) return null;
  const blocks = new Map<number, Buffer>();
  for (let i = 0; i < count; i++) {
    const number = Number(journal.readBigUInt64LE(JOURNAL_HEADER_SIZE + 8 * i));
    blocks.set(number, journal.subarray(data + BLOCK_SIZE * i, data + BLOCK_SIZE * (i + 1)));
  }
  return blocks;
}

function digest(bytes: Buffer): Buffer {
  return createHash('sha256').update(bytes).digest();
}

function writeSynced(file: string, content: Buffer): void {
  const descriptor = fs.openSync(file, 'w');
  try {
    fs.writeSync(descriptor, content);
    fs.fsyncSync(descriptor);
  } finally {
    fs.closeSync(descriptor);
  }
}
