// Log lines. A line is built in a fixed buffer and handed to the runtime; what does not fit is cut off.

import { log_write } from './imports';
import { LOG_LINE, LOG_LINE_SIZE } from './memory-map';

export enum LogLevel {
  ERROR = 0,
  WARNING = 1,
  INFO = 2,
  DEBUG = 3,
}

let length: u32 = 0;

function put(character: u8): void {
  if (length == LOG_LINE_SIZE) return;
  store<u8>(LOG_LINE + length, character);
  length += 1;
}

/** Starts a line with `text`, which must be ASCII. */
export function logText(text: string): void {
  for (let i = 0; i < text.length; i++) put(<u8>text.charCodeAt(i));
}

/** Appends `name=value`, decimal, with a space before it. */
export function logValue(name: string, value: u64): void {
  put(0x20);
  logText(name);
  put(0x3d);
  let divisor: u64 = 1;
  while (value / divisor >= 10) divisor *= 10;
  for (; divisor > 0; divisor /= 10) put(<u8>(0x30 + ((value / divisor) % 10)));
}

/** Appends bytes as they are: text that came from outside and has been checked to be UTF-8 or ASCII. */
export function logBytes(source: usize, count: u32): void {
  for (let i: u32 = 0; i < count; i++) put(load<u8>(source + i));
}

/** Ends the line and sends it. */
export function logEnd(level: LogLevel): void {
  log_write(level, LOG_LINE, length);
  length = 0;
}
