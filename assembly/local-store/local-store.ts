// The local store as the rest of the firmware sees it: one log on a block device that holds the PC's writes until the image
// server has them, and the cache for ever after.
//
//   device.ts       operations on the device           block-table.ts  the index, and the directory of the log
//   format.ts       what lies on it                    record-log.ts   the head: staging, writing, flushing, summaries
//   superblock.ts   which copy counts                  reclaim.ts      the tail: what is kept, what goes
//   partition.ts    which part of a shared device
//   recovery.ts, replay.ts   power-on                  fills.ts        blocks from the server, when there is time
//                                                 seen.ts         which of those a full store takes
//
// The seam with ../write-log: it alone appends WRITE records and knows what is committed.

import { BLOCK_SIZE, SECTORS_PER_BLOCK } from '../config';
import { crc32c } from '../imports';
import { LogLevel, logEnd, logText, logValue } from '../log';
import { STORE_SUPERBLOCK } from '../memory-map';
import { MUTANT, Mutant } from '../mutant';
import { StoreState, statistics } from '../statistics';
import {
  addRowFlags,
  initTable,
  ROW_LIVE,
  ROW_LOST,
  removeRowFlags,
  rowChecksum,
  rowDirty,
  rowIs,
  rowKey,
  rowValid,
  setRowDirty,
  setRowValid,
  tableFind,
  tableRemove,
  tableRows,
  tableSegmentsFor,
  tableSize,
  tableUsed,
} from './block-table';
import { devicePoll, deviceRelease, deviceSize, deviceState, deviceWrite, initDevice, OperationState } from './device';
import { fillStep, initFills } from './fills';
import { LOG_START_BLOCK, SEGMENT_BLOCKS, SUPERBLOCK_COPIES } from './format';
import { initReclaim, reclaimStep } from './reclaim';
import {
  initRecordLog,
  logFailed,
  logFlushFailures,
  logFreeSegments,
  logOtherFlushed,
  logWantOtherFlushed,
  recordLogOverhead,
  recordLogStep,
} from './record-log';
import { initRecovery, recoveryError, recoveryReady, recoveryStep, SEGMENTS_MIN } from './recovery';
import { initSeen, noteSeen, seenSize } from './seen';
import { nextSuperblock, StoreError, sessionUnused, superblock, useSession } from './superblock';

/** Staging must hold a segment, which recovery reads at once, and room to go on while it is written. */
const RING_SIZE_MIN: u32 = 2 << 20;
const RING_SIZE_MAX: u32 = 8 << 20;

enum SuperblockState {
  IDLE = 0,
  WRITING = 1,
  FLUSHING = 2,
}

let superblockState: SuperblockState = SuperblockState.IDLE;
let superblockOperation: i32 = -1;
let superblockBlock: u32 = 0;
let superblockTries: u32 = 0;
/** Of the device, when the superblock was written. */
let flushFailures: u32 = 0;
let imageSectors: u64 = 0;
let sessionWanted: bool = false;
/** The superblock that is stored says that the session may be known. */
let sessionSaid: bool = false;

/** How much of `available` bytes of memory the store takes; 0 when that is too little for any store. Half of it at most goes to
 * the table: a device with more blocks than that describes is used in part. */
export function localStoreMemory(available: u32): u32 {
  const ring = ringSize(available);
  if (available < ring + recordLogOverhead(SEGMENTS_MIN) + <u32>tableSize(SEGMENTS_MIN) + seenSize(SEGMENTS_MIN))
    return 0;
  const segments = segmentsFor(available);
  return ring + recordLogOverhead(segments) + <u32>tableSize(segments) + seenSize(segments);
}

function ringSize(available: u32): u32 {
  return min(max((available / 16) & ~(BLOCK_SIZE - 1), RING_SIZE_MIN), RING_SIZE_MAX);
}

function segmentsFor(available: u32): u32 {
  const blocks = deviceSize();
  const onDevice = blocks > LOG_START_BLOCK ? (blocks - LOG_START_BLOCK) / SEGMENT_BLOCKS : 0;
  return max(min(onDevice, tableSegmentsFor(available / 2)), SEGMENTS_MIN);
}

/** Takes localStoreMemory(available) bytes at `arena`, which is 4 KiB aligned. */
export function initLocalStore(arena: usize, available: u32): void {
  const segments = segmentsFor(available);
  const ring = ringSize(available) + recordLogOverhead(segments);
  initDevice();
  initRecordLog(arena, ring, segments);
  initTable(arena + ring, SEGMENTS_MIN);
  initRecovery(arena + ring, segments);
  initReclaim();
  initFills();
  initSeen(arena + ring + <usize>tableSize(segments), segments);
  superblockState = SuperblockState.IDLE;
  superblockOperation = -1;
  imageSectors = 0;
  sessionWanted = sessionSaid = false;
  statistics.storeState = StoreState.STARTING;
}

/** True when the log takes and gives. */
export function localStoreReady(): bool {
  return recoveryReady();
}

export function localStoreRefused(): bool {
  return recoveryError() != StoreError.NONE;
}

