// The store's index: where each blob lies, and the small records (lines, generations, tags). LMDB on a disk, a map in a simulation.

import { type Database, open, type RootDatabase } from 'lmdb';

/** Where a blob lies; 20 bytes in the index (SPEC.md "Index"). */
export interface Location {
  pack: number;
  /** Of the group in the pack, and of the whole group. */
  groupOffset: number;
  groupLength: number;
  /** Of the blob in the group's decoded payload. */
  inner: number;
  length: number;
  /** Blobs in the group, and which one this is. */
  count: number;
  ordinal: number;
  codec: number;
}

export const LOCATION_SIZE = 20;

export function encodeLocation(location: Location): Buffer {
  const bytes = Buffer.alloc(LOCATION_SIZE);
  bytes.writeUInt32LE(location.pack, 0);
  bytes.writeUInt32LE(location.groupOffset, 4);
  bytes.writeUInt32LE(location.groupLength, 8);
  bytes.writeUInt32LE(location.inner, 12);
  bytes.writeUInt16LE(location.length, 16);
  bytes[18] = location.ordinal | (location.codec << 6);
  bytes[19] = location.count;
  return bytes;
}

export function decodeLocation(bytes: Buffer): Location {
  return {
    pack: bytes.readUInt32LE(0),
    groupOffset: bytes.readUInt32LE(4),
    groupLength: bytes.readUInt32LE(8),
    inner: bytes.readUInt32LE(12),
    length: bytes.readUInt16LE(16),
    ordinal: bytes[18] & 63,
    codec: bytes[18] >> 6,
    count: bytes[19],
  };
}

/** Changes that become visible and durable together. */
export interface IndexBatch {
  blobs: [hash: Buffer, location: Location][];
  removedBlobs: Buffer[];
  /** Values are JSON; undefined removes. */
  records: [key: string, value: unknown][];
  /** Change lists, by their generation's key; undefined removes. */
  changes: [key: string, list: Buffer | undefined][];
  /** The packs no longer count, of a store in a bucket: where a blob lies elsewhere too, that is where it lies now. */
  retiredBlobs?: [hash: Buffer, pack: number][];
  /** Shared.epoch when what the batch builds on was read, where that is earlier than apply(). */
  epoch?: number;
}

export function emptyBatch(): IndexBatch {
  return { blobs: [], removedBlobs: [], records: [], changes: [] };
}

export interface Index {
  blob(hash: Buffer): Location | null;
  hasBlob(hash: Buffer): boolean;
  blobCount(): number;
  record(key: string): unknown;
  /** Records whose key begins with `prefix`, in the order of their keys. */
  records(prefix: string): [key: string, value: unknown][];
  /** The change list of the generation that has the key. */
  changes(key: string): Buffer | null;
  /** All or nothing, durable when it resolves. */
  apply(batch: IndexBatch): Promise<void>;
  close(): Promise<void>;
}

export class LmdbIndex implements Index {
  private readonly root: RootDatabase<Buffer, Buffer>;
  private readonly blobs: Database<Buffer, Buffer>;
  private readonly small: Database<Buffer, string>;
  private readonly lists: Database<Buffer, string>;
  /** Of a cache: other places of blobs that several servers have stored, by hash and pack. Servers need not agree on which is the first. */
  private readonly copies: Database<Buffer, Buffer> | null;

  /** `isCache`: what is in it can be had again, so that a commit is over when it is visible. */
  constructor(
    folder: string,
    private readonly isCache = false,
  ) {
    this.root = open<Buffer, Buffer>({
      path: folder,
      noSubdir: false,
      keyEncoding: 'binary',
      encoding: 'binary',
      maxDbs: 5,
      // A commit is over when it is durable, not before. A cache may lose the newest ones with the power, but is never damaged by that.
      overlappingSync: isCache,
    });
    this.blobs = this.root.openDB<Buffer, Buffer>({ name: 'blobs', keyEncoding: 'binary', encoding: 'binary' });
    this.small = this.root.openDB<Buffer, string>({ name: 'records', encoding: 'binary' });
    this.lists = this.root.openDB<Buffer, string>({ name: 'changes', encoding: 'binary' });
    this.copies = isCache
      ? this.root.openDB<Buffer, Buffer>({ name: 'copies', keyEncoding: 'binary', encoding: 'binary' })
      : null;
  }

  blob(hash: Buffer): Location | null {
    const bytes = this.blobs.getBinaryFast(hash);
    return bytes === undefined ? null : decodeLocation(bytes as unknown as Buffer);
  }

  hasBlob(hash: Buffer): boolean {
    return this.blobs.doesExist(hash);
  }

  blobCount(): number {
    return (this.blobs.getStats() as { entryCount: number }).entryCount;
  }

  record(key: string): unknown {
    const bytes = this.small.get(key);
    return bytes === undefined ? undefined : JSON.parse(bytes.toString());
  }

