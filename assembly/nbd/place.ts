// Where this card stands with its image server (SPEC.md "Between a card and the image server"): what the upper layers say,
// what NBD_OPT_RIBBON makes of it on the wire, and what the server answers.

import { LogLevel, logBytes, logEnd, logText, logValue } from '../log';
import { SETTINGS } from '../memory-map';
import { SETTINGS_EXPORT, SETTINGS_WIRE_ASK, SETTINGS_WIRE_DEFLATE, settings, settingsWire } from '../settings';
import { INPUT } from './arena';
import { NBD_OPT_RIBBON, NbdError } from './constants';
import { fail } from './failure';
import { input16, input64, put16, put32, put64, putBytes } from './stream';

/** How this card presents itself. */
export enum PlaceMode {
  /** As any NBD client: the option is never sent. */
  PLAIN = 0,
  /** The local store has not said yet what it knows: no connection is opened. */
  WAITING = 1,
  /** As a card. */
  CARD = 2,
}

const VERSION: u16 = 1;
const FLAG_DIRTY: u16 = 1;
const FLAG_CONFLICT: u16 = 2;
const FLAG_DEFLATE: u16 = 4;
const FLAG_ASK: u16 = 8;
const FLAG_EARLY: u16 = 16;
const FLAG_BRANCH: u16 = 16;
const FLAG_RESET: u16 = 32;

const REQUEST_SIZE: u32 = 52;
const SESSION_SIZE: u32 = 12;
export const PLACE_SESSIONS_MAX: u32 = 16;
export const PLACE_REPLY_SIZE_MIN: u32 = 40;
const LINE_SIZE_MAX: u32 = 129;

const VERDICT_OK: u16 = 0;
const VERDICT_OLDER: u16 = 1;
const VERDICT_COPIED: u16 = 2;

// What the upper layers say.
let mode: PlaceMode = PlaceMode.PLAIN;
let card: u64 = 0;
let session: u32 = 0;
let sessions: usize = 0;
let lasts: usize = 0;
let sessionCount: u32 = 0;
let generation: u64 = 0;
let generationId: u64 = 0;
let committed: u64 = 0;
let newest: u64 = 0;
let dirty: bool = false;
let conflict: bool = false;
let early: bool = false;

// What the server has answered on this connection.
let agreed: bool = false;
let flags: u16 = 0;
let base: u64 = 0;
let serverGeneration: u64 = 0;
let serverId: u64 = 0;
let serverCommitted: u64 = 0;
/** The card has asked for a branch and is on it: until somebody takes note. */
let conflictSettled: bool = false;
/** The last answer was that the line is a branch: it is logged when that changes. */
let wasBranch: bool = false;

export function initPlace(): void {
  mode = PlaceMode.PLAIN;
  agreed = wasBranch = conflict = conflictSettled = false;
}

export function placeMode(): PlaceMode {
  return mode;
}

export function setPlaceMode(which: PlaceMode): void {
  mode = which;
}

/** Who the card is: the local store's id, this power-on's session, and `count` earlier ones (u32 each) at `earlier` with the last
 * record of each (u64) at `ends`, which stay there. */
export function placeIdentity(store: u64, now: u32, earlier: usize, ends: usize, count: u32): void {
  assert(count <= PLACE_SESSIONS_MAX);
  card = store;
  session = now;
  sessions = earlier;
  lasts = ends;
  sessionCount = count;
}

/** The generation that the clean blocks are right for, and its id. */
export function placeGeneration(which: u64, id: u64): void {
  generation = which;
  generationId = id;
}

/** Records of the log: everything up to the first number is committed, the second is the newest; is anything uncommitted? */
export function placeRecords(upTo: u64, last: u64, uncommitted: bool): void {
  committed = upTo;
  newest = last;
  dirty = uncommitted;
}

/** The PC is told of writes that the server has received and not committed: from the next connection on it keeps them for the case
 * that this card is lost. */
export function placeEarly(is: bool): void {
  early = is;
}

/** The next connection asks for a branch: both sides have changed the same blocks. */
export function placeConflict(): void {
  conflict = true;
}

export function placeIsEarly(): bool {
  return early;
}

/** True on a connection to an image server that knows cards: everything below is from it. */
export function placeAgreed(): bool {
  return agreed;
}

export function placeDeflate(): bool {
  return agreed && (flags & FLAG_DEFLATE) != 0;
}

export function placeAsk(): bool {
  return agreed && (flags & FLAG_ASK) != 0;
}

