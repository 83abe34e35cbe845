// One write of the PC on its way into the log: a record of its blocks is built, its data copied in, and where it covers a block
// in part only the rest comes from the newest copy that the card has, in RAM or on the store. What the card does not have
// stays out of the block's valid mask: nothing has to be fetched, so writes work without a server.

import { cacheAddress, cacheFind, cacheMask, cacheState, SlotState } from '../cache/cache';
import { BLOCK_SIZE, SECTOR_SIZE, SECTORS_PER_BLOCK } from '../config';
import { NO_ROW, ROW_LOST, ROW_UNVERIFIED, rowDirty, rowIs, rowValid, tableFind } from '../local-store/block-table';
import { deviceRead, deviceRelease, deviceState, OperationState } from '../local-store/device';
import { ENTRY_LOST, RECORD_BEGINS, RECORD_ENDS, RecordKind } from '../local-store/format';
import { storeCheckRead } from '../local-store/local-store';
import { SEGMENTS_RESERVED } from '../local-store/reclaim';
import {
  logWritten,
  recordAbandon,
  recordAddress,
  recordBegin,
  recordData,
  recordFinish,
  recordMask,
  recordSetEntry,
  rowBlock,
} from '../local-store/record-log';
import { MUTANT, Mutant } from '../mutant';

enum AppendState {
  IDLE = 0,
  /** The record is begun; its first and last block are being completed. */
  EDGES = 1,
  /** Given up, but a read into the record is not over. */
  ABANDONED = 2,
}

enum EdgeState {
  NEEDED = 0,
  READING = 1,
  HERE = 2,
}

let state: AppendState = AppendState.IDLE;
let firstBlock: u32 = 0;
let blocks: u32 = 0;

// The first and the last block.
const edgeState: StaticArray<EdgeState> = [EdgeState.HERE, EdgeState.HERE];
const edgeValid: StaticArray<u8> = [0, 0];
const edgeRow: StaticArray<u32> = [0, 0];
const edgeOperation: StaticArray<i32> = [0, 0];

/** Sectors behind the end of the image in its last block: they count as known zeros. */
let imageEndBlock: u32 = 0xffffffff;
let imageEndMask: u8 = 0;

/** Blocks that became dirty with the last record, and its number. */
let newlyDirty: u32 = 0;
let sequence: u64 = 0;

export function initAppend(): void {
  sequence = 0;
  newlyDirty = 0;
  state = AppendState.IDLE;
  imageEndBlock = 0xffffffff;
  imageEndMask = 0;
}

export function appendSetImage(sectors: u64): void {
  const rest = <u32>(sectors % SECTORS_PER_BLOCK);
  imageEndBlock = rest == 0 ? 0xffffffff : <u32>(sectors / SECTORS_PER_BLOCK);
  imageEndMask = rest == 0 ? 0 : <u8>((<u32>0xff) << rest);
}

/** After a power-on: `last` is the newest record of the log. A FLUSH CACHE is for writes of earlier power-ons, too. */
export function appendAfter(last: u64): void {
  sequence = last;
}

/** Number of the last record. */
export function appendedSequence(): u64 {
  return sequence;
}

/** Image blocks that the server does not have since the last record, and had before. */
export function appendedDirty(): u32 {
  return newlyDirty;
}

// The blocks of the last record, for the RAM cache: their memory is valid until the next record is begun.

export function appendedBlocks(): u32 {
  return blocks;
}

export function appendedBlock(i: u32): u32 {
  return firstBlock + i;
}

export function appendedData(i: u32): usize {
  return recordAddress(i);
}

export function appendedMask(i: u32): u8 {
  return recordMask(i);
}

/** The sectors of `block` that [lba, lba + count) covers. */
export function sectorMask(block: u32, lba: u32, count: u32): u8 {
  const start = <u64>block * SECTORS_PER_BLOCK;
  const from = <u32>(max<u64>(lba, start) - start);
  const to = <u32>(min<u64>(<u64>lba + count, start + SECTORS_PER_BLOCK) - start);
  return <u8>(((<u32>0xff) << from) & (<u32>0xff >> (SECTORS_PER_BLOCK - to)));
}

/** Takes the write on, or on with it: call with the same arguments until it is true. False as long as there is no place for it,
 * or its edges are being read. */
export function append(lba: u32, count: u32, source: usize, begins: bool, ends: bool): bool {
  if (state == AppendState.ABANDONED && !abandonOn()) return false;
  if (state == AppendState.IDLE && !begin(lba, count, begins)) return false;
  if (!completeEdge(0) || !completeEdge(1)) return false;
  copyIn(lba, count, source);
  newlyDirty = 0;
  for (let i: u32 = 0; i < blocks; i++) enter(i, lba, count);
  const flags = (begins ? RECORD_BEGINS : 0) | (ends ? RECORD_ENDS : 0);
  sequence = recordFinish(RecordKind.WRITE, flags, count);
  state = AppendState.IDLE;
  return true;
}

