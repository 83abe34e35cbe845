// The write log: every write of the PC, in order, from the moment it is taken until the image server has committed it.
//
// Writes are records of the local store (append.ts). An epoch, a run of whole commands, is closed by FLUSH CACHE, by age or by
// size; it is sent (sender.ts), and once the server has all of it an NBD flush commits it as one generation. No write of the
// next epoch is sent before that, so what a flush commits is exactly the epoch. A server discards what it has not committed
// when a connection breaks (DESIGN.md decision 5): then the epoch is sent again from its start.
//
// Invariants:
//   - Only stored records are sent: what the server may have committed is always still in the log after a power cut.
//   - After a power-on the first epoch is everything that was recovered, so the server, which may have committed any part of
//     it, can only go forward. The same holds for what was merged.
//   - An epoch ends between two commands.

import { changesCommitted, changesLearnt, changesOwn, changesReleased, changesWait } from '../changes/changes';
import { nowMs } from '../clock';
import { SECTOR_SIZE, SECTORS_PER_BLOCK } from '../config';
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
  tableRows,
} from '../local-store/block-table';
import {
  RECORD_BEGINS,
  RECORD_DIRTY,
  RECORD_ENDS,
  RecordKind,
  SEGMENT_BLOCKS,
  SEGMENT_RECORD_BLOCKS,
} from '../local-store/format';
import { localStoreReady, storeLiftLoss, storeSessionUsed, storeSetCommitted } from '../local-store/local-store';
import { mergeActive, mergePossible, mergeStart, SEGMENTS_RESERVED } from '../local-store/reclaim';
import {
  firstRecord,
  logCommitted,
  logCommitUnsaid,
  logFailed,
  logFreeSegments,
  logHeadRoom,
  logHeadRow,
  logNeeded,
  logNextSequence,
  logSegments,
  logSetCommitted,
  logSetLagMs,
  logSetNeeded,
  logStored,
  logTailSegment,
  logWantStored,
  nextSegmentRow,
  recordBegin,
  recordFinish,
  segmentPlace,
} from '../local-store/record-log';
import {
  recoveredDirtyBlocks,
  recoveredDirtyRecords,
  recoveredDirtySectors,
  recoveredMergedTo,
  recoveredSinceMs,
} from '../local-store/recovery';
import { CONTROL } from '../memory-map';
import { MUTANT, Mutant } from '../mutant';
import {
  NbdError,
  NbdState,
  nbdConnection,
  nbdFlush,
  nbdRelease,
  nbdRestart,
  nbdResult,
  nbdResult2,
  nbdState,
  nbdUp,
} from '../nbd/client';
import { placeAgreed, placeEarly, placeIsEarly, placeRecords } from '../nbd/place';
import { AcknowledgementPoint, acknowledgementDelayMs, settings } from '../settings';
import { statistics } from '../statistics';
import { append, appendAbandon, appendAfter, appendedDirty, appendedSequence, appendStep, initAppend } from './append';
import {
  initSender,
  SENDER_SIZE,
  senderConfirmed,
  senderHalted,
  senderHaltedRow,
  senderIdle,
  senderLeftOutTo,
  senderReset,
  senderResume,
  senderSequence,
  senderSetEpochEnd,
  senderStep,
} from './sender';

export const WRITE_LOG_SIZE: u32 = SENDER_SIZE;

/** Merging is worth its writes when it frees at least this share of the log, in percent. */
const MERGE_GAIN_MIN: u32 = 10;
/** A connected server gets this long to make room by committing before the log is merged. */
const MERGE_PATIENCE_MS: u32 = 5000;
/** What is committed is said by a MARK record when nothing else has said it for so long. */
const MARK_DELAY_MS: u32 = 500;

/** No epoch of a backlog is larger: at 1.5 Mbit/s this takes 6 minutes. */
const CATCH_UP_MAX: u64 = 64 << 20;

enum FlushState {
  NONE = 0,
  /** The epoch is closed; the server does not have all of it yet. */
  WAITING = 1,
  SENT = 2,
}

let running: bool = false;

// The first record that is not committed: its number, and the row of its header.
let headSequence: u64 = 1;
let headRow: u32 = 0;
/** Records from there on that hold anything the server does not have. */
let dirtyRecords: u32 = 0;

