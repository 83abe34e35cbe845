// Where does the master image stand in a card's write log, and do the two together make the disk that the PC sees?
//
// The PC sees of every sector the newest copy on the local store, and the master's where the store has none. After everything
// that is uncommitted has been sent, the master has of every sector the newest uncommitted one, and else what it has now. So
// the two are the same disk exactly when every sector that the store holds and that is not uncommitted is the master's; and the
// master is at a point of the PC's history when, for some record N, each uncommitted sector is as the records up to N left
// it. Both are compared here, byte by byte, for every block of the store.

import { BLOCK_SECTORS, BLOCK_SIZE, RecordFlag, RecordKind, SECTOR_SIZE } from './format.js';
import type { Master } from './nbd-image.js';
import type { LogBlock, LogRecord, StoreLog } from './read-store.js';

const EXAMPLES_MAX = 20;
const COUNTEREXAMPLES_MAX = 10_000;

export interface Difference {
  lba: number;
  what: string;
}

export interface PrefixReport {
  /** The card holds the master to be at least here. */
  committed: number;
  /** The newest record of the log. */
  newest: number;
  /** The last record whose writes the master has. */
  master: number;
  /** What the content alone allows, when several points of the log give the same disk; equal otherwise. */
  masterLowest: number;
  left: {
    records: number;
    commands: number;
    /** Sectors that the PC wrote, and those of them that are not overwritten later. */
    sectors: number;
    sectorsToSend: number;
    blocks: number;
    /** At the next power-on all of it becomes one epoch. */
    epochs: number;
    /** How long the oldest uncommitted write had been waiting when the last record was made. */
    ageMs: number;
    /** The first command that the master does not have. */
    next: { record: number; lba: number; sectors: number } | null;
  };
  /** Clean blocks that were compared, and clean blocks that are not what was stored: a card fetches them again. */
  cleanBlocks: number;
  rottenCleanBlocks: number;
  uncommittedBlocks: number;
  /** Sectors that the PC wrote, that the master does not have and that the store has lost. */
  lost: number[];
  /** Sectors in which log + master is not the PC's view, or the master is at no point of the log. */
  differenceCount: number;
  differences: Difference[];
  /** Blocks that others have changed since the card's last commit: clean ones it forgets at its next connection. */
  staleBlocks: number;
  conflictBlocks: number[];
}

export interface PrefixQuestion {
  log: StoreLog;
  master: Master;
  /** The last record that the image server says it has; null: it does not keep such numbers. */
  serverRecord: number | null;
  /** Has somebody else changed this block since then? */
  isForeign: (block: number) => boolean;
}

/** Sectors of a block, as masks. */
interface Known {
  /** That the store has a clean copy of. */
  valid: number;
  /** Of these, the ones that are the master's. */
  equal: number;
}

interface Uncommitted {
  record: LogRecord;
  block: LogBlock;
  /** Sectors that are the master's; null: the store has lost the block. */
  equal: number | null;
}

export async function verifyPrefix(question: PrefixQuestion): Promise<PrefixReport> {
  const { log, master, isForeign } = question;
  const uncommitted = await readUncommitted(log, master);
  const points = possiblePoints(log);
  const judge = new Judge(points);
  const report: PrefixReport = {
    committed: log.progress.committed,
    newest: log.nextNumber - 1,
    master: log.progress.committed,
    masterLowest: log.progress.committed,
    left: {
      records: 0,
      commands: 0,
      sectors: 0,
      sectorsToSend: 0,
      blocks: 0,
      epochs: 0,
      ageMs: log.progress.lagMs,
      next: null,
    },
    cleanBlocks: 0,
    rottenCleanBlocks: 0,
    uncommittedBlocks: uncommitted.size,
    lost: [],
    differenceCount: 0,
    differences: [],
    staleBlocks: 0,
    conflictBlocks: [],
  };
  const differ = (lba: number, what: string): void => {
    report.differenceCount += 1;
    if (report.differences.length < EXAMPLES_MAX) report.differences.push({ lba, what });
  };

  const clean = new Map<number, Known>();
  for await (const { image, valid, equal } of cleanBlocks(log, master)) {
    if (equal === null) {
      report.rottenCleanBlocks += 1;
      continue;
    }
    report.cleanBlocks += 1;
    const written = uncommitted.get(image);
    if (isForeign(image)) {
      if (equal !== valid) report.staleBlocks += 1;
      continue;
    }
    if (written !== undefined) clean.set(image, { valid, equal });
    const settled = valid & ~(written === undefined ? 0 : written.reduce((mask, { block }) => mask | block.dirty, 0));
    for (const sector of bits(settled & ~equal)) {
      differ(image * BLOCK_SECTORS + sector, 'the clean copy on the card is not what the master has');
    }
  }

  const forgotten = findForgotten(log);
  for (const [image, copies] of uncommitted) {
    if (isForeign(image)) {
      report.conflictBlocks.push(image);
      continue;
    }
    const newest = copies[copies.length - 1];
    // What others have changed since is not what the card would give.
    const isForgotten = newest.record.number < Math.max(forgotten.all, forgotten.blocks.get(image) ?? 0);
    const carried = isForgotten ? 0 : newest.block.valid & ~newest.block.dirty;
    if (newest.equal !== null) {
      for (const sector of bits(carried & ~newest.equal)) {
        differ(image * BLOCK_SECTORS + sector, 'not written since the last commit, and not what the master has');
      }
    }
    for (let sector = 0; sector < BLOCK_SECTORS; sector++) judge.sector(image, sector, copies, clean.get(image));
  }

  judge.settle(report, question.serverRecord, differ);
  describeLeft(report, log, uncommitted);
  return report;
}

