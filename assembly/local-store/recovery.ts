// Power-on: from whatever lies on the device to a log that can go on, or to a clear refusal.
//
//   (partition table) -> superblocks -> (format) -> summaries -> replay of the segments after the last summary -> build the table
//               -> superblock with the next power-on number -> a MARK record over what was torn -> ready
//
// What is believed: the newest superblock; from the newest summary down every segment with the number before it; after it
// every record that replay.ts accepts. A command of the PC that has no last record never happened (its records are void):
// the PC was never told that it was done. Everything else that was recovered and is not known to be committed is dirty.

import { BLOCK_SIZE } from '../config';
import { clock_ms } from '../imports';
import { LogLevel, logEnd, logText, logValue } from '../log';
import { STORE_SUPERBLOCK } from '../memory-map';
import { MUTANT, Mutant } from '../mutant';
import { SETTINGS_STORE_FORMAT, settings, storeShareSegments } from '../settings';
import {
  addRowFlags,
  clearSegmentRows,
  initTable,
  loadSegmentRows,
  NO_ROW,
  ROW_HEADER,
  ROW_LIVE,
  ROW_LOST,
  ROW_VOID,
  ROW_WRITE,
  removeRowFlags,
  rowDirty,
  rowFlags,
  rowIs,
  rowKey,
  rowUnused,
  rowValid,
  setRow,
  setRowDirty,
  setRowValid,
  tableFind,
  tablePut,
  tableRemove,
  tableRows,
} from './block-table';
import {
  deviceBlocks,
  deviceFlush,
  deviceRead,
  deviceRelease,
  deviceState,
  deviceUse,
  deviceWrite,
  OperationState,
} from './device';
import {
  checkSummary,
  LOG_START_BLOCK,
  RECORD_BEGINS,
  RECORD_DIRTY,
  RECORD_ENDS,
  RECORD_FORGETS,
  RECORD_VOIDS,
  RecordKind,
  SEGMENT_BLOCKS,
  SEGMENT_RECORD_BLOCKS,
  SUMMARY_ROWS,
  SUPERBLOCK_COPIES,
  Summary,
} from './format';
import {
  choosePartitionTable,
  makePartitionTable,
  NO_PARTITION,
  nextPartitionTable,
  partitionAdd,
  partitionBlocks,
  partitionFind,
  partitionFirst,
} from './partition';
import { reclaimStep } from './reclaim';
import {
  firstRecord,
  foundSegment,
  logFailed,
  logSetGeneration,
  logSetNeeded,
  logSetPowerOns,
  logStored,
  logWantStored,
  openRecordLog,
  recordBegin,
  recordFinish,
  recordLogResumed,
  recordLogScratch,
  resumeRecordLog,
  segmentPlace,
  segmentPowerOns,
  setFirstRecord,
  setFoundSegment,
  setSegmentPowerOns,
} from './record-log';
import {
  initReplay,
  Replay,
  replayBlind,
  replayBlocks,
  replayClaimed,
  replayCommitted,
  replayGeneration,
  replayGenerationId,
  replayLagMs,
  replayNeeded,
  replayNext,
  replayPowerOns,
  replayRotten,
  replaySegment,
  replayTail,
  setReplayEnd,
  setReplayProven,
  setReplayUnreadable,
  takeEnd,
} from './replay';
import {
  chooseSuperblock,
  makeSuperblock,
  nextSession,
  nextSuperblock,
  StoreError,
  superblock,
  superblockIsForImage,
  Verdict,
} from './superblock';

/** 16 MiB: room for reclaim and merging to work in. */
export const SEGMENTS_MIN: u32 = 16;

/** Summaries read at once. */
const SUMMARIES_AT_ONCE: u32 = 16;

