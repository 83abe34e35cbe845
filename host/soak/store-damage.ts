// What the faults of a local store may cost, and nothing else. Follows every write of the firmware (SPEC.md "Local store"), so it
// knows what lies in each block that the device damages:
//
//   data of a record     nothing while its image block has a newer copy, or the image server has it. Otherwise the block's sectors
//                        are lost: reading them is an error until they are written again, and nothing that was written later can
//                        be sent before
//   the end of the log   a record that is damaged when the power comes back, and that no later header proves to have been stored,
//                        looks like one that the loss of power has torn: the log ends before it, with the commands from it on
//   any other header     the store is refused at power-on
//   superblock           of its last sessions (and on a shared device of the partition table): the image server may take the card for a copy, and refuse it
//
// Everything else that the device does is to be made good by the card.

import {
  BLOCK_SECTORS,
  BLOCK_SIZE,
  decodeAnyRecord,
  decodeEntry,
  type Entry,
  LOG_START_BLOCK,
  RecordFlag,
  type RecordHeader,
  RecordKind,
} from '../local-store/format.js';
import { commandOf, WORDS, wordsOf } from './content.js';
import { Violation } from './world.js';

const SUPERBLOCKS = 4;

/** Sectors of one command of the PC that the log has lost. */
export interface LostCommand {
  command: number;
  lbas: number[];
}

interface StoredRecord {
  header: RecordHeader;
  /** Where its header lies on the device. */
  place: number;
  entries: Entry[];
  /** Entries that say LOST and may: the copy before them was lost. */
  lost: boolean[];
  /** Of a WRITE record with data: the command of the PC that it belongs to, and the sectors that it wrote. */
  command: number;
  lbas: number[];
  written: boolean;
  flushed: boolean;
}

interface Copy {
  record: StoredRecord;
  i: number;
}

export class StoreDamage {
  /** The log has ended early: what it lost, and the generation that its clean blocks were right for. */
  onTruncated: (lost: LostCommand[], generation: number) => void = () => {};
  /** A record of a write of the PC: the generation that the card knew when it made it. */
  onLogged: (command: number, generation: number) => void = () => {};
  /** Blocks of the device whose content is not what was written there last. */
  readonly #damaged: ReadonlySet<number>;
  #records = new Map<number, StoredRecord>();
  /** By image block. */
  #newest = new Map<number, Copy>();
  /** By block of the device: the record whose header lies there. */
  readonly #headers = new Map<number, StoredRecord>();
  #poweredOn = false;
  #superblockDamaged = false;
  /** Some copy says that it is lost, and is: it goes on saying so when what was damaged has long been written over. */
  #everLost = false;
  /** Where the log begins, on a device with a partition for the image behind the partition table. */
  readonly #logStart: number;

  constructor(damaged: ReadonlySet<number>, isShared = false) {
    this.#damaged = damaged;
    this.#logStart = isShared ? 2 * LOG_START_BLOCK : LOG_START_BLOCK;
  }

  // What the device does

  /** The firmware writes `data` from `place` on; before anything of it can go wrong. */
  wrote(place: number, data: Uint8Array): void {
    this.#noteSuperblock();
    const bytes = Buffer.from(data.buffer, data.byteOffset, data.length);
    const header = place < this.#logStart ? null : decodeAnyRecord(bytes.subarray(0, BLOCK_SIZE));
    if (header === null) return;
    if (this.#poweredOn) {
      this.#poweredOn = false;
      this.#resume(header);
    }
    const again = this.#records.get(header.number);
    if (again !== undefined && again.place === place && again.header.powerOns === header.powerOns) again.written = true;
    else this.#add(makeRecord(header, place, bytes));
  }

  /** Every write that had ended is durable, or has to be repeated. */
  flushed(failed: boolean): void {
    for (const record of this.#unflushed()) {
      if (failed) record.written = false;
      else record.flushed = record.written;
    }
  }