/** The uncommitted copies of each block, the oldest first, compared with the master. */
async function readUncommitted(log: StoreLog, master: Master): Promise<Map<number, Uncommitted[]>> {
  const found = new Map<number, Uncommitted[]>();
  for (const record of log.records()) {
    if (!log.isUncommitted(record)) continue;
    for (const block of log.blocksOf(record)) {
      if (!block.isWrite || (block.dirty === 0 && !block.isLost)) continue;
      const data = log.readBlock(block);
      const equal = data === null ? null : equalSectors(data, await readMaster(master, block.image));
      const copies = found.get(block.image);
      if (copies === undefined) found.set(block.image, [{ record, block, equal }]);
      else copies.push({ record, block, equal });
    }
  }
  return found;
}

/** The last record that says that others have changed a block, or all of them. */
function findForgotten(log: StoreLog): { all: number; blocks: Map<number, number> } {
  const found = { all: 0, blocks: new Map<number, number>() };
  for (const record of log.records()) {
    if (record.kind === RecordKind.MARK && (record.flags & RecordFlag.FORGETS) !== 0) found.all = record.number;
    if (record.kind !== RecordKind.FORGET) continue;
    for (const block of log.blocksOf(record)) found.blocks.set(block.image, record.number);
  }
  return found;
}

/** The newest clean copy of each block that has one; `equal` is null when it is not what was stored. */
async function* cleanBlocks(
  log: StoreLog,
  master: Master,
): AsyncGenerator<{ image: number; valid: number; equal: number | null }> {
  const seen = new BlockSet();
  for (let segment = log.head; segment >= log.tail; segment--) {
    for (const record of [...log.recordsOf(segment)].reverse()) {
      if (record.kind === RecordKind.MARK && (record.flags & RecordFlag.FORGETS) !== 0) return;
      if (record.kind === RecordKind.FORGET) {
        for (const block of log.blocksOf(record)) seen.add(block.image);
        continue;
      }
      // What was merged into later records is not committed either, and never was a generation.
      if (record.isVoid || (log.isWrite(record) && record.number > log.progress.committed)) continue;
      for (const block of [...log.blocksOf(record)].reverse()) {
        if (!seen.add(block.image)) continue;
        if (block.valid === 0) {
          yield { image: block.image, valid: 0, equal: null };
          continue;
        }
        const data = log.readBlock(block);
        const equal = data === null ? null : equalSectors(data, await readMaster(master, block.image));
        yield { image: block.image, valid: block.valid, equal: equal === null ? null : equal & block.valid };
      }
    }
  }
}

/** Image blocks, a bit each, in pieces: an image may have 2^29, and most stores hold few of them. */
class BlockSet {
  readonly #pieces = new Map<number, Uint8Array>();

  /** False when it was there before. */
  add(block: number): boolean {
    const number = block >>> 15;
    const piece = this.#pieces.get(number) ?? new Uint8Array(4096);
    this.#pieces.set(number, piece);
    const byte = (block >>> 3) & 4095;
    const bit = 1 << (block & 7);
    if ((piece[byte] & bit) !== 0) return false;
    piece[byte] |= bit;
    return true;
  }
}

/** A block of the master; what lies behind its end is zeros, as on the card. */
async function readMaster(master: Master, block: number): Promise<Buffer> {
  const offset = block * BLOCK_SIZE;
  const length = Math.max(0, Math.min(BLOCK_SIZE, master.size - offset));
  const data = length === 0 ? Buffer.alloc(0) : await master.read(offset, length);
  return length === BLOCK_SIZE ? data : Buffer.concat([data, Buffer.alloc(BLOCK_SIZE - length)]);
}

function equalSectors(a: Buffer, b: Buffer): number {
  let mask = 0;
  for (let sector = 0; sector < BLOCK_SECTORS; sector++) {
    const at = sector * SECTOR_SIZE;
    if (a.compare(b, at, at + SECTOR_SIZE, at, at + SECTOR_SIZE) === 0) mask |= 1 << sector;
  }
  return mask;
}

function bits(mask: number): number[] {
  return Array.from({ length: BLOCK_SECTORS }, (_, i) => i).filter((i) => (mask & (1 << i)) !== 0);
}

/** Records after which an epoch may have ended: what is committed, and every end of a command behind it. What was merged is
 * one epoch to the end of the merge. */
