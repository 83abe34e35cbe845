// Requests: 16 slots, each with its pieces (where its payload lies in memory) and the account of what a structured reply
// has brought so far. A slot belongs to the upper layer from nbdRead() and its like until nbdRelease().
//
// A request that is larger than the server takes at once goes in parts, one after the other. A part on its way is named on
// the wire by its cookie: the slot, and a generation number that no other part of this card's life has.
//
// Invariant: while the slot is in use and the part is in flight, exactly one cookie answers to it.

import { NBD_REQUEST_SIZE_MAX, NBD_REQUESTS_MAX } from '../config';
import { PIECE_SIZE, PIECES, PIECES_MAX, QUEUE, RANGES, RANGES_MAX, REQUEST_SIZE, REQUESTS } from './arena';
import { NBD_CMD_ASK, NBD_CMD_BLOCK_STATUS, NBD_CMD_FLUSH, NBD_CMD_READ, NBD_CMD_WRITE, NbdState } from './constants';

/** A part that was damaged on its way is sent again this often. */
const PART_TRIES_MAX: u8 = 3;

@unmanaged
export class Request {
  offset: u64; // 0: of the whole request in the export
  cookie: u64; // 8: of the part
  length: u32; // 16: of the whole request
  /** The part's place in the request. */
  partStart: u32; // 20
  partLength: u32; // 24
  /** The server's error for this part; 0 none. */
  errno: u32; // 28
  type: u16; // 32
  flags: u16; // 34
  state: NbdState; // 36
  /** The part's header is on its way or sent, and its reply has not ended. */
  inFlight: bool; // 40
  /** Released while in flight: what comes is thrown away, then the slot is free. */
  abandoned: bool; // 41
  /** How often the part was sent again because it was damaged on its way. */
  tries: u8; // 42
  reserved: u8; // 43
  ranges: u32; // 44: how many there are
  /** FLUSH: the generation; BLOCK_STATUS: bytes of extents; ASK: the blocks that the server has; WRITE: pieces to leave out. */
  result: u64; // 48
  /** FLUSH: the generation's id. */
  result2: u64; // 56
}

assert(offsetof<Request>() <= REQUEST_SIZE);

export enum Cover {
  OK = 0,
  OVERLAP = 1,
  SCATTERED = 2,
}

let generation: u32 = 0;
let queued: u32 = 0;
let inFlight: u32 = 0;
/** Bit n: a command n was answered. */
let answered: u32 = 0;
/** Set when any request ends: the upper layers have something to look at. */
let finished: bool = false;

export function request(slot: i32): Request {
  return changetype<Request>(REQUESTS + <usize>slot * REQUEST_SIZE);
}

export function initRequests(): void {
  memory.fill(REQUESTS, 0, NBD_REQUESTS_MAX * REQUEST_SIZE);
  queued = inFlight = 0;
  finished = false;
  answered = 0;
}

export function requestsInFlight(): u32 {
  return inFlight;
}

export function requestsQueued(): u32 {
  return queued;
}

/** True once after a request has ended. */
export function takeFinished(): bool {
  const was = finished;
  finished = false;
  return was;
}

/** True once after a command of this type was answered. */
export function takeAnswered(type: u16): bool {
  const was = (answered & (1 << type)) != 0;
  answered &= ~(1 << type);
  return was;
}

/** The type of the command that has been in flight for the longest time; READ when there is none. */
export function oldestType(): u16 {
  let type = NBD_CMD_READ;
  let ageMax: u32 = 0;
  for (let slot: i32 = 0; slot < <i32>NBD_REQUESTS_MAX; slot++) {
    const which = request(slot);
    // Generations wrap: compare by how long ago they were.
    const age = generation - <u32>(which.cookie >> 32) + 1;
    if (!which.inFlight || age <= ageMax) continue;
    ageMax = age;
    type = which.type;
  }
  answered = 0;
  return type;
}

// Slots

/** Puts a request into a free slot and at the end of the queue; -1 when no slot is free. */
export function allocate(type: u16, flags: u16, offset: u64, length: u32): i32 {
  for (let slot: i32 = 0; slot < <i32>NBD_REQUESTS_MAX; slot++) {
    const free = request(slot);
    if (free.state != NbdState.FREE) continue;
    free.offset = offset;
    free.length = length;
    free.type = type;
    free.flags = flags;
    free.partStart = 0;
    free.errno = 0;
    free.tries = 0;
    free.result = free.result2 = 0;
    free.state = NbdState.PENDING;
    free.inFlight = free.abandoned = false;
    if (hasPieces(free)) {
      assert(length > 0);
      if (type != NBD_CMD_BLOCK_STATUS) assert(length <= NBD_REQUEST_SIZE_MAX);
      memory.fill(PIECES + <usize>slot * (PIECES_MAX * 4), 0, PIECES_MAX * 4);
    }
    store<u8>(QUEUE + queued, <u8>slot);
    queued += 1;
    return slot;
  }
  return -1;
}

