// The register fuzzer in its bounded form, and that its model notices what it is there to notice.

import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import { type Command, DiskModel, decodeCommand, SECTOR } from '../../host/fuzz/disk-model.js';
import { runRegisterFuzz } from '../../host/fuzz/registers.js';

const SECTORS = 100;
const READY = 0x50;

function image(): Buffer {
  const bytes = Buffer.alloc(SECTORS * SECTOR);
  for (let lba = 0; lba < SECTORS; lba++) bytes.fill(lba + 1, lba * SECTOR, (lba + 1) * SECTOR);
  return bytes;
}

function lba28(code: number, lba: number, count: number): Command {
  const now = [count, lba & 0xff, lba >> 8, 0, 0x40];
  return decodeCommand(code, { now, previous: [0, 0, 0, 0, 0] }, 0);
}

/** A model in the middle of a command. */
function modelWith(code: number, lba: number, count: number): DiskModel {
  const model = new DiskModel(image());
  model.begin(lba28(code, lba, count), []);
  return model;
}

describe('register fuzzer', () => {
  it('finds nothing in 250 cases, and has done something in them', async () => {
    const report = await runRegisterFuzz({ seed: 1, cases: 250 });
    assert.equal(report.cases, 250);
    assert.ok(report.commands > 10_000, `${report.commands} commands`);
    assert.ok(report.sectorsChecked > 300_000, `${report.sectorsChecked} sectors read`);
    assert.ok(report.sectorsWritten > 30_000, `${report.sectorsWritten} sectors written`);
    assert.ok(report.failures > 1_000 && report.resets > 500);
  });

  it('gives the same run for the same seed', async () => {
    const first = await runRegisterFuzz({ seed: 77, cases: 5 });
    assert.deepEqual(await runRegisterFuzz({ seed: 77, cases: 5 }), first);
    assert.notDeepEqual(await runRegisterFuzz({ seed: 78, cases: 5 }), first);
  });
});

describe('the fuzzer’s model of a disk', () => {
  it('takes the right bytes and no others', () => {
    modelWith(0x20, 5, 1).read(image().subarray(5 * SECTOR, 6 * SECTOR), false);
    assert.throws(
      () => modelWith(0x20, 5, 1).read(image().subarray(6 * SECTOR, 7 * SECTOR), false),
      /wrong bytes in sector 5/,
    );
  });

  it('knows what was written, and both contents after a write that was cut', () => {
    const data = Buffer.alloc(SECTOR, 0xee);
    const model = modelWith(0x30, 5, 2);
    model.wrote(data);
    model.abandon();
    model.begin(lba28(0x20, 5, 1), []);
    model.read(data, false);
    model.end(READY, 0);
    model.begin(lba28(0x20, 5, 1), []);
    assert.throws(
      () => model.read(image().subarray(5 * SECTOR, 6 * SECTOR), false),
      /wrong bytes/,
      'it was read as new',
    );
    const finished = modelWith(0x30, 5, 1);
    finished.wrote(data);
    assert.equal(finished.end(READY, 0), 1);
    finished.begin(lba28(0x20, 5, 1), []);
    assert.throws(() => finished.read(image().subarray(5 * SECTOR, 6 * SECTOR), false), /wrong bytes/);
  });

  it('notices endings that are too early, unfounded or missing', () => {
    assert.throws(() => modelWith(0x20, 5, 2).end(READY, 0), /done after 0 of 1024 bytes/);
    assert.throws(() => modelWith(0xe7, 0, 0).end(READY | 1, 0x04), /for no reason/);
    assert.throws(() => modelWith(0x20, 99, 2).end(READY, 0), /must fail and did not/);
    assert.throws(() => modelWith(0x20, 99, 2).end(READY | 1, 0x04), /not IDNF/);
    assert.throws(() => modelWith(0xa1, 0, 0).end(READY, 0), /must fail and did not/);
    assert.throws(() => modelWith(0xa1, 0, 0).end(READY | 1, 0x10), /not ABRT/);
    assert.throws(() => modelWith(0x30, 0, 1).end(READY | 1, 0x40), /for no reason/);
    modelWith(0x20, 99, 2).end(READY | 1, 0x10);
    modelWith(0x20, 5, 2).end(READY | 1, 0x40);
  });

  it('notices data of the wrong kind, way or amount', () => {
    assert.throws(() => modelWith(0x20, 5, 1).moves('in', true), /wrong kind of transfer/);
    assert.throws(() => modelWith(0xe7, 0, 0).moves('in', false), /has no data/);
    assert.throws(() => modelWith(0x20, 99, 2).moves('in', false), /must fail and asks for data/);
    assert.throws(() => new DiskModel(image()).moves('in', false), /without a command/);
    const model = modelWith(0x20, 5, 1);
    model.read(image().subarray(5 * SECTOR, 6 * SECTOR), false);
    assert.throws(() => model.read(image().subarray(6 * SECTOR, 7 * SECTOR), false), /more data than/);
  });

  it('compares the image server’s copy after a flush', () => {
    const model = new DiskModel(image());
    model.compare(image());
    const other = image();
    other[7 * SECTOR] ^= 1;
    assert.throws(() => model.compare(other), /sector 7 is not what the PC reads/);
  });
});
