// Reads the log of a card's local store, by SPEC.md "Local store", "Power-on": what a card would believe if it were powered on
// now. Read-only, so that it can be pointed at the store of a dead card; nothing is taken from the firmware but the document.

import { closeSync, openSync, readSync } from 'node:fs';
import { crc32c } from '../card/crc32c.js';
import { Failure } from '../failure.js';
import {
  type BadSuperblock,
  BLOCK_SIZE,
  decodePartitionTable,
  decodeRecord,
  decodeSummary,
  decodeSuperblock,
  emptyRows,
  enterRecord,
  isHeaderRow,
  isUnusedRow,
  LOG_START_BLOCK,
  NO_PROGRESS,
  type Progress,
  RecordFlag,
  type RecordHeader,
  RecordKind,
  RowFlag,
  recordChecksum,
  rowAt,
  SEGMENT_BLOCKS,
  SEGMENT_ROWS,
  SUPERBLOCK_COPIES,
  type Superblock,
} from './format.js';

/** Where a store's blocks come from. */
export interface StoreSource {
  readonly blocks: number;
  /** `count` blocks; those that cannot be read are zeros. */
  read(block: number, count: number): Buffer;
  close(): void;
}

/** A file or block device, opened for reading only. */
export function openStoreFile(path: string): StoreSource {
  let file: number;
  try {
    file = openSync(path, 'r');
  } catch (error) {
    throw new Failure(`cannot open the local store ${path}: ${(error as Error).message}`);
  }
  const readInto = (target: Buffer, position: number): number => {
    try {
      return readSync(file, target, 0, target.length, position);
    } catch {
      return 0;
    }
  };
  return {
    blocks: countBlocks((block) => readInto(Buffer.alloc(1), (block + 1) * BLOCK_SIZE - 1) === 1),
    read: (block, count) => {
      const target = Buffer.alloc(count * BLOCK_SIZE);
      if (readInto(target, block * BLOCK_SIZE) === target.length) return target;
      // One bad block must not cost its neighbours.
      for (let i = 0; i < count; i++) {
        const piece = target.subarray(i * BLOCK_SIZE, (i + 1) * BLOCK_SIZE);
        if (readInto(piece, (block + i) * BLOCK_SIZE) !== BLOCK_SIZE) piece.fill(0);
      }
      return target;
    },
    close: () => closeSync(file),
  };
}

/** The part of a store that holds the log of `image`: all of it, unless several images share it. Without a name there must be one. */
export function partitionOf(source: StoreSource, image: string | null): StoreSource {
  const partitions = source.blocks < SUPERBLOCK_COPIES ? null : decodePartitionTable(source.read(0, SUPERBLOCK_COPIES));
  if (partitions === null) return source;
  const found =
    image === null && partitions.length === 1 ? partitions[0] : partitions.find((it) => it.imageName === image);
  if (found === undefined) {
    const names = partitions.map(({ imageName }) => imageName).join(', ');
    throw new Failure(
      image === null
        ? `several images share the local store: say which with --store-image; there are: ${names}`
        : `the local store has no image "${image}"; there are: ${names}`,
    );
  }
  return {
    blocks: Math.max(0, Math.min(found.blocks, source.blocks - found.first)),
    read: (block, count) => source.read(found.first + block, count),
    close: () => source.close(),
  };
}

/** fstat() knows no size of a device: the last block that can be read tells it. */
function countBlocks(isThere: (block: number) => boolean): number {
  let low = 0;
  let high = 1;
  while (high <= 2 ** 32 && isThere(high - 1)) {
    low = high;
    high *= 2;
  }
  while (high - low > 1) {
    const middle = Math.floor((low + high) / 2);
    if (isThere(middle - 1)) low = middle;
    else high = middle;
  }
  return low;
}

export type StoreProblem = BadSuperblock | 'shrunk' | 'log-damaged';

/** The store holds no log that can be trusted. */
export class UnusableStore extends Error {
  override name = 'UnusableStore';
  constructor(
    readonly problem: StoreProblem,
    message: string,
  ) {
    super(message);
  }
}

const PROBLEMS: Record<BadSuperblock, string> = {
  blank: 'it is blank: no card has used it',
  foreign: 'something else is on it: no copy of the superblock is a card’s',
  damaged: 'every copy of its superblock is damaged',
  newer: 'a later firmware has formatted it: use the `ribbon` that came with that firmware',
};

