// One connection's opening of a line or of one of its generations.
//
// It begins as a reader of the generation that was newest when it was opened and stays on that generation, so that a copy made through
// it is never a mixture. NBD_CMD_FLUSH with nothing to commit moves it to the newest. With its first write it becomes the line's
// writer (if the generation it has read is still the newest) and reads its own open epoch from then on.

import { type Client, type Done, ExportError, type Extent, type OpenExport } from '../server/export.js';
import { NBD_STATE_HOLE, NBD_STATE_ZERO } from '../server/nbd-protocol.js';
import { firstEndingAfter, NO_RANGES, RangeCollector, type Ranges, union } from './changes.js';
import type { Line } from './line.js';
import { Overlay, UNCHANGED, ZERO_BLOCK } from './overlay.js';
import type { Store } from './store.js';
import { BLOCK_SIZE, blocksOf, isZeroBlock, type TreeView } from './tree.js';

export const CHANGED_SINCE = 'x-ribbon:changed-since=';
/** Extents of NBD are 32-bit lengths. */
const EXTENT_BLOCKS_MAX = 0x7fff_f000 / BLOCK_SIZE;
/** Brought along at once: some thousand look-ups. */
const PREFETCH_STEP = 4 * 1024 * 1024;
/** An anonymous writer with an open epoch that says nothing for this long loses its role to another one at the same address. */
const SILENT_MS = 10_000;

export class LineExport implements OpenExport {
  onLost: (reason: string) => void = () => {};
  readonly description: string;
  /** The generation that is read, without the open epoch. */
  generation: number;
  /** The card that this is a connection of. */
  card: { card: string; session: number; early: boolean } | null = null;
  /** Set while this connection is or was the writer: it reads the line's own layers. */
  private live = false;
  private lost: string | null = null;
  private view: TreeView | null;
  private lastUsedMs = 0;

  // The open epoch.
  private epoch = new Overlay();
  private spilling: Overlay | null = null;
  private base: TreeView | null = null;
  private baseChanges: Ranges = NO_RANGES;
  private spill: Promise<void> | null = null;
  private commits: Promise<void> = Promise.resolve();

  private readonly contexts = new Map<string, Ranges>();

  constructor(
    private readonly store: Store,
    readonly line: Line,
    view: TreeView,
    generation: number,
    readonly readOnly: boolean,
    private readonly client: Client,
  ) {
    this.view = view;
    this.generation = generation;
    this.size = view.size;
    this.description = `${line.name}@${generation}`;
    line.exports.add(this);
  }

  readonly size: number;

  /** Readers see one generation, over as many connections as they like; a writer's epoch is its connection's own. */
  get multiConnection(): boolean {
    return this.readOnly;
  }

  /** The tree that is read; null once this connection has written. */
  get root(): Buffer | null {
    return this.view?.root ?? null;
  }

  get hasWritten(): boolean {
    return this.live;
  }

  /** Must this connection end when somebody else changes the line? A card learns of changes by connecting again. */
  get learnsOfChanges(): boolean {
    return this.live || this.card !== null;
  }

  get lostReason(): string | null {
    return this.lost;
  }

  get identity(): string {
    return this.client.identity;
  }

  get epochEmpty(): boolean {
    return this.epoch.empty && this.base === null && this.spilling === null;
  }

  // --- reading

  read(offset: number, target: Buffer): Done {
    this.lastUsedMs = this.store.nowMs();
    if (this.lost !== null) throw new ExportError('ESHUTDOWN', this.lost);
    if (!this.live) return this.readView(this.view!, offset, target, 0, target.length);
    return this.readLayers(offset, target, 0, target.length);
  }

  private readView(view: TreeView, offset: number, target: Buffer, at: number, length: number): Done {
    // Past the last whole block of the tree's own size the image may have grown meanwhile: zeroes.
    return view.read(offset, target, at, length);
  }

  /** Where the newest content of a block lies: a journal position, ZERO_BLOCK or UNCHANGED. */
  private find(block: number): number {
    const own = this.epoch.find(block);
    if (own !== UNCHANGED) return own;
    if (this.spilling !== null) {
      const spilled = this.spilling.find(block);
      if (spilled !== UNCHANGED) return spilled;
    }
    return this.base === null ? this.line.find(block) : UNCHANGED;
  }

