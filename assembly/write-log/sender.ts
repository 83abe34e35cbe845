// Sending: a cursor walks the records of the log in order and sends the sectors that the PC wrote, several requests at a time.
//
// The data come from the staging ring, from the RAM cache or back from the store, into a buffer of their own, so that nothing
// else has to wait for the link. Of a block that was written several times in the epoch only the newest copy goes.
//
// Invariant: only stored records are sent, and requests are handed to the link in the order of the log.
//
//   arena:  Job[JOBS_MAX] | pad to 4096 | buffers of 128 KiB [JOBS_MAX]

import { cacheAddress, cacheFind, cacheMask, cacheState, SlotState } from '../cache/cache';
import { changesLearnt } from '../changes/changes';
import { BLOCK_SIZE, NBD_REQUEST_SIZE_MAX, SECTOR_SIZE, SECTORS_PER_BLOCK } from '../config';
import { crc32c, sha256 } from '../imports';
import {
  NO_ROW,
  ROW_HEADER,
  ROW_LIVE,
  ROW_LOST,
  ROW_VOID,
  rowChecksum,
  rowDirty,
  rowIs,
  rowKey,
  rowUnused,
  rowValid,
  tableFind,
} from '../local-store/block-table';
import { deviceRead, deviceRelease, deviceState, OperationState } from '../local-store/device';
import { RECORD_DIRTY, RecordKind, SEGMENT_BLOCKS, SEGMENT_RECORD_BLOCKS } from '../local-store/format';
import { storeCheckRead } from '../local-store/local-store';
import { logNextSequence, logStored, nextSegmentRow, rowBefore, rowBlock, stagedData } from '../local-store/record-log';
import { LogLevel, logEnd, logText, logValue } from '../log';
import { MUTANT, Mutant } from '../mutant';
import {
  NbdError,
  NbdState,
  nbdAsk,
  nbdLeaveOut,
  nbdRelease,
  nbdRestart,
  nbdResult,
  nbdSetPiece,
  nbdState,
  nbdWrite,
} from '../nbd/client';
import { placeAsk } from '../nbd/place';

/** Some of the 16 requests are left for reads. */
export const JOBS_MAX: u32 = 12;
const JOB_SIZE: u32 = 56;
/** The job's blocks are read all at once. */
const ALL_AT_ONCE: u32 = 0xffffffff;
/** Reads of a block before it is lost. */
const TRIES_MAX: u32 = 3;
const BUFFER_BLOCKS: u32 = NBD_REQUEST_SIZE_MAX / BLOCK_SIZE;
/** SHA-256 of a block. */
const HASH_SIZE: u32 = 32;
/** Jobs, then the hashes of each job's blocks: 12 * 32 * 32 bytes. */
const HEAD_SIZE: u32 = BLOCK_SIZE + JOBS_MAX * BUFFER_BLOCKS * HASH_SIZE;

assert(HEAD_SIZE % BLOCK_SIZE == 0);

export const SENDER_SIZE: u32 = HEAD_SIZE + JOBS_MAX * NBD_REQUEST_SIZE_MAX;

enum JobState {
  READING = 0,
  /** The data are here. */
  FILLED = 1,
  /** The server is asked which of the blocks it has. */
  ASKED = 2,
  /** It has answered, or is not asked: what it lacks is to be sent. */
  ANSWERED = 3,
  SENT = 4,
  DONE = 5,
}

@unmanaged
class Job {
  /** Of the record. */
  sequence: u64; // 0
  buffer: u32; // 8
  row: u32; // 12
  rows: u32; // 16
  /** First sector of the first block, and how many from there on. */
  sector: u32; // 20
  sectors: u32; // 24
  operation: i32; // 28
  request: i32; // 32
  state: JobState; // 36
  tries: u32; // 40
  /** Blocks that the server has, and has written: bit i for block i. */
  known: u32; // 44
  /** The block that is being read by itself, after all at once were not right: one that is bad must not cost its neighbours. */
  piece: u32; // 48
  reserved: u32; // 52
}

assert(offsetof<Job>() == JOB_SIZE);
assert(JOBS_MAX * JOB_SIZE <= BLOCK_SIZE);

let jobs: usize = 0;
let buffers: usize = 0;
let jobFirst: u32 = 0;
let jobCount: u32 = 0;

// The cursor: record `sequence` at row `recordRow`; in it, from sector `sector` of row `row` on.
let sequence: u64 = 1;
let recordRow: u32 = 0;
let row: u32 = 0;
let sector: u32 = 0;

let resetting: bool = false;
let halted: bool = false;
let haltedRow: u32 = 0;

