// A store whose truth is a bucket: the index that all servers share, as this one knows it.
//
// Everything that changes a store goes through Index.apply(). Here a batch with records is a transaction of the log (SPEC.md "A store in a
// bucket"): the packs that it needs are uploaded, an entry is made, and then the same becomes true in the LMDB index of this
// disk, which holds exactly what the log says up to `local.sequence`. Batches of blobs alone wait in memory for a transaction that needs
// them. So whatever has seen apply() end has seen its change in the bucket.

import crypto from 'node:crypto';
import fs from 'node:fs';
import path from 'node:path';
import { Failure } from '../../failure.js';
import type { Codec } from '../codec.js';
import { emptyBatch, type Index, type IndexBatch, LmdbIndex, type Location } from '../index.js';
import type { LineRecord } from '../line.js';
import { type PackSource, type Piece, packName } from '../pack.js';
import { sha256 } from '../sha256.js';
import type { Store, StoreLog } from '../store.js';
import {
  BUCKET_KEY,
  type Change,
  COLLECTOR_KEY,
  checkpointObject,
  DIRECTORY_PACK_MIN,
  decodeCheckpoint,
  decodeDirectory,
  directoryObject,
  type Entry,
  encodeCheckpoint,
  encodeDirectory,
  FORMAT,
  type GroupHead,
  groupsOfPack,
  isGroupWhole,
  kindOf,
  locationsOf,
  logObject,
  type NumbersRecord,
  numberOf,
  type OwnerRecord,
  ownerKey,
  type PackRecord,
  packKey,
  packObject,
  parseCheckpointName,
  type ServerRecord,
  STORE_OBJECT,
  serverKey,
} from './format.js';
import { BucketLog, LeftBehindError } from './log.js';
import { PackCache } from './pack-cache.js';
import { firstAnswer, Reach } from './reach.js';
import type { Bucket } from './s3.js';

export interface SharedOptions {
  bucket: Bucket;
  /** What people call this server. */
  name: string;
  /** Blocks that are kept on this disk. */
  cacheBytes: number;
  log: StoreLog;
  codec: Codec;
  nowMs?: () => number;
  /** How often the log is read. */
  pollMs?: number;
  /** How often this server gives a sign of life, and how long one may be silent before the others expel it. */
  signMs?: number;
  deadMs?: number;
  /** A line that nobody has written to for so long is given back. */
  releaseMs?: number;
  /** A read of what is not on this disk may take so long. */
  readMs?: number;
  /** Objects of retired packs, and of packs that a crash has left, are deleted when they are so old; entries of the log likewise. */
  retiredMs?: number;
  orphanMs?: number;
  logMs?: number;
  entriesKept?: number;
  /** Waited at most between two attempts to reach the bucket. */
  waitMaxMs?: number;
  checkpointEvery?: number;
}

/** Part of a server's index only: how far it has applied the log. */
interface LocalRecord {
  version: 1;
  sequence: number;
  digits: string;
  server: number;
}

const LOCAL_KEY = 'local';
const PACK_NUMBERS = 1024;
const READ_MS = 10_000;
/** What a server that is killed has fetched since then is fetched again. */
const SAVE_MS = 60_000;
const CHECKPOINT_EVERY = 500;
const TRANSFERS_AT_ONCE = 4;

/** Somebody else has changed what a transaction builds on. */
export class ConflictError extends Failure {
  override name = 'ConflictError';
  /** The same may be tried again now; else another server is the one to ask. */
  constructor(
    message: string,
    readonly again: boolean,
  ) {
    super(message);
  }
}

interface Item {
  batch: IndexBatch;
  /** The log as far as it was applied when the batch was made. */
  since: number;
  epoch: number;
  resolve: () => void;
  reject: (error: unknown) => void;
}

interface Upload {
  pack: number;
  record: PackRecord;
  groups: GroupHead[];
}

/** Used by the store that sits on top of it. */
type Above = Pick<Store, 'refreshLines' | 'abandon' | 'rebuildOpen' | 'builder' | 'nodes' | 'packs'>;

export class Shared implements Index, PackSource {
  readonly statistics = { transactions: 0, entriesRead: 0, conflicts: 0 };
  /** The number that this server is registered under; 0: not at the moment. */
  server = 0;
  /** Goes up when everything that is not in the log yet has been given up. */
  epoch = 0;
  readonly cache: PackCache;
  /** Told of every record that is applied: garbage collection looks for roots. */
  onRecord: (key: string, value: unknown) => void = () => {};
  /** Called when the log names a collector, before what comes with that is applied. */
  onCollector: () => Promise<void> = async () => {};
  /** Blobs that trees use again while somebody collects garbage; null: nobody does. */
  reused: Set<string> | null = null;
  private above: Above | null = null;
  private readonly unpublished = new Map<string, Location>();
  private readonly numbers: number[] = [];
  private readonly uploads = new Map<number, Promise<Upload>>();
  private readonly transfers = new Slots(TRANSFERS_AT_ONCE);
  private queue: Item[] = [];
  private publishing = false;
  private turn: Promise<unknown> = Promise.resolve();
  /** Keys that entries of others have changed, by the newest of those entries. */
  private readonly changedAt = new Map<string, number>();
  private reserving = false;
  private pollTimer: NodeJS.Timeout | null = null;
  private saveTimer: NodeJS.Timeout | null = null;
  private closed = false;

