// Garbage collection of a store that several servers use (SPEC.md "A store in a bucket", "Garbage").
//
// What makes it safe: the marks hold everything that is reachable from a root that any server had open when it had learnt of the
// collection, and from every root that came into the log since; and a pack is taken out of the log by an entry that is made only if
// the marks are those of the entry before it.

import { Failure } from '../../failure.js';
import { type GarbageReport, LIVE_SHARE_MIN, Marks } from '../garbage.js';
import { GroupWriter } from '../group-writer.js';
import type { Store } from '../store.js';
import { isZeroHash, levelsOf } from '../tree.js';
import {
  COLLECTOR_KEY,
  type CollectorRecord,
  directoryObject,
  type GroupHead,
  locationsOf,
  logObject,
  numberOf,
  type PackRecord,
  packKey,
  packObject,
  parseCheckpointName,
  retiredKey,
  type ServerRecord,
  serverKey,
} from './format.js';
import { ENTRIES_KEPT } from './log.js';
import { inParallel, type Shared } from './shared.js';

/** Packs smaller than this are joined: a commit makes two, and every one costs a file, a record and a request. */
const SMALL_PACK = 1024 * 1024;
const SMALL_PACKS_MIN = 8;
/** What is needed of packs that are written anew together. */
const ROUND_BYTES = 32 * 1024 * 1024;
const ANSWER_MS = 60_000;
const ATTEMPTS = 100;
const RETIRED_MS = 600_000;
const ORPHAN_MS = 3_600_000;
const LOG_MS = 86_400_000;

interface Root {
  root: Buffer;
  size: number;
}

export async function collectShared(
  store: Store,
  shared: Shared,
  onProgress: (done: number, total: number) => void,
): Promise<GarbageReport> {
  store.collecting = true;
  const before = shared.onRecord;
  const seen: Root[] = [];
  shared.onRecord = (key, value) => {
    if (value == null || !(key.startsWith('generation/') || key.startsWith('import/'))) return;
    const { root, size } = value as { root: string; size: number };
    seen.push({ root: Buffer.from(root, 'hex'), size });
  };
  try {
    await becomeCollector(shared);
    const collection = new Collection(store, shared, seen);
    try {
      return await collection.run(onProgress);
    } finally {
      await shared.transact(() =>
        collectorOf(shared)?.server === shared.server ? [[COLLECTOR_KEY, undefined]] : null,
      );
    }
  } finally {
    shared.onRecord = before;
    store.builder.onReuse = () => {};
    store.collecting = false;
  }
}

function collectorOf(shared: Shared): CollectorRecord | undefined {
  return shared.record(COLLECTOR_KEY) as CollectorRecord | undefined;
}

async function becomeCollector(shared: Shared): Promise<void> {
  let other = 0;
  const taken = await shared.transact(() => {
    other = collectorOf(shared)?.server ?? 0;
    if (other !== 0 && other !== shared.server && shared.record(serverKey(other)) !== undefined) return null;
    return [[COLLECTOR_KEY, { version: 1, server: shared.server, timeMs: shared.nowMs() }]];
  });
  if (!taken) throw new Failure(`server ${other} is collecting garbage: try again later`);
}

class Collection {
  private readonly marks: Marks;
  private readonly report: GarbageReport = {
    packs: 0,
    packsRemoved: 0,
    bytesBefore: 0,
    bytesAfter: 0,
    blobsRemoved: 0,
  };

  constructor(
    private readonly store: Store,
    private readonly shared: Shared,
    /** Roots that have come into the log since the collection began, and are not marked yet. */
    private readonly seen: Root[],
  ) {
    this.marks = new Marks(store);
  }

  async run(onProgress: (done: number, total: number) => void): Promise<GarbageReport> {
    const { store, shared, report } = this;
    // In the same breath as the entry: whatever is forgotten later is still marked.
    const own = store.roots();
    const begun = shared.appliedSequence;
    const packs = [...shared.packRecords()];
    await store.builder.withBlobLock(async () => {
      store.builder.onReuse = (hash) => this.marks.reused(hash);
      for (const sink of store.sinks) for (const hash of sink.pinned()) this.marks.reused(hash);
      own.push(...store.openRoots());
    });
    await this.mark(own);
    await this.mark(await this.rootsOfOthers(begun));
    await this.markSeen();
    report.packs = packs.length;
    for (const [, { bytes }] of packs) report.bytesBefore += bytes;
    report.bytesAfter = report.bytesBefore;
    const rounds = this.rounds(packs);
    for (const [index, round] of rounds.entries()) {
      await store.builder.withBlobLock(() => this.renew(round));
      onProgress(index + 1, rounds.length);
    }
    await this.removeObjects();
    return report;
  }

