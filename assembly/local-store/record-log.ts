// The head of the log: records are built in the staging ring, get their place on the store, are written, flushed, and their
// segment is summed up when it is full.
//
// A record goes through: staged (built, in the block table, readable) -> written -> stored (a flush that began after the
// write had ended has ended). The ring keeps a record until it is stored, so that a failed write or flush can be repeated
// from memory. Only one record is being built at a time.
//
// Invariants: records are numbered and placed in one order; `stored` only grows and never passes a record that is not
// written; a summary is written only when every record of its segment is stored, and before the next segment is summed up.
//
//   arena:  Staged[STAGED_MAX] | u64 first record[segments] | u64 number[segments] | u32 power-on[segments] | pad to 4096 | ring

import { nowMs } from '../clock';
import { BLOCK_SIZE } from '../config';
import { crc32c } from '../imports';
import { LogLevel, logEnd, logText, logValue } from '../log';
import { STORE_SUMMARY } from '../memory-map';
import { MUTANT, Mutant } from '../mutant';
import { statistics } from '../statistics';
import {
  addRowFlags,
  clearSegmentRows,
  ROW_HEADER,
  ROW_LOST,
  ROW_WRITE,
  saveSegmentRows,
  setRow,
  tablePut,
  tableRows,
} from './block-table';
import { deviceFlush, deviceRelease, deviceState, deviceWrite, OperationState } from './device';
import {
  BLOCK_GENERATION,
  BLOCK_GENERATION_ID,
  BLOCK_TAIL,
  ENTRY_LOST,
  LOG_START_BLOCK,
  RECORD_DIRTY,
  RECORD_ENTRIES_MAX,
  RecordHeader,
  RecordKind,
  recordEntry,
  SEGMENT_BLOCKS,
  SEGMENT_RECORD_BLOCKS,
  SUMMARY_ROWS,
  Summary,
  sealRecord,
  sealSummary,
} from './format';

/** Small records are 8 KiB: 1024 of them fill a ring of 8 MiB. */
const STAGED_MAX: u32 = 1024;
const STAGED_SIZE: u32 = 32;
/** A device that refuses the same operation this often is out of order. */
const TRIES_MAX: u32 = 3;
/** Segments that may wait for their summary while records go on in the next one. */
const UNSUMMED_MAX: u64 = 1;
/** When so much of that one is used, what comes in while the flush and the summary are written has the rest. */
const SUMMARY_URGENT_BLOCKS: u32 = SEGMENT_BLOCKS / 4;

enum StagedState {
  QUEUED = 0,
  WRITING = 1,
  WRITTEN = 2,
}

@unmanaged
class Staged {
  sequence: u64; // 0
  address: u32; // 8
  /** The row of the header. */
  row: u32; // 12
  /** Header and data. */
  blocks: u32; // 16
  state: StagedState; // 20
  operation: i32; // 24
  tries: u32; // 28
}

assert(offsetof<Staged>() == STAGED_SIZE);

// The log on the store.
let segments: u32 = 0;
let storeId: u64 = 0;
let powerOns: u32 = 0;
let headSegment: u64 = 0;
/** Blocks of the head segment that have a record. */
let headBlocks: u32 = 0;
let tailSegment: u64 = 0;
let nextSequence: u64 = 1;
/** Every segment before this one has its summary. */
let summedSegment: u64 = 0;
let firstRecords: usize = 0;
let numbers: usize = 0;
let powerOnsOf: usize = 0;

// What headers say.
let committed: u64 = 0;
let committedInHeader: u64 = 0;
let needed: u64 = 1;
let lagMs: u32 = 0;
let generation: u64 = 0;
let generationId: u64 = 0;

// What the last header said, and what the last header of the segment that waits for its summary said, which says the same: records
// after it may have made the tail, or what is forgotten, otherwise since, and be lost.
const SAID_NEEDED: i32 = 0;
const SAID_TAIL: i32 = 1;
const SAID_GENERATION: i32 = 2;
const SAID_GENERATION_ID: i32 = 3;
const said: StaticArray<u64> = [0, 0, 0, 0];
const saidAtEnd: StaticArray<u64> = [0, 0, 0, 0];