  private constructor(
    readonly folder: string,
    readonly storeId: Buffer,
    readonly local: LmdbIndex,
    readonly reach: Reach,
    readonly log: BucketLog,
    readonly options: SharedOptions,
  ) {
    this.cache = new PackCache({
      folder,
      codec: options.codec,
      bytesMax: options.cacheBytes,
      packs: () => this.above!.packs,
      get: (name, range) => this.readRange(name, range),
      stillCounts: async (pack) => {
        await this.catchUp();
        return this.local.record(packKey(pack)) !== undefined;
      },
    });
  }

  // --- opening

  /** The id of the store in the bucket, which is made when the bucket is empty. */
  static identify(bucket: Bucket): Promise<Buffer> {
    return firstAnswer(bucket, () => storeIdOf(bucket));
  }

  static async open(folder: string, storeId: Buffer, options: SharedOptions): Promise<Shared> {
    const { bucket } = options;
    const hex = storeId.toString('hex');
    const reach = new Reach(bucket, options.log, options.waitMaxMs);
    const log = new BucketLog(reach, hex);
    const newIndex = () => new LmdbIndex(path.join(folder, 'index'), true);
    let local = newIndex();
    let known = local.record(LOCAL_KEY) as LocalRecord | undefined;
    const older = `what is in ${folder} is older than the log of the bucket reaches: it is fetched anew`;
    if (known !== undefined) {
      const there = await reach.request((it) => it.get(logObject(known!.sequence), { from: 0, to: 64 }));
      if (there?.toString('latin1') !== known.digits) {
        options.log('warn', older);
        known = undefined;
      }
    }
    // Nothing in it was ever acknowledged.
    fs.rmSync(path.join(folder, 'journal'), { recursive: true, force: true });
    fs.mkdirSync(path.join(folder, 'packs'), { recursive: true });
    let shared: Shared | null = null;
    if (known !== undefined) {
      shared = new Shared(folder, storeId, local, reach, log, options);
      log.sequence = known.sequence;
      log.digits = known.digits;
      shared.appliedSequence = known.sequence;
      try {
        await shared.catchUp();
      } catch (error) {
        if (!(error instanceof LeftBehindError)) throw error;
        options.log('warn', older);
        shared = null;
      }
    }
    if (shared === null) {
      await local.close();
      for (const name of ['index', 'packs']) fs.rmSync(path.join(folder, name), { recursive: true, force: true });
      fs.mkdirSync(path.join(folder, 'packs'));
      local = newIndex();
      shared = new Shared(folder, storeId, local, reach, new BucketLog(reach, hex), options);
      await shared.loadCheckpoint();
      await shared.catchUp();
    }
    await shared.fetchMissingNodes();
    const sizes = new Map<number, number>();
    const nodes = new Set<number>();
    for (const [pack, { kind, bytes }] of shared.packRecords()) {
      if (kind === 'nodes') nodes.add(pack);
      else sizes.set(pack, bytes);
    }
    shared.cache.load(sizes, nodes);
    await shared.register(known?.server ?? 0);
    return shared;
  }

  /** The store on top is there: from here on it learns of what others do. */
  attach(above: Above): void {
    this.above = above;
    this.pollTimer = setInterval(() => this.pollSoon(), this.options.pollMs ?? 1000).unref();
    this.saveTimer = setInterval(() => this.cache.save(), SAVE_MS).unref();
  }

  private polling = false;

  private pollSoon(): void {
    if (this.polling || this.closed) return;
    this.polling = true;
    this.catchUp()
      .catch((error: unknown) => this.trouble(error))
      .finally(() => {
        this.polling = false;
      });
  }

  private saidTrouble = '';

  /** Said once, until it is another. */
  private trouble(error: unknown): void {
    const message = (error as Error).message;
    if (this.closed || message === this.saidTrouble) return;
    this.saidTrouble = message;
    this.options.log('error', `the log of the bucket cannot be followed: ${message}`);
    if (error instanceof LeftBehindError && this.lost === null) this.leftBehind(error);
  }

  /** This server has lost its place in the log for good. */
  private lost: LeftBehindError | null = null;

