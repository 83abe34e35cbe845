// The packs of blocks of a bucket that are on this disk, in whole or in part: files of bounded size in all.
//
// A pack has the same file name and the same offsets here as it would have in any store; what of it has not been fetched is a hole. What is
// there is known in memory, and written to packs/cache.json now and then: after a crash that may be out of date, which costs a
// fetch, for what is read is checked by its hash. The pack that was used least recently goes first, all of it.

import fs from 'node:fs';
import path from 'node:path';
import type { Codec } from '../codec.js';
import { DamagedError, GROUP_HEADER, type Packs, type Piece, packName, parseGroupHeader } from '../pack.js';
import { isGroupWhole, packObject } from './format.js';

/** Fetched at once, even when less is wanted: what lies behind it was written with it, and a request costs as much as this. */
const READ_AHEAD = 256 * 1024;
/** Fetched by one request. */
const REQUEST_MAX = 4 * 1024 * 1024;
const REQUESTS_AT_ONCE = 8;
/** Bad copies of one pack that are thrown away before it counts as damaged. */
const DISTRUSTS_MAX = 3;
const LIST = 'packs/cache.json';

interface CachedPack {
  /** Of the whole pack. */
  size: number;
  /** What is here: from, to, from, to, … ascending, not touching. */
  extents: number[];
  lastUse: number;
  distrusts: number;
}

export interface CacheParts {
  folder: string;
  codec: Codec;
  bytesMax: number;
  packs: () => Packs;
  /** Reads from the bucket; null when there is no such object. Rejects when there is no answer in time. */
  get(name: string, range: { from: number; to: number }): Promise<Buffer | null>;
  /** Finds out whether the pack still counts. */
  stillCounts(pack: number): Promise<boolean>;
}

export class PackCache {
  readonly statistics = { fetches: 0, fetchedBytes: 0, evictions: 0, damaged: 0 };
  private readonly packs = new Map<number, CachedPack>();
  private readonly fetching = new Map<string, Promise<void>>();
  private readonly waiting: (() => void)[] = [];
  private requests = 0;
  private clock = 0;
  private total = 0;
  private changed = false;

  constructor(private readonly parts: CacheParts) {}

  get bytes(): number {
    return this.total;
  }

  /** What was here when the list was last written, of the packs that still count; all other files of packs that are not in `whole` go. */
  load(sizes: Map<number, number>, whole: Set<number>): void {
    let listed: Record<string, number[]> = {};
    try {
      listed = JSON.parse(fs.readFileSync(path.join(this.parts.folder, LIST), 'utf8'));
    } catch {
      // Never written, or cut off in the middle: the cache begins empty.
    }
    const folder = path.join(this.parts.folder, 'packs');
    for (const name of fs.existsSync(folder) ? fs.readdirSync(folder) : []) {
      const pack = Number(/^(\d{8,})\.rbp$/.exec(name)?.[1] ?? Number.NaN);
      if (whole.has(pack)) continue;
      const extents = listed[String(pack)];
      if (sizes.has(pack) && Array.isArray(extents)) this.add(pack, sizes.get(pack)!, extents);
      else fs.rmSync(path.join(folder, name));
    }
    for (const [pack, size] of sizes) if (!this.packs.has(pack)) this.add(pack, size, []);
    this.evict();
  }

  /** Does not throw: at worst more is fetched again. */
  save(): void {
    if (!this.changed) return;
    this.changed = false;
    try {
      this.saveNow();
    } catch {
      this.changed = true;
    }
  }

  private saveNow(): void {
    const file = path.join(this.parts.folder, LIST);
    const some = [...this.packs].filter(([, { extents }]) => extents.length > 0);
    fs.mkdirSync(path.dirname(file), { recursive: true });
    fs.writeFileSync(
      `${file}.new`,
      JSON.stringify(Object.fromEntries(some.map(([pack, { extents }]) => [pack, extents]))),
    );
    fs.renameSync(`${file}.new`, file);
  }

  /** A pack of blocks counts from now on; `extents`: what of it is here. */
  add(pack: number, size: number, extents: number[]): void {
    this.forget(pack);
    this.packs.set(pack, { size, extents: [...extents], lastUse: ++this.clock, distrusts: 0 });
    this.total += bytesIn(extents);
    this.changed = true;
    this.evict();
  }

  /** The pack no longer counts. Its file is the caller's. */
  forget(pack: number): void {
    const it = this.packs.get(pack);
    if (it === undefined) return;
    this.total -= bytesIn(it.extents);
    this.packs.delete(pack);
  }

  clear(): void {
    for (const pack of [...this.packs.keys()]) this.forget(pack);
  }

  isAbsent(pack: number, from: number, length: number): boolean {
    const it = this.packs.get(pack);
    // Packs of nodes, and those that the bucket does not have yet, are all here.
    if (it === undefined) return false;
    it.lastUse = ++this.clock;
    return !covers(it.extents, from, from + length);
  }

  distrust(pack: number): boolean {
    const it = this.packs.get(pack);
    if (it === undefined || it.distrusts >= DISTRUSTS_MAX) return false;
    it.distrusts++;
    this.drop(pack, it);
    return true;
  }

  async fetch(pieces: Piece[]): Promise<void> {
    const jobs = new Set<Promise<void>>();
    for (const piece of join(pieces)) {
      const it = this.packs.get(piece.pack);
      if (it === undefined || covers(it.extents, piece.from, piece.to)) continue;
      const key = `${piece.pack}:${piece.from}:${piece.to}`;
      let job = this.fetching.get(key);
      if (job === undefined) {
        job = this.fetchPiece(piece, it).finally(() => this.fetching.delete(key));
        this.fetching.set(key, job);
      }
      jobs.add(job);
    }
    await Promise.all(jobs);
  }

