// What administrators do to images and branches: each is one index transaction.

import { Failure } from '../failure.js';
import { type CardState, generationId } from './cards.js';
import { emptyBatch, type IndexBatch } from './index.js';
import { type GenerationRecord, generationKey, generationPrefix, idOf, type Line, type LineRecord } from './line.js';
import { checkLineName, checkTag, imageOf } from './names.js';
import { Overlay } from './overlay.js';
import { expired, type Retention } from './retention.js';
import type { Store } from './store.js';
import { exportRaw, importRaw, type Progress } from './transfer.js';
import { difference, TreeView, ZERO_HASH } from './tree.js';

/** Images are at most this long: file offsets and block numbers stay exact in a double, and levels few. */
export const IMAGE_SIZE_MAX = 2 ** 50;

export class Images {
  constructor(private readonly store: Store) {}

  private async putLine(
    name: string,
    size: number,
    root: Buffer,
    why: string,
    who: string,
    origin: LineRecord['origin'],
    first = 1,
    inherited: { id: string; cards: Record<string, CardState> } | null = null,
  ): Promise<Line> {
    checkLineName(name);
    if (this.store.lines.has(name)) throw new Failure(`there is an image "${name}" already`);
    if (name.includes('/') && !this.store.lines.has(imageOf(name)))
      throw new Failure(`there is no image "${imageOf(name)}" to branch`);
    const store = (this.store.index.record('store') as { nextLine: number } | undefined) ?? { nextLine: 1 };
    const id = store.nextLine;
    const timeMs = this.store.nowMs();
    const record: LineRecord = { version: 1, id, name, size, head: first, first, createdMs: timeMs, origin, tags: {} };
    const generation: GenerationRecord = {
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
    return importRaw(this.store, name, file, who, onProgress);
  }

  /** Writes a generation (null: the newest) to a raw file. */
  exportRaw(name: string, at: number | string | null, file: string, onProgress?: Progress): Promise<void> {
    return exportRaw(this.store, name, at, file, onProgress);
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
      { line: from, generation: record.generation },
      isBranch ? record.generation : 1,
      // A branch goes on with its image's history, so what a card knows of that is right here too.
      isBranch ? { id: idOf(record), cards } : null,
    );
  }

  /** Makes an old generation's content the next generation. */
  async rollback(name: string, at: number | string, who = 'administrator'): Promise<number> {
    const line = this.store.line(name);
    const old = await this.store.needGeneration(name, at);
    const why = `rollback to ${old.generation}`;
    return this.newGeneration(line, Buffer.from(old.root, 'hex'), old.size, why, who);
  }

  /** A generation made by an administrator rather than by a writer's epoch. */
  async newGeneration(line: Line, root: Buffer, size: number, why: string, who: string): Promise<number> {
    if (line.writer !== null && !line.writer.epochEmpty) {
      throw new Failure(
        `${line.name} is being written by ${line.writer.identity}: try again when its changes are committed`,
      );
    }
    await this.store.digest(line);
    if (line.pending.length > 0) throw new Failure(`${line.name} is being written: try again`);
    const previous = this.store.generationRecord(line.record.id, line.record.head)!;
    const generation = line.head + 1;
    const timeMs = Math.max(this.store.nowMs(), line.lastTimeMs);
    const view = new TreeView(this.store.nodes, root, size);
    const before = new TreeView(this.store.nodes, Buffer.from(previous.root, 'hex'), previous.size);
    let changedBlocks = 0;
    for (const range of difference(this.store.nodes, before, view)) changedBlocks += range.count;
    before.close();
    // From here on no epoch can be committed on the old head: every reader's generation is behind.
    line.head = generation;
    const record: LineRecord = { ...line.record, head: generation, size };
    const batch = emptyBatch();
    const id = generationId(line.headId, line.record.id, generation, timeMs, who, why);
    const made: GenerationRecord = {
      version: 1,
      generation,
      root: root.toString('hex'),
      size,
      timeMs,
      who,
      why,
      changedBlocks,
      from: generation,
      id,
    };
    batch.records.push([generationKey(record.id, generation), made], [`line/${line.name}`, record]);
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

  async tag(name: string, tag: string, at: number | string | null): Promise<void> {
    checkTag(tag);
    const { generation } = await this.store.needGeneration(name, at);
    await this.changeLine(this.store.line(name), (record) => {
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

  async changeLine(line: Line, change: (record: LineRecord) => void): Promise<void> {
    await line.digesting;
    const record: LineRecord = { ...line.record, tags: { ...line.record.tags }, cards: { ...line.record.cards } };
    change(record);
    const batch = emptyBatch();
    batch.records.push([`line/${line.name}`, record]);
    line.record = record;
    await this.store.index.apply(batch);
  }

  async rename(from: string, to: string): Promise<void> {
    checkLineName(to);
    const line = this.store.line(from);
    if (from.includes('/') !== to.includes('/'))
      throw new Failure(`"${from}" and "${to}" must both be images or both branches`);
    if (this.store.lines.has(to)) throw new Failure(`there is an image "${to}" already`);
    const moved = [...this.store.lines.values()].filter((it) => it === line || it.name.startsWith(`${from}/`));
    for (const it of moved) {
      if (it.exports.size > 0) throw new Failure(`${it.name} is open: its clients must disconnect first`);
      await this.store.digest(it);
    }
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
  }

  async remove(name: string): Promise<void> {
    const line = this.store.line(name);
    const branches = [...this.store.lines.keys()].filter((it) => it.startsWith(`${name}/`));
    if (branches.length > 0) throw new Failure(`${name} has branches: remove ${branches.join(', ')} first`);
    if (line.exports.size > 0) throw new Failure(`${name} is open: its clients must disconnect first`);
    line.removed = true;
    this.store.lines.delete(name);
    await line.digesting?.catch(() => {});
    const batch = emptyBatch();
    batch.records.push([`line/${name}`, undefined]);
    for (const [key] of this.store.index.records(generationPrefix(line.record.id)))
      batch.records.push([key, undefined]);
    await this.store.index.apply(batch);
    this.store.linesById.delete(line.record.id);
    for (const pending of line.pending.splice(0)) this.store.releasePending(pending);
    line.view.close();
  }

  /** Forgets generations; never the newest or a tagged one. */
  async forget(name: string, generations: number[]): Promise<void> {
    const line = this.store.line(name);
    const cards = Object.values(line.record.cards ?? {}).flatMap((it) => [it.generation, it.known]);
    const kept = new Set([line.record.head, ...Object.values(line.record.tags), ...cards]);
    const batch: IndexBatch = emptyBatch();
    for (const generation of generations) {
      if (!kept.has(generation)) batch.records.push([generationKey(line.record.id, generation), undefined]);
    }
    await this.store.index.apply(batch);
  }

  /** Forgets the generations that the retention does not keep; returns how many. */
  async applyRetention(retention: Retention): Promise<number> {
    let count = 0;
    for (const { name, tags } of this.store.info()) {
      const drop = expired(this.store.generations(name), new Set(Object.values(tags)), retention, this.store.nowMs());
      await this.forget(name, drop);
      count += drop.length;
    }
    return count;
  }
}

function checkSize(size: number): void {
  if (!Number.isSafeInteger(size) || size < 1 || size > IMAGE_SIZE_MAX) {
    throw new Failure(`an image of ${size} bytes cannot be: between 1 byte and 1 PiB`);
  }
}
