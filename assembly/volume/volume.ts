// The volume: the PC's LBA space, above whatever holds the sectors: the cache for reads, the write log for writes.
//
// `ata` has one request at a time here, as an IDE disk without queued commands has one command; the volume answers by
// state, never by callback. A read walks its blocks in order (the cursor) and copies each as soon as the RAM cache has it.
// What the RAM cache lacks comes from the local store, several blocks at once, and what that lacks from the image server, in
// runs; sequential readers get read-ahead.
//
// Invariant: what the server does not have is in the local store, so what is fetched from the server is never older than what
// the PC wrote; a write to a block that is on its way makes the copy on its way stale.

import {
  cacheAddress,
  cacheAllocate,
  cacheFind,
  cacheMask,
  cacheSetEmpty,
  cacheSetFilling,
  cacheSetReady,
  cacheSetStale,
  cacheState,
  cacheTouch,
  SlotState,
} from '../cache/cache';
import { changesLearnt, changesReadable } from '../changes/changes';
import { nowMs } from '../clock';
import {
  BLOCK_SIZE,
  IMAGE_BLOCKS_MAX,
  LEARN_ATTEMPTS,
  LEARN_PATIENCE_MS,
  NBD_REQUEST_SIZE_MAX,
  NBD_REQUESTS_MAX,
  SECTOR_SIZE,
  SECTORS_PER_BLOCK,
} from '../config';
import {
  NO_ROW,
  ROW_LOST,
  ROW_UNVERIFIED,
  rowHit,
  rowIs,
  rowValid,
  tableFind,
  tableRemove,
} from '../local-store/block-table';
import { deviceRead, deviceRelease, deviceState, OperationState } from '../local-store/device';
import { noteFill } from '../local-store/fills';
import { localStoreReady, storeCheckRead, storedImageSectors, storeImageSectors } from '../local-store/local-store';
import { logFailed, logWritten, rowBlock } from '../local-store/record-log';
import { noteSeen } from '../local-store/seen';
import { LogLevel, logEnd, logText, logValue } from '../log';
import { MUTANT, Mutant } from '../mutant';
import {
  NbdError,
  NbdState,
  nbdConnection,
  nbdErrno,
  nbdExportSize,
  nbdLosses,
  nbdRead,
  nbdRelease,
  nbdRestart,
  nbdSetPiece,
  nbdSilentMs,
  nbdState,
  nbdUp,
} from '../nbd/client';
import { settings, writeStallMs } from '../settings';
import { LinkState, statistics } from '../statistics';
import {
  appendedBlock,
  appendedBlocks,
  appendedData,
  appendedMask,
  appendSetImage,
  sectorMask,
} from '../write-log/append';
import {
  writeLogAcknowledged,
  writeLogAppend,
  writeLogBroken,
  writeLogEndCommand,
  writeLogFlush,
  writeLogFlushed,
  writeLogFull,
} from '../write-log/write-log';

export enum VolumeState {
  IDLE = 0,
  PENDING = 1,
  DONE = 2,
  /** The sectors cannot be had now: the server is out of reach and they are not on the card, or it cannot read them.
   * `volumeFailedLba()` is the first. */
  UNCORRECTABLE = 3,
  /** The write, or the flush, did not reach its acknowledgement point in time: device fault. */
  FAULT = 4,
}

enum Operation {
  NONE = 0,
  READ = 1,
  /** A write that waits for room in the log. */
  WRITE_WAITING = 2,
  /** A write that is in the log and waits for its acknowledgement point. */
  WRITE = 3,
  FLUSH = 4,
}

const RUN_BLOCKS_MAX: u32 = NBD_REQUEST_SIZE_MAX / BLOCK_SIZE;
/** Read-ahead doubles from one block run to this: two of the largest requests keep a 40 ms link busy. */
const READ_AHEAD_MIN: u32 = 4;
const READ_AHEAD_MAX: u32 = 2 * RUN_BLOCKS_MAX;