/** No clean block of the card counts. */
export function placeReset(): bool {
  return (flags & FLAG_RESET) != 0;
}

export function placeOnBranch(): bool {
  return (flags & FLAG_BRANCH) != 0;
}

/** What the card's view is based on; if it is not the generation that is read, the server tells what has changed between. */
export function placeBase(): u64 {
  return base;
}

export function placeServerGeneration(): u64 {
  return serverGeneration;
}

export function placeServerId(): u64 {
  return serverId;
}

/** Everything up to this record is committed. */
export function placeServerCommitted(): u64 {
  return serverCommitted;
}

// The option

export function placeStart(): void {
  agreed = false;
  flags = 0;
}

/** Length of the option's data. */
export function placeRequestSize(): u32 {
  return REQUEST_SIZE + SESSION_SIZE * sessionCount + settings.exportLength;
}

/** Stages the option's data. */
export function putPlace(): void {
  let wanted: u16 = dirty ? FLAG_DIRTY : 0;
  if (conflict) wanted |= FLAG_CONFLICT;
  if (early) wanted |= FLAG_EARLY;
  if ((settingsWire() & SETTINGS_WIRE_DEFLATE) != 0) wanted |= FLAG_DEFLATE;
  if ((settingsWire() & SETTINGS_WIRE_ASK) != 0) wanted |= FLAG_ASK;
  put16(VERSION);
  put16(wanted);
  put32(session);
  put64(card);
  put64(generation);
  put64(generationId);
  put64(committed);
  put64(newest);
  put16(<u16>sessionCount);
  put16(settings.exportLength);
  for (let i: u32 = 0; i < sessionCount; i++) {
    put32(load<u32>(sessions + ((<usize>i) << 2)));
    put64(load<u64>(lasts + ((<usize>i) << 3)));
  }
  putBytes(SETTINGS + SETTINGS_EXPORT, settings.exportLength);
}

/** Takes the reply of `length` bytes at INPUT. False when the server cannot be used; that is reported. */
export function takePlace(length: u32): bool {
  const nameLength: u32 = length >= PLACE_REPLY_SIZE_MIN ? input16(6) : 0;
  const verdict = length >= PLACE_REPLY_SIZE_MIN ? input16(4) : 0xffff;
  const sane =
    length >= PLACE_REPLY_SIZE_MIN &&
    input16(0) == VERSION &&
    verdict <= VERDICT_COPIED &&
    nameLength <= LINE_SIZE_MAX &&
    length == PLACE_REPLY_SIZE_MIN + nameLength &&
    !agreed;
  if (!sane) {
    fail(NbdError.BAD_OPTION_REPLY, 'option', NBD_OPT_RIBBON, 'length', length);
    return false;
  }
  flags = input16(2);
  base = input64(8);
  serverGeneration = input64(16);
  serverId = input64(24);
  serverCommitted = input64(32);
  if (verdict != VERDICT_OK) {
    const why = verdict == VERDICT_OLDER ? NbdError.SERVER_OLDER : NbdError.STORE_COPIED;
    if (verdict == VERDICT_OLDER) fail(why, 'server_generation', serverGeneration, 'generation', generation);
    else fail(why, 'server_record', serverCommitted, 'record', committed);
    return false;
  }
  // What a server can say that makes no sense: the card would forget what only it has.
  if (base > serverGeneration || serverCommitted < committed || serverCommitted > newest) {
    fail(NbdError.BAD_OPTION_REPLY, 'base', base, 'record', serverCommitted);
    return false;
  }
  agreed = true;
  logPlace(nameLength);
  // Now, and not when the connection is up: it may not get there, and the branch is made.
  if (conflict && placeOnBranch()) conflictSettled = true;
  conflict = false;
  return true;
}

function logPlace(nameLength: u32): void {
  const branch = placeOnBranch();
  if (conflict && branch) {
    logText('conflict: the image has changed where this card has changed it too; going on, on the branch ');
    logBytes(INPUT + PLACE_REPLY_SIZE_MIN, nameLength);
    logValue('generation', base);
    logEnd(LogLevel.ERROR);
  } else if (branch != wasBranch) {
    logText(branch ? 'working on the branch ' : 'working on the image ');
    logBytes(INPUT + PLACE_REPLY_SIZE_MIN, nameLength);
    logEnd(LogLevel.WARNING);
  }
  wasBranch = branch;
}

/** True once when the server has put this card on a branch because it asked for one. */
export function takeConflictSettled(): bool {
  const is = conflictSettled;
  conflictSettled = false;
  return is;
}