  private async mark(roots: Root[]): Promise<void> {
    for (const { root, size } of roots) await this.marks.tree(root, levelsOf(size) - 1);
  }

  private async markSeen(): Promise<void> {
    while (this.seen.length > 0) await this.mark(this.seen.splice(0));
  }

  /** What their open exports need; every one must have learnt of the collection first. */
  private async rootsOfOthers(begun: number): Promise<Root[]> {
    const { shared } = this;
    const membership = this.store.membership!;
    const roots: Root[] = [];
    const deadline = performance.now() + ANSWER_MS;
    for (const server of membership.others()) {
      for (;;) {
        // Whoever was expelled meanwhile is not waited for.
        if (shared.record(serverKey(server)) === undefined) break;
        const sign = await membership.signOf(server);
        if (sign !== null && sign.applied >= begun && sign.roots !== null) {
          const named = sign.roots.map(([root, size]) => ({ root: Buffer.from(root, 'hex'), size }));
          // A tree that is not in the log yet, or not as far as it has been read here: it will be, or is not needed any more.
          if (named.every(({ root }) => isZeroHash(root) || shared.hasBlob(root))) {
            roots.push(...named);
            break;
          }
        }
        if (performance.now() > deadline)
          throw new Failure(
            `server ${server} does not say what it needs, or has changes that are not committed: nothing is collected; try again later`,
          );
        await new Promise((resolve) => setTimeout(resolve, (shared.options.signMs ?? 1000) / 2));
        await shared.catchUp();
      }
    }
    return roots;
  }

  /** The packs that are worth it, in groups that are written anew together: blocks with blocks, nodes with nodes. */
  private rounds(packs: [number, PackRecord][]): [number, PackRecord][][] {
    const rounds: [number, PackRecord][][] = [];
    for (const kind of ['blocks', 'nodes']) {
      const own = packs.filter(([, record]) => record.kind === kind);
      const small = own.filter(([, { bytes }]) => bytes < SMALL_PACK);
      const joined = new Set(small.length >= SMALL_PACKS_MIN ? small.map(([pack]) => pack) : []);
      let round: [number, PackRecord][] = [];
      let bytes = 0;
      for (const [pack, record] of own) {
        const share = record.blobs === 0 ? 0 : this.marks.count(pack) / record.blobs;
        if (share >= LIVE_SHARE_MIN && !joined.has(pack)) continue;
        round.push([pack, record]);
        bytes += record.bytes * share;
        if (bytes < ROUND_BYTES) continue;
        rounds.push(round);
        round = [];
        bytes = 0;
      }
      if (round.length > 0) rounds.push(round);
    }
    return rounds;
  }

  /** Writes what is needed of these packs anew and takes them out of the log. Holds the blob lock. */
  private async renew(round: [number, PackRecord][]): Promise<void> {
    const { shared, marks, store } = this;
    const retired = { version: 1, timeMs: shared.nowMs() };
    const records = round.flatMap(([pack]): [string, unknown][] => [
      [packKey(pack), undefined],
      [retiredKey(pack), retired],
    ]);
    let copied = -1;
    let written = 0;
    const blobs = store.index.blobCount();
    for (let attempt = 0; attempt < ATTEMPTS; attempt++) {
      await shared.catchUp();
      // Others commit all the time, and what they have used again is needed too.
      const sequence = shared.appliedSequence;
      await this.markSeen();
      const needed = round.reduce((sum, [pack]) => sum + marks.count(pack), 0);
      if (needed !== copied) {
        written += await this.copyNeeded(round);
        copied = needed;
      }
      if (await shared.publishIfFirst(records, sequence)) {
        this.report.packsRemoved += round.length;
        this.report.bytesAfter += written - round.reduce((sum, [, { bytes }]) => sum + bytes, 0);
        this.report.blobsRemoved += Math.max(0, blobs - store.index.blobCount());
        return;
      }
    }
    shared.options.log(
      'warn',
      'garbage collection: other servers were always quicker, some packs are left for another time',
    );
  }

