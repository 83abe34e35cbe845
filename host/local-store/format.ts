// What lies on a card's local store, as SPEC.md "Local store" says it: a second implementation, which shares nothing with the
// firmware's (assembly/local-store/format.ts) but the document. Pure: bytes in, what they mean or null out.

import { crc32c } from '../card/crc32c.js';

export const BLOCK_SIZE = 4096;
export const SECTOR_SIZE = 512;
export const BLOCK_SECTORS = BLOCK_SIZE / SECTOR_SIZE;
export const SUPERBLOCK_COPIES = 4;
export const LOG_START_BLOCK = 16;
export const SEGMENT_BLOCKS = 256;
/** The last block of a segment is its summary. */
export const SEGMENT_ROWS = SEGMENT_BLOCKS - 1;
export const ROW_SIZE = 12;

const VERSION = 1;
const PARTITION_TABLE_MAGIC = 0x504c4252; // "RBLP"
export const PARTITIONS_MAX = 14;
const PARTITIONS_AT = 64;
const PARTITION_SIZE = 272;
const SUPERBLOCK_MAGIC = 0x534c4252; // "RBLS"
const RECORD_MAGIC = 0x524c4252; // "RBLR"
const SUMMARY_MAGIC = 0x474c4252; // "RBLG"
const SUPERBLOCK_LENGTH = 512;
const NAME_SIZE_MAX = 256;
const RECORD_ENTRIES_MAX = 252;
const RECORD_ENTRIES_AT = 80;
const SUMMARY_ROWS_AT = 64;
/** At the end of headers and summaries. */
const OLDEST_SEGMENT_AT = 4072;
const GENERATION_AT = 4080;
const GENERATION_ID_AT = 4088;

export const RecordKind = { WRITE: 1, FILL: 2, RELOCATE: 3, MARK: 4, FORGET: 5 } as const;
export const RecordFlag = { BEGINS: 1, ENDS: 2, DIRTY: 4, VOIDS: 8, FORGETS: 16 } as const;
/** Flags of a row: what a block of a segment is. */
export const RowFlag = { HEADER: 1, WRITE: 2, LOST: 4, VOID: 8 } as const;
/** The key of a row that holds nothing. */
export const NO_KEY = 0xffffffff;

export interface Superblock {
  powerOns: number;
  sequence: number;
  /** 16 hexadecimal digits: how the image server knows the card. */
  storeId: string;
  blocks: number;
  segments: number;
  /** Capacity of the image, 0 as long as no image server has told it. */
  imageSectors: number;
  imageName: string;
}

export type BadSuperblock = 'blank' | 'foreign' | 'damaged' | 'newer';

export function decodeSuperblock(block: Buffer): Superblock | BadSuperblock {
  if (block.readUInt32LE(0) !== SUPERBLOCK_MAGIC) return block.every((byte) => byte === 0) ? 'blank' : 'foreign';
  if (block.readUInt16LE(4) !== VERSION) return 'newer';
  if (block.readUInt16LE(6) !== SUPERBLOCK_LENGTH) return 'damaged';
  if (block.readUInt32LE(8) !== crc32c(block.subarray(12, SUPERBLOCK_LENGTH))) return 'damaged';
  const nameLength = block.readUInt16LE(56);
  const blocks = block.readUInt32LE(32);
  const segments = block.readUInt32LE(36);
  const sane =
    block.readUInt32LE(48) === LOG_START_BLOCK &&
    block.readUInt32LE(52) === SEGMENT_BLOCKS &&
    nameLength <= NAME_SIZE_MAX &&
    segments > 0 &&
    LOG_START_BLOCK + segments * SEGMENT_BLOCKS <= blocks;
  if (!sane) return 'damaged';
  return {
    powerOns: block.readUInt32LE(12),
    sequence: number(block, 16),
    storeId: id(block, 24),
    blocks,
    segments,
    imageSectors: number(block, 40),
    imageName: block.toString('utf8', 64, 64 + nameLength),
  };
}

/** A part of a device that several images share. */
export interface Partition {
  first: number;
  blocks: number;
  imageName: string;
}

