// What lies on the local store (SPEC.md "Local store"): the layouts, and the pure functions that fill in and check them.
// Nothing here does I/O. Whatever comes from the store is checked here before anything else is believed.
//
//   block 0..3      superblock copies; the one with sequence number n lies at n mod 4
//   block 4..15     0
//   block 16..      segments of 256 blocks: record, record, … , and in the last block the summary
//   record          header block | data block [entry count]
//
// The log is circular: segment number n lies in place n mod (number of segments). Segment numbers, record numbers and
// power-ons only grow, so what is left over from an earlier round, or from before a power cut, is known by its numbers.

import { BLOCK_SIZE } from '../config';
import { crc32c } from '../imports';

export const STORE_VERSION: u16 = 1;

export const SUPERBLOCK_MAGIC: u32 = 0x534c4252; // "RBLS"
export const SUPERBLOCK_COPIES: u32 = 4;
export const SUPERBLOCK_SIZE: u32 = 512;
export const RECORD_MAGIC: u32 = 0x524c4252; // "RBLR"
export const SUMMARY_MAGIC: u32 = 0x474c4252; // "RBLG"

export const LOG_START_BLOCK: u32 = 16;
export const SEGMENT_BLOCKS: u32 = 256;
/** The last block of a segment is its summary. */
export const SEGMENT_RECORD_BLOCKS: u32 = SEGMENT_BLOCKS - 1;
export const RECORD_ENTRIES_MAX: u32 = 252;

/** Bytes 0 to 11 of all three (magic, version, checksum) are not part of the checksum. */
const CHECKSUM_FROM: u32 = 12;

@unmanaged
export class Superblock {
  magic: u32; // 0
  version: u16; // 4
  length: u16; // 6: 512
  checksum: u32; // 8: CRC-32C of bytes 12 to 511
  /** Power-ons of a card on this store. A record with a lower number than the one before it is a left-over. */
  powerOns: u32; // 12
  sequence: u64; // 16
  /** Chance at format; in every record and summary. */
  storeId: u64; // 24
  /** Size of the device when it was formatted. */
  blocks: u32; // 32
  segments: u32; // 36
  /** Capacity of the image, 0 as long as no image server has told it. */
  imageSectors: u64; // 40
  logStartBlock: u32; // 48: 16
  segmentBlocks: u32; // 52: 256
  nameLength: u16; // 56
  reserved: u16; // 58
  /** The newest session as long as no image server has been asked to commit anything in it. Not a flag: an earlier firmware, which
   * leaves it as it is, then names a session that is not the newest any more, and its own count as used. */
  unusedSession: u32; // 60
}

/** The image's export name, `nameLength` bytes of UTF-8, at most 256. */
export const SUPERBLOCK_NAME: u32 = 64;
export const SUPERBLOCK_NAME_SIZE: u32 = 256;
/** u32[16]: what the card calls itself since power-on, then what it called itself when it committed something, the newest first. */
export const SUPERBLOCK_SESSIONS: u32 = 320;
export const SUPERBLOCK_SESSIONS_MAX: u32 = 16;
/** u64[16]: the last record of each of them that is on the store, 0 for the newest, which goes on. */
export const SUPERBLOCK_LASTS: u32 = SUPERBLOCK_SESSIONS + 4 * SUPERBLOCK_SESSIONS_MAX;

export enum RecordKind {
  NONE = 0,
  /** Sectors that the PC wrote. */
  WRITE = 1,
  /** Blocks as the image server gave them. */
  FILL = 2,
  /** Blocks that moved up from the oldest segment. */
  RELOCATE = 3,
  /** No data: numbers to remember. */
  MARK = 4,
  /** Blocks that others have changed: what is before this record of them does not count, if it is committed. Its data blocks are
   * not written. */
  FORGET = 5,
}

/** First record of a command of the PC. */
export const RECORD_BEGINS: u8 = 1;
/** Last record of a command of the PC. */
export const RECORD_ENDS: u8 = 2;
/** A RELOCATE record whose blocks the image server has not committed. */
export const RECORD_DIRTY: u8 = 4;
/** A MARK: the command that is open at this point was cut off by a loss of power; it never happened. */
export const RECORD_VOIDS: u8 = 8;

