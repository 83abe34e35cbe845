// The write log: every write of the PC, in order, from the moment it is taken until the image server has committed it.
//
// Writes are copied into a ring and sent on in order. An epoch (a run of whole commands) is closed by FLUSH CACHE, by age,
// by size, or when the ring runs full: once the server has every write of it, an NBD flush commits it as one generation and
// the ring space is free again. No write of the next epoch is sent before that, so what a flush commits is exactly the
// epoch. A server discards what it has not committed when a connection breaks (DESIGN.md decision 5), so everything in the
// ring is then sent again, in order.
//
// The ring is in RAM: it survives the loss of the link and of the server, not of the card. An entry is at most half a data
// buffer and lies in one piece.
//
//   arena:  entries 20 B [ENTRIES] | data ring
//   entry:  first sector u32 | sectors u32 | data address u32 | time u32 | NBD request slot u16 | state u8 | 0

import { NBD_REQUEST_SIZE_MAX, SECTOR_SIZE } from '../config';
import { clock_ms } from '../imports';
import { MUTANT, Mutant } from '../mutant';
import {
  NbdError,
  NbdState,
  nbdConnection,
  nbdFlush,
  nbdRelease,
  nbdRestart,
  nbdSetPiece,
  nbdState,
  nbdUp,
  nbdWrite,
} from '../nbd/client';
import { settings } from '../settings';
import { statistics } from '../statistics';

/** Small writes are 512 to 4096 bytes; a ring of 8 MiB of the smallest would need more, and closes its epoch instead. */
const ENTRIES: u32 = 4096;
const ENTRY_SIZE: u32 = 20;
const PIECE_SIZE: u32 = 4096;

export const WRITE_LOG_SIZE_MIN: u32 = ENTRIES * ENTRY_SIZE + 4 * NBD_REQUEST_SIZE_MAX;

enum EntryState {
  QUEUED = 0,
  SENT = 1,
  RECEIVED = 2,
}

@unmanaged
class Entry {
  lba: u32;
  count: u32;
  address: u32;
  /** clock_ms() when the PC wrote it. */
  writtenMs: u32;
  request: u16;
  state: u8;
  reserved: u8;
}

enum FlushState {
  NONE = 0,
  /** The epoch is closed; its last writes are not all with the server yet. */
  WAITING = 1,
  SENT = 2,
}

let entries: usize = 0;
let ring: usize = 0;
let ringSize: u32 = 0;

// Entry numbers only grow (they wrap at 2^32); number modulo ENTRIES is the place. head <= sent <= tail.
let head: u32 = 0;
/** First entry that is not sent on this connection. */
let nextToSend: u32 = 0;
let tail: u32 = 0;
/** First entry that the server has not confirmed on this connection. */
let nextToConfirm: u32 = 0;
/** One past the last entry that ends a command: epochs close only here, unless the ring is full. */
let commandEnd: u32 = 0;
/** One past the last entry of the closed epoch; equal to head when no epoch is closed. */
let epochEnd: u32 = 0;
/** Free data space begins here, as an offset into the ring. */
let ringTail: u32 = 0;

let flushState: FlushState = FlushState.NONE;
let flushRequest: i32 = -1;
let connection: u32 = 0;

assert(offsetof<Entry>() == ENTRY_SIZE);

function entry(number: u32): Entry {
  return changetype<Entry>(entries + <usize>(number % ENTRIES) * ENTRY_SIZE);
}

/** Takes `size` bytes at `arena`; false when that is less than WRITE_LOG_SIZE_MIN. */
export function initWriteLog(arena: usize, size: u32): bool {
  if (size < WRITE_LOG_SIZE_MIN) return false;
  entries = arena;
  ring = arena + ENTRIES * ENTRY_SIZE;
  ringSize = size - ENTRIES * ENTRY_SIZE;
  head = nextToSend = nextToConfirm = tail = commandEnd = epochEnd = 0;
  ringTail = 0;
  flushState = FlushState.NONE;
  flushRequest = -1;
  connection = nbdConnection();
  return true;
}

/** Where `length` bytes in one piece are free, or 0. */
function ringReserve(length: u32): usize {
  if (head == tail) {
    ringTail = 0;
    return ring;
  }
  const ringHead = <u32>(<usize>entry(head).address - ring);
  if (ringTail > ringHead) {
    if (ringTail + length <= ringSize) return ring + ringTail;
    if (MUTANT == Mutant.RING_OVERRUN) return ring;
    // Wrap: the rest of the ring stays unused for this round.
    return length < ringHead ? ring : 0;
  }
  return ringTail + length < ringHead ? ring + ringTail : 0;
}

