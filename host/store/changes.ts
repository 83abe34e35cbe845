// Which blocks differ between generations: lists of block ranges, and how they are stored beside a generation.
//
// A generation's list says what has changed since the kept generation before it, so that "what has changed since" is a read. It is a
// help, not the truth: where one is missing or damaged the two trees are compared instead.
//
//   change list: magic "RBC1"  CRC-32 of all that follows  since u64  ranges u32  0 u32  ranges * { gap varint, blocks varint }

import { crc32 } from '@node-rs/crc32';

/** Block ranges, ascending and not touching: first, end, first, end, … */
export type Ranges = Float64Array;

export const NO_RANGES: Ranges = new Float64Array(0);
const MAGIC = 0x31434252; // "RBC1"
const HEADER = 24;
/** Of two varints: block numbers are below 2^38. */
const RANGE_BYTES_MAX = 14;

export function blocksIn(ranges: Ranges): number {
  let count = 0;
  for (let at = 0; at < ranges.length; at += 2) count += ranges[at + 1] - ranges[at];
  return count;
}

/** Collects ranges in any order; ascending is quickest. */
export class RangeCollector {
  private bounds = new Float64Array(64);
  private length = 0;
  private ascending = true;

  add(first: number, end: number): void {
    const { length } = this;
    if (length > 0) {
      const last = this.bounds[length - 1];
      if (first === last) {
        this.bounds[length - 1] = end;
        return;
      }
      if (first < last) this.ascending = false;
    }
    if (length === this.bounds.length) {
      const larger = new Float64Array(2 * length);
      larger.set(this.bounds);
      this.bounds = larger;
    }
    this.bounds[length] = first;
    this.bounds[length + 1] = end;
    this.length = length + 2;
  }

  ranges(): Ranges {
    const found = this.bounds.slice(0, this.length);
    return this.ascending ? found : inOrder(found);
  }
}

function inOrder(bounds: Float64Array): Ranges {
  const order = Array.from({ length: bounds.length / 2 }, (_, index) => 2 * index);
  order.sort((a, b) => bounds[a] - bounds[b]);
  let length = 0;
  const sorted = new Float64Array(bounds.length);
  for (const at of order) {
    if (length > 0 && bounds[at] <= sorted[length - 1]) {
      sorted[length - 1] = Math.max(sorted[length - 1], bounds[at + 1]);
    } else {
      sorted[length++] = bounds[at];
      sorted[length++] = bounds[at + 1];
    }
  }
  return sorted.slice(0, length);
}

/** The blocks that are in any of the lists. */
export function union(lists: Ranges[]): Ranges {
  if (lists.length === 0) return NO_RANGES;
  let round = lists;
  while (round.length > 1) {
    const next: Ranges[] = [];
    for (let at = 0; at < round.length; at += 2) {
      next.push(at + 1 < round.length ? unionOfTwo(round[at], round[at + 1]) : round[at]);
    }
    round = next;
  }
  return round[0];
}

function unionOfTwo(a: Ranges, b: Ranges): Ranges {
  if (a.length === 0) return b;
  if (b.length === 0) return a;
  const merged = new Float64Array(a.length + b.length);
  let length = 0;
  for (let i = 0, j = 0; i < a.length || j < b.length; ) {
    const fromA = j >= b.length || (i < a.length && a[i] <= b[j]);
    const first = fromA ? a[i] : b[j];
    const end = fromA ? a[i + 1] : b[j + 1];
    if (fromA) i += 2;
    else j += 2;
    if (length > 0 && first <= merged[length - 1]) {
      if (end > merged[length - 1]) merged[length - 1] = end;
    } else {
      merged[length++] = first;
      merged[length++] = end;
    }
  }
  return merged.slice(0, length);
}

/** The list as it is stored; `since`: the generation that it counts from. */
export function encodeChanges(since: number, ranges: Ranges): Buffer {
  const bytes = Buffer.allocUnsafe(HEADER + (ranges.length / 2) * RANGE_BYTES_MAX);
  bytes.writeUInt32LE(MAGIC, 0);
  bytes.writeBigUInt64LE(BigInt(since), 8);
  bytes.writeUInt32LE(ranges.length / 2, 16);
  bytes.writeUInt32LE(0, 20);
  let at = HEADER;
  let end = 0;
  const put = (value: number) => {
    let rest = value;
    while (rest >= 0x80) {
      bytes[at++] = (rest % 0x80) | 0x80;
      rest = Math.floor(rest / 0x80);
    }
    bytes[at++] = rest;
  };
  for (let index = 0; index < ranges.length; index += 2) {
    put(ranges[index] - end);
    put(ranges[index + 1] - ranges[index]);
    end = ranges[index + 1];
  }
  bytes.writeUInt32LE(crc32(bytes.subarray(8, at)), 4);
  return Buffer.from(bytes.subarray(0, at));
}

/** Null when the list is damaged. */
export function decodeChanges(bytes: Buffer): { since: number; ranges: Ranges } | null {
  if (bytes.length < HEADER || bytes.readUInt32LE(0) !== MAGIC) return null;
  if (crc32(bytes.subarray(8)) !== bytes.readUInt32LE(4)) return null;
  const ranges = new Float64Array(2 * bytes.readUInt32LE(16));
  let at = HEADER;
  let end = 0;
  const take = (): number => {
    let value = 0;
    for (let scale = 1; ; scale *= 0x80) {
      const byte = bytes[at++];
      value += (byte & 0x7f) * scale;
      if (byte < 0x80) return value;
    }
  };
  for (let index = 0; index < ranges.length; index += 2) {
    ranges[index] = end + take();
    end = ranges[index] + take();
    ranges[index + 1] = end;
  }
  return { since: Number(bytes.readBigUInt64LE(8)), ranges };
}

/** Where in the list the first range is that ends after `block`. */
export function firstEndingAfter(ranges: Ranges, block: number): number {
  let low = 0;
  let high = ranges.length / 2;
  while (low < high) {
    const middle = (low + high) >>> 1;
    if (ranges[2 * middle + 1] <= block) low = middle + 1;
    else high = middle;
  }
  return 2 * low;
}