/** A MARK: nothing that is before it counts, if it is committed. */
export const RECORD_FORGETS: u8 = 16;

/** At the end of a record's header and of a summary: the oldest segment, and the generation that the clean blocks are right for,
 * with its id. */
export const BLOCK_TAIL: u32 = 4072;
export const BLOCK_GENERATION: u32 = 4080;
export const BLOCK_GENERATION_ID: u32 = 4088;

@unmanaged
export class RecordHeader {
  magic: u32; // 0
  version: u16; // 4
  kind: u8; // 6: RecordKind
  flags: u8; // 7: RECORD_…
  checksum: u32; // 8: CRC-32C of bytes 12 to 4095
  entryCount: u16; // 12
  /** Which image of the card: 0. */
  image: u16; // 14
  storeId: u64; // 16
  segment: u64; // 24: number of the segment
  sequence: u64; // 32: number of the record
  /** Every record up to this one is committed by the image server. */
  committed: u64; // 40
  /** Every record up to this one was durable on the store when this one was made. */
  stored: u64; // 48
  powerOns: u32; // 56
  /** Sectors that the PC wrote. */
  sectors: u32; // 60
  /** The oldest record that still matters to the image server: what was before it is committed or merged into later ones. */
  needed: u64; // 64
  /** How long the oldest uncommitted write had been waiting when this record was made, in ms. */
  lagMs: u32; // 72
  reserved: u32; // 76
}

export const RECORD_HEADER_SIZE: u32 = 80;

@unmanaged
export class RecordEntry {
  /** 4 KiB block of the image. */
  block: u32; // 0
  /** CRC-32C of the 4096 bytes. */
  checksum: u32; // 4
  /** Bit n: sector n is as the PC sees it; the others are 0. */
  valid: u8; // 8
  /** Bit n: sector n was written by the PC and not committed when this record was made. */
  dirty: u8; // 9
  flags: u8; // 10: ENTRY_…
  reserved: u8; // 11
}

export const RECORD_ENTRY_SIZE: u32 = 12;
/** Sectors that are not valid were lost by the store: they must not be taken from anywhere else. */
export const ENTRY_LOST: u8 = 1;

@unmanaged
export class Summary {
  magic: u32; // 0
  version: u16; // 4
  reserved0: u16; // 6
  checksum: u32; // 8: CRC-32C of bytes 12 to 4095
  powerOns: u32; // 12
  storeId: u64; // 16
  segment: u64; // 24
  /** Number of the first record that begins in this segment. */
  firstRecord: u64; // 32
  committed: u64; // 40
  /** How many records begin in this segment. */
  records: u32; // 48
  lagMs: u32; // 52
  needed: u64; // 56
}

/** 255 rows of the block table (block-table.ts), one for each block of the segment but the last. */
export const SUMMARY_ROWS: u32 = 64;
export const SUMMARY_ROW_SIZE: u32 = 12;

assert(offsetof<Superblock>() == SUPERBLOCK_NAME);
assert(SUPERBLOCK_NAME + SUPERBLOCK_NAME_SIZE <= SUPERBLOCK_SESSIONS);
assert(SUPERBLOCK_LASTS + 8 * SUPERBLOCK_SESSIONS_MAX <= SUPERBLOCK_SIZE);
assert(offsetof<RecordHeader>() == RECORD_HEADER_SIZE);
assert(offsetof<RecordHeader>('storeId') == 16);
assert(offsetof<RecordEntry>() == RECORD_ENTRY_SIZE);
assert(offsetof<Summary>() == SUMMARY_ROWS);
assert(RECORD_HEADER_SIZE + RECORD_ENTRIES_MAX * RECORD_ENTRY_SIZE <= BLOCK_TAIL);
assert(1 + RECORD_ENTRIES_MAX <= SEGMENT_RECORD_BLOCKS);
assert(SUMMARY_ROWS + SEGMENT_RECORD_BLOCKS * SUMMARY_ROW_SIZE <= BLOCK_TAIL);
assert(BLOCK_GENERATION_ID + 8 == BLOCK_SIZE);

