// The handshake: fixed newstyle, options one after the other ([NBD] "Fixed newstyle negotiation").
//
//   server: NBDMAGIC IHAVEOPT flags           client: flags
//   client: STARTTLS (when the settings say so)     ACK, then TLS
//   client: STRUCTURED_REPLY                        ACK, or an error: simple replies will do
//   client: RIBBON (place.ts)                       RIBBON, ACK;  or unsupported: a plain NBD server
//   client: GO name, block size                     INFO…, ACK;  or unsupported: EXPORT_NAME name
//
// Everything that is waited for is bounded: the length of a reply, the number of replies, the length of a text.

import { NBD_REQUEST_SIZE_MAX, SECTOR_SIZE } from '../config';
import { NetState, net_receive, net_start_tls, net_state } from '../imports';
import { LogLevel, logBytes, logEnd, logText, logValue } from '../log';
import { SETTINGS } from '../memory-map';
import { SETTINGS_EXPORT, SETTINGS_TLS, settings } from '../settings';
import { DISCARD, INPUT, INPUT_SIZE, PIECE_SIZE } from './arena';
import {
  NBD_FLAG_FIXED_NEWSTYLE,
  NBD_FLAG_HAS_FLAGS,
  NBD_FLAG_NO_ZEROES,
  NBD_INFO_BLOCK_SIZE,
  NBD_INFO_EXPORT,
  NBD_MAGIC,
  NBD_MAGIC_OLDSTYLE,
  NBD_MAGIC_OPTION,
  NBD_MAGIC_OPTION_REPLY,
  NBD_OPT_ABORT,
  NBD_OPT_EXPORT_NAME,
  NBD_OPT_GO,
  NBD_OPT_RIBBON,
  NBD_OPT_STARTTLS,
  NBD_OPT_STRUCTURED_REPLY,
  NBD_REP_ACK,
  NBD_REP_ERR_PLATFORM,
  NBD_REP_ERR_POLICY,
  NBD_REP_ERR_SHUTDOWN,
  NBD_REP_ERR_TLS_REQD,
  NBD_REP_ERR_UNKNOWN,
  NBD_REP_ERR_UNSUP,
  NBD_REP_FLAG_ERROR,
  NBD_REP_INFO,
  NBD_REP_RIBBON,
  NBD_STRING_SIZE_MAX,
  NbdError,
} from './constants';
import { fail } from './failure';
import { PlaceMode, placeAgreed, placeMode, placeRequestSize, placeStart, putPlace, takePlace } from './place';
import {
  expectInput,
  input16,
  input32,
  input64,
  inputEmpty,
  inputReady,
  inputSkipped,
  outputSent,
  put16,
  put32,
  put64,
  putBytes,
  STREAM,
  skipInput,
} from './stream';

enum Phase {
  GREETING = 0,
  OPTION_REPLY = 1,
  OPTION_DATA = 2,
  OPTION_SKIP = 3,
  TLS = 4,
  EXPORT_NAME_REPLY = 5,
  DONE = 6,
}

const GREETING_SIZE: u32 = 18;
const OPTION_REPLY_SIZE: u32 = 20;
/** Size and flags; 124 zeros follow when the server does not know NO_ZEROES. */
const EXPORT_NAME_REPLY_SIZE: u32 = 10;
const EXPORT_NAME_ZEROES: u32 = 124;
/** Information and texts are at most NBD_STRING_SIZE_MAX, with a type before them. */
const OPTION_DATA_SIZE_MAX: u32 = NBD_STRING_SIZE_MAX + 16;
/** No server sends more than a dozen pieces of information. */
const REPLIES_MAX: u32 = 32;

let phase: Phase = Phase.GREETING;
let option: u32 = 0;
let replies: u32 = 0;
let replyType: u32 = 0;
let replyLength: u32 = 0;
let noZeroes: bool = false;
let exportTold: bool = false;

let exportSize: u64 = 0;
let exportFlags: u32 = 0;
let blockSizeMin: u32 = 1;
let blockSizeMax: u32 = NBD_REQUEST_SIZE_MAX;
let structuredReplies: bool = false;
/** Set when a server's chunks were more than this client can take. */
let withoutStructured: bool = false;

export function negotiatedSize(): u64 {
  return exportSize;
}

export function negotiatedFlags(): u32 {
  return exportFlags;
}

