// The private option and commands between a card and the server (SPEC.md "Between a card and the image server"): layouts only.
// Everything here takes bytes from outside: null means that they cannot be what they should be.

import zlib from 'node:zlib';
import { crc32c } from '../card/crc32c.js';
import type { CardHello, CardPlace } from './export.js';

export const NBD_OPT_RIBBON = 0x52424e01;
export const NBD_REP_RIBBON = 0x52424e01;
export const NBD_CMD_WRITE_PIECES = 0x5201;
export const NBD_CMD_ASK = 0x5202;
export const NBD_REPLY_TYPE_COMMITTED = 0x5242;
export const NBD_REPLY_TYPE_KNOWN = 0x5243;
export const NBD_REPLY_TYPE_PIECES = 0x5244;

const VERSION = 1;
const FLAG_DIRTY = 1;
const FLAG_CONFLICT = 2;
export const FLAG_DEFLATE = 4;
export const FLAG_ASK = 8;
const FLAG_EARLY = 16;
const FLAG_BRANCH = 16;
const FLAG_RESET = 32;

export const HELLO_SIZE = 52;
export const HELLO_SESSION_SIZE = 12;
const SESSIONS_MAX = 16;
const NAME_MAX = 256;

export const PIECE = 4096;
/** The most bytes of one request of a card. */
export const RANGE_MAX = 131_072;
export const PIECES_MAX = 33;
export const WRITE_HEAD = 16;
export const HASH = 32;
/** Extents of one reply: they fit 4 KiB. */
export const EXTENTS_MAX = 511;

const ENCODING_NONE = 0;
const ENCODING_DEFLATE = 1;
const VERDICTS = { ok: 0, reset: 0, lost: 0, older: 1, copied: 2 } as const;

export interface Hello {
  name: Uint8Array;
  /** FLAG_DEFLATE, FLAG_ASK: what the card can. */
  features: number;
  hello: CardHello;
}

export function parseHello(data: Buffer): Hello | null {
  if (data.length < HELLO_SIZE) return null;
  const version = data.readUInt16BE(0);
  const flags = data.readUInt16BE(2);
  const sessions = data.readUInt16BE(48);
  const nameLength = data.readUInt16BE(50);
  const end = HELLO_SIZE + HELLO_SESSION_SIZE * sessions + nameLength;
  if (version === 0 || sessions > SESSIONS_MAX || nameLength === 0 || nameLength > NAME_MAX) return null;
  if (version === VERSION ? data.length !== end : data.length < end) return null;
  const generation = readSafe(data, 16);
  const committed = readSafe(data, 32);
  const newest = readSafe(data, 40);
  const lasts = Array.from({ length: sessions }, (_, index) => readSafe(data, sessionAt(index) + 4));
  if ([generation, committed, newest, ...lasts].includes(null)) return null;
  return {
    name: data.subarray(end - nameLength, end),
    features: flags & (FLAG_DEFLATE | FLAG_ASK),
    hello: {
      card: data.toString('hex', 8, 16),
      session: data.readUInt32BE(4),
      sessions: lasts.map((last, index) => ({ session: data.readUInt32BE(sessionAt(index)), last: last! })),
      generation: generation!,
      id: data.toString('hex', 24, 32),
      committed: committed!,
      newest: newest!,
      dirty: (flags & FLAG_DIRTY) !== 0,
      conflict: (flags & FLAG_CONFLICT) !== 0,
      early: (flags & FLAG_EARLY) !== 0,
    },
  };
}

function sessionAt(index: number): number {
  return HELLO_SIZE + HELLO_SESSION_SIZE * index;
}

export function encodePlace(place: CardPlace, asked: string, features: number): Buffer {
  const name = Buffer.from(place.line);
  const bytes = Buffer.alloc(40 + name.length);
  let flags = features;
  if (place.line !== asked) flags |= FLAG_BRANCH;
  if (place.verdict === 'reset' || place.verdict === 'lost') flags |= FLAG_RESET;
  bytes.writeUInt16BE(VERSION, 0);
  bytes.writeUInt16BE(flags, 2);
  bytes.writeUInt16BE(VERDICTS[place.verdict], 4);
  bytes.writeUInt16BE(name.length, 6);
  bytes.writeBigUInt64BE(BigInt(place.base), 8);
  bytes.writeBigUInt64BE(BigInt(place.generation), 16);
  bytes.write(place.id.padStart(16, '0'), 24, 'hex');
  bytes.writeBigUInt64BE(BigInt(place.committed), 32);
  name.copy(bytes, 40);
  return bytes;
}

