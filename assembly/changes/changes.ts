// What others have changed on the image server: asked at every connection, before anything is fetched from it or sent to it.
//
//   connected -> (release what the server says is committed) -> ask about the whole image, window by window
//             -> a changed block is clean here: forgotten         is uncommitted here: conflict, come back for a branch
//             -> a MARK that says so is stored -> learnt
//
// While connected the server ends the connection when somebody else changes the image, so this is the one way in which a card
// learns. On a store that takes nothing any more no MARK is stored: the server is read, but nothing is sent to it. With a plain NBD
// server, which cannot tell, the settings say what becomes of the clean blocks.

import { BLOCK_SIZE } from '../config';
import {
  addRowFlags,
  NO_ROW,
  ROW_LIVE,
  ROW_UNVERIFIED,
  rowDirty,
  rowIs,
  rowKey,
  tableFind,
  tableRows,
} from '../local-store/block-table';
import {
  forgetBegin,
  forgetBlock,
  forgetCached,
  forgetCleanSectors,
  forgetEnd,
  forgetEverything,
  forgetMark,
  initForget,
} from '../local-store/forget';
import { localStoreReady } from '../local-store/local-store';
import {
  logFailed,
  logGeneration,
  logGenerationId,
  logNextSequence,
  logSetGeneration,
  logStored,
  logWantStored,
} from '../local-store/record-log';
import { superblock, superblockLasts, superblockSessions } from '../local-store/superblock';
import { LogLevel, logEnd, logText, logValue } from '../log';
import { CHANGES_EXTENTS } from '../memory-map';
import { MUTANT, Mutant } from '../mutant';
import {
  NbdError,
  NbdState,
  nbdBlockStatus,
  nbdConnection,
  nbdExportSize,
  nbdRelease,
  nbdRestart,
  nbdResult,
  nbdSetPiece,
  nbdState,
  nbdUp,
} from '../nbd/client';
import {
  PLACE_SESSIONS_MAX,
  PlaceMode,
  placeAgreed,
  placeBase,
  placeConflict,
  placeGeneration,
  placeIdentity,
  placeOnBranch,
  placeReset,
  placeServerCommitted,
  placeServerGeneration,
  placeServerId,
  setPlaceMode,
  takeConflictSettled,
} from '../nbd/place';
import { PlainServer, plainServer } from '../settings';
import { statistics } from '../statistics';

enum Stage {
  /** Not connected. */
  DOWN = 0,
  /** The server has committed more than the card knew: the write log lets it go. */
  RELEASING = 1,
  /** Everything clean is to be forgotten. */
  FORGETTING = 2,
  ASKING = 3,
  MARKING = 4,
  STORING = 5,
  LEARNT = 6,
  /** As learnt, but the store is not told, as it takes nothing any more. At the next power-on the card knows what it knew before, so it goes on
   * saying that. Nothing may be committed: what others have changed before a commit of its own counts as known. */
  READING = 7,
}

/** Looked at in one step. */
const BLOCKS_AT_ONCE: u32 = 4096;
const WINDOW_MAX: u32 = 0xffff0000;

let stage: Stage = Stage.DOWN;
let connection: u32 = 0;
let introduced: bool = false;

// The window that is being looked at: bytes of extents at CHANGES_EXTENTS, the next one, and the next block in it.
let request: i32 = -1;
let asked: u64 = 0;
let windowBytes: u32 = 0;
let windowAt: u32 = 0;
let extentOffset: u64 = 0;
let extentDone: u32 = 0;
let changed: u64 = 0;
let markSequence: u64 = 0;
/** What the store says until the MARK is stored. */
let toldGeneration: u64 = 0;
let toldId: u64 = 0;
/** The clean blocks are right for a later generation than the card says: with the connection they count no longer. */
let ahead: bool = false;

export function initChanges(): void {
  stage = Stage.DOWN;
  connection = 0;
  introduced = false;
  ahead = false;
  request = -1;
  setPlaceMode(PlaceMode.WAITING);
}

/** True when everything that others have changed until this connection began is known: the server may be read and written. */
export function changesLearnt(): bool {
  return stage == Stage.LEARNT && nbdUp() && connection == nbdConnection();
}

/** True when the server may be read at least. */
export function changesReadable(): bool {
  return changesLearnt() || (stage == Stage.READING && nbdUp() && connection == nbdConnection());
}