enum Stage {
  SUPERBLOCKS = 0,
  FORMAT = 1,
  FORMAT_FLUSH = 2,
  SUMMARIES = 3,
  REPAIR = 4,
  REPLAY = 5,
  BUILD = 6,
  POWER_ON = 7,
  POWER_ON_FLUSH = 8,
  MARK = 9,
  MARK_STORED = 10,
  READY = 11,
  REFUSED = 12,
  PARTITION = 13,
  PARTITION_FLUSH = 14,
}

let stage: Stage = Stage.SUPERBLOCKS;
let error: StoreError = StoreError.NONE;
let segmentsMax: u32 = 0;
let tableArena: usize = 0;
let startedMs: u32 = 0;

// The operations of the current stage: `batch` of them, in order, none started when `started` is false.
const batchOperation: StaticArray<i32> = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
let batch: u32 = 0;
let batchFirst: u32 = 0;
let formatCopy: u32 = 0;
/** The partition in use, NO_PARTITION on a device for one image, and as long as that is not known. */
let partition: u32 = NO_PARTITION;
/** A segment that cannot be read in one piece is read block by block. */
let pieceByPiece: bool = false;
let piece: u32 = 0;

// Findings.
let lastSegment: u64 = 0;
/** The first segment without a summary, and whether the one before a damaged one was read again. */
let firstReplayed: u64 = 0;
let provenTried: bool = false;
let tail: u64 = 0;
let head: u64 = 0;
let headBlocks: u32 = 0;
let voidsTail: bool = false;
let markSequence: u64 = 0;
let dirtyRecords: u32 = 0;
let dirtyBlocks: u32 = 0;
let dirtySectors: u64 = 0;
/** When the oldest of them was written, as far as the log says. */
let madeMs: u32 = 0;
/** The last record that was merged, 0 when none was: an epoch must not end before it. */
let mergedTo: u64 = 0;

export function initRecovery(arena: usize, limit: u32): void {
  tableArena = arena;
  segmentsMax = limit;
  stage = Stage.SUPERBLOCKS;
  error = StoreError.NONE;
  batch = batchFirst = 0;
  partition = NO_PARTITION;
  pieceByPiece = false;
  startedMs = clock_ms();
}

export function recoveryReady(): bool {
  return stage == Stage.READY;
}

export function recoveryError(): StoreError {
  return error;
}

// What the write log takes over.

/** Records that the image server is not known to have. */
export function recoveredDirtyRecords(): u32 {
  return dirtyRecords;
}

export function recoveredDirtyBlocks(): u32 {
  return dirtyBlocks;
}

export function recoveredDirtySectors(): u64 {
  return dirtySectors;
}

/** clock_ms() at which the oldest of that was written. */
export function recoveredSinceMs(): u32 {
  return madeMs;
}

export function recoveredMergedTo(): u64 {
  return mergedTo;
}

/** True when the recovered records belong to another image than the settings name. */
function otherImage(): bool {
  return !superblockIsForImage();
}

/** Goes on as far as it can. True when anything moved. */
export function recoveryStep(): bool {
  const before = stage;
  let progressed = false;
  if ((stage == Stage.MARK || stage == Stage.MARK_STORED) && logFailed()) refuse(StoreError.DEVICE);
  if (stage == Stage.SUPERBLOCKS) progressed = readSuperblocks();
  else if (stage == Stage.PARTITION) progressed = writePartitionTable();
  else if (stage == Stage.PARTITION_FLUSH) progressed = flushThen(Stage.PARTITION);
  else if (stage == Stage.FORMAT) progressed = format();
  else if (stage == Stage.FORMAT_FLUSH) progressed = flushThen(Stage.SUMMARIES);
  else if (stage == Stage.SUMMARIES) progressed = readSummaries();
  else if (stage == Stage.REPAIR) progressed = repair();
  else if (stage == Stage.REPLAY) progressed = replay();
  else if (stage == Stage.BUILD) build();
  else if (stage == Stage.POWER_ON) progressed = powerOn();
  else if (stage == Stage.POWER_ON_FLUSH) progressed = flushThen(Stage.MARK);
  else if (stage == Stage.MARK) progressed = mark();
  else if (stage == Stage.MARK_STORED && logStored() >= markSequence) ready();
  return progressed || stage != before;
}

