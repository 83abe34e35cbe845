// An image store in memory that crashes: the seam of host/server/export.ts with the rules of the real store. Writes of a
// connection collect in its open epoch; a commit makes them the next generation at one moment; a crash or a broken connection
// discards what is not committed. One writer at a time.
//
// Faults of this zone: commits that take long, commits that a crash catches before or after they became durable, a full disk
// (ENOSPC), reads that fail (EIO).

import {
  type Client,
  type Done,
  ExportError,
  ExportRefused,
  type Exports,
  type Extent,
  type OpenExport,
} from '../server/export.js';
import { fillSector, SECTOR_SIZE, WORDS } from './content.js';
import type { Timer, World } from './world.js';

export const BLOCK = 4096;
const BLOCK_SECTORS = BLOCK / SECTOR_SIZE;

export const EXPORT_NAME = 'disk';

/** The base image's blocks, made once for all runs. */
const base = new Map<number, Buffer>();

function baseBlock(number: number): Buffer {
  let block = base.get(number);
  if (block === undefined) {
    block = Buffer.alloc(BLOCK);
    const words = new Uint32Array(block.buffer, block.byteOffset, BLOCK / 4);
    for (let i = 0; i < BLOCK_SECTORS; i++) fillSector(words, i * WORDS, 0, number * BLOCK_SECTORS + i);
    base.set(number, block);
  }
  return block;
}

export type Blocks = Map<number, Buffer>;

/** What the simulated server serves. */
export interface ImageBackend {
  readonly exports: Exports;
  readonly size: number;
  /** The disk is full: commits are refused. */
  full: boolean;
  /** Reads fail from here to there. */
  unreadable: { from: number; to: number } | null;
  /** How long commits have taken, in all. */
  readonly commitsUs: number;
  /** Is a commit on its way that may or may not become a generation? */
  readonly busy: boolean;
  /** The process, or the machine with everything that was not durable, is gone. */
  crash(how: 'down' | 'gone'): void;
  /** The server begins again on what is left. */
  start(): Promise<void>;
  /** The blocks of the newest generation that differ from the base image. */
  newest(): Promise<Blocks>;
}

/** Who looks at everything that reaches the store. */
export interface StoreWatcher {
  /** A write has been taken from the network; it is in the open epoch of a connection. */
  received(offset: number, data: Buffer): void;
  /** A generation has become durable: the blocks that it changed. */
  committed(generation: number, changed: Blocks): void;
  /** A generation that somebody else has made is durable: the sectors that it changed, all written by command `number`. */
  administrated(generation: number, number: number, changed: Blocks): void;
  /** The server has put the card on a branch that begins at generation `base`. */
  conflict(base: number): void;
  /** The server refuses the card, which knows more than the server, or is a copy. */
  refused(base: number): void;
  /** The store has come back after a crash; this is its newest generation, which has been reported as committed. */
  reopened(blocks: Blocks): void;
}

export interface StoreFaults {
  /** Each commit takes this long, and up to this much more. */
  commitUs: number;
  commitJitterUs: number;
}

export class MemoryStore implements Exports, ImageBackend {
  readonly exports = this;
  generation = 0;
  /** Blocks that differ from the base image. */
  readonly blocks: Blocks = new Map();
  full = false;
  unreadable: { from: number; to: number } | null = null;
  /** Commits on their way. */
  readonly committing = new Set<Commit>();
  writer: MemoryExport | null = null;
  commitsUs = 0;

  constructor(
    readonly world: World,
    readonly size: number,
    readonly faults: StoreFaults,
    readonly watcher: StoreWatcher,
  ) {}

  list(_client: Client): [] {
    return [];
  }

  open(name: string, _client: Client): OpenExport {
    if (name !== EXPORT_NAME) throw new ExportRefused('unknown', `there is no image "${name}"`);
    return new MemoryExport(this);
  }

  /** A block of the newest generation. */
  block(number: number): Buffer {
    return this.blocks.get(number) ?? baseBlock(number);
  }

  /** The server's process is gone: what is not durable is lost. A commit on its way is or is not. */
  crash(): void {
    for (const commit of this.committing) {
      this.world.cancel(commit.timer);
      if (this.world.random.chance(0.5)) this.apply(commit);
    }
    this.committing.clear();
    this.writer = null;
  }