/** True when the write log must let go what changesCommitted() says before anything else. */
export function changesWait(): bool {
  return stage == Stage.RELEASING && connection == nbdConnection() && nbdUp();
}

/** The epochs up to this record are committed, by what the server says: to be let go before anything else. */
export function changesCommitted(): u64 {
  return placeServerCommitted();
}

/** They are let go. */
export function changesReleased(): void {
  stage = placeReset() || ahead ? Stage.FORGETTING : firstQuestion();
}

/** The server has made the card's epoch this generation. */
export function changesOwn(generation: u64, id: u64): void {
  logSetGeneration(generation, id);
  placeGeneration(generation, id);
  if (stage == Stage.LEARNT) statistics.generation = generation;
}

/** Goes on as far as it can. True when anything moved. */
export function changesStep(): bool {
  if (!introduced) return introduce();
  if (!nbdUp()) {
    if (stage == Stage.DOWN) return false;
    drop();
    return true;
  }
  if (connection != nbdConnection()) {
    drop();
    connected();
    return true;
  }
  switch (stage) {
    case Stage.FORGETTING:
      if (!forgetEverything()) return false;
      stage = forgotten();
      return true;
    case Stage.ASKING:
      return ask();
    case Stage.MARKING:
      return mark();
    case Stage.STORING:
      if (logStored() < markSequence) return logFailed() && markNothing();
      stage = Stage.LEARNT;
      statistics.generation = logGeneration();
      return true;
    default:
      return false;
  }
}

/** Tells the connection who the card is, once the local store knows. */
function introduce(): bool {
  if (!localStoreReady()) return false;
  introduced = true;
  const sessions = superblockSessions();
  placeIdentity(superblock.storeId, load<u32>(sessions), sessions + 4, superblockLasts() + 8, PLACE_SESSIONS_MAX - 1);
  placeGeneration(logGeneration(), logGenerationId());
  statistics.generation = logGeneration();
  setPlaceMode(PlaceMode.CARD);
  return true;
}

function drop(): void {
  if (request >= 0) nbdRelease(request);
  request = -1;
  stage = Stage.DOWN;
}

function connected(): void {
  connection = nbdConnection();
  initForget();
  changed = 0;
  toldGeneration = logGeneration();
  toldId = logGenerationId();
  if (!placeAgreed()) {
    plain();
    return;
  }
  if (takeConflictSettled()) statistics.conflicts += 1;
  statistics.onBranch = placeOnBranch() ? 1 : 0;
  stage = Stage.RELEASING;
}

function plain(): void {
  statistics.onBranch = 0;
  if (plainServer() == PlainServer.DROP) {
    stage = Stage.FORGETTING;
    return;
  }
  if (plainServer() == PlainServer.VERIFY) {
    for (let row: u32 = 0; row < tableRows(); row++) {
      if (!rowIs(row, ROW_LIVE)) continue;
      if (rowDirty(row) == 0) addRowFlags(row, ROW_UNVERIFIED);
      else forgetCleanSectors(row);
    }
    forgetCached(0, 0xfffffffe);
  }
  stage = Stage.LEARNT;
}

function firstQuestion(): Stage {
  if (placeBase() == placeServerGeneration() || MUTANT == Mutant.IGNORE_CHANGES) {
    changesOwn(placeServerGeneration(), placeServerId());
    statistics.generation = logGeneration();
    return Stage.LEARNT;
  }
  return startAsking();
}

function startAsking(): Stage {
  asked = 0;
  windowBytes = windowAt = 0;
  return Stage.ASKING;
}

/** Nothing clean is left. What is uncommitted may still meet what others have changed. */
function forgotten(): Stage {
  if (placeAgreed() && placeBase() != placeServerGeneration()) return startAsking();
  if (placeReset() || !ahead) return Stage.MARKING;
  ahead = false;
  return firstQuestion();
}

// Asking

function ask(): bool {
  if (windowAt < windowBytes) return look();
  if (request < 0) {
    if (asked >= nbdExportSize()) {
      stage = Stage.MARKING;
      return true;
    }
    request = nbdBlockStatus(asked, <u32>min<u64>(nbdExportSize() - asked, WINDOW_MAX));
    if (request < 0) return false;
    nbdSetPiece(request, 0, CHANGES_EXTENTS);
    return true;
  }
  const state = nbdState(request);
  if (state == NbdState.PENDING) return false;
  const bytes = <u32>nbdResult(request);
  nbdRelease(request);
  request = -1;
  if (state != NbdState.DONE) {
    if (state == NbdState.FAILED) nbdRestart(NbdError.REQUEST_REFUSED);
    return true;
  }
  windowBytes = bytes;
  windowAt = 0;
  extentOffset = asked;
  extentDone = 0;
  return checkWindow();
}

