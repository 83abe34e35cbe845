// Blocks that count no longer because somebody else has changed them on the image server: out of the RAM cache and the block
// table, and a FORGET record on the store, so that they do not come back with the next power-on. A FORGET record is entries
// without data: the blocks behind its header are never written or read.
//
// While the record is being built no other one is, so nothing that is on its way into the log can bring a block back.
//
// A store that takes nothing any more is not told. It goes on saying what the card knew before, so at the next power-on the card asks what has
// changed since then.

import {
  cacheFind,
  cacheMask,
  cacheSetEmpty,
  cacheSetFilling,
  cacheSetReady,
  cacheSetStale,
  cacheSlots,
  cacheState,
  cacheTag,
  SlotState,
} from '../cache/cache';
import { statistics } from '../statistics';
import {
  NO_ROW,
  ROW_LIVE,
  rowDirty,
  rowIs,
  rowKey,
  rowValid,
  setRowValid,
  tableFind,
  tableRemove,
  tableRows,
} from './block-table';
import { RECORD_ENTRIES_MAX, RECORD_FORGETS, RecordKind } from './format';
import { SEGMENTS_RESERVED } from './reclaim';
import {
  logBuilding,
  logFailed,
  logFreeSegments,
  logHeadRoom,
  recordAbandon,
  recordBegin,
  recordFinish,
  recordSetForgotten,
  recordTrim,
} from './record-log';
import { noteSeen } from './seen';

/** A record takes the place of its blocks in the log: where that is more than this share of it, one record that forgets
 * everything does. */
const WHOLESALE_SHARE: u32 = 16;

let begun: bool = false;
let entries: u32 = 0;
let room: u32 = 0;
let forgotten: u32 = 0;
/** Everything clean goes at the next power-on. */
let wholesale: bool = false;
/** The store is not told. */
let untold: bool = false;

/** Before the first forgetBegin() of a connection. */
export function initForget(): void {
  assert(!begun);
  forgotten = 0;
  wholesale = false;
}

/** Begins to forget; false when that must wait. No record can be begun by others until forgetEnd(). */
export function forgetBegin(): bool {
  untold = logFailed();
  if (untold) {
    begun = !logBuilding();
    entries = 0;
    return begun;
  }
  if (logFreeSegments() <= SEGMENTS_RESERVED + 1 || forgotten > tableRows() / WHOLESALE_SHARE) wholesale = true;
  room = wholesale ? 0 : logHeadRoom() < 8 ? RECORD_ENTRIES_MAX : min(logHeadRoom(), RECORD_ENTRIES_MAX);
  if (!recordBegin(room, 0)) return false;
  begun = true;
  entries = 0;
  return true;
}

/** Forgets a block of which nothing is uncommitted. False when the record is full: end it, and begin another. */
export function forgetBlock(block: u32): bool {
  assert(begun);
  const isNamed = !wholesale && !untold;
  if (isNamed && entries == room) return false;
  const row = tableFind(block);
  if (row != NO_ROW) {
    assert(rowDirty(row) == 0);
    tableRemove(block);
    noteSeen(block);
    forgotten += 1;
    statistics.blocksForgotten += 1;
    if (isNamed) {
      recordSetForgotten(entries, block);
      entries += 1;
    }
  }
  const slot = cacheFind(block);
  if (slot >= 0) forgetSlot(slot);
  return true;
}

/** Forgets what the RAM cache has of blocks [first, first + count). */
export function forgetCached(first: u32, count: u32): void {
  for (let slot: u32 = 0; slot < cacheSlots(); slot++) {
    const block = cacheTag(slot);
    if (block >= first && block - first < count) forgetSlot(slot);
  }
}

function forgetSlot(slot: i32): void {
  const state = cacheState(slot);
  if (state == SlotState.READY) cacheSetEmpty(slot);
  else if (state == SlotState.FILLING) cacheSetStale(slot);
}

export function forgetEnd(): void {
  assert(begun);
  begun = false;
  if (untold) return;
  if (entries == 0) {
    recordAbandon();
    return;
  }
  recordTrim(entries);
  recordFinish(RecordKind.FORGET, 0, 0);
}

/** Forgets everything that is committed, now and at the next power-on. False when that must wait. */
export function forgetEverything(): bool {
  if (logFailed() && cacheIsFilling()) return false;
  if (!forgetBegin()) return false;
  wholesale = true;
  for (let row: u32 = 0; row < tableRows(); row++) {
    if (!rowIs(row, ROW_LIVE)) continue;
    forgetCleanSectors(row);
    if (rowDirty(row) != 0) continue;
    tableRemove(rowKey(row));
    statistics.blocksForgotten += 1;
  }
  // What is uncommitted is in the log: it is loaded from there again, unless the store has failed to take it.
  if (untold) forgetCleanCached();
  else forgetCached(0, 0xfffffffe);
  forgetEnd();
  return true;
}

function cacheIsFilling(): bool {
  for (let slot: u32 = 0; slot < cacheSlots(); slot++) {
    const state = cacheState(slot);
    if (state != SlotState.EMPTY && state != SlotState.READY) return true;
  }
  return false;
}

/** Of the RAM cache only what is uncommitted stays. */
function forgetCleanCached(): void {
  for (let slot: u32 = 0; slot < cacheSlots(); slot++) {
    if (cacheState(slot) != SlotState.READY) continue;
    const row = tableFind(cacheTag(slot));
    const left: u8 = row == NO_ROW ? 0 : cacheMask(slot) & rowDirty(row);
    if (left == 0) {
      cacheSetEmpty(slot);
      continue;
    }
    cacheSetFilling(slot);
    cacheSetReady(slot, left);
  }
}

/** Of a block that the PC has written in part the rest counts no longer. */
export function forgetCleanSectors(row: u32): void {
  setRowValid(row, rowValid(row) & rowDirty(row));
}

/** A record that says what is known now; its number, 0 when that must wait. What was forgotten is on the store when it is. */
export function forgetMark(): u64 {
  if (!recordBegin(0, 0)) return 0;
  return recordFinish(RecordKind.MARK, wholesale ? RECORD_FORGETS : 0, 0);
}