/** Appends a write, copying its data. False when there is no room now. `more`: the same command goes on in the next one. */
export function writeLogAppend(lba: u32, count: u32, source: usize, more: bool): bool {
  const length = count * SECTOR_SIZE;
  assert(count > 0);
  assert(length <= NBD_REQUEST_SIZE_MAX);
  if (more && commandEnd == tail && halfFull()) {
    // A large command begins: it gets an epoch of its own, so that only one of more than half the ring is ever torn.
    closeEpoch(commandEnd);
    return false;
  }
  const address = tail - head < ENTRIES ? ringReserve(length) : 0;
  if (address == 0) {
    // The open epoch is all that fills the ring: commit it, even in the middle of a command.
    if (commandEnd == head || isSent(commandEnd)) commandEnd = tail;
    closeEpoch(commandEnd);
    return false;
  }
  memory.copy(address, source, length);
  const added = entry(tail);
  added.lba = lba;
  added.count = count;
  added.address = <u32>address;
  added.writtenMs = clock_ms();
  added.state = <u8>EntryState.QUEUED;
  tail += 1;
  if (!more || MUTANT == Mutant.TEAR_COMMANDS) commandEnd = tail;
  if (MUTANT == Mutant.DROP_LAST_SECTOR && more && count > 1) added.count = count - 1;
  ringTail = <u32>(address + length - ring);
  statistics.lagBytes += length;
  if (MUTANT == Mutant.LAG_TOO_SMALL) statistics.lagBytes -= SECTOR_SIZE;
  return true;
}

/** The command that was being appended will not be continued. */
export function writeLogEndCommand(): void {
  commandEnd = tail;
}

/** True when the server has every write: what it answers to a read is then what the PC wrote last. A new connection has none
 * of what an earlier one had not committed, from its first moment on. */
export function writeLogReceived(): bool {
  if (MUTANT == Mutant.STALE_AFTER_RECONNECT) return nextToConfirm == tail;
  return head == tail || (nextToConfirm == tail && connection == nbdConnection());
}

/** True when the server has committed every write. */
export function writeLogEmpty(): bool {
  return head == tail;
}

/** Closes the open epoch, for FLUSH CACHE. `writeLogEmpty()` tells when all is committed. */
export function writeLogFlush(): void {
  writeLogEndCommand();
  closeEpoch(commandEnd);
}

function halfFull(): bool {
  return statistics.lagBytes > ringSize / 2 || tail - head > ENTRIES / 2;
}

/** True when an entry behind `end` is with the server on this connection. */
function isSent(end: u32): bool {
  if (MUTANT == Mutant.EPOCH_BEHIND_SENT) return false;
  return <i32>(nextToSend - end) > 0;
}

/** Closes the epoch before entry `end`, unless the server has more already: a flush would commit that, too. */
function closeEpoch(end: u32): void {
  if (flushState != FlushState.NONE || end == head || isSent(end)) return;
  epochEnd = end;
  flushState = FlushState.WAITING;
}

/** Milliseconds until an epoch closes by age, 0xFFFFFFFF when none is open. */
export function writeLogTimeoutMs(): u32 {
  if (head == tail || flushState != FlushState.NONE || !nbdUp() || isSent(commandEnd)) return 0xffffffff;
  const age = oldestAgeMs();
  return age >= settings.epochAgeMs ? 0 : settings.epochAgeMs - age;
}

/** How long the oldest write has been waiting to be committed. */
function oldestAgeMs(): u32 {
  if (MUTANT == Mutant.CLOCK_WRAP && clock_ms() < entry(head).writtenMs) return 0;
  return clock_ms() - entry(head).writtenMs;
}

/** Sends, confirms, commits. Returns true when anything moved. */
export function writeLogStep(): bool {
  if (head == tail) return false;
  let progressed = resendAfterReconnect();
  if (nbdUp()) {
    if (confirm()) progressed = true;
    closeEpochWhenDue();
    if (send()) progressed = true;
    if (commit()) progressed = true;
  }
  updateLag();
  return progressed;
}

