// Changes on top of a tree: for each changed block where its new content lies in the journal, and ranges that became zero.
//
// The map is always newer than the ranges: zeroing a range takes its blocks out of the map.

/** A block whose content is zeroes: no journal slot. Real positions are greater than 0. */
export const ZERO_BLOCK = -1;
/** Not changed here: ask the layer below. */
export const UNCHANGED = 0;

/** Zeroed ranges of fewer blocks than this are kept block by block. */
const RANGE_MIN = 64;

export class Overlay {
  readonly blocks = new Map<number, number>();
  /** Zeroed ranges [start, end), sorted, disjoint, not touching. */
  private starts: number[] = [];
  private ends: number[] = [];

  get empty(): boolean {
    return this.blocks.size === 0 && this.starts.length === 0;
  }

  /** The journal position of the block, ZERO_BLOCK or UNCHANGED. */
  find(block: number): number {
    const position = this.blocks.get(block);
    if (position !== undefined) return position;
    if (this.starts.length === 0) return UNCHANGED;
    const index = upperBound(this.starts, block) - 1;
    return index >= 0 && block < this.ends[index] ? ZERO_BLOCK : UNCHANGED;
  }

  set(block: number, position: number): void {
    this.blocks.set(block, position);
  }

  /** Zeroes `count` blocks; `released` gets the journal position of each that this overlay held. */
  zero(first: number, count: number, released: (position: number) => void): void {
    const end = first + count;
    if (this.blocks.size < count) {
      for (const [block, position] of this.blocks) {
        if (block < first || block >= end) continue;
        if (position > 0) released(position);
        this.blocks.delete(block);
      }
    } else {
      for (let block = first; block < end; block++) {
        const position = this.blocks.get(block);
        if (position === undefined) continue;
        if (position > 0) released(position);
        this.blocks.delete(block);
      }
    }
    if (count < RANGE_MIN) for (let block = first; block < end; block++) this.blocks.set(block, ZERO_BLOCK);
    else this.addRange(first, end);
  }

  private addRange(first: number, end: number): void {
    // All ranges that overlap or touch [first, end) become one.
    let from = upperBound(this.starts, first);
    if (from > 0 && this.ends[from - 1] >= first) from--;
    const to = upperBound(this.starts, end);
    if (from < to) {
      first = Math.min(first, this.starts[from]);
      end = Math.max(end, this.ends[to - 1]);
    }
    this.starts.splice(from, to - from, first);
    this.ends.splice(from, to - from, end);
  }

  ranges(): { first: number; count: number }[] {
    return this.starts.map((first, index) => ({ first, count: this.ends[index] - first }));
  }

  /** Lays a newer overlay over this one. */
  merge(newer: Overlay, released: (position: number) => void): void {
    for (const range of newer.ranges()) this.zero(range.first, range.count, released);
    for (const [block, position] of newer.blocks) {
      const old = this.blocks.get(block);
      if (old !== undefined && old > 0) released(old);
      this.blocks.set(block, position);
    }
  }

  /** All blocks that the overlay changes, single blocks and ranges. */
  changedBlocks(): number {
    let count = this.blocks.size;
    for (let index = 0; index < this.starts.length; index++) count += this.ends[index] - this.starts[index];
    return count;
  }
}

/** How many of the sorted values are at most `value`. */
function upperBound(values: number[], value: number): number {
  let low = 0;
  let high = values.length;
  while (low < high) {
    const middle = (low + high) >>> 1;
    if (values[middle] <= value) low = middle + 1;
    else high = middle;
  }
  return low;
}