let sectors: u64 = 0;
/** When the capacity became known, and whether the PC has been shown the disk. */
let sizedMs: u32 = 0;
let ready: bool = false;
let blocks: u32 = 0;

// The current request.
let state: VolumeState = VolumeState.IDLE;
let operation: Operation = Operation.NONE;
let requestLba: u32 = 0;
let requestCount: u32 = 0;
let requestMemory: usize = 0;
let requestMore: bool = false;
let requestStartedMs: u32 = 0;
/** How long the PC's command has waited in earlier pieces for room in the log, or for a server out of reach: the PC counts from
 * its beginning. */
let stalledMs: u32 = 0;
/** First block that is not copied yet. */
let cursor: u32 = 0;
/** The cursor block could not be read as part of a run and is being fetched alone. */
let cursorAlone: bool = false;
let cursorMissed: bool = false;
let failedLba: u64 = 0;

// Read-ahead.
let sequentialLba: u32 = 0;
let readAhead: u32 = 0;
let readAheadEnd: u32 = 0;

// Fetches, by NBD request slot: the run of blocks that each brings. StaticArray literals lie in static data.
const fetchActive: StaticArray<bool> = [
  false,
  false,
  false,
  false,
  false,
  false,
  false,
  false,
  false,
  false,
  false,
  false,
  false,
  false,
  false,
  false,
];
const fetchBlock: StaticArray<u32> = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
const fetchCount: StaticArray<u32> = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
/** The one block of the run has some sectors already, of this mask; what comes begins at sector `fetchSector`. */
const fetchMask: StaticArray<u8> = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
const fetchAdds: StaticArray<u8> = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
let fetchesActive: u32 = 0;

// Loads from the local store, one block each.
const LOADS_MAX: u32 = 16;
const loadOperation: StaticArray<i32> = [-1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1];
const loadBlock: StaticArray<u32> = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
const loadRow: StaticArray<u32> = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
let loadsActive: u32 = 0;

assert(NBD_REQUESTS_MAX == 16);

/** At power-on, before anything else is called. */
export function initVolume(): void {
  sectors = 0;
  ready = false;
  blocks = 0;
  state = VolumeState.IDLE;
  operation = Operation.NONE;
  sequentialLba = readAhead = readAheadEnd = 0;
  fetchesActive = loadsActive = 0;
  for (let request: i32 = 0; request < <i32>NBD_REQUESTS_MAX; request++) fetchActive[request] = false;
  for (let i: u32 = 0; i < LOADS_MAX; i++) loadOperation[i] = -1;
  connectionChecked = 0;
  requestMore = requestStalls = false;
}

/** May the PC be shown the disk? Its size must be known. And a card that was off learns first what others have changed, as long as
 * the server may be about to say so: a PC that reads a part of its disk as it was and a part as it is has neither. */
export function volumeReady(): bool {
  return ready;
}

function becomeReady(): bool {
  if (sectors == 0 || ready) return false;
  const tried = nbdLosses() >= LEARN_ATTEMPTS || statistics.linkState == LinkState.REFUSED;
  ready = tried || changesReadable() || readyTimeoutMs() == 0;
  return ready;
}

/** Milliseconds until the PC is shown the disk whatever the server says. */
function readyTimeoutMs(): u32 {
  if (sectors == 0) return 0xffffffff;
  const waited = nowMs - sizedMs;
  return waited >= LEARN_PATIENCE_MS ? 0 : LEARN_PATIENCE_MS - waited;
}

/** Capacity in sectors; 0 until the local store remembers it or the image server has told it. It never changes afterwards
 * while the card has power. */
export function volumeSectors(): u64 {
  return sectors;
}

export function volumeState(): VolumeState {
  return state;
}

/** The first sector of the request that could not be read; valid in state UNCORRECTABLE. */
export function volumeFailedLba(): u64 {
  return failedLba;
}

/** Forgets the finished request. */
export function volumeIdle(): void {
  assert(state != VolumeState.PENDING);
  state = VolumeState.IDLE;
  operation = Operation.NONE;
}

