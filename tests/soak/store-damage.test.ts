// What the faults of a local store may cost: the model against logs made for it.

import assert from 'node:assert/strict';
import { test } from 'node:test';
import { crc32c } from '../../host/card/crc32c.js';
import { RecordFlag, RecordKind } from '../../host/local-store/format.js';
import { fillSector, WORDS, wordsOf } from '../../host/soak/content.js';
import { type LostCommand, StoreDamage } from '../../host/soak/store-damage.js';
import { Violation } from '../../host/soak/world.js';

const BLOCK = 4096;
const FIRST = 16;
const WHOLE = RecordFlag.BEGINS | RecordFlag.ENDS;

interface Written {
  kind?: number;
  flags?: number;
  stored?: number;
  committed?: number;
  /** Image blocks, all eight sectors written by `command`; or what an entry says otherwise. */
  blocks?: { block: number; valid?: number; dirty?: number; lost?: boolean }[];
  command?: number;
}

/** A device, and a firmware that writes records on it one behind the other. */
class Log {
  readonly damaged = new Set<number>();
  readonly damage = new StoreDamage(this.damaged);
  readonly truncations: LostCommand[][] = [];
  /** Where each record lies. */
  readonly places: number[] = [];
  #next = 1;
  #place = FIRST;

  constructor() {
    this.damage.onTruncated = (lost) => this.truncations.push(lost);
  }

