// The volume: the PC's LBA space, above whatever holds the sectors: the cache for reads, the write log for writes.
//
// `ata` has one request at a time here, as an IDE disk without queued commands has one command; the volume answers by
// state, never by callback. A read walks its blocks in order (the cursor) and copies each as soon as the cache has it; the
// missing ones ahead of the cursor are fetched in runs, several at once, and sequential readers get read-ahead.
//
// Invariant: a fetch starts only when the server has received every write, so what it brings is never older than what the
// PC wrote; a write to a block that is being fetched makes the fetched copy stale.

import {
  cacheAddress,
  cacheAllocate,
  cacheFind,
  cacheSetClean,
  cacheSetEmpty,
  cacheSetStale,
  cacheState,
  cacheTouch,
  SlotState,
} from '../cache/cache';
import {
  BLOCK_SIZE,
  IMAGE_BLOCKS_MAX,
  NBD_REQUEST_SIZE_MAX,
  NBD_REQUESTS_MAX,
  SECTOR_SIZE,
  SECTORS_PER_BLOCK,
} from '../config';
import { clock_ms } from '../imports';
import { LogLevel, logEnd, logText, logValue } from '../log';
import { MUTANT, Mutant } from '../mutant';
import {
  NbdState,
  nbdConnection,
  nbdErrno,
  nbdExportSize,
  nbdRead,
  nbdRelease,
  nbdSetPiece,
  nbdSilentMs,
  nbdState,
  nbdUp,
} from '../nbd/client';
import { settings } from '../settings';
import { statistics } from '../statistics';
import {
  writeLogAppend,
  writeLogEmpty,
  writeLogEndCommand,
  writeLogFlush,
  writeLogReceived,
} from '../write-log/write-log';

export enum VolumeState {
  IDLE = 0,
  PENDING = 1,
  DONE = 2,
  /** The sectors cannot be had now: the server is out of reach and they are not on the card, or it cannot read them.
   * `volumeFailedLba()` is the first. */
  UNCORRECTABLE = 3,
  /** The write, or the flush, did not reach the server in time: device fault. */
  FAULT = 4,
}

enum Operation {
  NONE = 0,
  READ = 1,
  /** A write that waits for room in the log. */
  WRITE_WAITING = 2,
  /** A write that is in the log and waits for the server to have it. */
  WRITE = 3,
  FLUSH = 4,
}

const RUN_BLOCKS_MAX: u32 = NBD_REQUEST_SIZE_MAX / BLOCK_SIZE;
/** Read-ahead doubles from one block run to this: two of the largest requests keep a 40 ms link busy. */
const READ_AHEAD_MIN: u32 = 4;
const READ_AHEAD_MAX: u32 = 2 * RUN_BLOCKS_MAX;

let sectors: u64 = 0;
let blocks: u32 = 0;

// The current request.
let state: VolumeState = VolumeState.IDLE;
let operation: Operation = Operation.NONE;
let requestLba: u32 = 0;
let requestCount: u32 = 0;
let requestMemory: usize = 0;
let requestMore: bool = false;
let requestStartedMs: u32 = 0;
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
let fetchesActive: u32 = 0;

assert(NBD_REQUESTS_MAX == 16);

export function initVolume(): void {
  sectors = 0;
  blocks = 0;
  state = VolumeState.IDLE;
  operation = Operation.NONE;
  sequentialLba = 0;
  readAhead = 0;
  readAheadEnd = 0;
  for (let request: i32 = 0; request < <i32>NBD_REQUESTS_MAX; request++) fetchActive[request] = false;
  fetchesActive = 0;
}

/** Capacity in sectors; 0 until the image server has told it. It never changes afterwards while the card has power. */
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
  state = VolumeState.IDLE;
  operation = Operation.NONE;
}

/** Reads `count` sectors from `lba` to `target`. The range must lie inside the volume. */
export function volumeRead(lba: u64, count: u32, target: usize): void {
  begin(Operation.READ, lba, count, target);
  cursor = requestLba / SECTORS_PER_BLOCK;
  cursorAlone = false;
  cursorMissed = false;
  if (copyBlocks()) return;
  fetch(cursor, lastBlock(requestLba, requestCount) + 1);
}

