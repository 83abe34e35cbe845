// The Merkle tree of a generation: its nodes, its shape, reading through it, and the difference of two.
//
// Leaves are 4 KiB blocks; a node has 64 children: of 256 KiB, 16 MiB, 1 GiB, 64 GiB, 4 TiB, … A wide node costs more at every small
// change (all of it is hashed and stored again), a narrow one costs more steps; 64 children make a node of 2 KiB, half a block.
// A subtree of zeroes has the hash 0 and is stored nowhere. Nodes are stored uncompressed (hashes do not compress), so walking the
// tree never waits.

import type { Done } from '../server/export.js';
import { RangeCollector, type Ranges } from './changes.js';
import { CODEC_NONE } from './codec.js';
import type { Index, Location } from './index.js';
import type { Overlay } from './overlay.js';
import { AbsentError, checkBlob, DamagedError, damagedBlob, PACK_ENTRY, Packs } from './pack.js';
import { sha256 } from './sha256.js';

export const BLOCK_SIZE = 4096;
export const FANOUT = 64;
const HASH = 32;
const HASH_WORDS = HASH / 4;
const NODE_MAGIC = 0x314e4252; // "RBN1"
const NODE_HEADER = 16;
export const ZERO_HASH = Buffer.alloc(HASH);
const ZERO_BYTES = Buffer.alloc(BLOCK_SIZE);
/** Nodes kept in memory by hash: 2 KiB each and their book-keeping. */
const NODES_MAX = 8192;
/** Nodes kept as they are stored: 2 KiB each. */
const NEARBY_MAX = 1024;
/** Leaves that all views together remember: 256 KiB of image each, about 3 KiB of memory. */
const LEAVES_MAX = 32768;

export function blocksOf(size: number): number {
  return Math.ceil(size / BLOCK_SIZE);
}

/** Levels of nodes above the blocks; at least one. */
export function levelsOf(size: number): number {
  let levels = 1;
  for (let span = FANOUT; span < blocksOf(size); span *= FANOUT) levels++;
  return levels;
}

export function isZeroHash(hash: Buffer, at = 0): boolean {
  return hash.readUInt32LE(at) === 0 && hash.compare(ZERO_HASH, 0, HASH, at, at + HASH) === 0;
}

/** Reads of so many blocks more than one take whole groups. */
const GROUP_READ_MIN = 7;

// What is known of a leaf's block.
const ZERO = 0;
const UNRESOLVED = 1;
const RAW = 2;
const PACKED = 3;
/** As RAW, but never read. */
const UNCHECKED = 4;

export class Node {
  readonly level: number;
  /** 64 hashes; 0 for no child. */
  readonly hashes: Buffer;
  /** The same bytes, to compare them quickly. */
  readonly words: Int32Array;
  /** Level 0 only: where each block lies, found when first read. */
  readonly state: Uint8Array;
  readonly pack: Uint32Array;
  readonly offset: Uint32Array;

  /** `hashes` is kept; its place in memory is a multiple of 8. */
  constructor(level: number, hashes: Buffer) {
    this.level = level;
    this.hashes = hashes;
    this.words = new Int32Array(hashes.buffer, hashes.byteOffset, FANOUT * HASH_WORDS);
    const places = level === 0 ? FANOUT : 0;
    this.state = new Uint8Array(places);
    this.pack = new Uint32Array(places);
    this.offset = new Uint32Array(places);
    for (let child = 0; child < places; child++)
      this.state[child] = sameChild(this.words, NO_CHILDREN, child) ? ZERO : UNRESOLVED;
  }

  child(index: number): Buffer {
    return this.hashes.subarray(index * HASH, (index + 1) * HASH);
  }
}

/** A node as it is hashed and stored: magic, level, number of children, 0 0, bitmap of 64, the hashes of the children there are. */
export function encodeNode(level: number, hashes: Buffer): Buffer {
  const bytes = Buffer.alloc(NODE_HEADER + FANOUT * HASH);
  let count = 0;
  for (let child = 0; child < FANOUT; child++) {
    if (isZeroHash(hashes, child * HASH)) continue;
    bytes[8 + (child >> 3)] |= 1 << (child & 7);
    hashes.copy(bytes, NODE_HEADER + count * HASH, child * HASH, (child + 1) * HASH);
    count++;
  }
  bytes.writeUInt32LE(NODE_MAGIC, 0);
  bytes[4] = level;
  bytes[5] = count;
  return bytes.subarray(0, NODE_HEADER + count * HASH);
}

