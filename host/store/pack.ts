// Packs: append-only files of groups; a group holds up to 16 blobs (blocks or tree nodes), compressed together when that helps, or up to 64
// blocks that it does not help, each at a multiple of 4096 of the file: a page of memory, a sector of a disk.
//
// Reading is by location. A raw blob is one read of its own bytes; a compressed group is decoded whole and kept in a bounded cache.
// A raw blob's hash (checkBlob), or the CRC-32 of its whole group (checkedGroup), is checked when it is first read; that of a compressed
// group whenever it is decoded.

import { crc32 } from '@node-rs/crc32';
import { CODEC_NONE, CODEC_ZSTD, type Codec } from './codec.js';
import type { Files, StoreFile } from './files.js';
import type { Location } from './index.js';
import { sha256 } from './sha256.js';

export const FOLDER = 'packs';
/** Version 1 has no padding and at most 16 blobs in any group. */
const VERSION = 2;
const VERSION_OLDEST = 1;
const PACK_MAGIC = 0x4b504252; // "RBPK"
const GROUP_MAGIC = 0x47504252; // "RBPG"
export const PACK_HEADER = 64;
export const GROUP_HEADER = 32;
export const PACK_ENTRY = 36;
export const GROUP_BLOBS = 16;
/** Of a group of blocks that are not compressed. */
export const RAW_BLOBS = 64;
/** A block; a node is smaller. */
export const BLOB_MAX = 4096;
/** Fewer raw blocks are not worth the padding. */
const ALIGNED_BLOBS_MIN = 16;
/** A pack is closed when it has grown to this: garbage collection works on one pack at a time. */
const PACK_SIZE_MAX = 256 * 1024 * 1024;
/** Decoded groups in memory: a random read of a compressed block costs a group of 64 KiB, some 60 us, when it is not here. */
const CACHE_BYTES = 256 * 1024 * 1024;

/** A blob as the table of its group names it. */
export interface BlobHead {
  hash: Buffer;
  length: number;
}

interface Pack {
  number: number;
  file: StoreFile;
  size: number;
  dirty: boolean;
  /** Since files were last closed. */
  used: boolean;
}

export class DamagedError extends Error {
  override name = 'DamagedError';
}

/** What must be read of a pack is not on this disk: fetch it and try again. */
export class AbsentError extends Error {
  override name = 'AbsentError';
}

/** A place in a pack: [from, to). */
export interface Piece {
  pack: number;
  from: number;
  to: number;
}

/** Where packs are when this disk is only a cache of them (a store in a bucket). */
export interface PackSource {
  /** The number of a new pack. */
  takeNumber(): number;
  /** Nothing more will be written to this new pack. */
  isFull(pack: number): void;
  /** Is any of this not here? */
  isAbsent(pack: number, from: number, length: number): boolean;
  /** Brings whole groups here, checked. Throws a DamagedError for what is damaged there too. */
  fetch(pieces: Piece[]): Promise<void>;
  /** What is here of the pack is bad: true when it has been thrown away and may be fetched again. */
  distrust(pack: number): boolean;
}

/** Open files; those that were not used for the longest time are closed. */
const FILES_MAX = 512;

const GROUP_BUFFER = Buffer.allocUnsafeSlow(GROUP_HEADER + RAW_BLOBS * (PACK_ENTRY + BLOB_MAX) + BLOB_MAX);

/** Reading this much for nothing is less than a read of its own. */
const PIECE_GAP = 16_384;

export class Packs {
  private readonly packs = new Map<number, Pack>();
  /** Where groups are written; those of nodes have a pack of their own when packs go elsewhere. */
  private current: Pack | null = null;
  private currentNodes: Pack | null = null;
  private nextNumber = 1;
  /** With a source: packs that were made here and that it does not have yet. */
  readonly made = new Set<number>();
  private readonly cache = new Map<number, Buffer>();
  private cacheBytes = 0;
  private folderDirty = false;