/** Drops the current request, whatever its state: its memory is not touched any more. A write that the log has taken stays. */
export function volumeCancel(): void {
  writeLogEndCommand();
  requestMore = requestStalls = false;
  state = VolumeState.IDLE;
  operation = Operation.NONE;
}

/** Reads `count` sectors from `lba` to `target`. The range must lie inside the volume. `more`: the PC's command goes on with this
 * call. */
export function volumeRead(lba: u64, count: u32, target: usize, more: bool): void {
  begin(Operation.READ, lba, count, target);
  if (!more) stalledMs = 0;
  requestStalls = false;
  cursor = requestLba / SECTORS_PER_BLOCK;
  cursorAlone = false;
  cursorMissed = false;
  if (copyBlocks()) return;
  bring(cursor, lastBlock(requestLba, requestCount) + 1);
}

/** Writes `count` sectors at `lba` from `source`. `more`: the PC's command goes on with the next call. */
export function volumeWrite(lba: u64, count: u32, source: usize, more: bool): void {
  begin(Operation.WRITE_WAITING, lba, count, source);
  if (!requestMore) stalledMs = 0;
  requestMore = more;
  write();
}

/** Everything written so far is stored, and has reached the acknowledgement point if that is later, when the state is DONE.
 * `more`: the PC's command goes on with this call, and its time with it. */
export function volumeFlush(more: bool): void {
  const startedMs = requestStartedMs;
  begin(Operation.FLUSH, 0, 0, 0);
  if (more) requestStartedMs = startedMs;
  else stalledMs = 0;
  writeLogFlush();
  acknowledge();
}

/** The PC is about to read these sectors. */
export function volumePrefetch(lba: u64, count: u32): void {
  if (lba >= sectors) return;
  const end = min<u64>(lba + count, sectors);
  bring(<u32>lba / SECTORS_PER_BLOCK, lastBlock(<u32>lba, <u32>(end - lba)) + 1);
}

/** Milliseconds until the current request times out, or the PC is shown the disk, 0xFFFFFFFF when neither is waited for. A server that moves bytes is waited for;
 * one that has gone silent is out of reach, whether or not the connection has noticed. */
export function volumeTimeoutMs(): u32 {
  if (state != VolumeState.PENDING) return ready ? 0xffffffff : readyTimeoutMs();
  if (MUTANT == Mutant.NO_TIME_OUT) return 0xffffffff;
  const isRead = operation == Operation.READ;
  let waited = nowMs - requestStartedMs;
  if (isRead && nbdUp()) waited = min(waited, nbdSilentMs());
  waited += stalledMs;
  const limit = isRead ? settings.offlineReadTimeoutMs : writeStallMs();
  return waited >= limit ? 0 : limit - waited;
}

/** Takes what has arrived and goes on. Returns true when anything moved. */
export function volumeStep(): bool {
  let progressed = setCapacity();
  if (!ready) progressed = becomeReady() || progressed;
  if (loadsActive > 0) progressed = finishLoads() || progressed;
  if (fetchesActive > 0) progressed = finishFetches() || progressed;
  if (state != VolumeState.PENDING) return progressed;
  if (operation == Operation.READ) {
    requestStalls = requestStalls || !nbdUp();
    if (copyBlocks()) progressed = true;
    if (state == VolumeState.PENDING) bring(cursor, lastBlock(requestLba, requestCount) + 1);
  } else if (operation == Operation.WRITE_WAITING) {
    progressed = write() || progressed;
  } else {
    progressed = acknowledge() || progressed;
  }
  return progressed;
}

/** Ends a request that has waited too long, or waits for what will never be. True when there was one. */
export function volumeGiveUp(): bool {
  return state == VolumeState.PENDING && (volumeTimeoutMs() == 0 || cannotWrite()) && timeOut();
}

function cannotWrite(): bool {
  return operation != Operation.READ && writeLogBroken();
}

/** Finds out how large the disk is: at once if the store remembers it, else from the server. But what the PC writes has a generation below it: a
 * card that has never heard of one has no disk before the store says of which it has, whatever becomes of its power. */
