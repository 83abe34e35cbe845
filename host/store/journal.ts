// The journal: where written blocks go first, and what makes a generation durable.
//
// A write costs one copy into the tail; a commit costs one write and one fdatasync, shared by all connections that commit
// at the same time. Hashing, comparing and compressing come later, in the digest, which turns journal entries into tree and packs; then
// their segments are free. After a crash the valid commit records are the truth (SPEC.md "Journal").

import crypto from 'node:crypto';
import { crc32 } from '@node-rs/crc32';
import type { CardCommit } from './cards.js';
import type { Files, StoreFile } from './files.js';
import { Overlay, ZERO_BLOCK } from './overlay.js';

export const SLOT_SIZE = 4096;
const FOLDER = 'journal';
const VERSION = 1;
const SEGMENT_MAGIC = 0x534a4252; // "RBJS"
const RECORD_MAGIC = 0x434a4252; // "RBJC"
/** 1 MiB: one write system call moves enough to be cheap, and a reader finds recent blocks in memory. */
const TAIL_SLOTS = 256;
const SPARES_MAX = 4;
/** A write of at least this many blocks that finds the tail empty does not pass through it. */
const STREAM_SLOTS = 16;
/** Bit of an entry's slot word: the slot has no CRC-32. */
const STREAMED = 0x8000_0000;

/** A generation as it stands in the journal. */
export interface CommitRecord {
  line: number;
  generation: number;
  timeMs: number;
  /** Bytes of the image from this generation on. */
  size: number;
  who: string;
  why: string;
  /** The generation's id. */
  id: string;
  card: CardCommit | null;
  /** The tree that the changes lie on when it is not the generation before: 32 bytes. */
  base: Buffer | null;
  changes: Overlay;
  /** Recovered records only: blocks whose slots are gone or do not verify. */
  missing?: number[];
}

interface Segment {
  number: number;
  name: string;
  file: StoreFile;
  nonce: Buffer;
  /** Slots in use, the header included. */
  slots: number;
  /** Slots that somebody still needs. */
  live: number;
  /** CRC-32 of every slot that has one. */
  crcs: Uint32Array;
  /** 1: the slot was streamed to the file without a CRC-32, and must be durable before a record may name it. */
  streamed: Uint8Array;
  /** Writes to the file, and how many of them are durable. */
  written: number;
  durable: number;
}

export interface JournalOptions {
  /** Slots of one segment. Default 65536: 256 MiB. */
  segmentSlots?: number;
}

export class Journal {
  private readonly segments = new Map<number, Segment>();
  private readonly segmentSlots: number;
  private current: Segment | null = null;
  private readonly tail: Buffer;
  private readonly tailSlots: number;
  /** First slot of the current segment that is not yet in the file, and how many are in the tail. */
  private tailStart = 0;
  private tailCount = 0;
  private nextNumber = 1;
  private readonly spares: StoreFile[] = [];
  private readonly spareNames: string[] = [];
  private syncing: Promise<void> | null = null;
  private syncNext: Promise<void> | null = null;
  private failed: Error | null = null;
  private folderDirty = false;

  constructor(
    private readonly files: Files,
    private readonly storeId: Buffer,
    options: JournalOptions = {},
  ) {
    this.segmentSlots = options.segmentSlots ?? 65536;
    this.tailSlots = Math.min(TAIL_SLOTS, this.segmentSlots);
    this.tail = Buffer.alloc(this.tailSlots * SLOT_SIZE);
  }

  /** Bytes in segments that are still needed. */
  get bytes(): number {
    return this.segments.size * this.segmentSlots * SLOT_SIZE;
  }

  // --- writing

  /**
   * Stores up to `count` neighbouring blocks of `data`; returns the position of the first and how many were taken: they lie one after
   * the other. `data` is the caller's again.
   */
  append(data: Buffer, from: number, count: number): { position: number; count: number } {
    if (this.failed !== null) throw this.failed;
    if (this.tailCount === this.tailSlots) this.flushTail(false);
    if (this.current === null || this.tailStart + this.tailCount === this.segmentSlots) {
      this.flushTail(false);
      this.roll();
    }
    const segment = this.current!;
    const left = this.segmentSlots - this.tailStart - this.tailCount;
    if (this.tailCount === 0 && count >= STREAM_SLOTS) {
      // A large write goes to the file as it is. Its checksum would cost more than all the rest of the way: it is made durable before
      // the record that names it is written instead.
      const slots = Math.min(count, left);
      const slot = this.tailStart;
      this.write(segment, data, from, slot, slots);
      segment.streamed.fill(1, slot, slot + slots);
      segment.slots = slot + slots;
      segment.live += slots;
      this.tailStart = segment.slots;
      return { position: segment.number * this.segmentSlots + slot, count: slots };
    }
    const slots = Math.min(count, left, this.tailSlots - this.tailCount);
    const slot = this.tailCount;
    data.copy(this.tail, slot * SLOT_SIZE, from, from + slots * SLOT_SIZE);
    this.tailCount += slots;
    segment.live += slots;
    return { position: segment.number * this.segmentSlots + this.tailStart + slot, count: slots };
  }