/** The server's smallest request, and what requests must be multiples of; 1 when it did not say. */
export function negotiatedBlockMin(): u32 {
  return blockSizeMin;
}

/** The most payload of one request, a multiple of the piece size. */
export function negotiatedBlockMax(): u32 {
  return blockSizeMax;
}

export function negotiatedStructured(): bool {
  return structuredReplies;
}

/** Later connections do without structured replies. */
export function avoidStructured(): void {
  withoutStructured = true;
}

export function initNegotiate(): void {
  withoutStructured = false;
}

/** The connection is open: wait for the greeting. */
export function negotiateStart(): void {
  phase = Phase.GREETING;
  replies = 0;
  option = 0;
  noZeroes = exportTold = structuredReplies = false;
  placeStart();
  exportSize = 0;
  exportFlags = 0;
  blockSizeMin = 1;
  blockSizeMax = NBD_REQUEST_SIZE_MAX;
  expectInput(GREETING_SIZE);
}

/** True when nothing of an unfinished message has come: a connection that closes now was not cut in the middle of one. */
export function negotiateBetweenMessages(): bool {
  return phase == Phase.TLS || (phase != Phase.OPTION_DATA && phase != Phase.OPTION_SKIP && inputEmpty());
}

/** A server without GO has no other way to say that it has no such export than to close the connection. */
export function negotiateAwaitsExport(): bool {
  return phase == Phase.EXPORT_NAME_REPLY && inputEmpty();
}

export function negotiateInTls(): bool {
  return phase == Phase.TLS;
}

/** Goes on as far as the bytes reach; true when the transmission phase has begun. */
export function negotiateStep(): bool {
  while (phase != Phase.DONE) {
    if (!outputSent() || !negotiatePhase()) return false;
  }
  return true;
}

/** False when more bytes are needed, or the connection has failed. */
function negotiatePhase(): bool {
  switch (phase) {
    case Phase.GREETING:
      return inputReady() && takeGreeting();
    case Phase.OPTION_REPLY:
      return inputReady() && takeOptionReply();
    case Phase.OPTION_DATA:
      if (!inputReady()) return false;
      phase = Phase.OPTION_SKIP;
      return true;
    case Phase.OPTION_SKIP:
      return inputSkipped() && takeOptionData();
    case Phase.TLS:
      if (net_state(STREAM) != NetState.OPEN) return false;
      sendFirstOption();
      return true;
    case Phase.EXPORT_NAME_REPLY:
      return inputReady() && takeExportNameReply();
    default:
      return false;
  }
}

function takeGreeting(): bool {
  if (input64(0) != NBD_MAGIC) {
    fail(NbdError.BAD_MAGIC, 'greeting', input64(0), 'expected', NBD_MAGIC);
    return false;
  }
  if (input64(8) != NBD_MAGIC_OPTION) {
    const why = input64(8) == NBD_MAGIC_OLDSTYLE ? NbdError.NOT_FIXED_NEWSTYLE : NbdError.BAD_MAGIC;
    fail(why, 'magic', input64(8), 'expected', NBD_MAGIC_OPTION);
    return false;
  }
  const flags: u32 = input16(16);
  if ((flags & NBD_FLAG_FIXED_NEWSTYLE) == 0) {
    fail(NbdError.NOT_FIXED_NEWSTYLE, 'flags', flags, 'expected', NBD_FLAG_FIXED_NEWSTYLE);
    return false;
  }
  noZeroes = (flags & NBD_FLAG_NO_ZEROES) != 0;
  put32(flags & (NBD_FLAG_FIXED_NEWSTYLE | NBD_FLAG_NO_ZEROES));
  if ((settings.flags & SETTINGS_TLS) != 0) sendOption(NBD_OPT_STARTTLS);
  else sendFirstOption();
  return true;
}

// Options

