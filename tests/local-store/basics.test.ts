// The local store in ordinary life: writes, power cycles, work without a server.

import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import { StoreRig } from './rig.js';

describe('local store', () => {
  it('writes reach the master image in order', () => {
    const rig = new StoreRig();
    rig.powerOn();
    for (let i = 0; i < 50; i++) rig.write((i * 37) % 4000, 1 + (i % 40));
    assert.equal(rig.checkView(), 50);
    rig.drain();
    assert.equal(rig.generation, 50);
  });

  it('an acknowledged write survives a power cut without a flush, and without the server', () => {
    const rig = new StoreRig();
    rig.powerOn();
    rig.write(100, 8);
    rig.drain();
    rig.setReachable(false);
    for (let i = 0; i < 20; i++) assert.equal(rig.write(i * 16, 12).failed, false);
    rig.powerOff();
    rig.store.powerCut({ kind: 'lose-all' });
    rig.powerOn();
    assert.notEqual(rig.card.statistics().linkState, 'up');
    assert.equal(rig.read(0, 12).failed, false);
    assert.ok(rig.card.statistics().lagBytes >= 20 * 12 * 512);
    rig.setReachable(true);
    rig.pass(15_000);
    assert.equal(rig.checkView(), 21);
    rig.drain();
  });

  it('a command of many pieces is flushed once, at its end', () => {
    const rig = new StoreRig({ storeMs: 3 });
    rig.powerOn();
    rig.drain();
    // The superblock with the size of the image.
    rig.pass(100);
    for (let i = 0; i < 8; i++) {
      const before = rig.card.statistics().storeFlushes;
      // 512 KiB: four pieces, and every other one begins a segment of the log on its way.
      rig.write(i * 128, 1024);
      assert.equal(rig.card.statistics().storeFlushes - before, 1, `command ${i}`);
    }
    rig.drain();
    assert.equal(rig.checkView(), 8);
  });

  for (const point of ['received', 'stored'] as const) {
    it(`FLUSH CACHE is not answered before the store has flushed: writes are done at "${point}"`, () => {
      const rig = new StoreRig({ settings: { acknowledgementPoint: point } });
      rig.powerOn();
      rig.setReachable(false);
      rig.store.holdFlushes = point === 'received';
      assert.equal(rig.write(100, 8).failed, false);
      rig.store.holdFlushes = true;
      // At "stored" the write is stored already: a flush has nothing to wait for.
      rig.startFlush();
      rig.pass(1_000);
      assert.equal(rig.busy, point === 'received');
      rig.store.release();
      assert.equal(rig.end().failed, false);
      rig.powerOff();
      rig.store.powerCut({ kind: 'lose-all' });
      rig.powerOn();
      rig.setReachable(true);
      assert.equal(rig.checkView(), 1);
    });
  }

  it('where a flush waits for the server, it waits for the writes of earlier power-ons too', () => {
    const rig = new StoreRig({ settings: { acknowledgementPoint: 'remote-stored' } });
    rig.powerOn();
    rig.setReachable(false);
    rig.startWrite(100, 8);
    rig.pass(1_000);
    rig.powerOff();
    rig.store.powerCut({ kind: 'lose-all' });
    rig.powerOn();
    rig.startFlush();
    rig.pass(1_000);
    assert.equal(rig.busy, true);
    rig.setReachable(true);
    assert.equal(rig.end().failed, false);
    assert.equal(rig.generation, 1);
  });

  it('with the write cache off (SET FEATURES 82h) a write is done when it is stored, whatever the point', () => {
    const rig = new StoreRig({ settings: { acknowledgementPoint: 'received' } });
    rig.powerOn();
    rig.setReachable(false);
    assert.equal(rig.setWriteCache(false).failed, false);
    rig.store.holdFlushes = true;
    rig.startWrite(100, 8);
    rig.pass(1_000);
    assert.equal(rig.busy, true);
    rig.store.release();
    assert.equal(rig.end().failed, false);
    assert.equal(rig.setWriteCache(true).failed, false);
    rig.store.holdFlushes = true;
    assert.equal(rig.write(200, 8).failed, false);
  });

  it('a long read gives up after its time-out, though the server comes and goes meanwhile', () => {
    const rig = new StoreRig({ sectors: 20_000, latencyMs: 20 });
    rig.powerOn();
    const flap = (): void => {
      if (rig.card.statistics().linkState === 'up') rig.world.breakLinks();
      rig.world.after(300, flap);
    };
    flap();
    const startedMs = rig.world.nowMs;
    assert.equal(rig.read(0, 20_000).failed, true);
    // 20 s for all of its pieces together, and a piece that was on its way; the PC gives up after 30.
    assert.ok(rig.world.nowMs - startedMs < 25_000, `${rig.world.nowMs - startedMs} ms`);
  });

  it('the time that a write waits for room in the log counts once', () => {
    const rig = new StoreRig({ sectors: 40_000, storeMs: 3, settings: { writeStallTimeoutMs: 40_000 } });
    rig.powerOn();
    rig.drain();
    rig.setReachable(false);
    for (let lba = 0; !rig.busy; lba += 256) {
      assert.ok(lba < 40_000, 'the log is never full');
      rig.startWrite(lba, 256);
      rig.pass(200);
    }
    // The card tries every 10 s.
    rig.world.after(22_000, () => rig.setReachable(true));
    assert.equal(rig.end().failed, false);
  });

  it('a write is not given up in the moment in which the answer that it waits for has come', () => {
    const rig = new StoreRig({ latencyMs: 500, settings: { acknowledgementPoint: 'remote-stored' } });
    rig.powerOn();
    rig.drain();
    rig.startWrite(0, 8);
    rig.until(() => rig.generation === 1);
    // The card's processor was stopped a while.
    const clockMs = rig.world.clockMs.bind(rig.world);
    rig.world.clockMs = () => clockMs() + 30_000;
    assert.equal(rig.end().failed, false);
  });

  it('the age of what is not committed is known after a power-on, with a log that was merged', () => {
    const rig = new StoreRig();
    rig.powerOn();
    rig.drain();
    rig.pass(600_000);
    rig.setReachable(false);
    const startedMs = rig.world.nowMs;
    while (rig.card.statistics().merges === 0) assert.equal(rig.write(0, 512).failed, false);
    rig.powerOff();
    rig.store.powerCut({ kind: 'keep-all', sectors: 0 });
    rig.powerOn();
    assert.ok(rig.card.statistics().lagBytes > 0);
    assert.ok(rig.card.statistics().lagMs <= rig.world.nowMs - startedMs, `${rig.card.statistics().lagMs} ms`);
  });

  it('with the write cache off the write and the flush at its end share the time that a PC waits', () => {
    const rig = new StoreRig({ settings: { acknowledgementPoint: 'remote-received' } });
    rig.powerOn();
    assert.equal(rig.setWriteCache(false).failed, false);
    const startedMs = rig.world.nowMs;
    rig.disk.commits.hold();
    rig.setReachable(false);
    rig.world.after(15_000, () => rig.setReachable(true));
    assert.equal(rig.write(100, 8).failed, true);
    // Received at 15 s or a little later, and not committed at 20 s.
    assert.ok(rig.world.nowMs - startedMs < 25_000, `${rig.world.nowMs - startedMs} ms`);
  });

  it('each backlog begins with a small epoch: what has been sent before does not make it larger', () => {
    const rig = new StoreRig({ settings: { epochSizeBytes: 64 << 10, epochAgeMs: 20 } });
    rig.powerOn();
    for (let i = 0; i < 20; i++) {
      rig.write(i, 1);
      rig.drain();
    }
    rig.setReachable(false);
    for (let i = 0; i < 30; i++) rig.write(i * 130, 128);
    const before = rig.disk.commitsDone;
    rig.setReachable(true);
    rig.drain();
    // 30 times 64 KiB, in epochs of 2, 4, 8 and 16 times 64 KiB.
    assert.equal(rig.disk.commitsDone - before, 4);
  });

  it('a log that is full of blocks written once is not moved round and round', () => {
    const rig = new StoreRig({ sectors: 65_541, settings: { writeStallTimeoutMs: 20_000 } });
    rig.powerOn();
    rig.setReachable(false);
    let lba = 0;
    while (!rig.write(lba, 256).failed) lba += 256;
    const { storeBlocks, storeBlocksDirty, storeBlocksWritten } = rig.card.statistics();
    assert.ok(storeBlocksDirty > storeBlocks / 2, `${storeBlocksDirty} of ${storeBlocks} blocks`);
    assert.ok(storeBlocksWritten < 2 * storeBlocks, `${storeBlocksWritten} blocks written`);
  });

  for (const plainServer of ['verify', 'drop'] as const) {
    it(`plain server, "${plainServer}": of a block that was written in part the rest is fetched again`, () => {
      const rig = new StoreRig({ settings: { plainServer } });
      rig.powerOn();
      rig.read(0, 16);
      rig.drain();
      rig.setReachable(false);
      rig.write(2, 1);
      // Somebody else writes the rest of the block.
      const changed = rig.history
        .base()
        .subarray(0, 8 * 512)
        .fill(7);
      changed.copy(rig.disk.image, 0, 0, 512);
      rig.setReachable(true);
      rig.until(() => rig.card.statistics().linkState === 'up');
      const { data, failed } = rig.read(0, 1);
      assert.equal(failed, false);
      assert.deepEqual(data, changed.subarray(0, 512));
    });
  }
});
