// What stands around the ATA device in a spec: the real volume, cache, write log and NBD client below it, an NBD server of
// scripted bytes below those, and the front end's side of the register block above. The spec is the PC.
//
// Memory: the write log and the cache take the beginning of SCRATCH, the server's image its end.

import { initAta } from '../../../assembly/ata/device';
import { initCache } from '../../../assembly/cache/cache';
import { initChanges } from '../../../assembly/changes/changes';
import { block, FrontEndEvent } from '../../../assembly/front-end/block';
import { NetState } from '../../../assembly/imports';
import { step } from '../../../assembly/index';
import { initLocalStore, localStoreMemory } from '../../../assembly/local-store/local-store';
import { DATA_BUFFER, FRONT_END, FRONT_END_SIZE, SETTINGS, SETTINGS_SIZE } from '../../../assembly/memory-map';
import { initNbd } from '../../../assembly/nbd/client';
import {
  AcknowledgementPoint,
  SETTINGS_FIRMWARE,
  SETTINGS_FIRMWARE_SIZE,
  SETTINGS_MODEL,
  SETTINGS_MODEL_SIZE,
  SETTINGS_SERIAL,
  SETTINGS_SERIAL_SIZE,
  SETTINGS_WRITE_STALL,
  settings,
} from '../../../assembly/settings';
import { initStatistics } from '../../../assembly/statistics';
import { initVolume } from '../../../assembly/volume/volume';
import { initWriteLog, WRITE_LOG_SIZE } from '../../../assembly/write-log/write-log';
import { deliver, deliverHex, resetWorld, SCRATCH, sent, setNetState, takeSent } from './world';

const STORE: usize = SCRATCH + 0x200000;
const STORE_SIZE: u32 = 0x280000;
const CACHE: usize = SCRATCH + 0x480000;
const CACHE_SIZE: u32 = 0x380000;
/** Requests of the card, and the reply that is being made. */
const WIRE: usize = SCRATCH + 0x800000;
const WIRE_SIZE: u32 = 0x400000;
const REPLY: usize = SCRATCH + 0xc00000;
export const IMAGE: usize = SCRATCH + 0x1000000;
export const IMAGE_SIZE_MAX: u32 = 0xf00000;

const SECTOR: u32 = 512;
const GREETING = '4e42444d41474943 49484156454f5054 0003';
const OPTION_REPLY = '0003e889045565a9';
const REQUEST_SIZE: u32 = 28;
const COMMAND_READ: u32 = 0;
const COMMAND_WRITE: u32 = 1;
const COMMAND_FLUSH: u32 = 3;
const EIO: u32 = 5;

export const INTRQ: u32 = 1;
export const LAST: u32 = 2;
export const PDIAG: u32 = 4;

let wireLength: u32 = 0;
/** The first sector that cannot be read; 0xFFFFFFFF for none. */
export let unreadableLba: u32 = 0xffffffff;
export let refuseWrites: bool = false;
/** Requests are not answered. */
export let serverHeld: bool = false;
export let flushes: u32 = 0;

export function setUnreadable(lba: u32): void {
  unreadableLba = lba;
}
export function setRefuseWrites(refuse: bool): void {
  refuseWrites = refuse;
}
export function setServerHeld(held: bool): void {
  serverHeld = held;
}

/** Text padded with spaces, as settings records have it. */
function settingsText(offset: u32, size: u32, text: string): void {
  memory.fill(SETTINGS + offset, 0x20, size);
  for (let i = 0; i < text.length; i++) store<u8>(SETTINGS + offset + i, <u8>text.charCodeAt(i));
}