/** Writes `count` sectors at `lba` from `source`. `more`: the PC's command goes on with the next call. */
export function volumeWrite(lba: u64, count: u32, source: usize, more: bool): void {
  begin(Operation.WRITE_WAITING, lba, count, source);
  requestMore = more;
  write();
}

/** Everything written so far is committed by the server when the state is DONE. */
export function volumeFlush(): void {
  begin(Operation.FLUSH, 0, 0, 0);
  if (writeLogEmpty() || MUTANT == Mutant.FORGET_FLUSH) finish(VolumeState.DONE);
  else writeLogFlush();
}

/** The PC is about to read these sectors. */
export function volumePrefetch(lba: u64, count: u32): void {
  if (lba >= sectors) return;
  const end = min<u64>(lba + count, sectors);
  fetch(<u32>lba / SECTORS_PER_BLOCK, lastBlock(<u32>lba, <u32>(end - lba)) + 1);
}

/** Milliseconds until the current request times out, 0xFFFFFFFF when there is none. A server that moves bytes is waited for;
 * one that has gone silent is out of reach, whether or not the connection has noticed. */
export function volumeTimeoutMs(): u32 {
  if (state != VolumeState.PENDING || MUTANT == Mutant.NO_TIME_OUT) return 0xffffffff;
  let waited = clock_ms() - requestStartedMs;
  if (nbdUp()) waited = min(waited, nbdSilentMs());
  return waited >= settings.offlineReadTimeoutMs ? 0 : settings.offlineReadTimeoutMs - waited;
}

/** Takes what has arrived and goes on. Returns true when anything moved. */
export function volumeStep(): bool {
  let progressed = sectors == 0 && nbdUp() ? setCapacity() : false;
  if (fetchesActive > 0) progressed = finishFetches() || progressed;
  if (state != VolumeState.PENDING) return progressed;
  if (operation == Operation.READ) {
    if (copyBlocks()) progressed = true;
    if (state == VolumeState.PENDING) fetch(cursor, lastBlock(requestLba, requestCount) + 1);
  } else if (operation == Operation.WRITE_WAITING) {
    progressed = write() || progressed;
  } else if (operation == Operation.WRITE) {
    if (writeLogReceived() || MUTANT == Mutant.ACKNOWLEDGE_EARLY) progressed = finish(VolumeState.DONE);
  } else if (operation == Operation.FLUSH) {
    if (writeLogEmpty()) progressed = finish(VolumeState.DONE);
    else writeLogFlush();
  }
  if (state == VolumeState.PENDING && volumeTimeoutMs() == 0) progressed = timeOut();
  return progressed;
}

function setCapacity(): bool {
  const size = nbdExportSize() / SECTOR_SIZE;
  const limit = <u64>IMAGE_BLOCKS_MAX * SECTORS_PER_BLOCK;
  if (size > limit) {
    logText('image larger than 2 TiB, the rest is not shown');
    logValue('sectors', size);
    logEnd(LogLevel.WARNING);
  }
  sectors = min(size, limit);
  blocks = <u32>((sectors + SECTORS_PER_BLOCK - 1) / SECTORS_PER_BLOCK);
  statistics.sectors = sectors;
  return sectors != 0;
}

function begin(what: Operation, lba: u64, count: u32, address: usize): void {
  assert(state != VolumeState.PENDING);
  assert(lba + count <= sectors);
  state = VolumeState.PENDING;
  operation = what;
  requestLba = <u32>lba;
  requestCount = count;
  requestMemory = address;
  requestStartedMs = clock_ms();
}

function finish(result: VolumeState): bool {
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
    if (slot < 0 || cacheState(slot) != SlotState.CLEAN) {
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
    if (from < to) fetch(from, to);
    readAheadEnd = max(to, next);
  }
  sequentialLba = end;
}

