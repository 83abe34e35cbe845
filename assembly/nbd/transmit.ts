// The transmission phase: requests out, replies in ([NBD] "Transmission").
//
// Payload goes straight between the runtime and the request's pieces. Headers of waiting requests are sent together, up to
// the first write, whose payload follows its header. Replies may come in any order; a structured reply's chunks too.

import { LogLevel, logEnd, logText, logValue } from '../log';
import { DISCARD, DISCARD_SIZE, INPUT, INPUT_SIZE, PIECE_SIZE } from './arena';
import {
  NBD_CMD_ASK,
  NBD_CMD_ASK_WIRE,
  NBD_CMD_BLOCK_STATUS,
  NBD_CMD_DISC,
  NBD_CMD_FLAG_FUA,
  NBD_CMD_FLUSH,
  NBD_CMD_READ,
  NBD_CMD_TRIM,
  NBD_CMD_WRITE,
  NBD_CMD_WRITE_PIECES_WIRE,
  NBD_EIO,
  NBD_ENOTSUP,
  NBD_FLAG_SEND_FLUSH,
  NBD_FLAG_SEND_FUA,
  NBD_FLAG_SEND_TRIM,
  NBD_MAGIC_REQUEST,
  NBD_MAGIC_SIMPLE_REPLY,
  NBD_MAGIC_STRUCTURED_REPLY,
  NBD_REPLY_FLAG_DONE,
  NBD_REPLY_TYPE_BLOCK_STATUS,
  NBD_REPLY_TYPE_COMMITTED,
  NBD_REPLY_TYPE_ERROR,
  NBD_REPLY_TYPE_ERROR_OFFSET,
  NBD_REPLY_TYPE_FLAG_ERROR,
  NBD_REPLY_TYPE_KNOWN,
  NBD_REPLY_TYPE_NONE,
  NBD_REPLY_TYPE_OFFSET_DATA,
  NBD_REPLY_TYPE_OFFSET_HOLE,
  NBD_REPLY_TYPE_PIECES,
  NBD_STRING_SIZE_MAX,
  NbdError,
  NbdState,
} from './constants';
import { fail, failure } from './failure';
import { logServerText, negotiatedBlockMax, negotiatedFlags, negotiatedStructured } from './negotiate';
import {
  checkPieces,
  ENCODING_DEFLATE,
  ENCODING_NONE,
  gatherBytes,
  INFLATABLE,
  inflatePieces,
  piecesAddress,
  piecesLength,
  preparePieces,
  putPiecesHead,
  READ_CRCS,
  READ_HEAD_SIZE,
  rangePieces,
  WRITE_HEAD_SIZE_MAX,
} from './pieces';
import { placeAgreed } from './place';
import {
  Cover,
  covered,
  coverRange,
  finishPart,
  finishUnsent,
  nextToSend,
  pieceAddress,
  pieceRun,
  request,
  requestsInFlight,
  sendAgain,
  slotOfCookie,
  startPart,
} from './requests';
import {
  expectInput,
  extendInput,
  input16,
  input32,
  input64,
  inputEmpty,
  inputReady,
  inputSkipped,
  outputPending,
  outputRoom,
  outputSent,
  put16,
  put32,
  put64,
  receive,
  send,
  skipInput,
} from './stream';

enum Phase {
  /** The part that simple replies and chunks have in common. */
  HEADER = 0,
  /** The rest of a chunk's header, with what comes before its payload. */
  CHUNK = 1,
  PAYLOAD = 2,
  /** The server's text behind an error chunk. */
  TEXT = 3,
  SKIP = 4,
  /** Bytes that go to one place: extents, checksums, deflated payload. */
  DIRECT = 5,
}