  constructor(
    private readonly files: Files,
    private readonly storeId: Buffer,
    readonly codec: Codec,
    private readonly packSizeMax = PACK_SIZE_MAX,
    private readonly source: PackSource | null = null,
  ) {
    for (const name of files.list(FOLDER)) {
      const match = /^(\d{8,})\.rbp$/.exec(name);
      if (match !== null) this.nextNumber = Math.max(this.nextNumber, Number(match[1]) + 1);
    }
  }

  /** Most of what is read may not be on this disk. */
  get isCache(): boolean {
    return this.source !== null;
  }

  // --- reading

  /** The file offset of a blob in a raw group. Blocks end the group; in front of nodes there is no padding. */
  static rawOffset({ groupOffset, groupLength, count, ordinal, inner, length }: Location): number {
    if (length === BLOB_MAX) return groupOffset + groupLength - BLOB_MAX * (count - ordinal);
    return groupOffset + GROUP_HEADER + PACK_ENTRY * count + inner;
  }

  /** Throws an AbsentError when there is a source that must be asked first. */
  readRaw(pack: number, offset: number, target: Uint8Array, at: number, length: number): void {
    if (this.source?.isAbsent(pack, offset, length) === true)
      throw new AbsentError(`pack ${pack} is not here at offset ${offset} + ${length}`);
    const { file } = this.pack(pack);
    if (file.read(target, at, length, offset) !== length) {
      throw new DamagedError(`pack ${pack} ends before offset ${offset} + ${length}`);
    }
  }

  /** Brings what must be read of these blobs into the page cache on threads, or onto this disk; undefined where that is not needed.
   * `alone`: only these blobs of their groups. */
  prefetch(locations: Location[], alone = false): Promise<unknown> | undefined {
    if (this.source !== null) return this.fetchAbsent(this.source, locations);
    const fetches: Promise<void>[] = [];
    for (const { pack, from, to } of piecesOf(locations, alone)) {
      let file: StoreFile;
      try {
        file = this.pack(pack).file;
      } catch {
        // Whoever reads it will say so.
        continue;
      }
      const fetch = file.prefetch?.(from, to - from);
      if (fetch !== undefined) fetches.push(fetch);
    }
    return fetches.length === 0 ? undefined : Promise.all(fetches);
  }

  /** Table and payload of a blob's raw group, whose checksum is right; null when it is not, or not to be had. Valid until the next call. */
  checkedGroup({ pack, groupOffset, groupLength, count }: Location): { table: Buffer; payload: Buffer } | null {
    const group = GROUP_BUFFER.subarray(0, groupLength);
    try {
      this.readRaw(pack, groupOffset, group, 0, groupLength);
    } catch {
      return null;
    }
    const header = parseGroupHeader(group);
    if (header === null || header.length !== groupLength || header.count !== count) return null;
    if (crc32(group.subarray(GROUP_HEADER)) !== group.readUInt32LE(12)) return null;
    const table = group.subarray(GROUP_HEADER, GROUP_HEADER + count * PACK_ENTRY);
    return { table, payload: group.subarray(header.payload) };
  }

  /** Reads the payload of a raw group of blocks to target[at …] and returns its table, as checkedGroup() does. */
  readPayload({ pack, groupOffset, groupLength, count }: Location, target: Buffer, at: number): Buffer | null {
    const length = count * BLOB_MAX;
    const head = GROUP_BUFFER.subarray(0, groupLength - length);
    try {
      this.readRaw(pack, groupOffset, head, 0, head.length);
      this.readRaw(pack, groupOffset + head.length, target, at, length);
    } catch {
      return null;
    }
    const header = parseGroupHeader(head);
    if (header === null || header.length !== groupLength || header.count !== count) return null;
    const crc = crc32(target.subarray(at, at + length), crc32(head.subarray(GROUP_HEADER)));
    return crc === head.readUInt32LE(12) ? head.subarray(GROUP_HEADER, GROUP_HEADER + count * PACK_ENTRY) : null;
  }