export function decodeNode(bytes: Buffer): Node {
  if (bytes.length < NODE_HEADER || bytes.readUInt32LE(0) !== NODE_MAGIC)
    throw new DamagedError('a blob is not a tree node');
  const hashes = Buffer.alloc(FANOUT * HASH);
  let at = NODE_HEADER;
  for (let child = 0; child < FANOUT; ) {
    const first = child;
    while (child < FANOUT && (bytes[8 + (child >> 3)] & (1 << (child & 7))) !== 0) child++;
    // Neighbours are one copy.
    const length = (child - first) * HASH;
    if (length > 0) bytes.copy(hashes, first * HASH, at, at + length);
    at += length;
    if (child === first) child++;
  }
  if (at !== bytes.length || bytes[5] !== (at - NODE_HEADER) / HASH)
    throw new DamagedError('a tree node has a wrong length');
  return new Node(bytes[4], hashes);
}

/** Finds nodes by hash, in memory or in the packs. */
export class Nodes {
  private readonly nodes = new Map<string, Node>();
  /** Nodes that came along with others of their groups, as they are stored. */
  private readonly nearby = new Map<string, Buffer>();
  /** Nodes that have been made and are not in the index yet. */
  readonly fresh = new Map<string, Buffer>();

  constructor(
    readonly index: Index,
    readonly packs: Packs,
  ) {}

  get(hash: Buffer): Node {
    const key = hash.toString('latin1');
    let node = this.nodes.get(key);
    if (node !== undefined) return node;
    node = decodeNode(this.fresh.get(key) ?? this.nearby.get(key) ?? this.load(hash));
    this.nodes.set(key, node);
    if (this.nodes.size > NODES_MAX) {
      let surplus = NODES_MAX / 8;
      for (const oldest of this.nodes.keys()) {
        this.nodes.delete(oldest);
        if (--surplus === 0) break;
      }
    }
    return node;
  }

  /** Keeps a node that was made for a comparison where get() finds it. */
  remember(hash: Buffer, node: Node): void {
    this.nodes.set(hash.toString('latin1'), node);
  }

  private load(hash: Buffer): Buffer {
    const location = this.index.blob(hash);
    if (location === null) throw new DamagedError(`tree node ${hash.toString('hex')} is missing`);
    if (location.codec !== CODEC_NONE) throw new DamagedError(`tree node ${hash.toString('hex')} is compressed`);
    this.keepNearby(location);
    let bytes = this.nearby.get(hash.toString('latin1'));
    if (bytes === undefined) {
      bytes = Buffer.allocUnsafe(location.length);
      this.packs.readRaw(location.pack, Packs.rawOffset(location), bytes, 0, location.length);
    }
    checkBlob(hash, bytes, location);
    return bytes;
  }

  /** A node's neighbours in the tree mostly lie in the same group: a medium brings all of it in hardly more time than a part. */
  private keepNearby(location: Location): void {
    const group = this.packs.checkedGroup(location);
    if (group === null) return;
    const payload = Buffer.from(group.payload);
    for (let ordinal = 0, inner = 0; ordinal < location.count; ordinal++) {
      const at = ordinal * PACK_ENTRY;
      const length = group.table.readUInt16LE(at + HASH);
      this.nearby.set(group.table.toString('latin1', at, at + HASH), payload.subarray(inner, inner + length));
      inner += length;
    }
    let surplus = this.nearby.size - NEARBY_MAX;
    for (const oldest of this.nearby.keys()) {
      if (--surplus < 0) break;
      this.nearby.delete(oldest);
    }
  }

  /** Blobs have moved: forget where everything lies. */
  forget(): void {
    this.nodes.clear();
    this.nearby.clear();
    for (const view of this.views) view.forget();
  }

  readonly views = new Set<TreeView>();
}

