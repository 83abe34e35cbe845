// Moving blocks from the oldest segment to the head of the log: rows are collected, their data are read into one record, and
// the record takes their place. While that record is being built no other one is, so no row can be outdated under way.

import { cacheAddress, cacheFind, cacheMask, cacheState, SlotState } from '../cache/cache';
import { BLOCK_SIZE } from '../config';
import { STORE_RELOCATION, STORE_RELOCATION_SIZE } from '../memory-map';
import { ROW_LIVE, ROW_LOST, rowDirty, rowIs, rowKey, rowTakeHits, rowValid } from './block-table';
import { deviceRead, deviceRelease, deviceState, OperationState } from './device';
import { ENTRY_LOST, RECORD_DIRTY, RECORD_ENTRIES_MAX, RecordKind, SEGMENT_RECORD_BLOCKS } from './format';
import { storeCheckRead } from './local-store';
import {
  logFreeSegments,
  logHeadRoom,
  logHeadRow,
  recordBegin,
  recordData,
  recordDrop,
  recordFinish,
  recordSetEntry,
  rowBlock,
} from './record-log';

/** A record of fewer blocks is not worth the rest of a segment. */
const ROOM_MIN: u32 = 8;

enum BlockState {
  WAITING = 0,
  READING = 1,
  HERE = 2,
  /** Cannot be had: left out. */
  BAD = 3,
}

// u32 row [255] | u8 BlockState [255] | u8 operation [255]: a segment's worth, which may be more than one record's.
const ROWS: usize = STORE_RELOCATION;
const STATES: usize = ROWS + SEGMENT_RECORD_BLOCKS * 4;
const OPERATIONS: usize = STATES + SEGMENT_RECORD_BLOCKS;

assert(SEGMENT_RECORD_BLOCKS * 6 <= STORE_RELOCATION_SIZE);

let count: u32 = 0;
let begun: bool = false;
let dirtyRecord: bool = false;
/** Records of the relocation so far. */
let records: u32 = 0;

export function initRelocate(): void {
  count = 0;
  begun = false;
  sectorsCarried = 0;
}

/** A relocation begins. */
export function relocationStart(): void {
  assert(count == 0);
  records = 0;
}

export function relocationCount(): u32 {
  return count;
}

/** A dirty record must say that a segment was merged, also when nothing was left in it to move: what is newer is one epoch with what was
 * there, after a power-on, too. False when there is no place for it now. */
export function relocationSaid(reserve: u32): bool {
  if (records > 0) return true;
  if (!recordBegin(0, reserve)) return false;
  dirtyRecord = true;
  blocksInRecord = 0;
  finish();
  return true;
}

/** Adds a live row to those that are to be moved; not while they are on their way. */
export function relocationAdd(row: u32): void {
  assert(!begun);
  assert(count < SEGMENT_RECORD_BLOCKS);
  store<u32>(ROWS + ((<usize>count) << 2), row);
  store<u8>(STATES + count, <u8>BlockState.WAITING);
  count += 1;
}

/** Sectors that the PC wrote in records that go: the last record of the merge carries them on, so that the lag is never too low. */
let sectorsCarried: u64 = 0;

export function relocationCarry(sectors: u32): void {
  sectorsCarried += sectors;
}

/** Forgets what was added; false when it is on its way already. */
export function relocationCancel(): bool {
  if (begun) return false;
  count = 0;
  sectorsCarried = 0;
  return true;
}

/** True when something could be moved now without using up the last `reserve` free segments. */
export function relocationRoom(reserve: u32): bool {
  return logFreeSegments() > reserve || logHeadRoom() >= ROOM_MIN;
}

/** Moves what was added, leaving `reserve` segments free; `dirty`: the image server does not have it. True when anything
 * moved; all is done when relocationCount() is 0. */
