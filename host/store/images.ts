// What administrators do to images and branches: each is one index transaction, and they are done one after the other.

import { Failure } from '../failure.js';
import { ConflictError } from './bucket/shared.js';
import { type CardState, generationId } from './cards.js';
import { blocksIn, decodeChanges, encodeChanges, type Ranges, union } from './changes.js';
import { exportImage } from './image-export.js';
import { importImage } from './image-import.js';
import { emptyBatch, type IndexBatch } from './index.js';
import { type GenerationRecord, generationKey, generationPrefix, idOf, type Line, type LineRecord } from './line.js';
import { checkLineName, checkTag, imageOf } from './names.js';
import { Overlay } from './overlay.js';
import { checkRoot } from './replica.js';
import { expired, type Retention } from './retention.js';
import type { Store } from './store.js';
import { difference, TreeView, ZERO_HASH } from './tree.js';

export type Progress = (done: number, total: number) => void;

/** Images are at most this long: file offsets and block numbers stay exact in a double, and levels few. */
export const IMAGE_SIZE_MAX = 2 ** 50;

export class Images {
  private tail: Promise<unknown> = Promise.resolve();

  constructor(private readonly store: Store) {}

  /** What reads records, changes them and writes them back must not meet another that does. */
  private inTurn<T>(work: () => Promise<T>): Promise<T> {
    const turn = this.tail.then(work);
    this.tail = turn.catch(() => {});
    return turn;
  }

  private putLine(...details: Parameters<Images['putLineNow']>): Promise<Line> {
    return this.inTurn(async () => {
      for (;;) {
        try {
          return await this.putLineNow(...details);
        } catch (error) {
          // Another server has made an image at the same moment, and both had taken the same number.
          if (!(error instanceof ConflictError && error.again)) throw error;
          await new Promise<void>((resolve) => setTimeout(resolve, 20));
        }
      }
    });
  }

  private async putLineNow(
    name: string,
    size: number,
    root: Buffer,
    why: string,
    who: string,
    origin: LineRecord['origin'],
    first = 1,
    inherited: { id: string; cards: Record<string, CardState>; record?: GenerationRecord } | null = null,
  ): Promise<Line> {
    checkLineName(name);
    if (this.store.lines.has(name)) throw new Failure(`there is an image "${name}" already`);
    if (name.includes('/') && !this.store.lines.has(imageOf(name)))
      throw new Failure(`there is no image "${imageOf(name)}" to branch`);
    const store = (this.store.index.record('store') as { nextLine: number } | undefined) ?? { nextLine: 1 };
    const id = store.nextLine;
    const timeMs = this.store.nowMs();
    const record: LineRecord = { version: 1, id, name, size, head: first, first, createdMs: timeMs, origin, tags: {} };
    const generation: GenerationRecord = inherited?.record ?? {
      version: 1,
      generation: first,
      root: root.toString('hex'),
      size,
      timeMs,
      who,
      why,
      changedBlocks: 0,
      from: first,
      id: inherited?.id ?? generationId(this.store.storeId.toString('hex'), id, timeMs, root.toString('hex')),
    };
    if (inherited !== null) record.cards = inherited.cards;
    const batch = emptyBatch();
    batch.records.push(
      ['store', { version: 1, nextLine: id + 1 }],
      [`line/${name}`, record],
      [generationKey(id, first), generation],
    );
    const line = this.store.addLine(record, generation);
    try {
      await this.store.index.apply(batch);
    } catch (error) {
      this.store.lines.delete(name);
      this.store.linesById.delete(id);
      throw error;
    }
    this.store.emit('commit', name, first, who);
    return line;
  }

  /** An image of zeroes. */
  async create(name: string, size: number, who = 'administrator'): Promise<void> {
    checkSize(size);
    await this.putLine(name, size, ZERO_HASH, 'created', who, null);
  }

  /** Makes a raw disk image file an image. */
  importRaw(name: string, file: string, onProgress?: Progress, who = 'administrator'): Promise<void> {
    return importImage(this.store, name, file, 'raw', who, onProgress);
  }

  /** Writes a generation (null: the newest) to a raw file. */
  exportRaw(name: string, at: number | string | null, file: string, onProgress?: Progress): Promise<void> {
    return exportImage(this.store, name, at, file, 'raw', onProgress);
  }

  /** An image whose first generation is a tree that is in the store already. */
  async createFromRoot(name: string, size: number, root: Buffer, why: string, who = 'administrator'): Promise<void> {
    checkSize(size);
    await this.putLine(name, size, root, why, who, null);
  }