/** One generation, for reading. */
export class TreeView {
  private readonly leaves = new Map<number, Node | null>();
  private readonly levels: number;

  constructor(
    private readonly nodes: Nodes,
    readonly root: Buffer,
    readonly size: number,
  ) {
    this.levels = levelsOf(size);
    nodes.views.add(this);
  }

  close(): void {
    this.nodes.views.delete(this);
    this.leaves.clear();
  }

  forget(): void {
    this.leaves.clear();
  }

  /** Takes over what an older view of the same line knows of leaves that have not changed. */
  adopt(older: TreeView, changes: Overlay): void {
    if (older.levels !== this.levels || changes.ranges().length > 0) return;
    const changed = new Set<number>();
    for (const block of changes.blocks.keys()) changed.add(Math.floor(block / FANOUT));
    for (const [index, leaf] of older.leaves) if (!changed.has(index)) this.leaves.set(index, leaf);
  }

  /** The node above 64 blocks, null when they are all zero. */
  leaf(index: number): Node | null {
    const known = this.leaves.get(index);
    if (known !== undefined) return known;
    let hash = this.root;
    let found: Node | null = null;
    for (let level = this.levels - 1; level >= 0 && !isZeroHash(hash); level--) {
      const node = this.nodes.get(hash);
      if (node.level !== level)
        throw new DamagedError(`tree node ${hash.toString('hex')} has level ${node.level}, not ${level}`);
      if (level === 0) found = node;
      else hash = node.child(Math.floor(index / FANOUT ** (level - 1)) % FANOUT);
    }
    if (this.leaves.size >= Math.max(64, LEAVES_MAX / this.nodes.views.size)) {
      for (const oldest of this.leaves.keys()) {
        this.leaves.delete(oldest);
        break;
      }
    }
    this.leaves.set(index, found);
    return found;
  }

  /** Fills target[at, at + length) with the image's bytes from `position` on. */
  read(position: number, target: Buffer, at: number, length: number): Done {
    while (length > 0) {
      const block = Math.floor(position / BLOCK_SIZE);
      const within = position % BLOCK_SIZE;
      const leaf = this.leaf(Math.floor(block / FANOUT));
      const child = block % FANOUT;
      let count = Math.min(BLOCK_SIZE - within, length);
      if (leaf === null) {
        count = Math.min((FANOUT - child) * BLOCK_SIZE - within, length);
        target.fill(0, at, at + count);
      } else {
        if (leaf.state[child] === UNRESOLVED) {
          const done = within === 0 ? this.readGroup(leaf, child, target, at, length) : 0;
          if (done > 0) {
            position += done;
            at += done;
            length -= done;
            continue;
          }
          const fetch = this.resolve(leaf, child, block, Math.floor((position + length - 1) / BLOCK_SIZE));
          if (fetch !== undefined) return fetch.then(() => this.read(position, target, at, length));
        }
        const state = leaf.state[child];
        if (state === RAW || state === UNCHECKED) {
          const done = this.readRaw(leaf, child, within, target, at, length);
          if (done === 0) return this.readAbsent(position, target, at, length);
          count = done;
        } else if (state === ZERO) {
          target.fill(0, at, at + count);
        } else {
          const location = this.locate(leaf, child);
          const payload = this.nodes.packs.cached(location);
          if (payload === null) return this.readSlowly(position, target, at, length);
          payload.copy(target, at, location.inner + within, location.inner + within + count);
        }
      }
      position += count;
      at += count;
      length -= count;
    }
    return undefined;
  }

  /** Raw blocks from `child` on that lie one after the other in the pack are one read. How many bytes that were; 0: they are not here. */
  private readRaw(leaf: Node, child: number, within: number, target: Buffer, at: number, length: number): number {
    try {
      let blocks = 1;
      let count = Math.min(BLOCK_SIZE - within, length);
      for (; count < length && child + blocks < FANOUT && isNext(leaf, child + blocks); blocks++)
        count = Math.min(count + BLOCK_SIZE, length);
      if (leaf.state[child] !== UNCHECKED) {
        this.nodes.packs.readRaw(leaf.pack[child], leaf.offset[child] + within, target, at, count);
      } else if (count === blocks * BLOCK_SIZE) {
        this.readChecked(leaf, child, blocks, target, at);
      } else {
        this.readChecked(leaf, child, blocks, SCRATCH, 0);
        SCRATCH.copy(target, at, within, within + count);
      }
      return count;
    } catch (error) {
      if (error instanceof AbsentError) return 0;
      // What a cache has may be bad: then it is asked for once more.
      if (error instanceof DamagedError && this.nodes.packs.distrust(leaf.pack[child])) return 0;
      throw error;
    }
  }