export enum SuperblockCheck {
  VALID = 0,
  /** Nothing but zeros. */
  BLANK = 1,
  /** Something else, or a superblock that is damaged. */
  FOREIGN = 2,
  DAMAGED = 3,
  /** Of a version that this firmware does not know. */
  NEWER = 4,
}

export function checkSuperblock(address: usize): SuperblockCheck {
  const copy = changetype<Superblock>(address);
  if (copy.magic != SUPERBLOCK_MAGIC) return isZero(address) ? SuperblockCheck.BLANK : SuperblockCheck.FOREIGN;
  if (copy.version != STORE_VERSION) return SuperblockCheck.NEWER;
  if (<u32>copy.length != SUPERBLOCK_SIZE || copy.checksum != superblockChecksum(address))
    return SuperblockCheck.DAMAGED;
  const sane =
    copy.logStartBlock == LOG_START_BLOCK &&
    copy.segmentBlocks == SEGMENT_BLOCKS &&
    <u32>copy.nameLength <= SUPERBLOCK_NAME_SIZE &&
    <u64>copy.segments * SEGMENT_BLOCKS + LOG_START_BLOCK <= <u64>copy.blocks;
  return sane ? SuperblockCheck.VALID : SuperblockCheck.DAMAGED;
}

function isZero(address: usize): bool {
  for (let offset: usize = 0; offset < BLOCK_SIZE; offset += 8) {
    if (load<u64>(address + offset) != 0) return false;
  }
  return true;
}

export function sealSuperblock(address: usize): void {
  const copy = changetype<Superblock>(address);
  copy.magic = SUPERBLOCK_MAGIC;
  copy.version = STORE_VERSION;
  copy.length = <u16>SUPERBLOCK_SIZE;
  copy.checksum = superblockChecksum(address);
}

function superblockChecksum(address: usize): u32 {
  return crc32c(0, address + CHECKSUM_FROM, SUPERBLOCK_SIZE - CHECKSUM_FROM);
}

export function recordEntry(header: usize, i: u32): RecordEntry {
  return changetype<RecordEntry>(header + RECORD_HEADER_SIZE + i * RECORD_ENTRY_SIZE);
}

/** True when a record header lies at `address` that belongs to this store and to this segment. */
export function checkRecord(address: usize, storeId: u64, segment: u64): bool {
  const header = changetype<RecordHeader>(address);
  return (
    header.magic == RECORD_MAGIC &&
    header.version == STORE_VERSION &&
    header.storeId == storeId &&
    header.segment == segment &&
    <u32>header.entryCount <= RECORD_ENTRIES_MAX &&
    header.checksum == blockChecksum(address)
  );
}

export function sealRecord(address: usize): void {
  const header = changetype<RecordHeader>(address);
  header.magic = RECORD_MAGIC;
  header.version = STORE_VERSION;
  header.checksum = blockChecksum(address);
}

/** True when a summary of this store lies at `address`. */
export function checkSummary(address: usize, storeId: u64): bool {
  const summary = changetype<Summary>(address);
  return (
    summary.magic == SUMMARY_MAGIC &&
    summary.version == STORE_VERSION &&
    summary.storeId == storeId &&
    summary.checksum == blockChecksum(address)
  );
}

export function sealSummary(address: usize): void {
  const summary = changetype<Summary>(address);
  summary.magic = SUMMARY_MAGIC;
  summary.version = STORE_VERSION;
  summary.checksum = blockChecksum(address);
}

/** In two parts: most of a header is zeros up to its end, and zeros at the end of a part cost next to nothing (crc32c.c). */
function blockChecksum(address: usize): u32 {
  const head = crc32c(0, address + CHECKSUM_FROM, BLOCK_TAIL - CHECKSUM_FROM);
  return crc32c(head, address + BLOCK_TAIL, BLOCK_SIZE - BLOCK_TAIL);
}