  private fetchAbsent(source: PackSource, locations: Location[]): Promise<void> | undefined {
    const pieces: Piece[] = [];
    for (const { pack, groupOffset, groupLength } of locations) {
      const last = pieces.at(-1);
      if (last !== undefined && last.pack === pack && last.from === groupOffset) continue;
      if (!source.isAbsent(pack, groupOffset, groupLength)) continue;
      pieces.push({ pack, from: groupOffset, to: groupOffset + groupLength });
    }
    return pieces.length === 0 ? undefined : source.fetch(pieces);
  }

  /** Does what needs a group, as soon as that is here; what turns out to be bad here is fetched again. */
  private async withGroup<T>(location: Location | GroupPlace, read: () => T | Promise<T>): Promise<T> {
    const { source } = this;
    if (source === null) return read();
    const { pack, groupOffset, groupLength } = location;
    for (;;) {
      if (source.isAbsent(pack, groupOffset, groupLength))
        await source.fetch([{ pack, from: groupOffset, to: groupOffset + groupLength }]);
      try {
        return await read();
      } catch (error) {
        // It may have left the cache between the fetch and the read.
        if (error instanceof AbsentError) continue;
        if (!(error instanceof DamagedError) || !source.distrust(pack)) throw error;
      }
    }
  }

  /** The decoded payload of the location's group, when it is in memory. */
  cached(location: Location): Buffer | null {
    const key = location.pack * 0x1_0000_0000 + location.groupOffset;
    const payload = this.cache.get(key);
    if (payload === undefined) return null;
    // Put it at the young end: the map's order is the order of use.
    this.cache.delete(key);
    this.cache.set(key, payload);
    return payload;
  }

  async decode(location: Location): Promise<Buffer> {
    const payload = (await this.readGroup(location)).payload;
    const key = location.pack * 0x1_0000_0000 + location.groupOffset;
    if (!this.cache.has(key)) {
      this.cache.set(key, payload);
      this.cacheBytes += payload.length;
      for (const [oldest, bytes] of this.cache) {
        if (this.cacheBytes <= CACHE_BYTES) break;
        this.cache.delete(oldest);
        this.cacheBytes -= bytes.length;
      }
    }
    return payload;
  }

  /** A blob's bytes, checked against its hash. */
  blob(hash: Buffer, location: Location): Promise<Buffer> {
    return this.withGroup(location, () => this.readBlob(hash, location));
  }

  private async readBlob(hash: Buffer, location: Location): Promise<Buffer> {
    let bytes: Buffer;
    if (location.codec === CODEC_NONE) {
      bytes = Buffer.allocUnsafe(location.length);
      this.readRaw(location.pack, Packs.rawOffset(location), bytes, 0, location.length);
    } else {
      const payload = this.cached(location) ?? (await this.decode(location));
      bytes = payload.subarray(location.inner, location.inner + location.length);
    }
    checkBlob(hash, bytes, location);
    return bytes;
  }

  /** Reads, checks and decodes a whole group. */
  readGroup(where: GroupPlace): Promise<{ entries: GroupEntry[]; payload: Buffer }> {
    return this.withGroup(where, () => this.readGroupHere(where));
  }

  private async readGroupHere(where: GroupPlace): Promise<{ entries: GroupEntry[]; payload: Buffer }> {
    const { pack, groupOffset, groupLength } = where;
    const bytes = Buffer.allocUnsafe(groupLength);
    this.readRaw(pack, groupOffset, bytes, 0, groupLength);
    const header = parseGroupHeader(bytes);
    if (header === null || header.length !== groupLength) {
      throw new DamagedError(`pack ${pack} has no whole group at ${groupOffset}`);
    }
    if (crc32(bytes.subarray(GROUP_HEADER)) !== bytes.readUInt32LE(12)) {
      throw new DamagedError(`the group at ${groupOffset} of pack ${pack} has a wrong checksum`);
    }
    const entries: GroupEntry[] = [];
    let inner = 0;
    for (let ordinal = 0; ordinal < header.count; ordinal++) {
      const at = GROUP_HEADER + ordinal * PACK_ENTRY;
      const length = bytes.readUInt16LE(at + 32);
      entries.push({ hash: Buffer.from(bytes.subarray(at, at + 32)), inner, length });
      inner += length;
    }
    const stored = bytes.subarray(header.payload);
    const payload = header.codec === CODEC_NONE ? stored : await this.codec.decompress(stored, header.rawLength);
    if (payload.length !== inner)
      throw new DamagedError(`the group at ${groupOffset} of pack ${pack} has a wrong length`);
    return { entries, payload };
  }