/** A card that has been switched on and is not powered by its front end yet: the device is busy. */
export function beginCard(): void {
  resetWorld();
  wireLength = 0;
  unreadableLba = 0xffffffff;
  refuseWrites = false;
  serverHeld = false;
  flushes = 0;
  memory.fill(FRONT_END, 0, FRONT_END_SIZE);
  memory.fill(SETTINGS, 0, SETTINGS_SIZE);
  settings.offlineReadTimeoutMs = 20000;
  settings.epochAgeMs = 1000;
  settings.epochSizeBytes = 4 << 20;
  // What a command has done is looked at on the server, so it must be there when the command ends.
  settings.acknowledgementPoint = <u8>AcknowledgementPoint.REMOTE_STORED;
  store<u32>(SETTINGS + SETTINGS_WRITE_STALL, 20000);
  settingsText(SETTINGS_SERIAL, SETTINGS_SERIAL_SIZE, 'SERIAL-1');
  settingsText(SETTINGS_FIRMWARE, SETTINGS_FIRMWARE_SIZE, '1.0');
  settingsText(SETTINGS_MODEL, SETTINGS_MODEL_SIZE, 'MODEL');
  initStatistics();
  initNbd();
  initChanges();
  assert(SCRATCH + WRITE_LOG_SIZE <= STORE);
  assert(localStoreMemory(STORE_SIZE) > 0);
  assert(localStoreMemory(STORE_SIZE) <= STORE_SIZE);
  initLocalStore(STORE, STORE_SIZE);
  initWriteLog(SCRATCH);
  assert(initCache(CACHE, CACHE_SIZE) > 0);
  initVolume();
  initAta();
}

/** The image server answers: `sectors` of content that says which sector it is. */
export function connectServer(sectors: u32): void {
  assert(sectors * SECTOR <= IMAGE_SIZE_MAX);
  for (let i: u32 = 0; i < sectors * SECTOR; i += 4) store<u32>(IMAGE + i, pattern(i));
  step();
  setNetState(0, NetState.OPEN);
  step();
  deliverHex(0, GREETING);
  step();
  // Structured replies: unsupported. Then GO: the size, and the flags HAS_FLAGS, SEND_FLUSH, SEND_FUA.
  deliverHex(0, `${OPTION_REPLY}00000008 80000001 00000000`);
  step();
  deliverHex(0, `${OPTION_REPLY}00000007 00000003 0000000c 0000`);
  store<u64>(REPLY, bswap<u64>(<u64>sectors * SECTOR));
  deliver(0, REPLY, 8);
  deliverHex(0, '000d');
  deliverHex(0, `${OPTION_REPLY}00000007 00000001 00000000`);
  step();
  takeSent(0, WIRE, WIRE_SIZE);
}

/** What the image holds at a byte offset that is a multiple of 4. */
export function pattern(offset: u32): u32 {
  return (offset * 0x9e3779b1) ^ 0x5bd1e995;
}

/** A card with a disk, idle after power-on. */
export function powerOn(sectors: u32): void {
  beginCard();
  connectServer(sectors);
  post(FrontEndEvent.RESET, 0);
  run();
}

/** The front end posts an event; the card has not run yet. */
export function post(event: FrontEndEvent, length: u32): void {
  block.event = event;
  block.eventLength = length;
  block.eventSequence += 1;
}

/** Runs card and server until nothing moves. */
export function run(): void {
  do step();
  while (!serverHeld && serve());
}

/** Posts an event and runs; returns the number of orders that were given. */
export function happen(event: FrontEndEvent, length: u32): u32 {
  const before = block.orderSequence;
  post(event, length);
  run();
  return block.orderSequence - before;
}

/** Writes the Command register; returns the number of orders given. */
export function command(code: u8): u32 {
  block.command = code;
  return happen(FrontEndEvent.COMMAND, 0);
}

/** Registers for a 28-bit command. */
export function lba28(lba: u32, count: u32): void {
  block.sectorCount = <u8>count;
  block.lbaLow = <u8>lba;
  block.lbaMid = <u8>(lba >> 8);
  block.lbaHigh = <u8>(lba >> 16);
  block.device = <u8>(0xe0 | (lba >> 24));
}

/** Registers for a 48-bit command. */
export function lba48(lba: u64, count: u32): void {
  block.sectorCount = <u8>count;
  block.sectorCountPrevious = <u8>(count >> 8);
  block.lbaLow = <u8>lba;
  block.lbaMid = <u8>(lba >> 8);
  block.lbaHigh = <u8>(lba >> 16);
  block.lbaLowPrevious = <u8>(lba >> 24);
  block.lbaMidPrevious = <u8>(lba >> 32);
  block.lbaHighPrevious = <u8>(lba >> 40);
  block.device = 0xe0;
}