  /** Brings what is stored of a range onto this disk or into the page cache; undefined where that is not needed. */
  prefetch(position: number, length: number): Promise<unknown> | undefined {
    return this.nodes.packs.prefetch(this.locations(position, length));
  }

  /** Fetches what is not on this disk of a range, then goes on. */
  private async readAbsent(position: number, target: Buffer, at: number, length: number): Promise<void> {
    await this.nodes.packs.prefetch(this.locations(position, length));
    await this.read(position, target, at, length);
  }

  /** Where the blocks of a range lie, as far as the index knows: who reads one that is missing will say so. */
  private locations(position: number, length: number): Location[] {
    const last = Math.floor((position + length - 1) / BLOCK_SIZE);
    const locations: Location[] = [];
    for (let block = Math.floor(position / BLOCK_SIZE); block <= last; block++) {
      const leaf = this.leaf(Math.floor(block / FANOUT));
      const child = block % FANOUT;
      if (leaf === null || leaf.state[child] === ZERO) continue;
      const location = this.nodes.index.blob(leaf.child(child));
      if (location !== null) locations.push(location);
    }
    return locations;
  }

  /** Decodes the group that the first block lies in, then goes on. */
  private async readSlowly(position: number, target: Buffer, at: number, length: number): Promise<void> {
    const block = Math.floor(position / BLOCK_SIZE);
    for (let attempt = 0; ; attempt++) {
      const leaf = this.leaf(Math.floor(block / FANOUT))!;
      try {
        await this.nodes.packs.decode(this.locate(leaf, block % FANOUT));
        break;
      } catch (error) {
        // Garbage collection may have moved the group between the look-up and the read.
        if (attempt > 0) throw error;
        this.forget();
      }
    }
    await this.read(position, target, at, length);
  }

  private locate(leaf: Node, child: number): Location {
    const hash = leaf.child(child);
    const location = this.nodes.index.blob(hash);
    if (location === null) throw new DamagedError(`block ${hash.toString('hex')} is missing`);
    return location;
  }

  /** Brings what was never read of a range into the page cache, without stopping this process for the medium; undefined where that is
   * not needed. */
  fetch(position: number, length: number): Promise<unknown> | undefined {
    const { packs, index } = this.nodes;
    const first = Math.floor(position / BLOCK_SIZE);
    const last = Math.floor((position + length - 1) / BLOCK_SIZE);
    const locations: Location[] = [];
    for (let block = first; block <= last; block++) {
      const leaf = this.leaf(Math.floor(block / FANOUT));
      const child = block % FANOUT;
      if (leaf === null || leaf.state[child] !== UNRESOLVED) continue;
      const location = index.blob(leaf.child(child));
      if (location === null) continue;
      locations.push(location);
      if (last - first < GROUP_READ_MIN) place(leaf, child, location);
      // The blocks behind it mostly lie behind it. Where they do not, they are read when it is their turn.
      else block += location.count - location.ordinal - 1;
    }
    return locations.length === 0 ? undefined : packs.prefetch(locations, last - first < GROUP_READ_MIN);
  }

  /** Reads a raw group of blocks that were never read and that are all wanted to where they are wanted, and checks it by its checksum. How many
   * bytes that were; 0: it is not so. */
  private readGroup(leaf: Node, child: number, target: Buffer, at: number, length: number): number {
    const { packs } = this.nodes;
    if (packs.isCache || length <= GROUP_READ_MIN * BLOCK_SIZE) return 0;
    const location = this.locate(leaf, child);
    const { count } = location;
    const isWanted = location.ordinal === 0 && child + count <= FANOUT && count * BLOCK_SIZE <= length;
    if (!isWanted || location.codec !== CODEC_NONE || count <= GROUP_READ_MIN) return 0;
    const table = packs.readPayload(location, target, at);
    if (table === null) return 0;
    for (let i = 0; i < count; i++) if (!isNamed(leaf, child + i, table, i)) return 0;
    placeRaw(leaf, child, location, count);
    return count * BLOCK_SIZE;
  }

