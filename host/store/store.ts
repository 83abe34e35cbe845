// The image store: every generation of every image, each block once.
//
// A commit is durable when its record is in the journal; that is all a client waits for. The digest then turns journal entries into tree
// nodes and packs (in idle time, or when the journal grows) and writes the generation's record and its line's head in one index
// transaction; only after that are the journal's slots free. What a crash leaves is digested when the store is opened again.

import { EventEmitter } from 'node:events';
import fs from 'node:fs';
import path from 'node:path';
import { Failure } from '../failure.js';
import {
  type CardHello,
  type CardPlace,
  type Client,
  type Done,
  ExportError,
  type ExportListing,
  ExportRefused,
  type Exports,
} from '../server/export.js';
import { Membership } from './bucket/membership.js';
import { ConflictError, Shared, type SharedOptions } from './bucket/shared.js';
import { TreeBuilder } from './builder.js';
import { CardPlaces } from './card-places.js';
import { type CardCommit, generationId, withCommit } from './cards.js';
import { blocksIn, decodeChanges, encodeChanges, NO_RANGES, RangeCollector, type Ranges, union } from './changes.js';
import { type Codec, zstdCodec } from './codec.js';
import type { Pause } from './digest.js';
import { DiskFiles, type Files } from './files.js';
import { importRecords } from './image-import.js';
import { Images } from './images.js';
import { emptyBatch, type Index, LmdbIndex } from './index.js';
import { type CommitRecord, Journal, JournalError } from './journal.js';
import { LeftEpochs } from './left-epochs.js';
import {
  type GenerationRecord,
  generationKey,
  generationPrefix,
  idOf,
  Line,
  type LineRecord,
  mergePending,
  type Pending,
} from './line.js';
import { LineExport } from './line-export.js';
import { lockFolder } from './lock.js';
import { imageOf, parseExportName } from './names.js';
import { Overlay } from './overlay.js';
import { Packs } from './pack.js';
import { adoptRecords } from './recovery.js';
import type { BlobSink } from './replica.js';
import { openCacheFile, openStoreFile } from './store-file.js';
import { difference, Nodes, TreeView } from './tree.js';
import type { Writer } from './writer.js';

export type StoreLog = (level: 'info' | 'warn' | 'error', message: string) => void;
export type Right = 'read' | 'write' | 'administer';

/** Says what a client may do; without one everybody may do everything. */
export interface Access {
  allows(client: Client, image: string, right: Right): boolean;
  /** May cards write blocks of any image by their hash? Missing: yes. */
  readonly mayAsk?: boolean;
}

export interface StoreOptions {
  log?: StoreLog;
  access?: Access;
  codec?: Codec;
  /** Journal bytes from which the digest no longer waits for idle time, and at which writers wait for the digest. */
  journalBusyBytes?: number;
  journalMaxBytes?: number;
  journalSegmentSlots?: number;
  packSizeMax?: number;
  /** Blocks of an open epoch from which on they are digested before the commit. */
  spillBlocks?: number;
  /** Generations committed within this time of each other are kept as one; 0 keeps every one. */
  coalesceMs?: number;
  /** The digest begins this long after a commit. */
  digestDelayMs?: number;
  /** A card whose connection has broken may come back for so long; then what it had not committed becomes a branch. */
  cardLostMs?: number;
  /** Bytes that the file system must have free for writing to go on. */
  reserveBytes?: number;
  /** The truth is a bucket, and the folder a cache of it. */
  bucket?: BucketOptions;
  /** For simulations. */
  nowMs?: () => number;
  pause?: () => Pause;
  freeBytes?: () => number;
}

/** As in SharedOptions. */
export type BucketOptions = Omit<SharedOptions, 'log' | 'codec' | 'nowMs'>;

interface StoreEvents {
  /** A new generation is durable. */
  commit: [line: string, generation: number, who: string];
  /** A card and the line have both changed: the card's branch and its base; or the line that refuses the card. */
  conflict: [line: string, generation: number, card: string];
}

export interface LineInfo {
  name: string;
  size: number;
  generation: number;
  createdMs: number;
  /** Null where the line that it comes from has been removed. */
  origin: { line: string | null; generation: number } | null;
  tags: Record<string, number>;
  writer: string | null;
  /** Connections of that client. */
  writers: number;
  readers: number;
}

interface Parts {
  files: Files;
  index: Index;
  storeId: Buffer;
  unlock: () => void;
  shared?: Shared;
}

/** One publication uploads all of a pack: a smaller one is waited for less. */
const BUCKET_PACK_SIZE_MAX = 32 * 1024 * 1024;