  powerCut(): void {
    this.#noteSuperblock();
    // No flush makes durable what was under way; the firmware says what it has found of it.
    for (const record of this.#unflushed()) record.written = false;
    this.#poweredOn = true;
  }

  *#unflushed(): Generator<StoredRecord> {
    // Records are numbered in the order in which they are written, so the newest are the last ones.
    const records = [...this.#records.values()];
    for (let i = records.length - 1; i >= 0 && !records[i].flushed; i--) yield records[i];
  }

  #noteSuperblock(): void {
    for (let first = 0; first < this.#logStart; first += LOG_START_BLOCK)
      if (this.#isDamaged(first, SUPERBLOCKS)) this.#superblockDamaged = true;
  }

  #add(record: StoredRecord): void {
    const { header, place, entries } = record;
    this.#records.delete(header.number);
    this.#records.set(header.number, record);
    for (let at = place; at <= place + entries.length; at++) {
      const before = this.#headers.get(at);
      if (before !== undefined && this.#records.get(before.header.number) === before)
        this.#records.delete(before.header.number);
      this.#headers.delete(at);
    }
    this.#headers.set(place, record);
    if (record.command !== 0) this.onLogged(record.command, header.generation);
    this.#enter(record);
  }

  /** Makes its blocks the newest copies. */
  #enter(record: StoredRecord): void {
    const { header, entries } = record;
    for (const [i, { block, lost }] of entries.entries()) {
      if (header.kind === RecordKind.FORGET) {
        this.#newest.delete(block);
        continue;
      }
      record.lost[i] = lost && this.#lostSectors(this.#newest.get(block)) !== 0;
      if (record.lost[i]) this.#everLost = true;
      this.#newest.set(block, { record, i });
    }
  }

  // Power-on

  /** `mark` is the first record after a power-on: there the log was found to end. */
  #resume(mark: RecordHeader): void {
    const gone = [...this.#records.values()].filter(({ header }) => header.number >= mark.number);
    const isCut = gone.some(({ flushed }) => flushed);
    if (isCut) this.#checkEnd(mark.number);
    // Without its last record a command never happened.
    gone.push(...this.#open(mark.number));
    for (const { header, place } of gone) {
      this.#records.delete(header.number);
      this.#headers.delete(place);
    }
    for (const record of this.#records.values()) record.flushed = true;
    this.#newest = new Map();
    for (const record of [...this.#records.values()].sort((a, b) => a.header.number - b.header.number)) {
      if (record.header.segment < mark.oldestSegment) this.#records.delete(record.header.number);
      else this.#reenter(record);
    }
    if (isCut) this.onTruncated(lostCommands(gone), mark.generation);
  }

  #reenter(record: StoredRecord): void {
    const { header, entries } = record;
    for (const [i, { block }] of entries.entries()) {
      if (header.kind === RecordKind.FORGET) this.#newest.delete(block);
      else this.#newest.set(block, { record, i });
    }
  }

  /** May the log end before record `number`, which was stored? */
  #checkEnd(number: number): void {
    const first = this.#records.get(number);
    if (first !== undefined && !this.#isDamaged(first.place, 1 + writtenEntries(first))) {
      throw new Violation(
        'O1',
        `the local store has given up its log from record ${number} on, which was stored and is not damaged`,
      );
    }
    for (const { header, place, flushed } of this.#records.values()) {
      if (header.number <= number || !flushed || header.stored < number || this.#damaged.has(place)) continue;
      throw new Violation(
        'O1',
        `the local store has given up its log from record ${number} on, although record ${header.number} says that it was stored`,
      );
    }
  }

  #isDamaged(place: number, count: number): boolean {
    for (let at = place; at < place + count; at++) if (this.#damaged.has(at)) return true;
    return false;
  }

  /** Records of the command that has not ended before record `number`. */
  #open(number: number): StoredRecord[] {
    let open: StoredRecord[] = [];
    for (const record of [...this.#records.values()].sort((a, b) => a.header.number - b.header.number)) {
      const { kind, flags } = record.header;
      if (record.header.number >= number) break;
      if (kind !== RecordKind.WRITE) continue;
      if ((flags & RecordFlag.BEGINS) !== 0) open = [];
      open.push(record);
      if ((flags & RecordFlag.ENDS) !== 0) open = [];
    }
    return open;
  }

  // What may show

  /** Sectors of the copy, as a mask, that the store cannot give and the image server does not have. */
  #lostSectors(copy: Copy | undefined): number {
    if (copy === undefined) return 0;
    const { record, i } = copy;
    const { dirty, valid } = record.entries[i];
    if (dirty === 0 || record.header.number <= this.#committed()) return 0;
    if (this.#damaged.has(record.place + 1 + i)) return 0xff;
    return record.lost[i] ? ~valid & 0xff : 0;
  }

  /** What the card knows to be committed, by what it has written. */
  #committed(): number {
    let committed = 0;
    for (const { header } of this.#records.values()) committed = Math.max(committed, header.committed);
    return committed;
  }

  /** May reading these sectors be an error whatever the image server says? */
  isLost(lba: number, count: number): boolean {
    for (let block = Math.floor(lba / BLOCK_SECTORS); block * BLOCK_SECTORS < lba + count; block++)
      if (this.#lostSectors(this.#newest.get(block)) !== 0) return true;
    return false;
  }

  /** Is anything lost that must be sent before what was written later? */
  get holdsUp(): boolean {
    if (this.#damaged.size === 0 && !this.#everLost) return false;
    for (const copy of this.#newest.values()) if (this.#lostSectors(copy) !== 0) return true;
    return false;
  }

  /** May the image server refuse the card? */
  get superblockDamaged(): boolean {
    this.#noteSuperblock();
    return this.#superblockDamaged;
  }

  /** May the card refuse the store because of what lies in its log? */
  get logDamaged(): boolean {
    for (const place of this.#damaged) if (place >= this.#logStart) return true;
    return false;
  }
}

function lostCommands(gone: readonly StoredRecord[]): LostCommand[] {
  const lost = new Map<number, number[]>();
  for (const { command, lbas } of gone) {
    if (command === 0) continue;
    const some = lost.get(command);
    if (some === undefined) lost.set(command, [...lbas]);
    else some.push(...lbas);
  }
  return [...lost].map(([command, lbas]) => ({ command, lbas }));
}

function writtenEntries({ header, entries }: StoredRecord): number {
  return header.kind === RecordKind.FORGET ? 0 : entries.length;
}

function makeRecord(header: RecordHeader, place: number, bytes: Buffer): StoredRecord {
  const entries = Array.from({ length: header.entries }, (_, i) => decodeEntry(bytes, i));
  const record = { header, place, entries, lost: [], command: 0, lbas: [] as number[], written: true, flushed: false };
  return header.kind === RecordKind.WRITE ? { ...record, ...writtenSectors(entries, bytes) } : record;
}

/** Dirty sectors are those of this command and of earlier ones of the PC: its own have the highest number. */
function writtenSectors(entries: readonly Entry[], bytes: Buffer): { command: number; lbas: number[] } {
  let command = 0;
  let lbas: number[] = [];
  for (const [i, { block, dirty }] of entries.entries()) {
    const words = wordsOf(bytes.subarray((1 + i) * BLOCK_SIZE, (2 + i) * BLOCK_SIZE));
    for (let sector = 0; sector < BLOCK_SECTORS; sector++) {
      if ((dirty & (1 << sector)) === 0) continue;
      const lba = block * BLOCK_SECTORS + sector;
      const number = commandOf(words, sector * WORDS, lba);
      if (number < command || number <= 0) continue;
      if (number > command) lbas = [];
      command = number;
      lbas.push(lba);
    }
  }
  return { command, lbas };
}
