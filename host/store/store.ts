// The image store: every generation of every image, each block once.
//
// A commit is durable when its record is in the journal; that is all a client waits for. The digest then turns journal entries into tree
// nodes and packs (in idle time, or when the journal grows) and writes the generation's record and its line's head in one index
// transaction; only after that are the journal's slots free. What a crash leaves is digested when the store is opened again.

import crypto from 'node:crypto';
import { EventEmitter } from 'node:events';
import fs from 'node:fs';
import path from 'node:path';
import { Failure } from '../failure.js';
import { type Client, ExportError, type ExportListing, ExportRefused, type Exports } from '../server/export.js';
import type { BlockSource } from './block-source.js';
import { type Codec, zstdCodec } from './codec.js';
import { type BlobStatistics, BlobWriter, type BlockChanges, type Pause, storeBlocks, TreeUpdate } from './digest.js';
import { DiskFiles, type Files } from './files.js';
import { emptyBatch, type Index, type IndexBatch, LmdbIndex } from './index.js';
import { type CommitRecord, Journal, JournalError, SLOT_SIZE } from './journal.js';
import { type GenerationRecord, Line, type LineRecord, mergePending, type Pending } from './line.js';
import { LineExport } from './line-export.js';
import { lockFolder } from './lock.js';
import { checkLineName, checkTag, imageOf, isLineName, parseExportName } from './names.js';
import { Overlay } from './overlay.js';
import { Packs } from './pack.js';
import { expired, type Retention } from './retention.js';
import { exportRaw, importRaw, type Progress } from './transfer.js';
import { BLOCK_SIZE, type BlockRange, blocksOf, difference, levelsOf, Nodes, TreeView, ZERO_HASH } from './tree.js';

export type StoreLog = (level: 'info' | 'warn' | 'error', message: string) => void;
export type Right = 'read' | 'write' | 'administer';

/** Says what a client may do; without one everybody may do everything. */
export interface Access {
  allows(client: Client, image: string, right: Right): boolean;
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
  /** Bytes that the file system must have free for writing to go on. */
  reserveBytes?: number;
  /** For simulations. */
  nowMs?: () => number;
  pause?: () => Pause;
  freeBytes?: () => number;
}

interface StoreEvents {
  /** A new generation is durable. */
  commit: [line: string, generation: number, who: string];
}

export interface LineInfo {
  name: string;
  size: number;
  generation: number;
  createdMs: number;
  origin: { line: string; generation: number } | null;
  tags: Record<string, number>;
  writer: string | null;
  readers: number;
}

interface Parts {
  files: Files;
  index: Index;
  storeId: Buffer;
  unlock: () => void;
}

const FORMAT = 'ribbon-store';
const VERSION = 1;
/** Images are at most this long: file offsets and block numbers stay exact in a double, and levels few. */
export const IMAGE_SIZE_MAX = 2 ** 50;
/** Changed blocks that are hashed and brought into the tree in one go. */
const BUILD_BLOCKS = 16384;
/** At the maximum a store takes some ten seconds to open after a crash. */
const JOURNAL_BUSY_BYTES = 2 * 1024 ** 3;
const JOURNAL_MAX_BYTES = 4 * 1024 ** 3;
/** Clients rest when none has written for this long. */
const IDLE_MS = 250;