/** At the maximum a store takes some ten seconds to open after a crash. */
const JOURNAL_BUSY_BYTES = 2 * 1024 ** 3;
const JOURNAL_MAX_BYTES = 4 * 1024 ** 3;
const CARD_LOST_MS = 600_000;
const PREFETCH_BYTES_MAX = 1024 * 1024 * 1024;
/** Clients rest when none has written for this long. */
const IDLE_MS = 250;

export class Store extends EventEmitter<StoreEvents> implements Exports {
  readonly journal: Journal;
  readonly packs: Packs;
  readonly nodes: Nodes;
  readonly index: Index;
  readonly files: Files;
  readonly statistics = { commits: 0, digests: 0, conflicts: 0 };
  readonly builder: TreeBuilder;
  readonly images = new Images(this);
  readonly cards = new CardPlaces(this);
  readonly left: LeftEpochs;
  readonly log: StoreLog;
  /** Roots that no generation points to and that are needed: imports under way. */
  collecting = false;
  /** Trees that are coming from other stores. */
  readonly sinks = new Set<BlobSink>();
  readonly liveRoots = new Set<{ root: Buffer; size: number }>();
  readonly lines = new Map<string, Line>();
  readonly linesById = new Map<number, Line>();
  private digestTimer: NodeJS.Timeout | null = null;
  private lastWriteMs = 0;
  private closing = false;

  private constructor(
    parts: Parts,
    private readonly options: StoreOptions,
  ) {
    super();
    this.files = parts.files;
    this.index = parts.index;
    this.log = options.log ?? (() => {});
    const segmentSlots = options.journalSegmentSlots;
    this.journal = new Journal(parts.files, parts.storeId, segmentSlots === undefined ? {} : { segmentSlots });
    this.shared = parts.shared ?? null;
    const packSizeMax = options.packSizeMax ?? (this.shared === null ? undefined : BUCKET_PACK_SIZE_MAX);
    this.packs = new Packs(parts.files, parts.storeId, options.codec ?? zstdCodec, packSizeMax, this.shared);
    this.nodes = new Nodes(parts.index, this.packs);
    this.builder = new TreeBuilder(
      this.journal,
      this.nodes,
      parts.index,
      () => options.pause?.() ?? this.digestPause(),
    );
    this.membership = this.shared === null ? null : new Membership(this.shared, this);
    this.left = new LeftEpochs(this, options.cardLostMs ?? CARD_LOST_MS);
    this.unlock = parts.unlock;
    this.storeId = parts.storeId;
  }

  readonly storeId: Buffer;
  /** The store in a bucket that this one is a part of; null for a store of its own. */
  readonly shared: Shared | null;
  readonly membership: Membership | null;

  private readonly unlock: () => void;

  /** Opens the store in a folder, makes it when the folder is missing or empty, and recovers what a crash has left. */
  static async open(folder: string, options: StoreOptions = {}): Promise<Store> {
    fs.mkdirSync(folder, { recursive: true });
    const unlock = lockFolder(folder);
    try {
      const freeBytes = () => {
        const status = fs.statfsSync(folder);
        return status.bavail * status.bsize;
      };
      if (options.bucket !== undefined) {
        // What the journal has is not acknowledged before it is in the bucket.
        const files = new DiskFiles(folder, 'journal');
        const { log = () => {}, codec = zstdCodec, bucket } = options;
        const storeId = await Shared.identify(bucket.bucket);
        openCacheFile(folder, bucket.bucket.url);
        const shared = await Shared.open(folder, storeId, { ...bucket, log, codec });
        const parts = { files, index: shared, storeId: shared.storeId, unlock, shared };
        return await Store.openParts(parts, { freeBytes, ...options });
      }
      const storeId = openStoreFile(folder);
      const index = new LmdbIndex(path.join(folder, 'index'));
      const files = new DiskFiles(folder);
      return await Store.openParts({ files, index, storeId, unlock }, { freeBytes, ...options });
    } catch (error) {
      unlock();
      throw error;
    }
  }

  /** A store on any files and index: for simulations and tests. */
  static async openParts(parts: Parts, options: StoreOptions = {}): Promise<Store> {
    const store = new Store(parts, options);
    store.shared?.attach(store);
    store.loadLines();
    await store.recover();
    store.membership?.start();
    return store;
  }

