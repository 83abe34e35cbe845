// From changes to a tree: hashes blocks, stores those that are new, and makes the nodes above them.
//
// A TreeBuilder begins with a root and takes changes in batches; after each batch its root is durable in packs and index, though no
// generation may point to it yet.

import type { BlockSource } from './block-source.js';
import type { RangeCollector } from './changes.js';
import type { Codec } from './codec.js';
import { GroupWriter } from './group-writer.js';
import { emptyBatch, type IndexBatch } from './index.js';
import { sha256 } from './sha256.js';
import { BLOCK_SIZE, encodeNode, FANOUT, isZeroHash, type Nodes, ZERO_HASH } from './tree.js';

/** Lets other work of the process go first. */
export type Pause = () => Promise<void>;

/** Blocks looked up and stored between two pauses. */
const SLICE = 32;
/** Blocks that are read and hashed at once, and how many times that is under way: each is 1 MiB. */
const SLAB_BLOCKS = 256;
const SLABS = 3;

export interface BlobStatistics {
  blocks: number;
  newBlobs: number;
  newBytes: number;
}

/** Collects new blobs into groups. One at a time: see Store.blobLock. */
export class BlobWriter {
  readonly batch: IndexBatch = emptyBatch();
  private readonly seen = new Set<string>();
  private readonly groups: GroupWriter;

  constructor(
    private readonly nodes: Nodes,
    private readonly onReuse: (hash: Buffer) => void,
    private readonly statistics: BlobStatistics,
  ) {
    this.groups = new GroupWriter(nodes.packs, (blobs, locations) => {
      for (const [index, blob] of blobs.entries()) this.batch.blobs.push([blob.hash, locations[index]]);
    });
  }

  get codec(): Codec {
    return this.nodes.packs.codec;
  }

  /** Stores a block or node unless the store has it. The bytes of a node must not change. */
  add(hash: Buffer, bytes: Buffer): void {
    const key = hash.toString('latin1');
    if (this.seen.has(key)) return;
    this.seen.add(key);
    if (this.nodes.index.hasBlob(hash)) {
      this.onReuse(hash);
      return;
    }
    this.statistics.newBlobs++;
    this.statistics.newBytes += bytes.length;
    if (bytes.length !== BLOCK_SIZE) this.nodes.fresh.set(key, bytes);
    this.groups.add(hash, bytes);
  }

  /** Waits while too much is being compressed. */
  room(): Promise<void> {
    return this.groups.room();
  }

  /** Everything is in the packs, durable; the batch holds the locations. */
  async finish(): Promise<void> {
    await this.groups.finish();
    // Where this disk is a cache, that has time until the packs are somewhere else.
    if (!this.nodes.packs.isCache) await this.nodes.packs.sync();
  }
}

export interface BlockChanges {
  /** Ascending. */
  blocks: Float64Array;
  /** 32 bytes for each. */
  hashes: Buffer;
  /** Ranges that are zero where no block above says otherwise; ascending, disjoint. */
  zeroed: { first: number; count: number }[];
}

/** Hashes and stores the blocks; `source.read` fills a buffer with the content of changed block number i. */
export async function storeBlocks(
  writer: BlobWriter,
  blocks: Float64Array,
  source: BlockSource,
  statistics: BlobStatistics,
  pause: Pause,
): Promise<Buffer> {
  const all = Buffer.alloc(blocks.length * 32);
  const slabs = Array.from({ length: Math.min(SLABS, Math.ceil(blocks.length / SLAB_BLOCKS)) }, () =>
    Buffer.from(new SharedArrayBuffer(Math.min(SLAB_BLOCKS, blocks.length) * BLOCK_SIZE)),
  );
  const hashed: (Buffer | Promise<Buffer>)[] = [];
  const ask = (first: number): void => {
    if (first >= blocks.length) return;
    const count = Math.min(SLAB_BLOCKS, blocks.length - first);
    const slab = slabs[(first / SLAB_BLOCKS) % SLABS];
    source.read(first, count, slab);
    const hashes = writer.codec.hashes(slab, count);
    // Whoever waits for it is told; nobody may, when another has failed first.
    if (!Buffer.isBuffer(hashes)) hashes.catch(() => {});
    hashed.push(hashes);
  };
  // While one slab is looked up and stored, the next ones are hashed.
  for (let ahead = 0; ahead < SLABS; ahead++) ask(ahead * SLAB_BLOCKS);
  for (let first = 0; first < blocks.length; first += SLAB_BLOCKS) {
    const slab = slabs[(first / SLAB_BLOCKS) % SLABS];
    const hashes = await hashed.shift()!;
    hashes.copy(all, first * 32);
    for (let index = 0; index < hashes.length / 32; index++) {
      const hash = hashes.subarray(index * 32, (index + 1) * 32);
      if (!isZeroHash(hash)) writer.add(hash, slab.subarray(index * BLOCK_SIZE, (index + 1) * BLOCK_SIZE));
      if (index % SLICE < SLICE - 1) continue;
      await writer.room();
      await pause();
    }
    statistics.blocks += hashes.length / 32;
    ask(first + SLABS * SLAB_BLOCKS);
    await writer.room();
    await pause();
  }
  return all;
}

