// The sectors of one data command on their way between the volume and the data buffer, in chunks of at most half the buffer:
// while the front end drains or fills one half, the volume works on the other.
//
// Sectors before an unreadable one are always delivered: hosts take the failed LBA to mean that everything before it has
// arrived.

import { SECTOR_SIZE } from '../config';
import { DATA_BUFFER, DATA_BUFFER_HALF_SIZE } from '../memory-map';
import {
  VolumeState,
  volumeFailedLba,
  volumeFlush,
  volumeIdle,
  volumePrefetch,
  volumeRead,
  volumeState,
  volumeWrite,
} from '../volume/volume';

export enum TransferState {
  /** The volume is at work. */
  WAITING = 0,
  /** A chunk is the front end's: `chunkOffset()`, `chunkSize()`. */
  READY = 1,
  /** Nothing is left to do. */
  DONE = 2,
  /** `transferFault()`, `transferFailedLba()`. */
  FAILED = 3,
}

const CHUNK_SECTORS: u32 = DATA_BUFFER_HALF_SIZE / SECTOR_SIZE;

/** The first sector that the volume has not been asked for yet, and how many there are. */
let nextLba: u64 = 0;
let left: u32 = 0;
/** The half that the volume was given last. */
let half: u32 = 0;
let requestLba: u64 = 0;
let requestSectors: u32 = 0;
let chunkAt: u32 = 0;
let chunkSectors: u32 = 0;
let failure: VolumeState = VolumeState.IDLE;
let failedLba: u64 = 0;

/** Where the chunk lies in the data buffer. */
export function chunkOffset(): u32 {
  return chunkAt;
}

/** Bytes in the chunk. */
export function chunkSize(): u32 {
  return chunkSectors * SECTOR_SIZE;
}

/** True when the device is at fault (DF), false when a sector cannot be read (UNC). */
export function transferFault(): bool {
  return failure == VolumeState.FAULT;
}

/** The first sector that could not be read. */
export function transferFailedLba(): u64 {
  return failedLba;
}

function begin(lba: u64, sectors: u32): void {
  nextLba = lba;
  left = sectors;
  half = 1;
  failure = VolumeState.IDLE;
}

/** Starts to read: `takeRead()` gives the chunks. */
export function beginRead(lba: u64, sectors: u32): void {
  begin(lba, sectors);
  request(false);
}

function request(more: bool): void {
  half ^= 1;
  requestLba = nextLba;
  requestSectors = min(left, CHUNK_SECTORS);
  nextLba += requestSectors;
  left -= requestSectors;
  volumeRead(requestLba, requestSectors, DATA_BUFFER + half * DATA_BUFFER_HALF_SIZE, more);
  if (left > 0) volumePrefetch(nextLba, min(left, CHUNK_SECTORS));
}

/** The next chunk, once the front end is done with the one before. */
export function takeRead(): TransferState {
  const state = volumeState();
  if (state == VolumeState.PENDING) return TransferState.WAITING;
  if (state == VolumeState.IDLE) return failure == VolumeState.IDLE ? TransferState.DONE : TransferState.FAILED;
  if (state != VolumeState.DONE) return failRead(state);
  volumeIdle();
  chunkAt = half * DATA_BUFFER_HALF_SIZE;
  chunkSectors = requestSectors;
  if (left > 0) request(true);
  return TransferState.READY;
}

/** True when the chunk taken last is the command's last and all is well. */
export function readEnds(): bool {
  return volumeState() == VolumeState.IDLE && failure == VolumeState.IDLE;
}

function failRead(state: VolumeState): TransferState {
  failure = state;
  failedLba = state == VolumeState.UNCORRECTABLE ? volumeFailedLba() : requestLba;
  volumeIdle();
  left = 0;
  chunkAt = half * DATA_BUFFER_HALF_SIZE;
  chunkSectors = <u32>(failedLba - requestLba);
  return chunkSectors > 0 ? TransferState.READY : TransferState.FAILED;
}

/** Starts to write: the first chunk is ready to be filled. */
export function beginWrite(lba: u64, sectors: u32): void {
  begin(lba, sectors);
  nextChunk();
}

function nextChunk(): void {
  half ^= 1;
  chunkAt = half * DATA_BUFFER_HALF_SIZE;
  chunkSectors = min(left, CHUNK_SECTORS);
}

/** The PC has filled the chunk. READY: the next one is ready to be filled. DONE: that was the last; see `finishWrite()`. */
export function submitWrite(): TransferState {
  const state = finishWrite();
  if (state != TransferState.DONE) return state;
  left -= chunkSectors;
  volumeWrite(nextLba, chunkSectors, DATA_BUFFER + chunkAt, left > 0);
  nextLba += chunkSectors;
  if (left == 0) return TransferState.DONE;
  nextChunk();
  return TransferState.READY;
}

/** Whether the volume is done with what it was given. */
export function finishWrite(): TransferState {
  const state = volumeState();
  if (state == VolumeState.PENDING) return TransferState.WAITING;
  if (state == VolumeState.IDLE) return TransferState.DONE;
  volumeIdle();
  if (state == VolumeState.DONE) return TransferState.DONE;
  failure = state;
  failedLba = nextLba;
  return TransferState.FAILED;
}

/** Has everything written so far committed: `finishWrite()` tells when. `more`: at the end of a write. */
export function beginFlush(more: bool): void {
  failure = VolumeState.IDLE;
  volumeFlush(more);
}
