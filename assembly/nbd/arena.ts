// The NBD arena of memory-map.ts: requests and protocol staging. Payload never comes here: it goes straight between the
// runtime and the pieces.

import { NBD_REQUEST_SIZE_MAX, NBD_REQUESTS_MAX } from '../config';
import { NBD, NBD_SIZE } from '../memory-map';

export const PIECE_SIZE: u32 = 4096;
export const PIECES_MAX: u32 = NBD_REQUEST_SIZE_MAX / PIECE_SIZE;

/** Loose parts of a structured reply that the client keeps account of, for each request. A server that sends chunks in
 * order makes one. */
export const RANGES_MAX: u32 = 32;

export const REQUEST_SIZE: u32 = 64;
export const REQUESTS: usize = NBD;
/** u32[PIECES_MAX] for each request: addresses. */
export const PIECES: usize = REQUESTS + NBD_REQUESTS_MAX * REQUEST_SIZE;
/** (from u32, to u32)[RANGES_MAX] for each request. */
export const RANGES: usize = PIECES + NBD_REQUESTS_MAX * PIECES_MAX * 4;
/** u8[NBD_REQUESTS_MAX]: slots that wait to be sent. */
export const QUEUE: usize = RANGES + NBD_REQUESTS_MAX * RANGES_MAX * 8;

/** Message headers and texts on their way out: 16 request headers of 28 bytes, or an option with the longest name. */
export const OUTPUT: usize = QUEUE + 64;
export const OUTPUT_SIZE: u32 = 512;
/** Message headers and texts on their way in. */
export const INPUT: usize = OUTPUT + OUTPUT_SIZE;
export const INPUT_SIZE: u32 = 512;
/** Where bytes go that nobody wants. */
export const DISCARD: usize = INPUT + INPUT_SIZE;
export const DISCARD_SIZE: u32 = 4096;

assert(NBD_REQUESTS_MAX <= 64);
assert(NBD_REQUESTS_MAX * 28 <= OUTPUT_SIZE);
/** The longest option is NBD_OPT_RIBBON: 16 + 52 + 64 + 256. */
assert(OUTPUT_SIZE >= 388);
assert(DISCARD + DISCARD_SIZE <= NBD + NBD_SIZE);