  /** Nothing here can be believed any more: the next start begins with an empty disk. */
  private leftBehind(error: LeftBehindError): void {
    this.lost = error;
    this.epoch++;
    this.above?.abandon('this server has lost track of the store: it must be started again');
    const batch = emptyBatch();
    batch.records.push([LOCAL_KEY, undefined]);
    void this.local.apply(batch);
  }

  private async loadCheckpoint(): Promise<void> {
    const newest = (await this.reach.request((bucket) => bucket.list('checkpoint/'))).at(-1);
    if (newest === undefined) return;
    const sealed = await this.reach.request((bucket) => bucket.get(newest.name));
    if (sealed === null) throw new Failure(`the object ${newest.name} of the bucket has just been removed: try again`);
    const { head, records, changes } = await decodeCheckpoint(newest.name, sealed);
    if (head.store !== this.storeId.toString('hex')) throw new Failure(`${newest.name} belongs to another store`);
    const packs = records
      .filter(([key]) => key.startsWith('pack/'))
      .map(([key, value]) => [numberOf(key), value] as const);
    for (let first = 0; first < packs.length; first += 64) {
      const batch = emptyBatch();
      batch.blobs = await this.loadPacks(packs.slice(first, first + 64) as [number, PackRecord][]);
      await this.local.apply(batch);
    }
    const batch = emptyBatch();
    batch.records = records;
    batch.changes = changes;
    this.log.sequence = head.sequence;
    this.log.digits = head.entry;
    batch.records.push([LOCAL_KEY, this.localRecord()]);
    await this.applyHere(batch);
  }

  /** The log as far as this disk has it, which may be less than has been read. */
  appliedSequence = 0;

  private localRecord(): LocalRecord {
    const { sequence, digits } = this.log;
    return { version: 1, sequence, digits, server: this.server };
  }

  *packRecords(): Generator<[pack: number, record: PackRecord]> {
    for (const [key, value] of this.local.records('pack/')) yield [numberOf(key), value as PackRecord];
  }

  /** A pack of nodes whose file has gone: by hand, or with the power before it was on the disk. */
  private async fetchMissingNodes(): Promise<void> {
    const missing = [...this.packRecords()].filter(([pack, { kind, bytes }]) => {
      if (kind !== 'nodes') return false;
      const file = path.join(this.folder, packName(pack));
      return !fs.existsSync(file) || fs.statSync(file).size !== bytes;
    });
    if (missing.length > 0) await this.loadPacks(missing);
  }

  // --- Index

  blob(hash: Buffer): Location | null {
    return this.unpublished.get(hash.toString('latin1')) ?? this.local.blob(hash);
  }

  hasBlob(hash: Buffer): boolean {
    return this.unpublished.has(hash.toString('latin1')) || this.local.hasBlob(hash);
  }

  blobCount(): number {
    return this.local.blobCount() + this.unpublished.size;
  }

  record(key: string): unknown {
    return this.local.record(key);
  }

  records(prefix: string): [key: string, value: unknown][] {
    return this.local.records(prefix);
  }

  changes(key: string): Buffer | null {
    return this.local.changes(key);
  }

  apply(batch: IndexBatch): Promise<void> {
    if (batch.records.length === 0 && batch.changes.length === 0) {
      for (const [hash, location] of batch.blobs) {
        // The pack may have been published with another transaction's, blobs and all.
        if (this.above!.packs.made.has(location.pack)) this.unpublished.set(hash.toString('latin1'), location);
      }
      return Promise.resolve();
    }
    return new Promise((resolve, reject) => {
      this.queue.push({ batch, since: this.appliedSequence, epoch: batch.epoch ?? this.epoch, resolve, reject });
      void this.publish();
    });
  }

  async close(): Promise<void> {
    if (this.closed) return;
    this.closed = true;
    if (this.pollTimer !== null) clearInterval(this.pollTimer);
    if (this.saveTimer !== null) clearInterval(this.saveTimer);
    this.reach.stop();
    await this.turn.catch(() => {});
    this.cache.save();
    this.reach.bucket.close();
    await this.local.close();
  }

  /** The server is to stop: who waits for a bucket that does not answer has waited enough. */
  giveUpSoon(ms: number): void {
    setTimeout(() => this.reach.stop(), ms).unref();
  }

  // --- transactions

  private inTurn<T>(work: () => Promise<T>): Promise<T> {
    const mine = this.turn.then(() => {
      if (this.lost !== null) throw this.lost;
      return work();
    });
    this.turn = mine.catch(() => {});
    return mine;
  }