  /** Finds where a block lies that was never read, `block` of up to `last` that are wanted; a promise when it must be fetched first. */
  private resolve(leaf: Node, child: number, block: number, last: number): Promise<unknown> | undefined {
    const { packs } = this.nodes;
    if (packs.isCache) return packs.prefetch(this.resolveAll(block, last));
    const location = this.locate(leaf, child);
    place(leaf, child, location);
    if (location.codec !== CODEC_NONE || last - block < GROUP_READ_MIN) return undefined;
    // Of many blocks it is quicker to check whole groups by their checksums, and to believe what their tables say.
    const table = packs.checkedGroup(location)?.table;
    if (table === undefined) return undefined;
    const { ordinal } = location;
    let count = 0;
    const most = Math.min(FANOUT - child, location.count - ordinal);
    while (count < most && isNamed(leaf, child + count, table, ordinal + count)) count++;
    placeRaw(leaf, child, location, count);
    return undefined;
  }

  /** Finds where the blocks of a range lie that were never read, the first of which is one. */
  private resolveAll(first: number, last: number): Location[] {
    const locations: Location[] = [];
    for (let block = first; block <= last; block++) {
      const leaf = this.leaf(Math.floor(block / FANOUT));
      const child = block % FANOUT;
      if (leaf === null || leaf.state[child] !== UNRESOLVED) continue;
      const location = block === first ? this.locate(leaf, child) : this.nodes.index.blob(leaf.child(child));
      // One behind the first that is missing is reported when it is its turn.
      if (location === null) break;
      locations.push(location);
      place(leaf, child, location);
    }
    return locations;
  }

  /** Reads blocks from `child` on, `count` that lie one after the other, and checks them against their hashes; after that the page cache
   * is trusted. */
  private readChecked(leaf: Node, child: number, count: number, target: Buffer, at: number): void {
    this.nodes.packs.readRaw(leaf.pack[child], leaf.offset[child], target, at, count * BLOCK_SIZE);
    for (let i = 0; i < count; i++) {
      const bytes = target.subarray(at + i * BLOCK_SIZE, at + (i + 1) * BLOCK_SIZE);
      const hash = leaf.child(child + i);
      if (!sha256(bytes).equals(hash)) throw damagedBlob(hash, this.locate(leaf, child + i));
    }
    leaf.state.fill(RAW, child, child + count);
  }

  /** The hash of a block, ZERO_HASH for zeroes. */
  hashOf(block: number): Buffer {
    const leaf = this.leaf(Math.floor(block / FANOUT));
    return leaf === null ? ZERO_HASH : leaf.child(block % FANOUT);
  }

  /** From `block` on: is it stored, and for how many blocks (at most `most`) is the answer the same for certain? */
  allocation(block: number, most: number): { allocated: boolean; count: number } {
    let hash = this.root;
    for (let level = this.levels - 1; level >= 0; level--) {
      // The hash stands for 64^(level + 1) blocks here.
      if (isZeroHash(hash)) return { allocated: false, count: Math.min(most, restOf(block, FANOUT ** (level + 1))) };
      if (level > 0) {
        hash = this.nodes.get(hash).child(Math.floor(block / FANOUT ** level) % FANOUT);
        continue;
      }
      const node = this.nodes.get(hash);
      const child = block % FANOUT;
      const allocated = node.state[child] !== ZERO;
      let count = 1;
      while (count < most && child + count < FANOUT && (node.state[child + count] !== ZERO) === allocated) count++;
      return { allocated, count };
    }
    throw new Error('a tree without levels');
  }
}

const SCRATCH = Buffer.alloc(FANOUT * BLOCK_SIZE);