function setCapacity(): bool {
  if (nbdUp() && nbdConnection() != connectionChecked) checkExport();
  if (sectors != 0 || !localStoreReady()) return false;
  const known = storedImageSectors();
  if (known == 0 && !changesLearnt()) return false;
  sectors = known != 0 ? known : exportSectors();
  if (sectors == 0) return false;
  sizedMs = nowMs;
  blocks = <u32>((sectors + SECTORS_PER_BLOCK - 1) / SECTORS_PER_BLOCK);
  statistics.sectors = sectors;
  storeImageSectors(sectors);
  appendSetImage(sectors);
  return true;
}

function exportSectors(): u64 {
  const size = nbdExportSize() / SECTOR_SIZE;
  const limit = <u64>IMAGE_BLOCKS_MAX * SECTORS_PER_BLOCK;
  if (size <= limit) return size;
  logText('image larger than 2 TiB, the rest is not shown');
  logValue('sectors', size);
  logEnd(LogLevel.WARNING);
  return limit;
}

let connectionChecked: u32 = 0;

/** The PC was told a size: a server with less cannot have all that the PC may ask for. */
function checkExport(): void {
  const known = sectors != 0 ? sectors : localStoreReady() ? storedImageSectors() : 0;
  if (!localStoreReady()) return;
  if (known > nbdExportSize() / SECTOR_SIZE) nbdRestart(NbdError.EXPORT_SHRUNK);
  else connectionChecked = nbdConnection();
}

function begin(what: Operation, lba: u64, count: u32, address: usize): void {
  assert(state != VolumeState.PENDING);
  assert(lba + count <= sectors);
  state = VolumeState.PENDING;
  operation = what;
  requestLba = <u32>lba;
  requestCount = count;
  requestMemory = address;
  requestStartedMs = nowMs;
}

function finish(result: VolumeState): bool {
  if (operation == Operation.READ) {
    if (requestStalls) stalledMs += nowMs - requestStartedMs;
    requestStalls = false;
  }
  state = result;
  operation = Operation.NONE;
  return true;
}

function lastBlock(lba: u32, count: u32): u32 {
  return <u32>((<u64>lba + count - 1) / SECTORS_PER_BLOCK);
}

// Reading

/** Copies blocks from the cursor on as far as the cache has them. True when the request is done. */
function copyBlocks(): bool {
  const last = lastBlock(requestLba, requestCount);
  while (cursor <= last) {
    const slot = cacheFind(cursor);
    if (slot < 0 || cacheState(slot) != SlotState.READY || (cursorMask() & ~cacheMask(slot)) != 0) {
      if (!cursorMissed) statistics.blockMisses += 1;
      cursorMissed = true;
      return false;
    }
    if (!cursorMissed) statistics.blockHits += 1;
    copyBlock(slot);
    cursor += 1;
    cursorAlone = false;
    cursorMissed = false;
  }
  statistics.sectorsRead += requestCount;
  followSequence();
  return finish(VolumeState.DONE);
}

/** The sectors of the cursor block that the request asks for. */
function cursorMask(): u8 {
  return sectorMask(cursor, requestLba, requestCount);
}

/** Copies the part of the cursor block that the request asks for. */
function copyBlock(slot: i32): void {
  const blockLba = <u64>cursor * SECTORS_PER_BLOCK;
  const from = max<u64>(requestLba, blockLba);
  const to = min<u64>(<u64>requestLba + requestCount, blockLba + SECTORS_PER_BLOCK);
  const target = requestMemory + <usize>(from - requestLba) * SECTOR_SIZE;
  memory.copy(target, cacheAddress(slot) + <usize>(from - blockLba) * SECTOR_SIZE, <usize>(to - from) * SECTOR_SIZE);
  cacheTouch(slot);
}