  private async publish(): Promise<void> {
    if (this.publishing) return;
    this.publishing = true;
    try {
      while (this.queue.length > 0) {
        // Most of the work, and nobody else has to wait for it; what goes wrong goes wrong again below.
        await this.upload().catch(() => {});
        await this.inTurn(async () => {
          // Taken now: what came while others had their turn goes along.
          const items = this.queue;
          this.queue = [];
          try {
            await this.publishItems(items);
          } catch (error) {
            for (const item of items) item.reject(error);
            if (error instanceof LeftBehindError) this.trouble(error);
          }
        });
      }
    } catch (error) {
      for (const item of this.queue.splice(0)) item.reject(error);
    } finally {
      this.publishing = false;
    }
  }

  private async publishItems(all: Item[]): Promise<void> {
    // Nodes are on this disk for good before the index says that they are there.
    const durable = this.above?.packs.sync();
    durable?.catch(() => {});
    const uploads = await this.upload();
    let items = all;
    // Before anybody is refused: what is refused may have been given back meanwhile.
    if (items.some((item) => this.conflictOf(item) !== null)) await this.readOn();
    for (;;) {
      items = items.filter((item) => {
        const conflict = this.conflictOf(item);
        if (conflict === null) return true;
        this.statistics.conflicts++;
        item.reject(conflict);
        return false;
      });
      if (items.length === 0) break;
      const records = new Map<string, unknown>();
      const changes = new Map<string, Buffer | undefined>();
      for (const { batch } of items) {
        for (const [key, value] of batch.records) {
          records.set(key, value);
          if (key.startsWith('line/')) this.keepOwner(records, key, value as LineRecord | undefined);
        }
        for (const [key, list] of batch.changes) changes.set(key, list);
      }
      for (const { pack, record } of uploads) records.set(packKey(pack), record);
      if (await this.append([...records], [...changes])) {
        await durable;
        await this.applied([...records], [...changes], uploads);
        for (const item of items) item.resolve();
        break;
      }
      await this.readOn();
    }
    if (this.log.sequence >= this.checkpointDue) await this.makeCheckpoint();
  }

  /** Why the item cannot be carried out as it is. */
  private conflictOf({ batch, since, epoch }: Item): ConflictError | null {
    if (epoch !== this.epoch)
      return new ConflictError(
        'another server has taken over, or collected garbage: what was not committed must be done again',
        true,
      );
    if (this.server === 0 || this.local.record(serverKey(this.server)) === undefined)
      return new ConflictError('this server is not registered with the store at the moment: try again', true);
    for (const [key, value] of batch.records) {
      if ((this.changedAt.get(key) ?? 0) > since)
        return new ConflictError('another server has changed the same at this moment: try again', true);
      const line = key.startsWith('line/')
        ? ((value ?? this.local.record(key)) as LineRecord | undefined)?.id
        : key.startsWith('owner/')
          ? Number.parseInt(key.slice(6), 16)
          : undefined;
      if (line !== undefined && !this.mayOwn(line)) return this.ownedElsewhere(line);
    }
    return null;
  }

  /** A line's owner comes and goes with what is done to it. */
  private keepOwner(records: Map<string, unknown>, key: string, record: LineRecord | undefined): void {
    const id = (record ?? (this.local.record(key) as LineRecord | undefined))?.id;
    if (id === undefined) return;
    if (record !== undefined) {
      if (!this.owns(id) || records.has(ownerKey(id))) records.set(ownerKey(id), this.me());
    } else if (
      ![...records].some(([other, it]) => other.startsWith('line/') && (it as LineRecord | undefined)?.id === id)
    ) {
      records.set(ownerKey(id), undefined);
    }
  }

  private async append(records: Change[], changes: [string, Buffer | undefined][]): Promise<boolean> {
    return this.log.append({
      server: this.server,
      timeMs: this.nowMs(),
      records: records.map(([key, value]) => [key, value ?? null]),
      changes: changes.map(([key, list]) => [key, list?.toString('base64') ?? null]),
    });
  }

  /** An entry of our own is in the log: the same becomes true here. */
  private async applied(records: Change[], changes: [string, Buffer | undefined][], uploads: Upload[]): Promise<void> {
    this.statistics.transactions++;
    const batch = emptyBatch();
    batch.records = [...records, [LOCAL_KEY, this.localRecord()]];
    batch.changes = changes;
    for (const { pack, groups } of uploads) for (const blob of locationsOf(pack, groups)) batch.blobs.push(blob);
    const retired = records
      .filter(([key, value]) => key.startsWith('pack/') && value == null)
      .map(([key]) => numberOf(key));
    await this.applyHere(batch, () => this.removeBlobsOf(retired, batch));
    for (const { pack, record } of uploads) {
      this.uploads.delete(pack);
      this.above?.packs.made.delete(pack);
      if (record.kind === 'blocks') this.cache.add(pack, record.bytes, [0, record.bytes]);
    }
    for (const [hash, location] of this.unpublished) {
      if (this.above?.packs.made.has(location.pack) !== true) this.unpublished.delete(hash);
    }
    this.forgetPacks(retired);
    for (const [key, value] of records) this.onRecord(key, value);
  }