function refuse(why: StoreError): void {
  error = why;
  stage = Stage.REFUSED;
  logText('local store refused');
  logValue('error', why);
  logValue('blocks', deviceBlocks());
  logEnd(LogLevel.ERROR);
}

// Superblocks

function readSuperblocks(): bool {
  if (batch == 0) {
    if (deviceBlocks() < LOG_START_BLOCK + SEGMENTS_MIN * SEGMENT_BLOCKS) {
      refuse(StoreError.TOO_SMALL);
      return true;
    }
    for (; batch < SUPERBLOCK_COPIES; batch++) {
      batchOperation[batch] = deviceRead(batch, 1, recordLogScratch() + batch * BLOCK_SIZE);
    }
    return true;
  }
  if (!batchEnded()) return false;
  let readable: u32 = 0;
  for (let i: u32 = 0; i < batch; i++) {
    if (takeOperation(i)) readable += 1;
    // What cannot be read is not blank: it might be the newest copy.
    else memory.fill(recordLogScratch() + i * BLOCK_SIZE, 0xff, BLOCK_SIZE);
  }
  batch = 0;
  if (partition == NO_PARTITION && readable > 0 && choosePartitionTable(recordLogScratch())) {
    enterShared();
    return true;
  }
  superblock.sequence = 0;
  decide(readable == 0 ? Verdict.FOREIGN : chooseSuperblock(recordLogScratch()), readable);
  return true;
}

function decide(verdict: Verdict, readable: u32): void {
  const mayFormat = (settings.flags & SETTINGS_STORE_FORMAT) != 0;
  if (readable == 0) refuse(StoreError.DEVICE);
  else if (verdict == Verdict.VALID) decideValid();
  else if (verdict == Verdict.BLANK && partition == NO_PARTITION && storeShareSegments() != 0) startShared();
  else if (verdict == Verdict.BLANK || mayFormat) startFormat();
  else if (verdict == Verdict.NEWER) refuse(StoreError.NEWER);
  else if (verdict == Verdict.DAMAGED) refuse(StoreError.DAMAGED);
  else refuse(StoreError.FOREIGN);
}

function decideValid(): void {
  const mayFormat = (settings.flags & SETTINGS_STORE_FORMAT) != 0;
  let why = StoreError.NONE;
  if (superblock.blocks > deviceBlocks()) why = StoreError.SHRUNK;
  else if (superblock.segments > segmentsMax) why = StoreError.MEMORY;
  else if (superblock.segments < SEGMENTS_MIN) why = StoreError.DAMAGED;
  if (why == StoreError.NONE) openStore();
  else if (mayFormat) startFormat();
  else refuse(why);
}

// Partitions

/** The device has a table: goes on in the image's partition, which is made if there is none. */
function enterShared(): void {
  const found = partitionFind();
  if (found == NO_PARTITION) addPartition();
  else if (<u64>partitionFirst(found) + partitionBlocks(found) > <u64>deviceBlocks()) refuse(StoreError.SHRUNK);
  else usePartition(found);
}

/** The device is blank, and more than one image is to share it. */
function startShared(): void {
  makePartitionTable();
  addPartition();
}

function addPartition(): void {
  partition = storeShareSegments() == 0 ? NO_PARTITION : partitionAdd(max(storeShareSegments(), SEGMENTS_MIN));
  if (partition == NO_PARTITION) {
    refuse(StoreError.NO_ROOM);
    return;
  }
  formatCopy = 0;
  stage = Stage.PARTITION;
}