// The epoch. `epochEnd`: number of the record behind the closed epoch.
let flushState: FlushState = FlushState.NONE;
let epochEnd: u64 = 0;
/** An epoch must not end before this record. */
let epochFloor: u64 = 0;
/** Of it, what a merge has set: a server that says what it has committed makes the rest needless. */
let mergeFloor: u64 = 0;
let flushRequest: i32 = -1;
let closeWanted: bool = false;
/** Size of the epochs of a backlog: doubled by every commit, so that the time of a commit and what is overwritten within an
 * epoch cost little; halved by every loss of the connection, which sends the epoch again from its start. */
let catchUpBytes: u64 = 0;
let connection: u32 = 0;
/** The store says that the image server may know this session; and the record that says what the server had told before. */
let sessionIsKnown: bool = false;
let toldSequence: u64 = 0;

// The PC's command.
let commandOpen: bool = false;
let acknowledgedMs: u32 = 0;
let point: AcknowledgementPoint = AcknowledgementPoint.STORED;
/** Set while the log has no place for a write: since when. */
let full: bool = false;
let fullSinceMs: u32 = 0;
let committedMs: u32 = 0;

/** Takes WRITE_LOG_SIZE bytes at `arena`, 4 KiB aligned. */
export function initWriteLog(arena: usize): void {
  initAppend();
  initSender(arena);
  running = false;
  headSequence = 1;
  dirtyRecords = 0;
  flushState = FlushState.NONE;
  flushRequest = -1;
  closeWanted = commandOpen = full = endWanted = merging = holdSending = false;
  epochFloor = mergeFloor = 0;
  sessionIsKnown = false;
  toldSequence = 0;
  catchUpBytes = settings.epochSizeBytes;
  connection = nbdConnection();
  controlled = load<u32>(CONTROL);
  setAcknowledgementPoint(settings.acknowledgementPoint);
}

/** Takes over what the local store has recovered. */
function start(): void {
  running = true;
  headSequence = firstRecord(logTailSegment());
  headRow = segmentPlace(logTailSegment()) * SEGMENT_BLOCKS;
  while (headSequence < max(logCommitted() + 1, logNeeded())) {
    headRow = rowAfter(settled(headRow));
    headSequence += 1;
  }
  dirtyRecords = recoveredDirtyRecords();
  statistics.storeBlocksDirty = recoveredDirtyBlocks();
  statistics.lagBytes = recoveredDirtySectors() * SECTOR_SIZE;
  statistics.lagSinceMs = recoveredSinceMs();
  // Cover whatever the server may have committed before the power was lost.
  if (MUTANT != Mutant.SHORT_FIRST_EPOCH) epochFloor = logNextSequence();
  // What was merged is one epoch, whatever the server says to have committed.
  if (MUTANT != Mutant.FORGET_MERGE_RULE && recoveredMergedTo() > 0) mergeFloor = recoveredMergedTo() + 1;
  skipClean();
  appendAfter(logNextSequence() - 1);
  senderReset(headSequence, headRow);
}

// Acknowledgement

/** Switches the acknowledgement point; false when there is no such point. */
export function setAcknowledgementPoint(which: u32): bool {
  if (which > <u32>AcknowledgementPoint.REMOTE_STORED) return false;
  point = which;
  statistics.acknowledgementPoint = which;
  const early = point == AcknowledgementPoint.SENT || point == AcknowledgementPoint.REMOTE_RECEIVED;
  if (early && !placeIsEarly() && placeAgreed()) nbdRestart(NbdError.POINT);
  placeEarly(early);
  return true;
}

/** The control record's word as it was seen last. */
let controlled: u32 = 0;

/** Whoever runs the card has switched the point: 1 + which, 0 for the one of the settings. */
function takeControl(): bool {
  const wanted = load<u32>(CONTROL);
  if (wanted == controlled) return false;
  controlled = wanted;
  return setAcknowledgementPoint(wanted == 0 ? settings.acknowledgementPoint : wanted - 1);
}

/** The point in force: as long as little of the log is dirty the card may wait for the server, if it is there. */
function effectivePoint(): AcknowledgementPoint {
  if (settings.dirtyThreshold == 0 || !nbdUp() || point >= AcknowledgementPoint.REMOTE_STORED) return point;
  const percent = (<u64>statistics.storeBlocksDirty * 100) / tableRows();
  return percent < <u64>settings.dirtyThreshold ? AcknowledgementPoint.REMOTE_STORED : point;
}