// The ring. Staged records are numbered like records: head of the queue is record `nextSequence - stagedCount`.
let staged: usize = 0;
let stagedFirst: u32 = 0;
let stagedCount: u32 = 0;
/** Of the staged ones, counted from the first: */
let stagedIssued: u32 = 0;
let ring: usize = 0;
let ringSize: u32 = 0;
let ringTail: u32 = 0;

// The record being built.
let building: bool = false;
let buildAddress: usize = 0;
let buildBlocks: u32 = 0;

// Durability.
let writtenSequence: u64 = 0;
let storedSequence: u64 = 0;
let wantedSequence: u64 = 0;
let flushOperation: i32 = -1;
let flushCovers: u64 = 0;
let flushTries: u32 = 0;
let flushFailures: u32 = 0;
/** Somebody else has written something to the device that must be durable; the flush under way sees to it; it has. */
let otherWanted: bool = false;
let flushCoversOther: bool = false;
let otherFlushed: bool = false;
/** What was wanted when the next flush was first wanted: it begins when that is written, however much is wanted by then. */
let flushTarget: u64 = 0;
/** A flush that began after the last summary had been written has ended. */
let summaryFlushed: bool = true;
let flushCoversSummary: bool = false;
let summaryOperation: i32 = -1;
/** The segment whose summary is in STORE_SUMMARY: it stays there until it has been flushed, as a flush that fails may drop it. */
let summarySegment: u64 = 0;
let summaryAgain: bool = false;
let summaryTries: u32 = 0;
let failed: bool = false;

/** What initRecordLog() needs beside the ring. */
export function recordLogOverhead(count: u32): u32 {
  return (STAGED_MAX * STAGED_SIZE + count * 20 + BLOCK_SIZE - 1) & ~(BLOCK_SIZE - 1);
}

/** Takes `size` bytes at `arena`, recordLogOverhead() of it for tables, for a log of up to `segmentsMax` segments. */
export function initRecordLog(arena: usize, size: u32, segmentsMax: u32): void {
  staged = arena;
  firstRecords = staged + STAGED_MAX * STAGED_SIZE;
  numbers = firstRecords + segmentsMax * 8;
  powerOnsOf = numbers + segmentsMax * 8;
  ring = arena + recordLogOverhead(segmentsMax);
  ringSize = size - recordLogOverhead(segmentsMax);
  stagedFirst = stagedCount = stagedIssued = 0;
  ringTail = 0;
  building = failed = false;
  flushOperation = summaryOperation = -1;
  flushTries = summaryTries = flushFailures = 0;
  summarySegment = 0;
  summaryAgain = false;
  otherWanted = flushCoversOther = otherFlushed = false;
  writtenSequence = storedSequence = wantedSequence = flushCovers = flushTarget = 0;
  summaryFlushed = true;
  committed = committedInHeader = 0;
  needed = 1;
  lagMs = 0;
}

/** The store that the log lies on; before anything is staged or replayed. */
export function openRecordLog(segmentCount: u32, id: u64): void {
  segments = segmentCount;
  storeId = id;
}

/** For the records of this power-on. */
export function logSetPowerOns(number: u32): void {
  powerOns = number;
}

/** Where recovery found the log to end: `used` blocks of segment `head` are taken, the next record is number `sequence`,
 * everything before `summed` has its summary. */
export function resumeRecordLog(tail: u64, head: u64, used: u32, sequence: u64, summed: u64, known: u64): void {
  tailSegment = tail;
  headSegment = head;
  headBlocks = used;
  nextSequence = sequence;
  summedSegment = summed;
  committed = committedInHeader = known;
  writtenSequence = storedSequence = wantedSequence = sequence - 1;
  if (used == 0) setFirstRecord(head, sequence);
}

/** What recovery has found out is what the last header said. When only the card's process was killed, what was found may not have
 * been flushed: no summary before that. */
export function recordLogResumed(): void {
  noteSaid();
  noteSaidAtEnd();
  summaryFlushed = false;
}

function noteSaid(): void {
  said[SAID_NEEDED] = needed;
  said[SAID_TAIL] = tailSegment;
  said[SAID_GENERATION] = generation;
  said[SAID_GENERATION_ID] = generationId;
}

