// Each oracle by itself, on a history made for it: what must pass passes, what must not does not.

import assert from 'node:assert/strict';
import { test } from 'node:test';
import type { AcknowledgementPoint } from '../../host/card/settings.js';
import { Checker } from '../../host/soak/checker.js';
import { fillSector, SECTOR_SIZE, setBase, WORDS, wordsOf } from '../../host/soak/content.js';
import { BLOCK, type Blocks } from '../../host/soak/memory-store.js';
import { MS, Violation, World } from '../../host/soak/world.js';

const SECTORS = 256;

/** A PC, a card without faults of its own, and a server, as far as the checker can tell. */
class Rig {
  readonly world = new World(1);
  readonly checker: Checker;
  /** The write that each sector of the server's image comes from. */
  readonly image: Uint32Array;
  generation = 0;

  constructor(point: AcknowledgementPoint = 'remote-received', serverKnowsCards = false, sectors = SECTORS) {
    setBase('pattern');
    this.image = new Uint32Array(sectors);
    this.checker = new Checker(this.world, sectors, point, serverKnowsCards);
    this.checker.cardReady();
  }

  sectors(write: number, lba: number, count: number): Buffer {
    const bytes = Buffer.alloc(count * SECTOR_SIZE);
    for (let i = 0; i < count; i++) fillSector(wordsOf(bytes), i * WORDS, write, lba + i);
    return bytes;
  }

  /** The PC writes and is told that it is done. */
  write(lba: number, count: number): number {
    const write = this.checker.begin(lba, count);
    this.checker.received(lba * SECTOR_SIZE, this.sectors(write, lba, count));
    this.checker.acknowledged(write);
    return write;
  }

  /** The server commits a generation with these sectors of these writes. */
  commit(...changes: { write: number; lba: number; count: number }[]): void {
    for (const { write, lba, count } of changes) this.image.fill(write, lba, lba + count);
    const blocks: Blocks = new Map();
    for (const { lba, count } of changes) {
      for (let block = Math.floor(lba / 8); block * 8 < lba + count; block++) {
        const bytes = Buffer.alloc(BLOCK);
        for (let i = 0; i < 8; i++) fillSector(wordsOf(bytes), i * WORDS, this.image[block * 8 + i], block * 8 + i);
        blocks.set(block, bytes);
      }
    }
    this.checker.committed(++this.generation, blocks);
  }

  read(lba: number, write: number): void {
    this.checker.read(lba, this.sectors(write, lba, 1));
  }
}

function violates(oracle: string, body: () => void): void {
  assert.throws(body, (error) => error instanceof Violation && error.oracle === oracle);
}

test('O1: an acknowledgement before the server has every sector', () => {
  const rig = new Rig();
  const write = rig.checker.begin(10, 4);
  rig.checker.received(10 * SECTOR_SIZE, rig.sectors(write, 10, 3));
  violates('O1', () => rig.checker.acknowledged(write));
  rig.checker.received(10 * SECTOR_SIZE, rig.sectors(write, 10, 4));
  rig.checker.acknowledged(write);
});

test('O2: a generation is a prefix of the writes', () => {
  const rig = new Rig();
  const first = rig.write(0, 4);
  const second = rig.write(2, 4);
  const third = rig.write(100, 1);
  rig.commit({ write: first, lba: 0, count: 4 }, { write: second, lba: 2, count: 4 });
  // The third without a fourth, then a fifth without the fourth.
  rig.commit({ write: third, lba: 100, count: 1 });
  rig.write(50, 2);
  const fifth = rig.write(60, 2);
  violates('O2', () => rig.commit({ write: fifth, lba: 60, count: 2 }));
});

test('O2: an old write does not come back', () => {
  const rig = new Rig();
  const first = rig.write(0, 4);
  const second = rig.write(0, 4);
  rig.commit({ write: first, lba: 0, count: 4 }, { write: second, lba: 0, count: 4 });
  violates('O2', () => rig.commit({ write: first, lba: 0, count: 4 }));
});

test('O2: no generation ends inside a command, unless the PC cut it short', () => {
  const rig = new Rig();
  const running = rig.checker.begin(0, 8);
  violates('O2', () => rig.commit({ write: running, lba: 0, count: 5 }));
  const other = new Rig();
  const cut = other.checker.begin(0, 8);
  other.checker.abandoned(cut);
  other.commit({ write: cut, lba: 0, count: 5 });
  other.read(4, cut);
  other.read(5, 0);
  violates('O7', () => other.read(5, cut));
});