/** True when the PC may be told that every write so far is done. */
export function writeLogAcknowledged(): bool {
  return acknowledged(effectivePoint());
}

/** True when a FLUSH CACHE may be answered: never before everything is stored, and where a write is done when the server has
 * received it, when the server has committed it. */
export function writeLogFlushed(): bool {
  if (MUTANT == Mutant.FORGET_FLUSH) return true;
  const need = max(effectivePoint(), AcknowledgementPoint.STORED);
  return acknowledged(need == AcknowledgementPoint.REMOTE_RECEIVED ? AcknowledgementPoint.REMOTE_STORED : need);
}

function acknowledged(need: AcknowledgementPoint): bool {
  if (need == AcknowledgementPoint.REMOTE_STORED) closeWanted = true;
  return reached(need, appendedSequence()) && acknowledgementDelayLeft() == 0;
}

function reached(need: AcknowledgementPoint, last: u64): bool {
  if (MUTANT == Mutant.ACKNOWLEDGE_EARLY) return true;
  if (need >= AcknowledgementPoint.STORED && logStored() < last) {
    logWantStored(last);
    return false;
  }
  if (need == AcknowledgementPoint.SENT) return senderSequence() > last || headSequence > last;
  if (need == AcknowledgementPoint.REMOTE_RECEIVED) return senderConfirmed() > last || headSequence > last;
  if (need == AcknowledgementPoint.REMOTE_STORED) return headSequence > last;
  return true;
}

function acknowledgementDelayLeft(): u32 {
  const passed = nowMs - acknowledgedMs;
  const delay = acknowledgementDelayMs();
  return passed >= delay ? 0 : delay - passed;
}

// Taking writes

/** Takes a write, copying its data; false when that must wait: call again with the same arguments. `more`: the PC's command
 * goes on with the next call. */
export function writeLogAppend(lba: u32, count: u32, source: usize, more: bool): bool {
  if (!running || (endWanted && !endCommand())) return false;
  afterMerge();
  if (statistics.lagBytes == 0) statistics.lagSinceMs = nowMs;
  logSetLagMs(lagMs());
  if (!append(lba, count, source, !commandOpen, !more)) {
    noteFull(lba, count);
    return false;
  }
  full = false;
  commandOpen = more;
  dirtyRecords += 1;
  statistics.storeBlocksDirty += appendedDirty();
  statistics.lagBytes += <u64>(MUTANT == Mutant.LAG_TOO_SMALL ? count - 1 : count) * SECTOR_SIZE;
  acknowledgedMs = nowMs;
  if (effectivePoint() > AcknowledgementPoint.STORED || !more) logWantStored(appendedSequence());
  return true;
}

/** The write cannot be taken now. Is that for want of room in the log, or only until the store has written something? */
function noteFull(lba: u32, count: u32): void {
  const blocks = <u32>((<u64>lba + count - 1) / SECTORS_PER_BLOCK) - lba / SECTORS_PER_BLOCK + 1;
  const reserve = SEGMENTS_RESERVED - (commandOpen ? 1 : 0);
  const free = logFreeSegments();
  if (free > reserve || (free == reserve && logHeadRoom() >= blocks)) {
    full = false;
    return;
  }
  closeWanted = true;
  if (full) return;
  full = true;
  fullSinceMs = nowMs;
  statistics.writesStalled += 1;
}

/** The command that was being written will not be continued. */
export function writeLogEndCommand(): void {
  appendAbandon();
  full = false;
  // Its last record says so on the store, see writeLogStep().
  if (commandOpen) endWanted = true;
}

let endWanted: bool = false;

/** Ends a command that was cut off by the PC: it stays as far as it came. */
function endCommand(): bool {
  if (!endWanted || !recordBegin(0, SEGMENTS_RESERVED - 2)) return false;
  recordFinish(RecordKind.WRITE, RECORD_ENDS, 0);
  dirtyRecords += 1;
  endWanted = commandOpen = false;
  return true;
}

/** Closes the epoch, for FLUSH CACHE; writeLogFlushed() tells when the PC may be answered. */
export function writeLogFlush(): void {
  closeWanted = true;
  logWantStored(logNextSequence() - 1);
}