/** Writes all four copies, each flushed before the next, so that at most one is ever torn; then the partition is formatted. */
function writePartitionTable(): bool {
  if (batch == 0 && formatCopy == SUPERBLOCK_COPIES) {
    usePartition(partition);
    superblock.sequence = 0;
    startFormat();
    return true;
  }
  if (batch == 0) {
    batchOperation[0] = deviceWrite(nextPartitionTable(), 1, STORE_SUPERBLOCK);
    batch = 1;
    return true;
  }
  if (!batchEnded()) return false;
  const done = takeOperation(0);
  batch = 0;
  formatCopy += 1;
  if (done) stage = Stage.PARTITION_FLUSH;
  else refuse(StoreError.DEVICE);
  return true;
}

function usePartition(which: u32): void {
  partition = which;
  deviceUse(partitionFirst(which), partitionBlocks(which));
  stage = Stage.SUPERBLOCKS;
}

function openStore(): void {
  initTable(tableArena, superblock.segments);
  openRecordLog(superblock.segments, superblock.storeId);
  lastSegment = 0;
  batch = batchFirst = 0;
  stage = Stage.SUMMARIES;
}

function startFormat(): void {
  const segments = min(segmentsMax, (deviceBlocks() - LOG_START_BLOCK) / SEGMENT_BLOCKS);
  logText('local store is formatted');
  logValue('blocks', deviceBlocks());
  logValue('segments', segments);
  logEnd(LogLevel.INFO);
  makeSuperblock(deviceBlocks(), segments);
  formatCopy = 0;
  stage = Stage.FORMAT;
}

/** Writes all four copies, so that none of an earlier format is left. */
function format(): bool {
  if (batch == 0) {
    batchOperation[0] = deviceWrite(nextSuperblock(), 1, STORE_SUPERBLOCK);
    batch = 1;
    return true;
  }
  if (!batchEnded()) return false;
  if (!takeOperation(0)) {
    refuse(StoreError.DEVICE);
    return true;
  }
  batch = 0;
  formatCopy += 1;
  if (formatCopy == SUPERBLOCK_COPIES) stage = Stage.FORMAT_FLUSH;
  return true;
}

/** Flushes, then goes on with `next`. */
function flushThen(next: Stage): bool {
  if (batch == 0) {
    batchOperation[0] = deviceFlush();
    batch = 1;
    return true;
  }
  if (!batchEnded()) return false;
  const done = takeOperation(0);
  batch = 0;
  if (!done) refuse(StoreError.DEVICE);
  else if (next == Stage.SUMMARIES) openStore();
  else stage = next;
  return true;
}

// Summaries

function readSummaries(): bool {
  if (batch == 0) {
    const count = min(SUMMARIES_AT_ONCE, superblock.segments - batchFirst);
    for (; batch < count; batch++) {
      const block = LOG_START_BLOCK + (batchFirst + batch) * SEGMENT_BLOCKS + SEGMENT_RECORD_BLOCKS;
      batchOperation[batch] = deviceRead(block, 1, recordLogScratch() + batch * BLOCK_SIZE);
    }
    return true;
  }
  if (!batchEnded()) return false;
  for (let i: u32 = 0; i < batch; i++) {
    const address = recordLogScratch() + i * BLOCK_SIZE;
    const readable = takeOperation(i);
    takeSummary(batchFirst + i, readable ? address : 0);
  }
  batchFirst += batch;
  batch = 0;
  if (batchFirst == superblock.segments) followSummaries();
  return true;
}

function takeSummary(place: u32, address: usize): void {
  const summary = changetype<Summary>(address);
  const counts = address != 0 && checkSummary(address, superblock.storeId) && segmentPlace(summary.segment) == place;
  setFoundSegment(place, counts ? summary.segment : 0);
  if (!counts) return;
  loadSegmentRows(place, address + SUMMARY_ROWS);
  setFirstRecord(summary.segment, summary.firstRecord);
  setSegmentPowerOns(summary.segment, summary.powerOns);
  if (summary.segment <= lastSegment) return;
  lastSegment = summary.segment;
  initReplay(summary.firstRecord + summary.records, summary.powerOns, summary.committed, summary.needed, summary.lagMs);
  takeEnd(address);
}