  /** The block's bytes when they are still in memory and may be changed there. */
  inTail(position: number): Buffer | null {
    const segment = this.current;
    if (segment === null) return null;
    const slot = position - segment.number * this.segmentSlots - this.tailStart;
    if (slot < 0 || slot >= this.tailCount) return null;
    return this.tail.subarray(slot * SLOT_SIZE, (slot + 1) * SLOT_SIZE);
  }

  read(position: number, target: Uint8Array, at: number, from: number, count: number): void {
    const inMemory = this.inTail(position);
    if (inMemory !== null) {
      inMemory.copy(target, at, from, from + count);
      return;
    }
    const number = Math.floor(position / this.segmentSlots);
    const segment = this.segments.get(number);
    if (segment === undefined) throw new Error(`journal position ${position} is gone`);
    const done = segment.file.read(target, at, count, (position % this.segmentSlots) * SLOT_SIZE + from);
    if (done !== count)
      throw new Error(`journal segment ${segment.name} is too short at slot ${position % this.segmentSlots}`);
  }

  /** May two neighbouring positions be read in one go? */
  sameSegment(a: number, b: number): boolean {
    return Math.floor(a / this.segmentSlots) === Math.floor(b / this.segmentSlots);
  }

  /** Reads `count` neighbouring slots of one segment. */
  readSlots(position: number, count: number, target: Uint8Array, at: number): void {
    if (this.inTail(position + count - 1) === null) {
      this.read(position, target, at, 0, count * SLOT_SIZE);
      return;
    }
    for (let slot = 0; slot < count; slot++) this.read(position + slot, target, at + slot * SLOT_SIZE, 0, SLOT_SIZE);
  }

  /** Nobody needs this block any more. */
  release(position: number): void {
    const segment = this.segments.get(Math.floor(position / this.segmentSlots));
    if (segment === undefined) return;
    segment.live--;
    if (segment.live === 0 && segment !== this.current) this.retire(segment);
  }

  /**
   * Writes the record and makes it and all that it names durable; resolves to the record's position, which stays needed until release().
   * `record.changes` must not change meanwhile.
   */
  commit(record: CommitRecord): Promise<number> {
    if (this.failed !== null) throw this.failed;
    this.flushTail(true);
    for (const position of record.changes.blocks.values()) {
      if (position <= 0) continue;
      const segment = this.segments.get(Math.floor(position / this.segmentSlots))!;
      if (segment.streamed[position % this.segmentSlots] === 0 || segment.durable === segment.written) continue;
      return this.sync().then(() => this.writeRecord(record));
    }
    return this.writeRecord(record);
  }

  private async writeRecord(record: CommitRecord): Promise<number> {
    if (this.failed !== null) throw this.failed;
    const ranges = record.changes.ranges();
    const { who, why, id, card } = record;
    const text = Buffer.from(JSON.stringify(card === null ? { who, why, id } : { who, why, id, card }));
    const length = RECORD_HEADER + text.length + ranges.length * 16 + record.changes.blocks.size * 20;
    const slots = Math.ceil(length / SLOT_SIZE);
    if (slots > this.segmentSlots - 1) throw new Error(`a record of ${length} bytes does not fit a journal segment`);
    this.flushTail(true);
    if (this.current === null || this.current.slots + slots > this.segmentSlots) this.roll();
    const segment = this.current!;
    const bytes = slots <= this.tailSlots ? this.tail.subarray(0, slots * SLOT_SIZE) : Buffer.alloc(slots * SLOT_SIZE);
    this.encode(bytes, segment, record, ranges, text, length);
    const slot = segment.slots;
    this.write(segment, bytes, 0, slot, slots);
    segment.slots += slots;
    segment.live++;
    this.tailStart = segment.slots;
    await this.sync();
    return segment.number * this.segmentSlots + slot;
  }