  async close(): Promise<void> {
    if (this.closing) return;
    this.closing = true;
    if (this.digestTimer !== null) clearTimeout(this.digestTimer);
    for (const line of this.lines.values()) {
      for (const opened of [...line.exports]) {
        opened.fence('the server is shutting down');
      }
    }
    await this.left.keepAll();
    try {
      await this.digestAll();
      this.journal.clear();
    } catch (error) {
      this.log('warn', `the journal could not be digested and is kept: ${(error as Error).message}`);
      this.journal.close();
    }
    await this.builder.withBlobLock(async () => {});
    await this.membership?.leave();
    this.packs.close();
    await this.index.close();
    this.unlock();
  }

  /** Of the file system; null in a simulation. */
  freeBytes(): number | null {
    return this.options.freeBytes?.() ?? null;
  }

  /** More than this at once would throw itself out again, or others. */
  get prefetchBytesMax(): number {
    return this.shared === null ? PREFETCH_BYTES_MAX : this.shared.options.cacheBytes / 4;
  }

  nowMs(): number {
    return this.options.nowMs?.() ?? Date.now();
  }

  // --- lines

  private loadLines(): void {
    if (this.shared === null && this.index.record('store') === undefined && this.packs.numbers().length > 0) {
      throw new Failure('the store has packs but its index is empty: restore the folder "index" from a backup');
    }
    for (const [key, value] of this.index.records('line/')) {
      const record = value as LineRecord;
      if (record.version !== 1)
        throw new Failure(`the record ${key} has version ${record.version}, this program knows 1`);
      const newest = this.generationRecord(record.id, record.head);
      if (newest === null)
        throw new Failure(`generation ${record.head} of ${record.name} is missing: the index is damaged`);
      this.addLine(record, newest);
    }
  }

  addLine(record: LineRecord, newest: GenerationRecord): Line {
    const view = new TreeView(this.nodes, Buffer.from(newest.root, 'hex'), newest.size);
    const line = new Line(record, view, newest);
    this.lines.set(record.name, line);
    this.linesById.set(record.id, line);
    return line;
  }

  // --- other servers on the same bucket

  /** The log has changed these records: what stands in memory follows. */
  refreshLines(keys: Iterable<string>): void {
    const names = [...keys].filter((key) => key.startsWith('line/')).map((key) => key.slice('line/'.length));
    const records = names.map((name) => this.index.record(`line/${name}`) as LineRecord | undefined);
    const present = new Set(records.map((record) => record?.id));
    for (const [index, name] of names.entries()) {
      const line = this.lines.get(name);
      const record = records[index];
      if (line !== undefined && record?.id !== line.record.id) {
        this.lines.delete(name);
        if (!present.has(line.record.id)) this.dropLine(line);
      }
    }
    for (const record of records) {
      if (record === undefined) continue;
      const newest = this.generationRecord(record.id, record.head)!;
      const line = this.linesById.get(record.id);
      if (line === undefined) {
        this.addLine(record, newest);
        this.emit('commit', record.name, newest.generation, newest.who);
      } else this.adoptHead(line, record, newest);
    }
  }

  private dropLine(line: Line): void {
    line.removed = true;
    this.linesById.delete(line.record.id);
    for (const opened of [...line.exports]) opened.fence(`${line.name} has been removed`);
    line.view.close();
  }

  /** Another server has made this the line's newest generation (or has changed what else is known of the line). */
  private adoptHead(line: Line, record: LineRecord, newest: GenerationRecord): void {
    const isNew = newest.generation !== line.record.head || idOf(newest) !== line.digestedId;
    this.lines.delete(line.record.name);
    this.lines.set(record.name, line);
    line.record = record;
    if (!isNew) return;
    for (const opened of [...line.exports])
      if (opened.learnsOfChanges) opened.fence(`${line.name} was changed through another server`);
    this.resetLine(line);
    this.emit('commit', line.name, newest.generation, newest.who);
  }

  /** What is in the index is all there is of the line. */
  private resetLine(line: Line): void {
    const newest = this.generationRecord(line.record.id, line.record.head)!;
    line.resets++;
    for (const pending of line.pending.splice(0)) this.releasePending(pending);
    line.head = newest.generation;
    line.size = newest.size;
    line.lastTimeMs = newest.timeMs;
    line.digestedId = idOf(newest);
    line.layerChanges++;
    line.frozen = null;
    line.committed = new Overlay();
    line.view.close();
    line.view = new TreeView(this.nodes, Buffer.from(newest.root, 'hex'), newest.size);
  }

  /** Nothing that this server has not brought to the bucket counts: its writers end. */
  abandon(reason: string): void {
    for (const sink of this.sinks) sink.spoil(reason);
    for (const line of [...this.lines.values()]) {
      for (const opened of [...line.exports]) if (opened.learnsOfChanges) opened.fence(reason);
      // A digest that is under way still reads the journal: it will be refused, and then there is nothing left to keep.
      void (line.digesting ?? Promise.resolve())
        .catch(() => {})
        .then(() => {
          if (!line.removed && line.pending.length > 0) this.resetLine(line);
        });
    }
  }