/** Notes where a block lies that was never read. */
function place(leaf: Node, child: number, location: Location): void {
  leaf.state[child] = location.codec === CODEC_NONE ? UNCHECKED : PACKED;
  if (location.codec !== CODEC_NONE) return;
  leaf.pack[child] = location.pack;
  leaf.offset[child] = Packs.rawOffset(location);
}

/** The same of `count` blocks of one group, whose checksum was right. */
function placeRaw(leaf: Node, child: number, location: Location, count: number): void {
  const offset = Packs.rawOffset(location);
  for (let i = 0; i < count; i++) {
    leaf.state[child + i] = RAW;
    leaf.pack[child + i] = location.pack;
    leaf.offset[child + i] = offset + i * BLOCK_SIZE;
  }
}

/** Is this block the one that the group's table names? */
function isNamed(leaf: Node, child: number, table: Buffer, ordinal: number): boolean {
  const at = ordinal * PACK_ENTRY;
  if (table.readUInt16LE(at + HASH) !== BLOCK_SIZE) return false;
  return table.compare(leaf.hashes, child * HASH, (child + 1) * HASH, at, at + HASH) === 0;
}

function isNext(leaf: Node, child: number): boolean {
  return (
    leaf.state[child] === leaf.state[child - 1] &&
    leaf.pack[child] === leaf.pack[child - 1] &&
    leaf.offset[child] === leaf.offset[child - 1] + BLOCK_SIZE
  );
}

function restOf(block: number, span: number): number {
  return span - (block % span);
}

export function isZeroBlock(bytes: Buffer, at = 0): boolean {
  return (
    bytes.readUInt32LE(at) === 0 &&
    bytes.readUInt32LE(at + BLOCK_SIZE - 4) === 0 &&
    bytes.compare(ZERO_BYTES, 0, BLOCK_SIZE, at, at + BLOCK_SIZE) === 0
  );
}

export interface BlockRange {
  first: number;
  count: number;
}

/** The block ranges in which two trees differ. Only subtrees that differ are visited. */
export function difference(nodes: Nodes, a: TreeView, b: TreeView): Ranges {
  const levels = Math.max(levelsOf(a.size), levelsOf(b.size));
  const found = new RangeCollector();
  differ(nodes, raise(nodes, a, levels), raise(nodes, b, levels), levels - 1, 0, found);
  return found.ranges();
}

/** A tree of fewer levels, seen as one of more: nodes with one child on top. */
function raise(nodes: Nodes, view: TreeView, levels: number): Node | null {
  if (isZeroHash(view.root)) return null;
  let top = nodes.get(view.root);
  for (let level = levelsOf(view.size); level < levels; level++) {
    const bytes = encodeNode(top.level, top.hashes);
    const hash = sha256(bytes);
    // The nodes below the new top are not stored anywhere: differ() asks for them by hash.
    if (level > levelsOf(view.size)) nodes.remember(hash, top);
    const hashes = Buffer.alloc(FANOUT * HASH);
    hash.copy(hashes);
    top = new Node(level, hashes);
  }
  return top;
}

function differ(
  nodes: Nodes,
  a: Node | null,
  b: Node | null,
  level: number,
  first: number,
  found: RangeCollector,
): void {
  const span = FANOUT ** level;
  const wordsA = a === null ? NO_CHILDREN : a.words;
  const wordsB = b === null ? NO_CHILDREN : b.words;
  for (let child = 0; child < FANOUT; child++) {
    if (sameChild(wordsA, wordsB, child)) continue;
    const childFirst = first + child * span;
    if (level === 0) {
      found.add(childFirst, childFirst + 1);
    } else {
      const nodeA = sameChild(wordsA, NO_CHILDREN, child) ? null : nodes.get(a!.child(child));
      const nodeB = sameChild(wordsB, NO_CHILDREN, child) ? null : nodes.get(b!.child(child));
      differ(nodes, nodeA, nodeB, level - 1, childFirst, found);
    }
  }
}

const NO_CHILDREN = new Int32Array(FANOUT * HASH_WORDS);

function sameChild(a: Int32Array, b: Int32Array, child: number): boolean {
  for (let at = child * HASH_WORDS, end = at + HASH_WORDS; at < end; at++) if (a[at] !== b[at]) return false;
  return true;
}