test('O2: content is compared byte for byte', () => {
  const rig = new Rig();
  const write = rig.write(0, 8);
  const bytes = rig.sectors(write, 0, 8);
  bytes[4095] ^= 1;
  violates('O2', () => rig.checker.committed(1, new Map([[0, bytes]])));
});

test('O1: remote-stored is after the commit', () => {
  const rig = new Rig('remote-stored');
  const write = rig.checker.begin(0, 4);
  rig.checker.received(0, rig.sectors(write, 0, 4));
  violates('O1', () => rig.checker.acknowledged(write));
  rig.commit({ write, lba: 0, count: 4 });
  rig.checker.acknowledged(write);
});

test('O4: the lag is never below the truth, in bytes, epochs and time', () => {
  const rig = new Rig();
  rig.checker.lag(0, 0, 0);
  const write = rig.write(0, 4);
  rig.checker.lag(2048, 1, 0);
  violates('O4', () => rig.checker.lag(2047, 1, 0));
  violates('O4', () => rig.checker.lag(2048, 0, 0));
  rig.world.nowUs += 100 * MS;
  violates('O4', () => rig.checker.lag(2048, 1, 10));
  rig.checker.lag(2048, 1, 100);
  rig.commit({ write, lba: 0, count: 4 });
  rig.checker.lag(0, 0, 0);
});

test('O7: reads are right; a write that failed is there or not, and stays so', () => {
  const rig = new Rig();
  rig.read(3, 0);
  const write = rig.write(0, 4);
  rig.read(3, write);
  violates('O7', () => rig.read(3, 0));
  const failed = rig.checker.begin(0, 4);
  rig.checker.abandoned(failed);
  rig.read(1, failed);
  violates('O7', () => rig.read(1, write));
  // Sector 0 comes before sector 1, which was seen.
  violates('O7', () => rig.read(0, write));
});

test('O1: a power cut takes nothing that was acknowledged as stored', () => {
  const rig = new Rig('stored');
  const first = rig.write(0, 4);
  rig.commit({ write: first, lba: 0, count: 4 });
  const second = rig.write(0, 4);
  rig.checker.cardRestarted();
  violates('O7', () => rig.read(0, first));
  rig.read(0, second);
});

test('O1: a power cut may take what was only received, but not what was flushed', () => {
  const rig = new Rig('received');
  const flushed = rig.write(0, 4);
  rig.checker.flushed();
  const received = rig.write(0, 4);
  rig.checker.cardRestarted();
  violates('O7', () => rig.read(0, 0));
  rig.read(0, flushed);
  // It was not done, then: it does not come back.
  violates('O7', () => rig.read(0, received));
});

test('O2: a write that a power cut has caught is there or not, as a whole', () => {
  const rig = new Rig('stored');
  const cut = rig.checker.begin(0, 8);
  rig.checker.cutOff(cut);
  rig.checker.cardRestarted();
  rig.read(5, cut);
  violates('O2', () => rig.read(2, 0));
  const other = new Rig('stored');
  const half = other.checker.begin(0, 8);
  other.checker.cutOff(half);
  other.checker.cardRestarted();
  violates('O2', () => other.commit({ write: half, lba: 0, count: 5 }));
});

test('O1, O7: what a damaged store has lost never happened, and nothing else is lost', () => {
  const rig = new Rig('stored');
  const kept = rig.write(0, 4);
  const lost = rig.write(2, 4);
  rig.checker.cardRestarted();
  rig.checker.truncated([{ command: lost, lbas: [2, 3, 4, 5] }], 0);
  rig.read(2, kept);
  rig.read(5, 0);
  violates('O7', () => rig.read(0, 0));
  violates('O7', () => rig.read(4, lost));
});

test('O7: what a damaged store has lost and the server has may be old until the server has told', () => {
  for (const serverKnowsCards of [false, true]) {
    const rig = new Rig('stored', serverKnowsCards);
    const first = rig.write(0, 4);
    rig.commit({ write: first, lba: 0, count: 4 });
    const lost = rig.write(2, 1);
    rig.commit({ write: lost, lba: 2, count: 1 });
    rig.checker.cardRestarted();
    rig.checker.truncated([{ command: lost, lbas: [2] }], 0);
    rig.read(2, first);
    rig.read(2, lost);
    violates('O7', () => rig.read(1, 0));
    const isTold = (): void => rig.checker.learnt(rig.generation);
    isTold();
    if (serverKnowsCards) violates('O7', () => rig.read(2, first));
    else rig.read(2, first);
    // A server that does not know cards gets older data again; one that does, never.
    const regress = (): void => rig.commit({ write: first, lba: 2, count: 1 });
    if (serverKnowsCards) violates('O2', regress);
    else regress();
    const again = rig.write(2, 1);
    violates('O7', () => rig.read(2, first));
    rig.read(2, again);
  }
});