  /** Trees that are in no record may have lost some of what they share with others. Digests are done again; what cannot be is given up. */
  rebuildOpen(): void {
    const reason = 'garbage collection on another server has met what was not committed yet';
    for (const sink of this.sinks) sink.spoil(reason);
    for (const line of this.lines.values()) {
      for (const opened of [...line.exports]) if (opened.hasSpilled) opened.fence(reason);
      if (line.pending.some(({ base }) => base !== null)) this.resetLine(line);
    }
  }

  /** Null when this server may change the line now; else a promise to wait for. It rejects with an ExportError when another server does. */
  claim(line: Line): Promise<void> | null {
    if (this.shared === null || this.shared.owns(line.record.id)) return null;
    return this.shared.claim(line.record.id).catch((error: unknown) => {
      if (error instanceof ConflictError) throw new ExportError('EPERM', error.message);
      throw error;
    });
  }

  /** As far as it is known here: nobody else does. */
  mayChange(line: Line): boolean {
    return this.shared === null || this.shared.mayOwn(line.record.id);
  }

  /** As claim(), for what administrators do. */
  async claimFor(line: Line): Promise<void> {
    await this.shared?.claim(line.record.id);
  }

  line(name: string): Line {
    const line = this.lines.get(name);
    if (line === undefined) throw new Failure(`there is no image "${name}"; \`ribbon image ls\` lists them`);
    return line;
  }

  has(name: string): boolean {
    return this.lines.has(name);
  }

  info(): LineInfo[] {
    return [...this.lines.keys()].sort().map((name) => this.infoOf(name));
  }

  infoOf(name: string): LineInfo {
    const line = this.line(name);
    return {
      name,
      size: line.size,
      generation: line.head,
      createdMs: line.record.createdMs,
      origin: line.record.origin && {
        line: this.linesById.get(line.record.origin.id)?.name ?? null,
        generation: line.record.origin.generation,
      },
      tags: { ...line.record.tags },
      writer: line.writer === null ? null : line.writer.identity,
      writers: line.writer?.members.size ?? 0,
      readers: line.exports.size - (line.writer?.members.size ?? 0),
    };
  }

  /** The newest generation of an image or branch. */
  generation(name: string): number {
    return this.line(name).head;
  }

  generationRecord(id: number, generation: number): GenerationRecord | null {
    const record = this.index.record(generationKey(id, generation)) as GenerationRecord | undefined;
    if (record === undefined) return null;
    if (record.version !== 1)
      throw new Failure(`a generation record has version ${record.version}, this program knows 1`);
    return record;
  }

  /** The generations that are kept, oldest first; the newest are there after they have been digested. */
  generations(name: string): GenerationRecord[] {
    return this.index
      .records(generationPrefix(this.line(name).record.id))
      .map(([, value]) => value as GenerationRecord);
  }

  /** A kept generation, by number or tag. */
  findGeneration(line: Line, at: number | string): GenerationRecord | null {
    const generation = typeof at === 'number' ? at : line.record.tags[at];
    return generation === undefined ? null : this.generationRecord(line.record.id, generation);
  }

  /** The same, digesting first what may not be in the index yet; says what there is when it is not kept. */
  async needGeneration(name: string, at: number | string | null): Promise<GenerationRecord> {
    const line = this.line(name);
    await this.digest(line);
    const record = this.findGeneration(line, at ?? line.head);
    if (record !== null) return record;
    if (typeof at === 'string') throw new Failure(`${name} has no tag "${at}"`);
    const kept = this.generations(name).map((it) => it.generation);
    const near = kept.filter((it) => it < at!).at(-1) ?? kept[0];
    const next = kept.find((it) => it > at!);
    throw new Failure(
      `generation ${at} of ${name} is not kept; the nearest are ${[near, next].filter((it) => it !== undefined).join(' and ')}`,
    );
  }

  // --- exports

  list(client: Client): ExportListing[] {
    return [...this.lines.values()]
      .filter((line) => this.allows(client, line.name, 'read'))
      .map((line) => ({ name: line.name, description: `generation ${line.head}` }))
      .sort((a, b) => (a.name < b.name ? -1 : 1));
  }

