// A line: one history of generations (an image, or a branch of one), as it stands in memory.
//
// Newest content first: the writer's open epoch; `committed`, the generations that are in the journal; `frozen`, those of them that
// are being digested; `view`, the tree. `pending` keeps what is needed to make the generations of `committed` and `frozen`.

import { type CardCommit, type CardState, generationId } from './cards.js';
import type { Ranges } from './changes.js';
import type { Journal } from './journal.js';
import type { LineExport } from './line-export.js';
import { Overlay } from './overlay.js';
import type { TreeView } from './tree.js';
import type { Writer } from './writer.js';

export interface LineRecord {
  version: 1;
  id: number;
  name: string;
  /** Bytes, of the newest generation that has been digested. */
  size: number;
  /** The newest generation that has been digested. */
  head: number;
  /** The first that there ever was here. */
  first: number;
  createdMs: number;
  /** Where a branch or clone comes from: the other line's `id`. */
  origin: { id: number; generation: number } | null;
  tags: Record<string, number>;
  /** What another store, by its id, had in common with this line when they last exchanged something. */
  replicas?: Record<string, { generation: number; id: string }>;
  /** By card id. */
  cards?: Record<string, CardState>;
}

export interface GenerationRecord {
  version: 1;
  generation: number;
  /** Hex. */
  root: string;
  size: number;
  timeMs: number;
  who: string;
  why: string;
  /** Blocks that the commits of this generation named. */
  changedBlocks: number;
  /** The oldest generation that this one includes: several that were committed within a moment are kept as one. */
  from: number;
  /** SPEC.md "Between a card and the image server"; missing in generations made before there were ids. */
  id?: string;
  /** The card whose commit this is. */
  card?: CardCommit;
}

/** The id of a kept generation. */
export function idOf(record: GenerationRecord): string {
  return record.id ?? generationId('', record.root, record.generation);
}

/** Committed and not digested yet. */
export interface Pending {
  generation: number;
  from: number;
  /** When the oldest generation in it was committed. */
  firstMs: number;
  timeMs: number;
  size: number;
  who: string;
  why: string;
  id: string;
  card: CardCommit | null;
  /** The tree under `changes` when it is not the generation before: part of the epoch was digested while it was open. */
  base: Buffer | null;
  /** What differs between that tree and the generation before; null when a crash has made it unknown. */
  baseChanges: Ranges | null;
  changes: Overlay;
  /** Journal slots of its commit records. */
  records: number[];
  durable: Promise<void>;
  isDurable: boolean;
}

export class Line {
  committed = new Overlay();
  frozen: Overlay | null = null;
  pending: Pending[] = [];
  /** The newest generation, digested or not. */
  head: number;
  size: number;
  lastTimeMs: number;
  /** Id of the newest generation that has been digested. */
  digestedId: string;
  /** Counts the times that the layers were replaced, so that a digest that ends then leaves them alone. */
  layerChanges = 0;
  /** Counts the times that what was committed here was given up because another server had gone on without it. */
  resets = 0;
  writer: Writer | null = null;
  readonly exports = new Set<LineExport>();
  digesting: Promise<void> | null = null;
  removed = false;
  /** It is being renamed, or cards are being moved away from or to it: who wants to open it must come back later. */
  moving = false;

  constructor(
    public record: LineRecord,
    public view: TreeView,
    newest: GenerationRecord,
  ) {
    this.digestedId = idOf(newest);
    this.head = record.head;
    this.size = record.size;
    this.lastTimeMs = newest.timeMs;
  }

  get name(): string {
    return this.record.name;
  }

  /** Id of the newest generation, digested or not. */
  get headId(): string {
    return this.pending.at(-1)?.id ?? this.digestedId;
  }

  /** Where the newest committed content of the block lies: a journal position, ZERO_BLOCK, or UNCHANGED for the tree. */
  find(block: number): number {
    const position = this.committed.find(block);
    if (position !== 0 || this.frozen === null) return position;
    return this.frozen.find(block);
  }

  get changed(): boolean {
    return this.frozen !== null || !this.committed.empty;
  }
}

/** Makes two neighbouring pending generations one; the older one's blocks that the newer one replaced are released. */
export function mergePending(older: Pending, newer: Pending, journal: Journal): void {
  const release = (position: number) => journal.release(position);
  if (newer.base !== null) {
    for (const position of older.changes.blocks.values()) if (position > 0) release(position);
    older.changes = newer.changes;
    older.base = newer.base;
    older.baseChanges = null;
  } else {
    older.changes.merge(newer.changes, release);
  }
  older.generation = newer.generation;
  older.timeMs = newer.timeMs;
  older.size = newer.size;
  older.who = newer.who;
  older.why = newer.why;
  older.id = newer.id;
  older.card = newer.card;
  older.records.push(...newer.records);
}

/** Where a generation's record is in the index; their order is the order of the generations. */
export function generationKey(line: number, generation: number): string {
  return `${generationPrefix(line)}${generation.toString(16).padStart(14, '0')}`;
}

export function generationPrefix(line: number): string {
  return `generation/${line.toString(16).padStart(8, '0')}/`;
}
