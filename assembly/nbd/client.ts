// The NBD client: one connection to the image server, opened again whenever it breaks.
//
// A sans-I/O state machine: nbdStep() looks at the stream and goes on as far as it can; nobody is called back. A broken
// connection loses every request that is not answered (state LOST); what to do about it is the upper layer's business.
// Nothing that a server sends can trap: what cannot be is a NbdError, counted and logged, and costs the connection.
//
//   WAITING -> CONNECTING -> NEGOTIATING -> UP -> (anything wrong) -> WAITING
//                                           UP -> DISCONNECTING -> STOPPED   by nbdDisconnect()

import { nowMs } from '../clock';
import {
  NBD_SILENCE_TIMEOUT_MS,
  NET_PATHS_MAX,
  RECONNECT_MAX_MS,
  RECONNECT_MIN_MS,
  RECONNECT_TOLD_MS,
} from '../config';
import { NetState, net_close, net_open, net_state, random_u32 } from '../imports';
import { LogLevel, logBytes, logEnd, logText, logValue } from '../log';
import { SETTINGS } from '../memory-map';
import { SETTINGS_EXPORT, settings } from '../settings';
import { LinkState, statistics } from '../statistics';
import { PIECE_SIZE } from './arena';
import {
  NBD_CMD_ASK,
  NBD_CMD_BLOCK_STATUS,
  NBD_CMD_FLUSH,
  NBD_CMD_READ,
  NBD_CMD_TRIM,
  NBD_CMD_WRITE,
  NBD_ERROR_FIRST_REFUSAL,
  NBD_ERROR_FIRST_VIOLATION,
  NbdError,
  NbdState,
  nbdErrorText,
} from './constants';
import { clearFailure, fail, failure, failureName1, failureName2, failureValue1, failureValue2 } from './failure';
import {
  avoidStructured,
  initNegotiate,
  negotiateAbort,
  negotiateAwaitsExport,
  negotiateBetweenMessages,
  negotiatedBlockMin,
  negotiatedFlags,
  negotiatedSize,
  negotiatedStructured,
  negotiateInTls,
  negotiateStart,
  negotiateStep,
} from './negotiate';
import { initPlace, PlaceMode, placeAgreed, placeMode } from './place';
import {
  allocate,
  initRequests,
  loseAll,
  oldestType,
  release,
  request,
  requestsInFlight,
  requestsQueued,
  setPiece,
  takeAnswered,
  takeFinished,
} from './requests';
import { outputPending, outputSent, resetStream, STREAM, streamBegin, streamTimeoutMs, takeMoved } from './stream';
import { transmitBetweenMessages, transmitBusy, transmitDisconnect, transmitStart, transmitStep } from './transmit';

export { NBD_CMD_FLAG_FUA, NBD_FLAG_READ_ONLY, NbdError, NbdState } from './constants';

enum Link {
  STOPPED = 0,
  /** Until the next attempt is due. */
  WAITING = 1,
  CONNECTING = 2,
  NEGOTIATING = 3,
  UP = 4,
  DISCONNECTING = 5,
}

const NO_TIMER: u32 = 0xffffffff;
/** A server that was silent may only be slow (a flush of much data to a slow disk): it gets twice the time with every new
 * attempt, up to 2^4 times, until it has answered a command of the kind that it was silent about. */
const PATIENCE_MAX: u32 = 4;

let link: Link = Link.STOPPED;
/** Of the runtime's network paths, the one that is in use or tried next: the same until it fails. */
let path: u32 = 0;
let connections: u32 = 0;
/** Connections that were lost, or did not come about, since power-on. */
let losses: u32 = 0;
/** Attempts since the last connection that lasted. */
let attempts: u32 = 0;
let sinceMs: u32 = 0;
let waitMs: u32 = 0;
/** When a byte moved last, or something that must be answered began. */
let movedMs: u32 = 0;
let busy: bool = false;
let patience: u32 = 0;
/** The command that the server was silent about. */
let silentType: u16 = 0;
let loggedError: NbdError = NbdError.NONE;
/** The size at the first connection: the PC has been told so, and an export may grow but not shrink under it. */
let firstSize: u64 = 0;