  records(prefix: string): [key: string, value: unknown][] {
    const found: [string, unknown][] = [];
    for (const { key, value } of this.small.getRange({ start: prefix, end: `${prefix}\uffff` })) {
      found.push([key, JSON.parse(value.toString())]);
    }
    return found;
  }

  changes(key: string): Buffer | null {
    return this.lists.get(key) ?? null;
  }

  async apply(batch: IndexBatch): Promise<void> {
    await this.root.transaction(() => {
      for (const [hash, location] of batch.blobs) {
        if (this.copies !== null) this.keepCopy(this.copies, hash, location);
        this.blobs.put(hash, encodeLocation(location));
      }
      for (const hash of batch.removedBlobs) this.blobs.remove(hash);
      if (this.copies !== null)
        for (const [hash, pack] of batch.retiredBlobs ?? []) this.retire(this.copies, hash, pack);
      for (const [key, value] of batch.records) {
        if (value === undefined) this.small.remove(key);
        else this.small.put(key, Buffer.from(JSON.stringify(value)));
      }
      for (const [key, list] of batch.changes) {
        if (list === undefined) this.lists.remove(key);
        else this.lists.put(key, list);
      }
    });
    if (!this.isCache) await this.root.flushed;
  }

  /** All blobs of these packs, copies too; looks at the whole index. */
  blobsIn(packs: Set<number>): [hash: Buffer, pack: number][] {
    const found: [Buffer, number][] = [];
    for (const { key, value } of this.blobs.getRange({})) {
      const { pack } = decodeLocation(value);
      if (packs.has(pack)) found.push([Buffer.from(key), pack]);
    }
    for (const { key } of this.copies?.getRange({}) ?? []) {
      const pack = Buffer.from(key).readUInt32BE(32);
      if (packs.has(pack)) found.push([Buffer.from(key.subarray(0, 32)), pack]);
    }
    return found;
  }

  /** The blob lies in another pack too. */
  private keepCopy(copies: Database<Buffer, Buffer>, hash: Buffer, location: Location): void {
    const before = this.blob(hash);
    if (before === null || before.pack === location.pack) return;
    copies.put(copyKey(hash, before.pack), encodeLocation(before));
    copies.remove(copyKey(hash, location.pack));
  }

  private retire(copies: Database<Buffer, Buffer>, hash: Buffer, pack: number): void {
    if (this.blob(hash)?.pack !== pack) {
      copies.remove(copyKey(hash, pack));
      return;
    }
    const range = { start: copyKey(hash, 0), end: copyKey(hash, 0xffff_ffff), limit: 1 };
    for (const { key, value } of copies.getRange(range)) {
      this.blobs.put(hash, Buffer.from(value));
      copies.remove(Buffer.from(key));
      return;
    }
    this.blobs.remove(hash);
  }

  async close(): Promise<void> {
    await this.root.close();
  }
}

function copyKey(hash: Buffer, pack: number): Buffer {
  const key = Buffer.alloc(36);
  hash.copy(key);
  key.writeUInt32BE(pack, 32);
  return key;
}

/** The same in memory. */
export class MemoryIndex implements Index {
  readonly blobsByHash = new Map<string, Location>();
  readonly recordsByKey = new Map<string, string>();
  readonly changesByKey = new Map<string, Buffer>();

  blob(hash: Buffer): Location | null {
    return this.blobsByHash.get(hash.toString('latin1')) ?? null;
  }

  hasBlob(hash: Buffer): boolean {
    return this.blobsByHash.has(hash.toString('latin1'));
  }

  blobCount(): number {
    return this.blobsByHash.size;
  }

  record(key: string): unknown {
    const text = this.recordsByKey.get(key);
    return text === undefined ? undefined : JSON.parse(text);
  }

  records(prefix: string): [key: string, value: unknown][] {
    const keys = [...this.recordsByKey.keys()].filter((key) => key.startsWith(prefix)).sort();
    return keys.map((key) => [key, JSON.parse(this.recordsByKey.get(key)!)]);
  }

  changes(key: string): Buffer | null {
    return this.changesByKey.get(key) ?? null;
  }

  apply(batch: IndexBatch): Promise<void> {
    for (const [hash, location] of batch.blobs) this.blobsByHash.set(hash.toString('latin1'), location);
    for (const hash of batch.removedBlobs) this.blobsByHash.delete(hash.toString('latin1'));
    for (const [key, value] of batch.records) {
      if (value === undefined) this.recordsByKey.delete(key);
      else this.recordsByKey.set(key, JSON.stringify(value));
    }
    for (const [key, list] of batch.changes) {
      if (list === undefined) this.changesByKey.delete(key);
      else this.changesByKey.set(key, list);
    }
    return Promise.resolve();
  }

  close(): Promise<void> {
    return Promise.resolve();
  }
}
