// The real image store (host/store) in the simulated world: on files and an index in memory that take their time to become
// durable, and that a crash or a power cut leaves as a disk would. Its timers are the world's.
//
// What the store says is durable is compared with what it gives: each generation's changed blocks are read through the
// connection as it commits, and all of them again, from a new connection, after every crash.

import {
  type CardHello,
  type CardPlace,
  type Client,
  type Done,
  ExportError,
  ExportRefused,
  type Exports,
  type Extent,
  type OpenExport,
} from '../server/export.js';
import { noCodec } from '../store/codec.js';
import type { Files, StoreFile } from '../store/files.js';
import { type Index, type IndexBatch, MemoryIndex } from '../store/index.js';
import type { LineExport } from '../store/line-export.js';
import { MemoryFiles } from '../store/memory-files.js';
import { Store } from '../store/store.js';
import {
  BLOCK,
  type Blocks,
  EXPORT_NAME,
  type ImageBackend,
  type StoreFaults,
  type StoreWatcher,
} from './memory-store.js';
import { Violation, type World } from './world.js';

const CLIENT: Client = { identity: 'simulator', address: 'here', tls: false };
const STORE_ID = Buffer.alloc(16, 7);
const WALL_CLOCK_MS = 1_700_000_000_000;

/** A commit that the store has been asked for and that it has not said to be durable: the blocks that it changes. */
interface OpenCommit {
  line: string;
  /** Who the store will say has made it. */
  who: string;
  blocks: Blocks;
  /** Of an administrator: the number of the command that stands for it. */
  administrator: number | null;
}

export class MerkleStore implements ImageBackend {
  readonly exports: Exports = {
    list: (client) => this.#store?.list(client) ?? [],
    open: (name, client) => this.#open(name, client),
    placeCard: (name, client, hello) => this.#placeCard(name, client, hello),
  };
  full = false;
  unreadable: { from: number; to: number } | null = null;
  commitsUs = 0;
  readonly #world: World;
  readonly #faults: StoreFaults;
  readonly #watcher: StoreWatcher;
  #files = new MemoryFiles();
  #index = new MemoryIndex();
  #store: Store | null = null;
  /** The medium of the store that is running; a crash makes it deaf. */
  #disk: SlowDisk | null = null;
  /** In the order in which they become generations. */
  #commits: OpenCommit[] = [];
  /** The store does not make a generation of these yet, and perhaps never will. */
  readonly #waiting = new Set<OpenCommit>();
  /** The newest generation that was reported durable. */
  #generation = 1;
  /** The card's image, or the branch that it is on. */
  #line = EXPORT_NAME;
  /** Every block that was ever written: those that may differ from the base image. */
  readonly #written = new Set<number>();

  constructor(
    world: World,
    readonly size: number,
    faults: StoreFaults,
    watcher: StoreWatcher,
  ) {
    this.#world = world;
    this.#faults = faults;
    this.#watcher = watcher;
  }

  get busy(): boolean {
    return this.#commits.length + this.#waiting.size > 0;
  }

