// Garbage collection: finds what no generation, open export or import needs, and gives its space back, pack by pack.
//
// Marks are taken from the roots that exist at the start; what is stored later goes to later packs, which are not looked at; an old blob
// that is used again while this runs is marked by TreeBuilder.onReuse. Only the last step for a pack holds the blob lock, so writers go on
// (their commits need the journal only).

import { Failure } from '../failure.js';
import { collectShared } from './bucket/garbage.js';
import { GroupWriter } from './group-writer.js';
import { emptyBatch, type Location } from './index.js';
import { DamagedError } from './pack.js';
import type { Store } from './store.js';
import { FANOUT, isZeroHash, levelsOf } from './tree.js';

export interface GarbageReport {
  packs: number;
  packsRemoved: number;
  bytesBefore: number;
  bytesAfter: number;
  blobsRemoved: number;
}

/** A pack in which less than this is needed is written anew. */
export const LIVE_SHARE_MIN = 0.75;

export async function collectGarbage(
  store: Store,
  onProgress: (done: number, total: number) => void = () => {},
): Promise<GarbageReport> {
  if (store.collecting) return { packs: 0, packsRemoved: 0, bytesBefore: 0, bytesAfter: 0, blobsRemoved: 0 };
  if (store.shared !== null) return collectShared(store, store.shared, onProgress);
  store.collecting = true;
  const marks = new Marks(store);
  try {
    let candidates: number[] = [];
    await store.builder.withBlobLock(async () => {
      store.packs.seal();
      candidates = store.packs.numbers();
      store.builder.onReuse = (hash) => marks.reused(hash);
      for (const sink of store.sinks) for (const hash of sink.pinned()) marks.reused(hash);
    });
    for (const { root, size } of store.roots()) await marks.tree(root, levelsOf(size) - 1);
    const report: GarbageReport = {
      packs: candidates.length,
      packsRemoved: 0,
      bytesBefore: 0,
      bytesAfter: 0,
      blobsRemoved: 0,
    };
    for (const [index, pack] of candidates.entries()) {
      await store.builder.withBlobLock(() => sweep(store, marks, pack, report));
      onProgress(index + 1, candidates.length);
    }
    return report;
  } catch (error) {
    if (error instanceof DamagedError) {
      throw new Failure(
        `nothing more is collected, the store is damaged: ${error.message}; \`ribbon image verify\` says what is concerned`,
      );
    }
    throw error;
  } finally {
    store.builder.onReuse = () => {};
    store.collecting = false;
  }
}

/** What is needed. */
export class Marks {
  /** By pack, a bit for each blob: 32 in a word, whose key is the group's offset and, for the words after the first, one and more behind
   * it, where no other group can begin. */
  private readonly packs = new Map<number, Map<number, number>>();
  private steps = 0;

  constructor(private readonly store: Store) {}

  /** False when it was marked already. */
  mark(location: Location): boolean {
    let pack = this.packs.get(location.pack);
    if (pack === undefined) {
      pack = new Map();
      this.packs.set(location.pack, pack);
    }
    const word = wordOf(location);
    const bits = pack.get(word) ?? 0;
    const bit = 1 << (location.ordinal & 31);
    if ((bits & bit) !== 0) return false;
    pack.set(word, bits | bit);
    return true;
  }

  has(location: Location): boolean {
    const bits = this.packs.get(location.pack)?.get(wordOf(location)) ?? 0;
    return ((bits >>> (location.ordinal & 31)) & 1) === 1;
  }

  /** How many blobs of the pack are needed. */
  count(pack: number): number {
    let count = 0;
    for (let bits of this.packs.get(pack)?.values() ?? []) for (; bits !== 0; bits &= bits - 1) count++;
    return count;
  }

  async tree(hash: Buffer, level: number): Promise<void> {
    if (isZeroHash(hash)) return;
    const location = this.store.index.blob(hash);
    // What hangs below a missing node cannot be known: in a damaged store nothing is thrown away.
    if (location === null) throw new DamagedError(`tree node ${hash.toString('hex')} is missing`);
    if (!this.mark(location)) return;
    if ((++this.steps & 63) === 0) await new Promise<void>((resolve) => setImmediate(resolve));
    const node = this.store.nodes.get(hash);
    if (level > 0) {
      for (let child = 0; child < FANOUT; child++) await this.tree(Buffer.from(node.child(child)), level - 1);
      return;
    }
    for (let child = 0; child < FANOUT; child++) this.block(node.child(child));
  }

  private block(hash: Buffer): void {
    if (isZeroHash(hash)) return;
    const location = this.store.index.blob(hash);
    if (location !== null) this.mark(location);
  }

  /** A blob that was found again: it and, if it is a node, all below it is needed from now on. */
  reused(hash: Buffer): void {
    const location = this.store.index.blob(hash);
    if (location === null || !this.mark(location) || location.length === 4096) return;
    const node = this.store.nodes.get(hash);
    for (let child = 0; child < FANOUT; child++) {
      const below = Buffer.from(node.child(child));
      if (!isZeroHash(below)) this.reused(below);
    }
  }
}

function wordOf({ groupOffset, ordinal }: Location): number {
  return groupOffset + (ordinal >>> 5);
}

/** Frees or rewrites one pack if that is worth it. Holds the blob lock. */
async function sweep(store: Store, marks: Marks, pack: number, report: GarbageReport): Promise<void> {
  const size = store.packs.size(pack);
  report.bytesBefore += size;
  const batch = emptyBatch();
  const live: { group: { pack: number; groupOffset: number; groupLength: number }; ordinals: number[] }[] = [];
  let liveBytes = 0;
  for (const { groupOffset, groupLength, count } of store.packs.groups(pack)) {
    const group = { pack, groupOffset, groupLength };
    const ordinals: number[] = [];
    for (const [ordinal, hash] of store.packs.groupHashes(group, count).entries()) {
      const location = store.index.blob(hash);
      // A copy that the index does not know (left by a crash) is not needed.
      if (location === null || location.pack !== pack || location.groupOffset !== groupOffset) continue;
      if (marks.has(location)) ordinals.push(ordinal);
      else batch.removedBlobs.push(hash);
    }
    if (ordinals.length > 0) live.push({ group, ordinals });
    liveBytes += (groupLength * ordinals.length) / count;
  }
  if (liveBytes >= size * LIVE_SHARE_MIN) {
    report.bytesAfter += size;
    return;
  }
  let written = 0;
  const groups = new GroupWriter(store.packs, (blobs, locations) => {
    written += locations[0].groupLength;
    for (const [index, { hash }] of blobs.entries()) {
      batch.blobs.push([hash, locations[index]]);
      // Still needed where it is now.
      marks.mark(locations[index]);
    }
  });
  for (const { group, ordinals } of live) {
    const { entries, payload } = await store.packs.readGroup(group);
    for (const ordinal of ordinals) {
      const { hash, inner, length } = entries[ordinal];
      groups.add(hash, payload.subarray(inner, inner + length));
    }
    await groups.room();
  }
  await groups.finish();
  await store.packs.sync();
  await store.index.apply(batch);
  // Nothing waits between here and the next read: every cached place is forgotten before the file goes.
  store.nodes.forget();
  store.packs.remove(pack);
  report.packsRemoved++;
  report.blobsRemoved += batch.removedBlobs.length;
  report.bytesAfter += written;
}
