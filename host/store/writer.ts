// The client that writes to a line: its open epoch, which all of its connections share.
//
// NBD has no word for a client, so connections count as one client's when nothing tells them apart: same identity, same address,
// opened one soon after the other, all before the first of them has written (SPEC.md "NBD as the server speaks it"). What comes later may be
// somebody else who happens to have the same name, and finds the line being written.
//
// Over a network that is not enough. A client whose connection is broken and that has opened another looks the same, and what it had sent over the
// first may arrive behind what it sends over the second: old bytes over new ones, and a flush would commit them. (The simulator found it, with
// cards that speak plain NBD.) So there the administrator must have said that the identity uses several at once.
//
// A flush, FUA or goodbye on any of the connections commits what all of them have written. One that breaks with writes in the open epoch
// takes the epoch and the other connections with it: a later flush on one of those must not succeed without these writes.

import type { CardCommit } from './cards.js';
import { NO_RANGES, RangeCollector, type Ranges, union } from './changes.js';
import type { Line } from './line.js';
import type { LineExport } from './line-export.js';
import { Overlay, UNCHANGED } from './overlay.js';
import type { Store } from './store.js';
import type { TreeView } from './tree.js';

/**
 * Longest time between the openings of two neighbouring connections of one client. Clients open all of theirs at once, each after the
 * negotiation of the one before: some ten round trips.
 */
export const TOGETHER_MS = 5000;

export class Writer {
  readonly members: Set<LineExport>;
  /** Goes up with every commit: tells a member's writes in the open epoch from earlier ones. */
  number = 1;
  /** The newest commit, for who must not go before it is durable. */
  commits: Promise<void> = Promise.resolve();
  private ended = false;

  // The open epoch, newest content first.
  epoch = new Overlay();
  private spilling: Overlay | null = null;
  base: TreeView | null = null;
  private baseChanges: Ranges = NO_RANGES;
  private spill: Promise<void> | null = null;

  constructor(
    private readonly store: Store,
    private readonly line: Line,
    members: LineExport[],
  ) {
    this.members = new Set(members);
  }

  get identity(): string {
    return this.first.identity;
  }

  get address(): string {
    return this.first.client.address;
  }

  private get first(): LineExport {
    const [first] = this.members;
    return first;
  }

  /** When the client was last heard of. */
  get lastUsedMs(): number {
    return Math.max(...[...this.members].map((it) => it.lastUsedMs));
  }

  get epochEmpty(): boolean {
    return this.epoch.empty && this.base === null && this.spilling === null;
  }

  get epochBlocks(): number {
    return this.epoch.blocks.size;
  }

  /** Where the newest content of a block lies: a journal position, ZERO_BLOCK, or UNCHANGED for the tree. */
  find(block: number): number {
    const own = this.epoch.find(block);
    if (own !== UNCHANGED) return own;
    if (this.spilling !== null) {
      const spilled = this.spilling.find(block);
      if (spilled !== UNCHANGED) return spilled;
    }
    return this.base === null ? this.line.find(block) : UNCHANGED;
  }

  get tree(): TreeView {
    return this.base ?? this.line.view;
  }

  // --- who is in it

  /** The connection has ended, and has committed what it wanted to. */
  leave(member: LineExport): void {
    this.members.delete(member);
    const hasOpenWrites = member.wroteIn === this.number && !this.epochEmpty;
    if (this.members.size === 0) {
      this.ended = true;
      this.discard();
    } else if (hasOpenWrites) this.end(`another connection of ${member.identity} broke off with uncommitted writes`);
  }

  /** The client may not go on: what it has not committed is discarded, and all of its connections end. */
  end(reason: string): void {
    if (this.ended) return;
    this.ended = true;
    this.discard();
    for (const member of [...this.members]) member.fence(reason);
  }

