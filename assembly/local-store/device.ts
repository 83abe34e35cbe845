// Operations on the store's block device: started with a tag, polled by it. Thin, so that the rest of the store speaks of
// operations and never of imports.

import { store_completed, store_flush, store_read, store_size, store_write } from '../imports';
import { STORE_OPERATIONS, STORE_OPERATIONS_SIZE } from '../memory-map';

/** Operations in flight. */
export const OPERATIONS_MAX: i32 = 32;
/** The last ones are kept for the log: a crowd of reads must not hold up a write. */
const OPERATIONS_FOR_LOG: i32 = 8;
const NONE_COMPLETED: u32 = 0xffffffff;

export enum OperationState {
  FREE = 0,
  PENDING = 1,
  DONE = 2,
  FAILED = 3,
  /** Nobody waits for it any more; free when it ends. */
  ABANDONED = 4,
}

assert(<u32>OPERATIONS_MAX <= STORE_OPERATIONS_SIZE);

/** Operations that have not been reported yet. */
let inFlight: u32 = 0;

// The partition of the device that is in use: all block numbers count from its first.
let partitionStart: u32 = 0;
let partitionSize: u32 = 0;

export function initDevice(): void {
  memory.fill(STORE_OPERATIONS, <u8>OperationState.FREE, STORE_OPERATIONS_SIZE);
  inFlight = 0;
  deviceUse(0, store_size());
}

/** From now on `blocks` blocks from `first` on are the device; they must lie on it. */
export function deviceUse(first: u32, blocks: u32): void {
  assert(<u64>first + blocks <= <u64>store_size());
  partitionStart = first;
  partitionSize = blocks;
}

/** Of the whole device. */
export function deviceSize(): u32 {
  return store_size();
}

/** Of the partition in use. */
export function deviceBlocks(): u32 {
  return partitionSize;
}

/** Starts to read `count` blocks to `target`; the operation, or -1 when too many are in flight. */
export function deviceRead(block: u32, count: u32, target: usize): i32 {
  const operation = begin(OPERATIONS_MAX - OPERATIONS_FOR_LOG);
  if (operation >= 0) store_read(operation, partitionStart + block, count, target);
  return operation;
}

/** Starts to write; the memory must not change before the operation has ended. */
export function deviceWrite(block: u32, count: u32, source: usize): i32 {
  const operation = begin(OPERATIONS_MAX);
  if (operation >= 0) store_write(operation, partitionStart + block, count, source);
  return operation;
}

/** Starts to make durable every write that is DONE now. */
export function deviceFlush(): i32 {
  const operation = begin(OPERATIONS_MAX);
  if (operation >= 0) store_flush(operation);
  return operation;
}

export function deviceState(operation: i32): OperationState {
  return load<u8>(STORE_OPERATIONS + operation);
}

/** Gives an operation back that is DONE or FAILED, or forgets one that is not: its memory is in use until it has ended. */
export function deviceRelease(operation: i32): void {
  const pending = deviceState(operation) == OperationState.PENDING;
  assert(deviceState(operation) != OperationState.FREE);
  setState(operation, pending ? OperationState.ABANDONED : OperationState.FREE);
}

/** Takes what has ended since. True when anything has. */
export function devicePoll(): bool {
  let any = false;
  while (inFlight > 0) {
    const completed = store_completed();
    if (completed == NONE_COMPLETED) return any;
    const operation = <i32>(completed & 0xff);
    assert(operation < OPERATIONS_MAX);
    const abandoned = deviceState(operation) == OperationState.ABANDONED;
    assert(abandoned || deviceState(operation) == OperationState.PENDING);
    if (abandoned) setState(operation, OperationState.FREE);
    else setState(operation, completed >> 8 == 0 ? OperationState.DONE : OperationState.FAILED);
    inFlight -= 1;
    any = true;
  }
  return any;
}

function begin(limit: i32): i32 {
  for (let operation = 0; operation < limit; operation++) {
    if (deviceState(operation) != OperationState.FREE) continue;
    setState(operation, OperationState.PENDING);
    inFlight += 1;
    return operation;
  }
  return -1;
}

function setState(operation: i32, state: OperationState): void {
  store<u8>(STORE_OPERATIONS + operation, <u8>state);
}