export function initSender(arena: usize): void {
  jobs = arena;
  buffers = arena + HEAD_SIZE;
  jobFirst = jobCount = 0;
  resetting = halted = false;
}

/** Number of the first record that is not completely handed to the link. */
export function senderSequence(): u64 {
  return sequence;
}

/** Number of the first record that the server has not completely confirmed. */
export function senderConfirmed(): u64 {
  return jobCount == 0 ? sequence : jobAt(0).sequence;
}

/** Nothing is on its way. */
export function senderIdle(): bool {
  return jobCount == 0;
}

/** True when the store has lost what would have to be sent: the epoch must not be committed. */
export function senderHalted(): bool {
  return halted;
}

/** The row that is lost, while the sender is halted. */
export function senderHaltedRow(): u32 {
  return haltedRow;
}

/** Tries again; senderReset() says from where. */
export function senderResume(): void {
  halted = false;
}

/** Sends from record `from` on, whose header is at `fromRow`, once nothing is on its way any more. */
export function senderReset(from: u64, fromRow: u32): void {
  sequence = from;
  leftOutTo = 0;
  startRecord(fromRow);
  resetting = jobCount > 0;
}

function startRecord(at: u32): void {
  recordRow = at;
  row = at + 1;
  sector = 0;
}

/** Sends records before number `end`, of an epoch that ends there. True when anything moved. */
export function senderStep(end: u64): bool {
  let progressed = takeJobs();
  if (resetting) {
    if (jobCount > 0) return progressed;
    resetting = false;
    progressed = true;
  }
  if (halted || !changesLearnt()) return progressed;
  progressed = makeJobs(end) || progressed;
  return sendJobs() || progressed;
}

function jobAt(i: u32): Job {
  return changetype<Job>(jobs + <usize>((jobFirst + i) % JOBS_MAX) * JOB_SIZE);
}

// Jobs

/** Takes what has been read, and what the server has answered. */
function takeJobs(): bool {
  let any = false;
  for (let i: u32 = 0; i < jobCount; i++) {
    const job = jobAt(i);
    if (job.state == JobState.READING) any = takeRead(job) || any;
    else if (job.state == JobState.SENT) any = takeAnswer(job) || any;
    else if (job.state == JobState.ASKED) any = takeKnown(job) || any;
    else if (resetting) job.state = JobState.DONE;
  }
  while (jobCount > 0 && jobAt(0).state == JobState.DONE) {
    jobFirst = (jobFirst + 1) % JOBS_MAX;
    jobCount -= 1;
    any = true;
  }
  return any;
}

function takeRead(job: Job): bool {
  // When no operation was free before.
  if (job.operation < 0) return startRead(job);
  const state = deviceState(job.operation);
  if (state == OperationState.PENDING) return false;
  deviceRelease(job.operation);
  if (resetting) {
    job.state = JobState.DONE;
    return true;
  }
  const readable = state == OperationState.DONE;
  if (job.piece == ALL_AT_ONCE) takeAll(job, readable);
  else takePiece(job, readable);
  return true;
}

function startRead(job: Job): bool {
  const all = job.piece == ALL_AT_ONCE;
  const first: u32 = all ? 0 : job.piece;
  const address = <usize>job.buffer + <usize>first * BLOCK_SIZE;
  job.operation = deviceRead(rowBlock(job.row + first), all ? job.rows : 1, address);
  job.state = JobState.READING;
  return job.operation >= 0;
}

function isRight(job: Job, i: u32): bool {
  return crc32c(0, <usize>job.buffer + <usize>i * BLOCK_SIZE, BLOCK_SIZE) == rowChecksum(job.row + i);
}

function takeAll(job: Job, readable: bool): void {
  let right: u32 = 0;
  while (readable && right < job.rows && isRight(job, right)) right += 1;
  job.state = JobState.FILLED;
  if (right == job.rows) return;
  job.piece = 0;
  startRead(job);
}

/** A second read may bring what the first did not. If not, the log cannot be sent as it was written, and must not be sent
 * otherwise. */
function takePiece(job: Job, readable: bool): void {
  if (readable && isRight(job, job.piece)) {
    job.piece += 1;
    job.tries = 0;
    if (job.piece == job.rows) job.state = JobState.FILLED;
    else startRead(job);
    return;
  }
  job.tries += 1;
  if (job.tries < TRIES_MAX) {
    startRead(job);
    return;
  }
  const bad = job.row + job.piece;
  storeCheckRead(bad, <usize>job.buffer + <usize>job.piece * BLOCK_SIZE, false);
  job.state = JobState.DONE;
  halt(bad);
}