export function chs(cylinder: u32, head: u32, sector: u32, count: u32): void {
  block.sectorCount = <u8>count;
  block.lbaLow = <u8>sector;
  block.lbaMid = <u8>cylinder;
  block.lbaHigh = <u8>(cylinder >> 8);
  block.device = <u8>(0xa0 | head);
}

export function shownLba28(): u32 {
  return (
    ((<u32>(block.device & 0x0f)) << 24) | ((<u32>block.lbaHigh) << 16) | ((<u32>block.lbaMid) << 8) | <u32>block.lbaLow
  );
}

export function shownLba48(): u64 {
  const high = ((<u64>block.lbaHighPrevious) << 16) | ((<u64>block.lbaMidPrevious) << 8) | <u64>block.lbaLowPrevious;
  return (high << 24) | <u64>(((<u32>block.lbaHigh) << 16) | ((<u32>block.lbaMid) << 8) | <u32>block.lbaLow);
}

/** True when `length` bytes of the data buffer at `offset` are the image's from `lba` on. */
export function bufferHolds(offset: u32, length: u32, lba: u32): bool {
  return memory.compare(DATA_BUFFER + offset, IMAGE + <usize>lba * SECTOR, length) == 0;
}

/** Fills a DRQ data block as the PC would. */
export function fillBuffer(offset: u32, length: u32, value: u8): void {
  memory.fill(DATA_BUFFER + offset, value, length);
}

/** True when the image holds `value` in all bytes of these sectors. */
export function imageHolds(lba: u32, count: u32, value: u8): bool {
  for (let i: u32 = 0; i < count * SECTOR; i++) {
    if (load<u8>(IMAGE + <usize>lba * SECTOR + i) != value) return false;
  }
  return true;
}

/** The connection breaks. */
export function cutServer(): void {
  setNetState(0, NetState.CLOSED);
  takeSent(0, WIRE, WIRE_SIZE);
  wireLength = 0;
}

/** Answers every whole request; true when there was one. */
function serve(): bool {
  wireLength += takeSent(0, WIRE + wireLength, WIRE_SIZE - wireLength);
  let at: u32 = 0;
  while (wireLength - at >= REQUEST_SIZE) {
    const request = WIRE + at;
    assert(load<u32>(request) == bswap<u32>(0x25609513), 'request magic');
    const length = bswap<u32>(load<u32>(request + 24));
    const type = <u32>bswap<u16>(load<u16>(request + 6));
    const size = REQUEST_SIZE + (type == COMMAND_WRITE ? length : 0);
    if (wireLength - at < size) break;
    answer(request, type, <u32>bswap<u64>(load<u64>(request + 16)), length);
    at += size;
  }
  memory.copy(WIRE, WIRE + at, wireLength - at);
  wireLength -= at;
  return at > 0;
}

function answer(request: usize, type: u32, offset: u32, length: u32): void {
  let error: u32 = 0;
  let data: u32 = 0;
  if (type == COMMAND_READ) {
    const bad =
      unreadableLba != 0xffffffff && offset / SECTOR <= unreadableLba && unreadableLba * SECTOR < offset + length;
    if (bad) error = EIO;
    else data = length;
  } else if (type == COMMAND_WRITE) {
    if (refuseWrites) error = EIO;
    else memory.copy(IMAGE + offset, request + REQUEST_SIZE, length);
  } else {
    assert(type == COMMAND_FLUSH, 'request type');
    flushes += 1;
  }
  store<u32>(REPLY, bswap<u32>(0x67446698));
  store<u32>(REPLY + 4, bswap<u32>(error));
  store<u64>(REPLY + 8, load<u64>(request + 8));
  deliver(0, REPLY, 16);
  if (data > 0) deliver(0, IMAGE + offset, data);
}

/** Bytes that the card has sent and the held server has not answered. */
export function unanswered(): u32 {
  return sent(0) + wireLength;
}