const REQUEST_HEADER_SIZE: u32 = 28;
const HASH_SIZE: u32 = 32;
/** Extents of one answer. */
const EXTENTS_MAX: u32 = 511;
const EXTENT_SIZE: u32 = 8;
const SIMPLE_REPLY_SIZE: u32 = 16;
const CHUNK_HEADER_SIZE: u32 = 20;
/** Error number u32, length of the text u16. */
const CHUNK_ERROR_SIZE: u32 = 6;
const CHUNK_ERROR_SIZE_MAX: u32 = CHUNK_ERROR_SIZE + NBD_STRING_SIZE_MAX + 8;

let phase: Phase = Phase.HEADER;
/** The slot that the reply is for. */
let replySlot: i32 = -1;
let replyEnds: bool = false;
let chunkType: u16 = 0;
let chunkLength: u32 = 0;
/** Payload still to come goes here, as a position in the request. */
let payloadPosition: u32 = 0;
let payloadLeft: u32 = 0;
/** Where a DIRECT part goes, and how much of it is still to come. */
let directAddress: usize = 0;
let directLeft: u32 = 0;
/** Of an answer in pieces: bytes of data behind the checksums, and how they are encoded; 0 when the data is not next. */
let piecesData: u32 = 0;
let piecesEncoding: u16 = 0;
/** The staged part of the server's text behind an error chunk. */
let stagedText: u32 = 0;

/** The write whose payload is being sent, -1 when there is none. */
let writeSlot: i32 = -1;
let writePosition: u32 = 0;
let writeLeft: u32 = 0;
/** Where the payload lies in one piece, 0 when it lies in the request's pieces. */
let writeFrom: usize = 0;
/** The server has refused that write before it had all of it. */
let writeAnswered: bool = false;

export function transmitStart(): void {
  writeSlot = -1;
  writeAnswered = false;
  expectReply();
}

/** True when bytes are on their way in either direction, or should be. */
export function transmitBusy(): bool {
  return requestsInFlight() > 0 || outputPending();
}

export function transmitBetweenMessages(): bool {
  return phase == Phase.HEADER && inputEmpty();
}

export function transmitStep(): void {
  // Replies first: they free what the requests wait for.
  while (requestsInFlight() > 0 && failure() == NbdError.NONE && takeReply()) {}
  if (failure() == NbdError.NONE) sendRequests();
}

/** Stages NBD_CMD_DISC; nothing may be in flight or staged. */
export function transmitDisconnect(): void {
  putRequest(0, NBD_CMD_DISC, 0, 0, 0);
}

// Requests out

function sendRequests(): void {
  do {
    if (!outputSent()) return;
    if (writeSlot >= 0 && !sendPayload()) return;
  } while (stageRequests());
}

/** Stages what fits, up to the first write. True when there is anything to send. */
function stageRequests(): bool {
  const room = placeAgreed() ? REQUEST_HEADER_SIZE + WRITE_HEAD_SIZE_MAX : REQUEST_HEADER_SIZE;
  while (writeSlot < 0 && outputRoom() >= room) {
    const slot = nextToSend();
    if (slot < 0) break;
    if (!endsUnsent(slot)) stageRequest(slot);
  }
  return outputPending();
}

function stageRequest(slot: i32): void {
  const next = request(slot);
  startPart(slot, negotiatedBlockMax());
  const inPieces = next.type == NBD_CMD_WRITE && placeAgreed();
  let type = next.type;
  let offset = next.offset + next.partStart;
  if (inPieces) type = NBD_CMD_WRITE_PIECES_WIRE;
  else if (type == NBD_CMD_ASK) type = NBD_CMD_ASK_WIRE;
  // The record number of a commit, which a plain NBD server must not see.
  else if (type == NBD_CMD_FLUSH && !placeAgreed()) offset = 0;
  putRequest(next.flags, type, next.cookie, offset, next.partLength);
  if (next.type != NBD_CMD_WRITE && next.type != NBD_CMD_ASK) return;
  writeSlot = slot;
  writeAnswered = false;
  writePosition = next.partStart;
  writeLeft = next.partLength;
  writeFrom = 0;
  if (inPieces) {
    preparePieces(slot);
    putPiecesHead(slot);
  } else if (next.type == NBD_CMD_ASK) {
    gatherBytes(pieceAddress(slot, 0), (next.length / PIECE_SIZE) * HASH_SIZE);
  } else {
    return;
  }
  writeFrom = piecesAddress();
  writePosition = 0;
  writeLeft = piecesLength();
}