  /** A new image (or branch, when the name has a slash) that begins as a generation of another. */
  async clone(
    from: string,
    at: number | string | null,
    name: string,
    who = 'administrator',
    cards: Record<string, CardState> = {},
  ): Promise<void> {
    const record = await this.store.needGeneration(from, at);
    const isBranch = name.includes('/') && imageOf(name) === imageOf(from);
    await this.putLine(
      name,
      record.size,
      Buffer.from(record.root, 'hex'),
      `${isBranch ? 'branch' : 'clone'} of ${from}@${record.generation}`,
      who,
      { id: this.store.line(from).record.id, generation: record.generation },
      isBranch ? record.generation : 1,
      // A branch goes on with its image's history, so what a card knows of that is right here too.
      isBranch ? { id: idOf(record), cards } : null,
    );
  }

  /** A branch that begins as a generation that somebody has open, whether it is kept or not. */
  async branchOf(line: Line, root: Buffer, size: number, generation: number, name: string, who: string): Promise<void> {
    const kept = this.store.generationRecord(line.record.id, generation);
    const why = `branch of ${line.name}@${generation}`;
    const id = kept === null ? generationId(line.headId, name, generation) : idOf(kept);
    await this.putLine(name, size, root, why, who, { id: line.record.id, generation }, generation, { id, cards: {} });
  }

  /** Makes an old generation's content the next generation. */
  async rollback(name: string, at: number | string, who = 'administrator'): Promise<number> {
    const line = this.store.line(name);
    const old = await this.store.needGeneration(name, at);
    const why = `rollback to ${old.generation}`;
    return this.newGeneration(line, Buffer.from(old.root, 'hex'), old.size, why, who);
  }

  /** A generation made by an administrator rather than by a writer's epoch. */
  newGeneration(line: Line, root: Buffer, size: number, why: string, who: string): Promise<number> {
    return this.inTurn(() => this.newGenerationNow(line, root, size, why, who));
  }

  private async newGenerationNow(
    line: Line,
    root: Buffer,
    size: number,
    why: string,
    who: string,
    adopted: { record: GenerationRecord; cards: LineRecord['cards'] } | null = null,
  ): Promise<number> {
    await this.store.claimFor(line);
    if (line.removed) throw new Failure(`${line.name} has been removed`);
    if (line.writer !== null && !line.writer.epochEmpty) {
      throw new Failure(
        `${line.name} is being written by ${line.writer.identity}: try again when its changes are committed`,
      );
    }
    await this.store.digest(line);
    if (line.pending.length > 0) throw new Failure(`${line.name} is being written: try again`);
    const previous = this.store.generationRecord(line.record.id, line.record.head)!;
    const generation = adopted?.record.generation ?? line.head + 1;
    const timeMs = Math.max(adopted?.record.timeMs ?? this.store.nowMs(), line.lastTimeMs);
    const view = new TreeView(this.store.nodes, root, size);
    const before = new TreeView(this.store.nodes, Buffer.from(previous.root, 'hex'), previous.size);
    const changed = difference(this.store.nodes, before, view);
    before.close();
    // From here on no epoch can be committed on the old head: every reader's generation is behind, and writers end.
    line.head = generation;
    for (const opened of [...line.exports]) {
      if (opened.hasWritten) opened.fence(`${line.name} was changed by ${who}: ${why}`);
    }
    const record: LineRecord = { ...line.record, head: generation, size };
    const batch = emptyBatch();
    if (adopted?.cards !== undefined) record.cards = adopted.cards;
    const id =
      adopted === null ? generationId(line.headId, line.record.id, generation, timeMs, who, why) : idOf(adopted.record);
    const made: GenerationRecord = adopted?.record ?? {
      version: 1,
      generation,
      root: root.toString('hex'),
      size,
      timeMs,
      who,
      why,
      changedBlocks: blocksIn(changed),
      from: generation,
      id,
    };
    batch.records.push([generationKey(record.id, generation), made], [`line/${line.name}`, record]);
    batch.changes.push([generationKey(record.id, generation), encodeChanges(previous.generation, changed)]);
    try {
      await this.store.index.apply(batch);
    } catch (error) {
      line.head = line.record.head;
      view.close();
      throw error;
    }
    line.record = record;
    line.digestedId = id;
    line.size = size;
    line.lastTimeMs = timeMs;
    line.layerChanges++;
    line.committed = new Overlay();
    line.frozen = null;
    line.view.close();
    line.view = view;
    for (const opened of [...line.exports]) {
      if (opened.learnsOfChanges) opened.fence(`${line.name} was changed by ${who}: ${why}`);
    }
    this.store.emit('commit', line.name, generation, who);
    return generation;
  }