/** Finds the oldest segment from which on none is missing. */
function followSummaries(): void {
  if (lastSegment == 0) {
    initReplay(1, 0, 0, 1, 0);
    setReplayEnd(0, 0, 0);
    tail = head = 1;
    headBlocks = 0;
    startReplay();
    return;
  }
  tail = lastSegment;
  head = lastSegment;
  headBlocks = SEGMENT_RECORD_BLOCKS;
  followTail();
}

function followTail(): void {
  while (tail > 1 && tail - 1 + superblock.segments > lastSegment && foundSegment(segmentPlace(tail - 1)) == tail - 1) {
    tail -= 1;
  }
  // Is there anything of this round beyond, or must there be? Then a summary was lost.
  if (tail > 1 && (olderExists() || olderIsNeeded())) stage = Stage.REPAIR;
  else startReplay();
}

/** Records before the tail matter, by what the newest summary says. */
function olderIsNeeded(): bool {
  return tail - 1 + superblock.segments > lastSegment && max(replayNeeded, replayCommitted + 1) < firstRecord(tail);
}

function olderExists(): bool {
  for (let older = tail - 1; older > 0 && older + superblock.segments > lastSegment; older--) {
    if (foundSegment(segmentPlace(older)) == older) return true;
  }
  return false;
}

/** Replays the segment before the tail, whose summary is not readable. */
function repair(): bool {
  if (!readSegment(segmentPlace(tail - 1))) return false;
  const segment = tail - 1;
  // The numbers of the end of the log are kept: this is an older part.
  const next = replayNext;
  const powerOn = replayPowerOns;
  const committed = replayCommitted;
  const needed = replayNeeded;
  const lagMs = replayLagMs;
  const tailThen = replayTail;
  const generation = replayGeneration;
  const generationId = replayGenerationId;
  initReplay(0, 0, 0, 0, 0);
  const result = replaySegment(recordLogScratch(), superblock.storeId, segment, true);
  const complete = result == Replay.RECORDS && replayNext == firstRecord(tail);
  initReplay(next, powerOn, committed, needed, lagMs);
  setReplayEnd(tailThen, generation, generationId);
  logText(complete ? 'summary of a segment lost, repaired' : 'segment lost, what is older is dropped');
  logValue('segment', segment);
  logEnd(LogLevel.WARNING);
  if (complete) {
    setFoundSegment(segmentPlace(segment), segment);
    followTail();
  } else {
    startReplay();
  }
  return true;
}

/** Reads a segment into the scratch memory; true when it is there. What is not readable is 0. */
function readSegment(place: u32): bool {
  const first = LOG_START_BLOCK + place * SEGMENT_BLOCKS;
  const scratch = recordLogScratch();
  if (batch == 0) {
    batchOperation[0] = pieceByPiece
      ? deviceRead(first + piece, 1, scratch + piece * BLOCK_SIZE)
      : deviceRead(first, SEGMENT_BLOCKS, scratch);
    batch = 1;
    return false;
  }
  if (!batchEnded()) return false;
  const readable = takeOperation(0);
  batch = 0;
  if (!pieceByPiece) {
    if (readable) {
      for (let i: u32 = 0; i < SEGMENT_BLOCKS; i++) setReplayUnreadable(i, false);
      return true;
    }
    pieceByPiece = true;
    piece = 0;
    return false;
  }
  if (!readable) memory.fill(scratch + piece * BLOCK_SIZE, 0, BLOCK_SIZE);
  setReplayUnreadable(piece, !readable);
  piece += 1;
  if (piece < SEGMENT_BLOCKS) return false;
  pieceByPiece = false;
  return true;
}

// Replay

function startReplay(): void {
  firstReplayed = lastSegment + 1;
  provenTried = false;
  setReplayProven(0);
  stage = Stage.REPLAY;
}