function possiblePoints(log: StoreLog): number[] {
  let merged = 0;
  const ends: number[] = [];
  for (const record of log.records()) {
    if (!log.isUncommitted(record)) continue;
    if (record.kind === RecordKind.RELOCATE) merged = record.number;
    if (record.kind === RecordKind.RELOCATE || (record.flags & RecordFlag.ENDS) !== 0) ends.push(record.number);
  }
  return [log.progress.committed, ...ends.filter((end) => end >= merged)];
}

/** Strikes out the points of the log at which the master cannot be. */
class Judge {
  readonly #points: number[];
  /** Differences of the number of sectors that speak against a point. */
  readonly #against: number[];
  readonly #examples: { from: number; to: number; lba: number; what: string }[] = [];

  constructor(points: number[]) {
    this.#points = points;
    this.#against = new Array(points.length + 1).fill(0);
  }

  sector(image: number, sector: number, copies: Uncommitted[], base: Known | undefined): void {
    const bit = 1 << sector;
    const written = copies.filter(({ block }) => (block.dirty & bit) !== 0);
    if (written.length === 0) return;
    const lba = image * BLOCK_SECTORS + sector;
    // Before the first of them the master has what the card knew, if it knew anything.
    if (base !== undefined && (base.valid & bit) !== 0 && (base.equal & bit) === 0) {
      this.#strike(0, written[0].record.number, lba, `the master does not have what was there before record`);
    }
    for (const [i, { record, block, equal }] of written.entries()) {
      if (equal === null || (block.valid & bit) === 0 || (equal & bit) !== 0) continue;
      const until = written[i + 1]?.record.number ?? Number.POSITIVE_INFINITY;
      this.#strike(record.number, until, lba, `the master does not have what was written by record`);
    }
  }

  /** Points from record `from` on to before record `until` are out. */
  #strike(from: number, until: number, lba: number, what: string): void {
    const first = this.#firstAtOrAfter(from);
    const behind = this.#firstAtOrAfter(until);
    if (first === behind) return;
    this.#against[first] += 1;
    this.#against[behind] -= 1;
    if (this.#examples.length >= COUNTEREXAMPLES_MAX) return;
    this.#examples.push({ from: first, to: behind, lba, what: `${what} ${from === 0 ? until : from}` });
  }

  #firstAtOrAfter(record: number): number {
    let low = 0;
    let high = this.#points.length;
    while (low < high) {
      const middle = (low + high) >> 1;
      if (this.#points[middle] < record) low = middle + 1;
      else high = middle;
    }
    return low;
  }

  /** Chooses the master's point: where the server says it is, else the last one that nothing speaks against. */
  settle(report: PrefixReport, serverRecord: number | null, differ: (lba: number, what: string) => void): void {
    const points = this.#points;
    let sum = 0;
    const against = points.map((_, i) => {
      sum += this.#against[i];
      return sum;
    });
    let chosen: number;
    if (serverRecord !== null) {
      chosen = Math.max(0, this.#firstAtOrAfter(serverRecord + 1) - 1);
      report.master = report.masterLowest = Math.max(serverRecord, report.committed);
    } else {
      const fewest = against.reduce((least, it) => Math.min(least, it), Number.POSITIVE_INFINITY);
      chosen = against.lastIndexOf(fewest);
      report.master = points[chosen];
      report.masterLowest = points[against.indexOf(fewest)];
    }
    if (against[chosen] === 0) return;
    const examples = this.#examples.filter(({ from, to }) => from <= chosen && chosen < to);
    for (const { lba, what } of examples) differ(lba, what);
    report.differenceCount += against[chosen] - examples.length;
  }
}

/** What of the log the master does not have. */
function describeLeft(report: PrefixReport, log: StoreLog, uncommitted: Map<number, Uncommitted[]>): void {
  const { left } = report;
  for (const record of log.records()) {
    if (!log.isUncommitted(record) || record.number <= report.master) continue;
    left.records += 1;
    left.sectors += record.sectors;
    if ((record.flags & RecordFlag.ENDS) !== 0) left.commands += 1;
    if (left.next !== null) continue;
    const [first] = log.blocksOf(record);
    if (first === undefined) continue;
    const lba = first.image * BLOCK_SECTORS + Math.max(0, bits(first.dirty)[0] ?? 0);
    left.next = { record: record.number, lba, sectors: record.sectors };
  }
  for (const [image, copies] of uncommitted) {
    const newest = copies[copies.length - 1];
    if (newest.record.number <= report.master) continue;
    left.blocks += 1;
    left.sectorsToSend += bits(newest.block.dirty & newest.block.valid).length;
    if (newest.equal === null) {
      for (const sector of bits(newest.block.dirty)) report.lost.push(image * BLOCK_SECTORS + sector);
    } else if (newest.block.isLost) {
      for (const sector of bits(~newest.block.valid & 0xff)) report.lost.push(image * BLOCK_SECTORS + sector);
    }
  }
  if (left.records > 0) left.epochs = 1;
  else left.ageMs = 0;
}
