// The tail of the log: segments are given back strictly oldest first, so that whatever is left of an older copy on the store
// can never come to light again after a newer copy has gone.
//
// A segment that holds nothing uncommitted is reclaimed: blocks that were read since they were written there, or that are in
// the RAM cache now, move up to the head, and keep their hits but one; the others are forgotten. A scan, which reads nothing
// twice, does not drive them out, and does not come in where there is no room (seen.ts). When the log is full of uncommitted blocks the write log may have the oldest segment merged: of its blocks only
// the newest copies move up, still dirty, and belong to one epoch with everything before them.

import { cacheFind, cacheState, SlotState } from '../cache/cache';
import { MUTANT, Mutant } from '../mutant';
import { statistics } from '../statistics';
import {
  HITS_MAX,
  ROW_HEADER,
  ROW_LIVE,
  ROW_VOID,
  ROW_WRITE,
  rowDirty,
  rowHits,
  rowIs,
  rowKey,
  rowValid,
  tableRemove,
} from './block-table';
import { RECORD_DIRTY, RecordKind, SEGMENT_BLOCKS, SEGMENT_RECORD_BLOCKS } from './format';
import {
  firstRecord,
  logDropTail,
  logFreeSegments,
  logHeadSegment,
  logNeeded,
  logNextSequence,
  logSetNeeded,
  logTailSegment,
  segmentPlace,
} from './record-log';
import {
  initRelocate,
  relocateStep,
  relocationAdd,
  relocationCancel,
  relocationCarry,
  relocationCount,
  relocationRoom,
  relocationSaid,
  relocationStart,
} from './relocate';
import { noteSeen } from './seen';

// Free segments are left to whoever gets the log out of a tight place, one for each step: a command that has begun may use the
// fourth, the end of one that is cut in two the third, merging the second, and the MARK record of a power-on the last.

/** A write that begins leaves these. */
export const SEGMENTS_RESERVED: u32 = 4;
const SEGMENTS_FOR_MARKS: u32 = 1;
/** Reclaim keeps this many free, so that a burst of writes finds room at once. */
const SEGMENTS_FREE_GOAL: u32 = 8;
/** At least this many must be free for hot blocks to be moved; otherwise they are dropped like the others. */
const SEGMENTS_FREE_FOR_HOT: u32 = 5;
/** Of a segment's 255 blocks at most these are kept: every reclaim gains some, and one that is pressed for room keeps none. */
const HOT_MAX: u32 = 224;

enum ReclaimState {
  IDLE = 0,
  HOT = 1,
  MERGE = 2,
}

let state: ReclaimState = ReclaimState.IDLE;

export function initReclaim(): void {
  state = ReclaimState.IDLE;
  initRelocate();
}

/** Keeps segments free, as far as what lies in them is committed. True when anything moved. */
export function reclaimStep(): bool {
  if (state == ReclaimState.MERGE) return mergeOn();
  if (state == ReclaimState.HOT) return keepHot();
  if (logFreeSegments() >= SEGMENTS_FREE_GOAL || !tailIsClean()) return false;
  if (logFreeSegments() <= SEGMENTS_FREE_FOR_HOT) {
    dropTail();
    return true;
  }
  collectHot();
  state = ReclaimState.HOT;
  return true;
}

/** What comes now pushes out what is here. */
export function logIsFull(): bool {
  return logFreeSegments() <= SEGMENTS_FREE_GOAL;
}

function tailIsClean(): bool {
  if (MUTANT == Mutant.REUSE_DIRTY_SEGMENT && logTailSegment() < logHeadSegment()) return true;
  return logTailSegment() < logHeadSegment() && firstRecord(logTailSegment() + 1) <= logNeeded();
}

function tailRow(i: u32): u32 {
  return segmentPlace(logTailSegment()) * SEGMENT_BLOCKS + i;
}

function collectHot(): void {
  // Those with the most hits first.
  for (let hits: u32 = HITS_MAX; hits > 0; hits--) {
    for (let i: u32 = 0; i < SEGMENT_RECORD_BLOCKS && relocationCount() < HOT_MAX; i++) {
      const row = tailRow(i);
      if (rowIs(row, ROW_LIVE) && hitsOf(row) == hits) relocationAdd(row);
    }
  }
}

/** A block that is in the RAM cache was read a short time ago. */
function hitsOf(row: u32): u32 {
  const hits = rowHits(row);
  if (hits > 0) return hits;
  const slot = cacheFind(rowKey(row));
  return slot >= 0 && cacheState(slot) == SlotState.READY ? 1 : 0;
}

function keepHot(): bool {
  const moved = relocateStep(SEGMENTS_RESERVED, false);
  // Writes have taken the room meanwhile: then nothing is kept.
  const crowded = logFreeSegments() <= SEGMENTS_RESERVED && relocationCancel();
  if (relocationCount() > 0 && !crowded) return moved;
  state = ReclaimState.IDLE;
  dropTail();
  return true;
}

/** Forgets what is left in the oldest segment. */
function dropTail(): void {
  for (let i: u32 = 0; i < SEGMENT_RECORD_BLOCKS; i++) {
    const row = tailRow(i);
    if (!rowIs(row, ROW_LIVE)) continue;
    assert(rowDirty(row) == 0 || MUTANT == Mutant.REUSE_DIRTY_SEGMENT);
    noteSeen(rowKey(row));
    tableRemove(rowKey(row));
  }
  logDropTail();
}

// Merging

export function mergeActive(): bool {
  return state == ReclaimState.MERGE;
}

/** Starts to move the newest copies of uncommitted blocks out of the oldest segment. */
export function mergeStart(): void {
  assert(state == ReclaimState.IDLE);
  assert(logTailSegment() < logHeadSegment());
  relocationStart();
  for (let i: u32 = 0; i < SEGMENT_RECORD_BLOCKS; i++) {
    const row = tailRow(i);
    if (rowIs(row, ROW_LIVE) && rowDirty(row) != 0) relocationAdd(row);
    if (rowIs(row, ROW_HEADER) && isUncommittedHeader(row)) relocationCarry(rowKey(row));
  }
  state = ReclaimState.MERGE;
  statistics.merges += 1;
}

function isUncommittedHeader(row: u32): bool {
  const isWrite = rowValid(row) == RecordKind.WRITE || (rowDirty(row) & RECORD_DIRTY) != 0;
  return isWrite && !rowIs(row, ROW_VOID) && rowIs(row + 1, ROW_WRITE) && rowDirty(row + 1) != 0;
}

/** True when a merge would get on. */
export function mergePossible(): bool {
  return relocationRoom(SEGMENTS_FOR_MARKS);
}

function mergeOn(): bool {
  const moved = relocateStep(SEGMENTS_FOR_MARKS, true);
  if (relocationCount() > 0) {
    // What was moved is moved; the segment stays.
    if (!mergePossible() && relocationCancel()) state = ReclaimState.IDLE;
    return moved || state == ReclaimState.IDLE;
  }
  if (!relocationSaid(SEGMENTS_FOR_MARKS)) {
    if (!mergePossible() && relocationCancel()) state = ReclaimState.IDLE;
    return state == ReclaimState.IDLE;
  }
  state = ReclaimState.IDLE;
  dropTail();
  // What was before is merged into records after it.
  logSetNeeded(logTailSegment() < logHeadSegment() ? firstRecord(logTailSegment()) : logNextSequence());
  return true;
}