  open(name: string, client: Client): LineExport | Promise<LineExport> {
    const parsed = parseExportName(name);
    const line = parsed === null ? undefined : this.lines.get(parsed.line);
    if (parsed === null || line === undefined || !this.allows(client, parsed.line, 'read')) {
      // The same words for what is not there and what is not allowed: names are nobody's business.
      throw new ExportRefused('unknown', 'there is no such export, or you may not read it');
    }
    if (this.closing) throw new ExportRefused('policy', 'the server is shutting down');
    if (line.moving) throw new ExportRefused('policy', `${line.name} is being moved, try again`);
    if (parsed.at === null) {
      const readOnly = !this.allows(client, parsed.line, 'write');
      const opened = (view: TreeView, generation: number) =>
        new LineExport(this, line, view, generation, readOnly, client);
      if (line.pending.length === 0 && line.digesting === null) {
        return opened(this.copyView(line.view), line.record.head);
      }
      return this.newestView(line).then(({ view, generation }) => opened(view, generation));
    }
    const at = parsed.at;
    const pinned = (record: GenerationRecord | null): LineExport => {
      if (record === null) throw new ExportRefused('unknown', `${parsed.line} has no generation ${at}`);
      const view = new TreeView(this.nodes, Buffer.from(record.root, 'hex'), record.size);
      const opened = new LineExport(this, line, view, record.generation, true, client);
      opened.pinned = true;
      return opened;
    };
    const record = this.findGeneration(line, at);
    if (record !== null) return pinned(record);
    return this.digest(line).then(() => pinned(this.findGeneration(line, at)));
  }

  placeCard(name: string, client: Client, hello: CardHello): Promise<CardPlace> {
    return this.cards.place(name, client, hello);
  }

  get mayAsk(): boolean {
    return this.options.access?.mayAsk ?? true;
  }

  get isClosing(): boolean {
    return this.closing;
  }

  allows(client: Client, line: string, right: Right): boolean {
    return this.options.access?.allows(client, imageOf(line), right) ?? true;
  }

  copyView(view: TreeView): TreeView {
    return new TreeView(this.nodes, view.root, view.size);
  }

  /** A view of the newest generation, which nothing that happens later changes. */
  async newestView(line: Line): Promise<{ view: TreeView; generation: number }> {
    for (;;) {
      await this.digest(line);
      // A writer may have committed again while we waited; what has been digested is good enough.
      if (line.record.head > 0) {
        const record = this.generationRecord(line.record.id, line.record.head)!;
        return {
          view: new TreeView(this.nodes, Buffer.from(record.root, 'hex'), record.size),
          generation: record.generation,
        };
      }
    }
  }

  /** What differs between a kept generation and `generation` of the same line, whose tree is `now`. May name blocks that were changed back. */
  changedRanges(line: Line, since: GenerationRecord, generation: number, now: TreeView): Ranges {
    return this.listedChanges(line, since.generation, generation) ?? this.differingRanges(since, now);
  }

  /** What the change lists from one generation to a later one say together; null when one is missing. */
  listedChanges(line: Line, since: number, generation: number): Ranges | null {
    const lists: Ranges[] = [];
    for (let at = generation; at !== since; ) {
      const bytes = at > since ? this.index.changes(generationKey(line.record.id, at)) : null;
      const list = bytes === null ? null : decodeChanges(bytes);
      if (list === null) return null;
      lists.push(list.ranges);
      at = list.since;
    }
    return union(lists);
  }

  /** The ranges in which two trees differ, exactly. */
  differingRanges(since: GenerationRecord, now: TreeView): Ranges {
    const before = new TreeView(this.nodes, Buffer.from(since.root, 'hex'), since.size);
    try {
      return difference(this.nodes, before, now);
    } finally {
      before.close();
    }
  }

  // --- writing

  /** Refuses writes while the store cannot take them. */
  checkWritable(): void {
    if (this.closing) throw new ExportError('ESHUTDOWN', 'the server is shutting down');
    if (this.journal.broken) throw new ExportError('ENOSPC', 'the journal cannot be written: see the server log');
  }

  private checkedSpaceAt = 0;

  /** Null when a writer may go on, else a promise to wait for. Called before every write: cheap. */
  room(writer: Writer): Promise<void> | null {
    this.lastWriteMs = this.nowMs();
    const bytes = this.journal.bytes;
    if (bytes !== this.checkedSpaceAt && this.options.freeBytes !== undefined) {
      // Once for each journal segment: is there room for another, and for the digest?
      const reserve = this.options.reserveBytes ?? 256 * 1024 * 1024;
      if (this.options.freeBytes() < reserve) throw new ExportError('ENOSPC', 'the image store is full');
      this.checkedSpaceAt = bytes;
    }
    if (writer.epochBlocks >= (this.options.spillBlocks ?? 262_144)) {
      const spill = writer.startSpill();
      if (writer.epochBlocks >= 2 * (this.options.spillBlocks ?? 262_144)) return spill;
      spill.catch(() => {});
    }
    if (bytes < (this.options.journalBusyBytes ?? JOURNAL_BUSY_BYTES)) return null;
    this.digestSoon(0);
    if (bytes < (this.options.journalMaxBytes ?? JOURNAL_MAX_BYTES)) return null;
    return this.makeRoom(writer);
  }