/** True while a write waits for room in the log. */
export function writeLogFull(): bool {
  return full;
}

/** True when a write may begin now or when room for it is made: false when the store does not take writes any more. */
export function writeLogBroken(): bool {
  return logFailed();
}

/** Milliseconds until there is something to do without an event. */
export function writeLogTimeoutMs(): u32 {
  let timeout: u32 = 0xffffffff;
  if (dirtyRecords > 0 && flushState == FlushState.NONE && changesLearnt()) {
    const age = lagMs();
    timeout = age >= settings.epochAgeMs ? 0 : settings.epochAgeMs - age;
    // It is due, but something else is in the way; whatever that is, its end is an event.
    if (timeout == 0) timeout = 0xffffffff;
  }
  if (full) timeout = min(timeout, MERGE_PATIENCE_MS);
  if (logCommitUnsaid()) timeout = min(timeout, MARK_DELAY_MS);
  if (acknowledgementDelayLeft() > 0) timeout = min(timeout, acknowledgementDelayLeft());
  return timeout;
}

/** How long the oldest write has been waiting to be committed. */
function lagMs(): u32 {
  return statistics.lagBytes == 0 ? 0 : nowMs - statistics.lagSinceMs;
}

// Epochs

/** Sends, confirms, commits. True when anything moved. */
export function writeLogStep(): bool {
  if (!running) {
    if (!localStoreReady()) return false;
    start();
    return true;
  }
  // First of all: what was the oldest record may not be there any more.
  let progressed = afterMerge();
  progressed = takeControl() || progressed;
  progressed = appendStep() || progressed;
  progressed = endCommand() || progressed;
  progressed = restartAfterReconnect() || progressed;
  placeRecords(logCommitted(), logNextSequence() - 1, dirtyRecords > 0);
  if (changesWait()) progressed = releaseCommitted() || progressed;
  progressed = resumeAfterLoss() || progressed;
  progressed = mergeWhenFull() || progressed;
  progressed = closeWhenDue() || progressed;
  if (!mergeActive()) progressed = senderStep(sendEnd()) || progressed;
  progressed = commit() || progressed;
  progressed = sayCommitted() || progressed;
  updateLag();
  return progressed;
}

/** Number of the record behind the last that may be sent now. An open epoch is sent early only when a write waits for the
 * server: otherwise what is overwritten soon need not be sent at all. */
function sendEnd(): u64 {
  if (holdSending) return 0;
  if (flushState != FlushState.NONE) return epochEnd;
  return effectivePoint() >= AcknowledgementPoint.SENT ? logNextSequence() : headSequence;
}

/** A new connection knows nothing of what an earlier one had not committed. */
function restartAfterReconnect(): bool {
  if (nbdConnection() == connection) return false;
  connection = nbdConnection();
  restart();
  return true;
}

function restart(): void {
  if (flushRequest >= 0) nbdRelease(flushRequest);
  flushRequest = -1;
  if (flushState != FlushState.NONE) catchUpBytes = max(catchUpBytes / 2, <u64>settings.epochSizeBytes);
  reopenEpoch();
  if (MUTANT != Mutant.RESEND_NOTHING) senderReset(headSequence, headRow);
}

/** The closed epoch may end elsewhere, but not earlier if the server may have committed it. */
function reopenEpoch(): void {
  if (flushState == FlushState.SENT) epochFloor = max(epochFloor, epochEnd);
  if (flushState != FlushState.NONE) closeWanted = true;
  flushState = FlushState.NONE;
}

/** The store has lost something that must be sent. Once the PC has written all of it again, an epoch that holds both copies
 * makes the loss good: the server never sees the first. */
function resumeAfterLoss(): bool {
  if (!senderHalted() || flushState == FlushState.SENT || mergeActive()) return false;
  const row = senderHaltedRow();
  if (rowIs(row, ROW_LIVE) && rowIs(row, ROW_LOST)) return false;
  const newest = rowUnused(row) ? NO_ROW : tableFind(rowKey(row));
  if (newest != NO_ROW && rowIs(newest, ROW_LOST)) return false;
  epochFloor = mergeFloor = logNextSequence();
  reopenEpoch();
  senderResume();
  senderReset(headSequence, headRow);
  return true;
}