function noteSaidAtEnd(): void {
  for (let i = 0; i <= SAID_GENERATION_ID; i++) saidAtEnd[i] = said[i];
}

/** The ring, for recovery to read into before anything is staged. */
export function recordLogScratch(): usize {
  return ring;
}

export function recordLogScratchSize(): u32 {
  return ringSize;
}

// Where things are

export function logSegments(): u32 {
  return segments;
}

export function logHeadSegment(): u64 {
  return headSegment;
}

export function logTailSegment(): u64 {
  return tailSegment;
}

/** The row of the next record, if it fits into the open segment. */
export function logHeadRow(): u32 {
  return segmentPlace(headSegment) * SEGMENT_BLOCKS + headBlocks;
}

/** Number of the next record. */
export function logNextSequence(): u64 {
  return nextSequence;
}

/** Segments that nothing needs. */
export function logFreeSegments(): u32 {
  return segments - <u32>(headSegment - tailSegment) - 1;
}

export function segmentPlace(segment: u64): u32 {
  return <u32>(segment % segments);
}

/** Number of the segment that `row` is in, which must be one from the tail to the head. */
export function segmentOfRow(row: u32): u64 {
  const headPlace = segmentPlace(headSegment);
  const place = row / SEGMENT_BLOCKS;
  return headSegment - (headPlace >= place ? headPlace - place : headPlace + segments - place);
}

/** True when the data of row `a` were logged before the data of row `b`. */
export function rowBefore(a: u32, b: u32): bool {
  const segmentA = segmentOfRow(a);
  const segmentB = segmentOfRow(b);
  return segmentA == segmentB ? a < b : segmentA < segmentB;
}

/** The row after a record, or after the last record of a segment, that the next record may have. */
export function nextSegmentRow(row: u32): u32 {
  const next = (row / SEGMENT_BLOCKS + 1) * SEGMENT_BLOCKS;
  return next == tableRows() ? 0 : next;
}

export function rowBlock(row: u32): u32 {
  return LOG_START_BLOCK + row;
}

export function setFirstRecord(segment: u64, sequence: u64): void {
  store<u64>(firstRecords + ((<usize>segmentPlace(segment)) << 3), sequence);
}

export function firstRecord(segment: u64): u64 {
  return load<u64>(firstRecords + ((<usize>segmentPlace(segment)) << 3));
}

/** The power-on of the last record of a segment: its summary may be written after a later one. */
export function setSegmentPowerOns(segment: u64, powerOn: u32): void {
  store<u32>(powerOnsOf + ((<usize>segmentPlace(segment)) << 2), powerOn);
}

export function segmentPowerOns(segment: u64): u32 {
  return load<u32>(powerOnsOf + ((<usize>segmentPlace(segment)) << 2));
}

/** Recovery's notes: the number of the segment that was found in a place, 0 for none. */
export function setFoundSegment(place: u32, segment: u64): void {
  store<u64>(numbers + ((<usize>place) << 3), segment);
}

export function foundSegment(place: u32): u64 {
  return load<u64>(numbers + ((<usize>place) << 3));
}

// Progress

export function logStored(): u64 {
  if (MUTANT == Mutant.STORED_WITHOUT_FLUSH) return writtenSequence;
  return storedSequence;
}

/** Every staged record is written, stored or not: reading the store gives what was staged. When the device does not write any
 * more it gives what is there; the checksums tell. */
export function logWritten(): bool {
  return failed || writtenSequence + 1 == nextSequence;
}

/** A record is being built, perhaps of blocks as they were when it was begun. */
export function logBuilding(): bool {
  return building;
}

/** The device refuses to write: nothing can be stored any more. */
export function logFailed(): bool {
  return failed;
}

/** Asks for everything up to record `sequence` to be stored. */
export function logWantStored(sequence: u64): void {
  if (sequence > wantedSequence) wantedSequence = sequence;
}

// The device is flushed by the log alone: a flush that fails may drop what anybody has written, and whoever has must know.

/** Asks for a flush of what has been written beside the log by now. */
export function logWantOtherFlushed(): void {
  otherWanted = true;
  otherFlushed = false;
}