/** Replays the segment after the last one that is known. */
function replay(): bool {
  const segment = lastSegment + 1;
  const started = batch;
  if (!readSegment(segmentPlace(segment))) return batch != started;
  const result = replaySegment(recordLogScratch(), superblock.storeId, segment, false);
  if (result == Replay.DAMAGED) {
    replayDamaged(segment);
  } else if (result == Replay.EMPTY) {
    stage = Stage.BUILD;
  } else {
    lastSegment = segment;
    head = segment;
    headBlocks = replayBlocks;
  }
  return true;
}

/** A record that was stored does not count. If it is the data of the segment's last one, this segment has only now proved
 * that it had been stored: read the segment before again, and take the record without them. */
function replayDamaged(segment: u64): void {
  const again = !provenTried && segment == head + 1 && firstReplayed <= head;
  if (!again) {
    refuse(StoreError.LOG_DAMAGED);
    return;
  }
  provenTried = true;
  setReplayProven(replayClaimed);
  lastSegment = head - 1;
  const powerOn = head > tail ? segmentPowerOns(head - 1) : 0;
  initReplay(firstRecord(head), powerOn, replayCommitted, replayNeeded, replayLagMs);
}

// The table

/** Walks the log from its oldest record to its newest, twice: first to find what is void, then to enter what is not. */
function build(): void {
  if (tail + superblock.segments <= head) tail = head - superblock.segments + 1;
  // What was given up may have been changed by others since, and nothing says so.
  tail = min(max(tail, replayTail), head);
  for (let place: u32 = 0; place < superblock.segments; place++) {
    if (!inWindow(place)) clearSegmentRows(place);
  }
  // The open segment has no rows beyond its records, whatever lay there before.
  if (head == 1 && headBlocks == 0) setFirstRecord(1, replayNext);
  resumeRecordLog(tail, head, headBlocks, replayNext, summedBefore(), replayCommitted);
  logSetNeeded(replayNeeded);
  logSetGeneration(replayGeneration, replayGenerationId);
  recordLogResumed();
  if (replayNeeded < firstRecord(tail) && replayCommitted + 1 < firstRecord(tail)) {
    refuse(StoreError.LOG_DAMAGED);
    return;
  }
  // What that record wrote is unknown: the image server has it, or it is lost. A clean block may be older than it.
  if (replayBlind) {
    logText('local store cannot be read where its log ends: writes may be lost there; everything clean is forgotten');
    logValue('record', replayNext);
    logEnd(LogLevel.ERROR);
  }
  voidsTail = findVoid();
  enterAll();
  if (otherImage()) {
    if (dirtyRecords > 0 && (settings.flags & SETTINGS_STORE_FORMAT) == 0) refuse(StoreError.OTHER_IMAGE);
    else startFormat();
    return;
  }
  stage = Stage.POWER_ON;
}

function inWindow(place: u32): bool {
  const headPlace = segmentPlace(head);
  const back = headPlace >= place ? headPlace - place : headPlace + superblock.segments - place;
  return <u64>back <= head - tail;
}

/** Segments up to the last summary that was read have theirs. */
function summedBefore(): u64 {
  let summed = head;
  while (summed > tail && foundSegment(segmentPlace(summed - 1)) != summed - 1) summed -= 1;
  return foundSegment(segmentPlace(head)) == head ? head + 1 : summed;
}

// A walk over the records from the tail to the head: walkRow is the header of record number walkSequence.
let walkSegment: u64 = 0;
let walkRow: u32 = 0;
let walkSequence: u64 = 0;

function walkStart(): bool {
  walkSegment = tail;
  walkRow = segmentPlace(tail) * SEGMENT_BLOCKS;
  walkSequence = firstRecord(tail);
  return walkSettle();
}

/** Goes on to the next record. False at the end. */
function walkNext(): bool {
  walkRow += 1;
  while (walkRow % SEGMENT_BLOCKS < SEGMENT_RECORD_BLOCKS && !rowUnused(walkRow) && !rowIs(walkRow, ROW_HEADER)) {
    walkRow += 1;
  }
  walkSequence += 1;
  return walkSettle();
}