  private get tree(): TreeView {
    return this.base ?? this.line.view;
  }

  private readLayers(offset: number, target: Buffer, at: number, length: number): Done {
    if (this.epochEmpty && !this.line.changed) return this.readView(this.tree, offset, target, at, length);
    const waits: Promise<void>[] = [];
    const { journal } = this.store;
    for (let done = 0; done < length; ) {
      const block = Math.floor((offset + done) / BLOCK_SIZE);
      const within = (offset + done) % BLOCK_SIZE;
      let count = Math.min(BLOCK_SIZE - within, length - done);
      const position = this.find(block);
      if (position === UNCHANGED) {
        // Neighbours that are unchanged too are one read.
        for (let next = block + 1; done + count < length && this.find(next) === UNCHANGED; next++) {
          count = Math.min(count + BLOCK_SIZE, length - done);
        }
        const wait = this.readView(this.tree, offset + done, target, at + done, count);
        if (wait !== undefined) waits.push(wait);
      } else if (position === ZERO_BLOCK) {
        target.fill(0, at + done, at + done + count);
      } else {
        if (within === 0 && journal.inTail(position) === null) {
          for (let next = 1; done + count < length && this.find(block + next) === position + next; next++) {
            if (journal.inTail(position + next) !== null || !journal.sameSegment(position, position + next)) break;
            count = Math.min(count + BLOCK_SIZE, length - done);
          }
        }
        journal.read(position, target, at + done, within, count);
      }
      done += count;
    }
    return waits.length === 0 ? undefined : Promise.all(waits).then(() => {});
  }

  /** Of an open epoch nothing has to be fetched; of the tree what is not in memory, or not on this disk. */
  prefetch(offset: number, length: number): Done {
    if (this.lost !== null) throw new ExportError('ESHUTDOWN', this.lost);
    const end = Math.min(offset + length, this.size, offset + this.store.prefetchBytesMax);
    for (let at = offset; at < end; at += PREFETCH_STEP) {
      const fetch = (this.view ?? this.tree).prefetch(at, Math.min(PREFETCH_STEP, end - at));
      if (fetch !== undefined) return this.prefetchRest(fetch, at + PREFETCH_STEP, end);
    }
    return undefined;
  }

  private async prefetchRest(first: Promise<unknown>, from: number, end: number): Promise<void> {
    await first;
    for (let at = from; at < end && this.lost === null; at += PREFETCH_STEP) {
      await (this.view ?? this.tree).prefetch(at, Math.min(PREFETCH_STEP, end - at));
      // Looking blocks up takes its time: others go first.
      await new Promise<void>((resolve) => setImmediate(resolve));
    }
  }

  // --- writing

  write(offset: number, data: Buffer): Done {
    const claim = this.claim();
    if (claim !== null) {
      const copy = Buffer.from(data);
      return claim.then(() => this.write(offset, copy));
    }
    this.becomeWriter();
    const wait = this.store.room(this);
    if (wait !== null) {
      const copy = Buffer.from(data);
      return wait.then(() => this.write(offset, copy));
    }
    // Parts of blocks at both ends need the rest of the block.
    const head = offset % BLOCK_SIZE;
    const end = offset + data.length;
    if (head === 0 && end % BLOCK_SIZE === 0) {
      this.writeBlocks(offset / BLOCK_SIZE, data, 0, data.length / BLOCK_SIZE);
      return undefined;
    }
    return this.writeParts(offset, data);
  }

  private writeBlocks(first: number, data: Buffer, from: number, count: number): void {
    for (let index = 0; index < count; ) {
      const at = from + index * BLOCK_SIZE;
      if (isZeroBlock(data, at)) {
        this.replace(first + index, ZERO_BLOCK);
        index++;
        continue;
      }
      if (this.writeInPlace(first + index, data, at)) {
        index++;
        continue;
      }
      let run = 1;
      while (index + run < count && !isZeroBlock(data, at + run * BLOCK_SIZE)) run++;
      this.appendBlocks(first + index, data, at, run);
      index += run;
    }
  }

