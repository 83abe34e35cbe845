// Trees from another store: takes blocks and nodes, checks every one, and keeps what has come so far from garbage collection.
//
// Children come before their parents, so a node that is in the store has everything below it. That is what makes an exchange of only
// the missing nodes possible, and what lets one that was cut short go on: what is there is not asked for again.

import zlib from 'node:zlib';
import { Failure } from '../failure.js';
import { CARDS_MAX, type CardState } from './cards.js';
import { BlobWriter } from './digest.js';
import { type GenerationRecord, idOf } from './line.js';
import { isTag } from './names.js';
import { checkBlob, DamagedError } from './pack.js';
import { sha256 } from './sha256.js';
import type { Store } from './store.js';
import { BLOCK_SIZE, decodeNode, encodeNode, FANOUT, isZeroBlock, isZeroHash, levelsOf, type Node } from './tree.js';

/** Where blocks stand among the levels of the tree. */
export const BLOCK_LEVEL = -1;

export class BlobSink {
  /** What has no parent here yet, by hash. */
  private readonly pins = new Map<string, Buffer>();

  constructor(private readonly store: Store) {
    store.sinks.add(this);
  }

  close(): void {
    this.store.sinks.delete(this);
    this.pins.clear();
  }

  private spoilt: string | null = null;

  /** What it counts on may be gone: nothing more is taken. */
  spoil(reason: string): void {
    this.spoilt = reason;
  }

  private checkSpoilt(): void {
    if (this.spoilt !== null) throw new Failure(`${this.spoilt}: give the command again`);
  }

  pinned(): Iterable<Buffer> {
    return this.pins.values();
  }

  /** Which of them, with all that is below, are in the store? Those stay there while this sink is open. */
  have(hashes: Buffer[]): Promise<boolean[]> {
    this.checkSpoilt();
    return this.store.builder.withBlobLock(async () =>
      hashes.map((hash) => {
        if (isZeroHash(hash)) return true;
        if (!this.store.index.hasBlob(hash)) return false;
        this.store.builder.onReuse(hash);
        this.pin(hash);
        return true;
      }),
    );
  }

  /** Stores blocks (level -1) or nodes; durable when it resolves. Throws a Failure for what does not belong into a tree. */
  put(level: number, blobs: Buffer[]): Promise<void> {
    const { store } = this;
    return store.builder.withBlobLock(async () => {
      this.checkSpoilt();
      const nodes = blobs.map((bytes) => (level === BLOCK_LEVEL ? checkBlock(bytes) : this.checkNode(level, bytes)));
      const writer = new BlobWriter(store.nodes, (hash) => store.builder.onReuse(hash), store.builder.statistics);
      try {
        for (const bytes of blobs) {
          const hash = sha256(bytes);
          writer.add(hash, bytes);
          this.pin(hash);
          await writer.room();
        }
        await writer.finish();
        await store.index.apply(writer.batch);
      } finally {
        store.nodes.fresh.clear();
      }
      // Their parents keep them from now on.
      for (const node of nodes) {
        if (node === null) continue;
        for (let child = 0; child < FANOUT; child++) this.pins.delete(node.child(child).toString('latin1'));
      }
    });
  }

  private pin(hash: Buffer): void {
    this.pins.set(hash.toString('latin1'), Buffer.from(hash));
  }

  private checkNode(level: number, bytes: Buffer): Node {
    let node: Node;
    try {
      node = decodeNode(bytes);
    } catch (error) {
      throw new Failure(`what was sent is no tree node: ${(error as Error).message}`);
    }
    if (node.level !== level || !encodeNode(level, node.hashes).equals(bytes))
      throw new Failure(`what was sent is no proper tree node of level ${level}`);
    for (let child = 0; child < FANOUT; child++) {
      const hash = node.child(child);
      if (isZeroHash(hash)) continue;
      const location = this.store.index.blob(hash);
      if (location === null) throw new Failure(`a tree node came before its child ${hash.toString('hex')}`);
      const fits =
        level === 0
          ? location.length === BLOCK_SIZE
          : location.length !== BLOCK_SIZE && this.store.nodes.get(hash).level === level - 1;
      if (!fits)
        throw new Failure(`a tree node of level ${level} has ${hash.toString('hex')} for a child, which is none`);
    }
    return node;
  }
}