/** The partitions of a device, by the four blocks that it begins with; null when it has no table. */
export function decodePartitionTable(copies: Buffer): Partition[] | null {
  let newest: Buffer | null = null;
  for (let copy = 0; copy < SUPERBLOCK_COPIES; copy++) {
    const block = copies.subarray(copy * BLOCK_SIZE, (copy + 1) * BLOCK_SIZE);
    if (block.readUInt32LE(0) !== PARTITION_TABLE_MAGIC || block.readUInt16LE(4) !== VERSION) continue;
    if (block.readUInt32LE(12) > PARTITIONS_MAX || block.readUInt32LE(8) !== crc32c(block.subarray(12))) continue;
    if (newest === null || number(block, 16) > number(newest, 16)) newest = block;
  }
  if (newest === null) return null;
  const partitions: Partition[] = [];
  for (let i = 0; i < newest.readUInt32LE(12); i++) {
    const at = PARTITIONS_AT + i * PARTITION_SIZE;
    partitions.push({
      first: newest.readUInt32LE(at),
      blocks: newest.readUInt32LE(at + 4),
      imageName: newest.toString('utf8', at + 16, at + 16 + newest.readUInt16LE(at + 8)),
    });
  }
  return partitions;
}

/** What headers and summaries say about the log up to them. */
export interface Progress {
  powerOns: number;
  committed: number;
  needed: number;
  lagMs: number;
  /** Segments before this one do not count. */
  oldestSegment: number;
  /** The image server's generation that committed blocks are right for, 0: none; and its id. */
  generation: number;
  generationId: string;
}

export const NO_PROGRESS: Progress = {
  powerOns: 0,
  committed: 0,
  needed: 1,
  lagMs: 0,
  oldestSegment: 0,
  generation: 0,
  generationId: '0000000000000000',
};

function decodeEnd(block: Buffer): { oldestSegment: number; generation: number; generationId: string } {
  return {
    oldestSegment: number(block, OLDEST_SEGMENT_AT),
    generation: number(block, GENERATION_AT),
    generationId: id(block, GENERATION_ID_AT),
  };
}

export interface RecordHeader extends Progress {
  kind: number;
  flags: number;
  entries: number;
  segment: number;
  number: number;
  /** Every record up to this one was stored when this header was made. */
  stored: number;
  sectors: number;
}

/** Null: no record header of this store and segment. */
export function decodeRecord(block: Buffer, storeId: string, segment: number): RecordHeader | null {
  if (block.readUInt32LE(0) !== RECORD_MAGIC || block.readUInt16LE(4) !== VERSION) return null;
  if (id(block, 16) !== storeId || number(block, 24) !== segment) return null;
  const entries = block.readUInt16LE(12);
  if (entries > RECORD_ENTRIES_MAX || block.readUInt32LE(8) !== crc32c(block.subarray(12, BLOCK_SIZE))) return null;
  return {
    kind: block[6],
    flags: block[7],
    entries,
    segment,
    number: number(block, 32),
    committed: number(block, 40),
    stored: number(block, 48),
    powerOns: block.readUInt32LE(56),
    sectors: block.readUInt32LE(60),
    needed: number(block, 64),
    lagMs: block.readUInt32LE(72),
    ...decodeEnd(block),
  };
}

/** CRC-32C that data block `i` of the record must have. */
export function recordChecksum(header: Buffer, i: number): number {
  return header.readUInt32LE(RECORD_ENTRIES_AT + i * ROW_SIZE + 4);
}

/** What a record says of one of its data blocks. */
export interface Entry {
  /** Image block. */
  block: number;
  valid: number;
  dirty: number;
  /** Sectors that are not valid are lost. */
  lost: boolean;
}

export function decodeEntry(header: Buffer, i: number): Entry {
  const at = RECORD_ENTRIES_AT + i * ROW_SIZE;
  return {
    block: header.readUInt32LE(at),
    valid: header[at + 8],
    dirty: header[at + 9],
    lost: (header[at + 10] & 1) !== 0,
  };
}

/** A header, whatever store and segment it belongs to; null when the block is none. */
export function decodeAnyRecord(block: Buffer): RecordHeader | null {
  if (block.readUInt32LE(0) !== RECORD_MAGIC) return null;
  return decodeRecord(block, id(block, 16), number(block, 24));
}

