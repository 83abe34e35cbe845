// What the PC did, and the question that everything comes down to: is this the disk after a prefix of it?

import assert from 'node:assert/strict';

export const SECTOR = 512;

interface WriteCommand {
  lba: number;
  sectors: number;
  /** It ended with an error: some of its sectors may be written. */
  failed?: boolean;
}

const WORDS = SECTOR / 4;
/** In every odd word of a sector, with the number of the write. */
const MARKS = Uint32Array.from({ length: WORDS / 2 }, (_, i) => Math.imul(8 * i, 0x9e3779b1));

/** Sector `lba` as write number `id` made it; number 0 is the disk at the beginning. */
export function fillSector(target: Uint8Array, lba: number, id: number): void {
  const words = wordsOf(target);
  for (let i = 0; i < WORDS; i += 2) {
    words[i] = lba;
    words[i + 1] = id ^ MARKS[i >> 1];
  }
}

/** The number of the write that made this sector; fails when it is not sector `lba` of any write. */
export function sectorId(data: Uint8Array, lba: number): number {
  const words = wordsOf(data);
  const id = words[1];
  for (let i = 0; i < WORDS; i += 2) {
    if (words[i] !== lba) assert.fail(`sector ${lba} holds another sector, ${words[i]}, or a mixture`);
    if ((words[i + 1] ^ MARKS[i >> 1]) >>> 0 !== id) assert.fail(`sector ${lba} is a mixture`);
  }
  return id;
}

/** The sector as words, a copy where it does not lie at a multiple of 4. */
function wordsOf(data: Uint8Array): Uint32Array {
  const isAligned = data.byteOffset % 4 === 0;
  return isAligned
    ? new Uint32Array(data.buffer, data.byteOffset, WORDS)
    : new Uint32Array(data.slice(0, SECTOR).buffer, 0, WORDS);
}

/** Disks as they are at the beginning, by size. */
const bases = new Map<number, Buffer>();

/** A longer command may be done in part: when the log is full it goes on as a new one. */
const WHOLE_SECTORS = 1024;

export class History {
  readonly sectors: number;
  /** Commands in the order in which the PC gave them; number n is at n - 1. */
  #commands: WriteCommand[] = [];
  /** How many of them the PC was told are done. */
  acknowledged = 0;
  /** What prefixOf() has found of the command after the prefix, if that was long. */
  #part: { command: number; sectors: number } | null = null;

  constructor(sectors: number) {
    this.sectors = sectors;
    this.#lastDisk = this.base();
    this.#lastFound = new Uint32Array(sectors);
  }

  get issued(): number {
    return this.#commands.length;
  }

  /** The data of the PC's next write. */
  next(lba: number, sectors: number): Buffer {
    this.#commands.push({ lba, sectors });
    const data = Buffer.from(new ArrayBuffer(sectors * SECTOR));
    for (let i = 0; i < sectors; i++) {
      fillSector(data.subarray(i * SECTOR, (i + 1) * SECTOR), lba + i, this.issued);
    }
    return data;
  }

  acknowledge(): void {
    this.acknowledged = this.issued;
  }

  base(): Buffer {
    let disk = bases.get(this.sectors);
    if (disk === undefined) {
      disk = Buffer.from(new ArrayBuffer(this.sectors * SECTOR));
      for (let lba = 0; lba < this.sectors; lba++) fillSector(disk.subarray(lba * SECTOR, (lba + 1) * SECTOR), lba, 0);
      bases.set(this.sectors, disk);
    }
    return Buffer.from(disk);
  }

  /** The disk that was looked at last, and the write that each of its sectors is of: most of the next one is the same. */
  readonly #lastDisk: Buffer;
  readonly #lastFound: Uint32Array;

  /** The write that each sector of the disk is of. */
  #read(disk: Uint8Array): Uint32Array {
    for (let lba = 0; lba < this.sectors; lba++) {
      const at = lba * SECTOR;
      if (this.#lastDisk.compare(disk, at, at + SECTOR, at, at + SECTOR) === 0) continue;
      this.#lastFound[lba] = sectorId(disk.subarray(at, at + SECTOR), lba);
      this.#lastDisk.set(disk.subarray(at, at + SECTOR), at);
    }
    return this.#lastFound;
  }

  /** How many commands `disk` is the outcome of: the least number from `low` to `high` that fits; fails when none does. */
  prefixOf(disk: Uint8Array, low: number, high: number, what: string): number {
    const found = this.#read(disk);
    const expected = new Uint32Array(this.sectors);
    /** What commands that failed may have made of a sector. */
    const possible = new Map<number, Set<number>>();
    let applied = 0;
    let difference = '';
    let fewest = Number.POSITIVE_INFINITY;
    for (let count = low; count <= high; count++) {
      for (; applied < count; applied++) {
        const { lba, sectors, failed } = this.#commands[applied];
        if (!failed) expected.fill(applied + 1, lba, lba + sectors);
        for (let sector = lba; sector < lba + sectors && (failed || possible.size > 0); sector++) {
          if (!failed) possible.delete(sector);
          else possible.set(sector, (possible.get(sector) ?? new Set()).add(applied + 1));
        }
      }
      let wrong = 0;
      let at = -1;
      for (let lba = 0; lba < this.sectors; lba++) {
        if (found[lba] === expected[lba] || possible.get(lba)?.has(found[lba])) continue;
        if (wrong === 0) at = lba;
        wrong += 1;
      }
      this.#part = wrong === 0 ? null : this.#partOf(count, wrong, found, expected);
      if (wrong === 0 || this.#part !== null) return count;
      if (wrong >= fewest) continue;
      fewest = wrong;
      difference = `after ${count}, ${wrong} sectors are wrong; sector ${at} should be of write ${expected[at]} and is of ${found[at]}`;
    }
    assert.fail(`${what} is no prefix of ${low} to ${high} writes; nearest: ${difference}`);
  }

  /** The first sectors of the command after `count`, if they and nothing else are wrong. */
  #partOf(
    count: number,
    wrong: number,
    found: Uint32Array,
    expected: Uint32Array,
  ): { command: number; sectors: number } | null {
    const next = this.#commands[count];
    if (next === undefined || next.sectors <= WHOLE_SECTORS) return null;
    let sectors = 0;
    while (sectors < next.sectors && found[next.lba + sectors] === count + 1) sectors += 1;
    let changed = 0;
    for (let i = 0; i < sectors; i++) if (expected[next.lba + i] !== count + 1) changed += 1;
    return changed === wrong ? { command: count + 1, sectors } : null;
  }

  /** True when write number `id` may be what sector `lba` is of after all commands so far. */
  isCurrent(lba: number, id: number): boolean {
    for (let command = this.issued; command > 0; command--) {
      const { lba: first, sectors, failed } = this.#commands[command - 1];
      if (lba < first || lba >= first + sectors) continue;
      if (command === id) return true;
      if (!failed) return false;
    }
    return id === 0;
  }

  /** The last command ended with an error: nobody knows which of its sectors are written. */
  fail(): void {
    this.#commands[this.issued - 1].failed = true;
    this.acknowledge();
  }

  /** What came after `count` commands never happened. */
  truncate(count: number): void {
    const part = this.#part?.command === count + 1 ? this.#part : null;
    if (part !== null) this.#commands[count].sectors = part.sectors;
    this.#commands.length = part === null ? count : count + 1;
    this.acknowledged = this.issued;
  }
}