/** Gives the write up that append() is busy with, if any. */
export function appendAbandon(): void {
  if (state != AppendState.EDGES) return;
  state = AppendState.ABANDONED;
  abandonOn();
}

/** Lets an abandoned record go when nothing reads into it any more. */
export function appendStep(): bool {
  return state == AppendState.ABANDONED && abandonOn();
}

function abandonOn(): bool {
  for (let edge = 0; edge < 2; edge++) {
    if (edgeState[edge] != EdgeState.READING) continue;
    if (deviceState(edgeOperation[edge]) == OperationState.PENDING) return false;
    deviceRelease(edgeOperation[edge]);
    edgeState[edge] = EdgeState.HERE;
  }
  recordAbandon();
  state = AppendState.IDLE;
  return true;
}

/** A command that has begun may use a segment more: one of up to 1 MiB is never held up half-way. */
function begin(lba: u32, count: u32, begins: bool): bool {
  firstBlock = lba / SECTORS_PER_BLOCK;
  blocks = <u32>((<u64>lba + count - 1) / SECTORS_PER_BLOCK) - firstBlock + 1;
  if (!recordBegin(blocks, SEGMENTS_RESERVED - (begins ? 0 : 1))) return false;
  state = AppendState.EDGES;
  edgeState[0] = edgeNeeded(firstBlock, lba, count) ? EdgeState.NEEDED : EdgeState.HERE;
  const last = firstBlock + blocks - 1;
  edgeState[1] = blocks > 1 && edgeNeeded(last, lba, count) ? EdgeState.NEEDED : EdgeState.HERE;
  edgeValid[0] = edgeValid[1] = 0;
  edgeRow[0] = edgeRow[1] = NO_ROW;
  return true;
}

function edgeNeeded(block: u32, lba: u32, count: u32): bool {
  return sectorMask(block, lba, count) != 0xff;
}

/** Fills edge block 0 or 1 with what the card has of it. True when that is done. */
function completeEdge(edge: i32): bool {
  if (edgeState[edge] == EdgeState.HERE) return true;
  const i: u32 = edge == 0 ? 0 : blocks - 1;
  const block = firstBlock + i;
  if (edgeState[edge] == EdgeState.READING) return takeEdge(edge, i);
  const slot = cacheFind(block);
  const row = tableFind(block);
  edgeRow[edge] = row;
  if (slot >= 0 && cacheState(slot) == SlotState.READY) {
    memory.copy(recordData(i), cacheAddress(slot), BLOCK_SIZE);
    edgeValid[edge] = cacheMask(slot);
  } else if (row != NO_ROW && rowValid(row) != 0 && !rowIs(row, ROW_UNVERIFIED)) {
    // Not before what lies there is written.
    if (!logWritten()) return false;
    edgeOperation[edge] = deviceRead(rowBlock(row), 1, recordData(i));
    if (edgeOperation[edge] >= 0) edgeState[edge] = EdgeState.READING;
    return false;
  } else {
    memory.fill(recordData(i), 0, BLOCK_SIZE);
  }
  edgeState[edge] = EdgeState.HERE;
  return true;
}

function takeEdge(edge: i32, i: u32): bool {
  const state = deviceState(edgeOperation[edge]);
  if (state == OperationState.PENDING) return false;
  deviceRelease(edgeOperation[edge]);
  const right = storeCheckRead(edgeRow[edge], recordData(i), state == OperationState.DONE);
  if (right) edgeValid[edge] = rowValid(edgeRow[edge]);
  else memory.fill(recordData(i), 0, BLOCK_SIZE);
  edgeState[edge] = EdgeState.HERE;
  return true;
}

function copyIn(lba: u32, count: u32, source: usize): void {
  const offset = <usize>(lba % SECTORS_PER_BLOCK) * SECTOR_SIZE;
  memory.copy(recordData(0) + offset, source, <usize>count * SECTOR_SIZE);
}

function enter(i: u32, lba: u32, count: u32): void {
  const block = firstBlock + i;
  const written = sectorMask(block, lba, count);
  let valid = written;
  if (written != 0xff) valid |= edgeValid[i == 0 ? 0 : 1];
  if (MUTANT == Mutant.PARTIAL_BLOCK_VALID) valid = 0xff;
  if (block == imageEndBlock) valid |= imageEndMask;
  const old = tableFind(block);
  let dirty = written;
  let flags: u8 = 0;
  if (old != NO_ROW) {
    if (rowDirty(old) == 0) newlyDirty += 1;
    // So that the newest copy of a block always has everything that the server does not.
    dirty |= rowDirty(old) & valid;
    if (rowIs(old, ROW_LOST) && valid != 0xff) flags = ENTRY_LOST;
  } else {
    newlyDirty += 1;
  }
  recordSetEntry(i, block, valid, dirty, flags);
}