/** True when it has succeeded: what was written is durable, unless logFlushFailures() has changed since the write began. */
export function logOtherFlushed(): bool {
  return otherFlushed;
}

/** How many flushes have failed. */
export function logFlushFailures(): u32 {
  return flushFailures;
}

/** Every record up to `sequence` is committed by the image server; later headers say so. */
export function logSetCommitted(sequence: u64): void {
  committed = sequence;
}

/** The last header made does not say yet what is committed. */
export function logCommitUnsaid(): bool {
  return committedInHeader != committed;
}

export function logCommitted(): u64 {
  return committed;
}

/** Records before `sequence` do not matter to the image server any more; later headers say so. */
export function logSetNeeded(sequence: u64): void {
  needed = sequence;
}

/** For the next header: how long the oldest uncommitted write has been waiting. */
export function logSetLagMs(ms: u32): void {
  lagMs = ms;
}

/** For headers: the generation that the clean blocks are right for. */
export function logSetGeneration(which: u64, id: u64): void {
  generation = which;
  generationId = id;
}

export function logGeneration(): u64 {
  return generation;
}

export function logGenerationId(): u64 {
  return generationId;
}

export function logNeeded(): u64 {
  return needed;
}

/** The oldest segment is free; no row of it is live or must be sent. */
export function logDropTail(): void {
  assert(tailSegment < headSegment);
  clearSegmentRows(segmentPlace(tailSegment));
  tailSegment += 1;
}

// Building a record

/** Starts a record of `blocks` data blocks, leaving at least `reserve` segments free. False when there is no place for it
 * now, on the store or in the ring, or another one is being built. */
export function recordBegin(blocks: u32, reserve: u32): bool {
  assert(blocks <= RECORD_ENTRIES_MAX);
  // Not even into the open segment: its rest is for whoever has opened it.
  if (building || failed || logFreeSegments() < reserve) return false;
  if (stagedCount == STAGED_MAX) evict();
  const address = stagedCount < STAGED_MAX ? reserveRing((1 + blocks) * BLOCK_SIZE) : 0;
  if (address == 0) {
    logWantStored(nextSequence - 1);
    return false;
  }
  if (headBlocks + 1 + blocks > SEGMENT_RECORD_BLOCKS && !openSegment(reserve)) return false;
  building = true;
  buildAddress = address;
  buildBlocks = blocks;
  memory.fill(address, 0, BLOCK_SIZE);
  changetype<RecordHeader>(address).entryCount = <u16>blocks;
  return true;
}

/** Where data block `i` of the record being built lies. */
export function recordData(i: u32): usize {
  assert(building);
  return buildAddress + <usize>(1 + i) * BLOCK_SIZE;
}

/** Where data block `i` of the record that was built last lies, and its valid mask. */
export function recordAddress(i: u32): usize {
  return buildAddress + <usize>(1 + i) * BLOCK_SIZE;
}

export function recordMask(i: u32): u8 {
  return recordEntry(buildAddress, i).valid;
}

/** Says what data block `i` is: its data must be complete. */
export function recordSetEntry(i: u32, block: u32, valid: u8, dirty: u8, flags: u8): void {
  assert(i < buildBlocks);
  const entry = recordEntry(buildAddress, i);
  entry.block = block;
  entry.checksum = crc32c(0, recordData(i), BLOCK_SIZE);
  entry.valid = valid;
  entry.dirty = dirty;
  entry.flags = flags;
}

/** Leaves out data block `i`: the ones behind it move up. Before any entry from `i` on is set. */
export function recordDrop(i: u32): void {
  assert(building && i < buildBlocks);
  memory.copy(recordData(i), recordData(i) + BLOCK_SIZE, <usize>(buildBlocks - i - 1) * BLOCK_SIZE);
  buildBlocks -= 1;
  changetype<RecordHeader>(buildAddress).entryCount = <u16>buildBlocks;
}

/** Data blocks that still fit into the open segment as one record. */
export function logHeadRoom(): u32 {
  const left = SEGMENT_RECORD_BLOCKS - headBlocks;
  return left > 0 ? left - 1 : 0;
}