export class Store extends EventEmitter<StoreEvents> implements Exports {
  readonly journal: Journal;
  readonly packs: Packs;
  readonly nodes: Nodes;
  readonly index: Index;
  readonly files: Files;
  readonly statistics = { commits: 0, digests: 0, blobs: { blocks: 0, newBlobs: 0, newBytes: 0 } as BlobStatistics };
  readonly log: StoreLog;
  /** Told of every blob that is used again: a garbage collection that is running must not take it. */
  onReuse: (hash: Buffer) => void = () => {};
  /** Roots that no generation points to and that are needed: imports under way. */
  collecting = false;
  readonly liveRoots = new Set<{ root: Buffer; size: number }>();
  private readonly lines = new Map<string, Line>();
  private readonly linesById = new Map<number, Line>();
  private lockTail: Promise<void> = Promise.resolve();
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
    this.packs = new Packs(parts.files, parts.storeId, options.codec ?? zstdCodec, options.packSizeMax);
    this.nodes = new Nodes(parts.index, this.packs);
    this.unlock = parts.unlock;
  }

  private readonly unlock: () => void;

  /** Opens the store in a folder, makes it when the folder is missing or empty, and recovers what a crash has left. */
  static async open(folder: string, options: StoreOptions = {}): Promise<Store> {
    fs.mkdirSync(folder, { recursive: true });
    const unlock = lockFolder(folder);
    try {
      const storeId = openStoreFile(folder);
      const index = new LmdbIndex(path.join(folder, 'index'));
      const freeBytes = () => {
        const status = fs.statfsSync(folder);
        return status.bavail * status.bsize;
      };
      const parts = { files: new DiskFiles(folder), index, storeId, unlock };
      return await Store.openParts(parts, { freeBytes, ...options });
    } catch (error) {
      unlock();
      throw error;
    }
  }

  /** A store on any files and index: for simulations and tests. */
  static async openParts(parts: Parts, options: StoreOptions = {}): Promise<Store> {
    const store = new Store(parts, options);
    store.loadLines();
    await store.recover();
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
    try {
      await this.digestAll();
      this.journal.clear();
    } catch (error) {
      this.log('warn', `the journal could not be digested and is kept: ${(error as Error).message}`);
      this.journal.close();
    }
    await this.withBlobLock(async () => {});
    this.packs.close();
    await this.index.close();
    this.unlock();
  }

  nowMs(): number {
    return this.options.nowMs?.() ?? Date.now();
  }

  // --- lines

  private loadLines(): void {
    if (this.index.record('store') === undefined && this.packs.numbers().length > 0) {
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

  private addLine(record: LineRecord, newest: GenerationRecord): Line {
    const view = new TreeView(this.nodes, Buffer.from(newest.root, 'hex'), newest.size);
    const line = new Line(record, view, newest);
    this.lines.set(record.name, line);
    this.linesById.set(record.id, line);
    return line;
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
      origin: line.record.origin,
      tags: { ...line.record.tags },
      writer: line.writer === null ? null : line.writer.identity,
      readers: line.exports.size - (line.writer === null ? 0 : 1),
    };
  }

  /** The newest generation of an image or branch. */
  generation(name: string): number {
    return this.line(name).head;
  }

  private generationRecord(id: number, generation: number): GenerationRecord | null {
    const record = this.index.record(generationKey(id, generation)) as GenerationRecord | undefined;
    if (record === undefined) return null;
    if (record.version !== 1)
      throw new Failure(`a generation record has version ${record.version}, this program knows 1`);
    return record;
  }

  /** The generations that are kept, oldest first; the newest are there after they have been digested. */
  generations(name: string): GenerationRecord[] {
    return this.index
      .records(`generation/${hex8(this.line(name).record.id)}/`)
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

  private allows(client: Client, line: string, right: Right): boolean {
    return this.options.access?.allows(client, imageOf(line), right) ?? true;
  }

  private copyView(view: TreeView): TreeView {
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

  changedRanges(since: GenerationRecord, now: TreeView): BlockRange[] {
    const before = new TreeView(this.nodes, Buffer.from(since.root, 'hex'), since.size);
    try {
      return [...difference(this.nodes, before, now)];
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
  room(writer: LineExport): Promise<void> | null {
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

  private async makeRoom(writer: LineExport): Promise<void> {
    const before = this.journal.bytes;
    await this.digestAll();
    if (this.journal.bytes >= before && !writer.epochEmpty) await writer.startSpill();
    if (this.journal.bytes >= before)
      throw new ExportError('ENOSPC', 'the journal is full of open epochs of other clients');
  }

  /** Makes the epoch the line's next generation. The layers change at once; the promise resolves when it is durable. */
  commitEpoch(line: Line, changes: Overlay, base: TreeView | null, baseBlocks: number, who: string): Promise<void> {
    const generation = line.head + 1;
    const timeMs = Math.max(this.nowMs(), line.lastTimeMs);
    const record: CommitRecord = {
      line: line.record.id,
      generation,
      timeMs,
      size: line.size,
      who,
      why: 'commit',
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
      base: record.base,
      baseBlocks,
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
      if (other !== line.writer && other.hasWritten) other.fence(`${line.name} was changed by ${who}`);
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
    return pending.durable;
  }

  /** Joins a generation that has just become durable with its predecessor when they are close in time and the digest has neither. */
  private coalesce(line: Line, newer: Pending): void {
    const index = line.pending.indexOf(newer);
    if (index < 1) return;
    const older = line.pending[index - 1];
    if (!older.isDurable || newer.timeMs - older.firstMs >= (this.options.coalesceMs ?? 1000)) return;
    if (older.size !== newer.size) return;
    mergePending(older, newer, this.journal);
    older.durable = newer.durable;
    line.pending.splice(index, 1);
  }

  /** The journal has failed under open epochs: their writers must begin again. Committed generations are safe. */
  journalFailed(): void {
    if (!this.journal.broken) return;
    this.log('error', 'the journal cannot be written; open epochs are discarded');
    for (const line of this.lines.values()) line.writer?.fence('the image store cannot be written');
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

  private releasePending(pending: Pending): void {
    for (const position of pending.changes.blocks.values()) if (position > 0) this.journal.release(position);
    for (const position of pending.records) this.journal.release(position);
  }

  /** Every root that somebody needs: kept generations, open exports, epochs that have left memory, imports under way. */
  roots(): { root: Buffer; size: number }[] {
    const found: { root: Buffer; size: number }[] = [...this.liveRoots];
    for (const view of this.nodes.views) found.push({ root: view.root, size: view.size });
    for (const line of this.lines.values()) {
      for (const { root, size } of this.generations(line.name)) found.push({ root: Buffer.from(root, 'hex'), size });
      for (const { base, size } of line.pending) if (base !== null) found.push({ root: base, size });
    }
    return found;
  }

  /** Forgets the generations that the retention does not keep; returns how many. */
  async applyRetention(retention: Retention): Promise<number> {
    let count = 0;
    for (const { name, tags } of this.info()) {
      const drop = expired(this.generations(name), new Set(Object.values(tags)), retention, this.nowMs());
      await this.forget(name, drop);
      count += drop.length;
    }
    return count;
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
    const newest = this.generationRecord(line.record.id, line.record.head)!;
    const live = { root: Buffer.from(newest.root, 'hex') as Buffer, size: newest.size };
    this.liveRoots.add(live);
    try {
      let size = newest.size;
      const records: GenerationRecord[] = [];
      for (const pending of taken) {
        if (pending.base !== null) {
          live.root = pending.base;
          size = pending.size;
        }
        live.root = await this.build(live.root, size, pending.size, pending.changes);
        size = pending.size;
        live.size = size;
        records.push({
          version: 1,
          generation: pending.generation,
          root: live.root.toString('hex'),
          size,
          timeMs: pending.timeMs,
          who: pending.who,
          why: pending.why,
          changedBlocks: pending.changes.changedBlocks() + pending.baseBlocks,
          from: pending.from,
        });
      }
      const record: LineRecord = { ...line.record, head: records.at(-1)!.generation, size };
      const batch = emptyBatch();
      for (const it of records) batch.records.push([generationKey(record.id, it.generation), it]);
      batch.records.push([`line/${record.name}`, record]);
      await this.index.apply(batch);
      line.record = record;
      line.pending.splice(0, taken.length);
      if (line.layerChanges === token) {
        const view = new TreeView(this.nodes, live.root, size);
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

  /** The durable root of a tree with the changes applied. */
  private async build(root: Buffer, oldSize: number, size: number, changes: Overlay): Promise<Buffer> {
    const numbers = Float64Array.from(changes.blocks.keys()).sort();
    const positions = (block: number) => changes.blocks.get(block)!;
    const { journal } = this;
    let top = root;
    let topSize = oldSize;
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
      top = await this.addBlocks(top, topSize, size, blocks, source, zeroed);
      topSize = size;
      zeroed = [];
    }
    if (topSize !== size) top = await this.addBlocks(top, topSize, size, new Float64Array(0), NO_BLOCKS, []);
    return top;
  }

  /** Stores blocks (ascending) on top of a tree; the returned root is durable. */
  async addBlocks(
    root: Buffer,
    oldSize: number,
    size: number,
    blocks: Float64Array,
    source: BlockSource,
    zeroed: BlockRange[],
    statistics: BlobStatistics = this.statistics.blobs,
  ): Promise<Buffer> {
    return this.withBlobLock(async () => {
      const pause = this.options.pause?.() ?? this.digestPause();
      const writer = new BlobWriter(this.nodes, (hash) => this.onReuse(hash), statistics);
      try {
        const hashes = await storeBlocks(writer, blocks, source, statistics, pause);
        const changes: BlockChanges = { blocks, hashes, zeroed };
        const update = new TreeUpdate(this.nodes, writer, changes, pause);
        const top = await update.run(root, levelsOf(oldSize), levelsOf(size));
        await writer.finish();
        await this.index.apply(writer.batch);
        return top;
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
  async buildView(under: TreeView, changes: Overlay, size: number): Promise<TreeView> {
    const root = await this.build(under.root, under.size, size, changes);
    return new TreeView(this.nodes, root, size);
  }

  /** Gives way to clients: after each millisecond of work, and, while they write and the journal has room, until they rest. */
  private digestPause(): Pause {
    let since = performance.now();
    return async () => {
      const now = performance.now();
      if (now - since < 1) return;
      await new Promise<void>((resolve) => setImmediate(resolve));
      const busyBytes = this.options.journalBusyBytes ?? JOURNAL_BUSY_BYTES;
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
      if (!this.adoptRecords(line, own)) gap = true;
    }
    await this.digestAll();
    this.journal.clear(gap);
  }

  /** Makes the valid records of a line its pending generations, up to the last one that is whole. False: one was missing in between. */
  private adoptRecords(line: Line, records: CommitRecord[]): boolean {
    const missing = new Set<number>();
    let open: Pending | null = null;
    let expected = line.head + 1;
    let whole = true;
    for (const record of records) {
      if (record.generation !== expected) {
        // A later record is there, so this one was acknowledged: not a crash but damage.
        this.log(
          'error',
          `${line.name}: generation ${expected} is damaged in the journal and those after it are left out; ` +
            'the journal is kept as journal/*.damaged',
        );
        whole = false;
        break;
      }
      expected++;
      // Generations that were committed close together share slots: an older record may have lost blocks that a newer one replaced.
      if (record.base !== null) missing.clear();
      for (const range of record.changes.ranges()) {
        for (const block of missing)
          if (block >= range.first && block < range.first + range.count) missing.delete(block);
      }
      for (const block of record.changes.blocks.keys()) missing.delete(block);
      for (const block of record.missing ?? []) missing.add(block);
      const pending: Pending = {
        generation: record.generation,
        from: record.generation,
        firstMs: record.timeMs,
        timeMs: record.timeMs,
        size: record.size,
        who: record.who,
        why: record.why,
        base: record.base,
        baseBlocks: 0,
        changes: record.changes,
        records: [],
        durable: Promise.resolve(),
        isDurable: true,
      };
      if (open === null) open = pending;
      else mergePending(open, pending, this.journal);
      if (missing.size > 0) continue;
      line.pending.push(open);
      line.head = open.generation;
      line.lastTimeMs = open.timeMs;
      line.size = open.size;
      open = null;
    }
    if (open !== null)
      this.log('warn', `${line.name}: generation ${open.generation} is not whole in the journal and is left out`);
    for (const pending of line.pending) line.committed.merge(pending.changes, () => {});
    return whole;
  }

  // --- administration

  private async putLine(
    name: string,
    size: number,
    root: Buffer,
    why: string,
    who: string,
    origin: LineRecord['origin'],
    first = 1,
  ): Promise<Line> {
    checkLineName(name);
    if (this.lines.has(name)) throw new Failure(`there is an image "${name}" already`);
    if (name.includes('/') && !this.lines.has(imageOf(name)))
      throw new Failure(`there is no image "${imageOf(name)}" to branch`);
    const store = (this.index.record('store') as { nextLine: number } | undefined) ?? { nextLine: 1 };
    const id = store.nextLine;
    const timeMs = this.nowMs();
    const record: LineRecord = { version: 1, id, name, size, head: first, first, createdMs: timeMs, origin, tags: {} };
    const generation: GenerationRecord = {
      version: 1,
      generation: first,
      root: root.toString('hex'),
      size,
      timeMs,
      who,
      why,
      changedBlocks: 0,
      from: first,
    };
    const batch = emptyBatch();
    batch.records.push(
      ['store', { version: 1, nextLine: id + 1 }],
      [`line/${name}`, record],
      [generationKey(id, first), generation],
    );
    const line = this.addLine(record, generation);
    try {
      await this.index.apply(batch);
    } catch (error) {
      this.lines.delete(name);
      this.linesById.delete(id);
      throw error;
    }
    this.emit('commit', name, first, who);
    return line;
  }

  /** An image of zeroes. */
  async create(name: string, size: number, who = 'administrator'): Promise<void> {
    checkSize(size);
    await this.putLine(name, size, ZERO_HASH, 'created', who, null);
  }

  /** Makes a raw disk image file an image. */
  importRaw(name: string, file: string, onProgress?: Progress, who = 'administrator'): Promise<void> {
    return importRaw(this, name, file, who, onProgress);
  }

  /** Writes a generation (null: the newest) to a raw file. */
  exportRaw(name: string, at: number | string | null, file: string, onProgress?: Progress): Promise<void> {
    return exportRaw(this, name, at, file, onProgress);
  }

  /** An image whose first generation is a tree that is in the store already. */
  async createFromRoot(name: string, size: number, root: Buffer, why: string, who = 'administrator'): Promise<void> {
    checkSize(size);
    await this.putLine(name, size, root, why, who, null);
  }

  /** A new image (or branch, when the name has a slash) that begins as a generation of another. */
  async clone(from: string, at: number | string | null, name: string, who = 'administrator'): Promise<void> {
    const record = await this.needGeneration(from, at);
    const isBranch = name.includes('/') && imageOf(name) === imageOf(from);
    await this.putLine(
      name,
      record.size,
      Buffer.from(record.root, 'hex'),
      `${isBranch ? 'branch' : 'clone'} of ${from}@${record.generation}`,
      who,
      { line: from, generation: record.generation },
      isBranch ? record.generation : 1,
    );
  }

  /** Makes an old generation's content the next generation. */
  async rollback(name: string, at: number | string, who = 'administrator'): Promise<number> {
    const line = this.line(name);
    const old = await this.needGeneration(name, at);
    const why = `rollback to ${old.generation}`;
    return this.newGeneration(line, Buffer.from(old.root, 'hex'), old.size, why, who);
  }

  /** A generation made by an administrator rather than by a writer's epoch. */
  async newGeneration(line: Line, root: Buffer, size: number, why: string, who: string): Promise<number> {
    if (line.writer !== null && !line.writer.epochEmpty) {
      throw new Failure(
        `${line.name} is being written by ${line.writer.identity}: try again when its changes are committed`,
      );
    }
    await this.digest(line);
    if (line.pending.length > 0) throw new Failure(`${line.name} is being written: try again`);
    const previous = this.generationRecord(line.record.id, line.record.head)!;
    const generation = line.head + 1;
    const timeMs = Math.max(this.nowMs(), line.lastTimeMs);
    const view = new TreeView(this.nodes, root, size);
    const before = new TreeView(this.nodes, Buffer.from(previous.root, 'hex'), previous.size);
    let changedBlocks = 0;
    for (const range of difference(this.nodes, before, view)) changedBlocks += range.count;
    before.close();
    // From here on no epoch can be committed on the old head: every reader's generation is behind.
    line.head = generation;
    const record: LineRecord = { ...line.record, head: generation, size };
    const batch = emptyBatch();
    const made: GenerationRecord = {
      version: 1,
      generation,
      root: root.toString('hex'),
      size,
      timeMs,
      who,
      why,
      changedBlocks,
      from: generation,
    };
    batch.records.push([generationKey(record.id, generation), made], [`line/${line.name}`, record]);
    try {
      await this.index.apply(batch);
    } catch (error) {
      line.head = line.record.head;
      view.close();
      throw error;
    }
    line.record = record;
    line.size = size;
    line.lastTimeMs = timeMs;
    line.layerChanges++;
    line.committed = new Overlay();
    line.frozen = null;
    line.view.close();
    line.view = view;
    for (const opened of [...line.exports]) {
      if (opened.hasWritten) opened.fence(`${line.name} was changed by ${who}: ${why}`);
    }
    this.emit('commit', line.name, generation, who);
    return generation;
  }

  async tag(name: string, tag: string, at: number | string | null): Promise<void> {
    checkTag(tag);
    const { generation } = await this.needGeneration(name, at);
    await this.changeLine(this.line(name), (record) => {
      record.tags[tag] = generation;
    });
  }

  async untag(name: string, tag: string): Promise<void> {
    const line = this.line(name);
    if (line.record.tags[tag] === undefined) throw new Failure(`${name} has no tag "${tag}"`);
    await this.changeLine(line, (record) => {
      delete record.tags[tag];
    });
  }

  private async changeLine(line: Line, change: (record: LineRecord) => void): Promise<void> {
    await line.digesting;
    const record: LineRecord = { ...line.record, tags: { ...line.record.tags } };
    change(record);
    const batch = emptyBatch();
    batch.records.push([`line/${line.name}`, record]);
    line.record = record;
    await this.index.apply(batch);
  }

  async rename(from: string, to: string): Promise<void> {
    checkLineName(to);
    const line = this.line(from);
    if (from.includes('/') !== to.includes('/'))
      throw new Failure(`"${from}" and "${to}" must both be images or both branches`);
    if (this.lines.has(to)) throw new Failure(`there is an image "${to}" already`);
    const moved = [...this.lines.values()].filter((it) => it === line || it.name.startsWith(`${from}/`));
    for (const it of moved) {
      if (it.exports.size > 0) throw new Failure(`${it.name} is open: its clients must disconnect first`);
      await this.digest(it);
    }
    const batch = emptyBatch();
    for (const it of moved) {
      const name = to + it.name.slice(from.length);
      batch.records.push([`line/${it.name}`, undefined], [`line/${name}`, { ...it.record, name }]);
    }
    await this.index.apply(batch);
    for (const it of moved) {
      const name = to + it.name.slice(from.length);
      this.lines.delete(it.name);
      it.record = { ...it.record, name };
      this.lines.set(name, it);
    }
  }

  async remove(name: string): Promise<void> {
    const line = this.line(name);
    const branches = [...this.lines.keys()].filter((it) => it.startsWith(`${name}/`));
    if (branches.length > 0) throw new Failure(`${name} has branches: remove ${branches.join(', ')} first`);
    if (line.exports.size > 0) throw new Failure(`${name} is open: its clients must disconnect first`);
    line.removed = true;
    this.lines.delete(name);
    await line.digesting?.catch(() => {});
    const batch = emptyBatch();
    batch.records.push([`line/${name}`, undefined]);
    for (const [key] of this.index.records(`generation/${hex8(line.record.id)}/`)) batch.records.push([key, undefined]);
    await this.index.apply(batch);
    this.linesById.delete(line.record.id);
    for (const pending of line.pending.splice(0)) this.releasePending(pending);
    line.view.close();
  }

  /** Forgets generations; never the newest or a tagged one. */
  async forget(name: string, generations: number[]): Promise<void> {
    const line = this.line(name);
    const kept = new Set([line.record.head, ...Object.values(line.record.tags)]);
    const batch: IndexBatch = emptyBatch();
    for (const generation of generations) {
      if (!kept.has(generation)) batch.records.push([generationKey(line.record.id, generation), undefined]);
    }
    await this.index.apply(batch);
  }
}

const NO_BLOCKS: BlockSource = { read: () => {} };

function generationKey(id: number, generation: number): string {
  return `generation/${hex8(id)}/${generation.toString(16).padStart(14, '0')}`;
}

function hex8(value: number): string {
  return value.toString(16).padStart(8, '0');
}

export function checkSize(size: number): void {
  if (!Number.isSafeInteger(size) || size < 1 || size > IMAGE_SIZE_MAX) {
    throw new Failure(`an image of ${size} bytes cannot be: between 1 byte and 1 PiB`);
  }
}

/** The identity of the store in the folder, made when there is none. */
function openStoreFile(folder: string): Buffer {
  const file = path.join(folder, 'store.json');
  if (!fs.existsSync(file)) {
    const others = fs.readdirSync(folder).filter((name) => name !== 'lock' && !name.startsWith('store.json'));
    if (others.length > 0) {
      throw new Failure(`${folder} is not an image store and not empty (it has ${others[0]}): name another folder`);
    }
    const id = crypto.randomBytes(16);
    const text = `${JSON.stringify({ format: FORMAT, version: VERSION, id: id.toString('hex') })}\n`;
    const fd = fs.openSync(`${file}.new`, 'w');
    fs.writeSync(fd, text);
    fs.fsyncSync(fd);
    fs.closeSync(fd);
    fs.renameSync(`${file}.new`, file);
    const folderFd = fs.openSync(folder, 'r');
    fs.fsyncSync(folderFd);
    fs.closeSync(folderFd);
    return id;
  }
  let record: { format?: unknown; version?: unknown; id?: unknown };
  try {
    record = JSON.parse(fs.readFileSync(file, 'utf8'));
  } catch {
    throw new Failure(`${file} is damaged: restore it from a backup (it holds the store's identity)`);
  }
  if (record.format !== FORMAT) throw new Failure(`${file} does not describe an image store`);
  if (record.version !== VERSION)
    throw new Failure(`${folder} has version ${record.version}, this program knows ${VERSION}`);
  if (typeof record.id !== 'string' || !/^[0-9a-f]{32}$/.test(record.id)) throw new Failure(`${file} has no valid id`);
  return Buffer.from(record.id, 'hex');
}

export { blocksOf, isLineName, SLOT_SIZE };