  private async makeRoom(writer: Writer): Promise<void> {
    const before = this.journal.bytes;
    await this.digestAll();
    if (this.journal.bytes >= before && !writer.epochEmpty) await writer.startSpill();
    if (this.journal.bytes >= before)
      throw new ExportError('ENOSPC', 'the journal is full of open epochs of other clients');
  }

  /** Makes the epoch the line's next generation. The layers change at once; the promise resolves when it is durable. */
  commitEpoch(
    line: Line,
    changes: Overlay,
    base: TreeView | null,
    baseChanges: Ranges,
    who: string,
    card: CardCommit | null = null,
  ): Promise<void> {
    const generation = line.head + 1;
    const timeMs = Math.max(this.nowMs(), line.lastTimeMs);
    const id = generationId(line.headId, line.record.id, generation, timeMs, who, card?.card ?? '', card?.upTo ?? 0);
    const record: CommitRecord = {
      line: line.record.id,
      generation,
      timeMs,
      size: line.size,
      who,
      why: 'commit',
      id,
      card,
      base: base?.root ?? null,
      changes,
    };
    let written: Promise<number>;
    try {
      written = this.journal.commit(record);
    } catch (error) {
      this.journalFailed();
      throw error;
    }
    const pending: Pending = {
      generation,
      from: generation,
      firstMs: timeMs,
      timeMs,
      size: line.size,
      who,
      why: 'commit',
      id,
      card,
      base: record.base,
      baseChanges,
      changes,
      records: [],
      durable: Promise.resolve(),
      isDurable: false,
    };
    line.head = generation;
    line.lastTimeMs = timeMs;
    line.pending.push(pending);
    if (base === null) {
      line.committed.merge(changes, () => {});
    } else {
      line.layerChanges++;
      line.frozen = null;
      line.committed = new Overlay();
      line.committed.merge(changes, () => {});
      line.view.close();
      line.view = base;
    }
    this.statistics.commits++;
    for (const other of [...line.exports]) {
      if (!other.isWrittenBy(line.writer) && other.learnsOfChanges) other.fence(`${line.name} was changed by ${who}`);
    }
    // Generations become durable in order: this one is not before its predecessor is.
    const before = line.pending.at(-2)?.durable;
    pending.durable = Promise.all([written, before]).then(
      ([position]) => {
        pending.records.push(position);
        pending.isDurable = true;
        this.coalesce(line, pending);
        this.emit('commit', line.name, generation, who);
        this.digestSoon(this.options.digestDelayMs ?? 200);
      },
      (error: unknown) => {
        this.journalFailed();
        throw error;
      },
    );
    return this.shared === null ? pending.durable : pending.durable.then(() => this.published(line, generation));
  }

  /** Resolves when the generation is in the bucket. */
  async published(line: Line, generation: number): Promise<void> {
    const { resets } = line;
    while (line.record.head < generation || line.resets !== resets) {
      if (line.resets !== resets || line.removed)
        throw new ExportError('ESHUTDOWN', `${line.name}: what was committed here has not reached the bucket`);
      try {
        await this.digest(line);
      } catch (error) {
        if (line.resets !== resets) continue;
        if (!(error instanceof ConflictError) || this.closing) throw error;
        // Who has given this server's work up tells so by resetting the line; else the same can be tried again.
        await new Promise<void>((resolve) => setTimeout(resolve, 50));
      }
    }
  }

  /** What a flush with nothing to commit waits for: the commit before it. */
  newestDurable(line: Line): Done {
    const newest = line.pending.at(-1);
    if (newest === undefined) return undefined;
    if (this.shared === null) return newest.isDurable ? undefined : newest.durable;
    return newest.durable.then(() => this.published(line, newest.generation));
  }

  /** Joins a generation that has just become durable with its predecessor when they are close in time and the digest has neither. */
  private coalesce(line: Line, newer: Pending): void {
    const index = line.pending.indexOf(newer);
    if (index < 1) return;
    const older = line.pending[index - 1];
    if (!older.isDurable || newer.timeMs - older.firstMs >= (this.options.coalesceMs ?? 1000)) return;
    if (older.size !== newer.size || older.card?.card !== newer.card?.card) return;
    mergePending(older, newer, this.journal);
    older.durable = newer.durable;
    line.pending.splice(index, 1);
  }