/** Entry `i` of a FORGET record. */
export function recordSetForgotten(i: u32, block: u32): void {
  assert(i < buildBlocks);
  const entry = recordEntry(buildAddress, i);
  entry.block = block;
  entry.checksum = 0;
  entry.valid = entry.dirty = entry.flags = 0;
}

/** The record has only its first `count` entries. */
export function recordTrim(count: u32): void {
  assert(building && count <= buildBlocks);
  buildBlocks = count;
  changetype<RecordHeader>(buildAddress).entryCount = <u16>count;
}

export function recordAbandon(): void {
  assert(building);
  building = false;
}

/** Gives the record its number and place, and enters its blocks into the block table. Returns its number. */
export function recordFinish(kind: RecordKind, flags: u8, sectors: u32): u64 {
  assert(building);
  building = false;
  const sequence = nextSequence;
  const header = changetype<RecordHeader>(buildAddress);
  header.kind = <u8>kind;
  header.flags = flags;
  header.storeId = storeId;
  header.segment = headSegment;
  header.sequence = sequence;
  header.committed = committed;
  header.stored = storedSequence;
  header.powerOns = powerOns;
  header.sectors = sectors;
  header.needed = needed;
  header.lagMs = lagMs;
  noteSaid();
  putEnd(buildAddress, said);
  sealRecord(buildAddress);
  committedInHeader = committed;
  const row = logHeadRow();
  enterRows(buildAddress, row, nowMs);
  if (kind != RecordKind.FORGET) for (let i: u32 = 0; i < buildBlocks; i++) tablePut(row + 1 + i);
  enqueue(sequence, row);
  setSegmentPowerOns(headSegment, powerOns);
  headBlocks += 1 + buildBlocks;
  nextSequence += 1;
  // The summary of the segment before waits for its last records. Mostly the end of the PC's command has them stored soon: a
  // flush of their own would hold that one up.
  if (headBlocks > SUMMARY_URGENT_BLOCKS) logWantStored(firstRecord(headSegment) - 1);
  return sequence;
}

/** What headers and summaries say at their end. */
function putEnd(address: usize, values: StaticArray<u64>): void {
  store<u64>(address + BLOCK_TAIL, values[SAID_TAIL]);
  store<u64>(address + BLOCK_GENERATION, values[SAID_GENERATION]);
  store<u64>(address + BLOCK_GENERATION_ID, values[SAID_GENERATION_ID]);
}

/** Fills in the rows of the record whose header is at `address`. */
export function enterRows(address: usize, row: u32, madeMs: u32): void {
  const header = changetype<RecordHeader>(address);
  const isWrite = header.kind == RecordKind.WRITE || (header.flags & RECORD_DIRTY) != 0;
  setRow(row, header.sectors, madeMs, header.kind, header.flags, ROW_HEADER);
  for (let i: u32 = 0; i < <u32>header.entryCount; i++) {
    const entry = recordEntry(address, i);
    setRow(row + 1 + i, entry.block, entry.checksum, entry.valid, entry.dirty, isWrite ? ROW_WRITE : 0);
    if ((entry.flags & ENTRY_LOST) != 0) addRowFlags(row + 1 + i, ROW_LOST);
  }
}

/** Where block `row` lies in the ring, 0 when its record has left it. `sequence`: number of its record. */
export function stagedData(sequence: u64, row: u32): usize {
  const first = nextSequence - stagedCount;
  if (sequence < first || sequence >= nextSequence) return 0;
  const record = stagedAt(<u32>(sequence - first));
  assert(row >= record.row && row < record.row + record.blocks);
  return record.address + <usize>(row - record.row) * BLOCK_SIZE;
}

function enqueue(sequence: u64, row: u32): void {
  const record = stagedAt(stagedCount);
  record.sequence = sequence;
  record.address = <u32>buildAddress;
  record.row = row;
  record.blocks = 1 + buildBlocks;
  record.state = StagedState.QUEUED;
  record.tries = 0;
  stagedCount += 1;
  ringTail = <u32>(buildAddress - ring) + record.blocks * BLOCK_SIZE;
}

function stagedAt(i: u32): Staged {
  return changetype<Staged>(staged + <usize>((stagedFirst + i) % STAGED_MAX) * STAGED_SIZE);
}