  /** A block of this epoch that is still in memory is written over there. */
  private writeInPlace(block: number, data: Buffer, at: number): boolean {
    const old = this.epoch.blocks.get(block);
    if (old === undefined || old <= 0) return false;
    const place = this.store.journal.inTail(old);
    if (place === null) return false;
    data.copy(place, 0, at, at + BLOCK_SIZE);
    return true;
  }

  private appendBlocks(first: number, data: Buffer, at: number, count: number): void {
    try {
      for (let done = 0; done < count; ) {
        const taken = this.store.journal.append(data, at + done * BLOCK_SIZE, count - done);
        for (let index = 0; index < taken.count; index++) this.replace(first + done + index, taken.position + index);
        done += taken.count;
      }
    } catch (error) {
      this.store.journalFailed();
      throw error;
    }
  }

  private replace(block: number, position: number): void {
    const { blocks } = this.epoch;
    const old = blocks.get(block);
    if (old !== undefined && old > 0) this.store.journal.release(old);
    blocks.set(block, position);
  }

  private writeParts(offset: number, data: Buffer): Done {
    const end = offset + data.length;
    const first = Math.floor(offset / BLOCK_SIZE);
    const last = Math.floor((end - 1) / BLOCK_SIZE);
    // The block edges that must be read before they can be written.
    const whole = Buffer.alloc((last - first + 1) * BLOCK_SIZE);
    const waits: Promise<void>[] = [];
    const fetch = (block: number) => {
      const length = Math.min(BLOCK_SIZE, this.size - block * BLOCK_SIZE);
      const wait = this.readLayers(block * BLOCK_SIZE, whole, (block - first) * BLOCK_SIZE, length);
      if (wait !== undefined) waits.push(wait);
    };
    if (offset % BLOCK_SIZE !== 0) fetch(first);
    if (end % BLOCK_SIZE !== 0 && (last !== first || offset % BLOCK_SIZE === 0)) fetch(last);
    const put = () => this.writeBlocks(first, whole, 0, last - first + 1);
    if (waits.length === 0) {
      data.copy(whole, offset - first * BLOCK_SIZE);
      put();
      return undefined;
    }
    const copy = Buffer.from(data);
    return Promise.all(waits).then(() => {
      copy.copy(whole, offset - first * BLOCK_SIZE);
      this.becomeWriter();
      put();
    });
  }

  zero(offset: number, length: number): Done {
    const claim = this.claim();
    if (claim !== null) return claim.then(() => this.zero(offset, length));
    this.becomeWriter();
    const end = offset + length;
    const first = Math.ceil(offset / BLOCK_SIZE);
    // The last block may be cut short by the end of the image: all of it is zeroed then.
    const last = end === this.size ? blocksOf(end) : Math.floor(end / BLOCK_SIZE);
    if (first >= last) return this.write(offset, Buffer.alloc(length));
    const waits: Promise<void>[] = [];
    const part = (from: number, to: number) => {
      if (from >= to) return;
      const wait = this.write(from, Buffer.alloc(to - from));
      if (wait !== undefined) waits.push(wait);
    };
    part(offset, first * BLOCK_SIZE);
    part(last * BLOCK_SIZE, end);
    this.epoch.zero(first, last - first, (position) => this.store.journal.release(position));
    return waits.length === 0 ? undefined : Promise.all(waits).then(() => {});
  }

  /** See OpenExport. */
  async writeKnown(offset: number, hash: Buffer): Promise<boolean> {
    await this.claim();
    this.becomeWriter();
    const location = this.store.index.blob(hash);
    if (location === null || location.length !== BLOCK_SIZE || offset + BLOCK_SIZE > this.size) return false;
    const block = await this.store.packs.blob(hash, location).catch(() => null);
    if (block === null) return false;
    await this.write(offset, block);
    return true;
  }

  /** Another server may have the line: null when that is not so, or not the reason why there can be no writing. */
  private claim(): Promise<void> | null {
    const { line } = this;
    if (line.writer === this || this.readOnly || this.lost !== null || line.removed) return null;
    return this.store.claim(line);
  }