  private encode(
    bytes: Buffer,
    segment: Segment,
    record: CommitRecord,
    ranges: { first: number; count: number }[],
    text: Buffer,
    length: number,
  ): void {
    bytes.fill(0, 0, RECORD_HEADER);
    bytes.fill(0, length);
    bytes.writeUInt32LE(RECORD_MAGIC, 0);
    bytes.writeUInt32LE(length, 8);
    segment.nonce.copy(bytes, 16);
    bytes.writeUInt32LE(record.line, 32);
    bytes.writeUInt32LE(record.base === null ? 0 : 1, 36);
    writeU64(bytes, 40, record.generation);
    writeU64(bytes, 48, record.timeMs);
    writeU64(bytes, 56, record.size);
    bytes.writeUInt32LE(ranges.length, 64);
    bytes.writeUInt32LE(record.changes.blocks.size, 68);
    bytes.writeUInt32LE(text.length, 72);
    record.base?.copy(bytes, 80);
    text.copy(bytes, RECORD_HEADER);
    let at = RECORD_HEADER + text.length;
    for (const range of ranges) {
      writeU64(bytes, at, range.first);
      writeU64(bytes, at + 8, range.count);
      at += 16;
    }
    for (const [block, position] of record.changes.blocks) {
      writeU64(bytes, at, block);
      if (position === ZERO_BLOCK) {
        bytes.fill(0, at + 8, at + 20);
      } else {
        const number = Math.floor(position / this.segmentSlots);
        const slot = position % this.segmentSlots;
        bytes.writeUInt32LE(number, at + 8);
        const holder = this.segments.get(number)!;
        bytes.writeUInt32LE((holder.streamed[slot] === 1 ? slot | STREAMED : slot) >>> 0, at + 12);
        bytes.writeUInt32LE(holder.crcs[slot], at + 16);
      }
      at += 20;
    }
    bytes.writeUInt32LE(crc32(bytes.subarray(8, length)), 4);
  }

  /** Writes the tail to the file. A full tail is part of a stream; what a commit finds in it gets its checksums. */
  private flushTail(checked: boolean): void {
    const segment = this.current;
    if (segment === null || this.tailCount === 0) return;
    const count = this.tailCount;
    if (checked) {
      for (let slot = 0; slot < count; slot++) {
        segment.crcs[this.tailStart + slot] = crc32(this.tail.subarray(slot * SLOT_SIZE, (slot + 1) * SLOT_SIZE));
      }
    } else {
      segment.streamed.fill(1, this.tailStart, this.tailStart + count);
    }
    this.write(segment, this.tail, 0, this.tailStart, count);
    this.tailStart += count;
    segment.slots = this.tailStart;
    this.tailCount = 0;
  }

  private write(segment: Segment, bytes: Buffer, from: number, slot: number, slots: number): void {
    segment.written++;
    try {
      segment.file.write(bytes, from, slots * SLOT_SIZE, slot * SLOT_SIZE);
    } catch (error) {
      // Blocks that were acknowledged to clients (not committed) are lost with the tail: nothing may be committed on top of that.
      throw this.fail(error);
    }
  }

  private fail(error: unknown): Error {
    this.failed ??= Object.assign(new Error(`the journal cannot be written: ${(error as Error).message}`), {
      code: (error as NodeJS.ErrnoException).code,
    });
    return this.failed;
  }

  /** True when a write to the journal has failed: every open epoch is lost, committed ones are not. */
  get broken(): boolean {
    return this.failed !== null;
  }

  /** After a failure, when all open epochs have been discarded: begins a new segment. */
  restart(): void {
    if (this.failed === null) return;
    this.failed = null;
    this.tailCount = 0;
    const segment = this.current;
    this.current = null;
    if (segment !== null && segment.live === 0) this.retire(segment);
  }

  private roll(): void {
    const full = this.current;
    this.current = null;
    if (full !== null && full.live === 0) this.retire(full);
    const number = this.nextNumber++;
    const name = `${FOLDER}/${String(number).padStart(8, '0')}.rbj`;
    let file: StoreFile;
    try {
      const spare = this.spares.pop();
      if (spare !== undefined) {
        this.files.rename(this.spareNames.pop()!, name);
        file = spare;
      } else {
        file = this.files.create(name);
      }
      this.folderDirty = true;
      const segment: Segment = {
        number,
        name,
        file,
        nonce: crypto.randomBytes(16),
        slots: 1,
        live: 0,
        crcs: new Uint32Array(this.segmentSlots),
        streamed: new Uint8Array(this.segmentSlots),
        written: 1,
        durable: 0,
      };
      const header = Buffer.alloc(SLOT_SIZE);
      header.writeUInt32LE(SEGMENT_MAGIC, 0);
      header.writeUInt16LE(VERSION, 8);
      header.writeUInt16LE(64, 10);
      header.writeUInt32LE(this.segmentSlots, 12);
      segment.nonce.copy(header, 16);
      this.storeId.copy(header, 32);
      writeU64(header, 48, number);
      header.writeUInt32LE(crc32(header.subarray(8, 64)), 4);
      file.write(header, 0, SLOT_SIZE, 0);
      this.segments.set(number, segment);
      this.current = segment;
      this.tailStart = 1;
      this.tailCount = 0;
    } catch (error) {
      throw this.fail(error);
    }
  }