/** A reader that goes on where it stopped gets blocks before it asks: twice as many each time, up to READ_AHEAD_MAX. */
function followSequence(): void {
  const end = requestLba + requestCount;
  const next = lastBlock(requestLba, requestCount) + 1;
  if (requestLba != sequentialLba || requestLba == 0) {
    readAhead = 0;
    readAheadEnd = next;
  } else if (next + readAhead / 2 >= readAheadEnd) {
    readAhead = min(max(readAhead * 2, READ_AHEAD_MIN), READ_AHEAD_MAX);
    const from = max(next, readAheadEnd);
    const to = min(next + readAhead, blocks);
    if (from < to) bring(from, to);
    readAheadEnd = max(to, next);
  }
  sequentialLba = end;
}

/** Brings every block in [from, to) that is not in the RAM cache or on its way, as far as there is room for more requests. */
function bring(from: u32, to: u32): void {
  for (let block = from; block < to; ) {
    const slot = cacheFind(block);
    const row = slot < 0 ? usableRow(block) : NO_ROW;
    let count: u32 = 1;
    if (slot >= 0) {
      // A block that is here in part is completed when the PC needs the rest of it.
      if (block == cursor && operation == Operation.READ && state == VolumeState.PENDING) completeCursor(slot);
    } else if (row != NO_ROW) {
      if (!load(block, row)) return;
    } else {
      if (!canFetch()) return;
      count = fetchRun(block, to);
      if (count == 0) return;
    }
    block += count;
  }
}

/** The newest copy of a block in the log, if it counts: one that may have changed on the server does as long as that cannot be
 * asked. */
function usableRow(block: u32): u32 {
  const row = tableFind(block);
  return row != NO_ROW && rowIs(row, ROW_UNVERIFIED) && canFetch() ? NO_ROW : row;
}

function canFetch(): bool {
  return connectionChecked == nbdConnection() && changesReadable();
}

/** Starts to read a block from the local store into the RAM cache. False when that must wait. */
function load(block: u32, row: u32): bool {
  // What a failed log has not written never will be: a block of that is read as it lies, and its checksum tells.
  if (loadsActive == LOADS_MAX || (!logWritten() && !logFailed())) return false;
  const slot = cacheAllocate(block);
  if (slot < 0) return false;
  const operation = deviceRead(rowBlock(row), 1, cacheAddress(slot));
  if (operation < 0) {
    cacheSetEmpty(slot);
    return false;
  }
  let i = 0;
  while (loadOperation[i] >= 0) i++;
  loadOperation[i] = operation;
  loadBlock[i] = block;
  loadRow[i] = row;
  loadsActive += 1;
  return true;
}

function finishLoads(): bool {
  let progressed = false;
  for (let i = 0; i < <i32>LOADS_MAX; i++) {
    if (loadOperation[i] < 0) continue;
    const result = deviceState(loadOperation[i]);
    if (result == OperationState.PENDING) continue;
    deviceRelease(loadOperation[i]);
    loadOperation[i] = -1;
    loadsActive -= 1;
    finishLoad(loadBlock[i], loadRow[i], result == OperationState.DONE);
    progressed = true;
  }
  return progressed;
}

function finishLoad(block: u32, row: u32, readable: bool): void {
  const slot = cacheFind(block);
  assert(slot >= 0);
  const current = cacheState(slot) == SlotState.FILLING && tableFind(block) == row;
  if (!current) {
    cacheSetEmpty(slot);
    return;
  }
  if (!storeCheckRead(row, cacheAddress(slot), readable)) {
    // Forgotten or lost; in the second case reading it is an error.
    if (rowIs(row, ROW_LOST)) cacheSetReady(slot, 0);
    else cacheSetEmpty(slot);
    return;
  }
  rowHit(row);
  cacheSetReady(slot, rowValid(row));
}