export function release(slot: i32): void {
  assert(<u32>slot < NBD_REQUESTS_MAX);
  const old = request(slot);
  assert(old.state != NbdState.FREE);
  assert(!old.abandoned);
  if (old.state == NbdState.PENDING) {
    // The server may still be reading a write's payload from the owner's memory.
    assert(old.type != NBD_CMD_WRITE);
    if (old.inFlight) {
      old.abandoned = true;
      return;
    }
    unqueue(slot);
  }
  old.state = NbdState.FREE;
}

/** The connection is gone: whatever was not answered is lost. */
export function loseAll(): void {
  for (let slot: i32 = 0; slot < <i32>NBD_REQUESTS_MAX; slot++) {
    const lost = request(slot);
    if (lost.state != NbdState.PENDING) continue;
    lost.state = lost.abandoned ? NbdState.FREE : NbdState.LOST;
    lost.inFlight = lost.abandoned = false;
  }
  queued = inFlight = 0;
  finished = true;
}

export function finish(slot: i32, state: NbdState): void {
  const done = request(slot);
  assert(done.state == NbdState.PENDING);
  done.state = done.abandoned ? NbdState.FREE : state;
  done.abandoned = false;
  finished = true;
}

/** A request that needs no server: it ends before it was sent. */
export function finishUnsent(slot: i32, state: NbdState, errno: u32): void {
  assert(!request(slot).inFlight);
  unqueue(slot);
  request(slot).errno = errno;
  finish(slot, state);
}

// Parts and the queue

/** The slot to be sent next, -1 when there is none that may go now. A server may carry requests out in any order, so one
 * that touches a byte of a write that is not answered waits for the answer, and what is behind it with it. */
export function nextToSend(): i32 {
  if (queued == 0) return -1;
  const slot: i32 = load<u8>(QUEUE);
  return mustWait(slot) ? -1 : slot;
}

function mustWait(slot: i32): bool {
  const next = request(slot);
  if (inFlight == 0 || next.type == NBD_CMD_FLUSH) return false;
  const end = next.offset + next.length;
  for (let other: i32 = 0; other < <i32>NBD_REQUESTS_MAX; other++) {
    const ahead = request(other);
    if (!ahead.inFlight || other == slot || ahead.type == NBD_CMD_FLUSH) continue;
    if (!changes(next) && !changes(ahead)) continue;
    if (next.offset < ahead.offset + ahead.length && ahead.offset < end) return true;
  }
  return false;
}

function changes(which: Request): bool {
  return which.type != NBD_CMD_READ && which.type != NBD_CMD_BLOCK_STATUS;
}

/** The answer was damaged, or what was sent: the part is sent again, before all others. False when that was tried enough. */
export function sendAgain(slot: i32): bool {
  const damaged = request(slot);
  assert(damaged.inFlight);
  if (damaged.tries >= PART_TRIES_MAX) return false;
  damaged.tries += 1;
  damaged.inFlight = false;
  damaged.errno = 0;
  inFlight -= 1;
  memory.copy(QUEUE + 1, QUEUE, queued);
  store<u8>(QUEUE, <u8>slot);
  queued += 1;
  return true;
}

/** Takes the first slot off the queue; its next part, of at most `partLengthMax` bytes, is in flight from now on. */
export function startPart(slot: i32, partLengthMax: u32): void {
  assert(<i32>load<u8>(QUEUE) == slot);
  const next = request(slot);
  assert(!next.inFlight);
  if (next.type == NBD_CMD_BLOCK_STATUS || next.type == NBD_CMD_ASK) assert(load<u32>(pieceSlot(slot, 0)) != 0);
  if (hasPayload(next)) {
    const pieces = (next.length + PIECE_SIZE - 1) / PIECE_SIZE;
    for (let i: u32 = 0; i < pieces; i++) assert(load<u32>(pieceSlot(slot, i)) != 0);
    next.partLength = min(next.length - next.partStart, partLengthMax);
  } else {
    next.partLength = next.length;
  }
  generation += 1;
  // 0 is never a generation: a zeroed slot answers to no cookie.
  if (generation == 0) generation = 1;
  next.cookie = ((<u64>generation) << 32) | <u64>slot;
  next.errno = 0;
  next.ranges = 0;
  next.inFlight = true;
  inFlight += 1;
  unqueue(slot);
}

/** The slot that `cookie` names, -1 when no part in flight has it. */
export function slotOfCookie(cookie: u64): i32 {
  const slot = <u32>cookie;
  if (slot >= NBD_REQUESTS_MAX) return -1;
  const named = request(slot);
  return named.inFlight && named.cookie == cookie ? <i32>slot : -1;
}