  /** When this disk cannot take it, the log is read again from where this disk stands. */
  private async applyHere(batch: IndexBatch, prepare: () => Promise<void> = async () => {}): Promise<void> {
    try {
      await prepare();
      await this.local.apply(batch);
      this.appliedSequence = this.log.sequence;
    } catch (error) {
      const { sequence, digits } = (this.local.record(LOCAL_KEY) as LocalRecord | undefined) ?? {
        sequence: 0,
        digits: '',
      };
      this.log.sequence = sequence;
      this.log.digits = digits;
      throw error;
    }
  }

  /** A transaction of the machinery itself: `make` looks at what is true now, null: there is nothing to do. */
  transact(make: () => Change[] | null): Promise<boolean> {
    return this.inTurn(async () => {
      for (;;) {
        const records = make();
        if (records === null) return false;
        if (await this.append(records, [])) {
          await this.applied(records, [], []);
          return true;
        }
        await this.readOn();
      }
    });
  }

  /** Also with packs that were made meanwhile, and only if nobody has done anything since `sequence`; true when it was made. */
  publishIfFirst(records: Change[], sequence: number): Promise<boolean> {
    return this.inTurn(async () => {
      const uploads = await this.upload();
      if (this.log.sequence !== sequence || this.local.record(serverKey(this.server)) === undefined) return false;
      const all: Change[] = [...records, ...uploads.map(({ pack, record }): Change => [packKey(pack), record])];
      if (!(await this.append(all, []))) {
        await this.readOn();
        return false;
      }
      await this.applied(all, [], uploads);
      return true;
    });
  }

  /** Reads the log to its end. */
  catchUp(): Promise<void> {
    return this.inTurn(() => this.readOn());
  }

  private async readOn(): Promise<void> {
    const entries: Entry[] = [];
    try {
      for (let entry = await this.log.next(); entry !== null; entry = await this.log.next()) {
        // By itself: what is noted from a collection's beginning to its end must not be lost to either before what comes between is judged.
        const isBoundary = entry.records.some(([key]) => key === COLLECTOR_KEY);
        if (isBoundary && entries.length > 0) await this.applyEntries(entries.splice(0));
        entries.push(entry);
        if (isBoundary || entries.length === 64) await this.applyEntries(entries.splice(0));
      }
    } finally {
      if (entries.length > 0) await this.applyEntries(entries);
    }
    this.saidTrouble = '';
    for (const pack of this.missing) {
      // One that a later entry has retired may well be gone.
      if (this.local.record(packKey(pack)) !== undefined)
        this.options.log('error', `the object ${packObject(pack)} of the bucket is missing`);
    }
    this.missing.clear();
  }

  /** Packs that the log names and the bucket does not have. */
  private readonly missing = new Set<number>();

  /** What others have done. */
  private async applyEntries(entries: Entry[]): Promise<void> {
    this.statistics.entriesRead += entries.length;
    const records = new Map<string, unknown>();
    const batch = emptyBatch();
    for (const entry of entries) {
      for (const [key, value] of entry.records) {
        records.set(key, value ?? undefined);
        this.changedAt.set(key, entry.sequence);
      }
      for (const [key, list] of entry.changes)
        batch.changes.push([key, list === null ? undefined : Buffer.from(list, 'base64')]);
    }
    const collecting = records.get(COLLECTOR_KEY) !== undefined;
    // Before anything that is used again from here on could be taken away.
    if (collecting) await this.onCollector();
    batch.records = [...records, [LOCAL_KEY, this.localRecord()]];
    const packs = batch.records.filter(([key]) => key.startsWith('pack/'));
    const added = packs
      .filter(([, value]) => value !== undefined)
      .map(([key, value]) => [numberOf(key), value] as [number, PackRecord]);
    const retired = packs.filter(([, value]) => value === undefined).map(([key]) => numberOf(key));
    await this.applyHere(batch, async () => {
      batch.blobs = await this.loadPacks(added);
      await this.removeBlobsOf(retired, batch);
    });
    for (const [pack, { kind, bytes }] of added) {
      if (kind === 'blocks' && this.above !== null) this.cache.add(pack, bytes, []);
    }
    this.forgetPacks(retired);
    for (const [key, value] of records) this.onRecord(key, value);
    if (this.queue.length === 0 && !this.publishing) this.changedAt.clear();
    const isLost = batch.retiredBlobs?.some(
      ([hash]) => this.reused?.has(hash.toString('latin1')) === true && !this.local.hasBlob(hash),
    );
    if (isLost === true) {
      this.epoch++;
      this.options.log('info', 'another server has collected garbage that was just used again: it is stored again');
      this.above?.rebuildOpen();
    }
    if (this.server !== 0 && records.has(serverKey(this.server)) && records.get(serverKey(this.server)) === undefined)
      this.expelled();
    this.above?.refreshLines(records.keys());
  }