export function initNbd(): void {
  initRequests();
  initNegotiate();
  initPlace();
  clearFailure();
  path = connections = losses = attempts = patience = 0;
  firstSize = 0;
  loggedError = NbdError.NONE;
  link = Link.WAITING;
  sinceMs = nowMs;
  waitMs = 0;
  statistics.linkState = LinkState.DOWN;
}

// The export

/** True in the transmission phase: requests are accepted. */
export function nbdUp(): bool {
  return link == Link.UP;
}

/** How many times the transmission phase has been reached. */
export function nbdConnection(): u32 {
  return connections;
}

/** How many times a connection was lost, or did not come about. */
export function nbdLosses(): u32 {
  return losses;
}

/** How long the server has brought and taken nothing although something is outstanding, in ms. */
export function nbdSilentMs(): u32 {
  return busy ? nowMs - movedMs : 0;
}

/** In bytes, as of the last successful connection; any number from 0 to 2^63 - 1. */
export function nbdExportSize(): u64 {
  return negotiatedSize();
}

/** The transmission flags of [NBD], NBD_FLAG_READ_ONLY among them. */
export function nbdExportFlags(): u32 {
  return negotiatedFlags();
}

// Requests

/** Starts to read; returns the request's slot, or -1 when the link is down or no slot is free. The caller names every
 * piece with nbdSetPiece() before the next nbdStep(), and the memory is the client's until the state is not PENDING. */
export function nbdRead(offset: u64, length: u32): i32 {
  return begin(NBD_CMD_READ, 0, offset, length);
}

/** Starts to write, likewise; the pieces must not change while PENDING. `flags`: NBD_CMD_FLAG_FUA or 0. */
export function nbdWrite(offset: u64, length: u32, flags: u32): i32 {
  return begin(NBD_CMD_WRITE, <u16>flags, offset, length);
}

/** Makes every write durable that was DONE before. DONE at once where the server has no cache to flush. `record`: the last
 * record whose writes those are; a server that knows cards answers with the generation, nbdResult() and nbdResult2(). */
export function nbdFlush(record: u64): i32 {
  return link == Link.UP ? allocate(NBD_CMD_FLUSH, 0, record, 0) : -1;
}

/** Asks what has changed in [offset, offset + length). The answer, at most 4088 bytes of extents as [NBD] has them, goes to
 * piece 0; nbdResult() is how many. */
export function nbdBlockStatus(offset: u64, length: u32): i32 {
  return begin(NBD_CMD_BLOCK_STATUS, 0, offset, length);
}

/** Asks which of these whole blocks the server has; SHA-256 of each is in piece 0. Bit i of nbdResult(): it has block i,
 * and it is written. Only where placeAsk() is true. */
export function nbdAsk(offset: u64, length: u32): i32 {
  assert(offset % PIECE_SIZE == 0 && length % PIECE_SIZE == 0);
  return begin(NBD_CMD_ASK, 0, offset, length);
}

/** Of a write that has not been handed to nbdStep() yet: the pieces that the server has. */
export function nbdLeaveOut(slot: i32, pieces: u32): void {
  request(slot).result = pieces;
}

export function nbdResult(slot: i32): u64 {
  return request(slot).result;
}

export function nbdResult2(slot: i32): u64 {
  return request(slot).result2;
}

/** Tells the server that nobody needs these bytes. DONE at once where the server does not want to know. */
export function nbdTrim(offset: u64, length: u32): i32 {
  return begin(NBD_CMD_TRIM, 0, offset, length);
}

function begin(type: u16, flags: u16, offset: u64, length: u32): i32 {
  if (link != Link.UP) return -1;
  const size = negotiatedSize();
  assert(<u64>length <= size);
  assert(offset <= size - length);
  return allocate(type, flags, offset, length);
}

/** Where bytes `i` * 4096 to (`i` + 1) * 4096 of the request lie; the last piece may be shorter. */
export function nbdSetPiece(slot: i32, i: u32, address: usize): void {
  setPiece(slot, i, address);
}

export function nbdState(slot: i32): NbdState {
  return request(slot).state;
}

/** The server's error number, in state FAILED. */
export function nbdErrno(slot: i32): u32 {
  return request(slot).errno;
}

/** Gives the slot back. A read that is PENDING is abandoned: its memory is the caller's again at once. A write that is
 * PENDING cannot be released. */
export function nbdRelease(slot: i32): void {
  release(slot);
}

// The connection

