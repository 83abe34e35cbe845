// The superblock: which of the four copies counts, and how a new one is made. The copy with sequence number n lies at block
// n mod 4, so that a torn write costs the newest copy and never the one before it.

import { BLOCK_SIZE } from '../config';
import { random_u32 } from '../imports';
import { SETTINGS, STORE_SUPERBLOCK } from '../memory-map';
import { SETTINGS_EXPORT, settings } from '../settings';
import {
  checkSuperblock,
  LOG_START_BLOCK,
  SEGMENT_BLOCKS,
  SUPERBLOCK_COPIES,
  SUPERBLOCK_LASTS,
  SUPERBLOCK_NAME,
  SUPERBLOCK_SESSIONS,
  SUPERBLOCK_SESSIONS_MAX,
  Superblock,
  SuperblockCheck,
  sealSuperblock,
} from './format';

/** Why a store is not used. */
export enum StoreError {
  NONE = 0,
  /** Smaller than SEGMENTS_MIN segments. */
  TOO_SMALL = 1,
  /** Something else is on it. */
  FOREIGN = 2,
  /** Every superblock is damaged. */
  DAMAGED = 3,
  /** Formatted by a later firmware. */
  NEWER = 4,
  /** The device is smaller than it was when it was formatted. */
  SHRUNK = 5,
  /** The card has too little memory for a store of this size. */
  MEMORY = 6,
  /** It holds writes of another image that its image server does not have. */
  OTHER_IMAGE = 7,
  /** Writes that the image server does not have cannot be read any more. */
  LOG_DAMAGED = 8,
  /** The device does not read or write. */
  DEVICE = 9,
  /** Other images share it, and it has no place for this one. */
  NO_ROOM = 10,
}

/** What the copies say, taken together. */
export enum Verdict {
  VALID = 0,
  BLANK = 1,
  FOREIGN = 2,
  DAMAGED = 3,
  NEWER = 4,
}

/** The superblock that counts, in memory. */
export const superblock: Superblock = changetype<Superblock>(STORE_SUPERBLOCK);

/** Looks at the four copies at `copies`; the newest valid one becomes `superblock`. */
export function chooseSuperblock(copies: usize): Verdict {
  let best: i32 = -1;
  let verdict = Verdict.BLANK;
  for (let i: u32 = 0; i < SUPERBLOCK_COPIES; i++) {
    const address = copies + i * BLOCK_SIZE;
    const check = checkSuperblock(address);
    if (check == SuperblockCheck.NEWER) verdict = Verdict.NEWER;
    else if (check == SuperblockCheck.DAMAGED && verdict != Verdict.NEWER) verdict = Verdict.DAMAGED;
    else if (check == SuperblockCheck.FOREIGN && verdict == Verdict.BLANK) verdict = Verdict.FOREIGN;
    if (check != SuperblockCheck.VALID) continue;
    if (best < 0 || sequenceAt(copies, i) > sequenceAt(copies, best)) best = i;
  }
  // A later firmware was here: what it did to the log is unknown, even if one of our copies is left.
  if (verdict == Verdict.NEWER || best < 0) return verdict;
  memory.copy(STORE_SUPERBLOCK, copies + <usize>best * BLOCK_SIZE, BLOCK_SIZE);
  return Verdict.VALID;
}

function sequenceAt(copies: usize, i: u32): u64 {
  return changetype<Superblock>(copies + <usize>i * BLOCK_SIZE).sequence;
}

/** Makes the superblock of an empty store for the image of the settings; seal it with nextSuperblock(). */
export function makeSuperblock(blocks: u32, segments: u32): void {
  // Copies of an earlier format may be left on the store: ours must be the newest.
  const sequence = superblock.sequence;
  memory.fill(STORE_SUPERBLOCK, 0, BLOCK_SIZE);
  superblock.sequence = sequence;
  superblock.storeId = ((<u64>random_u32()) << 32) | random_u32();
  superblock.blocks = blocks;
  superblock.segments = segments;
  superblock.logStartBlock = LOG_START_BLOCK;
  superblock.segmentBlocks = SEGMENT_BLOCKS;
  superblock.nameLength = settings.exportLength;
  memory.copy(STORE_SUPERBLOCK + SUPERBLOCK_NAME, SETTINGS + SETTINGS_EXPORT, settings.exportLength);
}

// Sessions (SPEC.md "Local store"): under which names an image server may know what this store has had committed

/** The sessions, u32[16], the current one first. */
export function superblockSessions(): usize {
  return STORE_SUPERBLOCK + SUPERBLOCK_SESSIONS;
}

/** The last record of each session, u64[16]. */
export function superblockLasts(): usize {
  return STORE_SUPERBLOCK + SUPERBLOCK_LASTS;
}

/** Another power-on: the card gets another name for what it commits in it. Record `last` is the last of the log. */
export function nextSession(last: u64): void {
  const sessions = superblockSessions();
  const lasts = superblockLasts();
  // One in which nothing can have been committed makes way, or a card that is often without its server would forget the one in which
  // something was.
  if (!sessionUnused()) {
    memory.copy(sessions + 4, sessions, 4 * (SUPERBLOCK_SESSIONS_MAX - 1));
    store<u64>(lasts, last);
    memory.copy(lasts + 8, lasts, 8 * (SUPERBLOCK_SESSIONS_MAX - 1));
  }
  // A log that has lost its end gives those numbers again, to other records.
  for (let i: usize = 1; i < SUPERBLOCK_SESSIONS_MAX; i++) {
    store<u64>(lasts + (i << 3), min(load<u64>(lasts + (i << 3)), last));
  }
  store<u32>(sessions, random_u32());
  store<u64>(lasts, 0);
  superblock.unusedSession = load<u32>(sessions);
}

/** True when nothing can have been committed in the current session. */
export function sessionUnused(): bool {
  return superblock.unusedSession != 0 && superblock.unusedSession == load<u32>(superblockSessions());
}

/** From the next superblock on something may have been. */
export function useSession(): void {
  superblock.unusedSession = 0;
}

/** Gives the superblock its next sequence number and checksum; returns the block where it belongs. */
export function nextSuperblock(): u32 {
  superblock.sequence += 1;
  sealSuperblock(STORE_SUPERBLOCK);
  return <u32>(superblock.sequence % SUPERBLOCK_COPIES);
}

/** True when the store was made for the image that the settings name. */
export function superblockIsForImage(): bool {
  return (
    superblock.nameLength == settings.exportLength &&
    memory.compare(STORE_SUPERBLOCK + SUPERBLOCK_NAME, SETTINGS + SETTINGS_EXPORT, settings.exportLength) == 0
  );
}