  /** Nothing that is not in the log counts any more. */
  private loseOpen(reason: string): void {
    this.epoch++;
    this.options.log('error', `${reason}: what is not committed yet is discarded, and its connections end`);
    this.above?.abandon(reason);
  }

  private expelled(): void {
    const old = this.server;
    this.server = 0;
    this.numbers.length = 0;
    this.loseOpen('the other servers have not heard of this one and gone on without it');
    const { above } = this;
    const again = async () => {
      await above?.builder.withBlobLock(async () => {
        this.unpublished.clear();
        this.uploads.clear();
        above.packs.seal();
        for (const pack of [...above.packs.made]) above.packs.remove(pack);
      });
      await this.register(old);
      this.options.log('info', `registered again, as server ${this.server}`);
    };
    again().catch((error: unknown) => this.trouble(error));
  }

  // --- who is who

  private me(): OwnerRecord {
    return { version: 1, server: this.server };
  }

  nowMs(): number {
    return this.options.nowMs?.() ?? Date.now();
  }

  /** Under a new number, with pack numbers of its own; `before`: an earlier registration of this folder. */
  private async register(before: number): Promise<void> {
    let server = 0;
    let numbers: [number, number] = [0, 0];
    await this.transact(() => {
      const next = (this.local.record(BUCKET_KEY) as NumbersRecord | undefined) ?? {
        version: 1,
        nextServer: 1,
        nextPack: 1,
      };
      server = next.nextServer;
      numbers = [next.nextPack, next.nextPack + PACK_NUMBERS];
      const record: ServerRecord = { version: 1, name: this.options.name, timeMs: this.nowMs(), packs: [numbers] };
      return [
        ...(before > 0 && before !== server ? this.removalOf(before) : []),
        [BUCKET_KEY, { version: 1, nextServer: server + 1, nextPack: numbers[1] }],
        [serverKey(server), record],
      ];
    });
    this.server = server;
    for (let number = numbers[0]; number < numbers[1]; number++) this.numbers.push(number);
  }

  /** What makes a server one that has been. */
  removalOf(server: number): Change[] {
    if (this.local.record(serverKey(server)) === undefined) return [];
    const owned = this.local.records('owner/').filter(([, value]) => (value as OwnerRecord).server === server);
    return [[serverKey(server), undefined], ...owned.map(([key]): Change => [key, undefined])];
  }

  owner(line: number): number {
    const record = this.local.record(ownerKey(line)) as OwnerRecord | undefined;
    if (record === undefined || this.local.record(serverKey(record.server)) === undefined) return 0;
    return record.server;
  }

  /** Objects of packs that no longer count are waiting to be deleted. */
  get hasRetired(): boolean {
    return this.local.records('retired/').length > 0;
  }

  owns(line: number): boolean {
    return this.server !== 0 && this.owner(line) === this.server;
  }

  mayOwn(line: number): boolean {
    const owner = this.owner(line);
    return owner === 0 || owner === this.server;
  }

  private ownedElsewhere(line: number): ConflictError {
    const server = this.owner(line);
    const name = (this.local.record(serverKey(server)) as ServerRecord | undefined)?.name ?? '';
    return new ConflictError(`the image is being written through server ${server} (${name})`, false);
  }

  /** Makes this server the one that writes to the line; a ConflictError says who is. */
  async claim(line: number): Promise<void> {
    if (this.owns(line)) return;
    if (!this.mayOwn(line)) await this.catchUp();
    if (!this.mayOwn(line)) throw this.ownedElsewhere(line);
    const batch = emptyBatch();
    batch.records.push([ownerKey(line), this.me()]);
    await this.apply(batch);
  }

  async release(lines: number[]): Promise<void> {
    const batch = emptyBatch();
    for (const line of lines) batch.records.push([ownerKey(line), undefined]);
    await this.apply(batch);
  }

  // --- packs

  takeNumber(): number {
    const number = this.numbers.shift();
    if (number === undefined) throw new Error('this server has no pack numbers at the moment: see its log');
    if (this.numbers.length < PACK_NUMBERS / 4) this.reserveSoon();
    return number;
  }

  private reserveSoon(): void {
    if (this.reserving) return;
    this.reserving = true;
    let range: [number, number] = [0, 0];
    const { server } = this;
    this.transact(() => {
      const next = this.local.record(BUCKET_KEY) as NumbersRecord;
      const record = this.local.record(serverKey(server)) as ServerRecord | undefined;
      if (record === undefined) return null;
      range = [next.nextPack, next.nextPack + PACK_NUMBERS];
      return [
        [BUCKET_KEY, { ...next, nextPack: range[1] }],
        // Numbers that were used up long ago need not be remembered.
        [serverKey(server), { ...record, packs: [...record.packs.slice(-3), range] }],
      ];
    })
      .then((done) => {
        if (done && server === this.server) for (let at = range[0]; at < range[1]; at++) this.numbers.push(at);
      })
      .catch((error: unknown) => this.trouble(error))
      .finally(() => {
        this.reserving = false;
      });
  }