  /** The journal has failed under open epochs: their writers must begin again. Committed generations are safe. */
  journalFailed(): void {
    if (!this.journal.broken) return;
    this.log('error', 'the journal cannot be written; open epochs are discarded');
    for (const line of this.lines.values()) line.writer?.end('the image store cannot be written');
    this.reopenJournalSoon();
  }

  private reopening: Promise<void> | null = null;

  /** Digests what is durable, so that space comes free, and lets writers try again. */
  private reopenJournalSoon(): void {
    this.reopening ??= (async () => {
      await new Promise<void>((resolve) => setTimeout(resolve, this.options.digestDelayMs ?? 200).unref());
      for (const line of this.lines.values()) await this.dropUndurable(line);
      this.journal.restart();
      await this.digestAll();
    })()
      .catch((error: unknown) => this.log('error', `the store stays read-only: ${(error as Error).message}`))
      .finally(() => {
        this.reopening = null;
      });
  }

  /** Takes generations that never became durable out of the line's layers. */
  private async dropUndurable(line: Line): Promise<void> {
    await Promise.allSettled(line.pending.map((pending) => pending.durable));
    await line.digesting?.catch(() => {});
    const first = line.pending.findIndex((pending) => !pending.isDurable);
    if (first < 0) return;
    for (const pending of line.pending.splice(first)) this.releasePending(pending);
    line.head = line.pending.at(-1)?.generation ?? line.record.head;
    line.layerChanges++;
    line.frozen = null;
    line.committed = new Overlay();
    const record = this.generationRecord(line.record.id, line.record.head)!;
    let root = Buffer.from(record.root, 'hex');
    for (const pending of line.pending) {
      if (pending.base !== null) {
        root = pending.base as Buffer<ArrayBuffer>;
        line.committed = new Overlay();
      }
      line.committed.merge(pending.changes, () => {});
    }
    line.view.close();
    line.view = new TreeView(this.nodes, root, line.size);
  }

  releasePending(pending: Pending): void {
    for (const position of pending.changes.blocks.values()) if (position > 0) this.journal.release(position);
    for (const position of pending.records) this.journal.release(position);
  }

  /** Every root that somebody needs: kept generations, open exports, epochs that have left memory, imports under way or cut short. */
  roots(): { root: Buffer; size: number }[] {
    const found = this.openRoots();
    for (const { root, size } of importRecords(this).values()) found.push({ root: Buffer.from(root, 'hex'), size });
    for (const line of this.lines.values()) {
      for (const { root, size } of this.generations(line.name)) found.push({ root: Buffer.from(root, 'hex'), size });
    }
    return found;
  }

  /** Those of them that no record names. */
  openRoots(): { root: Buffer; size: number }[] {
    const found: { root: Buffer; size: number }[] = [...this.liveRoots, ...this.builder.live];
    for (const view of this.nodes.views) found.push({ root: view.root, size: view.size });
    for (const line of this.lines.values()) {
      for (const { base, size } of line.pending) if (base !== null) found.push({ root: base, size });
    }
    return found;
  }

  // --- digest

  private digestSoon(delayMs: number): void {
    if (this.closing) return;
    if (this.digestTimer !== null) {
      if (delayMs > 0) return;
      clearTimeout(this.digestTimer);
    }
    this.digestTimer = setTimeout(() => {
      this.digestTimer = null;
      this.digestAll().catch((error: unknown) => {
        this.log('error', `digest: ${(error as Error).message}`);
        this.digestSoon(5000);
      });
    }, delayMs);
    this.digestTimer.unref();
  }

  async digestAll(): Promise<void> {
    for (const line of [...this.lines.values()]) await this.digest(line);
  }

  /** Brings everything that the line has committed by now into the tree. */
  async digest(line: Line): Promise<void> {
    const goal = line.head;
    while (line.record.head < goal && line.pending.length > 0 && !line.removed) {
      line.digesting ??= this.digestPending(line).finally(() => {
        line.digesting = null;
      });
      await line.digesting;
    }
  }