/** Extents are whole blocks but for the end of the image, none is empty, and they do not go beyond it. */
function checkWindow(): bool {
  let offset = asked;
  for (let at: u32 = 0; at < windowBytes; at += 8) {
    const length = extentLength(at);
    const end = offset + length;
    if (length == 0 || end > nbdExportSize() || (end % BLOCK_SIZE != 0 && end != nbdExportSize())) {
      nbdRestart(NbdError.BAD_EXTENTS);
      return true;
    }
    offset = end;
  }
  asked = offset;
  return true;
}

function extentLength(at: u32): u32 {
  return bswap<u32>(load<u32>(CHANGES_EXTENTS + at));
}

/** Looks at the next blocks of the window. */
function look(): bool {
  const length = extentLength(windowAt);
  if (bswap<u32>(load<u32>(CHANGES_EXTENTS + windowAt + 4)) == 0) {
    nextExtent(length);
    return true;
  }
  const first = <u32>(extentOffset / BLOCK_SIZE);
  const count = <u32>((<u64>length + BLOCK_SIZE - 1) / BLOCK_SIZE);
  if (!forgetBegin()) return false;
  const done = count > tableRows() ? lookAtRows(first, count) : lookAtBlocks(first, count);
  forgetEnd();
  if (stage != Stage.ASKING) return true;
  if (!done) return true;
  changed += count;
  nextExtent(length);
  return true;
}

function nextExtent(length: u32): void {
  extentOffset += length;
  extentDone = 0;
  windowAt += 8;
}

function lookAtBlocks(first: u32, count: u32): bool {
  for (let looked: u32 = 0; extentDone < count; looked++) {
    if (looked == BLOCKS_AT_ONCE || !lookAtBlock(first + extentDone)) return false;
    extentDone += 1;
  }
  return true;
}

/** More blocks have changed than the card can have: what it has is looked at instead. */
function lookAtRows(first: u32, count: u32): bool {
  if (extentDone == 0) forgetCached(first, count);
  for (let looked: u32 = 0; extentDone < tableRows(); looked++) {
    const block = rowKey(extentDone);
    const isIn = rowIs(extentDone, ROW_LIVE) && block >= first && block - first < count;
    if (looked == BLOCKS_AT_ONCE || (isIn && !lookAtBlock(block))) return false;
    extentDone += 1;
  }
  return true;
}

/** Forgets a changed block, or finds that both sides have changed it. False: this look is over. */
function lookAtBlock(block: u32): bool {
  const row = tableFind(block);
  if (row != NO_ROW && rowDirty(row) != 0) {
    if (MUTANT == Mutant.MERGE_CONFLICTS) return true;
    logText('conflict: a block is changed here and on the image server');
    logValue('block', block);
    logValue('since_generation', placeBase());
    logEnd(LogLevel.ERROR);
    placeConflict();
    nbdRestart(NbdError.CONFLICT);
    stage = Stage.DOWN;
    return false;
  }
  return forgetBlock(block);
}

/** Everything is looked at: says on the store what the clean blocks are right for now, if it still takes anything. */
function mark(): bool {
  if (logFailed()) return markNothing();
  if (placeAgreed()) changesOwn(placeServerGeneration(), placeServerId());
  markSequence = forgetMark();
  if (markSequence == 0) return false;
  logWantStored(markSequence);
  stage = Stage.STORING;
  logText('image changed by others');
  logValue('generation', logGeneration());
  logValue('blocks', changed);
  logValue('forgotten', statistics.blocksForgotten);
  logValue('record', logNextSequence() - 1);
  logEnd(LogLevel.INFO);
  return true;
}

/** The store has failed, perhaps when the MARK was on its way. */
function markNothing(): bool {
  if (placeAgreed()) changesOwn(toldGeneration, toldId);
  // A plain server is not told anything, and at the next power-on its blocks are forgotten again.
  stage = placeAgreed() ? Stage.READING : Stage.LEARNT;
  ahead = placeAgreed();
  logText('the image server is read only: the local store cannot say what others have changed');
  logValue('changed_blocks', changed);
  logEnd(LogLevel.WARNING);
  return true;
}