  /**
   * Takes over a generation of another store, whose tree is here already, as it is: number, time and all. `expected`: the id of the newest
   * generation here; null makes the line.
   */
  adopt(
    name: string,
    made: GenerationRecord,
    expected: string | null,
    cards: LineRecord['cards'],
    who: string,
  ): Promise<void> {
    checkLineName(name);
    checkSize(made.size);
    const root = Buffer.from(made.root, 'hex');
    checkRoot(this.store, root, made.size);
    return this.inTurn(async () => {
      if (expected === null) {
        const { root: _root, ...rest } = made;
        await this.putLineNow(name, made.size, root, made.why, made.who, null, made.generation, {
          id: idOf(made),
          cards: cards ?? {},
          record: { ...rest, root: made.root },
        });
        return;
      }
      const line = this.store.line(name);
      if (line.headId !== expected) throw new Failure(`${name} has changed meanwhile: try again`);
      if (made.generation <= line.head) throw new Failure(`${name} has generation ${line.head} already`);
      await this.newGenerationNow(line, root, made.size, made.why, who, { record: made, cards });
    });
  }

  async tag(name: string, tag: string, at: number | string | null): Promise<void> {
    checkTag(tag);
    const { generation } = await this.store.needGeneration(name, at);
    await this.changeLine(this.store.line(name), (record) => {
      if (this.store.generationRecord(record.id, generation) === null)
        throw new Failure(`generation ${generation} of ${name} has just been forgotten`);
      record.tags[tag] = generation;
    });
  }

  async untag(name: string, tag: string): Promise<void> {
    const line = this.store.line(name);
    if (line.record.tags[tag] === undefined) throw new Failure(`${name} has no tag "${tag}"`);
    await this.changeLine(line, (record) => {
      delete record.tags[tag];
    });
  }

  changeLine(line: Line, change: (record: LineRecord) => void): Promise<void> {
    return this.inTurn(async () => {
      await this.store.claimFor(line);
      await restOfDigest(line);
      if (line.removed) throw new Failure(`${line.name} has been removed`);
      const before = line.record;
      const record: LineRecord = { ...line.record, tags: { ...line.record.tags }, cards: { ...line.record.cards } };
      change(record);
      const batch = emptyBatch();
      batch.records.push([`line/${line.name}`, record]);
      line.record = record;
      try {
        await this.store.index.apply(batch);
      } catch (error) {
        if (line.record === record) line.record = before;
        throw error;
      }
    });
  }

  /** Renames an image, with its branches, or a branch. Nobody may have it open. */
  rename(from: string, to: string): Promise<void> {
    checkLineName(to);
    return this.inTurn(() => this.renameNow(from, to));
  }

  private async renameNow(from: string, to: string): Promise<void> {
    const line = this.store.line(from);
    if (from.includes('/') !== to.includes('/'))
      throw new Failure(`"${from}" and "${to}" must both be images or both branches`);
    if (this.store.lines.has(to)) throw new Failure(`there is an image "${to}" already`);
    if (to.includes('/') && !this.store.lines.has(imageOf(to)))
      throw new Failure(`there is no image "${imageOf(to)}" to have a branch`);
    const moved = [...this.store.lines.values()].filter((it) => it === line || it.name.startsWith(`${from}/`));
    for (const it of moved) {
      if (it.exports.size > 0) throw new Failure(`${it.name} is open: its clients must disconnect first`);
    }
    // Cards open a branch by the name of its image.
    const held = new Set([...moved, this.store.line(imageOf(from))]);
    for (const it of held) if (it.moving) throw new Failure(`${it.name} is being moved: try again`);
    for (const it of held) it.moving = true;
    try {
      for (const it of moved) {
        await this.store.claimFor(it);
        await this.store.digest(it);
      }
      if (this.store.lines.has(to)) throw new Failure(`there is an image "${to}" already`);
      const batch = emptyBatch();
      for (const it of moved) {
        const name = to + it.name.slice(from.length);
        batch.records.push([`line/${it.name}`, undefined], [`line/${name}`, { ...it.record, name }]);
      }
      await this.store.index.apply(batch);
      for (const it of moved) {
        const name = to + it.name.slice(from.length);
        this.store.lines.delete(it.name);
        it.record = { ...it.record, name };
        this.store.lines.set(name, it);
      }
    } finally {
      for (const it of held) it.moving = false;
    }
  }