  write({
    kind = RecordKind.WRITE,
    flags = WHOLE,
    stored = 0,
    committed = 0,
    blocks = [],
    command = 0,
  }: Written): void {
    const bytes = Buffer.alloc((1 + blocks.length) * BLOCK);
    bytes.write('RBLR');
    bytes.writeUInt16LE(1, 4);
    bytes[6] = kind;
    bytes[7] = flags;
    bytes.writeUInt16LE(blocks.length, 12);
    bytes.writeBigUInt64LE(7n, 16);
    bytes.writeBigUInt64LE(1n, 24);
    bytes.writeBigUInt64LE(BigInt(this.#next), 32);
    bytes.writeBigUInt64LE(BigInt(committed), 40);
    bytes.writeBigUInt64LE(BigInt(stored), 48);
    bytes.writeUInt32LE(1, 56);
    for (const [i, { block, valid = 0xff, dirty = 0xff, lost = false }] of blocks.entries()) {
      const at = 80 + 12 * i;
      bytes.writeUInt32LE(block, at);
      bytes.set([valid, dirty, lost ? 1 : 0], at + 8);
      const words = wordsOf(bytes.subarray((1 + i) * BLOCK, (2 + i) * BLOCK));
      for (let sector = 0; sector < 8; sector++) fillSector(words, sector * WORDS, command, block * 8 + sector);
    }
    bytes.writeUInt32LE(crc32c(bytes.subarray(12, BLOCK)), 8);
    this.places[this.#next] = this.#place;
    this.damage.wrote(this.#place, bytes);
    this.#next += 1;
    this.#place += 1 + blocks.length;
  }

  flush(): void {
    this.damage.flushed(false);
  }

  /** The power goes and comes back; the firmware finds that the log ends before record `number`. */
  restart(number: number): void {
    this.damage.powerCut();
    this.#next = number;
    this.#place = this.places[number] ?? this.#place;
    this.write({ kind: RecordKind.MARK, flags: 0 });
    this.flush();
  }
}

function refuses(body: () => void): void {
  assert.throws(body, (error) => error instanceof Violation && error.oracle === 'O1');
}

test('a damaged block is lost when only the store has it, until it is written again or committed', () => {
  const log = new Log();
  log.write({ command: 1, blocks: [{ block: 5 }, { block: 6 }] });
  log.flush();
  assert.equal(log.damage.isLost(40, 8), false);
  log.damaged.add(log.places[1] + 1);
  assert.deepEqual([log.damage.isLost(40, 8), log.damage.isLost(47, 1), log.damage.isLost(48, 8)], [true, true, false]);
  assert.equal(log.damage.holdsUp, true);
  // In part: what was not written again stays lost, and says so.
  log.write({ command: 2, blocks: [{ block: 5, valid: 0x0f, dirty: 0x0f, lost: true }] });
  assert.equal(log.damage.isLost(40, 8), true);
  log.write({ command: 3, blocks: [{ block: 5 }] });
  assert.deepEqual([log.damage.isLost(40, 8), log.damage.holdsUp], [false, false]);
  log.damaged.add(log.places[3] + 1);
  assert.equal(log.damage.holdsUp, true);
  log.write({ kind: RecordKind.MARK, committed: 3 });
  assert.equal(log.damage.holdsUp, false, 'the image server has it');
});

test('a block that was lost and moved goes on being lost when the place where it was damaged is written over', () => {
  const log = new Log();
  log.write({ command: 1, blocks: [{ block: 5 }] });
  log.flush();
  log.damaged.add(log.places[1] + 1);
  log.write({ kind: RecordKind.RELOCATE, flags: RecordFlag.DIRTY, blocks: [{ block: 5, valid: 0, lost: true }] });
  log.damaged.clear();
  assert.deepEqual([log.damage.isLost(40, 8), log.damage.holdsUp], [true, true]);
  log.write({ command: 2, blocks: [{ block: 5 }] });
  assert.deepEqual([log.damage.isLost(40, 8), log.damage.holdsUp], [false, false]);
});

test('a block that nothing has damaged is never lost, whatever the firmware says', () => {
  const log = new Log();
  log.write({ command: 1, blocks: [{ block: 5 }] });
  log.write({ command: 2, blocks: [{ block: 5, valid: 1, dirty: 1, lost: true }] });
  assert.equal(log.damage.isLost(40, 8), false);
});

test('the log may end at its last record when that is damaged', () => {
  const log = new Log();
  log.write({ command: 1, blocks: [{ block: 5 }] });
  log.flush();
  log.write({ command: 2, stored: 1, blocks: [{ block: 6 }] });
  log.flush();
  log.damaged.add(log.places[2]);
  log.restart(2);
  assert.deepEqual(log.truncations, [[{ command: 2, lbas: [48, 49, 50, 51, 52, 53, 54, 55] }]]);
});

test('with a record goes the rest of its command, and what was written later', () => {
  const log = new Log();
  log.write({ command: 1, flags: RecordFlag.BEGINS, blocks: [{ block: 5 }] });
  log.write({ command: 1, flags: RecordFlag.ENDS, blocks: [{ block: 6 }] });
  log.write({ command: 2, blocks: [{ block: 9, dirty: 1 }] });
  log.flush();
  log.damaged.add(log.places[2] + 1);
  log.restart(2);
  const lost = log.truncations[0].map(({ command, lbas }) => [command, lbas.length]);
  assert.deepEqual(
    new Map(lost as [number, number][]),
    new Map([
      [1, 16],
      [2, 1],
    ]),
  );
});

test('the log must not end before a record that is not damaged, nor before one that is proved to have been stored', () => {
  const log = new Log();
  log.write({ command: 1, blocks: [{ block: 5 }] });
  log.flush();
  refuses(() => log.restart(1));
  const other = new Log();
  other.write({ command: 1, blocks: [{ block: 5 }] });
  other.flush();
  other.write({ command: 2, stored: 1, blocks: [{ block: 6 }] });
  other.flush();
  other.damaged.add(other.places[1]);
  refuses(() => other.restart(1));
});

test('what no flush has made durable is nobody’s fault', () => {
  const log = new Log();
  log.write({ command: 1, blocks: [{ block: 5 }] });
  log.flush();
  log.write({ command: 2, stored: 1, blocks: [{ block: 6 }] });
  log.restart(2);
  assert.deepEqual(log.truncations, []);
  // Nor what a flush that failed was for, until it is written again.
  log.write({ command: 3, blocks: [{ block: 7 }] });
  log.damage.flushed(true);
  log.flush();
  log.restart(3);
  assert.deepEqual(log.truncations, []);
});

test('a superblock that was damaged once may have cost the card its name', () => {
  const log = new Log();
  log.damaged.add(2);
  log.write({ command: 1, blocks: [{ block: 5 }] });
  log.damaged.delete(2);
  assert.equal(log.damage.superblockDamaged, true);
  assert.equal(new Log().damage.superblockDamaged, false);
});
