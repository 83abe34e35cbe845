// The RAM cache: 4 KiB blocks of the image, set-associative, least recently used within a set.
//
// It knows blocks and memory, not the network: the volume asks where a block is, allocates a slot for one that is missing,
// and says when its data has come. Invariants: a block is in at most one slot; only READY slots are ever read or evicted;
// a slot that is being filled keeps its memory until the fill has ended.
//
// A slot may hold a part of its block only, as the local store does after a short write to a block that the card did not
// have: its mask says which sectors are right.
//
//   arena:  tags u32[slots] | ticks u32[slots] | states u8[slots] | masks u8[slots] | pad to 4096 | data 4096[slots]

import { BLOCK_SIZE } from '../config';

/** 8 ways: a scan of one cache line of tags finds a block. */
const WAYS: u32 = 8;
const NO_BLOCK: u32 = 0xffffffff;
/** A slot's data and its share of tags, ticks, states and masks. */
const SLOT_COST: u32 = BLOCK_SIZE + 4 + 4 + 1 + 1;

export enum SlotState {
  EMPTY = 0,
  /** Data is on its way, from the local store or the server. */
  FILLING = 1,
  /** Data is on its way, but the PC has written the block since: what comes must not be used. */
  FILLING_STALE = 2,
  /** Holds the sectors of its mask as the PC sees them. */
  READY = 3,
}

let sets: u32 = 0;
let tags: usize = 0;
let ticks: usize = 0;
let states: usize = 0;
let masks: usize = 0;
let data: usize = 0;
let tick: u32 = 0;

/** Takes `size` bytes at `arena` (4 KiB aligned); returns how many blocks fit, a multiple of the ways, 0 when none do. */
export function initCache(arena: usize, size: u32): u32 {
  if (size < BLOCK_SIZE * (WAYS + 1)) return 0;
  sets = (size - BLOCK_SIZE) / SLOT_COST / WAYS;
  const slots = sets * WAYS;
  tags = arena;
  ticks = tags + slots * 4;
  states = ticks + slots * 4;
  masks = states + slots;
  data = (masks + slots + (BLOCK_SIZE - 1)) & ~(<usize>BLOCK_SIZE - 1);
  assert(data + <usize>slots * BLOCK_SIZE <= arena + size);
  memory.fill(tags, 0xff, slots * 4);
  memory.fill(ticks, 0, slots * 4);
  memory.fill(states, <u8>SlotState.EMPTY, slots);
  tick = 0;
  return slots;
}

/** The slot that holds or is being filled with `block`, -1 when there is none. */
export function cacheFind(block: u32): i32 {
  // Neighbouring blocks fall into neighbouring sets, so that sequential data spreads evenly without a hash.
  const first = (block % sets) * WAYS;
  let tag = tags + first * 4;
  for (let way: u32 = 0; way < WAYS; way++, tag += 4) {
    if (load<u32>(tag) == block) return <i32>(first + way);
  }
  return -1;
}

/** A slot for `block`, which must not be in the cache, in state FILLING: an empty one or the set's least recently used
 * one that is ready. -1 when every way of the set is being filled. */
export function cacheAllocate(block: u32): i32 {
  const first = (block % sets) * WAYS;
  let victim: i32 = -1;
  let victimAge: u32 = 0;
  for (let way: u32 = 0; way < WAYS; way++) {
    const slot = first + way;
    const state = load<u8>(states + slot);
    if (state == SlotState.EMPTY) {
      victim = slot;
      break;
    }
    if (state != SlotState.READY) continue;
    const age = tick - load<u32>(ticks + slot * 4);
    if (victim < 0 || age > victimAge) {
      victim = slot;
      victimAge = age;
    }
  }
  if (victim < 0) return -1;
  store<u32>(tags + ((<usize>victim) << 2), block);
  store<u8>(states + victim, SlotState.FILLING);
  store<u8>(masks + victim, 0);
  cacheTouch(victim);
  return victim;
}

export function cacheSlots(): u32 {
  return sets * WAYS;
}

/** The block that the slot is for; no block of an image has the number that an empty slot has. */
export function cacheTag(slot: u32): u32 {
  return load<u32>(tags + ((<usize>slot) << 2));
}

export function cacheState(slot: i32): SlotState {
  return load<u8>(states + slot);
}

/** Makes the slot the set's most recently used. */
export function cacheTouch(slot: i32): void {
  tick += 1;
  store<u32>(ticks + ((<usize>slot) << 2), tick);
}

/** Where the slot's 4096 bytes lie. */
export function cacheAddress(slot: i32): usize {
  return data + <usize>slot * BLOCK_SIZE;
}

/** The sectors of `mask` have come, beside those that the slot had before. */
export function cacheSetReady(slot: i32, mask: u8): void {
  assert(cacheState(slot) == SlotState.FILLING);
  store<u8>(states + slot, SlotState.READY);
  store<u8>(masks + slot, mask);
}

/** Which sectors of a READY slot are right: bit n for sector n. */
export function cacheMask(slot: i32): u8 {
  return load<u8>(masks + slot);
}

/** More of a READY slot is on its way: what it has stays, but cannot be read until that has ended. */
export function cacheSetFilling(slot: i32): void {
  assert(cacheState(slot) == SlotState.READY);
  store<u8>(states + slot, SlotState.FILLING);
}

/** The block of a slot that is being filled was written: drop what comes. */
export function cacheSetStale(slot: i32): void {
  assert(cacheState(slot) == SlotState.FILLING || cacheState(slot) == SlotState.FILLING_STALE);
  store<u8>(states + slot, SlotState.FILLING_STALE);
}

/** The slot holds nothing any more. */
export function cacheSetEmpty(slot: i32): void {
  store<u32>(tags + ((<usize>slot) << 2), NO_BLOCK);
  store<u8>(states + slot, SlotState.EMPTY);
}