  /** A segment that nobody needs becomes a spare, so that its file's pages are used again, or goes. */
  private retire(segment: Segment): void {
    this.segments.delete(segment.number);
    if (this.spares.length < SPARES_MAX) {
      // Records that are still in the file carry the old nonce and mean nothing under the next header; until then the name says so.
      const name = `${segment.name}.spare`;
      this.files.rename(segment.name, name);
      this.spares.push(segment.file);
      this.spareNames.push(name);
    } else {
      segment.file.close();
      this.files.remove(segment.name);
    }
  }

  // --- durability

  /** Resolves when everything written before the call is durable; calls that overlap share one sync. */
  private sync(): Promise<void> {
    if (this.syncing === null) {
      this.syncing = this.syncNow();
      return this.syncing;
    }
    this.syncNext ??= this.syncing
      .catch(() => {})
      .then(() => {
        this.syncNext = null;
        this.syncing = this.syncNow();
        return this.syncing;
      });
    return this.syncNext;
  }

  private async syncNow(): Promise<void> {
    try {
      const dirty = [...this.segments.values()]
        .filter((segment) => segment.durable < segment.written)
        .map((segment) => ({ segment, written: segment.written }));
      const folder = this.folderDirty;
      this.folderDirty = false;
      await Promise.all(dirty.map(({ segment }) => segment.file.sync()));
      for (const { segment, written } of dirty) segment.durable = written;
      if (folder) await this.files.syncFolder(FOLDER);
    } catch (error) {
      throw this.fail(error);
    } finally {
      this.syncing = null;
    }
  }

  // --- recovery

  /**
   * Reads the journal of a store that was not closed: all valid records that are not `digested` already. `damage` is told of records that
   * are torn or damaged. Blocks stay readable until clear().
   */
  recover(
    digested: (line: number, generation: number) => boolean,
    damage: (message: string, line: number, generation: number) => void,
  ): CommitRecord[] {
    const records: CommitRecord[] = [];
    for (const file of this.files.list(FOLDER)) {
      const name = `${FOLDER}/${file}`;
      const match = /^(\d{8,})\.rbj$/.exec(file);
      if (match === null) {
        if (file.endsWith('.spare')) this.files.remove(name);
        continue;
      }
      const number = Number(match[1]);
      this.nextNumber = Math.max(this.nextNumber, number + 1);
      const segment = this.openSegment(number, name);
      if (segment !== null) this.segments.set(number, segment);
    }
    const scratch = Buffer.alloc(SLOT_SIZE);
    for (const segment of this.segments.values()) this.scan(segment, scratch, records, digested, damage);
    return records;
  }

  private openSegment(number: number, name: string): Segment | null {
    const file = this.files.open(name);
    const header = Buffer.alloc(64);
    const whole = file.read(header, 0, 64, 0) === 64;
    const valid =
      whole && header.readUInt32LE(0) === SEGMENT_MAGIC && header.readUInt32LE(4) === crc32(header.subarray(8, 64));
    if (!valid || readU64(header, 48) !== number) {
      // Created or recycled, and cut off before its first sync: no record in it was ever acknowledged.
      file.close();
      this.files.remove(name);
      return null;
    }
    if (header.readUInt16LE(8) !== VERSION)
      throw new JournalError(`${name} has version ${header.readUInt16LE(8)}, this program knows ${VERSION}`);
    if (!header.subarray(32, 48).equals(this.storeId)) throw new JournalError(`${name} belongs to another store`);
    if (header.readUInt32LE(12) !== this.segmentSlots)
      throw new JournalError(`${name} has ${header.readUInt32LE(12)} slots, expected ${this.segmentSlots}`);
    const slots = Math.floor(file.size() / SLOT_SIZE);
    const nonce = Buffer.from(header.subarray(16, 32));
    return {
      number,
      name,
      file,
      nonce,
      slots,
      live: 0,
      crcs: new Uint32Array(0),
      streamed: new Uint8Array(0),
      written: 0,
      durable: 0,
    };
  }