/** Closes the epoch here, between two commands. */
function closeWhenDue(): bool {
  if (dirtyRecords == 0) {
    closeWanted = false;
    if (!commandOpen && flushState == FlushState.NONE && headSequence != logNextSequence()) catchUp();
    return false;
  }
  if (
    flushState != FlushState.NONE ||
    (commandOpen && MUTANT != Mutant.TEAR_COMMANDS) ||
    holdSending ||
    !changesLearnt() ||
    mergeActive()
  )
    return false;
  const due = closeWanted || lagMs() >= settings.epochAgeMs || statistics.lagBytes >= <u64>settings.epochSizeBytes;
  if (!due) return false;
  if (statistics.lagBytes > <u64>settings.epochSizeBytes) {
    closeAtSize();
  } else {
    // No backlog: the next one begins with small epochs again.
    catchUpBytes = settings.epochSizeBytes;
    closeAtHead();
  }
  return true;
}

function closeAtHead(): void {
  setEpochEnd(logNextSequence(), logHeadRow());
  closeWanted = false;
}

function setEpochEnd(sequence: u64, row: u32): void {
  epochEnd = sequence;
  // Of a command that the PC has cut off nobody has waited for that.
  logWantStored(sequence - 1);
  senderSetEpochEnd(row);
  flushState = FlushState.WAITING;
}

/** After a time without a server there is more than one epoch's worth: close after a command that makes the epoch full.
 * What is overwritten later in the epoch is not sent, so it does not count. */
function closeAtSize(): void {
  let sequence = headSequence;
  let row = headRow;
  let sectors: u64 = 0;
  let open = false;
  while (sequence < logNextSequence()) {
    row = settled(row);
    if (needsServer(row)) {
      const flags = rowValid(row) == RecordKind.WRITE ? rowDirty(row) : 0;
      if ((flags & RECORD_BEGINS) != 0) open = true;
      if ((flags & RECORD_ENDS) != 0) open = false;
      sectors += liveSectors(row);
    }
    row = rowAfter(row);
    sequence += 1;
    const isFull = sectors * SECTOR_SIZE >= catchUpBytes;
    // Not before what has been sent already, where an open epoch is.
    const mayEnd = !open && sequence >= max(epochFloor, senderLeftOutTo()) && sequence > senderSequence();
    if (isFull && mayEnd && sequence < logNextSequence()) {
      setEpochEnd(sequence, settled(row));
      return;
    }
  }
  closeAtHead();
}

/** Dirty sectors of the record that nothing in the log outdates. */
function liveSectors(header: u32): u32 {
  let sectors: u32 = 0;
  for (let row = header + 1; isData(row); row++) {
    if (rowIs(row, ROW_LIVE)) sectors += popcnt(<u32>rowDirty(row));
  }
  return sectors;
}

function commit(): bool {
  if (!changesLearnt()) return false;
  const complete = senderSequence() == epochEnd && senderConfirmed() == epochEnd && !senderHalted();
  if (flushState == FlushState.WAITING && complete) {
    // The server remembers the number of the last record, and one without data was not waited for to be sent.
    if (logStored() < epochEnd - 1 && MUTANT != Mutant.SEND_UNSTORED) return false;
    if (MUTANT == Mutant.NEVER_COMMIT) {
      release();
      return true;
    }
    if (!sessionKnown()) return false;
    flushRequest = nbdFlush(epochEnd - 1);
    if (flushRequest < 0) return false;
    flushState = FlushState.SENT;
    return true;
  }
  if (flushState != FlushState.SENT) return false;
  const state = nbdState(flushRequest);
  if (state == NbdState.PENDING) return false;
  if (state == NbdState.FAILED) nbdRestart(NbdError.REQUEST_REFUSED);
  if (state != NbdState.DONE) return false;
  if (placeAgreed()) changesOwn(nbdResult(flushRequest), nbdResult2(flushRequest));
  nbdRelease(flushRequest);
  flushRequest = -1;
  release();
  return true;
}

/** True when the store is ready for a commit whose answer is lost: the next power-on must know this session as one of its own. What the
 * server has told is stored before that, so of the sessions before it nothing is ever asked again. */
