// The world as a firmware spec sets it up and looks at it; tests/as-pect/world.ts is the other side. A spec imports the
// module under test and this, and calls `resetWorld()` in `beforeEach`. What is only declared here is done by the host.
//
// Memory of a spec: the firmware's arenas below 1 MiB as in assembly/memory-map.ts, 31 MiB of scratch from SCRATCH up for
// what init() would share out, then static data and the heap. A spec may allocate (strings, arrays, StaticArray); the
// firmware may not.

import { readClock } from '../../../assembly/clock';

declare function resetHostWorld(): void;

export function resetWorld(): void {
  resetHostWorld();
  readClock();
}

/** The spec's own memory: nobody else uses it. */
export const SCRATCH: usize = 0x100000;
export const SCRATCH_SIZE: u32 = 0x1f00000;

// Clock and chance

declare function advanceHostClock(ms: u32): void;

export function advanceClock(ms: u32): void {
  advanceHostClock(ms);
  readClock();
}

/** What random_u32() gives next; later values follow from it. */
export declare function setRandom(value: u32): void;

// Log

export declare function logCount(): u32;
export declare function logLevel(index: u32): u32;
declare function logLength(index: u32): u32;
declare function logCopy(index: u32, target: usize): void;

/** Log line number `index`, counted from 0. */
export function logLine(index: u32): string {
  const text = new ArrayBuffer(<i32>logLength(index));
  logCopy(index, changetype<usize>(text));
  return String.UTF8.decode(text);
}

// Settings

/** The record that settings_read() gives from now on; length 0 for none. */
export declare function setSettings(source: usize, length: u32): void;

// Front end: the spec plays it through the register block, which is plain memory

/** How often the firmware has rung the doorbell. */
export declare function frontEndRings(): u32;

// Network: the spec is the peer of every stream

/** How many network paths there are, 1 until the spec says otherwise: a stream on another is closed at once. */
export declare function setNetPaths(count: u32): void;
/** Sets what net_state() gives: after net_open() the stream is CONNECTING until the spec says OPEN or CLOSED. */
export declare function setNetState(stream: u32, state: u32): void;
/** Appends bytes to what the firmware can receive. */
export declare function deliver(stream: u32, source: usize, length: u32): void;
/** Bytes delivered and not received yet. */
export declare function undelivered(stream: u32): u32;
/** The most that one net_receive() gives. */
export declare function setReceiveChunk(stream: u32, bytes: u32): void;
/** How many more bytes net_send() takes in all. */
export declare function setSendWindow(stream: u32, bytes: u32): void;
/** Bytes sent by the firmware and not taken by the spec. */
export declare function sent(stream: u32): u32;
/** Takes up to `capacity` of them; returns how many. */
export declare function takeSent(stream: u32, target: usize, capacity: u32): u32;
export declare function netPath(stream: u32): u32;
export declare function netOpens(stream: u32): u32;
export declare function netCloses(stream: u32): u32;
export declare function tlsStarts(stream: u32): u32;

/** Delivers bytes written as hexadecimal digits; spaces are ignored. */
export function deliverHex(stream: u32, hex: string): void {
  const bytes = new ArrayBuffer(hex.length);
  let count = 0;
  let high: i32 = -1;
  for (let i = 0; i < hex.length; i++) {
    const code = hex.charCodeAt(i);
    if (code == 0x20) continue;
    const digit = code <= 0x39 ? code - 0x30 : (code | 0x20) - 0x57;
    assert(digit >= 0 && digit < 16, 'not a hexadecimal digit');
    if (high < 0) {
      high = digit;
      continue;
    }
    store<u8>(changetype<usize>(bytes) + count, <u8>((high << 4) | digit));
    count += 1;
    high = -1;
  }
  assert(high < 0, 'an odd number of hexadecimal digits');
  deliver(stream, changetype<usize>(bytes), count);
}

/** Takes everything sent so far, as hexadecimal digits. */
export function takeSentHex(stream: u32): string {
  const bytes = new ArrayBuffer(<i32>sent(stream));
  const count = takeSent(stream, changetype<usize>(bytes), bytes.byteLength);
  return toHex(changetype<usize>(bytes), count);
}

/** `count` bytes of memory as hexadecimal digits. */
export function toHex(source: usize, count: u32): string {
  const digits = '0123456789abcdef';
  let text = '';
  for (let i: u32 = 0; i < count; i++) {
    const byte = load<u8>(source + i);
    text += digits.charAt(byte >> 4) + digits.charAt(byte & 15);
  }
  return text;
}