  private becomeWriter(): void {
    this.lastUsedMs = this.store.nowMs();
    const { line } = this;
    if (line.writer === this) return;
    if (this.lost !== null) throw new ExportError('ESHUTDOWN', this.lost);
    if (this.readOnly) throw new ExportError('EPERM', 'the export is read-only');
    if (line.removed) throw new ExportError('ESHUTDOWN', `${line.name} has been removed`);
    this.store.checkWritable();
    if (line.head !== this.generation || line.size !== this.size) {
      throw new ExportError(
        'ESHUTDOWN',
        `${line.name} is at generation ${line.head}; this connection has read ${this.generation}`,
      );
    }
    const other = line.writer;
    if (other !== null && !other.epochEmpty) {
      const same = other.client.identity === this.client.identity;
      const silent = this.store.nowMs() - other.lastUsedMs >= SILENT_MS && other.client.address === this.client.address;
      if (!same || !(this.client.tls || silent)) {
        throw new ExportError(
          'EPERM',
          `${line.name} is being written by ${other.client.identity} at ${other.client.address}`,
        );
      }
      other.fence(`another connection of ${this.client.identity} has taken over`);
    }
    line.writer = this;
    this.live = true;
    this.view?.close();
    this.view = null;
  }

  /** This connection may not go on: what it has not committed is discarded. */
  fence(reason: string): void {
    if (this.lost !== null) return;
    this.lost = reason;
    this.discard();
    this.onLost(reason);
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

  get epochBlocks(): number {
    return this.epoch.blocks.size;
  }

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
    if (this.lost !== null || this.line.writer !== this) return;
    const spilling = this.epoch;
    this.spilling = spilling;
    this.epoch = new Overlay();
    const changed = new RangeCollector();
    try {
      const under = this.base ?? this.line.view;
      const base = await this.store.builder.buildView(under, spilling, this.size, changed);
      if (this.lost !== null || this.spilling !== spilling) {
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
        this.fence(`the open epoch could not be stored: ${(error as Error).message}`);
      }
      throw error;
    } finally {
      for (const position of spilling.blocks.values()) if (position > 0) this.store.journal.release(position);
    }
  }

  // --- committing

  commit(): Done {
    this.lastUsedMs = this.store.nowMs();
    if (this.lost !== null) throw new ExportError('ESHUTDOWN', this.lost);
    if (!this.live) return this.refresh();
    if (this.spill !== null) {
      return this.spill.then(
        () => this.commit(),
        () => this.commit(),
      );
    }
    if (this.epochEmpty) return this.store.newestDurable(this.line);
    if (this.line.writer !== this) throw new ExportError('ESHUTDOWN', 'another connection has become the writer');
    const done = this.store.commitEpoch(this.line, this.epoch, this.base, this.baseChanges, this.client.identity);
    this.epoch = new Overlay();
    this.base = null;
    this.baseChanges = NO_RANGES;
    this.generation = this.line.head;
    this.commits = done;
    return done;
  }

  /** What the card's records up to `upTo` have written becomes the next generation, even when that is nothing: `upTo` is part of it. */
  async commitCard(upTo: number): Promise<{ generation: number; id: string }> {
    while (this.spill !== null) await this.spill.catch(() => {});
    await this.claim();
    this.becomeWriter();
    const { card, session } = this.card!;
    const { epoch, base, baseChanges } = this;
    const done = this.store.commitEpoch(this.line, epoch, base, baseChanges, this.client.identity, {
      card,
      upTo,
      session,
    });
    this.epoch = new Overlay();
    this.base = null;
    this.baseChanges = NO_RANGES;
    this.generation = this.line.head;
    this.commits = done;
    const made = { generation: this.line.head, id: this.line.headId };
    await done;
    return made;
  }

  /** Moves a reader to the newest generation. */
  private refresh(): Done {
    if (this.readOnly && this.pinned) return undefined;
    if (this.generation === this.line.head || this.line.size !== this.size) return undefined;
    return this.store.newestView(this.line).then(({ view, generation }) => {
      if (this.view === null) {
        view.close();
        return;
      }
      this.view.close();
      this.view = view;
      this.generation = generation;
      this.contexts.clear();
    });
  }

  /** Opened as image@generation: it never moves. */
  pinned = false;

