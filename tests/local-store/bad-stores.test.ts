// Local stores that are not as the card left them: a clear refusal or a safe rebuild, and never a wrong byte.

import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import { crc32c } from '../../host/card/crc32c.js';
import type { CardSettings } from '../../host/card/settings.js';
import type { StoreError } from '../../host/card/statistics.js';
import { StoreLog } from '../../host/local-store/read-store.js';
import { SimulatedStore } from '../../host/simulation/simulated-store.js';
import { type RigOptions, StoreRig } from './rig.js';

const LOG_START = 16;
const SEGMENT = 256;
const SUPERBLOCKS = [0, 1, 2, 3];

/** A card that has been off properly: `dirty` writes are not with the server. */
function usedRig(dirty: number, settings: Partial<CardSettings> = {}, options: RigOptions = {}): StoreRig {
  const rig = new StoreRig({ settings, ...options });
  rig.powerOn();
  for (let i = 0; i < 30; i++) rig.write(i * 20, 9);
  rig.drain();
  rig.pass(2000);
  rig.setReachable(false);
  for (let i = 0; i < dirty; i++) rig.write(i * 8, 8);
  rig.powerOff();
  rig.store.powerCut({ kind: 'keep-all', sectors: 0 });
  return rig;
}

/** A card that has sent nine writes, of a block each from lba 0 on: the server has just committed them, and the answer is on its way. Its RAM
 * holds none of them. */
function committedRig(): StoreRig {
  const rig = usedRig(9, {}, { latencyMs: 500, sectors: 10_000, memorySize: 8 << 20 });
  rig.setReachable(true);
  rig.powerOn();
  rig.until(() => rig.generation === 39);
  return rig;
}

/** Where the header of the `nth` last write lies. */
function newestWrite(rig: StoreRig, nth = 1): number {
  return findRecords(rig.store, 1, nth)[0];
}

/** The first block of that record is not what it was any more. */
function loseBlock(rig: StoreRig, header: number): void {
  rig.store.tamper(header + 1, (data) => data.fill(1, 7, 9));
}

function sealSuperblock(data: Uint8Array): void {
  new DataView(data.buffer, data.byteOffset).setUint32(8, crc32c(data.subarray(12, 512)), true);
}

interface BadStore {
  name: string;
  dirty: number;
  spoil(rig: StoreRig): void;
  error: StoreError;
}

const REFUSED: BadStore[] = [
  {
    name: 'something else is on it',
    dirty: 0,
    spoil: (rig) => {
      for (const block of SUPERBLOCKS) rig.store.tamper(block, (data) => data.fill(0x5a));
    },
    error: 'foreign',
  },
  {
    name: 'every superblock is half overwritten',
    dirty: 3,
    spoil: (rig) => {
      for (const block of SUPERBLOCKS) rig.store.tamper(block, (data) => data.fill(0x77, 100, 300));
    },
    error: 'damaged',
  },
  {
    name: 'a later firmware has formatted it',
    dirty: 3,
    spoil: (rig) =>
      rig.store.tamper(1, (data) => {
        data[4] = 9;
        sealSuperblock(data);
      }),
    error: 'newer',
  },
  {
    name: 'it is smaller than it was',
    dirty: 3,
    spoil: (rig) => {
      const smaller = new SimulatedStore(17 << 20);
      for (let block = 0; block < smaller.blocks; block++) {
        smaller.tamper(block, (data) => data.set(rig.store.bytes.subarray(block * 4096, (block + 1) * 4096)));
      }
      rig.store = smaller;
    },
    error: 'shrunk',
  },
  {
    name: 'it holds uncommitted writes of another image',
    dirty: 3,
    spoil: (rig) => {
      Object.assign(rig.settings, { exportName: 'other' });
    },
    error: 'other-image',
  },
  {
    name: 'the header of a stored record is gone, and a later record shows that it was there',
    dirty: 9,
    spoil: (rig) => {
      const header = findRecords(rig.store, 1, 3)[0];
      rig.store.tamper(header, (data) => data.fill(0));
    },
    error: 'log-damaged',
  },
  {
    name: 'it cannot be read',
    dirty: 3,
    spoil: (rig) => {
      for (let block = 0; block < 16; block++) rig.store.unreadable.add(block);
    },
    error: 'device',
  },
];

/** Blocks of record headers of a kind, in the first segment, from the `nth` last on. */
function findRecords(store: SimulatedStore, kind: number, nth: number): number[] {
  const found: number[] = [];
  const view = new DataView(store.bytes.buffer);
  for (let block = LOG_START; block < LOG_START + 4 * SEGMENT; block++) {
    if (view.getUint32(block * 4096, true) === 0x524c4252 && store.bytes[block * 4096 + 6] === kind) found.push(block);
  }
  return found.slice(-nth);
}

