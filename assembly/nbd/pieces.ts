// Payload between a card and its image server: a CRC-32C for every piece of a range, and data that is deflated when that
// saves an eighth (SPEC.md "Between a card and the image server"). A piece is what of the range lies in one block of the image.
//
// A write is gathered in memory of its own, so that what the owner's memory holds is sent as it was when it was checked.

import { NBD_REQUEST_SIZE_MAX } from '../config';
import { crc32c, deflate, inflate } from '../imports';
import { NBD_WIRE, NBD_WIRE_SIZE } from '../memory-map';
import { PIECE_SIZE } from './arena';
import { placeDeflate } from './place';
import { pieceAddress, pieceRun, request } from './requests';
import { put16, put32 } from './stream';

export const ENCODING_NONE: u16 = 0;
export const ENCODING_DEFLATE: u16 = 1;
/** 128 KiB that begin inside a block. */
export const RANGE_PIECES_MAX: u32 = NBD_REQUEST_SIZE_MAX / PIECE_SIZE + 1;
/** Encoding, number of CRCs, mask, length: before the CRCs. */
export const WRITE_HEAD_SIZE: u32 = 16;
export const WRITE_HEAD_SIZE_MAX: u32 = WRITE_HEAD_SIZE + 4 * RANGE_PIECES_MAX;
export const READ_HEAD_SIZE: u32 = 16;

const GATHERED: usize = NBD_WIRE;
const DEFLATED: usize = GATHERED + NBD_REQUEST_SIZE_MAX;
/** A deflated answer as it comes. */
export const INFLATABLE: usize = DEFLATED + NBD_REQUEST_SIZE_MAX;
const INFLATED: usize = INFLATABLE + NBD_REQUEST_SIZE_MAX;
/** u32[RANGE_PIECES_MAX]: what an answer says of its pieces, big-endian. */
export const READ_CRCS: usize = INFLATED + NBD_REQUEST_SIZE_MAX;

assert(READ_CRCS + 4 * RANGE_PIECES_MAX <= NBD_WIRE + NBD_WIRE_SIZE);

/** How many pieces the range has. */
export function rangePieces(offset: u64, length: u32): u32 {
  return <u32>((offset + length - 1) / PIECE_SIZE - offset / PIECE_SIZE) + 1;
}

/** Where piece `i` of a range begins, relative to the range. */
function pieceStart(offset: u64, i: u32): u32 {
  return i == 0 ? 0 : i * PIECE_SIZE - <u32>(offset % PIECE_SIZE);
}

function pieceEnd(offset: u64, length: u32, i: u32): u32 {
  return min(pieceStart(offset, i + 1), length);
}

// What is to be sent: valid from preparePieces() until the next.
let sendAddress: usize = 0;
let sendLength: u32 = 0;
let sendPieces: u32 = 0;
let sendMaskLow: u32 = 0;
let sendMaskHigh: u32 = 0;
let sendEncoding: u16 = 0;
let gatheredLength: u32 = 0;

/** Gathers the part's pieces, except those that the server has, and encodes them. */
export function preparePieces(slot: i32): void {
  const which = request(slot);
  const offset = which.offset + which.partStart;
  const pieces = rangePieces(offset, which.partLength);
  sendPieces = gatheredLength = 0;
  sendMaskLow = sendMaskHigh = 0;
  for (let i: u32 = 0; i < pieces; i++) {
    if (i < 32 && ((<u32>which.result >> i) & 1) != 0) continue;
    if (i < 32) sendMaskLow |= (<u32>1) << i;
    else sendMaskHigh |= 1;
    sendPieces += 1;
    gather(slot, which.partStart + pieceStart(offset, i), which.partStart + pieceEnd(offset, which.partLength, i));
  }
  assert(sendPieces > 0);
  const packed = placeDeflate() ? deflate(GATHERED, gatheredLength, DEFLATED, gatheredLength - gatheredLength / 8) : 0;
  assert(packed <= gatheredLength);
  sendEncoding = packed != 0 ? ENCODING_DEFLATE : ENCODING_NONE;
  sendAddress = packed != 0 ? DEFLATED : GATHERED;
  sendLength = packed != 0 ? packed : gatheredLength;
}

/** What is to be sent is `length` bytes at `source`, as they are now. */
export function gatherBytes(source: usize, length: u32): void {
  memory.copy(GATHERED, source, length);
  sendAddress = GATHERED;
  sendLength = length;
}

function gather(slot: i32, from: u32, to: u32): void {
  while (from < to) {
    const run = pieceRun(slot, from, to - from);
    memory.copy(GATHERED + gatheredLength, pieceAddress(slot, from), run);
    gatheredLength += run;
    from += run;
  }
}

/** Stages what comes before the data. */
export function putPiecesHead(slot: i32): void {
  const which = request(slot);
  const offset = which.offset + which.partStart;
  const pieces = rangePieces(offset, which.partLength);
  put16(sendEncoding);
  put16(<u16>sendPieces);
  put32(sendMaskLow);
  put32(sendMaskHigh);
  put32(sendLength);
  let at = GATHERED;
  for (let i: u32 = 0; i < pieces; i++) {
    if (i < 32 && ((<u32>which.result >> i) & 1) != 0) continue;
    const length = pieceEnd(offset, which.partLength, i) - pieceStart(offset, i);
    put32(crc32c(0, at, length));
    at += length;
  }
}

export function piecesAddress(): usize {
  return sendAddress;
}

export function piecesLength(): u32 {
  return sendLength;
}

// An answer to a read

/** True when the part's bytes, which are in the owner's memory, are what READ_CRCS says. */
export function checkPieces(slot: i32): bool {
  const which = request(slot);
  const offset = which.offset + which.partStart;
  const pieces = rangePieces(offset, which.partLength);
  for (let i: u32 = 0; i < pieces; i++) {
    let crc: u32 = 0;
    let from = which.partStart + pieceStart(offset, i);
    const to = which.partStart + pieceEnd(offset, which.partLength, i);
    while (from < to) {
      const run = pieceRun(slot, from, to - from);
      crc = crc32c(crc, pieceAddress(slot, from), run);
      from += run;
    }
    if (crc != bswap<u32>(load<u32>(READ_CRCS + ((<usize>i) << 2)))) return false;
  }
  return true;
}

/** Brings the `length` deflated bytes at INFLATABLE into the part's pieces; false when they are not what was deflated. */
export function inflatePieces(slot: i32, length: u32): bool {
  const which = request(slot);
  const count = inflate(INFLATABLE, length, INFLATED, which.partLength);
  if (count != which.partLength) return false;
  for (let done: u32 = 0; done < count; ) {
    const run = pieceRun(slot, which.partStart + done, count - done);
    memory.copy(pieceAddress(slot, which.partStart + done), INFLATED + done, run);
    done += run;
  }
  return true;
}