/** Asks the server for every block in [from, to) that is not in the cache or on its way, as far as requests are free. */
function fetch(from: u32, to: u32): void {
  if (!nbdUp() || (!writeLogReceived() && MUTANT != Mutant.FETCH_EARLY)) return;
  let block = from;
  while (block < to) {
    if (cacheFind(block) >= 0) {
      block += 1;
      continue;
    }
    const count = fetchRun(block, to);
    if (count == 0) return;
    block += count;
  }
}

/** Fetches a run of missing blocks with one request; returns its length, 0 when no request or no slot is free. */
function fetchRun(first: u32, end: u32): u32 {
  const limit: u32 = cursorAlone ? 1 : RUN_BLOCKS_MAX;
  let count: u32 = 1;
  while (count < limit && first + count < end && cacheFind(first + count) < 0) count += 1;

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
  fetchActive[request] = true;
  fetchBlock[request] = first;
  fetchCount[request] = count;
  fetchesActive += 1;
  return count;
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
  for (let i: u32 = 0; i < count; i++) {
    const slot = cacheFind(first + i);
    assert(slot >= 0);
    if (isWhole(result) && cacheState(slot) == SlotState.FILLING) cacheSetClean(slot);
    else cacheSetEmpty(slot);
  }
  if (result == NbdState.FAILED) fetchFailed(first, count, nbdErrno(request));
  nbdRelease(request);
  fetchActive[request] = false;
  fetchesActive -= 1;
}

/** Has the read brought everything? */
function isWhole(result: NbdState): bool {
  if (MUTANT == Mutant.LOST_FILL && result == NbdState.LOST) return true;
  if (MUTANT == Mutant.UNREADABLE_AS_READ && result == NbdState.FAILED) return true;
  return result == NbdState.DONE;
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
  if (!writeLogAppend(requestLba, requestCount, requestMemory, requestMore)) return false;
  operation = Operation.WRITE;
  const last = lastBlock(requestLba, requestCount);
  for (let block = requestLba / SECTORS_PER_BLOCK; block <= last; block++) updateCache(block);
  statistics.sectorsWritten += requestCount;
  return true;
}

/** The cache's copy of a block follows the write: in place when it is there, allocated when the whole block is written. */
function updateCache(block: u32): void {
  const blockLba = <u64>block * SECTORS_PER_BLOCK;
  const from = max<u64>(requestLba, blockLba);
  const to = min<u64>(<u64>requestLba + requestCount, min<u64>(blockLba + SECTORS_PER_BLOCK, sectors));
  let slot = cacheFind(block);
  if (MUTANT == Mutant.CACHE_NOT_UPDATED && slot >= 0 && cacheState(slot) == SlotState.CLEAN) return;
  if (slot >= 0 && cacheState(slot) != SlotState.CLEAN) {
    if (MUTANT != Mutant.STALE_FILL) cacheSetStale(slot);
    return;
  }
  if (slot < 0) {
    const isPartial = from != blockLba || to - from != SECTORS_PER_BLOCK;
    if (isPartial && MUTANT != Mutant.CACHE_PARTIAL_BLOCK) return;
    slot = cacheAllocate(block);
    if (slot < 0) return;
    cacheSetClean(slot);
  }
  const source = requestMemory + <usize>(from - requestLba) * SECTOR_SIZE;
  memory.copy(cacheAddress(slot) + <usize>(from - blockLba) * SECTOR_SIZE, source, <usize>(to - from) * SECTOR_SIZE);
  cacheTouch(slot);
}

/** The server has been out of reach for too long for the PC to wait. */
function timeOut(): bool {
  logText('request given up, the image server is out of reach');
  logValue('lba', requestLba);
  logValue('sectors', requestCount);
  logValue('connection', nbdConnection());
  logEnd(LogLevel.WARNING);
  if (operation == Operation.READ) failRead();
  else if (MUTANT == Mutant.FLUSH_TIME_OUT_SUCCEEDS && operation == Operation.FLUSH) finish(VolumeState.DONE);
  else finish(VolumeState.FAULT);
  writeLogEndCommand();
  return true;
}