  /** See PackSource: true when a bad block may be asked for once more. */
  distrust(pack: number): boolean {
    return this.source?.distrust(pack) ?? false;
  }

  private pack(number: number): Pack {
    let pack = this.packs.get(number);
    if (pack === undefined) {
      this.closeUnused();
      let file: StoreFile;
      try {
        file = this.files.open(packName(number));
      } catch (error) {
        throw new DamagedError(`pack ${number} is missing: ${(error as Error).message}`);
      }
      const header = Buffer.alloc(PACK_HEADER);
      const whole = file.read(header, 0, PACK_HEADER, 0) === PACK_HEADER;
      if (!whole || header.readUInt32LE(0) !== PACK_MAGIC || header.readUInt32LE(4) !== crc32(header.subarray(8))) {
        file.close();
        throw new DamagedError(`pack ${number} has no valid header`);
      }
      const version = header.readUInt16LE(8);
      if (version < VERSION_OLDEST || version > VERSION) {
        file.close();
        throw new DamagedError(
          `pack ${number} has version ${version}, this program knows ${VERSION_OLDEST} to ${VERSION}`,
        );
      }
      if (!header.subarray(16, 32).equals(this.storeId)) {
        file.close();
        throw new DamagedError(`pack ${number} belongs to another store`);
      }
      pack = { number, file, size: file.size(), dirty: false, used: true };
      this.packs.set(number, pack);
    }
    pack.used = true;
    return pack;
  }

  private closeUnused(): void {
    if (this.packs.size < FILES_MAX) return;
    for (const [number, pack] of [...this.packs]) {
      if (this.packs.size < FILES_MAX) return;
      // What is used, and what must still be made durable, goes to the end of the queue.
      this.packs.delete(number);
      if (pack.used || pack.dirty || pack === this.current || pack === this.currentNodes) {
        pack.used = false;
        this.packs.set(number, pack);
      } else {
        pack.file.close();
      }
    }
  }

  /** Lets go of the file of a pack that is going to be another. */
  closeFile(number: number): void {
    this.packs.get(number)?.file.close();
    this.packs.delete(number);
  }

  /** The 64 bytes that a pack begins with. */
  header(number: number): Buffer {
    const header = Buffer.alloc(PACK_HEADER);
    header.writeUInt32LE(PACK_MAGIC, 0);
    header.writeUInt16LE(VERSION, 8);
    header.writeUInt16LE(PACK_HEADER, 10);
    this.storeId.copy(header, 16);
    header.writeUInt32LE(number, 32);
    header.writeUInt32LE(crc32(header.subarray(8)), 4);
    return header;
  }

  // --- writing

  /** Writes blocks that have been compressed together. Not durable before sync(). */
  writePacked(blobs: BlobHead[], packed: Buffer): Location[] {
    return this.writeGroup(blobs, [packed], CODEC_ZSTD, false);
  }

  /** Writes blobs as they are, all of them blocks or all of them nodes, in pieces. Not durable before sync(). */
  writeRaw(blobs: BlobHead[], pieces: Buffer[], nodes: boolean): Location[] {
    return this.writeGroup(blobs, pieces, CODEC_NONE, nodes);
  }

