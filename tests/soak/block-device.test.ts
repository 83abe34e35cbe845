// The simulated local store: what is flushed survives a power cut, what is not may not; every fault is remembered.

import assert from 'node:assert/strict';
import { test } from 'node:test';
import {
  type BlockDeviceFaults,
  type BlockOperation,
  NO_FAULTS,
  SimulatedBlockDevice,
  STORE_BLOCK_SIZE,
} from '../../host/soak/block-device.js';
import { World } from '../../host/soak/world.js';

function rig(seed: number, faults: Partial<BlockDeviceFaults> = {}) {
  const world = new World(seed);
  const settings = { blocks: 64, operationUs: 100, blockUs: 20, flushUs: 1000, faults: { ...NO_FAULTS, ...faults } };
  const device = new SimulatedBlockDevice(world, settings);
  /** Runs one operation to its end; 'never' when the power has gone. */
  const operate = async (
    kind: BlockOperation['kind'],
    block: number,
    memory: Uint8Array = new Uint8Array(0),
  ): Promise<string> => {
    let outcome = 'never';
    const done = (failed: boolean): void => {
      outcome = failed ? 'failed' : 'done';
    };
    device.start({ kind, block, count: memory.length / STORE_BLOCK_SIZE, memory, done });
    await world.run();
    return outcome;
  };
  return { device, operate };
}

function filled(value: number, blocks = 1): Uint8Array {
  return new Uint8Array(blocks * STORE_BLOCK_SIZE).fill(value);
}

test('flushed writes survive a power cut; others are there, gone or torn at a sector', async () => {
  const outcomes = new Set<string>();
  for (let seed = 1; seed <= 60; seed++) {
    const { device, operate } = rig(seed);
    assert.equal(await operate('write', 3, filled(1, 2)), 'done');
    assert.equal(await operate('flush', 0), 'done');
    assert.equal(await operate('write', 3, filled(2, 2)), 'done');
    device.powerCut();
    const read = filled(0, 2);
    assert.equal(await operate('read', 3, read), 'done');
    for (let at = 0; at < read.length; at += 512) {
      const sector = read.subarray(at, at + 512);
      assert.ok(sector.every((byte) => byte === sector[0]) && (sector[0] === 1 || sector[0] === 2));
    }
    const ones = read.filter((byte) => byte === 1).length;
    outcomes.add(ones === read.length ? 'gone' : ones === 0 ? 'there' : 'torn');
  }
  assert.deepEqual([...outcomes].sort(), ['gone', 'there', 'torn']);
});

test('the power goes at a chosen operation, also inside a write', async () => {
  const states = new Set<number>();
  for (let seed = 1; seed <= 40; seed++) {
    const { device, operate } = rig(seed);
    let cut = false;
    device.onCut = () => {
      cut = true;
    };
    device.cutAt = 2;
    assert.equal(await operate('flush', 0), 'done');
    assert.equal(await operate('write', 0, filled(5, 4)), 'never');
    assert.ok(cut);
    assert.equal(await operate('read', 0, filled(0)), 'never');
    device.powerCut();
    const read = filled(9, 4);
    assert.equal(await operate('read', 0, read), 'done');
    states.add(read.filter((byte) => byte === 5).length / 512);
  }
  assert.ok(states.has(0) && states.has(32) && states.size > 2);
});

test('lost and misdirected writes end well and are remembered', async () => {
  const lost = rig(1, { lostWrite: 1 });
  assert.equal(await lost.operate('write', 7, filled(1)), 'done');
  const read = filled(9);
  await lost.operate('read', 7, read);
  assert.ok(read.every((byte) => byte === 0));
  assert.deepEqual([...lost.device.damaged], [7]);

  const misdirected = rig(2, { misdirectedWrite: 1 });
  assert.equal(await misdirected.operate('write', 7, filled(1)), 'done');
  assert.ok(misdirected.device.damaged.has(7));
  assert.equal(misdirected.device.faultCounts.misdirectedWrite, 1);
});

test('bit rot changes one bit for good; a bad block cannot be read until it is written', async () => {
  const rotten = rig(3, { bitRot: 1 });
  await rotten.operate('write', 1, filled(0xff));
  await rotten.operate('flush', 0);
  const read = filled(0);
  await rotten.operate('read', 1, read);
  assert.ok(read.some((byte) => byte !== 0xff));
  assert.deepEqual([...rotten.device.damaged], [1]);

  const bad = rig(4, { readError: 1 });
  await bad.operate('write', 1, filled(1));
  assert.equal(await bad.operate('read', 1, filled(0)), 'failed');
});
