// Which blocks have been here or were fetched lately, so that a full store does not give up what it has for blocks that are read once:
// those of a scan. A fingerprint of 4 bits for each, in a table with a place for every fourth block of the store (1/8 byte a block: with
// the block table that makes 16); a newer one replaces the one in its place.
//
//   arena:  fingerprints u4[places], 0: none
//
// An IDE card loses its power with its PC, and what it has seen with it: after each power-on a part of the store takes whatever comes,
// or a boot that reads new blocks, once, would never be kept.

import { SEGMENT_BLOCKS } from './format';

/** Blocks of the store for each place. */
const BLOCKS_PER_PLACE: u32 = 4;

/** Of the store, for blocks that are seen for the first time since power-on. */
const NEW_SHARE: u32 = 8;

let fingerprints: usize = 0;
let places: u32 = 0;
let newLeft: u32 = 0;

export function seenSize(segments: u32): u32 {
  return ((segments * SEGMENT_BLOCKS) / BLOCKS_PER_PLACE / 2 + 4095) & ~(<u32>4095);
}

/** Nothing has been seen; seenSize(segments) bytes at `arena`. */
export function initSeen(arena: usize, segments: u32): void {
  fingerprints = arena;
  places = (segments * SEGMENT_BLOCKS) / BLOCKS_PER_PLACE;
  newLeft = (segments * SEGMENT_BLOCKS) / NEW_SHARE;
  memory.fill(fingerprints, 0, seenSize(segments));
}

/** Remembers the block. True when it was known already. */
export function noteSeen(block: u32): bool {
  const place = <u32>((<u64>(block * 2654435769) * places) >> 32);
  // Not from the bits that say the place, and never 0.
  const fingerprint = <u8>(1 + ((<u64>(block * 2246822507) * 15) >> 32));
  const at = fingerprints + place / 2;
  const shift = (<u8>place & 1) * 4;
  const pair = load<u8>(at);
  store<u8>(at, (pair & ~((<u8>15) << shift)) | (fingerprint << shift));
  return ((pair >> shift) & 15) == fingerprint;
}

/** A block that a full store would have to make room for has been fetched: is it worth that? */
export function isWorthRoom(block: u32): bool {
  if (noteSeen(block)) return true;
  if (newLeft == 0) return false;
  newLeft -= 1;
  return true;
}