  isAbsent(pack: number, from: number, length: number): boolean {
    return this.cache.isAbsent(pack, from, length);
  }

  fetch(pieces: Piece[]): Promise<void> {
    return this.cache.fetch(pieces);
  }

  distrust(pack: number): boolean {
    return this.cache.distrust(pack);
  }

  private readRange(name: string, range: { from: number; to: number }): Promise<Buffer | null> {
    // When it is known to be away, a reader need not find that out again.
    const budget = Math.min(this.options.readMs ?? READ_MS, this.reach.unreachableForMs > 1000 ? 1000 : READ_MS);
    return this.reach.request((bucket) => bucket.get(name, range), budget);
  }

  /** What this server has made and the bucket does not have yet is brought there; no entry names it yet. */
  private async upload(): Promise<Upload[]> {
    const { above } = this;
    if (above === null) return [];
    above.packs.seal();
    return Promise.all([...above.packs.made].map((pack) => this.uploadOf(pack)));
  }

  /** Nothing more will be written to the pack: it can be on its way while the next one is filled. */
  isFull(pack: number): void {
    void this.uploadOf(pack);
  }

  private uploadOf(pack: number): Promise<Upload> {
    let job = this.uploads.get(pack);
    if (job === undefined) {
      job = this.transfers.run(() => this.uploadNow(pack));
      this.uploads.set(pack, job);
      // Who needs it asks again.
      job.catch(() => this.uploads.delete(pack));
    }
    return job;
  }

  private async uploadNow(pack: number): Promise<Upload> {
    const bytes = await fs.promises.readFile(path.join(this.folder, packName(pack)));
    const groups = groupsOfPack(bytes);
    const record: PackRecord = {
      version: 1,
      kind: kindOf(groups),
      bytes: bytes.length,
      sha256: sha256(bytes).toString('hex'),
      blobs: groups.reduce((sum, { blobs }) => sum + blobs.length, 0),
    };
    const puts = [this.reach.request((bucket) => bucket.put(packObject(pack), bytes))];
    if (hasDirectory(record)) {
      const directory = encodeDirectory(bytes);
      puts.push(this.reach.request((bucket) => bucket.put(directoryObject(pack), directory)));
    }
    await Promise.all(puts);
    return { pack, record, groups };
  }

  /** Packs of others: nodes come here, of blocks what is in them is noted. */
  private async loadPacks(packs: [number, PackRecord][]): Promise<IndexBatch['blobs']> {
    const blobs: IndexBatch['blobs'] = [];
    await inParallel(packs, async ([pack, record]) => {
      const groups = await this.groupsOf(pack, record, true);
      for (const blob of locationsOf(pack, groups)) blobs.push(blob);
    });
    return blobs;
  }

  /**
   * The groups of a pack that is in the bucket; `keep`: nodes come to this disk. What is damaged there is left out: whoever needs it will
   * miss it.
   */
  async groupsOf(pack: number, record: PackRecord, keep: boolean): Promise<GroupHead[]> {
    const file = path.join(this.folder, packName(pack));
    if (record.kind === 'nodes' && !keep && fs.existsSync(file)) return groupsOfPack(fs.readFileSync(file));
    if (hasDirectory(record)) {
      const name = directoryObject(pack);
      const sealed = await this.reach.request((bucket) => bucket.get(name));
      if (sealed !== null) {
        try {
          return decodeDirectory(name, sealed);
        } catch (error) {
          // All that is in it is in the pack too.
          this.options.log('error', (error as Error).message);
        }
      }
    }
    const name = packObject(pack);
    const bytes = await this.reach.request((bucket) => bucket.get(name));
    if (bytes === null) {
      this.missing.add(pack);
      return [];
    }
    const groups = groupsOfPack(bytes);
    const whole: GroupHead[] = [];
    for (const group of groups) {
      if (await isGroupWhole(bytes.subarray(group.offset, group.offset + group.length), this.options.codec))
        whole.push(group);
      else this.options.log('error', `the object ${name} of the bucket is damaged in the group at ${group.offset}`);
    }
    const end = groups.at(-1);
    if (bytes.length !== record.bytes || (end !== undefined && end.offset + end.length !== bytes.length))
      this.options.log('error', `the object ${name} of the bucket is damaged: it is cut short`);
    if (keep && record.kind === 'nodes') this.keepFile(pack, bytes);
    return record.kind === 'nodes' ? whole : groups;
  }