/** What the server does not offer must not be sent. It has no cache to flush, then; a trim is only advice. */
function endsUnsent(slot: i32): bool {
  const next = request(slot);
  const flags = negotiatedFlags();
  if (next.type == NBD_CMD_FLUSH && (flags & NBD_FLAG_SEND_FLUSH) == 0) finishUnsent(slot, NbdState.DONE, 0);
  else if (next.type == NBD_CMD_TRIM && (flags & NBD_FLAG_SEND_TRIM) == 0) finishUnsent(slot, NbdState.DONE, 0);
  else if ((next.flags & NBD_CMD_FLAG_FUA) != 0 && (flags & NBD_FLAG_SEND_FUA) == 0)
    finishUnsent(slot, NbdState.FAILED, NBD_ENOTSUP);
  else return false;
  return true;
}

function putRequest(flags: u16, type: u16, cookie: u64, offset: u64, length: u32): void {
  put32(NBD_MAGIC_REQUEST);
  put16(flags);
  put16(type);
  put64(cookie);
  put64(offset);
  put32(length);
}

/** True when all of the write's payload is sent. */
function sendPayload(): bool {
  while (writeLeft > 0) {
    const count =
      writeFrom != 0
        ? send(writeFrom + writePosition, writeLeft)
        : send(pieceAddress(writeSlot, writePosition), pieceRun(writeSlot, writePosition, writeLeft));
    if (count == 0) return false;
    writePosition += count;
    writeLeft -= count;
  }
  const slot = writeSlot;
  writeSlot = -1;
  if (writeAnswered) finishPart(slot);
  return true;
}

// Replies in

function expectReply(): void {
  phase = Phase.HEADER;
  expectInput(SIMPLE_REPLY_SIZE);
}

/** Goes one part on. False when more bytes are needed, or the connection has failed. */
function takeReply(): bool {
  switch (phase) {
    case Phase.HEADER:
      return inputReady() && takeHeader();
    case Phase.CHUNK:
      return inputReady() && takeChunk();
    case Phase.PAYLOAD:
      return receivePayload() && (placeAgreed() ? endPieces() : endChunk());
    case Phase.DIRECT:
      return receiveDirect() && endDirect();
    case Phase.TEXT:
      if (!inputReady()) return false;
      logServerText('image server says: ', INPUT, stagedText);
      phase = Phase.SKIP;
      return true;
    default:
      return inputSkipped() && endChunk();
  }
}