export interface LogRecord {
  number: number;
  kind: number;
  /** RecordFlag. */
  flags: number;
  /** Sectors that the PC wrote. */
  sectors: number;
  /** Its command was cut off by a loss of power: it never happened. */
  isVoid: boolean;
  segment: number;
  /** Its header's row in the segment, and the row behind its last block. */
  row: number;
  end: number;
}

export interface LogBlock {
  image: number;
  checksum: number;
  valid: number;
  dirty: number;
  /** Sectors that are not valid are lost. */
  isLost: boolean;
  /** The PC wrote it, and it was not known to be committed when the record was made. */
  isWrite: boolean;
  /** Block of the store. */
  at: number;
}

export class StoreLog {
  /** Of the newest superblock. */
  readonly superblock: Superblock;
  /** Oldest and newest segment of the log. */
  tail = 1;
  head = 1;
  /** What the last record says. */
  progress: Progress = NO_PROGRESS;
  /** Number that the next record would have. */
  nextNumber = 1;
  /** Of the first record in the tail. */
  firstNumber = 1;
  readonly source: StoreSource;
  readonly #rows = new Map<number, Buffer>();
  readonly #firstRecords = new Map<number, number>();
  /** The least power-on number that a record behind the segment may have. */
  readonly #powerOns = new Map<number, number>();
  readonly #rotten = new Map<number, number>();
  #voids = new Set<number>();

  constructor(source: StoreSource) {
    this.source = source;
    this.superblock = chooseSuperblock(source);
    const lastSummed = this.#readSummaries();
    this.#replay(lastSummed);
    const { oldestSegment } = this.progress;
    this.tail = Math.max(this.tail, this.head - this.superblock.segments + 1, Math.min(oldestSegment, this.head));
    for (const segment of [...this.#rows.keys()]) {
      if (segment < this.tail || segment > this.head) this.#rows.delete(segment);
    }
    this.firstNumber = this.#firstRecords.get(this.tail) ?? this.nextNumber;
    const { committed, needed } = this.progress;
    if (needed < this.firstNumber && committed + 1 < this.firstNumber) {
      throw new UnusableStore(
        'log-damaged',
        `records ${committed + 1} to ${this.firstNumber - 1}, which the image server does not have, are gone`,
      );
    }
    this.#findVoids();
  }

  /** Data blocks that were stored and are not what they were, as far as the log had to be read to find its end. */
  get rotten(): number {
    return [...this.#rotten.values()].reduce((sum, it) => sum + it, 0);
  }

  /** From the oldest to the newest. */
  *records(): Generator<LogRecord> {
    for (let segment = this.tail; segment <= this.head; segment++) yield* this.recordsOf(segment);
  }

  /** Those that begin in one segment. */
  *recordsOf(segment: number): Generator<LogRecord> {
    const rows = this.#rows.get(segment);
    let number = this.#firstRecords.get(segment) ?? 0;
    for (let row = 0; rows !== undefined && row < SEGMENT_ROWS && !isUnusedRow(rows, row); number++) {
      let end = row + 1;
      while (end < SEGMENT_ROWS && !isUnusedRow(rows, end) && !isHeaderRow(rows, end)) end++;
      const head = rowAt(rows, row);
      const isVoid = this.#voids.has(number);
      yield { number, kind: head.valid, flags: head.dirty, sectors: head.key, isVoid, segment, row, end };
      row = end;
    }
  }

  /** The data blocks of a record. */
  *blocksOf(record: LogRecord): Generator<LogBlock> {
    const rows = this.#rows.get(record.segment)!;
    for (let i = record.row + 1; i < record.end; i++) {
      const { key, checksum, valid, dirty, flags } = rowAt(rows, i);
      yield {
        image: key,
        checksum,
        valid,
        dirty,
        isLost: (flags & RowFlag.LOST) !== 0,
        isWrite: (flags & RowFlag.WRITE) !== 0,
        at: this.#segmentBlock(record.segment) + i,
      };
    }
  }

  /** The image server is not known to have this record. */
  isUncommitted(record: LogRecord): boolean {
    const { committed, needed } = this.progress;
    return this.isWrite(record) && !record.isVoid && record.number > committed && record.number >= needed;
  }

  /** It holds what was not committed when it was made. */
  isWrite(record: LogRecord): boolean {
    return record.kind === RecordKind.WRITE || (record.flags & RecordFlag.DIRTY) !== 0;
  }

  /** The 4096 bytes of a block of the log; null when they are not what was stored. */
  readBlock(block: LogBlock): Buffer | null {
    const data = this.source.read(block.at, 1);
    return crc32c(data) === block.checksum ? data : null;
  }

  #segmentBlock(segment: number): number {
    return LOG_START_BLOCK + (segment % this.superblock.segments) * SEGMENT_BLOCKS;
  }

  /** Returns the newest segment that has a summary, 0 when none has. */
  #readSummaries(): number {
    const { segments, storeId } = this.superblock;
    const firstOf = new Map<number, { rows: Buffer; first: number }>();
    let last = 0;
    let oldest = 0;
    for (let place = 0; place < segments; place++) {
      const block = this.source.read(LOG_START_BLOCK + place * SEGMENT_BLOCKS + SEGMENT_ROWS, 1);
      const summary = decodeSummary(block, storeId);
      if (summary === null || summary.segment % segments !== place) continue;
      firstOf.set(summary.segment, { rows: summary.rows, first: summary.firstRecord });
      this.#powerOns.set(summary.segment, summary.powerOns);
      oldest = Math.max(oldest, summary.oldestSegment);
      if (summary.segment <= last) continue;
      last = summary.segment;
      this.nextNumber = summary.firstRecord + summary.records;
      const { rows: _rows, ...progress } = summary;
      this.progress = progress;
    }
    if (last === 0) return 0;
    this.progress = { ...this.progress, oldestSegment: oldest };
    this.head = this.tail = last;
    const isThere = (segment: number): boolean => segment > 0 && segment + segments > last;
    for (let segment = last; isThere(segment); segment--) {
      const known = firstOf.get(segment);
      const older = [...firstOf.keys()].some((it) => it < segment && isThere(it));
      const isNeeded = Math.max(this.progress.needed, this.progress.committed + 1) < this.#firstRecord(segment + 1);
      const found = known ?? (older || isNeeded ? this.#rebuild(segment) : null);
      if (found === null) break;
      this.#rows.set(segment, found.rows);
      this.#firstRecords.set(segment, found.first);
      this.tail = segment;
    }
    return last;
  }

  #firstRecord(segment: number): number {
    return this.#firstRecords.get(segment) ?? 0;
  }

