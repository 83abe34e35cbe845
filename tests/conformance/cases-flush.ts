import assert from 'node:assert/strict';
import { STATUS_BSY, STATUS_DF, STATUS_DRDY, STATUS_DRQ, STATUS_ERR } from '../../host/front-end/front-end.js';
import { type ConformanceCase, SIZE } from './case.js';
import { assertSuccess, lba28, type Pc, pattern, SECTOR } from './pc.js';
import type { Rig } from './rig.js';

/** FLUSH CACHE (EXT), and what flushes on its way. */
const FLUSHES: { name: string; code: number }[] = [
  { name: 'FLUSH CACHE', code: 0xe7 },
  { name: 'FLUSH CACHE EXT', code: 0xea },
  { name: 'STANDBY IMMEDIATE', code: 0xe0 },
  { name: 'STANDBY', code: 0xe2 },
  { name: 'SLEEP', code: 0xe6 },
];

export const FLUSH_CASES: ConformanceCase[] = [
  ...FLUSHES.map(({ name, code }) => ({
    name: `${name} ends when everything is on the local store: the server need not be there`,
    devices: [{ deviceNumber: 0 as const, size: SIZE, settings: { acknowledgementPoint: 'stored' as const } }],
    run: async (pc: Pc, rig: Rig) => {
      const [disk] = rig.disks;
      await pc.ready();
      await rig.setReachable(false);
      assertSuccess(await pc.writePio(0x30, lba28(20, 8), pattern(20, 8, 1)));
      await pc.succeed(code);
      assert.equal(disk.commitsDone, 0);
      await rig.setReachable(true);
      await rig.until(() => disk.commitsDone > 0);
      assert.deepEqual(Buffer.from(disk.image.subarray(20 * SECTOR, 28 * SECTOR)), pattern(20, 8, 1));
    },
  })),
  ...FLUSHES.map(({ name, code }) => ({
    name: `${name} ends when the server has committed everything, if writes end when it has received them`,
    run: async (pc: Pc, rig: Rig) => {
      const [disk] = rig.disks;
      await pc.ready();
      disk.commits.hold();
      assertSuccess(await pc.writePio(0x30, lba28(20, 8), pattern(20, 8, 1)));
      assert.deepEqual(Buffer.from(disk.image.subarray(20 * SECTOR, 28 * SECTOR)), Buffer.alloc(8 * SECTOR));
      pc.start(code);
      await rig.until(() => disk.commits.waiting > 0);
      await rig.pass(20);
      assert.equal(pc.status & (STATUS_BSY | STATUS_DRDY), STATUS_BSY | STATUS_DRDY);
      assert.equal(pc.status & (STATUS_DF | STATUS_ERR | STATUS_DRQ), 0);
      assert.equal(pc.interrupt, false);
      disk.commits.release();
      await pc.ready();
      assert.equal(pc.interrupt, true);
      assertSuccess(pc.ending());
      assert.deepEqual(Buffer.from(disk.image.subarray(20 * SECTOR, 28 * SECTOR)), pattern(20, 8, 1));
    },
  })),
  {
    name: 'at remote-stored a write ends when the server has committed it, and a flush at once',
    devices: [{ deviceNumber: 0, size: SIZE, settings: { acknowledgementPoint: 'remote-stored' } }],
    run: async (pc, rig) => {
      const [disk] = rig.disks;
      await pc.ready();
      disk.commits.hold();
      pc.start(0x30, lba28(20, 1));
      await pc.ready();
      for (const word of new Uint32Array(pattern(20, 1, 1).slice().buffer)) rig.cable.writeData32(word);
      await rig.until(() => disk.commits.waiting > 0);
      await rig.pass(20);
      assert.equal(pc.status & (STATUS_BSY | STATUS_DF | STATUS_ERR | STATUS_DRQ), STATUS_BSY);
      disk.commits.release();
      await pc.ready();
      assertSuccess(pc.ending());
      await pc.succeed(0xe7);
      assert.equal(disk.commitsDone, 1);
      assert.deepEqual(Buffer.from(disk.image.subarray(20 * SECTOR, 21 * SECTOR)), pattern(20, 1, 1));
    },
  },
  {
    name: 'what was written is committed by its age, without a flush: old systems send none',
    run: async (pc, rig) => {
      await pc.ready();
      assertSuccess(await pc.writePio(0x30, lba28(20, 8), pattern(20, 8, 1)));
      await rig.until(() => rig.disks[0].commitsDone > 0, 10_000);
      assert.deepEqual(Buffer.from(rig.disks[0].image.subarray(20 * SECTOR, 28 * SECTOR)), pattern(20, 8, 1));
    },
  },
  {
    name: 'a flush of nothing ends at once',
    run: async (pc, rig) => {
      await pc.ready();
      await pc.succeed(0xe7);
      await pc.succeed(0xea);
      assert.equal(rig.disks[0].commitsDone, 0);
    },
  },
];
