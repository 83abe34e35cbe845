// The block table: one row in RAM for every block of the log, in the order in which the blocks lie on the store, and a hash
// from image blocks to rows. It is the index of the cache and the directory of the log at once: walking rows is walking the
// log, without reading it.
//
//   arena:  keys u32[rows] | checksums u32[rows] | valid u8[rows] | dirty u8[rows] | flags u8[rows] | hash u32[slots]
//
// 11 bytes a row and 4 / 0.83 in the hash, and 1/8 in seen.ts: 15.95 bytes for each 4 KiB block of the store, whatever it holds.
//
// Invariants: a row is LIVE exactly when the hash leads to it; at most one row of an image block is; it is the newest.

import { SEGMENT_BLOCKS, SEGMENT_RECORD_BLOCKS, SUMMARY_ROW_SIZE } from './format';

/** No image block: an unused row, and an empty place of the hash. */
export const NO_ROW: u32 = 0xffffffff;
export const NO_KEY: u32 = 0xffffffff;

/** The row of a record header. Its key is the number of sectors written, its checksum the clock when it was made, its `valid`
 * the kind of the record and its `dirty` the flags of the record. */
export const ROW_HEADER: u8 = 1;
/** Data that the PC wrote and that was not known to be committed when the record was made. */
export const ROW_WRITE: u8 = 2;
/** Sectors that are not valid are lost. */
export const ROW_LOST: u8 = 4;
/** The record was cut off by a loss of power together with its command. */
export const ROW_VOID: u8 = 8;
/** What of a row's flags is written into a summary; the others are for RAM only. */
export const ROW_FLAGS_STORED: u8 = 15;
export const ROW_LIVE: u8 = 16;
/** The image server that is connected cannot tell whether the block has changed: as long as it can be asked, it is. */
export const ROW_UNVERIFIED: u8 = 32;
/** How often the block was read since it was written here, up to 3, times ROW_HIT. */
export const ROW_HIT: u8 = 64;
export const ROW_HITS: u8 = 192;
export const HITS_MAX: u32 = 3;

/** Bytes for each row, in 1/1000. */
const ROW_COST: u64 = 11000 + 4822;
/** Hash places for 1000 rows: 83 % full at most. */
const SLOTS_PER_1000: u64 = 1205;

let rows: u32 = 0;
let slots: u32 = 0;
let keys: usize = 0;
let checksums: usize = 0;
let valids: usize = 0;
let dirties: usize = 0;
let flags: usize = 0;
let hash: usize = 0;
let used: u32 = 0;

/** How many segments a table in `size` bytes can describe. */
export function tableSegmentsFor(size: u64): u32 {
  if (size < 4096) return 0;
  return <u32>min<u64>(((size - 4096) * 1000) / ROW_COST / SEGMENT_BLOCKS, 1 << 23);
}

export function tableSize(segments: u32): u64 {
  return ((<u64>segments * SEGMENT_BLOCKS * ROW_COST) / 1000 + 4096 + 4095) & ~(<u64>4095);
}

/** An empty table for a log of `segments` segments in tableSize(segments) bytes at `arena`. */
export function initTable(arena: usize, segments: u32): void {
  rows = segments * SEGMENT_BLOCKS;
  slots = <u32>((<u64>rows * SLOTS_PER_1000) / 1000) + 1;
  keys = arena;
  checksums = keys + rows * 4;
  valids = checksums + rows * 4;
  dirties = valids + rows;
  flags = dirties + rows;
  hash = (flags + rows + 3) & ~(<usize>3);
  used = 0;
  assert(hash + ((<usize>slots) << 2) <= arena + <usize>tableSize(segments));
  memory.fill(keys, 0xff, rows * 4);
  memory.fill(checksums, 0, rows * 7);
  memory.fill(hash, 0xff, slots * 4);
}

export function tableRows(): u32 {
  return rows;
}

/** Image blocks in the table. */
export function tableUsed(): u32 {
  return used;
}

// Rows

export function rowKey(row: u32): u32 {
  return load<u32>(keys + ((<usize>row) << 2));
}

export function rowChecksum(row: u32): u32 {
  return load<u32>(checksums + ((<usize>row) << 2));
}

export function rowValid(row: u32): u8 {
  return load<u8>(valids + row);
}

export function rowDirty(row: u32): u8 {
  return load<u8>(dirties + row);
}

export function rowFlags(row: u32): u8 {
  return load<u8>(flags + row);
}

export function rowIs(row: u32, mask: u8): bool {
  return (rowFlags(row) & mask) != 0;
}

export function setRow(row: u32, key: u32, checksum: u32, valid: u8, dirty: u8, flag: u8): void {
  assert(row < rows);
  store<u32>(keys + ((<usize>row) << 2), key);
  store<u32>(checksums + ((<usize>row) << 2), checksum);
  store<u8>(valids + row, valid);
  store<u8>(dirties + row, dirty);
  store<u8>(flags + row, flag);
}

export function setRowValid(row: u32, valid: u8): void {
  store<u8>(valids + row, valid);
}