  private discard(): void {
    const release = (overlay: Overlay | null) => {
      if (overlay === null) return;
      for (const position of overlay.blocks.values()) if (position > 0) this.store.journal.release(position);
    };
    release(this.epoch);
    // A spill that is under way still reads its slots and releases them itself.
    if (this.spill === null) release(this.spilling);
    this.epoch = new Overlay();
    this.spilling = null;
    this.base?.close();
    this.base = null;
    this.baseChanges = NO_RANGES;
    if (this.line.writer === this) this.line.writer = null;
  }

  // --- the open epoch leaves memory when it grows

  /** Digests what the open epoch has so far into a tree of its own, which no generation points to yet. */
  startSpill(): Promise<void> {
    this.spill ??= this.spillNow().finally(() => {
      this.spill = null;
    });
    return this.spill;
  }

  /** Part of the open epoch is a tree. */
  get hasSpilled(): boolean {
    return this.base !== null || this.spilling !== null;
  }

  get isSpilling(): boolean {
    return this.spill !== null;
  }

  private async spillNow(): Promise<void> {
    if (this.base === null) await this.store.digest(this.line);
    if (this.ended || this.line.writer !== this) return;
    const spilling = this.epoch;
    this.spilling = spilling;
    this.epoch = new Overlay();
    const changed = new RangeCollector();
    try {
      const under = this.base ?? this.line.view;
      const base = await this.store.builder.buildView(under, spilling, this.line.size, changed);
      if (this.ended || this.spilling !== spilling) {
        base.close();
      } else {
        this.base?.close();
        this.base = base;
        this.baseChanges = union([this.baseChanges, changed.ranges()]);
        this.spilling = null;
      }
    } catch (error) {
      if (this.spilling === spilling) {
        // The epoch cannot be kept whole: it is given up, and the client learns it now rather than at its flush.
        this.spilling = null;
        this.end(`the open epoch could not be stored: ${(error as Error).message}`);
      }
      throw error;
    } finally {
      for (const position of spilling.blocks.values()) if (position > 0) this.store.journal.release(position);
    }
  }

  // --- committing

  /** The open epoch becomes the next generation; nothing of it may be spilling. */
  commit(card: CardCommit | null = null): Promise<void> {
    const { epoch, base, baseChanges } = this;
    const done = this.store.commitEpoch(this.line, epoch, base, baseChanges, this.identity, card);
    this.epoch = new Overlay();
    this.base = null;
    this.baseChanges = NO_RANGES;
    this.number++;
    for (const member of this.members) member.generation = this.line.head;
    this.commits = done;
    return done;
  }

  /** What the open epoch and the generation under it are together, once all of it is a tree; the caller closes it. */
  takeBase(): TreeView | null {
    const { base } = this;
    this.base = null;
    return base;
  }
}

/** Those that have not written yet and that nothing tells from this connection: one client's, as far as one can know. */
export function together(opened: LineExport): LineExport[] {
  if (!mayJoin(opened)) return [opened];
  // In the order in which they were opened, as sets are.
  const all = [...opened.line.exports].filter(
    (it) => it === opened || (mayJoin(it) && isSameClient(it, opened) && it.generation === opened.generation),
  );
  const isNear = (index: number) => Math.abs(all[index].openedMs - all[index - 1].openedMs) <= TOGETHER_MS;
  let from = all.indexOf(opened);
  let to = from + 1;
  while (from > 0 && isNear(from)) from--;
  while (to < all.length && isNear(to)) to++;
  return all.slice(from, to);
}

/** Will what this connection writes, or has written, be seen on all that may be the same client's? Only then may it be told so. */
export function isTogetherWithAll(opened: LineExport): boolean {
  if (!mayJoin(opened)) return false;
  const mates = new Set(together(opened));
  for (const it of opened.line.exports) {
    if (!it.readOnly && it.lostReason === null && it.card === null && isSameClient(it, opened) && !mates.has(it))
      return false;
  }
  return true;
}

function mayJoin(it: LineExport): boolean {
  return (
    it.client.writesTogether === true && !it.readOnly && it.card === null && !it.hasWritten && it.lostReason === null
  );
}

function isSameClient({ client: a }: LineExport, { client: b }: LineExport): boolean {
  return a.identity === b.identity && a.address === b.address && a.tls === b.tls;
}