  private async digestPending(line: Line): Promise<void> {
    const batch = [...line.pending];
    await Promise.all(batch.map((pending) => pending.durable));
    // Coalescing has joined some of them meanwhile; none of what is left changes any more.
    const taken = line.pending.filter((pending) => pending.isDurable && pending.generation <= batch.at(-1)!.generation);
    for (const pending of taken) pending.firstMs = Number.NEGATIVE_INFINITY;
    const later = line.pending.slice(taken.length);
    const frozen = line.committed;
    // When a later generation lies on a tree of its own, the layers do not contain the ones that are digested here.
    const token = later.some((pending) => pending.base !== null) ? -1 : ++line.layerChanges;
    if (token >= 0) {
      line.frozen = frozen;
      line.committed = new Overlay();
      for (const pending of later) line.committed.merge(pending.changes, () => {});
    }
    const epoch = this.shared?.epoch;
    const newest = this.generationRecord(line.record.id, line.record.head)!;
    const live = { root: Buffer.from(newest.root, 'hex') as Buffer, size: newest.size };
    this.liveRoots.add(live);
    try {
      const records: GenerationRecord[] = [];
      const lists: (Ranges | null)[] = [];
      for (const pending of taken) {
        if (pending.base !== null) {
          live.root = pending.base;
          live.size = pending.size;
        }
        const changed = new RangeCollector();
        await this.builder.build(live, pending.size, pending.changes, changed);
        const { size } = live;
        records.push({
          version: 1,
          generation: pending.generation,
          root: live.root.toString('hex'),
          size,
          timeMs: pending.timeMs,
          who: pending.who,
          why: pending.why,
          changedBlocks: pending.changes.changedBlocks() + blocksIn(pending.baseChanges ?? NO_RANGES),
          from: pending.from,
          id: pending.id,
          ...(pending.card === null ? {} : { card: pending.card }),
        });
        lists.push(pending.baseChanges === null ? null : union([pending.baseChanges, changed.ranges()]));
      }
      const record: LineRecord = { ...line.record, head: records.at(-1)!.generation, size: live.size };
      for (const it of taken) if (it.card !== null) record.cards = withCommit(record.cards, it, it.card, this.nowMs());
      const batch = emptyBatch();
      if (epoch !== undefined) batch.epoch = epoch;
      let since = newest.generation;
      for (const [index, it] of records.entries()) {
        const key = generationKey(record.id, it.generation);
        batch.records.push([key, it]);
        const list = lists[index];
        if (list !== null) batch.changes.push([key, encodeChanges(since, list)]);
        since = it.generation;
      }
      batch.records.push([`line/${record.name}`, record]);
      await this.index.apply(batch);
      line.record = record;
      line.digestedId = idOf(records.at(-1)!);
      line.pending.splice(0, taken.length);
      if (line.layerChanges === token) {
        const view = new TreeView(this.nodes, live.root, live.size);
        view.adopt(line.view, frozen);
        line.view.close();
        line.view = view;
        line.frozen = null;
      }
      for (const pending of taken) this.releasePending(pending);
      this.statistics.digests++;
    } catch (error) {
      if (line.layerChanges === token) {
        frozen.merge(line.committed, () => {});
        line.committed = frozen;
        line.frozen = null;
      }
      throw error;
    } finally {
      this.liveRoots.delete(live);
    }
  }

  /** Gives way to clients: after each millisecond of work, and, while they write and the journal has room, until they rest. */
  private digestPause(): Pause {
    let since = performance.now();
    return async () => {
      const now = performance.now();
      if (now - since < 1) return;
      await new Promise<void>((resolve) => setImmediate(resolve));
      const busyBytes = this.shared !== null ? 0 : (this.options.journalBusyBytes ?? JOURNAL_BUSY_BYTES);
      for (let waited = 0; waited < 200 && !this.closing; waited += 5) {
        if (this.nowMs() - this.lastWriteMs > IDLE_MS || this.journal.bytes >= busyBytes) break;
        await new Promise<void>((resolve) => setTimeout(resolve, 5));
      }
      since = performance.now();
    };
  }

  // --- recovery

  private async recover(): Promise<void> {
    const damaged: string[] = [];
    let records: CommitRecord[];
    try {
      records = this.journal.recover(
        (id, generation) => {
          const line = this.linesById.get(id);
          return line === undefined || generation <= line.record.head;
        },
        (message) => damaged.push(message),
      );
    } catch (error) {
      if (error instanceof JournalError) throw new Failure(`cannot open the store: ${error.message}`);
      throw error;
    }
    // A record that was cut off by the crash was never acknowledged; one in the middle was, and is reported below as a gap.
    for (const message of damaged) this.log('warn', `journal: ${message}`);
    let gap = false;
    for (const line of this.lines.values()) {
      const own = records
        .filter((record) => record.line === line.record.id)
        .sort((a, b) => a.generation - b.generation);
      if (!adoptRecords(line, own, this.journal, this.log)) gap = true;
    }
    await this.digestAll();
    this.journal.clear(gap);
  }
}