  /** A segment whose summary is missing counts if its records lead exactly to the next one's first. */
  #rebuild(segment: number): { rows: Buffer; first: number } | null {
    const scan = this.#scan(segment, { next: null, powerOns: 0, proven: 0 });
    if (scan.records.length === 0 || scan.isDamaged || scan.next !== this.#firstRecords.get(segment + 1)) return null;
    return { rows: scan.rows, first: scan.records[0].number };
  }

  /** Follows the records behind the last summary. */
  #replay(lastSummed: number): void {
    let proven = 0;
    let again = false;
    for (let segment = lastSummed + 1; ; ) {
      const before = { progress: this.progress, next: this.nextNumber };
      const scan = this.#scan(segment, { next: this.nextNumber, powerOns: this.progress.powerOns, proven });
      if (scan.isDamaged) {
        // The last record of the segment before ends the log only if nothing says that it was stored; this segment does.
        const canGoBack = !again && segment === this.head + 1 && this.head > lastSummed && this.#rows.has(this.head);
        if (!canGoBack) {
          throw new UnusableStore(
            'log-damaged',
            `record ${scan.next}, which had been stored and which the image server may not have, cannot be read`,
          );
        }
        again = true;
        proven = scan.claimed;
        segment = this.head;
        this.nextNumber = this.#firstRecords.get(segment)!;
        const powerOns = segment > this.tail ? (this.#powerOns.get(segment - 1) ?? 0) : 0;
        this.progress = { ...before.progress, powerOns };
        continue;
      }
      if (scan.records.length === 0) break;
      this.#rows.set(segment, scan.rows);
      this.#firstRecords.set(segment, scan.records[0].number);
      this.#rotten.set(segment, scan.rotten);
      for (const record of scan.records) {
        const { powerOns, lagMs, generation, generationId } = record;
        this.progress = {
          powerOns,
          lagMs,
          generation,
          generationId,
          committed: Math.max(this.progress.committed, record.committed),
          needed: Math.max(this.progress.needed, record.needed),
          oldestSegment: Math.max(this.progress.oldestSegment, record.oldestSegment),
        };
      }
      this.#powerOns.set(segment, this.progress.powerOns);
      this.nextNumber = scan.next;
      this.head = segment;
      segment++;
    }
  }