/** The reply to the part has ended. */
export function finishPart(slot: i32): void {
  const done = request(slot);
  assert(done.inFlight);
  done.inFlight = false;
  inFlight -= 1;
  answered |= 1 << done.type;
  if (done.errno != 0) {
    finish(slot, NbdState.FAILED);
    return;
  }
  done.partStart += done.partLength;
  if (done.partStart >= done.length || done.abandoned) {
    finish(slot, NbdState.DONE);
    return;
  }
  // In front, so that it does not wait for one that waits for it.
  memory.copy(QUEUE + 1, QUEUE, queued);
  store<u8>(QUEUE, <u8>slot);
  queued += 1;
}

function unqueue(slot: i32): void {
  for (let i: u32 = 0; i < queued; i++) {
    if (<i32>load<u8>(QUEUE + i) != slot) continue;
    queued -= 1;
    memory.copy(QUEUE + i, QUEUE + i + 1, queued - i);
    return;
  }
  assert(false);
}

function hasPayload(which: Request): bool {
  return which.type == NBD_CMD_READ || which.type == NBD_CMD_WRITE;
}

/** BLOCK_STATUS and ASK have one piece, whatever their length: extents, hashes. */
function hasPieces(which: Request): bool {
  return hasPayload(which) || which.type == NBD_CMD_BLOCK_STATUS || which.type == NBD_CMD_ASK;
}

// Pieces

function pieceSlot(slot: i32, i: u32): usize {
  return PIECES + <usize>slot * (PIECES_MAX * 4) + ((<usize>i) << 2);
}

export function setPiece(slot: i32, i: u32, address: usize): void {
  assert(<u32>slot < NBD_REQUESTS_MAX);
  assert(request(slot).state == NbdState.PENDING);
  assert(!request(slot).inFlight);
  assert(i * PIECE_SIZE < request(slot).length);
  assert(address != 0);
  store<u32>(pieceSlot(slot, i), <u32>address);
}

/** Where byte `position` of the request lies. */
export function pieceAddress(slot: i32, position: u32): usize {
  assert(position < request(slot).length);
  return <usize>load<u32>(pieceSlot(slot, position / PIECE_SIZE)) + (position % PIECE_SIZE);
}

/** How many bytes from `position` on, at most `limit`, lie in one run: pieces that are neighbours in memory count as one. */
export function pieceRun(slot: i32, position: u32, limit: u32): u32 {
  let run = PIECE_SIZE - (position % PIECE_SIZE);
  let i = position / PIECE_SIZE;
  while (run < limit && load<u32>(pieceSlot(slot, i + 1)) == load<u32>(pieceSlot(slot, i)) + PIECE_SIZE) {
    i += 1;
    run += PIECE_SIZE;
  }
  return min(run, limit);
}

// The account of a structured reply: sorted ranges that do not touch, relative to the part

/** Notes that [from, to) has come. */
export function coverRange(slot: i32, from: u32, to: u32): Cover {
  const which = request(slot);
  const ranges = RANGES + <usize>slot * (RANGES_MAX * 8);
  assert(from < to);
  assert(to <= which.partLength);
  // The first range that ends at or behind `from`: the one to grow, or the one to stand before.
  let i: u32 = 0;
  while (i < which.ranges && rangeEnd(ranges, i) < from) i += 1;
  let grows = i < which.ranges && rangeEnd(ranges, i) == from;
  const next = grows ? i + 1 : i;
  if (next < which.ranges && rangeStart(ranges, next) < to) return Cover.OVERLAP;
  const meetsNext = next < which.ranges && rangeStart(ranges, next) == to;
  if (grows && meetsNext) {
    setRange(ranges, i, rangeStart(ranges, i), rangeEnd(ranges, next));
    memory.copy(ranges + ((<usize>next) << 3), ranges + ((<usize>next + 1) << 3), (which.ranges - next - 1) * 8);
    which.ranges -= 1;
  } else if (grows) {
    setRange(ranges, i, rangeStart(ranges, i), to);
  } else if (meetsNext) {
    setRange(ranges, i, from, rangeEnd(ranges, i));
  } else {
    if (which.ranges == RANGES_MAX) return Cover.SCATTERED;
    memory.copy(ranges + ((<usize>i + 1) << 3), ranges + ((<usize>i) << 3), (which.ranges - i) * 8);
    setRange(ranges, i, from, to);
    which.ranges += 1;
  }
  return Cover.OK;
}

/** True when every byte of the part has come. */
export function covered(slot: i32): bool {
  const which = request(slot);
  const ranges = RANGES + <usize>slot * (RANGES_MAX * 8);
  return which.ranges == 1 && rangeStart(ranges, 0) == 0 && rangeEnd(ranges, 0) == which.partLength;
}

function rangeStart(ranges: usize, i: u32): u32 {
  return load<u32>(ranges + ((<usize>i) << 3));
}

function rangeEnd(ranges: usize, i: u32): u32 {
  return load<u32>(ranges + ((<usize>i) << 3) + 4);
}

function setRange(ranges: usize, i: u32, from: u32, to: u32): void {
  store<u32>(ranges + ((<usize>i) << 3), from);
  store<u32>(ranges + ((<usize>i) << 3) + 4, to);
}