function takeHeader(): bool {
  const magic = input32(0);
  const isChunk = magic == NBD_MAGIC_STRUCTURED_REPLY && negotiatedStructured();
  if (!isChunk && magic != NBD_MAGIC_SIMPLE_REPLY) {
    fail(NbdError.BAD_MAGIC, 'reply', magic, 'structured', negotiatedStructured() ? 1 : 0);
    return false;
  }
  replySlot = slotOfCookie(input64(8));
  if (replySlot < 0) {
    fail(NbdError.UNKNOWN_COOKIE, 'cookie', input64(8), 'in_flight', requestsInFlight());
    return false;
  }
  if (!isChunk) return takeSimpleReply(input32(4));
  chunkType = input16(6);
  replyEnds = (input16(4) & NBD_REPLY_FLAG_DONE) != 0;
  // The chunk's length, and what stands before its payload.
  let before: u32 = 0;
  const type = request(replySlot).type;
  if (chunkType == NBD_REPLY_TYPE_BLOCK_STATUS && type == NBD_CMD_BLOCK_STATUS) before = 4;
  else if (placeAgreed() && chunkType == NBD_REPLY_TYPE_PIECES && type == NBD_CMD_READ) before = READ_HEAD_SIZE;
  else if (placeAgreed() && chunkType == NBD_REPLY_TYPE_COMMITTED && type == NBD_CMD_FLUSH) before = 16;
  else if (placeAgreed() && chunkType == NBD_REPLY_TYPE_KNOWN && type == NBD_CMD_ASK) before = 4;
  else if (chunkType == NBD_REPLY_TYPE_OFFSET_DATA) before = 8;
  else if (chunkType == NBD_REPLY_TYPE_OFFSET_HOLE) before = 12;
  else if ((chunkType & NBD_REPLY_TYPE_FLAG_ERROR) != 0) before = CHUNK_ERROR_SIZE;
  else if (chunkType != NBD_REPLY_TYPE_NONE) return failChunk();
  const isRead = type == NBD_CMD_READ && !placeAgreed();
  if (!isRead && (chunkType == NBD_REPLY_TYPE_OFFSET_DATA || chunkType == NBD_REPLY_TYPE_OFFSET_HOLE))
    return failChunk();
  phase = Phase.CHUNK;
  extendInput(CHUNK_HEADER_SIZE + before);
  return true;
}

function failChunk(): bool {
  fail(NbdError.BAD_CHUNK, 'chunk', chunkType, 'command', request(replySlot).type);
  return false;
}

function takeSimpleReply(errno: u32): bool {
  const which = request(replySlot);
  if (which.type == NBD_CMD_READ && negotiatedStructured()) {
    fail(NbdError.BAD_MAGIC, 'reply', NBD_MAGIC_SIMPLE_REPLY, 'structured', 1);
    return false;
  }
  replyEnds = true;
  which.errno = errno;
  if (which.type != NBD_CMD_READ || errno != 0) return endReply();
  coverRange(replySlot, 0, which.partLength);
  expectPayload(0, which.partLength);
  return true;
}

/** The chunk's header is complete at INPUT. Its length is checked before anything is done with it. */
function takeChunk(): bool {
  chunkLength = input32(16);
  switch (chunkType) {
    case NBD_REPLY_TYPE_NONE:
      // Without DONE it would say nothing at all.
      if (chunkLength != 0 || !replyEnds) return failChunk();
      return endChunk();
    case NBD_REPLY_TYPE_OFFSET_DATA:
      if (chunkLength < 9) return failLength(9);
      return takeRange(chunkLength - 8);
    case NBD_REPLY_TYPE_OFFSET_HOLE:
      if (chunkLength != 12) return failLength(12);
      return takeRange(input32(28)) && takeHole();
    case NBD_REPLY_TYPE_PIECES:
      return takePieces();
    case NBD_REPLY_TYPE_BLOCK_STATUS:
      return takeExtents();
    case NBD_REPLY_TYPE_COMMITTED:
      if (chunkLength != 16 || !replyEnds) return failLength(16);
      request(replySlot).result = input64(20);
      request(replySlot).result2 = input64(28);
      return endChunk();
    case NBD_REPLY_TYPE_KNOWN:
      if (chunkLength != 4 || !replyEnds) return failLength(4);
      // A bit above the mask says that there was an answer.
      request(replySlot).result = <u64>input32(20) | ANSWERED;
      return endChunk();
    default:
      return takeError();
  }
}

export const ANSWERED: u64 = 1 << 32;

/** Extents of the one meta context that there is: they go to the request's memory. */
function takeExtents(): bool {
  const which = request(replySlot);
  const bytes = chunkLength - 4;
  if (chunkLength < 4 + EXTENT_SIZE || bytes % EXTENT_SIZE != 0 || bytes > EXTENTS_MAX * EXTENT_SIZE)
    return failLength(12);
  if (which.result != 0 || input32(20) != 1) {
    fail(NbdError.BAD_EXTENTS, 'context', input32(20), 'bytes_before', which.result);
    return false;
  }
  which.result = bytes;
  expectDirect(which.abandoned ? DISCARD : pieceAddress(replySlot, 0), bytes);
  return true;
}