/** Numbers beyond 2^53 are none of ours. */
export function readSafe(data: Buffer, at: number): number | null {
  const value = data.readBigUInt64BE(at);
  return value > BigInt(Number.MAX_SAFE_INTEGER) ? null : Number(value);
}

/** The pieces of a range: offsets relative to its start, and one behind the last. */
export function pieceStarts(offset: number, length: number): number[] {
  const starts = [0];
  for (let at = PIECE - (offset % PIECE); at < length; at += PIECE) starts.push(at);
  starts.push(length);
  return starts;
}

export interface WriteHead {
  encoding: number;
  /** Of each piece of the range: does it follow? */
  present: boolean[];
  /** Bytes of CRCs and data behind the head. */
  rest: number;
  dataLength: number;
}

/** The head of a WRITE_PIECES for a range. */
export function parseWriteHead(head: Buffer, offset: number, length: number): WriteHead | null {
  const encoding = head.readUInt16BE(0);
  const crcs = head.readUInt16BE(2);
  const dataLength = head.readUInt32BE(12);
  const pieces = pieceStarts(offset, length).length - 1;
  const present = Array.from({ length: pieces }, (_, i) => {
    const word = head.readUInt32BE(i < 32 ? 4 : 8);
    return ((word >>> (i % 32)) & 1) === 1;
  });
  if (length > RANGE_MAX || dataLength > RANGE_MAX || crcs > PIECES_MAX) return null;
  if (crcs === 0 || present.filter(Boolean).length !== crcs) return null;
  if (encoding !== ENCODING_NONE && encoding !== ENCODING_DEFLATE) return null;
  return { encoding, present, rest: 4 * crcs + dataLength, dataLength };
}

/** The pieces of a WRITE_PIECES: where each belongs in the range, and its bytes; null when a CRC is wrong or it does not decode. */
export function decodePieces(
  head: WriteHead,
  rest: Buffer,
  offset: number,
  length: number,
): { at: number; bytes: Buffer }[] | null {
  const starts = pieceStarts(offset, length);
  let total = 0;
  for (const [i, here] of head.present.entries()) if (here) total += starts[i + 1] - starts[i];
  const coded = rest.subarray(rest.length - head.dataLength);
  const plain = head.encoding === ENCODING_DEFLATE ? inflate(coded, total) : coded;
  if (plain === null || plain.length !== total) return null;
  const pieces: { at: number; bytes: Buffer }[] = [];
  let at = 0;
  let crc = 0;
  for (const [i, here] of head.present.entries()) {
    if (!here) continue;
    const bytes = plain.subarray(at, at + starts[i + 1] - starts[i]);
    if (crc32c(bytes) !== rest.readUInt32BE(4 * crc)) return null;
    pieces.push({ at: starts[i], bytes });
    at += bytes.length;
    crc++;
  }
  return pieces;
}

/** The payload of the chunk that answers a READ. */
export function encodeRead(offset: number, data: Buffer, mayDeflate: boolean): Buffer {
  const starts = pieceStarts(offset, data.length);
  const pieces = starts.length - 1;
  const packed = mayDeflate ? deflate(data) : null;
  const body = packed ?? data;
  const head = Buffer.alloc(16 + 4 * pieces);
  head.writeBigUInt64BE(BigInt(offset), 0);
  head.writeUInt16BE(packed === null ? ENCODING_NONE : ENCODING_DEFLATE, 8);
  head.writeUInt16BE(pieces, 10);
  head.writeUInt32BE(data.length, 12);
  for (let i = 0; i < pieces; i++) head.writeUInt32BE(crc32c(data.subarray(starts[i], starts[i + 1])), 16 + 4 * i);
  return Buffer.concat([head, body]);
}

/** The data deflated, or null when that does not save an eighth. */
export function deflate(data: Uint8Array): Buffer | null {
  const packed = zlib.deflateRawSync(data, { level: DEFLATE_LEVEL });
  return packed.length <= data.length - data.length / 8 ? packed : null;
}

/** Measured on a Debian system's programs and texts, 128 KiB at a time: level 1 ratio 2.5, level 3 2.6, level 6 2.75 at half the speed. */
export const DEFLATE_LEVEL = 3;

/** What `coded` decodes to, at most `length` bytes; null when it does not. */
export function inflate(coded: Uint8Array, length: number): Buffer | null {
  if (length === 0) return null;
  try {
    return zlib.inflateRawSync(coded, { maxOutputLength: length });
  } catch {
    return null;
  }
}