describe('bad local stores', () => {
  for (const { name, dirty, spoil, error } of REFUSED) {
    it(`refused: ${name}`, () => {
      const rig = usedRig(dirty);
      spoil(rig);
      rig.setReachable(true);
      rig.powerOn();
      assert.deepEqual(
        { state: rig.card.statistics().storeState, error: rig.card.statistics().storeError },
        { state: 'refused', error },
      );
      assert.equal(rig.card.statistics().sectors, 0, 'there is no disk');
    });
  }

  for (const { name, spoil, error } of REFUSED) {
    if (error === 'device' || error === 'other-image' || error === 'log-damaged') continue;
    it(`formatted when the settings allow it: ${name}`, () => {
      const rig = usedRig(0, { formatStore: true });
      spoil(rig);
      rig.setReachable(true);
      rig.powerOn();
      assert.equal(rig.card.statistics().storeState, 'ready');
      assert.equal(rig.checkView(), 30);
      rig.write(7, 99);
      rig.drain();
    });
  }

  it('a store of another image with nothing that its server lacks is rebuilt', () => {
    const rig = usedRig(0);
    rig.setReachable(true);
    Object.assign(rig.settings, { exportName: 'other' });
    rig.powerOn();
    assert.ok(rig.log.some((line) => line.includes('formatted')));
    assert.equal(rig.card.statistics().storeState, 'ready');
    assert.equal(rig.card.statistics().storeBlocksUsed, 0);
  });

  it('one superblock of four is enough', () => {
    for (const kept of SUPERBLOCKS) {
      const rig = new StoreRig();
      // As many power-ons as it takes for the newest copy to lie there.
      for (let i = 0; i < 4; i++) {
        rig.setReachable(true);
        rig.powerOn();
        rig.write(i * 9, 9);
        rig.drain();
        rig.powerOff();
        rig.store.powerCut({ kind: 'keep-all', sectors: 0 });
      }
      for (const block of SUPERBLOCKS) if (block !== kept) rig.store.tamper(block, (data) => data.fill(0xee, 0, 512));
      rig.powerOn();
      assert.equal(rig.card.statistics().storeState, 'ready', `copy ${kept}`);
      assert.equal(rig.checkView(), 4);
    }
  });

  it('a store that is larger than before is used as before', () => {
    const rig = usedRig(5);
    const larger = new SimulatedStore(40 << 20);
    for (let block = 0; block < rig.store.blocks; block++) {
      larger.tamper(block, (data) => data.set(rig.store.bytes.subarray(block * 4096, (block + 1) * 4096)));
    }
    rig.store = larger;
    rig.setReachable(true);
    rig.powerOn();
    assert.equal(rig.checkView(), 35);
    rig.drain();
  });

  it('a bad block that the server has is fetched again', () => {
    const rig = usedRig(0);
    for (const header of findRecords(rig.store, 1, 30)) rig.store.tamper(header + 1, (data) => data.fill(1, 7, 9));
    rig.setReachable(true);
    rig.powerOn();
    assert.equal(rig.checkView(), 30);
  });

  it('a rotten block that only the card has gives UNC, others are read, and nothing wrong reaches the server', () => {
    const rig = usedRig(9);
    const header = findRecords(rig.store, 1, 4)[0];
    rig.store.tamper(header + 1, (data) => data.fill(1, 7, 9));
    rig.setReachable(true);
    rig.powerOn();
    const { data, failed, error } = rig.read(5 * 8, 8);
    assert.deepEqual({ failed, error }, { failed: true, error: 0x40 }, data.subarray(0, 16).toString('hex'));
    assert.equal(rig.read(3 * 8, 8).failed, false);
    rig.pass(30_000);
    assert.equal(rig.generation, 30, 'the log is not sent with a hole in it');
    assert.ok(rig.log.some((line) => line.startsWith('error')));
  });

  it('the summary of the oldest segment that matters is lost: it is made again', () => {
    const rig = usedRig(0);
    rig.powerOn();
    for (let i = 0; i < 30; i++) rig.write(i * 100, 200);
    rig.powerOff();
    rig.store.powerCut({ kind: 'keep-all', sectors: 0 });
    for (let place = 0; place < 2; place++)
      rig.store.tamper(LOG_START + place * SEGMENT + SEGMENT - 1, (data) => data.fill(0));
    const log = new StoreLog({
      blocks: rig.store.blocks,
      read: (block, count) => Buffer.from(rig.store.bytes.slice(block * 4096, (block + count) * 4096)),
      close: () => {},
    });
    assert.equal(log.tail, 1, 'as verify-prefix sees it');
    rig.setReachable(true);
    rig.powerOn();
    assert.equal(rig.card.statistics().storeState, 'ready');
    assert.equal(rig.checkView(), 60);
    rig.drain();
  });

  it('a block that cannot be read costs those that lie beside it nothing', () => {
    const rig = usedRig(0);
    rig.powerOn();
    // One command of ten blocks, which are sent together.
    rig.write(0, 80);
    rig.powerOff();
    rig.store.powerCut({ kind: 'keep-all', sectors: 0 });
    rig.powerOn();
    const header = findRecords(rig.store, 1, 1)[0];
    rig.store.unreadable.add(header + 5);
    rig.setReachable(true);
    rig.pass(30_000);
    for (let block = 0; block < 10; block++) assert.equal(rig.read(8 * block, 8).failed, block === 4, `block ${block}`);
    rig.write(32, 8);
    rig.drain();
    assert.equal(rig.generation, 32, 'once it is written again everything is sent');
  });

  for (const writes of [0, 1, 2]) {
    it(`what the store lost is not lost any more when the server has it, with ${writes} writes in the block meanwhile`, () => {
      const rig = committedRig();
      loseBlock(rig, newestWrite(rig, 4));
      const { failed, error } = rig.read(5 * 8, 8);
      assert.deepEqual(
        { failed, error },
        { failed: true, error: 0x40 },
        'the card has not heard yet that the server has it',
      );
      for (let i = 0; i < writes; i++) assert.equal(rig.write(5 * 8 + 2 * i, 2).failed, false);
      rig.drain();
      assert.equal(rig.checkView(), 39 + writes);
    });
  }

  it('what the store lost of a later write of the block stays lost', () => {
    const rig = committedRig();
    loseBlock(rig, newestWrite(rig, 4));
    assert.equal(rig.read(5 * 8, 8).failed, true);
    rig.write(5 * 8, 2);
    const later = newestWrite(rig);
    // Out of the RAM cache with it.
    for (let lba = 512; lba < 9728; lba += 512) rig.write(lba, 512);
    loseBlock(rig, later);
    assert.equal(rig.read(5 * 8, 2).failed, true);
    rig.write(5 * 8 + 2, 2);
    assert.equal(rig.card.statistics().epochsCommitted, 0, 'all that before the card has heard');
    rig.pass(30_000);
    assert.equal(rig.generation, 39);
    assert.equal(rig.read(5 * 8, 2).failed, true);
    // Until all of it is written again.
    rig.write(5 * 8, 8);
    rig.drain();
  });

  it('a torn record that the loss of what took its place brings to light again does not count', () => {
    const rig = usedRig(2);
    rig.setReachable(false);
    rig.powerOn();
    // The power goes in the write of this record: its header is there, and some of its data.
    rig.store.cutAt = rig.store.operations + 1;
    rig.write(800, 160);
    rig.powerOff();
    rig.store.powerCut({ kind: 'keep-all', sectors: 100 });
    const place = findRecords(rig.store, 1, 1)[0];
    const torn = rig.store.bytes.slice(place * 4096, (place + 1) * 4096);
    rig.powerOn();
    assert.equal(rig.write(0, 8).failed, false);
    rig.powerOff();
    rig.store.powerCut({ kind: 'keep-all', sectors: 0 });
    // The MARK of that power-on was never written.
    rig.store.tamper(place, (data) => data.set(torn));
    rig.powerOn();
    assert.equal(rig.card.statistics().storeError, 'log-damaged');
  });

  it('the last record of the log cannot be read: its sectors give UNC, not what they were before', () => {
    const rig = usedRig(9);
    const header = findRecords(rig.store, 1, 1)[0];
    rig.store.unreadable.add(header + 1);
    rig.powerOn();
    assert.deepEqual(rig.read(8 * 8, 8, 30_000).failed, true);
    assert.equal(rig.read(7 * 8, 8).failed, false);
    assert.ok(rig.log.some((line) => line.startsWith('error')));
  });

  it('the end of the log cannot be read: no clean block is shown, which may be older than what was there', () => {
    const rig = usedRig(9);
    const header = findRecords(rig.store, 1, 1)[0];
    rig.store.unreadable.add(header);
    for (const lifeAfter of ['first', 'second']) {
      rig.powerOn();
      assert.equal(rig.card.statistics().storeState, 'ready', lifeAfter);
      assert.equal(rig.read(20 * 20, 9).failed, true, `${lifeAfter}: clean`);
      assert.equal(rig.read(7 * 8, 8).failed, false, `${lifeAfter}: uncommitted`);
      assert.ok(rig.log.some((line) => line.startsWith('error') && line.includes('where its log ends')));
      rig.powerOff();
      rig.store.powerCut({ kind: 'keep-all', sectors: 0 });
      rig.store.unreadable.clear();
    }
  });

  it('a store that stops writing gives device faults, and reads go on', () => {
    const rig = usedRig(0);
    rig.setReachable(true);
    rig.powerOn();
    rig.store.failWrites = true;
    const { failed, status } = rig.write(0, 8);
    assert.ok(failed && (status & 0x20) !== 0, 'DF');
    assert.equal(rig.read(100, 8).failed, false);
    assert.equal(rig.card.statistics().storeState, 'failed');
  });

  it('a flush that fails now and then costs nothing', () => {
    const rig = usedRig(0);
    rig.setReachable(true);
    rig.powerOn();
    let count = 0;
    rig.store.onStart = ({ kind }) => {
      if (kind === 'flush') rig.store.failFlushes = count++ % 2 === 0;
    };
    for (let i = 0; i < 10; i++) assert.equal(rig.write(i * 3, 5).failed, false);
    rig.powerOff();
    rig.store.powerCut({ kind: 'lose-all' });
    rig.store.onStart = () => {};
    rig.store.failFlushes = false;
    rig.powerOn();
    assert.equal(rig.checkView(), 40);
  });
});