function sessionKnown(): bool {
  if (sessionIsKnown || !placeAgreed() || MUTANT == Mutant.SESSION_UNKNOWN) return true;
  // What the card has is better off on the server than on a store that does not even take this.
  if (logFailed()) return true;
  if (toldSequence == 0) {
    // A log that has not even a segment left must commit to get one.
    if (logCommitUnsaid() && !markCommitted(0) && logFreeSegments() > 0) return false;
    toldSequence = logNextSequence() - 1;
    logWantStored(toldSequence);
  }
  if (logStored() < toldSequence) return false;
  sessionIsKnown = storeSessionUsed();
  return sessionIsKnown;
}

/** Lets go what the server says to have committed: the answer to a commit was lost. */
function releaseCommitted(): bool {
  const upTo = changesCommitted();
  if (MUTANT != Mutant.RESEND_COMMITTED && upTo >= headSequence) {
    if (mergeActive() || holdSending || !senderIdle()) return false;
    setEpochEnd(upTo + 1, logHeadRow());
    release();
  } else if (MUTANT != Mutant.RESEND_COMMITTED && upTo > logCommitted()) {
    // Nothing of it is left to let go: it was merged into later records.
    logSetCommitted(upTo);
    committedMs = nowMs;
  }
  epochFloor = mergeFloor;
  changesReleased();
  return true;
}

/** The closed epoch is a generation on the server now. */
function release(): void {
  let sectors: u64 = 0;
  while (headSequence < epochEnd) {
    headRow = settled(headRow);
    if (needsServer(headRow)) {
      dirtyRecords -= 1;
      sectors += rowKey(headRow);
      for (let row = headRow + 1; isData(row); row++) commitRow(row);
    }
    headRow = rowAfter(headRow);
    headSequence += 1;
  }
  statistics.lagBytes -= min(sectors * SECTOR_SIZE, statistics.lagBytes);
  statistics.epochsCommitted += 1;
  catchUpBytes = min(catchUpBytes * 2, max(CATCH_UP_MAX, <u64>settings.epochSizeBytes));
  flushState = FlushState.NONE;
  logSetCommitted(epochEnd - 1);
  committedMs = nowMs;
  full = false;
  skipClean();
}

function commitRow(row: u32): void {
  if (rowDirty(row) == 0) return;
  if (rowIs(row, ROW_LIVE)) statistics.storeBlocksDirty -= 1;
  if (rowIs(row, ROW_LOST) && !rowIs(row, ROW_LIVE)) liftLoss(row);
  storeSetCommitted(row);
}

/** The store had lost the block at `lost` when the server had it already, or was about to: the PC's writes in part of the block that came before
 * that was known say that the rest is lost. */
function liftLoss(lost: u32): void {
  let sequence = headSequence;
  let header = headRow;
  while (sequence < logNextSequence()) {
    header = settled(header);
    const end = rowAfter(header);
    const first = max(header, sequence == headSequence ? lost : header) + 1;
    if (needsServer(header)) {
      for (let row = first; row < end; row++) {
        if (rowKey(row) == rowKey(lost) && !storeLiftLoss(row)) return;
      }
    }
    header = end;
    sequence += 1;
  }
}

/** Nothing is dirty: everything is committed, FILL and MARK records as well. */
function catchUp(): void {
  headSequence = logNextSequence();
  headRow = logHeadRow();
  logSetNeeded(headSequence);
  senderReset(headSequence, headRow);
}

/** Moves the head over records that the server does not need. */
function skipClean(): void {
  while (headSequence < logNextSequence()) {
    headRow = settled(headRow);
    if (needsServer(headRow)) {
      // Not while something older may lie behind it that was moved there.
      if (rowValid(headRow) == RecordKind.WRITE && headSequence >= mergeFloor)
        statistics.lagSinceMs = rowChecksum(headRow);
      break;
    }
    headRow = rowAfter(headRow);
    headSequence += 1;
  }
  if (headSequence == logNextSequence()) headRow = logHeadRow();
  if (headSequence > logNeeded()) logSetNeeded(headSequence);
  senderReset(headSequence, headRow);
}

function needsServer(row: u32): bool {
  if (rowIs(row, ROW_VOID)) return false;
  if (rowValid(row) != RecordKind.WRITE && (rowDirty(row) & RECORD_DIRTY) == 0) return false;
  if (isData(row + 1)) {
    for (let data = row + 1; isData(data); data++) {
      if (rowDirty(data) != 0) return true;
    }
    return false;
  }
  // A command that was cut off ends with an empty record.
  return true;
}