  /** The card goes on, on a branch: that is its image from now on. */
  #conflict(line: string, base: number): void {
    this.#world.watch(() => {
      if (line === this.#line) return this.#watcher.refused(base);
      this.#world.trace('server', `conflict: the card is on ${line} from generation ${base}`);
      this.#line = line;
      this.#generation = base;
      // What an administrator commits meanwhile becomes a generation of the line that the card has left.
      this.#commits = this.#commits.filter((commit) => commit.line === line);
      this.#watcher.conflict(base);
    });
  }

  /** Somebody else writes these blocks of the card's image; false when the server does not let them now. */
  async administrate(blocks: Blocks, number: number): Promise<boolean> {
    const store = this.#store;
    if (store === null) return false;
    this.#world.promises = true;
    const line = this.#line;
    let opened: LineExport | null = null;
    try {
      // Each is another client: connections of one client have one epoch.
      opened = await store.open(line, { ...CLIENT, identity: `administrator ${number}` });
      for (const [block, bytes] of blocks) {
        await opened.write(block * BLOCK, bytes.subarray(0, Math.min(BLOCK, this.size - block * BLOCK)));
        this.#written.add(block);
      }
      if (this.#store !== store || this.#line !== line) return false;
      this.#world.promises = true;
      await this.commit(opened, blocks, () => opened!.commit(), number);
      return true;
    } catch (error) {
      this.#world.trace('administrator', `not now: ${(error as Error).message}`);
      return false;
    } finally {
      await opened?.close(false);
    }
  }

  /** The newest content of a block, when the store is up. */
  async read(block: number): Promise<Buffer | null> {
    const store = this.#store;
    if (store === null) return null;
    this.#world.promises = true;
    const opened = await store.open(this.#line, CLIENT);
    const bytes = Buffer.alloc(BLOCK);
    await opened.read(block * BLOCK, bytes.subarray(0, Math.min(BLOCK, this.size - block * BLOCK)));
    await opened.close(false);
    return bytes;
  }

  /** Opens the store on what is left, and looks whether everything that was durable is there. */
  async start(): Promise<void> {
    const disk = new SlowDisk(this.#world, this.#files, this.#index, this.#faults, (us) => {
      this.commitsUs += us;
    });
    this.#disk = disk;
    const store = await Store.openParts(
      { files: disk, index: disk.index, storeId: STORE_ID, unlock: () => {} },
      {
        codec: noCodec,
        // Small limits, so that runs meet them.
        journalSegmentSlots: 64,
        packSizeMax: 1 << 20,
        spillBlocks: 200,
        journalBusyBytes: 2 << 20,
        journalMaxBytes: 6 << 20,
        coalesceMs: 300,
        digestDelayMs: 200,
        cardLostMs: Number.POSITIVE_INFINITY,
        nowMs: () => WALL_CLOCK_MS + Math.floor(this.#world.nowUs / 1000),
        pause: () => () => Promise.resolve(),
        freeBytes: () => (this.full ? 0 : Number.MAX_SAFE_INTEGER),
        log: (level, message) => this.#world.trace('store', `${level}: ${message}`),
      },
    );
    if (this.#disk !== disk) return;
    if (!store.has(EXPORT_NAME)) await store.images.create(EXPORT_NAME, this.size);
    if (this.#disk !== disk) return;
    store.on('commit', (line, generation, who) => {
      if (this.#disk === disk && line === this.#line && generation > this.#generation) this.#durable(generation, who);
    });
    store.on('conflict', (line, base) => {
      if (this.#disk === disk) this.#conflict(line, base);
    });
    this.#store = store;
    await this.#recovered(store);
  }

  /** Commits that were under way have become generations or not, in order; nothing else has changed. */
  async #recovered(store: Store): Promise<void> {
    if (!store.has(this.#line)) throw new Violation('O6', `the branch ${this.#line} is gone`);
    // A branch whose making was not reported before the crash.
    const own = Object.values(store.line(EXPORT_NAME).record.cards ?? {}).find((it) => it.branch !== undefined)?.branch;
    if (own !== undefined && `${EXPORT_NAME}/${own}` !== this.#line)
      this.#conflict(`${EXPORT_NAME}/${own}`, store.line(`${EXPORT_NAME}/${own}`).record.first);
    const head = store.generation(this.#line);
    this.#world.trace('store', `open at generation ${head}, ${this.#generation} was reported`);
    if (head < this.#generation) {
      throw new Violation(
        'O3',
        `the store opened at generation ${head}, generation ${this.#generation} had been durable`,
      );
    }
    const { id } = store.line(this.#line).record;
    // Of several that are kept as one, only the last has a record.
    for (let next = this.#generation + 1; next <= head; next++)
      this.#durable(next, store.generationRecord(id, next)?.who ?? null);
    this.#commits = [];
    this.#waiting.clear();
    // As it stands now, in one piece: nothing may have changed but what was reported.
    const blocks = await this.newest();
    this.#world.watch(() => this.#watcher.reopened(blocks));
  }

  async newest(): Promise<Blocks> {
    const blocks: Blocks = new Map();
    const store = this.#store;
    if (store === null) return blocks;
    const opened = await store.open(this.#line, CLIENT);
    for (const block of [...this.#written].sort((a, b) => a - b)) {
      const bytes = Buffer.alloc(BLOCK);
      await opened.read(block * BLOCK, bytes.subarray(0, Math.min(BLOCK, this.size - block * BLOCK)));
      blocks.set(block, bytes);
    }
    await opened.close(false);
    return blocks;
  }

  crash(how: 'down' | 'gone'): void {
    this.#disk?.die();
    this.#disk = null;
    this.#store = null;
    // The system has what a killed process wrote; a machine that is gone has lost what was not synced.
    if (how === 'gone') this.#files = this.#files.afterPowerCut(() => this.#world.random.u32() / 2 ** 32);
  }

  /** The oldest commit under way has become this generation. `who` has made it, if that is known. */
  #durable(generation: number, who: string | null): void {
    this.#world.watch(() => {
      const commit = this.#commits.shift();
      if (commit === undefined || generation !== this.#generation + 1) {
        throw new Violation('O2', `generation ${generation} after ${this.#generation}, and nobody has committed it`);
      }
      if (who !== null && who !== commit.who) {
        throw new Violation('O2', `generation ${generation} is by ${who}, and it was the turn of ${commit.who}`);
      }
      this.#generation = generation;
      if (commit.administrator === null) this.#watcher.committed(generation, commit.blocks);
      else this.#watcher.administrated(generation, commit.administrator, commit.blocks);
    });
  }

  #open(name: string, client: Client): OpenExport | Promise<OpenExport> {
    const store = this.#store;
    if (store === null) throw new ExportError('ESHUTDOWN', 'the server is starting');
    const opened = store.open(name, client);
    const wrap = (inner: LineExport): OpenExport => new WatchedExport(this, inner);
    return opened instanceof Promise ? opened.then(wrap) : wrap(opened);
  }

  async #placeCard(name: string, client: Client, hello: CardHello): Promise<CardPlace> {
    const store = this.#store;
    if (store === null) throw new ExportRefused('policy', 'the server is starting');
    this.#world.promises = true;
    const place = await store.placeCard(name, client, hello);
    const inner = place.export as LineExport | null;
    return { ...place, export: inner === null ? null : new WatchedExport(this, inner) };
  }

  // For the exports.

  received(offset: number, data: Buffer): void {
    for (let block = Math.floor(offset / BLOCK); block * BLOCK < offset + data.length; block++)
      this.#written.add(block);
    this.#world.promises = true;
    this.#world.watch(() => this.#watcher.received(offset, data));
  }

  /** `work` commits what was written through `opened`, these blocks. It takes its place in the order only when the store does the same: while a
   * part of the epoch is on its way into a tree the connection may end, its epoch with it, and somebody else's commit comes instead. */
  async commit<T>(
    opened: LineExport,
    blocks: Blocks,
    work: () => Promise<T> | undefined,
    administrator: number | null = null,
  ): Promise<T | undefined> {
    const commit: OpenCommit = { line: opened.line.name, who: opened.identity, blocks, administrator };
    this.#world.promises = true;
    this.#waiting.add(commit);
    while (opened.isSpilling) await opened.startSpill().catch(() => {});
    this.#waiting.delete(commit);
    // The card may have left the line meanwhile.
    if (commit.line === this.#line) this.#commits.push(commit);
    try {
      return await work();
    } catch (error) {
      this.#commits = this.#commits.filter((other) => other !== commit);
      throw error;
    }
  }
}

/** An opening of the real store that tells what reaches it. */
class WatchedExport implements OpenExport {
  readonly #backend: MerkleStore;
  readonly #inner: LineExport;
  /** Blocks of the open epoch. */
  #epoch = new Set<number>();

  constructor(backend: MerkleStore, inner: LineExport) {
    this.#backend = backend;
    this.#inner = inner;
  }

  get size(): number {
    return this.#inner.size;
  }
  get readOnly(): boolean {
    return this.#inner.readOnly;
  }
  get multiConnection(): boolean {
    return this.#inner.multiConnection;
  }
  get description(): string {
    return this.#inner.description;
  }
  set onLost(onLost: (reason: string) => void) {
    this.#inner.onLost = onLost;
  }

  read(offset: number, target: Buffer): Done {
    const { unreadable } = this.#backend;
    if (unreadable !== null && offset < unreadable.to && offset + target.length > unreadable.from) {
      throw new ExportError('EIO', 'the simulated disk cannot read this');
    }
    return this.#inner.read(offset, target);
  }

  write(offset: number, data: Buffer): Done {
    // `data` is the caller's again after the call.
    const copy = Buffer.from(data);
    const done = this.#inner.write(offset, data);
    const taken = (): void => {
      for (let block = Math.floor(offset / BLOCK); block * BLOCK < offset + copy.length; block++)
        this.#epoch.add(block);
      this.#backend.received(offset, copy);
    };
    if (done !== undefined) return done.then(taken);
    taken();
    return undefined;
  }

  zero(offset: number, length: number): Done {
    return this.write(offset, Buffer.alloc(length));
  }

  commit(): Done {
    if (this.#epoch.size === 0) return this.#inner.commit();
    const commit = (blocks: Blocks): Done => this.#backend.commit(this.#inner, blocks, () => this.#inner.commit());
    const blocks = this.#changed();
    return blocks instanceof Promise ? blocks.then(commit) : commit(blocks);
  }

  async commitCard(upTo: number): Promise<{ generation: number; id: string }> {
    const blocks = await this.#changed();
    return (await this.#backend.commit(this.#inner, blocks, () => this.#inner.commitCard(upTo)))!;
  }

  get lostReason(): string | null {
    return this.#inner.lostReason;
  }

  async writeKnown(offset: number, hash: Buffer): Promise<boolean> {
    if (!(await this.#inner.writeKnown(offset, hash))) return false;
    const bytes = Buffer.alloc(Math.min(BLOCK, this.size - offset));
    await this.#inner.read(offset, bytes);
    this.#epoch.add(offset / BLOCK);
    this.#backend.received(offset, bytes);
    return true;
  }

  /** The blocks of the open epoch, which is over. */
  #changed(): Blocks | Promise<Blocks> {
    const blocks: Blocks = new Map();
    const waits: Promise<void>[] = [];
    for (const block of this.#epoch) {
      const bytes = Buffer.alloc(BLOCK);
      blocks.set(block, bytes);
      const offset = block * BLOCK;
      const done = this.#inner.read(offset, bytes.subarray(0, Math.min(BLOCK, this.size - offset)));
      if (done !== undefined) waits.push(done);
    }
    this.#epoch.clear();
    return waits.length === 0 ? blocks : Promise.all(waits).then(() => blocks);
  }

  metaContexts(query: string): string[] {
    return this.#inner.metaContexts(query);
  }

  status(context: string, offset: number, length: number, limit: number): Extent[] {
    return this.#inner.status(context, offset, length, limit);
  }

  close(clean: boolean): Done {
    return this.#inner.close(clean);
  }
}

/** Files and index whose syncs take time; after die() nothing that is waiting ever goes on. */
class SlowDisk implements Files {
  readonly index: Index;
  readonly #world: World;
  readonly #files: MemoryFiles;
  readonly #faults: StoreFaults;
  readonly #busy: (us: number) => void;
  #dead = false;

  constructor(world: World, files: MemoryFiles, index: MemoryIndex, faults: StoreFaults, busy: (us: number) => void) {
    this.#world = world;
    this.#files = files;
    this.#faults = faults;
    this.#busy = busy;
    this.index = new SlowIndex(index, this);
  }

  die(): void {
    this.#dead = true;
  }

  /** Resolves later, when `act` has been done; never when the machine has gone before. */
  later(act: () => Promise<void>): Promise<void> {
    const { commitUs, commitJitterUs } = this.#faults;
    const us = commitUs + (commitJitterUs > 0 ? this.#world.random.below(commitJitterUs) : 0);
    this.#busy(us);
    return new Promise((resolve, reject) => {
      this.#world.schedule(us, () => {
        if (this.#dead) return;
        this.#world.promises = true;
        act().then(resolve, reject);
      });
    });
  }

  /** A dead process does nothing any more. */
  alive(): void {
    if (this.#dead) throw new Error('the simulated server is dead');
  }

  open(name: string): StoreFile {
    this.alive();
    return new SlowFile(this, this.#files.open(name));
  }

  create(name: string): StoreFile {
    this.alive();
    return new SlowFile(this, this.#files.create(name));
  }

  list(folder: string): string[] {
    return this.#files.list(folder);
  }

  remove(name: string): void {
    this.alive();
    this.#files.remove(name);
  }

  rename(from: string, to: string): void {
    this.alive();
    this.#files.rename(from, to);
  }

  syncFolder(folder: string): Promise<void> {
    return this.later(() => this.#files.syncFolder(folder));
  }
}

class SlowFile implements StoreFile {
  readonly #disk: SlowDisk;
  readonly #inner: StoreFile;

  constructor(disk: SlowDisk, inner: StoreFile) {
    this.#disk = disk;
    this.#inner = inner;
  }

  read(target: Uint8Array, at: number, length: number, position: number): number {
    return this.#inner.read(target, at, length, position);
  }

  write(data: Uint8Array, at: number, length: number, position: number): void {
    this.#disk.alive();
    this.#inner.write(data, at, length, position);
  }

  sync(): Promise<void> {
    return this.#disk.later(() => this.#inner.sync());
  }

  size(): number {
    return this.#inner.size();
  }

  close(): void {
    this.#inner.close();
  }
}

class SlowIndex implements Index {
  readonly #inner: MemoryIndex;
  readonly #disk: SlowDisk;

  constructor(inner: MemoryIndex, disk: SlowDisk) {
    this.#inner = inner;
    this.#disk = disk;
  }

  blob(hash: Buffer) {
    return this.#inner.blob(hash);
  }
  hasBlob(hash: Buffer): boolean {
    return this.#inner.hasBlob(hash);
  }
  blobCount(): number {
    return this.#inner.blobCount();
  }
  record(key: string): unknown {
    return this.#inner.record(key);
  }
  records(prefix: string): [key: string, value: unknown][] {
    return this.#inner.records(prefix);
  }
  changes(key: string): Buffer | null {
    return this.#inner.changes(key);
  }
  /** Visible and durable at one moment. */
  apply(batch: IndexBatch): Promise<void> {
    return this.#disk.later(() => this.#inner.apply(batch));
  }
  close(): Promise<void> {
    return Promise.resolve();
  }
}