/** A new connection knows nothing of what an earlier one had not committed. */
function resendAfterReconnect(): bool {
  if (nbdConnection() == connection) return false;
  connection = nbdConnection();
  if (MUTANT == Mutant.RESEND_REORDERED && tail - head >= 2) reorder();
  for (let number = head; number != nextToSend; number++) {
    const lost = entry(number);
    if (lost.state == EntryState.SENT) nbdRelease(lost.request);
    lost.state = <u8>EntryState.QUEUED;
  }
  nextToSend = nextToConfirm = MUTANT == Mutant.RESEND_NOTHING ? nextToSend : head;
  if (flushState == FlushState.SENT) {
    nbdRelease(flushRequest);
    flushRequest = -1;
    flushState = FlushState.WAITING;
  }
  return true;
}

function send(): bool {
  const end = flushState == FlushState.NONE ? tail : epochEnd;
  let progressed = false;
  while (nextToSend != end) {
    const next = entry(nextToSend);
    const length = next.count * SECTOR_SIZE;
    const request = nbdWrite(<u64>next.lba * SECTOR_SIZE, length, 0);
    if (request < 0) break;
    for (let piece: u32 = 0; piece * PIECE_SIZE < length; piece++) {
      nbdSetPiece(request, piece, next.address + piece * PIECE_SIZE);
    }
    next.request = <u16>request;
    next.state = <u8>EntryState.SENT;
    nextToSend += 1;
    progressed = true;
  }
  return progressed;
}

function confirm(): bool {
  const before = nextToConfirm;
  for (let number = nextToConfirm; number != nextToSend; number++) {
    const sent = entry(number);
    if (sent.state != EntryState.SENT) continue;
    const state = nbdState(sent.request);
    if (state == NbdState.PENDING) continue;
    // Refused (the server's disk is full, say) or lost: resendAfterReconnect() takes it from here.
    if (state != NbdState.DONE) return refused(state);
    nbdRelease(sent.request);
    sent.state = <u8>EntryState.RECEIVED;
  }
  while (nextToConfirm != nextToSend && entry(nextToConfirm).state == EntryState.RECEIVED) nextToConfirm += 1;
  return nextToConfirm != before;
}

/** A server that refuses a write or a flush is left alone for a back-off, then everything is sent to it again in order. */
function refused(state: NbdState): bool {
  if (state == NbdState.FAILED) nbdRestart(NbdError.REQUEST_REFUSED);
  return false;
}

function closeEpochWhenDue(): void {
  if (flushState != FlushState.NONE) return;
  if (oldestAgeMs() >= settings.epochAgeMs || statistics.lagBytes >= settings.epochSizeBytes) closeEpoch(commandEnd);
}

function commit(): bool {
  if (flushState == FlushState.WAITING && <i32>(nextToConfirm - epochEnd) >= 0) {
    if (MUTANT == Mutant.NEVER_COMMIT) {
      release();
      return true;
    }
    flushRequest = nbdFlush(0);
    if (flushRequest < 0) return false;
    flushState = FlushState.SENT;
    return true;
  }
  if (flushState != FlushState.SENT) return false;
  const state = nbdState(flushRequest);
  if (state == NbdState.PENDING) {
    if (MUTANT == Mutant.RELEASE_BEFORE_COMMIT) releaseEarly();
    return false;
  }
  if (state != NbdState.DONE) return refused(state);
  nbdRelease(flushRequest);
  flushRequest = -1;
  release();
  return true;
}

/** For mutants alone. */
function reorder(): void {
  const first = changetype<usize>(entry(head));
  const second = changetype<usize>(entry(head + 1));
  for (let i: usize = 0; i < ENTRY_SIZE; i += 4) {
    const word = load<u32>(first + i);
    store<u32>(first + i, load<u32>(second + i));
    store<u32>(second + i, word);
  }
}

/** For mutants alone: the epoch counts as committed while its flush is on the way. */
function releaseEarly(): void {
  if (epochEnd == head) return;
  for (let number = head; number != epochEnd; number++) statistics.lagBytes -= entry(number).count * SECTOR_SIZE;
  head = epochEnd;
}

/** The closed epoch is a generation on the server now. */
function release(): void {
  for (let number = head; number != epochEnd; number++) {
    statistics.lagBytes -= entry(number).count * SECTOR_SIZE;
    if (MUTANT == Mutant.LAG_TOO_SMALL) statistics.lagBytes += SECTOR_SIZE;
  }
  head = epochEnd;
  flushState = FlushState.NONE;
  statistics.epochsCommitted += 1;
}

function updateLag(): void {
  statistics.lagEpochs = head == tail ? 0 : flushState != FlushState.NONE && epochEnd != tail ? 2 : 1;
  if (head != tail) statistics.lagSinceMs = entry(MUTANT == Mutant.LAG_TOO_YOUNG ? tail - 1 : head).writtenMs;
}
