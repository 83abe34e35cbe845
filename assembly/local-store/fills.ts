// Blocks that came from the image server, on their way into the log: noted when they arrive, written in records of many when
// nothing else wants the log. What is not written in time is only not cached.

import { cacheAddress, cacheFind, cacheMask, cacheState, SlotState } from '../cache/cache';
import { nowMs } from '../clock';
import { BLOCK_SIZE } from '../config';
import { STORE_FILLS, STORE_FILLS_SIZE } from '../memory-map';
import { NO_ROW, tableFind } from './block-table';
import { RecordKind } from './format';
import { logIsFull, SEGMENTS_RESERVED } from './reclaim';
import { logHeadRoom, recordBegin, recordData, recordFinish, recordSetEntry } from './record-log';
import { isWorthRoom } from './seen';

const QUEUE_MAX: u32 = STORE_FILLS_SIZE / 4;
const RECORD_BLOCKS: u32 = 32;
/** A record of fewer is not worth its header. */
const ROOM_MIN: u32 = 4;
/** A record that is not full waits this long for more. */
const LINGER_MS: u32 = 200;

let first: u32 = 0;
let count: u32 = 0;
let sinceMs: u32 = 0;

export function initFills(): void {
  first = count = 0;
}

/** Block `block` is in the cache as the server has it. */
export function noteFill(block: u32): void {
  if (count == QUEUE_MAX || (logIsFull() && !isWorthRoom(block))) return;
  if (count == 0) sinceMs = nowMs;
  store<u32>(STORE_FILLS + <usize>((first + count) % QUEUE_MAX) * 4, block);
  count += 1;
}

/** Milliseconds until there is something to do. */
export function fillTimeoutMs(): u32 {
  if (count == 0) return 0xffffffff;
  const waited = nowMs - sinceMs;
  return waited >= LINGER_MS ? LINGER_MS : LINGER_MS - waited;
}

/** Writes a record when there are blocks for one. True when it did. */
export function fillStep(): bool {
  if (count < RECORD_BLOCKS && (count == 0 || nowMs - sinceMs < LINGER_MS)) return false;
  dropUseless();
  // What is left of the open segment is filled up first: it would be lost.
  const room = logHeadRoom();
  const blocks = min(count, room >= ROOM_MIN ? min(room, RECORD_BLOCKS) : RECORD_BLOCKS);
  if (blocks == 0 || !recordBegin(blocks, SEGMENTS_RESERVED)) return false;
  for (let i: u32 = 0; i < blocks; i++) {
    const block = queued(i);
    memory.copy(recordData(i), cacheAddress(cacheFind(block)), BLOCK_SIZE);
    recordSetEntry(i, block, 0xff, 0, 0);
  }
  first = (first + blocks) % QUEUE_MAX;
  count -= blocks;
  sinceMs = nowMs;
  recordFinish(RecordKind.FILL, 0, 0);
  return true;
}

/** Drops, of the blocks that the next record would hold, those that have left the cache or are in the log already. */
function dropUseless(): void {
  let i: u32 = 0;
  while (i < min(count, RECORD_BLOCKS)) {
    if (isUseful(queued(i)) && !isQueuedBefore(i)) {
      i += 1;
      continue;
    }
    for (let j = i; j > 0; j--) setQueued(j, queued(j - 1));
    first = (first + 1) % QUEUE_MAX;
    count -= 1;
  }
}

function isUseful(block: u32): bool {
  const slot = cacheFind(block);
  return slot >= 0 && cacheState(slot) == SlotState.READY && cacheMask(slot) == 0xff && tableFind(block) == NO_ROW;
}

function isQueuedBefore(i: u32): bool {
  for (let j: u32 = 0; j < i; j++) {
    if (queued(j) == queued(i)) return true;
  }
  return false;
}

function queued(i: u32): u32 {
  return load<u32>(STORE_FILLS + <usize>((first + i) % QUEUE_MAX) * 4);
}

function setQueued(i: u32, block: u32): void {
  store<u32>(STORE_FILLS + <usize>((first + i) % QUEUE_MAX) * 4, block);
}