  private writeGroup(blobs: BlobHead[], stored: Buffer[], codec: number, nodes: boolean): Location[] {
    const tableEnd = GROUP_HEADER + blobs.length * PACK_ENTRY;
    const storedLength = lengthOf(stored);
    const isAligned = codec === CODEC_NONE && !nodes && blobs.length >= ALIGNED_BLOBS_MIN;
    const pack = this.packFor(tableEnd + (isAligned ? BLOB_MAX : 0) + storedLength, nodes);
    const padding = isAligned ? -(pack.size + tableEnd) & (BLOB_MAX - 1) : 0;
    const length = tableEnd + padding + storedLength;
    const head = Buffer.alloc(tableEnd + padding);
    head.writeUInt32LE(GROUP_MAGIC, 0);
    head[8] = codec;
    head[9] = blobs.length;
    head.writeUInt16LE(padding, 10);
    head.writeUInt32LE(storedLength, 16);
    head.writeUInt32LE(lengthOf(blobs), 20);
    const locations: Location[] = [];
    let inner = 0;
    for (const [ordinal, blob] of blobs.entries()) {
      const at = GROUP_HEADER + ordinal * PACK_ENTRY;
      blob.hash.copy(head, at);
      head.writeUInt16LE(blob.length, at + 32);
      locations.push({
        pack: pack.number,
        groupOffset: pack.size,
        groupLength: length,
        inner,
        length: blob.length,
        count: blobs.length,
        ordinal,
        codec,
      });
      inner += blob.length;
    }
    let crc = crc32(head.subarray(GROUP_HEADER));
    for (const bytes of stored) crc = crc32(bytes, crc);
    head.writeUInt32LE(crc, 12);
    head.writeUInt32LE(crc32(head.subarray(8, GROUP_HEADER)), 4);
    pack.dirty = true;
    let at = pack.size;
    for (const bytes of [head, ...stored]) {
      pack.file.write(bytes, 0, bytes.length, at);
      at += bytes.length;
    }
    pack.size = at;
    return locations;
  }

  /** Ends the current pack: what is written next begins a new one. */
  seal(): void {
    this.current = null;
    this.currentNodes = null;
  }

  private packFor(length: number, nodes: boolean): Pack {
    const apart = nodes && this.source !== null;
    const current = apart ? this.currentNodes : this.current;
    if (current !== null && current.size + length <= this.packSizeMax) return current;
    if (current !== null) this.source?.isFull(current.number);
    this.closeUnused();
    const number = this.source?.takeNumber() ?? this.nextNumber++;
    const file = this.files.create(packName(number));
    file.write(this.header(number), 0, PACK_HEADER, 0);
    this.folderDirty = true;
    const pack = { number, file, size: PACK_HEADER, dirty: true, used: true };
    if (apart) this.currentNodes = pack;
    else this.current = pack;
    if (this.source !== null) this.made.add(number);
    this.packs.set(number, pack);
    return pack;
  }

  async sync(): Promise<void> {
    const dirty = [...this.packs.values()].filter((pack) => pack.dirty);
    for (const pack of dirty) pack.dirty = false;
    await Promise.all(dirty.map((pack) => pack.file.sync()));
    if (this.folderDirty) {
      this.folderDirty = false;
      await this.files.syncFolder(FOLDER);
    }
  }

  // --- upkeep

  numbers(): number[] {
    return this.files
      .list(FOLDER)
      .map((name) => /^(\d{8,})\.rbp$/.exec(name))
      .filter((match) => match !== null)
      .map((match) => Number(match[1]));
  }

  size(number: number): number {
    return this.pack(number).size;
  }

  /** The whole groups of a pack, in order; stops at the first place that is none. */
  *groups(number: number): Generator<{ groupOffset: number; groupLength: number; count: number }> {
    const pack = this.pack(number);
    const header = Buffer.alloc(GROUP_HEADER);
    for (let at = PACK_HEADER; at + GROUP_HEADER <= pack.size; ) {
      this.readRaw(number, at, header, 0, GROUP_HEADER);
      const group = parseGroupHeader(header);
      if (group === null || at + group.length > pack.size) return;
      yield { groupOffset: at, groupLength: group.length, count: group.count };
      at += group.length;
    }
  }