function checkBlock(bytes: Buffer): null {
  if (bytes.length !== BLOCK_SIZE) throw new Failure(`a block of ${bytes.length} bytes was sent`);
  if (isZeroBlock(bytes)) throw new Failure('a block of zeroes was sent: there is no such block');
  return null;
}

/** Is this hash the whole tree of an image of this size? */
export function checkRoot(store: Store, root: Buffer, size: number): void {
  if (isZeroHash(root)) return;
  const location = store.index.blob(root);
  if (location === null || location.length === BLOCK_SIZE || store.nodes.get(root).level !== levelsOf(size) - 1)
    throw new Failure(`${root.toString('hex')} is not the root of a tree of ${size} bytes here`);
}

/** A block's or node's bytes, checked against its hash. */
export async function blobOf(store: Store, hash: Buffer): Promise<Buffer> {
  for (let attempt = 0; ; attempt++) {
    const location = store.index.blob(hash);
    if (location === null) throw new DamagedError(`blob ${hash.toString('hex')} is missing`);
    try {
      const bytes = await store.packs.blob(hash, location);
      checkBlob(hash, bytes, location);
      return bytes;
    } catch (error) {
      // Garbage collection may have moved it between the look-up and the read.
      if (attempt > 0) throw error;
    }
  }
}

/** The hash at a place of a tree: `level` -1 for blocks. */
export function hashAt(store: Store, root: Buffer, size: number, level: number, index: number): Buffer | null {
  const levels = levelsOf(size);
  if (level >= levels || level < BLOCK_LEVEL || index >= FANOUT ** (levels - 1 - level)) return null;
  let hash = root;
  for (let at = levels - 1; at > level && !isZeroHash(hash); at--) {
    const child = Math.floor(index / FANOUT ** (at - 1 - level)) % FANOUT;
    hash = Buffer.from(store.nodes.get(hash).child(child));
  }
  return hash;
}

// Blobs on the wire (SPEC.md "Replication").

const MAGIC = 0x58424252; // "RBBX"
const HEADER = 16;
export const BATCH_BLOBS_MAX = 1024;
/** Header, and as many blocks with their lengths as there may be. */
export const BATCH_SIZE_MAX = HEADER + BATCH_BLOBS_MAX * (BLOCK_SIZE + 2);
const CODEC_NONE = 0;
const CODEC_DEFLATE = 1;

export async function encodeBatch(blobs: Buffer[]): Promise<Buffer> {
  const plain = Buffer.concat(
    blobs.flatMap((bytes) => {
      const length = Buffer.alloc(2);
      length.writeUInt16LE(bytes.length);
      return [length, bytes];
    }),
  );
  const packed = await deflate(plain);
  const payload = packed.length < plain.length ? packed : plain;
  const header = Buffer.alloc(HEADER);
  header.writeUInt32LE(MAGIC, 0);
  header.writeUInt32LE(blobs.length, 4);
  header.writeUInt32LE(plain.length, 8);
  header[12] = payload === packed ? CODEC_DEFLATE : CODEC_NONE;
  return Buffer.concat([header, payload]);
}