function openSegment(reserve: u32): bool {
  if (logFreeSegments() <= reserve || headSegment >= summedSegment + UNSUMMED_MAX) {
    logWantStored(nextSequence - 1);
    return false;
  }
  headSegment += 1;
  headBlocks = 0;
  noteSaidAtEnd();
  clearSegmentRows(segmentPlace(headSegment));
  setFirstRecord(headSegment, nextSequence);
  return true;
}

// The ring

/** Where `length` bytes in one piece are free, 0 when nowhere. */
function reserveRing(length: u32): usize {
  let address = tryReserve(length);
  if (address == 0 && evict()) address = tryReserve(length);
  return address;
}

function tryReserve(length: u32): usize {
  if (stagedCount == 0) return length <= ringSize ? ring : 0;
  const head = <u32>(<usize>stagedAt(0).address - ring);
  if (ringTail > head) {
    if (ringTail + length <= ringSize) return ring + ringTail;
    return length < head ? ring : 0;
  }
  return ringTail + length < head ? ring + ringTail : 0;
}

/** Lets stored records go. */
function evict(): bool {
  let any = false;
  while (stagedCount > 0 && stagedAt(0).sequence <= storedSequence) {
    stagedFirst = (stagedFirst + 1) % STAGED_MAX;
    stagedCount -= 1;
    stagedIssued -= 1;
    any = true;
  }
  return any;
}

// Writing, flushing, summing up

/** Goes on as far as it can. True when anything has ended: what begins changes nothing for anybody else. */
export function recordLogStep(): bool {
  let progressed = takeWritten();
  progressed = takeFlushed() || progressed;
  progressed = takeSummed() || progressed;
  if (failed) return progressed;
  issueWrites();
  issueFlush();
  issueSummary();
  return progressed;
}

function issueWrites(): void {
  while (stagedIssued < stagedCount) {
    const record = stagedAt(stagedIssued);
    if (record.state == StagedState.QUEUED) {
      const blocks = writtenBlocks(record);
      const operation = deviceWrite(rowBlock(record.row), blocks, record.address);
      if (operation < 0) break;
      record.operation = operation;
      record.state = StagedState.WRITING;
      statistics.storeBlocksWritten += blocks;
    }
    stagedIssued += 1;
  }
}

/** Of a FORGET record there is nothing to write but its header. */
function writtenBlocks(record: Staged): u32 {
  return changetype<RecordHeader>(<usize>record.address).kind == RecordKind.FORGET ? 1 : record.blocks;
}

function takeWritten(): bool {
  if (writtenSequence + 1 == nextSequence) return false;
  let any = false;
  const first = nextSequence - stagedCount;
  let i = writtenSequence >= first ? <u32>(writtenSequence + 1 - first) : 0;
  for (; i < stagedIssued; i++) {
    const record = stagedAt(i);
    if (record.state != StagedState.WRITING) continue;
    const state = deviceState(record.operation);
    if (state == OperationState.PENDING) continue;
    deviceRelease(record.operation);
    any = true;
    if (state == OperationState.DONE) {
      record.state = StagedState.WRITTEN;
      continue;
    }
    record.state = StagedState.QUEUED;
    record.tries += 1;
    stagedIssued = i;
    if (record.tries >= TRIES_MAX) fail('write', rowBlock(record.row), record.blocks);
    break;
  }
  while (writtenSequence + 1 < nextSequence) {
    const next = stagedAt(<u32>(writtenSequence + 1 - first));
    if (next.state != StagedState.WRITTEN) break;
    writtenSequence += 1;
  }
  return any;
}

function issueFlush(): void {
  if (flushOperation >= 0 || !(otherWanted || summaryFlushIsDue() || flushIsDue())) return;
  flushOperation = deviceFlush();
  if (flushOperation < 0) return;
  flushCoversOther = otherWanted;
  otherWanted = false;
  flushCovers = writtenSequence;
  flushCoversSummary = summaryOperation < 0 && !summaryAgain;
  statistics.storeFlushes += 1;
}