/** The new root of a tree of `levels` levels with the changes applied. */
export class TreeUpdate {
  private cursor = 0;
  private zero = 0;

  constructor(
    private readonly nodes: Nodes,
    private readonly writer: BlobWriter,
    private readonly changes: BlockChanges,
    private readonly pause: Pause,
    /** Told of every block whose content is not what it was. */
    private readonly changed: RangeCollector,
  ) {}

  async run(root: Buffer, oldLevels: number, levels: number): Promise<Buffer> {
    let top = root;
    // The image has grown: its old tree is the first child of the new levels.
    for (let level = oldLevels; level < levels; level++) {
      if (isZeroHash(top)) continue;
      const hashes = Buffer.alloc(FANOUT * 32);
      top.copy(hashes);
      top = this.made(level, hashes);
    }
    return this.update(levels - 1, top, 0);
  }

  private made(level: number, hashes: Buffer): Buffer {
    const bytes = encodeNode(level, hashes);
    const hash = sha256(bytes);
    this.writer.add(hash, bytes);
    return hash;
  }

  /** The next change at or after the cursor lies below `end`. */
  private touches(end: number): boolean {
    const { blocks } = this.changes;
    return this.cursor < blocks.length && blocks[this.cursor] < end;
  }

  /** How a zeroed range meets [first, end). */
  private zeroing(first: number, end: number): 'none' | 'part' | 'all' {
    const { zeroed } = this.changes;
    while (this.zero < zeroed.length && zeroed[this.zero].first + zeroed[this.zero].count <= first) this.zero++;
    const range = zeroed[this.zero];
    if (range === undefined || range.first >= end) return 'none';
    return range.first <= first && range.first + range.count >= end ? 'all' : 'part';
  }

  private async update(level: number, hash: Buffer, first: number): Promise<Buffer> {
    const span = FANOUT ** level;
    const hashes = isZeroHash(hash) ? Buffer.alloc(FANOUT * 32) : Buffer.from(this.nodes.get(hash).hashes);
    const { blocks } = this.changes;
    for (let child = 0; child < FANOUT; child++) {
      const childFirst = first + child * span;
      const childEnd = childFirst + span;
      const zeroing = this.zeroing(childFirst, childEnd);
      const changed = this.touches(childEnd);
      if (!changed && zeroing === 'none') {
        if (this.cursor >= blocks.length && this.zero >= this.changes.zeroed.length) break;
        continue;
      }
      const at = child * 32;
      if (level === 0) {
        hashes.copy(OLD, 0, at, at + 32);
        if (zeroing === 'all') hashes.fill(0, at, at + 32);
        if (changed) this.changes.hashes.copy(hashes, at, this.cursor * 32, ++this.cursor * 32);
        if (OLD.compare(hashes, at, at + 32) !== 0) this.changed.add(childFirst, childEnd);
        continue;
      }
      if (zeroing === 'all') {
        await this.cleared(level - 1, hashes.subarray(at, at + 32), childFirst);
        hashes.fill(0, at, at + 32);
      }
      if (changed || zeroing === 'part') {
        (await this.update(level - 1, hashes.subarray(at, at + 32), childFirst)).copy(hashes, at);
      }
    }
    if (level === 0) await this.pause();
    if (isZeroHash(hashes, 0) && hashes.equals(EMPTY)) return ZERO_HASH;
    return this.made(level, hashes);
  }

  /** All blocks below a node become zero: those that are not yet have changed. */
  private async cleared(level: number, hash: Buffer, first: number): Promise<void> {
    if (isZeroHash(hash)) return;
    const { hashes } = this.nodes.get(hash);
    const span = FANOUT ** level;
    for (let child = 0; child < FANOUT; child++) {
      if (isZeroHash(hashes, child * 32)) continue;
      const childFirst = first + child * span;
      if (level === 0) this.changed.add(childFirst, childFirst + 1);
      else await this.cleared(level - 1, hashes.subarray(child * 32, (child + 1) * 32), childFirst);
    }
    await this.pause();
  }
}

const OLD = Buffer.alloc(32);
const EMPTY = Buffer.alloc(FANOUT * 32);
