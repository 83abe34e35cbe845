// The connection's bytes: messages are staged here, whole on their way out and as far as they have come on their way in;
// payload passes by. An import call is dear (about 147 instructions under an interpreter), so everything moves in pieces as
// large as they come.

import { nowMs } from '../clock';
import { net_receive, net_send } from '../imports';
import { linkRateBytes } from '../settings';
import { statistics } from '../statistics';
import { DISCARD, DISCARD_SIZE, INPUT, INPUT_SIZE, OUTPUT, OUTPUT_SIZE } from './arena';

/** The runtime's number of the NBD stream. */
export const STREAM: u32 = 0;

let inputHave: u32 = 0;
let inputNeed: u32 = 0;
let skipLeft: u32 = 0;
let outputStart: u32 = 0;
let outputEnd: u32 = 0;
let moved: bool = false;
/** Something had to wait: for the peer to take what was sent before, or for the limit. */
let sendWaited: bool = false;

/** The limit of the settings: what may be moved now in each direction, in bytes; it grows with time up to a tenth of a second's
 * worth, or one message if that is more. */
const ALLOWANCE_MIN: u32 = 16384;
let allowedSend: u32 = 0;
let allowedReceive: u32 = 0;
let allowedMs: u32 = 0;
let heldBack: bool = false;

export function resetStream(): void {
  inputHave = inputNeed = skipLeft = 0;
  outputStart = outputEnd = 0;
  moved = heldBack = sendWaited = false;
  allowedSend = allowedReceive = ALLOWANCE_MIN;
  allowedMs = nowMs;
}

function allow(): void {
  const rate = linkRateBytes();
  const most = max(rate / 10, ALLOWANCE_MIN);
  const passed = min(nowMs - allowedMs, 1000);
  const more = <u32>((<u64>rate * passed) / 1000);
  // A rate of less than a byte a millisecond adds up too.
  if (more == 0) return;
  allowedMs = nowMs;
  allowedSend = min(allowedSend + more, most);
  allowedReceive = min(allowedReceive + more, most);
}

/** A step begins: nothing is held back yet. */
export function streamBegin(): void {
  heldBack = false;
}

/** Milliseconds until more may be moved, 0xFFFFFFFF when nothing is held back. */
export function streamTimeoutMs(): u32 {
  return heldBack ? max(1, 1000 / max(1, linkRateBytes() / 1024)) : 0xffffffff;
}

/** True once after the peer has brought or taken anything. */
export function takeMoved(): bool {
  const was = moved;
  moved = false;
  return was;
}

// In

/** Receives up to `length` bytes to `target`; returns how many. */
export function receive(target: usize, length: u32): u32 {
  if (linkRateBytes() != 0) {
    allow();
    if (allowedReceive == 0) heldBack = true;
    length = min(length, allowedReceive);
    if (length == 0) return 0;
  }
  const count = net_receive(STREAM, target, length);
  assert(count <= length);
  if (count > 0) moved = true;
  if (linkRateBytes() != 0) allowedReceive -= count;
  statistics.bytesFromServer += count;
  return count;
}

/** The next message part is `need` bytes long, to be staged at INPUT. */
export function expectInput(need: u32): void {
  assert(need <= INPUT_SIZE);
  inputNeed = need;
  inputHave = 0;
}

/** What is staged goes on: it is `need` bytes long in all. */
export function extendInput(need: u32): void {
  assert(need <= INPUT_SIZE);
  assert(need >= inputHave);
  inputNeed = need;
}

/** Receives what has come; true when the expected bytes are all at INPUT. */
export function inputReady(): bool {
  while (inputHave < inputNeed) {
    const count = receive(INPUT + inputHave, inputNeed - inputHave);
    if (count == 0) return false;
    inputHave += count;
  }
  return true;
}

/** True between two parts: nothing of the next one has come. */
export function inputEmpty(): bool {
  return inputHave == 0;
}

export function skipInput(count: u32): void {
  skipLeft = count;
}

/** True when all that was to be skipped has come. */
export function inputSkipped(): bool {
  while (skipLeft > 0) {
    const count = receive(DISCARD, min(skipLeft, DISCARD_SIZE));
    if (count == 0) return false;
    skipLeft -= count;
  }
  return true;
}

export function input16(offset: u32): u16 {
  return bswap<u16>(load<u16>(INPUT + offset));
}

export function input32(offset: u32): u32 {
  return bswap<u32>(load<u32>(INPUT + offset));
}

export function input64(offset: u32): u64 {
  return bswap<u64>(load<u64>(INPUT + offset));
}

// Out

/** Sends up to `length` bytes from `source`; returns how many were taken. */
export function send(source: usize, length: u32): u32 {
  if (linkRateBytes() != 0) {
    allow();
    if (allowedSend == 0) heldBack = true;
    if (allowedSend < length) sendWaited = true;
    length = min(length, allowedSend);
    if (length == 0) return 0;
  }
  const count = net_send(STREAM, source, length);
  assert(count <= length);
  // A system takes a request for a peer that is gone, and another one, for a quarter of an hour: only what had to wait shows that the
  // peer takes anything.
  if (count > 0 && sendWaited) moved = true;
  if (count == length && linkRateBytes() == 0) sendWaited = false;
  else if (count < length) sendWaited = true;
  if (linkRateBytes() != 0) allowedSend -= count;
  statistics.bytesToServer += count;
  return count;
}

export function outputRoom(): u32 {
  return OUTPUT_SIZE - outputEnd;
}

/** True when something is staged that is not sent. */
export function outputPending(): bool {
  return outputStart != outputEnd;
}

/** Sends what is staged; true when all of it is sent, and the whole stage is free again. */
export function outputSent(): bool {
  while (outputStart < outputEnd) {
    const count = send(OUTPUT + outputStart, outputEnd - outputStart);
    if (count == 0) return false;
    outputStart += count;
  }
  outputStart = outputEnd = 0;
  return true;
}

export function put16(value: u16): void {
  assert(outputRoom() >= 2);
  store<u16>(OUTPUT + outputEnd, bswap<u16>(value));
  outputEnd += 2;
}

export function put32(value: u32): void {
  assert(outputRoom() >= 4);
  store<u32>(OUTPUT + outputEnd, bswap<u32>(value));
  outputEnd += 4;
}

export function put64(value: u64): void {
  assert(outputRoom() >= 8);
  store<u64>(OUTPUT + outputEnd, bswap<u64>(value));
  outputEnd += 8;
}

export function putBytes(source: usize, length: u32): void {
  assert(outputRoom() >= length);
  memory.copy(OUTPUT + outputEnd, source, length);
  outputEnd += length;
}