/** Gives the connection up, whatever is outstanding, and opens another after a back-off. */
export function nbdRestart(error: NbdError): void {
  if (link != Link.UP) return;
  fail(error, 'connection', connections, 'in_flight', requestsInFlight());
  drop();
}

/** A clean stop: no request is accepted any more, what is outstanding ends, then the server is told. */
export function nbdDisconnect(): void {
  if (link == Link.UP) {
    link = Link.DISCONNECTING;
    return;
  }
  if (link == Link.STOPPED || link == Link.DISCONNECTING) return;
  if (link != Link.WAITING) net_close(STREAM);
  link = Link.STOPPED;
  statistics.linkState = LinkState.DOWN;
}

/** Milliseconds until nbdStep() has something to do without any event; 0xFFFFFFFF when only an event makes it so. */
export function nbdTimeoutMs(): u32 {
  if (link == Link.WAITING) return placeMode() == PlaceMode.WAITING ? NO_TIMER : left(sinceMs, waitMs);
  if (link == Link.STOPPED || !busy) return NO_TIMER;
  return min(left(movedMs, silenceMs()), streamTimeoutMs());
}

function left(startMs: u32, durationMs: u32): u32 {
  const passed = nowMs - startMs;
  return passed >= durationMs ? 0 : durationMs - passed;
}

function silenceMs(): u32 {
  return link >= Link.UP ? NBD_SILENCE_TIMEOUT_MS << patience : NBD_SILENCE_TIMEOUT_MS;
}

/** Goes on as far as it can. True when a request has ended or the link has changed. */
export function nbdStep(): bool {
  const before = link;
  if (link == Link.STOPPED) return false;
  streamBegin();
  if (link == Link.WAITING) {
    if (placeMode() == PlaceMode.WAITING || left(sinceMs, waitMs) != 0) return false;
    open();
  }
  if (link == Link.CONNECTING && net_state(STREAM) == NetState.OPEN) setLink(Link.NEGOTIATING);
  if (link == Link.NEGOTIATING && negotiateStep() && accept()) setLink(Link.UP);
  if (link >= Link.UP) transmitStep();
  // After what has been received: it may have been the last, and nothing else tells of the end.
  const isClosed = net_state(STREAM) == NetState.CLOSED;
  if (link == Link.DISCONNECTING) disconnectStep();
  if (failure() == NbdError.NONE && isClosed) failClosed();
  if (failure() == NbdError.NONE) watchSilence();
  if (patience > 0 && takeAnswered(silentType)) patience = 0;
  if (failure() != NbdError.NONE) drop();
  return takeFinished() || link != before;
}

function open(): void {
  resetStream();
  clearFailure();
  busy = false;
  // One that does not exist, or that nothing leads to at the moment, is closed at once.
  for (let i: u32 = 0; i < NET_PATHS_MAX; i++) {
    net_open(STREAM, path);
    if (net_state(STREAM) != NetState.CLOSED) break;
    nextPath();
  }
  setLink(Link.CONNECTING);
}

function nextPath(): void {
  path = (path + 1) % NET_PATHS_MAX;
}

function setLink(next: Link): void {
  link = next;
  if (next == Link.NEGOTIATING) negotiateStart();
  if (next == Link.UP) {
    connections += 1;
    statistics.connects += 1;
    sinceMs = nowMs;
    loggedError = NbdError.NONE;
    transmitStart();
    logUp();
  }
  // A server that refused us is asked again and again: the state stays until the answer is another.
  if (next == Link.UP) statistics.linkState = LinkState.UP;
  else if (statistics.linkState != LinkState.REFUSED) {
    statistics.linkState = next == Link.CONNECTING ? LinkState.CONNECTING : LinkState.NEGOTIATING;
  }
}

/** What the server told must fit what it told before. */
function accept(): bool {
  const size = negotiatedSize();
  if (connections == 0) firstSize = size;
  if (size < firstSize) {
    fail(NbdError.EXPORT_SHRUNK, 'size', size, 'was', firstSize);
    return false;
  }
  return true;
}

function logUp(): void {
  logText('image server connected');
  logValue('size', negotiatedSize());
  logValue('flags', negotiatedFlags());
  logValue('min_block', negotiatedBlockMin());
  logValue('structured', negotiatedStructured() ? 1 : 0);
  logValue('connection', connections);
  logValue('path', path);
  logEnd(LogLevel.INFO);
}