function halt(which: u32): void {
  if (halted) return;
  halted = true;
  haltedRow = which;
  logText('uncommitted data lost by the local store, nothing more is sent');
  logValue('lba', <u64>rowKey(which) * SECTORS_PER_BLOCK);
  logValue('record', sequence);
  logEnd(LogLevel.ERROR);
}

function takeAnswer(job: Job): bool {
  const state = nbdState(job.request);
  if (state == NbdState.PENDING) return false;
  if (state == NbdState.DONE || resetting) {
    nbdRelease(job.request);
    job.state = JobState.DONE;
    return true;
  }
  // A server that refuses is left alone for a back-off. The write log starts again when the connection has.
  if (state == NbdState.FAILED) nbdRestart(NbdError.REQUEST_REFUSED);
  return false;
}

function sendJobs(): bool {
  let any = false;
  for (let i: u32 = 0; i < jobCount; i++) any = askOrNot(i) || any;
  for (let i: u32 = 0; i < jobCount; i++) {
    const job = jobAt(i);
    if (job.state >= JobState.SENT) continue;
    if (job.state != JobState.ANSWERED || !send(job)) break;
    any = true;
  }
  return any;
}

// Asking: what the server has anywhere need not be sent. An answer writes the blocks, so nothing is asked about that an
// earlier job has still to write.

/** Asks about the job's blocks if that is of use. True when the job went on. */
function askOrNot(i: u32): bool {
  const job = jobAt(i);
  if (job.state != JobState.FILLED) return false;
  const whole = job.sector == 0 && job.sectors % SECTORS_PER_BLOCK == 0;
  if (!placeAsk() || !whole || meetsEarlier(i)) {
    job.state = JobState.ANSWERED;
    return true;
  }
  const hashes = jobs + BLOCK_SIZE + <usize>((jobFirst + i) % JOBS_MAX) * (BUFFER_BLOCKS * HASH_SIZE);
  const request = nbdAsk(<u64>rowKey(job.row) * BLOCK_SIZE, job.rows * BLOCK_SIZE);
  if (request < 0) return false;
  for (let block: u32 = 0; block < job.rows; block++) {
    sha256(<usize>job.buffer + block * BLOCK_SIZE, BLOCK_SIZE, hashes + block * HASH_SIZE);
  }
  nbdSetPiece(request, 0, hashes);
  job.request = request;
  job.state = JobState.ASKED;
  return true;
}

function meetsEarlier(i: u32): bool {
  const from = rowKey(jobAt(i).row);
  const to = from + jobAt(i).rows;
  for (let earlier: u32 = 0; earlier < i; earlier++) {
    const job = jobAt(earlier);
    const first = rowKey(job.row);
    if (job.state != JobState.DONE && first < to && from < first + job.rows) return true;
  }
  return false;
}

function takeKnown(job: Job): bool {
  const state = nbdState(job.request);
  if (state == NbdState.PENDING) return false;
  if (state == NbdState.FAILED && !resetting) nbdRestart(NbdError.REQUEST_REFUSED);
  if (state != NbdState.DONE && !resetting) return false;
  job.known = <u32>nbdResult(job.request);
  nbdRelease(job.request);
  const all = job.rows == 32 ? 0xffffffff : ((<u32>1) << job.rows) - 1;
  job.state = resetting || (job.known & all) == all ? JobState.DONE : JobState.ANSWERED;
  return true;
}

function send(job: Job): bool {
  const length = job.sectors * SECTOR_SIZE;
  const offset = <u64>rowKey(job.row) * BLOCK_SIZE + job.sector * SECTOR_SIZE;
  const request = nbdWrite(offset, length, 0);
  if (request < 0) return false;
  const start = <usize>job.buffer + job.sector * SECTOR_SIZE;
  for (let piece: u32 = 0; piece * BLOCK_SIZE < length; piece++) {
    nbdSetPiece(request, piece, start + piece * BLOCK_SIZE);
  }
  if (job.known != 0) nbdLeaveOut(request, job.known);
  job.request = request;
  job.state = JobState.SENT;
  return true;
}

// The cursor

function makeJobs(end: u64): bool {
  let any = false;
  while (sequence < end && jobCount < JOBS_MAX && !halted) {
    settle();
    if (!atData()) {
      nextRecord();
      any = true;
      continue;
    }
    if ((sequence > logStored() && MUTANT != Mutant.SEND_UNSTORED) || !makeJob(end)) break;
    any = true;
  }
  return any;
}

/** The cursor's record begins in the next segment if this one holds no more. */
function settle(): void {
  if (recordRow % SEGMENT_BLOCKS < SEGMENT_RECORD_BLOCKS && !rowUnused(recordRow)) return;
  startRecord(nextSegmentRow(recordRow));
}