  private keepFile(pack: number, bytes: Buffer): void {
    const file = path.join(this.folder, packName(pack));
    const fd = fs.openSync(`${file}.new`, 'w');
    fs.writeSync(fd, bytes);
    fs.fsyncSync(fd);
    fs.closeSync(fd);
    fs.renameSync(`${file}.new`, file);
  }

  /** All that is in packs that no longer count. */
  private async removeBlobsOf(retired: number[], batch: IndexBatch): Promise<void> {
    const blobs: [Buffer, number][] = [];
    const unclear = new Set<number>();
    batch.retiredBlobs = blobs;
    await inParallel(retired, async (pack) => {
      const record = this.local.record(packKey(pack)) as PackRecord | undefined;
      if (record === undefined) return;
      const found = [...locationsOf(pack, await this.groupsOf(pack, record, false))];
      // Its objects may have been deleted already, when this server is late, or be damaged.
      if (found.length < record.blobs) unclear.add(pack);
      else for (const [hash] of found) blobs.push([hash, pack]);
    });
    if (unclear.size > 0) blobs.push(...this.local.blobsIn(unclear));
  }

  private forgetPacks(retired: number[]): void {
    if (retired.length === 0) return;
    this.above?.nodes.forget();
    for (const pack of retired) {
      this.cache.forget(pack);
      this.above?.packs.discard(pack);
      fs.rmSync(path.join(this.folder, packName(pack)), { force: true });
    }
  }

  // --- checkpoints

  private checkpointDue = 0;

  /** All that the log has said, for those who come later; unless another server has just made one. */
  private async makeCheckpoint(): Promise<void> {
    const { sequence, digits } = this.log;
    const every = this.options.checkpointEvery ?? CHECKPOINT_EVERY;
    const newest = (await this.reach.request((bucket) => bucket.list('checkpoint/'))).at(-1);
    const last = newest === undefined ? 0 : parseCheckpointName(newest.name).sequence;
    this.checkpointDue = last + every;
    if (sequence < this.checkpointDue) return;
    this.checkpointDue = sequence + every;
    const lines: unknown[][] = [];
    for (const [key, value] of this.local.records('')) {
      if (key === LOCAL_KEY) continue;
      lines.push([key, value]);
      const list = key.startsWith('generation/') ? this.local.changes(key) : null;
      if (list !== null) lines.push(['changes', key, list.toString('base64')]);
    }
    const head = { version: 1 as const, store: this.storeId.toString('hex'), sequence, entry: digits };
    const sealed = await encodeCheckpoint(head, lines);
    await this.reach.request((bucket) => bucket.create(checkpointObject(sequence, digits), sealed));
  }
}

function hasDirectory({ kind, bytes }: PackRecord): boolean {
  return kind === 'blocks' && bytes > DIRECTORY_PACK_MIN;
}

/** So many at a time. */
class Slots {
  private used = 0;
  private readonly waiting: (() => void)[] = [];

  constructor(private readonly most: number) {}

  async run<T>(work: () => Promise<T>): Promise<T> {
    while (this.used >= this.most) await new Promise<void>((resolve) => this.waiting.push(resolve));
    this.used++;
    try {
      return await work();
    } finally {
      this.used--;
      this.waiting.shift()?.();
    }
  }
}

export async function inParallel<T>(all: T[], work: (it: T) => Promise<void>): Promise<void> {
  const rest = [...all];
  const worker = async () => {
    for (let it = rest.shift(); it !== undefined; it = rest.shift()) await work(it);
  };
  await Promise.all(Array.from({ length: TRANSFERS_AT_ONCE }, worker));
}

async function storeIdOf(bucket: Bucket): Promise<Buffer> {
  let bytes = await bucket.get(STORE_OBJECT);
  if (bytes === null) {
    const some = await bucket.list('', '', 1);
    if (some.length > 0)
      throw new Failure(`${bucket.url} is not an image store and not empty (it has ${some[0].name})`);
    const id = crypto.randomBytes(16).toString('hex');
    await bucket.create(STORE_OBJECT, Buffer.from(`${JSON.stringify({ format: FORMAT, version: 1, id })}\n`));
    bytes = (await bucket.get(STORE_OBJECT))!;
  }
  let record: { format?: unknown; version?: unknown; id?: unknown };
  try {
    record = JSON.parse(bytes.toString());
  } catch {
    throw new Failure(`the object ${STORE_OBJECT} of ${bucket.url} is damaged`);
  }
  if (record.format !== FORMAT) throw new Failure(`${bucket.url} is not an image store`);
  if (record.version !== 1) throw new Failure(`${bucket.url} has version ${record.version}, this program knows 1`);
  if (typeof record.id !== 'string' || !/^[0-9a-f]{32}$/.test(record.id))
    throw new Failure(`${bucket.url} has no valid id`);
  return Buffer.from(record.id, 'hex');
}