function walkSettle(): bool {
  while (walkRow % SEGMENT_BLOCKS == SEGMENT_RECORD_BLOCKS || rowUnused(walkRow)) {
    if (walkSegment == head) return false;
    walkSegment += 1;
    walkRow = segmentPlace(walkSegment) * SEGMENT_BLOCKS;
  }
  return true;
}

/** Data rows of the record at the walk: from walkRow + 1 on. */
function walkIsData(row: u32): bool {
  return row % SEGMENT_BLOCKS < SEGMENT_RECORD_BLOCKS && !rowUnused(row) && !rowIs(row, ROW_HEADER);
}

/** Marks as void the records of every command that a loss of power cut off. True when the log ends in one. */
function findVoid(): bool {
  let open: u64 = 0;
  for (let more = walkStart(); more; more = walkNext()) {
    const kind = rowValid(walkRow);
    const flags = rowDirty(walkRow);
    if (kind == RecordKind.WRITE) {
      if ((flags & RECORD_BEGINS) != 0 || open == 0) open = walkSequence;
      if ((flags & RECORD_ENDS) != 0) open = 0;
    } else if (kind == RecordKind.MARK && (flags & RECORD_VOIDS) != 0) {
      if (open != 0 && MUTANT != Mutant.VOID_RETURNS) voidRange(open, walkSequence);
      open = 0;
    }
  }
  if (open == 0 || MUTANT == Mutant.KEEP_CUT_COMMANDS) return false;
  voidRange(open, replayNext);
  return true;
}

/** Makes the WRITE records from number `from` to before number `to` void; the walk is where it was afterwards. */
function voidRange(from: u64, to: u64): void {
  const segment = walkSegment;
  const row = walkRow;
  const sequence = walkSequence;
  for (let more = walkStart(); more && walkSequence < to; more = walkNext()) {
    if (walkSequence < from || rowValid(walkRow) != RecordKind.WRITE) continue;
    addRowFlags(walkRow, ROW_VOID);
    for (let data = walkRow + 1; walkIsData(data); data++) addRowFlags(data, ROW_VOID);
  }
  walkSegment = segment;
  walkRow = row;
  walkSequence = sequence;
}

/** Enters every block into the table, the newest last, and counts what the image server does not have. */
function enterAll(): void {
  dirtyRecords = dirtyBlocks = 0;
  dirtySectors = mergedTo = 0;
  madeMs = clock_ms() - replayLagMs;
  for (let more = walkStart(); more; more = walkNext()) {
    if (rowIs(walkRow, ROW_VOID)) continue;
    if (forgets()) continue;
    const uncommitted = walkSequence > replayCommitted && walkSequence >= replayNeeded;
    let dirty = false;
    for (let data = walkRow + 1; walkIsData(data); data++) {
      const isDirty = uncommitted && rowIs(data, ROW_WRITE);
      if (isDirty) dirty = true;
      else settleClean(data);
      if (replayBlind) setRowValid(data, rowValid(data) & rowDirty(data));
      if (MUTANT == Mutant.OLDEST_COPY_WINS && tableFind(rowKey(data)) != NO_ROW) continue;
      if (isDirty || !replayBlind) tablePut(data);
    }
    if (uncommitted && (rowValid(walkRow) == RecordKind.WRITE || isEmptyMerge())) dirty = true;
    if (!dirty) continue;
    if (rowValid(walkRow) == RecordKind.RELOCATE) mergedTo = walkSequence;
    dirtyRecords += 1;
    dirtySectors += rowKey(walkRow);
    setRow(walkRow, rowKey(walkRow), madeMs, rowValid(walkRow), rowDirty(walkRow), rowFlags(walkRow));
  }
  countDirtyBlocks();
}

/** A merge of a segment of which nothing was left to move. */
function isEmptyMerge(): bool {
  return (
    rowValid(walkRow) == RecordKind.RELOCATE && (rowDirty(walkRow) & RECORD_DIRTY) != 0 && !walkIsData(walkRow + 1)
  );
}

