// Reading a segment that has no summary, record by record: the part of recovery that decides what is believed. Pure: the
// segment lies in memory, the result goes to the block table.
//
// A record counts when its header is right, carries the next number, is not from before an earlier power cut, and the data
// of every entry match their checksums. The first one that does not count ends the log, unless a later record proves that
// the store had already said that it was safe: then it is not torn but rotten, and that is an error, not an end.

import { BLOCK_SIZE, SECTOR_SIZE } from '../config';
import { crc32c } from '../imports';
import { LogLevel, logEnd, logText, logValue } from '../log';
import { MUTANT, Mutant } from '../mutant';
import { addRowFlags, clearSegmentRows, ROW_LOST, setRowDirty, setRowValid } from './block-table';
import {
  BLOCK_GENERATION,
  BLOCK_GENERATION_ID,
  BLOCK_TAIL,
  checkRecord,
  RECORD_DIRTY,
  RecordHeader,
  RecordKind,
  recordEntry,
  SEGMENT_BLOCKS,
  SEGMENT_RECORD_BLOCKS,
} from './format';
import { enterRows, segmentPlace, setFirstRecord, setSegmentPowerOns } from './record-log';

/** Every record up to this one is known, from a later segment, to have been stored. */
let proven: u64 = 0;

/** What replay carries from segment to segment. */
export let replayNext: u64 = 1;
export let replayPowerOns: u32 = 0;
export let replayCommitted: u64 = 0;
export let replayNeeded: u64 = 1;
export let replayLagMs: u32 = 0;
export let replayGeneration: u64 = 0;
export let replayGenerationId: u64 = 0;
/** The oldest segment that still counted. */
export let replayTail: u64 = 0;
/** Blocks of the last segment that hold records. */
export let replayBlocks: u32 = 0;
/** What records behind the last one that counts say had been stored. */
export let replayClaimed: u64 = 0;
/** Data blocks that were stored once and are not what they were. */
export let replayRotten: u32 = 0;
/** The block behind the last record that counts cannot be read: whether the log ends there is unknown. */
export let replayBlind: bool = false;

/** A bit for each block of the segment in memory: it could not be read, and is 0 there. */
const unreadable: StaticArray<u64> = [0, 0, 0, 0];

export enum Replay {
  /** Not one record counts: the log ended before this segment. */
  EMPTY = 0,
  /** Some do. */
  RECORDS = 1,
  /** A record that was stored is not readable: what it wrote is unknown. */
  DAMAGED = 2,
}

export function initReplay(next: u64, powerOns: u32, committed: u64, needed: u64, lagMs: u32): void {
  replayNext = next;
  replayPowerOns = powerOns;
  replayCommitted = committed;
  replayNeeded = needed;
  replayLagMs = lagMs;
  replayBlocks = 0;
  replayRotten = 0;
  replayBlind = false;
}

/** Takes over what the end of a header or of a summary says. */
export function takeEnd(address: usize): void {
  replayTail = max(replayTail, load<u64>(address + BLOCK_TAIL));
  replayGeneration = load<u64>(address + BLOCK_GENERATION);
  replayGenerationId = load<u64>(address + BLOCK_GENERATION_ID);
}

export function setReplayEnd(tail: u64, generation: u64, id: u64): void {
  replayTail = tail;
  replayGeneration = generation;
  replayGenerationId = id;
}

export function setReplayProven(sequence: u64): void {
  proven = sequence;
}

/** Block `position` of the segment that is about to be replayed could not be read, or could. */
export function setReplayUnreadable(position: u32, is: bool): void {
  const bit = (<u64>1) << (position % 64);
  unreadable[position / 64] = is ? unreadable[position / 64] | bit : unreadable[position / 64] & ~bit;
}

function isUnreadable(position: u32): bool {
  return ((unreadable[position / 64] >> (position % 64)) & 1) != 0;
}

/** Reads segment number `segment`, which lies at `memory`. `anyNumber`: its first record may have any number. */
export function replaySegment(memory: usize, storeId: u64, segment: u64, anyNumber: bool): Replay {
  const place = segmentPlace(segment);
  let position: u32 = 0;
  while (position < SEGMENT_RECORD_BLOCKS) {
    const address = memory + <usize>position * BLOCK_SIZE;
    if (!headerCounts(address, storeId, segment, position, anyNumber && position == 0)) break;
    const header = changetype<RecordHeader>(address);
    const rotten = rottenEntries(address);
    // What took its place is gone: a MARK that the store has only claimed to write.
    if (rotten > 0 && isReplaced(address, storeId, segment)) break;
    if (rotten > 0 && !mayBeLost(position, header, max(proven, storedInSegment(memory, storeId, segment, position))))
      break;
    if (position == 0) {
      replayBlind = false;
      clearSegmentRows(place);
      setFirstRecord(segment, header.sequence);
    }
    accept(address, place * SEGMENT_BLOCKS + position, rotten);
    position += 1 + header.entryCount;
  }
  if (position > 0) replayBlocks = position;
  if (position < SEGMENT_RECORD_BLOCKS && isUnreadable(position)) replayBlind = true;
  replayClaimed = storedInSegment(memory, storeId, segment, position);
  if (replayClaimed >= replayNext) return Replay.DAMAGED;
  return position > 0 ? Replay.RECORDS : Replay.EMPTY;
}