  /** The records of a segment that count. `next`: number that the first must have, null: any. */
  #scan(segment: number, from: { next: number | null; powerOns: number; proven: number }): Scan {
    const blocks = this.source.read(this.#segmentBlock(segment), SEGMENT_BLOCKS);
    const blockAt = (i: number): Buffer => blocks.subarray(i * BLOCK_SIZE, (i + 1) * BLOCK_SIZE);
    const headerAt = (i: number): RecordHeader | null => decodeRecord(blockAt(i), this.superblock.storeId, segment);
    const scan: Scan = {
      rows: emptyRows(),
      records: [],
      next: from.next ?? 0,
      claimed: 0,
      rotten: 0,
      isDamaged: false,
    };
    let { powerOns } = from;
    const storedBehind = (row: number): number => {
      let stored = 0;
      for (let i = row; i < SEGMENT_ROWS; i++) {
        const header = headerAt(i);
        if (header !== null && header.powerOns >= powerOns) stored = Math.max(stored, header.stored);
      }
      return stored;
    };
    let row = 0;
    while (row < SEGMENT_ROWS) {
      const header = headerAt(row);
      if (header === null || header.powerOns < powerOns || row + 1 + header.entries > SEGMENT_ROWS) break;
      if (header.number !== scan.next && !(from.next === null && row === 0)) break;
      const rotten = new Set<number>();
      // The entries of a FORGET record have no data.
      for (let i = 0; i < header.entries && header.kind !== RecordKind.FORGET; i++) {
        if (crc32c(blockAt(row + 1 + i)) !== recordChecksum(blockAt(row), i)) rotten.add(i);
      }
      // A torn record that the loss of what took its place has brought to light again.
      const isReplaced = (_: unknown, i: number): boolean => (headerAt(row + 1 + i)?.powerOns ?? 0) > header.powerOns;
      if (rotten.size > 0 && Array.from({ length: header.entries }).some(isReplaced)) break;
      if (rotten.size > 0 && header.number > Math.max(from.proven, storedBehind(row))) break;
      enterRecord(scan.rows, row, blockAt(row), header, rotten);
      scan.records.push(header);
      scan.rotten += rotten.size;
      scan.next = header.number + 1;
      powerOns = header.powerOns;
      row += 1 + header.entries;
    }
    scan.claimed = storedBehind(row);
    scan.isDamaged = scan.claimed >= scan.next;
    return scan;
  }

  /** The records of commands that have no last record, whether the power-on that followed has said so or not. */
  #findVoids(): void {
    let open: number[] = [];
    const voids = new Set<number>();
    const giveUp = (): void => {
      for (const number of open) voids.add(number);
      open = [];
    };
    for (const record of this.records()) {
      if (record.kind === RecordKind.WRITE) {
        // One that begins while another is open: the other goes on to be judged by the MARK that voids it.
        if ((record.flags & RecordFlag.BEGINS) !== 0) open = [];
        open.push(record.number);
        if ((record.flags & RecordFlag.ENDS) !== 0) open = [];
      } else if (record.kind === RecordKind.MARK && (record.flags & RecordFlag.VOIDS) !== 0) {
        giveUp();
      }
    }
    giveUp();
    this.#voids = voids;
  }
}

interface Scan {
  rows: Buffer;
  records: RecordHeader[];
  next: number;
  /** What records behind the last one that counts say had been stored. */
  claimed: number;
  rotten: number;
  /** A record that had been stored does not count. */
  isDamaged: boolean;
}

function chooseSuperblock(source: StoreSource): Superblock {
  let best: Superblock | null = null;
  let worst: BadSuperblock = 'blank';
  const order: BadSuperblock[] = ['blank', 'foreign', 'damaged', 'newer'];
  for (let copy = 0; copy < SUPERBLOCK_COPIES && copy < source.blocks; copy++) {
    const superblock = decodeSuperblock(source.read(copy, 1));
    if (typeof superblock === 'string') {
      if (order.indexOf(superblock) > order.indexOf(worst)) worst = superblock;
    } else if (best === null || superblock.sequence > best.sequence) {
      best = superblock;
    }
  }
  // A later firmware was here: what it did to the log is unknown, even if one of our copies is left.
  if (best === null || worst === 'newer') throw new UnusableStore(worst, PROBLEMS[worst]);
  if (best.blocks > source.blocks) {
    throw new UnusableStore(
      'shrunk',
      `it has ${source.blocks} blocks and had ${best.blocks} when it was formatted: copy all of it`,
    );
  }
  return best;
}