  /** Removes an image or branch that nobody has open. `force`: with the generations that were tagged to be kept for ever. */
  remove(name: string, force = false): Promise<void> {
    return this.inTurn(() => this.removeNow(name, force));
  }

  private async removeNow(name: string, force: boolean): Promise<void> {
    const line = this.store.line(name);
    const branches = [...this.store.lines.keys()].filter((it) => it.startsWith(`${name}/`));
    if (branches.length > 0) throw new Failure(`${name} has branches: remove ${branches.join(', ')} first`);
    if (line.exports.size > 0) throw new Failure(`${name} is open: its clients must disconnect first`);
    const tags = Object.keys(line.record.tags);
    if (tags.length > 0 && !force)
      throw new Failure(
        `${name} has tags, which are to be kept for ever (${tags.join(', ')}): untag them, or use force`,
      );
    await this.store.claimFor(line);
    if (line.exports.size > 0) throw new Failure(`${name} is open: its clients must disconnect first`);
    line.removed = true;
    this.store.lines.delete(name);
    await restOfDigest(line);
    const batch = emptyBatch();
    batch.records.push([`line/${name}`, undefined]);
    for (const [key] of this.store.index.records(generationPrefix(line.record.id))) {
      batch.records.push([key, undefined]);
      batch.changes.push([key, undefined]);
    }
    try {
      await this.store.index.apply(batch);
    } catch (error) {
      if (this.store.linesById.has(line.record.id)) {
        line.removed = false;
        this.store.lines.set(name, line);
      }
      throw error;
    }
    this.store.linesById.delete(line.record.id);
    for (const pending of line.pending.splice(0)) this.store.releasePending(pending);
    line.view.close();
  }

  /** Forgets generations; never the newest or a tagged one. */
  forget(name: string, generations: number[]): Promise<void> {
    return this.inTurn(() => this.forgetNow(this.store.line(name), generations));
  }

  private async forgetNow(line: Line, generations: number[]): Promise<void> {
    const cards = Object.values(line.record.cards ?? {}).flatMap((it) => [it.generation, it.known]);
    const kept = new Set([line.record.head, ...Object.values(line.record.tags), ...cards]);
    const forgotten = new Set(generations.filter((generation) => !kept.has(generation)));
    if (forgotten.size === 0) return;
    await this.store.claimFor(line);
    await this.store.index.apply(this.forgetBatch(line, forgotten));
  }

  /** The change lists of what is forgotten become part of the list of the next generation that is kept. */
  private forgetBatch(line: Line, forgotten: Set<number>): IndexBatch {
    const batch = emptyBatch();
    let since: number | null = null;
    let lists: (Ranges | null)[] = [];
    for (const { generation } of this.store.generations(line.name)) {
      const key = generationKey(line.record.id, generation);
      const bytes = this.store.index.changes(key);
      const list = bytes === null ? null : decodeChanges(bytes);
      if (forgotten.has(generation)) {
        batch.records.push([key, undefined]);
        if (bytes !== null) batch.changes.push([key, undefined]);
        lists.push(list?.ranges ?? null);
        continue;
      }
      if (lists.length > 0 && bytes !== null) {
        const all = [...lists, list?.ranges ?? null].filter((it) => it !== null);
        const whole = since !== null && all.length === lists.length + 1;
        batch.changes.push([key, whole ? encodeChanges(since!, union(all)) : undefined]);
      }
      since = generation;
      lists = [];
    }
    return batch;
  }

  /** Forgets the generations that the retention does not keep; returns how many. */
  async applyRetention(retention: Retention): Promise<number> {
    let count = 0;
    for (const { name, tags } of this.store.info()) {
      // What another server writes to is that one's to tidy.
      if (!this.store.has(name) || !this.store.mayChange(this.store.line(name))) continue;
      const drop = expired(this.store.generations(name), new Set(Object.values(tags)), retention, this.store.nowMs());
      try {
        await this.forget(name, drop);
        count += drop.length;
      } catch (error) {
        if (!(error instanceof ConflictError)) throw error;
      }
    }
    return count;
  }
}

/** A digest that is under way writes the line's record at its end. */
async function restOfDigest(line: Line): Promise<void> {
  while (line.digesting !== null) await line.digesting.catch(() => {});
}

export function checkSize(size: number): void {
  if (!Number.isSafeInteger(size) || size < 1 || size > IMAGE_SIZE_MAX) {
    throw new Failure(`an image of ${size} bytes cannot be: between 1 byte and 1 PiB`);
  }
}
