// Which blocks have been here or were fetched lately, so that a full store does not give up what it has for blocks that are read once:
// those of a scan. A fingerprint of 8 bits for each, in a table as long as the store; a newer one replaces the one in its place.
//
//   arena:  fingerprints u8[places], 0: none
//
// An IDE card loses its power with its PC, and what it has seen with it: after each power-on a part of the store takes whatever comes,
// or a boot that reads new blocks, once, would never be kept.

import { SEGMENT_BLOCKS } from './format';

/** Of the store, for blocks that are seen for the first time since power-on. */
const NEW_SHARE: u32 = 8;

let fingerprints: usize = 0;
let places: u32 = 0;
let newLeft: u32 = 0;

export function seenSize(segments: u32): u32 {
  return (segments * SEGMENT_BLOCKS + 4095) & ~(<u32>4095);
}

/** Nothing has been seen; seenSize(segments) bytes at `arena`. */
export function initSeen(arena: usize, segments: u32): void {
  fingerprints = arena;
  places = segments * SEGMENT_BLOCKS;
  newLeft = places / NEW_SHARE;
  memory.fill(fingerprints, 0, places);
}

/** Remembers the block. True when it was known already. */
export function noteSeen(block: u32): bool {
  const place = fingerprints + <usize>((<u64>(block * 2654435769) * places) >> 32);
  // Not from the bits that say the place.
  const fingerprint = <u8>((block * 2246822507) >> 24) | 1;
  const known = load<u8>(place) == fingerprint;
  store<u8>(place, fingerprint);
  return known;
}

/** A block that a full store would have to make room for has been fetched: is it worth that? */
export function isWorthRoom(block: u32): bool {
  if (noteSeen(block)) return true;
  if (newLeft == 0) return false;
  newLeft -= 1;
  return true;
}