  private async fetchPiece(piece: Piece, it: CachedPack): Promise<void> {
    while (this.requests >= REQUESTS_AT_ONCE) await new Promise<void>((resolve) => this.waiting.push(resolve));
    this.requests++;
    try {
      for (let attempt = 0; ; attempt++) {
        const bad = await this.fetchOnce(piece, it);
        if (bad === null) return;
        this.statistics.damaged++;
        if (attempt > 0) throw new DamagedError(bad);
      }
    } finally {
      this.requests--;
      this.waiting.shift()?.();
    }
  }

  /** Null, or what is wrong with what came. */
  private async fetchOnce({ pack, from, to }: Piece, it: CachedPack): Promise<string | null> {
    const name = packObject(pack);
    const end = Math.min(it.size, Math.max(to, from + READ_AHEAD));
    const bytes = await this.parts.get(name, { from, to: end });
    this.statistics.fetches++;
    if (bytes === null) {
      // Garbage collection has moved what was in it: who asked looks again where that is.
      if (!(await this.parts.stillCounts(pack))) return null;
      return `the object ${name} of the bucket is missing`;
    }
    this.statistics.fetchedBytes += bytes.length;
    // Whole groups only; behind what was wanted also the ones that have come along.
    let good = 0;
    while (good + GROUP_HEADER <= bytes.length) {
      const group = parseGroupHeader(bytes.subarray(good, good + GROUP_HEADER));
      if (group === null || good + group.length > bytes.length) break;
      if (!(await isGroupWhole(bytes.subarray(good, good + group.length), this.parts.codec))) break;
      good += group.length;
    }
    if (good > 0 && this.packs.get(pack) === it) this.keep(pack, it, from, bytes.subarray(0, good));
    return from + good >= to ? null : `the object ${name} of the bucket is damaged in the group at ${from + good}`;
  }

  private keep(pack: number, it: CachedPack, from: number, bytes: Buffer): void {
    const file = path.join(this.parts.folder, packName(pack));
    fs.mkdirSync(path.dirname(file), { recursive: true });
    const isNew = !fs.existsSync(file);
    const fd = fs.openSync(file, isNew ? 'w' : 'r+');
    try {
      if (isNew) fs.writeSync(fd, this.parts.packs().header(pack), 0, 64, 0);
      fs.writeSync(fd, bytes, 0, bytes.length, from);
    } finally {
      fs.closeSync(fd);
    }
    const before = bytesIn(it.extents);
    it.extents = withExtent(it.extents, from, from + bytes.length);
    it.lastUse = ++this.clock;
    this.changed = true;
    this.total += bytesIn(it.extents) - before;
    this.evict();
  }

  /** Down to seven eighths, so that it is not done for every fetch. */
  private evict(): void {
    if (this.total <= this.parts.bytesMax) return;
    const byAge = [...this.packs]
      .filter(([, it]) => it.extents.length > 0)
      .sort(([, a], [, b]) => a.lastUse - b.lastUse);
    // The newest stays: somebody is waiting for it.
    for (const [pack, it] of byAge.slice(0, -1)) {
      if (this.total <= (this.parts.bytesMax / 8) * 7) return;
      this.drop(pack, it);
      this.statistics.evictions++;
    }
  }

  private drop(pack: number, it: CachedPack): void {
    this.parts.packs().closeFile(pack);
    fs.rmSync(path.join(this.parts.folder, packName(pack)), { force: true });
    this.total -= bytesIn(it.extents);
    it.extents = [];
  }
}

function bytesIn(extents: number[]): number {
  let bytes = 0;
  for (let at = 0; at < extents.length; at += 2) bytes += extents[at + 1] - extents[at];
  return bytes;
}

function covers(extents: number[], from: number, to: number): boolean {
  let low = 0;
  let high = extents.length / 2;
  while (low < high) {
    const middle = (low + high) >>> 1;
    if (extents[2 * middle + 1] <= from) low = middle + 1;
    else high = middle;
  }
  return 2 * low < extents.length && extents[2 * low] <= from && extents[2 * low + 1] >= to;
}

/** With [from, to), joined with what it touches. */
export function withExtent(extents: number[], from: number, to: number): number[] {
  const next: number[] = [];
  let first = from;
  let last = to;
  let placed = false;
  for (let at = 0; at < extents.length; at += 2) {
    const [a, b] = [extents[at], extents[at + 1]];
    if (b < first) next.push(a, b);
    else if (a > last) {
      if (!placed) next.push(first, last);
      placed = true;
      next.push(a, b);
    } else {
      first = Math.min(first, a);
      last = Math.max(last, b);
    }
  }
  if (!placed) next.push(first, last);
  return next;
}

/** Neighbours become one piece, up to what one request may bring. All pieces begin and end with groups. */
function join(pieces: Piece[]): Piece[] {
  const sorted = [...pieces].sort((a, b) => a.pack - b.pack || a.from - b.from);
  const joined: Piece[] = [];
  for (const piece of sorted) {
    const last = joined.at(-1);
    const isNear = last !== undefined && last.pack === piece.pack && piece.from <= last.to + READ_AHEAD / 4;
    if (isNear && piece.to - last.from <= REQUEST_MAX) last.to = Math.max(last.to, piece.to);
    else joined.push({ ...piece });
  }
  return joined;
}