  private scan(
    segment: Segment,
    scratch: Buffer,
    records: CommitRecord[],
    digested: (line: number, generation: number) => boolean,
    damage: (message: string, line: number, generation: number) => void,
  ): void {
    const head = Buffer.alloc(RECORD_HEADER);
    for (let slot = 1; slot < segment.slots; slot++) {
      if (segment.file.read(head, 0, RECORD_HEADER, slot * SLOT_SIZE) < RECORD_HEADER) break;
      if (head.readUInt32LE(0) !== RECORD_MAGIC || !head.subarray(16, 32).equals(segment.nonce)) continue;
      const length = head.readUInt32LE(8);
      const line = head.readUInt32LE(32);
      const generation = readU64(head, 40);
      if (digested(line, generation)) continue;
      const where = `${segment.name} slot ${slot}`;
      if (length < RECORD_HEADER || length > (segment.slots - slot) * SLOT_SIZE) {
        damage(`${where}: a record that is cut off`, line, generation);
        continue;
      }
      const bytes = Buffer.alloc(length);
      segment.file.read(bytes, 0, length, slot * SLOT_SIZE);
      if (crc32(bytes.subarray(8)) !== bytes.readUInt32LE(4)) {
        damage(`${where}: a record whose checksum is wrong`, line, generation);
        continue;
      }
      records.push(this.decode(bytes, scratch));
      slot += Math.ceil(length / SLOT_SIZE) - 1;
    }
  }

  private decode(bytes: Buffer, scratch: Buffer): CommitRecord {
    const ranges = bytes.readUInt32LE(64);
    const blocks = bytes.readUInt32LE(68);
    const textLength = bytes.readUInt32LE(72);
    const changes = new Overlay();
    const missing: number[] = [];
    let at = RECORD_HEADER + textLength;
    for (let index = 0; index < ranges; index++, at += 16) {
      changes.zero(readU64(bytes, at), readU64(bytes, at + 8), () => {});
    }
    for (let index = 0; index < blocks; index++, at += 20) {
      const block = readU64(bytes, at);
      const number = bytes.readUInt32LE(at + 8);
      if (number === 0) {
        changes.set(block, ZERO_BLOCK);
        continue;
      }
      const word = bytes.readUInt32LE(at + 12);
      const slot = (word & ~STREAMED) >>> 0;
      const segment = this.segments.get(number);
      const there =
        segment !== undefined &&
        segment.file.read(scratch, 0, SLOT_SIZE, slot * SLOT_SIZE) === SLOT_SIZE &&
        ((word & STREAMED) !== 0 || crc32(scratch) === bytes.readUInt32LE(at + 16));
      if (there) changes.set(block, number * this.segmentSlots + slot);
      else missing.push(block);
    }
    const text = JSON.parse(bytes.toString('utf8', RECORD_HEADER, RECORD_HEADER + textLength));
    return {
      line: bytes.readUInt32LE(32),
      generation: readU64(bytes, 40),
      timeMs: readU64(bytes, 48),
      size: readU64(bytes, 56),
      who: String(text.who),
      why: String(text.why),
      id: typeof text.id === 'string' ? text.id : '',
      card: text.card ?? null,
      base: bytes.readUInt32LE(36) === 1 ? Buffer.from(bytes.subarray(80, 112)) : null,
      changes,
      missing,
    };
  }

  /** Forgets everything: all generations in it are in the tree. `keep`: the files are put aside for whoever looks into damage. */
  clear(keep = false): void {
    this.tailCount = 0;
    for (const segment of [...this.segments.values()]) {
      segment.file.close();
      if (keep) this.files.rename(segment.name, `${segment.name}.damaged`);
      else this.files.remove(segment.name);
    }
    this.segments.clear();
    this.current = null;
    for (const file of this.spares.splice(0)) file.close();
    for (const name of this.spareNames.splice(0)) this.files.remove(name);
  }

  /** Lets go of the files without changing them. */
  close(): void {
    for (const segment of this.segments.values()) segment.file.close();
    for (const file of this.spares.splice(0)) file.close();
    this.segments.clear();
    this.current = null;
  }
}

export class JournalError extends Error {
  override name = 'JournalError';
}

/** magic, CRC-32 of all that follows, length, 0, nonce 16, line, flags, generation, time, size, ranges, blocks, text, 0, base 32. */
const RECORD_HEADER = 112;

function writeU64(bytes: Buffer, at: number, value: number): void {
  bytes.writeUInt32LE(value % 0x1_0000_0000, at);
  bytes.writeUInt32LE(Math.floor(value / 0x1_0000_0000), at + 4);
}

function readU64(bytes: Buffer, at: number): number {
  return bytes.readUInt32LE(at) + bytes.readUInt32LE(at + 4) * 0x1_0000_0000;
}