/** Throws a Failure for what is no batch. Nothing larger than a batch may be is ever unpacked. */
export async function decodeBatch(bytes: Buffer): Promise<Buffer[]> {
  const wrong = () => new Failure('what was sent is no batch of blobs');
  if (bytes.length < HEADER || bytes.readUInt32LE(0) !== MAGIC) throw wrong();
  const count = bytes.readUInt32LE(4);
  const length = bytes.readUInt32LE(8);
  if (count > BATCH_BLOBS_MAX || length > BATCH_SIZE_MAX - HEADER || bytes[12] > CODEC_DEFLATE) throw wrong();
  let plain = bytes.subarray(HEADER);
  if (bytes[12] === CODEC_DEFLATE) {
    plain = await inflate(plain, length).catch(() => {
      throw wrong();
    });
  }
  if (plain.length !== length) throw wrong();
  const blobs: Buffer[] = [];
  for (let at = 0; at < length; ) {
    const size = at + 2 <= length ? plain.readUInt16LE(at) : length;
    if (at + 2 + size > length) throw wrong();
    blobs.push(plain.subarray(at + 2, at + 2 + size));
    at += 2 + size;
  }
  if (blobs.length !== count) throw wrong();
  return blobs;
}

function deflate(bytes: Buffer): Promise<Buffer> {
  return new Promise((resolve, reject) => {
    zlib.deflateRaw(bytes, { level: 1 }, (error, packed) => (error ? reject(error) : resolve(packed)));
  });
}

function inflate(bytes: Buffer, length: number): Promise<Buffer> {
  return new Promise((resolve, reject) => {
    const options = { maxOutputLength: Math.max(length, 1) };
    zlib.inflateRaw(bytes, options, (error, plain) => (error ? reject(error) : resolve(plain)));
  });
}

/** A generation's record as another store tells it; throws a Failure for what cannot be one. */
export function checkRecord(value: unknown, nowMs: number): GenerationRecord {
  const it = value as Partial<GenerationRecord> | null;
  const whole = (number: unknown): number is number => Number.isSafeInteger(number) && (number as number) >= 0;
  const text = (given: unknown, most: number): given is string => typeof given === 'string' && given.length <= most;
  if (
    !(typeof it === 'object' && it !== null && it.version === 1) ||
    !(whole(it.generation) && it.generation > 0 && whole(it.size) && whole(it.timeMs)) ||
    !(whole(it.changedBlocks) && whole(it.from) && it.from <= it.generation) ||
    !(text(it.root, 64) && /^[0-9a-f]{64}$/.test(it.root) && text(it.who, 255) && text(it.why, 4096)) ||
    !(it.id === undefined || (text(it.id, 16) && /^[0-9a-f]{16}$/.test(it.id)))
  ) {
    throw new Failure('what was sent is no record of a generation');
  }
  if (it.timeMs > nowMs + CLOCK_AHEAD_MS)
    throw new Failure(
      `generation ${it.generation} is of ${new Date(it.timeMs).toISOString()}, which is to come: set the clocks right`,
    );
  const { generation, root, size, timeMs, who, why, changedBlocks, from } = it;
  // Generations that were made before there were ids get theirs now, so that it is the same in both stores.
  const record = { version: 1 as const, generation, root, size, timeMs, who, why, changedBlocks, from };
  return { ...record, id: it.id ?? idOf(record) };
}

const CLOCK_AHEAD_MS = 86_400_000;

/** What another store knows of a line's cards; what is not understood is left out. */
export function checkCards(value: unknown): Record<string, CardState> {
  const cards: Record<string, CardState> = {};
  if (typeof value !== 'object' || value === null) return cards;
  for (const [card, it] of Object.entries(value as Record<string, Partial<CardState>>).slice(0, CARDS_MAX)) {
    const { upTo, generation, id, session, known, seenMs, branch } = it ?? {};
    const numbers = [upTo, generation, session, known, seenMs];
    if (!numbers.every((number) => Number.isSafeInteger(number)) || typeof id !== 'string' || card.length > 64)
      continue;
    const state = { upTo, generation, id, session, known, seenMs } as CardState;
    cards[card] = typeof branch === 'string' && isTag(branch) ? { ...state, branch } : state;
  }
  return cards;
}