function disconnectStep(): void {
  if (requestsInFlight() > 0 || requestsQueued() > 0 || outputPending()) return;
  transmitDisconnect();
  // The stage is empty and the request small: a stream that does not take it now is broken, and breaking says the same less
  // politely.
  outputSent();
  net_close(STREAM);
  link = Link.STOPPED;
  statistics.linkState = LinkState.DOWN;
}

/** The stream is closed: by whom, and in the middle of what? */
function failClosed(): void {
  let why = NbdError.CLOSED;
  if (link == Link.CONNECTING) why = NbdError.CONNECT;
  else if (link == Link.NEGOTIATING) {
    if (negotiateInTls()) why = NbdError.TLS_FAILED;
    else if (negotiateAwaitsExport()) why = NbdError.EXPORT_UNKNOWN;
    else if (!negotiateBetweenMessages()) why = NbdError.TRUNCATED;
  } else if (link >= Link.UP && !transmitBetweenMessages()) why = NbdError.TRUNCATED;
  fail(why, 'attempt', attempts, 'in_flight', requestsInFlight());
}

/** A connection that should bring something and does not is given up. */
function watchSilence(): void {
  const isBusy = link == Link.UP || link == Link.DISCONNECTING ? transmitBusy() : link != Link.STOPPED;
  if (takeMoved() || (isBusy && !busy)) movedMs = nowMs;
  busy = isBusy;
  if (busy && left(movedMs, silenceMs()) == 0) {
    silentType = oldestType();
    fail(NbdError.SILENCE, 'in_flight', requestsInFlight(), 'waited_ms', silenceMs());
  }
}

/** Gives the connection up for the reason that was reported. */
function drop(): void {
  const error = failure();
  const refused = error >= NBD_ERROR_FIRST_REFUSAL && error < NBD_ERROR_FIRST_VIOLATION;
  if (error >= NBD_ERROR_FIRST_VIOLATION) statistics.protocolErrors += 1;
  statistics.linkError = error;
  logDrop(error, refused);
  if (error == NbdError.CHUNK_SCATTERED) avoidStructured();
  if (error == NbdError.SILENCE && link == Link.UP) patience = min(patience + 1, PATIENCE_MAX);
  if (link == Link.NEGOTIATING && refused) negotiateAbort();
  // A connection that breaks is tried again where it was: the runtime knows when nothing leads there any more.
  if (link < Link.UP || error == NbdError.SILENCE) nextPath();
  losses += 1;
  net_close(STREAM);
  loseAll();
  const stopping = link == Link.DISCONNECTING;
  // A connection that lasted was a good one: the next attempt comes soon.
  if (link == Link.UP && left(sinceMs, RECONNECT_MAX_MS) == 0) attempts = 0;
  // A server that knows cards ends a connection to tell that somebody else has changed the image.
  if (link == Link.UP && error == NbdError.CLOSED && placeAgreed() && left(sinceMs, RECONNECT_TOLD_MS) == 0)
    attempts = 0;
  link = stopping ? Link.STOPPED : Link.WAITING;
  statistics.linkState = refused ? LinkState.REFUSED : LinkState.DOWN;
  sinceMs = nowMs;
  waitMs = refused ? withChance(RECONNECT_MAX_MS) : backOff();
  clearFailure();
}

/** Doubles from attempt to attempt. */
function backOff(): u32 {
  const delay = min(RECONNECT_MIN_MS << min(attempts, 16), RECONNECT_MAX_MS);
  attempts += 1;
  return withChance(delay);
}

/** Up to half more, so that a thousand cards do not come back to a server in the same millisecond. */
function withChance(delay: u32): u32 {
  return delay + (random_u32() % (delay / 2 + 1));
}

/** An error that comes again and again is worth one warning. */
function logDrop(error: NbdError, refused: bool): void {
  logText(nbdErrorText(error));
  logValue(failureName1(), failureValue1());
  logValue(failureName2(), failureValue2());
  if (refused) {
    logText(' export=');
    logBytes(SETTINGS + SETTINGS_EXPORT, settings.exportLength);
  }
  logEnd(error == loggedError ? LogLevel.DEBUG : LogLevel.WARNING);
  loggedError = error;
}
