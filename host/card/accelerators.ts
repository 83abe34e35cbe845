// The firmware's accelerators by Node's natives, as boards/runtime/accelerators.c has them in C.

import crypto from 'node:crypto';
import zlib from 'node:zlib';

/** Favours speed a little: a card's processor does this for every write. */
const DEFLATE_LEVEL = 3;

/** SHA-256 of `source` to the 32 bytes of `target`. */
function sha256(source: Uint8Array, target: Uint8Array): void {
  target.set(crypto.createHash('sha256').update(source).digest());
}

/** Raw DEFLATE; returns its length, 0 when it does not fit `target`. */
function deflate(source: Uint8Array, target: Uint8Array): number {
  const packed = zlib.deflateRawSync(source, { level: DEFLATE_LEVEL });
  if (packed.length > target.length) return 0;
  target.set(packed);
  return packed.length;
}

/** Returns the length of what `source` stands for, 0xFFFFFFFF when that is nothing, or more than `target` holds. */
function inflate(source: Uint8Array, target: Uint8Array): number {
  if (target.length === 0) return 0xffffffff;
  try {
    const plain = zlib.inflateRawSync(source, { maxOutputLength: target.length });
    target.set(plain);
    return plain.length;
  } catch {
    return 0xffffffff;
  }
}

/** The accelerators among the imports; `view` checks an address and a length. */
export function acceleratorImports(view: (address: number, length: number) => Uint8Array): {
  sha256(source: number, length: number, target: number): void;
  deflate(source: number, length: number, target: number, capacity: number): number;
  inflate(source: number, length: number, target: number, capacity: number): number;
} {
  return {
    sha256: (source, length, target) => sha256(view(source, length), view(target, 32)),
    deflate: (source, length, target, capacity) => deflate(view(source, length), view(target, capacity)),
    inflate: (source, length, target, capacity) => inflate(view(source, length), view(target, capacity)),
  };
}
