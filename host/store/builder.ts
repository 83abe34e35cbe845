// Builds trees: brings changed blocks from the journal (or an import) into packs, index and nodes, one builder at a time.

import type { BlockSource } from './block-source.js';
import { RangeCollector } from './changes.js';
import { type BlobStatistics, BlobWriter, type BlockChanges, type Pause, storeBlocks, TreeUpdate } from './digest.js';
import type { Index } from './index.js';
import type { Journal } from './journal.js';
import type { Overlay } from './overlay.js';
import { BLOCK_SIZE, type BlockRange, levelsOf, type Nodes, TreeView } from './tree.js';

/** Changed blocks that are hashed and brought into the tree in one go. */
const BUILD_BLOCKS = 16384;

/** A tree that is being changed. */
export interface Top {
  root: Buffer;
  size: number;
}

export class TreeBuilder {
  readonly statistics: BlobStatistics = { blocks: 0, newBlobs: 0, newBytes: 0 };
  /** Told of every blob that is used again: a garbage collection that is running must not take it. */
  onReuse: (hash: Buffer) => void = () => {};
  /** Trees that are coming into being in several steps: none may lose what an earlier one has made. */
  readonly live = new Set<Top>();
  private lockTail: Promise<void> = Promise.resolve();

  constructor(
    private readonly journal: Journal,
    private readonly nodes: Nodes,
    private readonly index: Index,
    private readonly newPause: () => Pause,
  ) {}

  /**
   * Brings the changes into the tree `top`, which becomes another, durable, step by step: the caller keeps it among the roots that garbage
   * collection looks at. `changed` is told which blocks are not what they were.
   */
  async build(top: Top, size: number, changes: Overlay, changed: RangeCollector): Promise<void> {
    const numbers = Float64Array.from(changes.blocks.keys()).sort();
    const positions = (block: number) => changes.blocks.get(block)!;
    const { journal } = this;
    let zeroed = changes.ranges();
    for (let first = 0; first < numbers.length || zeroed.length > 0; first += BUILD_BLOCKS) {
      const blocks = numbers.subarray(first, first + BUILD_BLOCKS);
      const source: BlockSource = {
        read(at, count, target) {
          for (let index = 0; index < count; ) {
            const position = positions(blocks[at + index]);
            if (position <= 0) {
              target.fill(0, index * BLOCK_SIZE, (index + 1) * BLOCK_SIZE);
              index++;
              continue;
            }
            let run = 1;
            while (
              index + run < count &&
              positions(blocks[at + index + run]) === position + run &&
              journal.sameSegment(position, position + run)
            ) {
              run++;
            }
            journal.readSlots(position, run, target, index * BLOCK_SIZE);
            index += run;
          }
        },
      };
      await this.raise(top, size, blocks, source, zeroed, changed);
      zeroed = [];
    }
    if (top.size !== size) await this.raise(top, size, new Float64Array(0), NO_BLOCKS, [], changed);
  }

  /** Stores blocks (ascending) on top of a tree; the returned root is durable. */
  async addBlocks(
    root: Buffer,
    oldSize: number,
    size: number,
    blocks: Float64Array,
    source: BlockSource,
    zeroed: BlockRange[],
  ): Promise<Buffer> {
    const top = { root, size: oldSize };
    await this.raise(top, size, blocks, source, zeroed, new RangeCollector());
    return top.root;
  }

  private raise(
    top: Top,
    size: number,
    blocks: Float64Array,
    source: BlockSource,
    zeroed: BlockRange[],
    changed: RangeCollector,
  ): Promise<void> {
    return this.withBlobLock(async () => {
      const pause = this.newPause();
      const { statistics } = this;
      const writer = new BlobWriter(this.nodes, (hash) => this.onReuse(hash), statistics);
      try {
        const hashes = await storeBlocks(writer, blocks, source, statistics, pause);
        const changes: BlockChanges = { blocks, hashes, zeroed };
        const update = new TreeUpdate(this.nodes, writer, changes, pause, changed);
        const root = await update.run(top.root, levelsOf(top.size), levelsOf(size));
        await writer.finish();
        await this.index.apply(writer.batch);
        // Still inside the lock: a collection that begins when it is let go must see the new root.
        top.root = root;
        top.size = size;
      } finally {
        this.nodes.fresh.clear();
      }
    });
  }

  /** Everything that adds blobs, and the last step of garbage collection, one at a time. */
  async withBlobLock<T>(work: () => Promise<T>): Promise<T> {
    const before = this.lockTail;
    let release!: () => void;
    this.lockTail = new Promise((resolve) => {
      release = resolve;
    });
    await before;
    try {
      return await work();
    } finally {
      release();
    }
  }

  /** A tree view with changes applied, for an epoch that has grown too large for memory. */
  async buildView(under: TreeView, changes: Overlay, size: number, changed: RangeCollector): Promise<TreeView> {
    const top: Top = { root: under.root, size: under.size };
    this.live.add(top);
    try {
      await this.build(top, size, changes, changed);
      return new TreeView(this.nodes, top.root, size);
    } finally {
      this.live.delete(top);
    }
  }
}

const NO_BLOCKS: BlockSource = { read: () => {} };