/** True when there is something to send in the cursor's record, at `row` from `sector` on. */
function atData(): bool {
  assert(rowIs(recordRow, ROW_HEADER));
  const isWrite = rowValid(recordRow) == RecordKind.WRITE || (rowDirty(recordRow) & RECORD_DIRTY) != 0;
  if (!isWrite || rowIs(recordRow, ROW_VOID)) return false;
  while (isData(row)) {
    const left = <u32>rowDirty(row) >> sector;
    if (left != 0) {
      sector += ctz(left);
      return true;
    }
    row += 1;
    sector = 0;
  }
  return false;
}

function isData(which: u32): bool {
  return which % SEGMENT_BLOCKS < SEGMENT_RECORD_BLOCKS && !rowUnused(which) && !rowIs(which, ROW_HEADER);
}

function nextRecord(): void {
  let next = recordRow + 1;
  while (isData(next)) next += 1;
  sequence += 1;
  startRecord(next);
}

/** Makes a job of the sectors from the cursor on that follow each other, and moves the cursor behind them. */
function makeJob(end: u64): bool {
  if (outdated(row, end)) {
    row += 1;
    sector = 0;
    return true;
  }
  let rows: u32 = 1;
  let stop = runEnd(row, sector);
  while (stop == SECTORS_PER_BLOCK && rows < BUFFER_BLOCKS && goesOn(row + rows, end)) {
    stop = runEnd(row + rows, 0);
    rows += 1;
  }
  if (lostIn(rows)) return false;
  const job = jobAt(jobCount);
  job.sequence = sequence;
  job.buffer = <u32>(buffers + <usize>((jobFirst + jobCount) % JOBS_MAX) * NBD_REQUEST_SIZE_MAX);
  job.row = row;
  job.rows = rows;
  job.sector = sector;
  job.sectors = (rows - 1) * SECTORS_PER_BLOCK + stop - sector;
  job.tries = 0;
  job.known = 0;
  if (!fill(job)) return false;
  jobCount += 1;
  row += rows - 1;
  sector = stop;
  if (sector == SECTORS_PER_BLOCK) {
    row += 1;
    sector = 0;
  }
  return true;
}

/** True when a later record of the epoch has the block: it has all that this one has. */
function outdated(which: u32, end: u64): bool {
  if (rowIs(which, ROW_LIVE)) return false;
  const newest = tableFind(rowKey(which));
  if (newest == NO_ROW || rowDirty(newest) == 0) return false;
  if (end != logNextSequence()) return rowBefore(newest, epochEndRow);
  leftOutTo = end;
  return true;
}

/** First row behind the epoch that is being sent. */
let epochEndRow: u32 = 0;

/** Of an epoch that is open: what was left out because newer copies lie before record number `leftOutTo`. */
let leftOutTo: u64 = 0;

/** An epoch must not end before this record: what was not sent for it is there. */
export function senderLeftOutTo(): u64 {
  return leftOutTo;
}

export function senderSetEpochEnd(atRow: u32): void {
  epochEndRow = atRow;
}

/** The first sector behind the dirty ones that begin at `from`. */
function runEnd(which: u32, from: u32): u32 {
  const ones = ~(<u32>rowDirty(which) >> from);
  return from + ctz(ones);
}

function goesOn(which: u32, end: u64): bool {
  return isData(which) && rowKey(which) == rowKey(which - 1) + 1 && (rowDirty(which) & 1) != 0 && !outdated(which, end);
}

function lostIn(rows: u32): bool {
  for (let i: u32 = 0; i < rows; i++) {
    if (!rowIs(row + i, ROW_LOST)) continue;
    halt(row + i);
    return true;
  }
  return false;
}

/** Brings the job's blocks into its buffer. False when that cannot be started now. */
function fill(job: Job): bool {
  const length = <usize>job.rows * BLOCK_SIZE;
  job.state = JobState.FILLED;
  const ring = stagedData(sequence, job.row);
  if (ring != 0) {
    memory.copy(job.buffer, ring, length);
    return true;
  }
  if (fillFromCache(job)) return true;
  job.piece = ALL_AT_ONCE;
  return startRead(job);
}

function fillFromCache(job: Job): bool {
  for (let i: u32 = 0; i < job.rows; i++) {
    const slot = cacheFind(rowKey(job.row + i));
    if (!rowIs(job.row + i, ROW_LIVE) || slot < 0 || cacheState(slot) != SlotState.READY) return false;
    if ((rowDirty(job.row + i) & ~cacheMask(slot)) != 0) return false;
    memory.copy(<usize>job.buffer + <usize>i * BLOCK_SIZE, cacheAddress(slot), BLOCK_SIZE);
  }
  return true;
}
