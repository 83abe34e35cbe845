// One connection's opening of a line or of one of its generations.
//
// It begins as a reader of the generation that was newest when it was opened and stays on that generation, so that a copy made through
// it is never a mixture. NBD_CMD_FLUSH with nothing to commit moves it to the newest. With its first write its client becomes the line's
// writer (if the generation it has read is still the newest): all connections of that client read and write one open epoch from then on.

import { type Client, type Done, ExportError, type Extent, type OpenExport } from '../server/export.js';
import { NBD_STATE_HOLE, NBD_STATE_ZERO } from '../server/nbd-protocol.js';
import { firstEndingAfter, type Ranges } from './changes.js';
import type { Line } from './line.js';
import { UNCHANGED, ZERO_BLOCK } from './overlay.js';
import type { Store } from './store.js';
import { BLOCK_SIZE, blocksOf, isZeroBlock, type TreeView } from './tree.js';
import { isTogetherWithAll, together, Writer } from './writer.js';

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
  /** Set once this connection's client has written: it reads the line's own layers, and the open epoch of the client. */
  private writer: Writer | null = null;
  /** The epoch of `writer` that this connection has last written to, by number. */
  wroteIn = 0;
  readonly openedMs: number;
  lastUsedMs = 0;
  private lost: string | null = null;
  private view: TreeView | null;

  private readonly contexts = new Map<string, Ranges>();

  constructor(
    private readonly store: Store,
    readonly line: Line,
    view: TreeView,
    generation: number,
    readonly readOnly: boolean,
    readonly client: Client,
  ) {
    this.openedMs = store.nowMs();
    this.view = view;
    this.generation = generation;
    this.size = view.size;
    this.description = `${line.name}@${generation}`;
    line.exports.add(this);
  }

  readonly size: number;

  /** Readers see one generation, over as many connections as they like; writers one epoch, where it is clear whose they are. */
  get multiConnection(): boolean {
    return this.readOnly || isTogetherWithAll(this);
  }

  /** The tree that is read; null once this connection has written. */
  get root(): Buffer | null {
    return this.view?.root ?? null;
  }

  get hasWritten(): boolean {
    return this.writer !== null;
  }

  /** Must this connection end when somebody else changes the line? A card learns of changes by connecting again. */
  get learnsOfChanges(): boolean {
    return this.writer !== null || this.card !== null;
  }

  get lostReason(): string | null {
    return this.lost;
  }

  get identity(): string {
    return this.client.identity;
  }

  get epochEmpty(): boolean {
    return this.writer?.epochEmpty ?? true;
  }

  /** Part of the open epoch is a tree. */
  get hasSpilled(): boolean {
    return this.writer?.hasSpilled ?? false;
  }

  get isSpilling(): boolean {
    return this.writer?.isSpilling ?? false;
  }

  isWrittenBy(writer: Writer | null): boolean {
    return writer !== null && this.writer === writer;
  }

  // --- reading

  read(offset: number, target: Buffer): Done {
    this.lastUsedMs = this.store.nowMs();
    if (this.lost !== null) throw new ExportError('ESHUTDOWN', this.lost);
    if (this.writer === null) return this.readView(this.view!, offset, target, 0, target.length);
    return this.readLayers(this.writer, offset, target, 0, target.length);
  }

  private readView(view: TreeView, offset: number, target: Buffer, at: number, length: number): Done {
    // Past the last whole block of the tree's own size the image may have grown meanwhile: zeroes.
    return view.read(offset, target, at, length);
  }

  private readLayers(writer: Writer, offset: number, target: Buffer, at: number, length: number): Done {
    if (writer.epochEmpty && !this.line.changed) return this.readView(writer.tree, offset, target, at, length);
    const waits: Promise<void>[] = [];
    const { journal } = this.store;
    for (let done = 0; done < length; ) {
      const block = Math.floor((offset + done) / BLOCK_SIZE);
      const within = (offset + done) % BLOCK_SIZE;
      let count = Math.min(BLOCK_SIZE - within, length - done);
      const position = writer.find(block);
      if (position === UNCHANGED) {
        // Neighbours that are unchanged too are one read.
        for (let next = block + 1; done + count < length && writer.find(next) === UNCHANGED; next++) {
          count = Math.min(count + BLOCK_SIZE, length - done);
        }
        const wait = this.readView(writer.tree, offset + done, target, at + done, count);
        if (wait !== undefined) waits.push(wait);
      } else if (position === ZERO_BLOCK) {
        target.fill(0, at + done, at + done + count);
      } else {
        if (within === 0 && journal.inTail(position) === null) {
          for (let next = 1; done + count < length && writer.find(block + next) === position + next; next++) {
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
      const fetch = (this.view ?? this.writer!.tree).prefetch(at, Math.min(PREFETCH_STEP, end - at));
      if (fetch !== undefined) return this.prefetchRest(fetch, at + PREFETCH_STEP, end);
    }
    return undefined;
  }

  fetch(offset: number, length: number): Done {
    if (this.lost !== null) return undefined;
    return (this.view ?? this.writer!.tree).fetch(offset, length) as Done;
  }

  private async prefetchRest(first: Promise<unknown>, from: number, end: number): Promise<void> {
    await first;
    for (let at = from; at < end && this.lost === null; at += PREFETCH_STEP) {
      await (this.view ?? this.writer!.tree).prefetch(at, Math.min(PREFETCH_STEP, end - at));
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
    const writer = this.becomeWriter();
    const wait = this.store.room(writer);
    if (wait !== null) {
      const copy = Buffer.from(data);
      return wait.then(() => this.write(offset, copy));
    }
    // Parts of blocks at both ends need the rest of the block.
    const head = offset % BLOCK_SIZE;
    const end = offset + data.length;
    if (head === 0 && end % BLOCK_SIZE === 0) {
      this.writeBlocks(writer, offset / BLOCK_SIZE, data, 0, data.length / BLOCK_SIZE);
      return undefined;
    }
    return this.writeParts(writer, offset, data);
  }

  private writeBlocks(writer: Writer, first: number, data: Buffer, from: number, count: number): void {
    this.wroteIn = writer.number;
    for (let index = 0; index < count; ) {
      const at = from + index * BLOCK_SIZE;
      if (isZeroBlock(data, at)) {
        this.replace(writer, first + index, ZERO_BLOCK);
        index++;
        continue;
      }
      if (this.writeInPlace(writer, first + index, data, at)) {
        index++;
        continue;
      }
      let run = 1;
      while (index + run < count && !isZeroBlock(data, at + run * BLOCK_SIZE)) run++;
      this.appendBlocks(writer, first + index, data, at, run);
      index += run;
    }
  }

  /** A block of this epoch that is still in memory is written over there. */
  private writeInPlace(writer: Writer, block: number, data: Buffer, at: number): boolean {
    const old = writer.epoch.blocks.get(block);
    if (old === undefined || old <= 0) return false;
    const place = this.store.journal.inTail(old);
    if (place === null) return false;
    data.copy(place, 0, at, at + BLOCK_SIZE);
    return true;
  }

  private appendBlocks(writer: Writer, first: number, data: Buffer, at: number, count: number): void {
    try {
      for (let done = 0; done < count; ) {
        const taken = this.store.journal.append(data, at + done * BLOCK_SIZE, count - done);
        for (let index = 0; index < taken.count; index++)
          this.replace(writer, first + done + index, taken.position + index);
        done += taken.count;
      }
    } catch (error) {
      this.store.journalFailed();
      throw error;
    }
  }

  private replace(writer: Writer, block: number, position: number): void {
    const { blocks } = writer.epoch;
    const old = blocks.get(block);
    if (old !== undefined && old > 0) this.store.journal.release(old);
    blocks.set(block, position);
  }

  private writeParts(writer: Writer, offset: number, data: Buffer): Done {
    const end = offset + data.length;
    const first = Math.floor(offset / BLOCK_SIZE);
    const last = Math.floor((end - 1) / BLOCK_SIZE);
    // The block edges that must be read before they can be written.
    const edges: number[] = [];
    if (offset % BLOCK_SIZE !== 0) edges.push(first);
    if (end % BLOCK_SIZE !== 0 && (last !== first || offset % BLOCK_SIZE === 0)) edges.push(last);
    const whole = Buffer.alloc((last - first + 1) * BLOCK_SIZE);
    const fetch = (block: number): Done => {
      const length = Math.min(BLOCK_SIZE, this.size - block * BLOCK_SIZE);
      return this.readLayers(writer, block * BLOCK_SIZE, whole, (block - first) * BLOCK_SIZE, length);
    };
    const { tree } = writer;
    const waits = edges.map(fetch).filter((it) => it !== undefined);
    const put = (bytes: Buffer) => {
      bytes.copy(whole, offset - first * BLOCK_SIZE);
      this.writeBlocks(writer, first, whole, 0, last - first + 1);
    };
    if (waits.length === 0) {
      put(data);
      return undefined;
    }
    const copy = Buffer.from(data);
    return Promise.all(waits).then(() => {
      this.becomeWriter();
      // Meanwhile another connection of the client may have written to the same blocks: what it wrote must stay.
      if (writer.tree !== tree) return this.writeParts(writer, offset, copy);
      // These are in the journal, where nothing has to be waited for.
      for (const block of edges) if (writer.find(block) !== UNCHANGED) void fetch(block);
      put(copy);
      return undefined;
    });
  }

  zero(offset: number, length: number): Done {
    const claim = this.claim();
    if (claim !== null) return claim.then(() => this.zero(offset, length));
    const writer = this.becomeWriter();
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
    this.wroteIn = writer.number;
    writer.epoch.zero(first, last - first, (position) => this.store.journal.release(position));
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
    if (this.isWrittenBy(line.writer) || this.readOnly || this.lost !== null || line.removed) return null;
    return this.store.claim(line);
  }

  private becomeWriter(): Writer {
    this.lastUsedMs = this.store.nowMs();
    const { line } = this;
    if (this.lost !== null) throw new ExportError('ESHUTDOWN', this.lost);
    if (this.writer !== null && line.writer === this.writer) return this.writer;
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
      const same = other.identity === this.client.identity;
      const silent = this.store.nowMs() - other.lastUsedMs >= SILENT_MS && other.address === this.client.address;
      if (!same || !(this.client.tls || silent)) {
        throw new ExportError('EPERM', `${line.name} is being written by ${other.identity} at ${other.address}`);
      }
      other.end(`another connection of ${this.client.identity} has taken over`);
    }
    if (this.writer === null) {
      const members = together(this);
      const writer = new Writer(this.store, line, members);
      for (const member of members) member.join(writer);
    }
    line.writer = this.writer!;
    return line.writer;
  }

  private join(writer: Writer): void {
    this.writer = writer;
    this.view?.close();
    this.view = null;
  }

  /** This connection may not go on, nor others of the same client: what they have not committed is discarded. */
  fence(reason: string): void {
    if (this.lost !== null) return;
    this.lost = reason;
    this.writer?.end(reason);
    this.onLost(reason);
  }

  /** See Writer. */
  startSpill(): Promise<void> {
    return this.writer!.startSpill();
  }

  // --- committing

  commit(): Done {
    this.lastUsedMs = this.store.nowMs();
    if (this.lost !== null) throw new ExportError('ESHUTDOWN', this.lost);
    const { writer } = this;
    if (writer === null) return this.refresh();
    if (writer.isSpilling) {
      const again = () => this.commit();
      return writer.startSpill().then(again, again);
    }
    if (writer.epochEmpty) return this.store.newestDurable(this.line);
    if (this.line.writer !== writer) throw new ExportError('ESHUTDOWN', 'another connection has become the writer');
    return writer.commit();
  }

  /** What the card's records up to `upTo` have written becomes the next generation, even when that is nothing: `upTo` is part of it. */
  async commitCard(upTo: number): Promise<{ generation: number; id: string }> {
    while (this.isSpilling) await this.startSpill().catch(() => {});
    await this.claim();
    const writer = this.becomeWriter();
    const { card, session } = this.card!;
    const done = writer.commit({ card, upTo, session });
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
    const { line, writer } = this;
    try {
      // A card's epoch is whole only with its number. A connection that has written nothing does not say when others have written all.
      const commits = clean && this.card === null && this.lost === null && this.isWrittenBy(line.writer);
      if (commits && this.wroteIn === writer!.number) await this.commit();
      await writer?.commits;
      if (this.card?.early === true) await this.leaveEpoch();
    } finally {
      line.exports.delete(this);
      if (this.lost === null) {
        this.lost = 'closed';
        writer?.leave(this);
      }
      this.view?.close();
      this.view = null;
    }
  }

  /** The connection of a card ended, however it did, whose PC counts on what has arrived: see LeftEpochs. */
  private async leaveEpoch(): Promise<void> {
    const { line, writer } = this;
    const isOpen = (): boolean => this.lost === null && this.isWrittenBy(line.writer) && !this.store.isClosing;
    while (isOpen() && (!writer!.epoch.empty || writer!.isSpilling)) await writer!.startSpill();
    if (!isOpen()) return;
    const base = writer!.takeBase();
    if (base !== null) this.store.left.keep(line, this.card!.card, this.generation, base);
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
    const { writer } = this;
    if (writer === null) return this.view!.allocation(block, limit);
    const position = writer.find(block);
    if (position !== UNCHANGED) return { allocated: position !== ZERO_BLOCK, count: 1 };
    if (writer.epochEmpty && !this.line.changed) return writer.tree.allocation(block, limit);
    const { allocated, count } = writer.tree.allocation(block, limit);
    let same = 1;
    while (same < count && writer.find(block + same) === UNCHANGED) same++;
    return { allocated, count: same };
  }

  /** The ranges in which the generation read here differs from the one that the context names; kept, as clients ask piece by piece. */
  private changedSince(context: string): Ranges {
    const since = context.slice(CHANGED_SINCE.length);
    const key = `${context}\n${this.generation}`;
    let ranges = this.contexts.get(key);
    if (ranges === undefined) {
      if (this.writer !== null && this.line.changed) {
        throw new ExportError('EINVAL', 'changed-since is answered before the first write of a connection');
      }
      const record = this.store.findGeneration(this.line, /^\d{1,15}$/.test(since) ? Number(since) : since);
      if (record === null)
        throw new ExportError('EINVAL', `there is no generation ${since} of ${this.line.name} any more`);
      ranges = this.store.changedRanges(
        this.line,
        record,
        this.generation,
        this.writer !== null ? this.line.view : this.view!,
      );
      this.contexts.clear();
      this.contexts.set(key, ranges);
    }
    return ranges;
  }
}