/** The answer to a read: everything in one chunk, checksums first. */
function takePieces(): bool {
  const which = request(replySlot);
  const pieces = rangePieces(which.offset + which.partStart, which.partLength);
  const overhead = READ_HEAD_SIZE + 4 * pieces;
  const same =
    replyEnds &&
    input64(20) == which.offset + which.partStart &&
    <u32>input16(30) == pieces &&
    input32(32) == which.partLength;
  if (!same) return failRange(input64(20), input32(32));
  piecesEncoding = input16(28);
  if (piecesEncoding > ENCODING_DEFLATE) return failChunk();
  piecesData = chunkLength - overhead;
  const fits =
    chunkLength > overhead &&
    (piecesEncoding == ENCODING_NONE ? piecesData == which.partLength : piecesData < which.partLength);
  if (!fits) return failLength(overhead + which.partLength);
  expectDirect(READ_CRCS, 4 * pieces);
  return true;
}

function expectDirect(address: usize, length: u32): void {
  directAddress = address;
  directLeft = length;
  phase = Phase.DIRECT;
}

function receiveDirect(): bool {
  while (directLeft > 0) {
    const count = receive(directAddress, directLeft);
    if (count == 0) return false;
    directAddress += count;
    directLeft -= count;
  }
  return true;
}

/** A DIRECT part is here: what is next? */
function endDirect(): bool {
  if (chunkType == NBD_REPLY_TYPE_BLOCK_STATUS) return endChunk();
  const length = piecesData;
  if (length == 0) return endInflatable();
  piecesData = 0;
  if (piecesEncoding == ENCODING_NONE) {
    expectPayload(0, length);
  } else {
    inflatableLength = length;
    expectDirect(INFLATABLE, length);
  }
  return true;
}

let inflatableLength: u32 = 0;

function endInflatable(): bool {
  if (request(replySlot).abandoned || inflatePieces(replySlot, inflatableLength)) return endPieces();
  return damaged();
}

/** The part is in the owner's memory: is it what the server sent? */
function endPieces(): bool {
  const which = request(replySlot);
  if (!which.abandoned && !checkPieces(replySlot)) return damaged();
  coverRange(replySlot, 0, which.partLength);
  return endChunk();
}

function damaged(): bool {
  const which = request(replySlot);
  logText('payload damaged on its way');
  logValue('offset', which.offset + which.partStart);
  logValue('length', which.partLength);
  logEnd(LogLevel.WARNING);
  if (!sendAgain(replySlot)) {
    fail(NbdError.CHECKSUM, 'offset', which.offset + which.partStart, 'tries', which.tries);
    return false;
  }
  expectReply();
  return true;
}

function failLength(expected: u32): bool {
  fail(NbdError.OVERSIZE, 'chunk_length', chunkLength, 'expected', expected);
  return false;
}

/** Checks the chunk's `length` bytes at the offset it names against the request, and accounts for them. */
function takeRange(length: u32): bool {
  const which = request(replySlot);
  const offset = input64(20);
  const partOffset = which.offset + which.partStart;
  if (length == 0 || length > which.partLength || offset < partOffset) return failRange(offset, length);
  if (offset - partOffset > <u64>(which.partLength - length)) return failRange(offset, length);
  const from = <u32>(offset - partOffset);
  const cover = coverRange(replySlot, from, from + length);
  if (cover != Cover.OK) {
    const why = cover == Cover.OVERLAP ? NbdError.CHUNK_OVERLAP : NbdError.CHUNK_SCATTERED;
    fail(why, 'offset', offset, 'length', length);
    return false;
  }
  expectPayload(from, length);
  return true;
}

function failRange(offset: u64, length: u32): bool {
  fail(NbdError.CHUNK_RANGE, 'offset', offset, 'length', length);
  return false;
}

