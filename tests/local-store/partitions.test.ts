// Several images on one local store: each has a partition, and what is in it is there whatever happens in the others.

import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import { decodePartitionTable } from '../../host/local-store/format.js';
import { partitionOf, StoreLog, type StoreSource } from '../../host/local-store/read-store.js';
import { SimulatedStore } from '../../host/simulation/simulated-store.js';
import { StoreRig } from './rig.js';

const SHARE = 16;
/** Room for two images and a bit. */
const BYTES = (2 * (SHARE + 1) + 2) << 20;
const LOSE_ALL = { kind: 'lose-all' } as const;

/** A card on this store whose image is `exportName`; each has an image server of its own. */
function cardOn(store: SimulatedStore, exportName: string, storeShareSegments = SHARE): StoreRig {
  const seed = exportName.length;
  const rig = new StoreRig({ seed, storeBytes: 0, settings: { exportName, storeShareSegments } });
  rig.store = store;
  return rig;
}

function switchOff(rig: StoreRig): void {
  rig.powerOff();
  rig.store.powerCut(LOSE_ALL);
}

function sourceOf({ blocks, bytes }: SimulatedStore): StoreSource {
  const read = (block: number, count: number): Buffer =>
    Buffer.from(bytes.subarray(block * 4096, (block + count) * 4096));
  return { blocks, read, close: () => {} };
}

describe('several images on one local store', () => {
  it('each keeps its uncommitted writes while the card has the other', () => {
    const store = new SimulatedStore(BYTES);
    const rigs = ['disk', 'other'].map((name) => cardOn(store, name));
    for (let round = 0; round < 3; round++) {
      for (const [i, rig] of rigs.entries()) {
        rig.powerOn();
        assert.equal(rig.card.statistics().storeState, 'ready');
        rig.setReachable(false);
        for (let write = 0; write < 5; write++) assert.equal(rig.write(100 * i + 7 * write, 9).failed, false);
        switchOff(rig);
      }
    }
    for (const rig of rigs) {
      rig.setReachable(true);
      rig.powerOn();
      assert.equal(rig.checkView(), 15);
      rig.drain();
      assert.equal(rig.generation, 15);
      switchOff(rig);
    }
    const partitions = decodePartitionTable(sourceOf(store).read(0, 4));
    assert.deepEqual(
      partitions?.map(({ imageName, first, blocks }) => [imageName, first, blocks]),
      [
        ['disk', 16, 4112],
        ['other', 4128, 4112],
      ],
    );
    const logs = rigs.map(({ settings }) => new StoreLog(partitionOf(sourceOf(store), settings.exportName)));
    assert.deepEqual(
      logs.map(({ superblock }) => superblock.imageName),
      ['disk', 'other'],
    );
    assert.notEqual(logs[0].superblock.storeId, logs[1].superblock.storeId);
    assert.throws(() => partitionOf(sourceOf(store), null), /--store-image/);
    assert.throws(() => partitionOf(sourceOf(store), 'third'), /disk, other/);
  });

  it('power cuts at every store operation while the second image gets its place', () => {
    for (let at = 1; ; at++) {
      const store = new SimulatedStore(BYTES);
      const first = cardOn(store, 'disk');
      first.powerOn();
      first.setReachable(false);
      first.write(8, 8);
      switchOff(first);
      const second = cardOn(store, 'other');
      store.cutAt = store.operations + at;
      second.powerOn();
      if (!second.cut) second.write(3, 3);
      const { cut } = second;
      second.powerOff();
      store.powerCut(at % 2 === 0 ? LOSE_ALL : { kind: 'keep-all', sectors: at % 9 });
      for (const rig of [first, second]) {
        rig.setReachable(true);
        rig.powerOn();
        assert.equal(rig.card.statistics().storeState, 'ready', `cut at ${at}`);
        rig.history.truncate(rig.checkView());
        rig.drain();
        switchOff(rig);
      }
      store.recycle();
      if (cut) continue;
      assert.ok(at > 8, `${at} operations`);
      return;
    }
  });

  it('an image for which there is no room, or that may take none, is refused; the others are untouched', () => {
    for (const share of [SHARE, 0]) {
      const store = new SimulatedStore(BYTES);
      const first = cardOn(store, 'disk');
      first.powerOn();
      first.setReachable(false);
      first.write(8, 8);
      switchOff(first);
      if (share > 0) {
        const second = cardOn(store, 'other');
        second.powerOn();
        switchOff(second);
      }
      const refused = cardOn(store, share > 0 ? 'third' : 'other', share);
      refused.powerOn();
      assert.equal(refused.card.statistics().storeError, 'no-room');
      switchOff(refused);
      first.setReachable(true);
      first.powerOn();
      assert.equal(first.checkView(), 1);
      switchOff(first);
    }
  });

  it('a store that one image has alone stays its own', () => {
    const store = new SimulatedStore(BYTES);
    const alone = cardOn(store, 'disk', 0);
    alone.powerOn();
    alone.setReachable(false);
    alone.write(8, 8);
    switchOff(alone);
    const other = cardOn(store, 'other');
    other.powerOn();
    assert.equal(other.card.statistics().storeError, 'other-image');
    switchOff(other);
    assert.equal(decodePartitionTable(sourceOf(store).read(0, 4)), null);
    alone.setReachable(true);
    alone.powerOn();
    assert.equal(alone.checkView(), 1);
    switchOff(alone);
  });

  it('three of four copies of the table may be damaged', () => {
    for (let kept = 0; kept < 4; kept++) {
      const store = new SimulatedStore(BYTES);
      const rig = cardOn(store, 'disk');
      rig.powerOn();
      rig.setReachable(false);
      rig.write(8, 8);
      switchOff(rig);
      for (let copy = 0; copy < 4; copy++) if (copy !== kept) store.tamper(copy, (data) => data.fill(0xee, 0, 512));
      rig.setReachable(true);
      rig.powerOn();
      assert.equal(rig.checkView(), 1, `copy ${kept}`);
      switchOff(rig);
      store.recycle();
    }
  });
});