/** The cursor block is here, but not all the sectors that the PC wants: fetches the first of its holes. */
function completeCursor(slot: i32): void {
  if (cacheState(slot) != SlotState.READY) return;
  const mask = cacheMask(slot);
  if ((cursorMask() & ~mask) == 0) return;
  const row = tableFind(cursor);
  if (row != NO_ROW && rowIs(row, ROW_LOST)) {
    failRead();
    return;
  }
  if (!canFetch()) return;
  const first = <u32>ctz(<u32>~mask & 0xff);
  const count = min(<u32>ctz((<u32>mask >> first) | 0x100), SECTORS_PER_BLOCK - first);
  const lba = <u64>cursor * SECTORS_PER_BLOCK + first;
  const length = <u32>min<u64>(count, sectors - lba) * SECTOR_SIZE;
  const request = nbdRead(lba * SECTOR_SIZE, length);
  if (request < 0) return;
  nbdSetPiece(request, 0, cacheAddress(slot) + first * SECTOR_SIZE);
  cacheSetFilling(slot);
  noteFetch(request, cursor, 1, mask, <u8>((((<u32>1) << count) - 1) << first));
}

function noteFetch(request: i32, first: u32, count: u32, mask: u8, adds: u8): void {
  fetchActive[request] = true;
  fetchBlock[request] = first;
  fetchCount[request] = count;
  fetchMask[request] = mask;
  fetchAdds[request] = adds;
  fetchesActive += 1;
}

/** Fetches a run of blocks that are not on the card with one request; returns its length, 0 when no request or no slot is
 * free. */
function fetchRun(first: u32, end: u32): u32 {
  const limit: u32 = cursorAlone ? 1 : RUN_BLOCKS_MAX;
  let count: u32 = 1;
  while (count < limit && first + count < end && isAbsent(first + count)) count += 1;

  const offset = <u64>first * BLOCK_SIZE;
  const length = <u32>min<u64>(<u64>count * BLOCK_SIZE, sectors * SECTOR_SIZE - offset);
  const request = nbdRead(offset, length);
  if (request < 0) return 0;
  for (let i: u32 = 0; i < count; i++) {
    const slot = cacheAllocate(first + i);
    if (slot < 0) {
      // Every way of the set is on its way already: cannot be for a run shorter than the number of sets.
      abandonRun(request, first, i);
      return 0;
    }
    nbdSetPiece(request, i, cacheAddress(slot));
  }
  // The last block of an image that is not a multiple of 4 KiB: what lies behind its end reads as zeros.
  const tail = length % BLOCK_SIZE;
  if (tail != 0) memory.fill(cacheAddress(cacheFind(first + count - 1)) + tail, 0, BLOCK_SIZE - tail);
  noteFetch(request, first, count, 0, 0xff);
  return count;
}

function isAbsent(block: u32): bool {
  return cacheFind(block) < 0 && usableRow(block) == NO_ROW;
}

function abandonRun(request: i32, first: u32, count: u32): void {
  for (let i: u32 = 0; i < count; i++) cacheSetEmpty(cacheFind(first + i));
  nbdRelease(request);
}

function finishFetches(): bool {
  let progressed = false;
  for (let request: i32 = 0; request < <i32>NBD_REQUESTS_MAX; request++) {
    if (!fetchActive[request]) continue;
    const result = nbdState(request);
    if (result == NbdState.PENDING) continue;
    finishFetch(request, result);
    progressed = true;
  }
  return progressed;
}

function finishFetch(request: i32, result: NbdState): void {
  const first = fetchBlock[request];
  const count = fetchCount[request];
  for (let i: u32 = 0; i < count; i++) finishFetchedBlock(request, first + i, isWhole(result));
  if (result == NbdState.FAILED) fetchFailed(first, count, nbdErrno(request));
  nbdRelease(request);
  fetchActive[request] = false;
  fetchesActive -= 1;
}

/** Has the read brought everything? */
function isWhole(result: NbdState): bool {
  return result == NbdState.DONE || (MUTANT == Mutant.LOST_FILL && result == NbdState.LOST);
}