function sendOption(which: u32): void {
  const isGo = which == NBD_OPT_GO;
  const named = isGo || which == NBD_OPT_EXPORT_NAME;
  const nameLength: u32 = named ? settings.exportLength : 0;
  option = which;
  put64(NBD_MAGIC_OPTION);
  put32(which);
  // GO: length of the name, name, number of information requests, one request.
  const isRibbon = which == NBD_OPT_RIBBON;
  put32(isGo ? 4 + nameLength + 2 + 2 : isRibbon ? placeRequestSize() : nameLength);
  if (isRibbon) putPlace();
  if (isGo) put32(nameLength);
  if (named) putBytes(SETTINGS + SETTINGS_EXPORT, nameLength);
  if (isGo) {
    put16(1);
    put16(NBD_INFO_BLOCK_SIZE);
  }
  phase = which == NBD_OPT_EXPORT_NAME ? Phase.EXPORT_NAME_REPLY : Phase.OPTION_REPLY;
  if (which == NBD_OPT_EXPORT_NAME) expectInput(EXPORT_NAME_REPLY_SIZE + (noZeroes ? 0 : EXPORT_NAME_ZEROES));
  else expectInput(OPTION_REPLY_SIZE);
}

/** The first option once the stream is as safe as it will be. */
function sendFirstOption(): void {
  sendOption(withoutStructured ? NBD_OPT_GO : NBD_OPT_STRUCTURED_REPLY);
}

/** Tells a server that refused us that we leave, as far as it takes it. */
export function negotiateAbort(): void {
  if (phase != Phase.OPTION_REPLY && phase != Phase.OPTION_SKIP) return;
  if (!outputSent()) return;
  sendOption(NBD_OPT_ABORT);
  outputSent();
}

function takeOptionReply(): bool {
  if (input64(0) != NBD_MAGIC_OPTION_REPLY) {
    fail(NbdError.BAD_MAGIC, 'option_reply', input64(0), 'option', option);
    return false;
  }
  if (input32(8) != option) {
    fail(NbdError.WRONG_OPTION, 'option', input32(8), 'expected', option);
    return false;
  }
  replyType = input32(12);
  replyLength = input32(16);
  if (replyLength > OPTION_DATA_SIZE_MAX) {
    fail(NbdError.OVERSIZE, 'option_reply', replyLength, 'max', OPTION_DATA_SIZE_MAX);
    return false;
  }
  replies += 1;
  if (replies > REPLIES_MAX) {
    fail(NbdError.BAD_OPTION_REPLY, 'option', option, 'replies', replies);
    return false;
  }
  const staged = min(replyLength, INPUT_SIZE);
  expectInput(staged);
  skipInput(replyLength - staged);
  phase = Phase.OPTION_DATA;
  return true;
}

/** The reply is complete: its data, or the first INPUT_SIZE bytes of it, are at INPUT. */
function takeOptionData(): bool {
  if ((replyType & NBD_REP_FLAG_ERROR) != 0) return takeOptionError();
  if (replyType == NBD_REP_INFO && option == NBD_OPT_GO) return takeInfo();
  if (replyType == NBD_REP_RIBBON && option == NBD_OPT_RIBBON) {
    phase = Phase.OPTION_REPLY;
    if (!takePlace(replyLength)) return false;
    expectInput(OPTION_REPLY_SIZE);
    return true;
  }
  if (replyType != NBD_REP_ACK || replyLength != 0) {
    fail(NbdError.BAD_OPTION_REPLY, 'type', replyType, 'length', replyLength);
    return false;
  }
  if (option == NBD_OPT_STARTTLS) return startTls();
  if (option == NBD_OPT_STRUCTURED_REPLY) {
    structuredReplies = true;
    sendOption(placeMode() == PlaceMode.CARD ? NBD_OPT_RIBBON : NBD_OPT_GO);
    return true;
  }
  if (option == NBD_OPT_RIBBON) {
    if (!placeAgreed()) {
      fail(NbdError.BAD_OPTION_REPLY, 'option', option, 'place_told', 0);
      return false;
    }
    sendOption(NBD_OPT_GO);
    return true;
  }
  if (!exportTold) {
    fail(NbdError.BAD_OPTION_REPLY, 'option', option, 'export_told', 0);
    return false;
  }
  phase = Phase.DONE;
  return true;
}

function startTls(): bool {
  // Bytes that came in the clear behind the reply would otherwise be read as if they had come through TLS.
  const injected = net_receive(STREAM, DISCARD, 1);
  if (injected != 0) {
    fail(NbdError.TLS_INJECTION, 'bytes', injected, 'expected', 0);
    return false;
  }
  net_start_tls(STREAM);
  phase = Phase.TLS;
  return true;
}