/** Carries out a record that says that others have changed blocks. */
function forgets(): bool {
  if (MUTANT == Mutant.FORGET_NOTHING) return rowValid(walkRow) == RecordKind.FORGET;
  if (rowValid(walkRow) == RecordKind.FORGET) {
    for (let data = walkRow + 1; walkIsData(data); data++) forgetRow(tableFind(rowKey(data)));
    return true;
  }
  if (rowValid(walkRow) == RecordKind.MARK && (rowDirty(walkRow) & RECORD_FORGETS) != 0) {
    for (let row: u32 = 0; row < tableRows(); row++) forgetRow(rowIs(row, ROW_LIVE) ? row : NO_ROW);
  }
  return false;
}

function forgetRow(row: u32): void {
  if (row == NO_ROW) return;
  if (rowDirty(row) == 0) tableRemove(rowKey(row));
  else setRowValid(row, rowValid(row) & rowDirty(row));
}

/** The image server has it: nothing of it must be sent, and what the store lost of it can be had again. */
function settleClean(row: u32): void {
  setRowDirty(row, 0);
  removeRowFlags(row, ROW_LOST);
}

function countDirtyBlocks(): void {
  for (let more = walkStart(); more; more = walkNext()) {
    for (let data = walkRow + 1; walkIsData(data); data++) {
      if (rowDirty(data) != 0 && !rowIs(data, ROW_VOID) && rowIs(data, ROW_LIVE)) dirtyBlocks += 1;
    }
  }
}

// Going on

function powerOn(): bool {
  if (batch == 0) {
    if (replayPowerOns > superblock.powerOns) {
      logText('local store has lost its newest superblock');
      logValue('power_ons', superblock.powerOns);
      logValue('log', replayPowerOns);
      logEnd(LogLevel.ERROR);
    }
    superblock.powerOns = max(superblock.powerOns, replayPowerOns) + 1;
    logSetPowerOns(superblock.powerOns);
    nextSession(replayNext - 1);
    batchOperation[0] = deviceWrite(nextSuperblock(), 1, STORE_SUPERBLOCK);
    batch = 1;
    return true;
  }
  if (!batchEnded()) return false;
  const done = takeOperation(0);
  batch = 0;
  if (done) stage = Stage.POWER_ON_FLUSH;
  else refuse(StoreError.DEVICE);
  return true;
}

/** The first record after a power-on lies where a torn one may have been, and outdates it. */
function mark(): bool {
  if (MUTANT == Mutant.NO_MARK) {
    ready();
    return true;
  }
  // Every place may hold a segment, though the oldest were given up before the power went.
  if (!recordBegin(0, 0)) return reclaimStep();
  const flags = (voidsTail ? RECORD_VOIDS : 0) | (replayBlind ? RECORD_FORGETS : 0);
  markSequence = recordFinish(RecordKind.MARK, flags, 0);
  logWantStored(markSequence);
  stage = Stage.MARK_STORED;
  return true;
}

function ready(): void {
  stage = Stage.READY;
  logText('local store ready');
  logValue('segments', superblock.segments);
  logValue('power_ons', superblock.powerOns);
  logValue('record', markSequence);
  logValue('dirty_records', dirtyRecords);
  logValue('rotten', replayRotten);
  logValue('took_ms', clock_ms() - startedMs);
  logEnd(LogLevel.INFO);
}

// Operations of a stage

function batchEnded(): bool {
  for (let i: u32 = 0; i < batch; i++) {
    const operation = batchOperation[i];
    if (operation >= 0 && deviceState(operation) == OperationState.PENDING) return false;
  }
  return true;
}

/** Gives operation `i` of the batch back; true when it succeeded. */
function takeOperation(i: u32): bool {
  const operation = batchOperation[i];
  if (operation < 0) return false;
  const done = deviceState(operation) == OperationState.DONE;
  deviceRelease(operation);
  return done;
}