/** Goes on as far as it can. True when anything moved. */
export function localStoreStep(): bool {
  let progressed = devicePoll();
  if (!recoveryReady()) {
    progressed = recoveryStep() || progressed;
    if (localStoreRefused()) statistics.storeState = StoreState.REFUSED;
    statistics.storeError = recoveryError();
  } else {
    progressed = reclaimStep() || progressed;
    progressed = fillStep() || progressed;
    progressed = superblockStep() || progressed;
  }
  progressed = recordLogStep() || progressed;
  // A flush may have ended when it is asked for: that need not wait for the next round.
  if (!devicePoll()) return progressed;
  recordLogStep();
  return true;
}

/** Says in the statistics how full the store is. */
export function countLocalStore(): void {
  if (!recoveryReady()) return;
  statistics.storeState = logFailed() ? StoreState.FAILED : StoreState.READY;
  statistics.storeBlocks = tableRows();
  statistics.storeBlocksUsed = tableUsed();
  statistics.storeSegmentsFree = logFreeSegments();
}

// What the superblock says while the card is on: the image's size, so that the disk is there without its server, and that an image
// server may know this session

/** True when an image server may be asked to commit something: whatever happens then, the next power-on knows the session. */
export function storeSessionUsed(): bool {
  sessionWanted = true;
  return sessionSaid;
}

/** Capacity of the image in sectors as it was last told, 0 when it never was. */
export function storedImageSectors(): u64 {
  return imageSectors != 0 ? imageSectors : superblock.imageSectors;
}

/** Remembers the capacity for power-ons without a server. */
export function storeImageSectors(sectors: u64): void {
  imageSectors = sectors;
}

function superblockStep(): bool {
  if (superblockState == SuperblockState.IDLE) {
    const sized = imageSectors != 0 && imageSectors != superblock.imageSectors;
    if (!sized && (!sessionWanted || sessionSaid)) return false;
    if (sized) superblock.imageSectors = imageSectors;
    if (sessionWanted) useSession();
    superblockTries = 0;
    makeSuperblockCopy();
    return true;
  }
  if (superblockState == SuperblockState.FLUSHING) {
    if (logFlushFailures() != flushFailures) superblockFailed();
    else if (logOtherFlushed() || logFailed()) superblockStored();
    else return false;
    return true;
  }
  // When no operation was free before, too.
  if (superblockOperation < 0) {
    flushFailures = logFlushFailures();
    superblockOperation = deviceWrite(superblockBlock, 1, STORE_SUPERBLOCK);
    return superblockOperation >= 0;
  }
  const state = deviceState(superblockOperation);
  if (state == OperationState.PENDING) return false;
  deviceRelease(superblockOperation);
  superblockOperation = -1;
  if (state != OperationState.DONE) {
    superblockFailed();
    return true;
  }
  superblockState = SuperblockState.FLUSHING;
  logWantOtherFlushed();
  return true;
}

function makeSuperblockCopy(): void {
  superblockBlock = nextSuperblock();
  superblockState = SuperblockState.WRITING;
}

/** The next try goes to another place, but not to that of the copy that counts. */
function superblockFailed(): void {
  superblockTries += 1;
  if (superblockTries < SUPERBLOCK_COPIES - 1) {
    makeSuperblockCopy();
    return;
  }
  logText('local store takes no superblock: at the next power-on the image server may refuse the card as a copy');
  logEnd(LogLevel.ERROR);
  superblockStored();
}

function superblockStored(): void {
  superblockState = SuperblockState.IDLE;
  sessionSaid = !sessionUnused();
}

// Reading

/** Checks the 4096 bytes at `address` that were read from `row`, and acts when they are not what was written: a block that the
 * server has is forgotten, one that it does not have is lost. True when they are right. */
export function storeCheckRead(row: u32, address: usize, readable: bool): bool {
  statistics.storeBlocksRead += 1;
  if (readable && MUTANT == Mutant.SKIP_READ_CHECKSUM) return true;
  if (readable && crc32c(0, address, BLOCK_SIZE) == rowChecksum(row)) return true;
  statistics.storeBlocksBad += 1;
  const block = rowKey(row);
  const dirty = rowDirty(row) != 0;
  logText(dirty ? 'local store lost a block that the server does not have' : 'local store gave a bad block');
  logValue('lba', <u64>block * SECTORS_PER_BLOCK);
  logValue('row', row);
  logEnd(dirty ? LogLevel.ERROR : LogLevel.WARNING);
  if (dirty) {
    setRowValid(row, 0);
    addRowFlags(row, ROW_LOST);
  } else if (tableFind(block) == row) {
    tableRemove(block);
    noteSeen(block);
  }
  return false;
}

/** The image server has the block's sectors: what the store has lost of them can be had again. */
export function storeSetCommitted(row: u32): void {
  setRowDirty(row, 0);
  if (!rowIs(row, ROW_LOST)) return;
  removeRowFlags(row, ROW_LOST);
  if (rowIs(row, ROW_LIVE) && rowValid(row) == 0) tableRemove(rowKey(row));
}

/** The server has the block as it was in a row that the store had lost. `later`: the next uncommitted copy. True when that was called
 * lost because of the other alone: it is not any more. False when it is whole, or lost itself: copies behind it have nothing to do with
 * the first. */
export function storeLiftLoss(later: u32): bool {
  // Whoever has inherited the loss has all of its own dirty sectors; who has lost its data has none.
  if (!rowIs(later, ROW_LOST) || (rowDirty(later) & ~rowValid(later)) != 0) return false;
  removeRowFlags(later, ROW_LOST);
  return true;
}