function finishFetchedBlock(request: i32, block: u32, done: bool): void {
  const slot = cacheFind(block);
  assert(slot >= 0);
  const mask = fetchMask[request];
  const current = cacheState(slot) == SlotState.FILLING;
  if (current && done) {
    cacheSetReady(slot, mask | fetchAdds[request]);
    // It replaces a copy that could not be verified.
    const row = tableFind(block);
    if (row != NO_ROW && rowIs(row, ROW_UNVERIFIED)) {
      tableRemove(block);
      noteSeen(block);
    }
    if (mask == 0) noteFill(block);
  } else if (current && mask != 0) {
    // What was there before is as good as it was.
    cacheSetReady(slot, mask);
  } else {
    cacheSetEmpty(slot);
  }
}

/** The server could not read a run. If the PC waits for one of its blocks, that block is tried alone: only what is really
 * unreadable gives an error. */
function fetchFailed(first: u32, count: u32, errno: u32): void {
  if (operation != Operation.READ || cursor < first || cursor >= first + count) return;
  if (count > 1) {
    cursorAlone = true;
    return;
  }
  logText('server cannot read');
  logValue('block', cursor);
  logValue('errno', errno);
  logEnd(LogLevel.ERROR);
  failRead();
}

function failRead(): void {
  failedLba = max<u64>(requestLba, <u64>cursor * SECTORS_PER_BLOCK);
  finish(VolumeState.UNCORRECTABLE);
}

// Writing

/** Offers the write to the log; once taken, the cache follows. */
function write(): bool {
  if (!writeLogAppend(requestLba, requestCount, requestMemory, requestMore)) {
    requestStalls = requestStalls || writeLogFull();
    return false;
  }
  if (requestStalls) {
    stalledMs += nowMs - requestStartedMs;
    // Not twice: what it still waits for counts from here on.
    requestStartedMs = nowMs;
  }
  requestStalls = false;
  operation = Operation.WRITE;
  for (let i: u32 = 0; i < appendedBlocks(); i++) updateCache(i);
  statistics.sectorsWritten += requestCount;
  // Only the end of a command is acknowledged.
  if (requestMore) finish(VolumeState.DONE);
  else acknowledge();
  return true;
}

/** Ends a write or a flush that has reached its acknowledgement point. */
function acknowledge(): bool {
  const flushes = operation == Operation.FLUSH;
  if (!(flushes ? writeLogFlushed() : writeLogAcknowledged())) return false;
  if (flushes) statistics.commandsStored += 1;
  return finish(VolumeState.DONE);
}

/** The cache's copy of block `i` of the write is what the log has of it now. */
function updateCache(i: u32): void {
  const block = appendedBlock(i);
  let slot = cacheFind(block);
  if (MUTANT == Mutant.CACHE_NOT_UPDATED && slot >= 0 && cacheState(slot) == SlotState.READY) return;
  if (slot >= 0 && cacheState(slot) != SlotState.READY) {
    if (MUTANT != Mutant.STALE_FILL) cacheSetStale(slot);
    return;
  }
  if (slot < 0) slot = cacheAllocate(block);
  else cacheSetFilling(slot);
  if (slot < 0) return;
  memory.copy(cacheAddress(slot), appendedData(i), BLOCK_SIZE);
  cacheSetReady(slot, appendedMask(i));
  cacheTouch(slot);
}

/** The write that waits has found the log full; the read, the server out of reach. */
let requestStalls: bool = false;

/** The PC cannot wait any longer: for the server, or for room in the log. */
function timeOut(): bool {
  if (operation == Operation.READ) logText('read given up, the image server is out of reach');
  else logText('write given up, it did not reach its acknowledgement point');
  logValue('lba', requestLba);
  logValue('sectors', requestCount);
  logValue('connection', nbdConnection());
  logEnd(LogLevel.WARNING);
  if (operation != Operation.READ) statistics.writesFailed += 1;
  if (operation == Operation.READ) failRead();
  else if (MUTANT == Mutant.FLUSH_TIME_OUT_SUCCEEDS && operation == Operation.FLUSH) finish(VolumeState.DONE);
  else finish(VolumeState.FAULT);
  requestMore = requestStalls = false;
  writeLogEndCommand();
  return true;
}