export function relocateStep(reserve: u32, dirty: bool): bool {
  if (count == 0) return false;
  if (!begun) {
    // Fill the open segment up first: what does not fit is moved with the next record.
    const room = logHeadRoom();
    const blocks = min(room >= ROOM_MIN ? min(count, room) : count, RECORD_ENTRIES_MAX);
    if (!recordBegin(blocks, reserve)) return false;
    begun = true;
    dirtyRecord = dirty;
    blocksInRecord = blocks;
  }
  // Not progress while a read is on its way: it ends after the step.
  return readBlocks();
}

let blocksInRecord: u32 = 0;

/** Starts and takes reads; makes the record when all are here. True when anything moved. */
function readBlocks(): bool {
  let moved = false;
  let left: u32 = 0;
  for (let i: u32 = 0; i < blocksInRecord; i++) {
    const state = <BlockState>load<u8>(STATES + i);
    if (state == BlockState.WAITING) moved = start(i) || moved;
    else if (state == BlockState.READING) moved = take(i) || moved;
    if (<BlockState>load<u8>(STATES + i) < BlockState.HERE) left += 1;
  }
  if (left == 0) finish();
  return moved || left == 0;
}

function rowAt(i: u32): u32 {
  return load<u32>(ROWS + ((<usize>i) << 2));
}

function start(i: u32): bool {
  const row = rowAt(i);
  const slot = cacheFind(rowKey(row));
  if (rowIs(row, ROW_LOST)) {
    memory.fill(recordData(i), 0, BLOCK_SIZE);
  } else if (slot >= 0 && cacheState(slot) == SlotState.READY && (rowValid(row) & ~cacheMask(slot)) == 0) {
    memory.copy(recordData(i), cacheAddress(slot), BLOCK_SIZE);
  } else {
    const operation = deviceRead(rowBlock(row), 1, recordData(i));
    if (operation < 0) return false;
    store<u8>(OPERATIONS + i, <u8>operation);
    store<u8>(STATES + i, BlockState.READING);
    return true;
  }
  store<u8>(STATES + i, BlockState.HERE);
  return true;
}

function take(i: u32): bool {
  const operation = <i32>load<u8>(OPERATIONS + i);
  const state = deviceState(operation);
  if (state == OperationState.PENDING) return false;
  deviceRelease(operation);
  const row = rowAt(i);
  const right = storeCheckRead(row, recordData(i), state == OperationState.DONE);
  // Lost: the record goes on saying so.
  if (!right && rowIs(row, ROW_LOST)) memory.fill(recordData(i), 0, BLOCK_SIZE);
  store<u8>(STATES + i, right || rowIs(row, ROW_LOST) ? BlockState.HERE : BlockState.BAD);
  return true;
}

function finish(): void {
  let entry: u32 = 0;
  for (let i: u32 = 0; i < blocksInRecord; i++) {
    const row = rowAt(i);
    if (load<u8>(STATES + i) == BlockState.BAD || !rowIs(row, ROW_LIVE)) {
      recordDrop(entry);
      continue;
    }
    // The cache may have had more sectors than the row; what it had of these is what was copied.
    const lost = rowIs(row, ROW_LOST);
    recordSetEntry(entry, rowKey(row), rowValid(row), dirtyRecord ? rowDirty(row) : 0, lost ? ENTRY_LOST : 0);
    // Those that are left out close up here, too.
    store<u32>(ROWS + ((<usize>entry) << 2), row);
    entry += 1;
  }
  const firstRow = logHeadRow() + 1;
  // Only when all is moved: a merge that is given up before leaves the segment, with what it counts.
  const carried = dirtyRecord && count == blocksInRecord ? <u32>min<u64>(sectorsCarried, 0xfffffffe) : 0;
  recordFinish(RecordKind.RELOCATE, dirtyRecord ? RECORD_DIRTY : 0, carried);
  sectorsCarried -= carried;
  records += 1;
  for (let i: u32 = 0; i < entry; i++) rowTakeHits(firstRow + i, rowAt(i));
  begun = false;
  count -= blocksInRecord;
  memory.copy(ROWS, ROWS + ((<usize>blocksInRecord) << 2), (<usize>count) << 2);
  memory.fill(STATES, <u8>BlockState.WAITING, count);
}