  private async copyNeeded(round: [number, PackRecord][]): Promise<number> {
    const { store, shared, marks } = this;
    let written = 0;
    const writer = new GroupWriter(store.packs, (_blobs, locations) => {
      written += locations[0].groupLength;
      // Needed where they will be, too.
      for (const location of locations) marks.mark(location);
    });
    const heads = new Map<number, GroupHead[]>();
    await inParallel(round, async ([pack, record]) => {
      if (marks.count(pack) > 0) heads.set(pack, await shared.groupsOf(pack, record, false));
    });
    for (const [pack, groups] of heads) {
      for (const head of groups) {
        const needed = new Set<number>();
        for (const [hash, location] of locationsOf(pack, [head])) {
          const known = store.index.blob(hash);
          if (known?.pack === pack && known.groupOffset === head.offset && marks.has(location))
            needed.add(location.ordinal);
        }
        if (needed.size === 0) continue;
        const group = { pack, groupOffset: head.offset, groupLength: head.length };
        const { entries, payload } = await store.packs.readGroup(group);
        for (const ordinal of needed) {
          const { hash, inner, length } = entries[ordinal];
          writer.add(hash, payload.subarray(inner, inner + length));
        }
        await writer.room();
      }
    }
    await writer.finish();
    await store.packs.sync();
    return written;
  }

  /** Objects that nobody needs any more: of packs that were retired some time ago, of crashes, and of the log's beginning. */
  private async removeObjects(): Promise<void> {
    const { shared } = this;
    const { bucket } = shared.reach;
    const due = shared
      .records('retired/')
      .filter(
        ([, value]) =>
          shared.nowMs() - (value as { timeMs: number }).timeMs >= (shared.options.retiredMs ?? RETIRED_MS),
      )
      .map(([key]) => key);
    await inParallel(due, (key) => this.removePack(numberOf(key)));
    if (due.length > 0) await shared.transact(() => due.map((key) => [key, undefined]));
    // The object store's own time: that of the newest sign of life.
    const nowMs = Math.max(0, ...(await bucket.list('servers/')).map(({ modifiedMs }) => modifiedMs));
    await this.removeOrphans(nowMs - (shared.options.orphanMs ?? ORPHAN_MS));
    await this.removeLog(nowMs - (shared.options.logMs ?? LOG_MS));
  }

  private async removePack(pack: number): Promise<void> {
    await this.shared.reach.request((bucket) => bucket.remove(directoryObject(pack)));
    await this.shared.reach.request((bucket) => bucket.remove(packObject(pack)));
  }

  private async removeOrphans(beforeMs: number): Promise<void> {
    const { shared } = this;
    const objects = await shared.reach.request((bucket) => bucket.list('packs/'));
    await shared.catchUp();
    const ranges = shared.records('server/').flatMap(([, value]) => (value as ServerRecord).packs);
    const orphans = objects.filter(({ name, modifiedMs }) => {
      const pack = Number(/^packs\/(\d+)/.exec(name)?.[1] ?? Number.NaN);
      const isKnown = shared.record(packKey(pack)) !== undefined || shared.record(retiredKey(pack)) !== undefined;
      return !isKnown && modifiedMs <= beforeMs && !ranges.some(([from, to]) => pack >= from && pack < to);
    });
    await inParallel(orphans, ({ name }) => shared.reach.request((bucket) => bucket.remove(name)));
  }

  private async removeLog(beforeMs: number): Promise<void> {
    const { reach } = this.shared;
    const checkpoints = await reach.request((bucket) => bucket.list('checkpoint/'));
    for (const { name } of checkpoints.slice(0, -2)) await reach.request((bucket) => bucket.remove(name));
    const newest = checkpoints.at(-1);
    if (newest === undefined) return;
    const end = parseCheckpointName(newest.name).sequence - (this.shared.options.entriesKept ?? ENTRIES_KEPT);
    // The oldest first: an entry is there only when those behind it are.
    for (const { name, modifiedMs } of await reach.request((bucket) => bucket.list('log/'))) {
      if (name > logObject(Math.max(0, end)) || modifiedMs > beforeMs) return;
      await reach.request((bucket) => bucket.remove(name));
    }
  }
}