  get busy(): boolean {
    return this.committing.size > 0;
  }

  start(): Promise<void> {
    return Promise.resolve();
  }

  newest(): Promise<Blocks> {
    return Promise.resolve(this.blocks);
  }

  apply(commit: Commit): void {
    for (const [number, block] of commit.blocks) this.blocks.set(number, block);
    this.generation += 1;
    this.watcher.committed(this.generation, commit.blocks);
  }
}

interface Commit {
  blocks: Blocks;
  timer: Timer | null;
}

class MemoryExport implements OpenExport {
  readonly readOnly = false;
  readonly multiConnection = false;
  readonly description = '';
  /** The open epoch. */
  #overlay: Blocks = new Map();
  /** Its commits on their way, the oldest first. */
  readonly #commits: Commit[] = [];

  constructor(readonly store: MemoryStore) {}

  get size(): number {
    return this.store.size;
  }

  read(offset: number, target: Buffer): Done {
    const { unreadable } = this.store;
    if (unreadable !== null && offset < unreadable.to && offset + target.length > unreadable.from) {
      throw new ExportError('EIO', 'the simulated disk cannot read this');
    }
    for (let at = 0; at < target.length; ) {
      const within = (offset + at) % BLOCK;
      const count = Math.min(BLOCK - within, target.length - at);
      this.#block((offset + at - within) / BLOCK).copy(target, at, within, within + count);
      at += count;
    }
    return undefined;
  }

  /** The block as this connection sees it. */
  #block(number: number): Buffer {
    const changed = this.#overlay.get(number);
    if (changed !== undefined) return changed;
    for (let i = this.#commits.length - 1; i >= 0; i--) {
      const committing = this.#commits[i].blocks.get(number);
      if (committing !== undefined) return committing;
    }
    return this.store.block(number);
  }

  write(offset: number, data: Buffer): Done {
    const { store } = this;
    if (store.writer !== null && store.writer !== this) {
      throw new ExportError('EPERM', 'another client is writing to this image');
    }
    store.writer = this;
    for (let at = 0; at < data.length; ) {
      const within = (offset + at) % BLOCK;
      const count = Math.min(BLOCK - within, data.length - at);
      const number = (offset + at - within) / BLOCK;
      let block = this.#overlay.get(number);
      if (block === undefined) {
        block = Buffer.from(this.#block(number));
        this.#overlay.set(number, block);
      }
      data.copy(block, within, at, at + count);
      at += count;
    }
    store.world.watch(() => store.watcher.received(offset, data));
    return undefined;
  }

  zero(offset: number, length: number): Done {
    return this.write(offset, Buffer.alloc(length));
  }

  metaContexts(_query: string): string[] {
    return [];
  }

  status(): Extent[] {
    throw new ExportError('EINVAL', 'no meta contexts here');
  }

  commit(): Done {
    const { store } = this;
    if (this.#overlay.size === 0 && this.#commits.length === 0) return undefined;
    if (store.full) throw new ExportError('ENOSPC', 'the simulated disk is full');
    const commit: Commit = { blocks: this.#overlay, timer: null };
    this.#overlay = new Map();
    this.#commits.push(commit);
    store.committing.add(commit);
    return new Promise((resolve) => {
      const { commitUs, commitJitterUs } = store.faults;
      const delayUs = commitUs + (commitJitterUs > 0 ? store.world.random.below(commitJitterUs) : 0);
      store.commitsUs += delayUs;
      const last = this.#commits.at(-2)?.timer?.atUs ?? 0;
      commit.timer = store.world.scheduleAt(Math.max(store.world.nowUs + delayUs, last), () => {
        store.committing.delete(commit);
        this.#commits.shift();
        if (commit.blocks.size > 0) store.apply(commit);
        store.world.promises = true;
        resolve();
      });
    });
  }

  close(clean: boolean): Done {
    const { store } = this;
    const release = (): void => {
      if (store.writer === this) store.writer = null;
    };
    const done = clean && !store.full ? this.commit() : undefined;
    if (done !== undefined) return done.then(release);
    // What is on its way to the disk gets there; the next writer comes after it.
    const last = this.#commits.at(-1)?.timer;
    if (last === undefined || last === null) release();
    else store.world.scheduleAt(last.atUs, release);
    return undefined;
  }
}