export function setRowDirty(row: u32, dirty: u8): void {
  store<u8>(dirties + row, dirty);
}

export function addRowFlags(row: u32, mask: u8): void {
  store<u8>(flags + row, rowFlags(row) | mask);
}

export function removeRowFlags(row: u32, mask: u8): void {
  store<u8>(flags + row, rowFlags(row) & ~mask);
}

/** The block was read: keep it when its segment is reclaimed. */
export function rowHit(row: u32): void {
  if ((rowFlags(row) & ROW_HITS) != ROW_HITS) store<u8>(flags + row, rowFlags(row) + ROW_HIT);
}

/** How often the block was read since it was written here, up to 3. */
export function rowHits(row: u32): u32 {
  return rowFlags(row) / ROW_HIT;
}

/** `row` holds what `old` held: it has its hits, but one. */
export function rowTakeHits(row: u32, old: u32): void {
  const hits = rowHits(old);
  if (hits > 1) addRowFlags(row, <u8>(hits - 1) * ROW_HIT);
}

/** True when the row holds neither a header nor data: the log goes on in the next segment. */
export function rowUnused(row: u32): bool {
  return rowKey(row) == NO_KEY && !rowIs(row, ROW_HEADER);
}

/** Forgets what the rows of a segment's place say; none of them may be LIVE. */
export function clearSegmentRows(place: u32): void {
  const first = place * SEGMENT_BLOCKS;
  for (let i: u32 = 0; i < SEGMENT_BLOCKS; i++) {
    assert(!rowIs(first + i, ROW_LIVE));
    setRow(first + i, NO_KEY, 0, 0, 0, 0);
  }
}

/** Writes the rows of a segment's place as a summary has them. */
export function saveSegmentRows(place: u32, target: usize): void {
  const first = place * SEGMENT_BLOCKS;
  for (let i: u32 = 0; i < SEGMENT_RECORD_BLOCKS; i++) {
    const row = first + i;
    const at = target + i * SUMMARY_ROW_SIZE;
    store<u32>(at, rowKey(row));
    store<u32>(at + 4, rowIs(row, ROW_HEADER) ? 0 : rowChecksum(row));
    store<u8>(at + 8, rowValid(row));
    store<u8>(at + 9, rowDirty(row));
    store<u8>(at + 10, rowFlags(row) & ROW_FLAGS_STORED);
    store<u8>(at + 11, 0);
  }
}

/** Reads them back; no row is LIVE afterwards. */
export function loadSegmentRows(place: u32, source: usize): void {
  const first = place * SEGMENT_BLOCKS;
  for (let i: u32 = 0; i < SEGMENT_RECORD_BLOCKS; i++) {
    const at = source + i * SUMMARY_ROW_SIZE;
    const flag = load<u8>(at + 10) & ROW_FLAGS_STORED;
    setRow(first + i, load<u32>(at), load<u32>(at + 4), load<u8>(at + 8), load<u8>(at + 9), flag);
  }
}

// Hash: open addressing, linear probing, no tombstones

/** The newest row of an image block, NO_ROW when the store does not have it. */
export function tableFind(key: u32): u32 {
  const place = findPlace(key);
  return load<u32>(hash + ((<usize>place) << 2));
}

/** Makes `row`, whose key is set, the newest row of its image block. */
export function tablePut(row: u32): void {
  const place = findPlace(rowKey(row));
  const at = hash + ((<usize>place) << 2);
  const old = load<u32>(at);
  if (old == NO_ROW) {
    assert(used < rows);
    used += 1;
  } else {
    removeRowFlags(old, ROW_LIVE);
  }
  store<u32>(at, row);
  addRowFlags(row, ROW_LIVE);
}

/** Forgets an image block. */
export function tableRemove(key: u32): void {
  let hole = findPlace(key);
  const old = load<u32>(hash + ((<usize>hole) << 2));
  if (old == NO_ROW) return;
  removeRowFlags(old, ROW_LIVE);
  used -= 1;
  // Whoever was pushed on by the one that goes moves back.
  let place = hole;
  while (true) {
    place = next(place);
    const row = load<u32>(hash + ((<usize>place) << 2));
    if (row == NO_ROW) break;
    const home = homePlace(rowKey(row));
    if (distance(home, place) < distance(hole, place)) continue;
    store<u32>(hash + ((<usize>hole) << 2), row);
    hole = place;
  }
  store<u32>(hash + ((<usize>hole) << 2), NO_ROW);
}

function findPlace(key: u32): u32 {
  let place = homePlace(key);
  while (true) {
    const row = load<u32>(hash + ((<usize>place) << 2));
    if (row == NO_ROW || rowKey(row) == key) return place;
    place = next(place);
  }
}

/** Fibonacci hashing, scaled to the number of places without a division. */
function homePlace(key: u32): u32 {
  return <u32>((<u64>(key * 2654435769) * slots) >> 32);
}

function next(place: u32): u32 {
  return place + 1 == slots ? 0 : place + 1;
}

/** How many steps lead from `from` to `to`. */
function distance(from: u32, to: u32): u32 {
  return to >= from ? to - from : to + slots - from;
}