test('O6: what both have changed is a conflict, unless the card knew of the change when it took the write', () => {
  const administrate = (rig: Rig): void => {
    const number = rig.checker.administrate();
    rig.checker.administrated(++rig.generation, number, new Map([[0, rig.sectors(number, 0, 8)]]));
  };
  for (const knew of [0, 1]) {
    const rig = new Rig('stored', true);
    administrate(rig);
    const write = rig.write(2, 1);
    rig.checker.logged(write, knew);
    rig.world.nowUs += MS;
    rig.checker.connected(true);
    const learn = (): void => rig.checker.learnt(1);
    if (knew === 0) violates('O6', learn);
    else learn();
  }
});

test('O6: an administrator’s change is read where a write that failed had been committed before', () => {
  const rig = new Rig('stored', true);
  const failed = rig.checker.begin(0, 8);
  rig.checker.abandoned(failed);
  rig.commit({ write: failed, lba: 0, count: 8 });
  const number = rig.checker.administrate();
  rig.checker.administrated(++rig.generation, number, new Map([[0, rig.sectors(number, 0, 8)]]));
  rig.checker.connected(true);
  rig.checker.learnt(rig.generation);
  rig.checker.commandBegins();
  rig.read(3, number);
});

test('O6: an administrator’s change is read where a write had been committed before, of which the PC hears only later', () => {
  const rig = new Rig('stored', true);
  const write = rig.checker.begin(0, 8);
  rig.commit({ write, lba: 0, count: 8 });
  const number = rig.checker.administrate();
  rig.checker.administrated(++rig.generation, number, new Map([[0, rig.sectors(number, 0, 8)]]));
  rig.checker.connected(true);
  rig.checker.learnt(rig.generation);
  rig.checker.acknowledged(write);
  rig.checker.commandBegins();
  rig.read(3, number);
  violates('O7', () => rig.read(4, write));
});

test('O2: the rest of a long write that was cut in two may come later, though the PC has read it and was told that it failed', () => {
  const LONG = 4000;
  const rig = new Rig('stored', true, LONG);
  const write = rig.checker.begin(0, LONG);
  rig.checker.abandoned(write);
  rig.read(LONG - 1, write);
  rig.commit({ write, lba: 0, count: 2000 });
  rig.commit({ write, lba: 2000, count: 2000 });
});

test('O4: a write that goes on top of what an administrator has changed under it has no lag when it is committed', () => {
  const rig = new Rig('stored', true);
  const write = rig.checker.begin(0, 8);
  const number = rig.checker.administrate();
  rig.checker.administrated(++rig.generation, number, new Map([[0, rig.sectors(number, 0, 8)]]));
  rig.checker.connected(true);
  rig.checker.learnt(rig.generation);
  rig.checker.logged(write, rig.generation);
  rig.commit({ write, lba: 0, count: 8 });
  rig.checker.lag(0, 0, 0);
  rig.checker.acknowledged(write);
  rig.checker.lag(0, 0, 0);
  rig.read(3, write);
  rig.write(2, 1);
  violates('O4', () => rig.checker.lag(0, 0, 0));
});

test('O2: the rest of a write that was cut short may come when an administrator has changed some of it', () => {
  const rig = new Rig('stored', true);
  const write = rig.checker.begin(0, 24);
  rig.checker.abandoned(write);
  rig.commit({ write, lba: 0, count: 16 });
  const number = rig.checker.administrate();
  rig.checker.administrated(++rig.generation, number, new Map([[1, rig.sectors(number, 8, 8)]]));
  rig.image.fill(number, 8, 16);
  rig.checker.connected(true);
  rig.checker.learnt(rig.generation);
  rig.checker.commandBegins();
  rig.read(8, number);
  const next = rig.write(100, 1);
  rig.commit({ write: next, lba: 100, count: 1 });
  violates('O2', () => rig.commit({ write, lba: 16, count: 8 }));
});