function takeOptionError(): bool {
  if (option == NBD_OPT_STRUCTURED_REPLY && replyType != NBD_REP_ERR_TLS_REQD && replyType != NBD_REP_ERR_SHUTDOWN) {
    sendOption(NBD_OPT_GO);
    return true;
  }
  if (option == NBD_OPT_RIBBON && replyType == NBD_REP_ERR_UNSUP && !placeAgreed()) {
    sendOption(NBD_OPT_GO);
    return true;
  }
  if (option == NBD_OPT_GO && replyType == NBD_REP_ERR_UNSUP) {
    sendOption(NBD_OPT_EXPORT_NAME);
    return true;
  }
  logMessage();
  fail(optionError(), 'option', option, 'reply', replyType);
  return false;
}

function optionError(): NbdError {
  if (replyType == NBD_REP_ERR_SHUTDOWN) return NbdError.SHUTDOWN;
  if (option == NBD_OPT_STARTTLS) return NbdError.TLS_UNAVAILABLE;
  if (replyType == NBD_REP_ERR_UNKNOWN) return NbdError.EXPORT_UNKNOWN;
  if (replyType == NBD_REP_ERR_POLICY || replyType == NBD_REP_ERR_PLATFORM) return NbdError.POLICY;
  if (replyType == NBD_REP_ERR_TLS_REQD) return NbdError.TLS_REQUIRED;
  return NbdError.OPTION_REFUSED;
}

/** What the server says about its refusal, as far as it is printable. */
function logMessage(): void {
  logServerText('image server says: ', INPUT, min(replyLength, INPUT_SIZE));
}

/** Logs `length` bytes from outside at `text`, which are made printable in place. Nothing when there are none. */
export function logServerText(before: string, text: usize, length: u32): void {
  if (length == 0) return;
  for (let i: u32 = 0; i < length; i++) {
    const character = load<u8>(text + i);
    if (character < 0x20 || character > 0x7e) store<u8>(text + i, 0x3f);
  }
  logText(before);
  logBytes(text, length);
  logEnd(LogLevel.WARNING);
}

// What the server tells about the export

function takeInfo(): bool {
  const type: u16 = replyLength >= 2 ? input16(0) : 0xffff;
  if (replyLength < 2 || (type == NBD_INFO_EXPORT && replyLength != 12)) {
    fail(NbdError.BAD_OPTION_REPLY, 'info', type, 'length', replyLength);
    return false;
  }
  if (type == NBD_INFO_EXPORT) {
    if (!takeExport(input64(2), input16(10))) return false;
  } else if (type == NBD_INFO_BLOCK_SIZE) {
    if (replyLength != 14) {
      fail(NbdError.BAD_OPTION_REPLY, 'info', type, 'length', replyLength);
      return false;
    }
    if (!takeBlockSize(input32(2), input32(6), input32(10))) return false;
  }
  phase = Phase.OPTION_REPLY;
  expectInput(OPTION_REPLY_SIZE);
  return true;
}

function takeExportNameReply(): bool {
  if (!takeExport(input64(0), input16(8))) return false;
  phase = Phase.DONE;
  return true;
}

function takeExport(size: u64, flags: u32): bool {
  if (<i64>size < 0) {
    fail(NbdError.EXPORT_SIZE, 'size', size, 'flags', flags);
    return false;
  }
  exportSize = size;
  exportFlags = (flags & NBD_FLAG_HAS_FLAGS) != 0 ? flags : 0;
  exportTold = true;
  return true;
}

/** A PC writes single sectors and no read-modify-write stands between it and the server, so a server that takes only larger
 * blocks is refused. The maximum must hold a piece. */
function takeBlockSize(minimum: u32, preferred: u32, maximum: u32): bool {
  const isPower = minimum != 0 && (minimum & (minimum - 1)) == 0;
  if (!isPower || minimum > SECTOR_SIZE || maximum < PIECE_SIZE || preferred < minimum) {
    logText('image server block sizes');
    logValue('preferred', preferred);
    logEnd(LogLevel.WARNING);
    fail(NbdError.BLOCK_SIZE, 'min', minimum, 'max', maximum);
    return false;
  }
  blockSizeMin = minimum;
  blockSizeMax = min(maximum & ~(PIECE_SIZE - 1), NBD_REQUEST_SIZE_MAX);
  return true;
}