/** The next summary waits for nothing else. */
function summaryFlushIsDue(): bool {
  return !summaryFlushed && summaryOperation < 0 && !summaryAgain && segmentIsStored();
}

/** There is a segment to be summed up, and all of its records are stored. */
function segmentIsStored(): bool {
  return summedSegment < headSegment && firstRecord(summedSegment + 1) <= storedSequence + 1;
}

function flushIsDue(): bool {
  if (wantedSequence <= storedSequence || writtenSequence <= storedSequence) return false;
  // A flush for a part only would make the rest wait for two.
  if (flushTarget <= storedSequence) flushTarget = wantedSequence;
  return writtenSequence >= flushTarget;
}

function takeFlushed(): bool {
  if (flushOperation < 0) return false;
  const state = deviceState(flushOperation);
  if (state == OperationState.PENDING) return false;
  deviceRelease(flushOperation);
  flushOperation = -1;
  if (state == OperationState.DONE) {
    storedSequence = flushCovers;
    flushTries = 0;
    if (flushCoversSummary) {
      summaryFlushed = true;
      summarySegment = 0;
    }
    if (flushCoversOther) otherFlushed = true;
  } else {
    flushFailures += 1;
    if (summarySegment != 0) summaryAgain = true;
    if (flushCoversOther) otherWanted = true;
    rewriteUnstored();
    flushTries += 1;
    if (flushTries >= TRIES_MAX) fail('flush', 0, 0);
  }
  return true;
}

/** A flush that failed may have dropped what was written: write it again, it is all still in the ring. */
function rewriteUnstored(): void {
  writtenSequence = storedSequence;
  const first = nextSequence - stagedCount;
  for (let i: u32 = 0; i < stagedCount; i++) {
    const record = stagedAt(i);
    if (record.sequence > storedSequence && record.state == StagedState.WRITTEN) record.state = StagedState.QUEUED;
  }
  stagedIssued = storedSequence >= first ? <u32>(storedSequence + 1 - first) : 0;
}

function issueSummary(): void {
  if (summaryOperation >= 0) return;
  if (!summaryAgain) {
    if (!summaryFlushed || !segmentIsStored()) return;
    makeSummary(summedSegment);
    summarySegment = summedSegment;
    summaryAgain = true;
  }
  const place = segmentPlace(summarySegment);
  summaryOperation = deviceWrite(rowBlock(place * SEGMENT_BLOCKS + SEGMENT_RECORD_BLOCKS), 1, STORE_SUMMARY);
  if (summaryOperation < 0) return;
  summaryAgain = false;
  summaryFlushed = flushCoversSummary = false;
}

function makeSummary(segment: u64): void {
  memory.fill(STORE_SUMMARY, 0, BLOCK_SIZE);
  const summary = changetype<Summary>(STORE_SUMMARY);
  summary.powerOns = segmentPowerOns(segment);
  summary.storeId = storeId;
  summary.segment = segment;
  summary.firstRecord = firstRecord(segment);
  summary.records = <u32>(firstRecord(segment + 1) - firstRecord(segment));
  summary.committed = committed;
  summary.needed = saidAtEnd[SAID_NEEDED];
  summary.lagMs = lagMs;
  putEnd(STORE_SUMMARY, saidAtEnd);
  saveSegmentRows(segmentPlace(segment), STORE_SUMMARY + SUMMARY_ROWS);
  sealSummary(STORE_SUMMARY);
}

function takeSummed(): bool {
  if (summaryOperation < 0) return false;
  const state = deviceState(summaryOperation);
  if (state == OperationState.PENDING) return false;
  deviceRelease(summaryOperation);
  summaryOperation = -1;
  if (state == OperationState.DONE) {
    summedSegment = max(summedSegment, summarySegment + 1);
    summaryTries = 0;
  } else {
    summaryAgain = true;
    summaryTries += 1;
    if (summaryTries >= TRIES_MAX) fail('summary', <u32>segmentPlace(summarySegment), 1);
  }
  return true;
}

function fail(what: string, block: u32, count: u32): void {
  failed = true;
  logText('local store out of order, nothing can be stored: ');
  logText(what);
  logValue('block', block);
  logValue('count', count);
  logEnd(LogLevel.ERROR);
}