/** The row of the header that is at `row`, or at the start of the next segment if this one holds no more. */
function settled(row: u32): u32 {
  if (row % SEGMENT_BLOCKS < SEGMENT_RECORD_BLOCKS && !rowUnused(row)) return row;
  return nextSegmentRow(row);
}

function rowAfter(header: u32): u32 {
  let row = header + 1;
  while (isData(row)) row += 1;
  return row;
}

function isData(row: u32): bool {
  return row % SEGMENT_BLOCKS < SEGMENT_RECORD_BLOCKS && !rowUnused(row) && !rowIs(row, ROW_HEADER);
}

/** Says on the store what is committed, so that a power-on does not send it again. */
function sayCommitted(): bool {
  if (!logCommitUnsaid() || commandOpen || nowMs - committedMs < MARK_DELAY_MS) return false;
  return markCommitted(SEGMENTS_RESERVED);
}

function markCommitted(reserve: u32): bool {
  if (!recordBegin(0, reserve)) return false;
  recordFinish(RecordKind.MARK, 0, 0);
  return true;
}

// A full log

/** Merges uncommitted blocks, newest copies only, when nothing else makes room. */
function mergeWhenFull(): bool {
  if (!full) holdSending = false;
  if (mergeActive() || !full || flushState == FlushState.SENT) return false;
  if (logFreeSegments() > SEGMENTS_RESERVED || tailIsCommitted()) return false;
  const waited = nowMs - max(fullSinceMs, committedMs);
  if (nbdUp() && waited < MERGE_PATIENCE_MS) return false;
  if (!mergeWorthwhile() || !mergePossible()) return false;
  // What the command has outdated would be gone if the command were voided: a very long one is two from here on.
  if (commandOpen) {
    endWanted = true;
    return endCommand();
  }
  // Nothing may be on its way out of the segment that goes.
  if (!senderIdle()) {
    if (!holdSending) senderReset(headSequence, headRow);
    holdSending = true;
    return false;
  }
  // One epoch from now on, to its end: what is moved belongs to both ends of it.
  if (flushState == FlushState.WAITING) epochFloor = mergeFloor = max(epochFloor, epochEnd);
  reopenEpoch();
  closeWanted = true;
  holdSending = false;
  mergeStart();
  merging = true;
  return true;
}

let merging: bool = false;
/** Nothing is sent until what is on its way has ended. */
let holdSending: bool = false;

function tailIsCommitted(): bool {
  return firstRecord(logTailSegment() + 1) <= logNeeded();
}

/** Moving blocks round and round a log that they fill gains nothing. What is kept free for tight places is no room for them. */
function mergeWorthwhile(): bool {
  const rows = <u64>(logSegments() - SEGMENTS_RESERVED - 1) * SEGMENT_RECORD_BLOCKS;
  return <u64>statistics.storeBlocksDirty * 100 < rows * (100 - MERGE_GAIN_MIN);
}

/** Takes note of a merge that has ended. */
function afterMerge(): bool {
  if (!merging || mergeActive()) return false;
  merging = false;
  // What was dropped was outdated by something anywhere in the log: it is all one epoch.
  if (MUTANT != Mutant.FORGET_MERGE_RULE) epochFloor = mergeFloor = logNextSequence();
  recountDirtyRecords();
  return true;
}

/** The oldest record is another one now. */
function recountDirtyRecords(): void {
  headSequence = firstRecord(logTailSegment());
  headRow = segmentPlace(logTailSegment()) * SEGMENT_BLOCKS;
  dirtyRecords = 0;
  let sequence = headSequence;
  let row = headRow;
  while (sequence < logNextSequence()) {
    row = settled(row);
    if (needsServer(row)) dirtyRecords += 1;
    row = rowAfter(row);
    sequence += 1;
  }
  const since = statistics.lagSinceMs;
  skipClean();
  // Older than the oldest record that is left.
  statistics.lagSinceMs = since;
}

function updateLag(): void {
  statistics.lagEpochs = dirtyRecords == 0 ? 0 : flushState != FlushState.NONE && epochEnd != logNextSequence() ? 2 : 1;
  if (dirtyRecords == 0) statistics.lagBytes = 0;
}