/** `from` is relative to the part. */
function expectPayload(from: u32, length: u32): void {
  payloadPosition = request(replySlot).partStart + from;
  payloadLeft = length;
  phase = Phase.PAYLOAD;
}

function takeHole(): bool {
  const abandoned = request(replySlot).abandoned;
  while (payloadLeft > 0) {
    const run = pieceRun(replySlot, payloadPosition, payloadLeft);
    if (!abandoned) memory.fill(pieceAddress(replySlot, payloadPosition), 0, run);
    payloadPosition += run;
    payloadLeft -= run;
  }
  return endChunk();
}

/** True when the payload is all in the pieces. */
function receivePayload(): bool {
  const abandoned = request(replySlot).abandoned;
  while (payloadLeft > 0) {
    const count = abandoned
      ? receive(DISCARD, min(payloadLeft, DISCARD_SIZE))
      : receive(pieceAddress(replySlot, payloadPosition), pieceRun(replySlot, payloadPosition, payloadLeft));
    if (count == 0) return false;
    payloadPosition += count;
    payloadLeft -= count;
  }
  return true;
}

/** An error for the whole part: a text follows, then the offset of ERROR_OFFSET, or what an unknown type may have there;
 * neither is needed. */
function takeError(): bool {
  const known = chunkType == NBD_REPLY_TYPE_ERROR || chunkType == NBD_REPLY_TYPE_ERROR_OFFSET;
  const behind: u32 = chunkType == NBD_REPLY_TYPE_ERROR_OFFSET ? 8 : 0;
  const errno = input32(20);
  const textLength: u32 = input16(24);
  const expected = CHUNK_ERROR_SIZE + textLength + behind;
  if (chunkLength > CHUNK_ERROR_SIZE_MAX || chunkLength < expected || (known && chunkLength != expected)) {
    return failLength(expected);
  }
  request(replySlot).errno = errno != 0 ? errno : NBD_EIO;
  stagedText = min(textLength, INPUT_SIZE);
  expectInput(stagedText);
  skipInput(chunkLength - CHUNK_ERROR_SIZE - stagedText);
  phase = Phase.TEXT;
  return true;
}

function endChunk(): bool {
  if (!replyEnds) {
    expectReply();
    return true;
  }
  const which = request(replySlot);
  if (which.type == NBD_CMD_READ && which.errno == 0 && !covered(replySlot)) {
    fail(NbdError.CHUNK_MISSING, 'offset', which.offset + which.partStart, 'length', which.partLength);
    return false;
  }
  return endReply();
}

/** Commands whose answer is more than a yes. */
function lacksResult(slot: i32): bool {
  const which = request(slot);
  if (which.errno != 0 || which.result != 0) return false;
  if (which.type == NBD_CMD_FLUSH) return placeAgreed();
  return which.type == NBD_CMD_ASK || which.type == NBD_CMD_BLOCK_STATUS;
}

function endReply(): bool {
  if (lacksResult(replySlot)) {
    fail(NbdError.CHUNK_MISSING, 'command', request(replySlot).type, 'length', 0);
    return false;
  }
  if (replySlot != writeSlot) {
    const which = request(replySlot);
    // Most likely it was damaged on its way.
    if (which.type == NBD_CMD_WRITE && which.errno == NBD_EIO && placeAgreed() && sendAgain(replySlot)) {
      expectReply();
      return true;
    }
    expectReply();
    finishPart(replySlot);
    return true;
  }
  expectReply();
  // The server answered a write that it does not have yet. It may refuse one by its header alone; the payload must follow
  // all the same, and the owner's memory is in use until then.
  if (writeAnswered || request(replySlot).errno == 0) {
    fail(NbdError.EARLY_REPLY, 'offset', request(replySlot).offset, 'unsent', writeLeft);
    return false;
  }
  writeAnswered = true;
  return true;
}