  /** The hashes of a group's blobs, without its content. */
  groupHashes(where: { pack: number; groupOffset: number }, count: number): Buffer[] {
    const table = Buffer.allocUnsafe(count * PACK_ENTRY);
    this.readRaw(where.pack, where.groupOffset + GROUP_HEADER, table, 0, table.length);
    return Array.from({ length: count }, (_, ordinal) =>
      table.subarray(ordinal * PACK_ENTRY, ordinal * PACK_ENTRY + 32),
    );
  }

  remove(number: number): void {
    this.discard(number);
    this.files.remove(packName(number));
  }

  /** Forgets all that is in memory of a pack; its file is the caller's. */
  discard(number: number): void {
    const pack = this.packs.get(number);
    pack?.file.close();
    if (this.current === pack) this.current = null;
    if (this.currentNodes === pack) this.currentNodes = null;
    this.packs.delete(number);
    this.made.delete(number);
    for (const [key, payload] of this.cache) {
      if (Math.floor(key / 0x1_0000_0000) !== number) continue;
      this.cache.delete(key);
      this.cacheBytes -= payload.length;
    }
  }

  close(): void {
    for (const pack of this.packs.values()) pack.file.close();
    this.packs.clear();
    this.cache.clear();
  }
}

export interface GroupPlace {
  pack: number;
  groupOffset: number;
  groupLength: number;
}

export interface GroupEntry {
  hash: Buffer;
  inner: number;
  length: number;
}

export function checkBlob(hash: Buffer, bytes: Uint8Array, location: { pack: number; groupOffset: number }): void {
  if (!sha256(bytes).equals(hash)) throw damagedBlob(hash, location);
}

export function damagedBlob(hash: Buffer, { pack, groupOffset }: { pack: number; groupOffset: number }): DamagedError {
  return new DamagedError(`blob ${hash.toString('hex')} in pack ${pack}, group ${groupOffset}, is damaged`);
}

/** The group whose header this is, and where its payload begins in it; null when it is none or its checksum is wrong. */
export function parseGroupHeader(
  bytes: Buffer,
): { codec: number; count: number; payload: number; length: number; rawLength: number } | null {
  if (bytes.length < GROUP_HEADER || bytes.readUInt32LE(0) !== GROUP_MAGIC) return null;
  if (bytes.readUInt32LE(4) !== crc32(bytes.subarray(8, GROUP_HEADER))) return null;
  const count = bytes[9];
  const payload = GROUP_HEADER + count * PACK_ENTRY + bytes.readUInt16LE(10);
  return {
    codec: bytes[8],
    count,
    payload,
    length: payload + bytes.readUInt32LE(16),
    rawLength: bytes.readUInt32LE(20),
  };
}

function lengthOf(pieces: { length: number }[]): number {
  let length = 0;
  for (const { length: more } of pieces) length += more;
  return length;
}

export function packName(number: number): string {
  return `${FOLDER}/${String(number).padStart(8, '0')}.rbp`;
}

/** The pieces of packs that hold these blobs: raw blobs themselves, of a compressed group all of it. Neighbours are one piece. */
/** What must be read of blobs: their groups, or of raw ones that are `alone` only themselves. */
function piecesOf(locations: Location[], alone: boolean): Piece[] {
  const pieces: Piece[] = [];
  for (const location of locations) {
    const { pack, groupOffset, groupLength } = location;
    const isPart = alone && location.codec === CODEC_NONE;
    const from = isPart ? Packs.rawOffset(location) : groupOffset;
    const to = isPart ? from + location.length : groupOffset + groupLength;
    const last = pieces.at(-1);
    if (last !== undefined && last.pack === pack && from >= last.from && from <= last.to + PIECE_GAP)
      last.to = Math.max(last.to, to);
    else pieces.push({ pack, from, to });
  }
  return pieces;
}
