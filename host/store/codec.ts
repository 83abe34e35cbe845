// What is done to blocks on their way into packs and out of them: hashing and compression. zstd at 64 KiB groups: measured on a Debian system's files ratio 3.2 (deflate 1: 3.0, LZ4: 2.3; single
// 4 KiB blocks: 2.8); 400 MB/s a core out, on the thread pool.

import zstd from '@mongodb-js/zstd';
import { hashesOf, hashesOnThread } from './block-hashes.js';

export const CODEC_NONE = 0;
export const CODEC_ZSTD = 1;

export interface Codec {
  /** The hashes of the first `count` blocks, whose memory is shared with a thread and must not change meanwhile (block-hashes.ts). */
  hashes(blocks: Buffer, count: number): Buffer | Promise<Buffer>;
  /** The compressed bytes, or null when that saves less than an eighth. */
  compress(bytes: Buffer): Promise<Buffer | null>;
  decompress(bytes: Buffer, length: number): Promise<Buffer>;
}

export const zstdCodec: Codec = {
  hashes: hashesOnThread,
  async compress(bytes) {
    if (looksRandom(bytes)) return null;
    const packed = await zstd.compress(bytes);
    return packed.length <= bytes.length - bytes.length / 8 ? packed : null;
  },
  async decompress(bytes, length) {
    const plain = await zstd.decompress(bytes);
    if (plain.length !== length) throw new Error(`a group of ${length} bytes decompressed to ${plain.length}`);
    return plain;
  },
};

/** For simulations without threads. */
export const noCodec: Codec = {
  hashes: hashesOf,
  compress: () => Promise.resolve(null),
  decompress: () => Promise.reject(new Error('this store reads no compressed groups')),
};

/**
 * Compressed or encrypted data need not be tried: of 1,024 random bytes about 251 values are different, of machine code under 220. All of
 * four samples must look like that.
 */
function looksRandom(bytes: Buffer): boolean {
  const step = bytes.length >>> 2;
  if (step < 1024) return false;
  for (let sample = 0; sample < 4; sample++) {
    SEEN.fill(0);
    let different = 0;
    const end = sample * step + 1024;
    for (let at = sample * step; at < end; at++) {
      if (SEEN[bytes[at]] === 0) {
        SEEN[bytes[at]] = 1;
        different++;
      }
    }
    if (different < 240) return false;
  }
  return true;
}

const SEEN = new Uint8Array(256);