/** The highest number that a record in the segment, from block `from` on, says had been stored; 0 when there is none. */
function storedInSegment(memory: usize, storeId: u64, segment: u64, from: u32): u64 {
  let stored: u64 = 0;
  for (let position = from; position < SEGMENT_RECORD_BLOCKS; position++) {
    const address = memory + <usize>position * BLOCK_SIZE;
    if (!checkRecord(address, storeId, segment)) continue;
    const header = changetype<RecordHeader>(address);
    if (header.powerOns >= replayPowerOns) stored = max(stored, header.stored);
  }
  return stored;
}

function headerCounts(address: usize, storeId: u64, segment: u64, position: u32, anyNumber: bool): bool {
  if (!checkRecord(address, storeId, segment)) return false;
  const header = changetype<RecordHeader>(address);
  return (
    (anyNumber || header.sequence == replayNext) &&
    header.powerOns >= replayPowerOns &&
    position + 1 + header.entryCount <= SEGMENT_RECORD_BLOCKS
  );
}

/** True when a record of a later power-on begins among the data of this one: it was torn, and given up then. */
function isReplaced(address: usize, storeId: u64, segment: u64): bool {
  const header = changetype<RecordHeader>(address);
  for (let i: usize = 1; i <= <usize>header.entryCount; i++) {
    const other = address + i * BLOCK_SIZE;
    if (checkRecord(other, storeId, segment) && changetype<RecordHeader>(other).powerOns > header.powerOns) return true;
  }
  return false;
}

/** A record with data that are not right was stored, as far as `stored` tells or its unreadable blocks can: power that goes tears
 * a record, and what is torn can be read. */
function mayBeLost(position: u32, header: RecordHeader, stored: u64): bool {
  if (header.sequence <= stored) return true;
  for (let i: u32 = 1; i <= <u32>header.entryCount; i++) {
    if (isUnreadable(position + i)) return true;
  }
  return false;
}

function rottenEntries(address: usize): u32 {
  const header = changetype<RecordHeader>(address);
  // There is no data.
  if (header.kind == RecordKind.FORGET) return 0;
  const count = <u32>header.entryCount;
  let rotten: u32 = 0;
  for (let i: u32 = 0; i < count; i++) {
    if (!entryIsRight(address, i)) rotten += 1;
  }
  return rotten;
}

function entryIsRight(address: usize, i: u32): bool {
  if (MUTANT == Mutant.SKIP_REPLAY_CHECKSUM) return true;
  return crc32c(0, address + <usize>(1 + i) * BLOCK_SIZE, BLOCK_SIZE) == recordEntry(address, i).checksum;
}

function accept(address: usize, row: u32, rotten: u32): void {
  const header = changetype<RecordHeader>(address);
  enterRows(address, row, 0);
  if (rotten > 0) loseRotten(address, row);
  replayNext = header.sequence + 1;
  replayPowerOns = header.powerOns;
  setSegmentPowerOns(header.segment, replayPowerOns);
  replayCommitted = max(replayCommitted, header.committed);
  replayNeeded = max(replayNeeded, header.needed);
  replayLagMs = header.lagMs;
  takeEnd(address);
}

/** Sectors that the PC wrote and the store lost: reading them must be an error, whatever the server has. */
function loseRotten(address: usize, row: u32): void {
  const header = changetype<RecordHeader>(address);
  const isWrite = header.kind == RecordKind.WRITE || (header.flags & RECORD_DIRTY) != 0;
  for (let i: u32 = 0; i < <u32>header.entryCount; i++) {
    if (entryIsRight(address, i)) continue;
    replayRotten += 1;
    setRowValid(row + 1 + i, 0);
    if (isWrite) addRowFlags(row + 1 + i, ROW_LOST);
    else setRowDirty(row + 1 + i, 0);
    logText('local store lost a block that it had stored');
    logValue('lba', <u64>recordEntry(address, i).block * (BLOCK_SIZE / SECTOR_SIZE));
    logEnd(LogLevel.ERROR);
  }
}