export interface Summary extends Progress {
  segment: number;
  firstRecord: number;
  records: number;
  rows: Buffer;
}

export function decodeSummary(block: Buffer, storeId: string): Summary | null {
  if (block.readUInt32LE(0) !== SUMMARY_MAGIC || block.readUInt16LE(4) !== VERSION) return null;
  if (id(block, 16) !== storeId || block.readUInt32LE(8) !== crc32c(block.subarray(12, BLOCK_SIZE))) return null;
  return {
    segment: number(block, 24),
    firstRecord: number(block, 32),
    committed: number(block, 40),
    records: block.readUInt32LE(48),
    lagMs: block.readUInt32LE(52),
    powerOns: block.readUInt32LE(12),
    needed: number(block, 56),
    ...decodeEnd(block),
    rows: Buffer.from(block.subarray(SUMMARY_ROWS_AT, SUMMARY_ROWS_AT + SEGMENT_ROWS * ROW_SIZE)),
  };
}

// Rows: one for each block of a segment but the last, as a summary has them.

export interface Row {
  /** Of a data block: the image block. Of a header: sectors that the PC wrote. */
  key: number;
  checksum: number;
  /** Of a header: the kind of the record. */
  valid: number;
  /** Of a header: the flags of the record. */
  dirty: number;
  flags: number;
}

export function rowAt(rows: Buffer, i: number): Row {
  const at = i * ROW_SIZE;
  return {
    key: rows.readUInt32LE(at),
    checksum: rows.readUInt32LE(at + 4),
    valid: rows[at + 8],
    dirty: rows[at + 9],
    flags: rows[at + 10],
  };
}

export function isHeaderRow(rows: Buffer, i: number): boolean {
  return (rows[i * ROW_SIZE + 10] & RowFlag.HEADER) !== 0;
}

/** The log goes on in the next segment. */
export function isUnusedRow(rows: Buffer, i: number): boolean {
  return rows.readUInt32LE(i * ROW_SIZE) === NO_KEY && !isHeaderRow(rows, i);
}

export function emptyRows(): Buffer {
  const rows = Buffer.alloc(SEGMENT_ROWS * ROW_SIZE);
  for (let i = 0; i < SEGMENT_ROWS; i++) rows.writeUInt32LE(NO_KEY, i * ROW_SIZE);
  return rows;
}

/** Enters a record, whose header block is `header`, from row `at` on, as its segment's summary will have it. `rotten`: data
 * blocks that are not what was stored. */
export function enterRecord(
  rows: Buffer,
  at: number,
  header: Buffer,
  decoded: RecordHeader,
  rotten: Set<number>,
): void {
  const head = at * ROW_SIZE;
  rows.writeUInt32LE(decoded.sectors, head);
  rows.writeUInt32LE(0, head + 4);
  rows[head + 8] = decoded.kind;
  rows[head + 9] = decoded.flags;
  rows[head + 10] = RowFlag.HEADER;
  const isWrite = decoded.kind === RecordKind.WRITE || (decoded.flags & RecordFlag.DIRTY) !== 0;
  for (let i = 0; i < decoded.entries; i++) {
    const entry = RECORD_ENTRIES_AT + i * ROW_SIZE;
    const row = (at + 1 + i) * ROW_SIZE;
    header.copy(rows, row, entry, entry + 10);
    const isLost = (header[entry + 10] & 1) !== 0 || (rotten.has(i) && isWrite);
    rows[row + 10] = (isWrite ? RowFlag.WRITE : 0) | (isLost ? RowFlag.LOST : 0);
    if (!rotten.has(i)) continue;
    rows[row + 8] = 0;
    if (!isWrite) rows[row + 9] = 0;
  }
}

/** Numbers beyond 2^53 are none that a card reaches; they stay larger than all others. */
function number(block: Buffer, at: number): number {
  return Number(block.readBigUInt64LE(at));
}

function id(block: Buffer, at: number): string {
  return block.readBigUInt64LE(at).toString(16).padStart(16, '0');
}
