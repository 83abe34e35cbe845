// The connection's bytes: messages are staged here, whole on their way out and as far as they have come on their way in;
// payload passes by. An import call is dear (about 147 instructions under an interpreter), so everything moves in pieces as
// large as they come.

import { net_receive, net_send } from '../imports';
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

export function resetStream(): void {
  inputHave = inputNeed = skipLeft = 0;
  outputStart = outputEnd = 0;
  moved = false;
}

/** True once after any byte has moved. */
export function takeMoved(): bool {
  const was = moved;
  moved = false;
  return was;
}

// In

/** Receives up to `length` bytes to `target`; returns how many. */
export function receive(target: usize, length: u32): u32 {
  const count = net_receive(STREAM, target, length);
  assert(count <= length);
  if (count > 0) moved = true;
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
  const count = net_send(STREAM, source, length);
  assert(count <= length);
  if (count > 0) moved = true;
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