  async close(clean: boolean): Promise<void> {
    const { line } = this;
    try {
      // A card's epoch is whole only with its number.
      if (clean && this.card === null && this.live && this.lost === null && line.writer === this) await this.commit();
      await this.commits;
      if (this.card?.early === true) await this.leaveEpoch();
    } finally {
      line.exports.delete(this);
      if (this.lost === null) this.discard();
      this.lost ??= 'closed';
      this.view?.close();
      this.view = null;
    }
  }

  /** The connection of a card ended, however it did, whose PC counts on what has arrived: see LeftEpochs. */
  private async leaveEpoch(): Promise<void> {
    const { line } = this;
    const isOpen = (): boolean => this.lost === null && line.writer === this && !this.store.isClosing;
    while (isOpen() && (!this.epoch.empty || this.spill !== null)) await this.startSpill();
    if (!isOpen() || this.base === null) return;
    this.store.left.keep(line, this.card!.card, this.generation, this.base);
    this.base = null;
  }

  // --- meta contexts

  metaContexts(query: string): string[] {
    if (query === '') return ['base:allocation'];
    if (query === 'base:' || query === 'base:allocation') return ['base:allocation'];
    if (!query.startsWith(CHANGED_SINCE)) return [];
    const since = query.slice(CHANGED_SINCE.length);
    return this.store.findGeneration(this.line, /^\d{1,15}$/.test(since) ? Number(since) : since) === null
      ? []
      : [query];
  }

  status(context: string, offset: number, length: number, limit: number): Extent[] {
    const extents: Extent[] = [];
    let at = offset;
    const end = offset + length;
    const push = (flags: number, until: number) => {
      const count = Math.min(until, end) - at;
      const last = extents.at(-1);
      if (last !== undefined && last.flags === flags && last.length + count < 0xffff_0000) last.length += count;
      else if (extents.length === limit) return false;
      else extents.push({ flags, length: count });
      at += count;
      return true;
    };
    if (context === 'base:allocation') {
      while (at < end) {
        const { allocated, count } = this.allocation(
          Math.floor(at / BLOCK_SIZE),
          blocksOf(end) - Math.floor(at / BLOCK_SIZE),
        );
        const flags = allocated ? 0 : NBD_STATE_HOLE | NBD_STATE_ZERO;
        if (!push(flags, (Math.floor(at / BLOCK_SIZE) + count) * BLOCK_SIZE)) break;
      }
      return extents;
    }
    const changed = this.changedSince(context);
    let index = firstEndingAfter(changed, Math.floor(at / BLOCK_SIZE));
    while (at < end) {
      const first = index < changed.length ? changed[index] * BLOCK_SIZE : end;
      const inside = first <= at;
      if (!push(inside ? 1 : 0, inside ? changed[index + 1] * BLOCK_SIZE : first)) break;
      if (inside) index += 2;
    }
    return extents;
  }

  private allocation(block: number, most: number): { allocated: boolean; count: number } {
    const limit = Math.min(most, EXTENT_BLOCKS_MAX);
    if (!this.live) return this.view!.allocation(block, limit);
    const position = this.find(block);
    if (position !== UNCHANGED) return { allocated: position !== ZERO_BLOCK, count: 1 };
    if (this.epochEmpty && !this.line.changed) return this.tree.allocation(block, limit);
    const { allocated, count } = this.tree.allocation(block, limit);
    let same = 1;
    while (same < count && this.find(block + same) === UNCHANGED) same++;
    return { allocated, count: same };
  }

  /** The ranges in which the generation read here differs from the one that the context names; kept, as clients ask piece by piece. */
  private changedSince(context: string): Ranges {
    const since = context.slice(CHANGED_SINCE.length);
    const key = `${context}\n${this.generation}`;
    let ranges = this.contexts.get(key);
    if (ranges === undefined) {
      if (this.live && this.line.changed) {
        throw new ExportError('EINVAL', 'changed-since is answered before the first write of a connection');
      }
      const record = this.store.findGeneration(this.line, /^\d{1,15}$/.test(since) ? Number(since) : since);
      if (record === null)
        throw new ExportError('EINVAL', `there is no generation ${since} of ${this.line.name} any more`);
      ranges = this.store.changedRanges(this.line, record, this.generation, this.live ? this.line.view : this.view!);
      this.contexts.clear();
      this.contexts.set(key, ranges);
    }
    return ranges;
  }
}
