import assert from 'node:assert/strict';
import { STATUS_BSY, STATUS_DF, STATUS_DRDY, STATUS_DRQ, STATUS_ERR } from '../../host/front-end/front-end.js';
import type { ConformanceCase } from './case.js';
import { assertError, assertSuccess, chs, ERROR_UNC, lba28, lba48, type Pc, pattern, SECTOR } from './pc.js';
import type { Rig } from './rig.js';

/** Sectors 1000 to 1099 of a full disk, 1037 of which the server cannot read: with its whole 4 KiB block, 1032 to 1039. */
const FIRST = 1000;
const COUNT = 100;
const UNREADABLE = 1037;
const BAD = 1032;

function breakSector(rig: Rig): void {
  const { image } = rig.disks[0];
  pattern(0, image.length / SECTOR).copy(image);
  rig.disks[0].unreadable.add(UNREADABLE);
}

function assertFault(status: number): void {
  assert.equal(
    status & (STATUS_BSY | STATUS_DRDY | STATUS_DF | STATUS_DRQ | STATUS_ERR),
    STATUS_DRDY | STATUS_DF | STATUS_ERR,
  );
}

export const FAULT_CASES: ConformanceCase[] = [
  {
    name: 'an unreadable sector: UNC with its LBA, and every sector before it arrives (PIO)',
    run: async (pc, rig) => {
      breakSector(rig);
      await pc.ready();
      for (const [code, block] of [
        [0x20, 1],
        [0xc4, 16],
      ]) {
        pc.start(code, lba28(FIRST, COUNT));
        let moved = 0;
        while (((await pc.ready()) & STATUS_DRQ) !== 0) {
          const data = rig.cable.dataBlock();
          assert.ok(data !== null);
          assert.equal(data.length, Math.min(block * SECTOR, (BAD - FIRST) * SECTOR - moved));
          assert.ok(
            pattern(FIRST, COUNT)
              .subarray(moved, moved + data.length)
              .equals(data),
          );
          moved += data.length;
          pc.read(7);
          rig.cable.advanceData(data.length);
        }
        assert.equal(moved, (BAD - FIRST) * SECTOR);
        assert.equal(pc.interrupt, true);
        assertError(pc.ending(), ERROR_UNC);
        assert.equal(pc.result().lba28, BAD);
        assert.equal(pc.result().count, FIRST + COUNT - BAD);
      }
    },
  },
  {
    name: 'an unreadable sector: UNC with its LBA, and every sector before it arrives (DMA)',
    run: async (pc, rig) => {
      breakSector(rig);
      await pc.ready();
      const data = Buffer.alloc(COUNT * SECTOR);
      const result = await pc.dma(0xc8, lba28(FIRST, COUNT), data);
      assertError(result, ERROR_UNC);
      assert.equal(result.interrupted, true);
      assert.equal(result.moved, (BAD - FIRST) * SECTOR);
      assert.ok(data.subarray(0, result.moved).equals(pattern(FIRST, BAD - FIRST)));
      assert.equal(pc.result().lba28, BAD);
    },
  },
  {
    name: 'an unreadable sector far into a long command, by LBA48 and by CHS',
    run: async (pc, rig) => {
      breakSector(rig);
      await pc.ready();
      const data = Buffer.alloc(1500 * SECTOR);
      assertError(await pc.dma(0x25, lba48(1, 1500), data), ERROR_UNC);
      assert.equal(pc.result().lba48, BAD);
      assert.ok(data.subarray(0, (BAD - 1) * SECTOR).equals(pattern(1, BAD - 1)));
      assertError(await pc.command(0x42, lba48(1, 1500)), ERROR_UNC);
      assert.equal(pc.result().lba48, BAD);
      // Sector 1032 is cylinder 1 (1008), head 0, sector 25.
      assertError(await pc.command(0x40, chs(0, 15, 1, 200)), ERROR_UNC);
      const { cylinder, head, sector } = pc.result();
      assert.deepEqual({ cylinder, head, sector }, { cylinder: 1, head: 0, sector: 25 });
    },
  },
  {
    name: 'the sectors around an unreadable one can be read, and it too once it is readable or written',
    run: async (pc, rig) => {
      breakSector(rig);
      await pc.ready();
      assertError(await pc.readPio(0x20, lba28(UNREADABLE, 1), 1), ERROR_UNC);
      for (const lba of [BAD - 1, BAD + 8]) {
        assert.deepEqual((await pc.readPio(0x20, lba28(lba, 1), 1)).data, pattern(lba, 1));
      }
      rig.disks[0].unreadable.clear();
      assert.deepEqual((await pc.readPio(0x20, lba28(UNREADABLE, 1), 1)).data, pattern(UNREADABLE, 1));
      rig.disks[0].unreadable.add(2000);
      assertSuccess(await pc.writePio(0x30, lba28(2000, 8), pattern(2000, 8, 1)));
      assert.deepEqual((await pc.readPio(0x20, lba28(2000, 8), 8)).data, pattern(2000, 8, 1));
    },
  },
  {
    name: 'a read that misses while the server is out of reach ends in UNC after the time-out; hits go on',
    simulatedTime: true,
    run: async (pc, rig) => {
      const { image } = rig.disks[0];
      pattern(0, image.length / SECTOR).copy(image);
      await pc.ready();
      await pc.readPio(0x20, lba28(0, 8), 8);
      await rig.setReachable(false);
      assert.deepEqual((await pc.readPio(0x20, lba28(0, 8), 8)).data, pattern(0, 8));
      pc.start(0x20, lba28(5000, 1));
      await rig.pass(19_000);
      assert.equal(pc.status & STATUS_BSY, STATUS_BSY);
      await rig.pass(2_000);
      assert.equal(pc.status & STATUS_BSY, 0);
      assertError(pc.ending(), ERROR_UNC);
      assert.equal(pc.result().lba28, 5000);
      await rig.setReachable(true);
      assert.deepEqual((await pc.readPio(0x20, lba28(5000, 1), 1)).data, pattern(5000, 1));
    },
  },
  {
    name: 'a read that waits for a lost connection goes on when the server is back',
    simulatedTime: true,
    run: async (pc, rig) => {
      const { image } = rig.disks[0];
      pattern(0, image.length / SECTOR).copy(image);
      await pc.ready();
      await rig.setReachable(false);
      pc.start(0x20, lba28(5000, 1));
      await rig.pass(5_000);
      await rig.setReachable(true);
      assert.equal((await pc.ready()) & STATUS_DRQ, STATUS_DRQ);
      const data = rig.cable.dataBlock();
      assert.ok(data !== null && pattern(5000, 1).equals(data));
      rig.cable.advanceData(SECTOR);
      assertSuccess(pc.ending());
    },
  },
  {
    name: 'a flush that cannot reach the server ends with DF; what was written arrives when it is back',
    simulatedTime: true,
    run: async (pc, rig) => {
      await pc.ready();
      rig.disks[0].commits.hold();
      assertSuccess(await pc.writePio(0x30, lba28(30, 4), pattern(30, 4, 2)));
      await rig.setReachable(false);
      pc.start(0xe7);
      await pc.ready(60_000);
      assert.equal(pc.interrupt, true);
      assertFault(pc.ending().status);
      rig.disks[0].commits.release();
      await rig.setReachable(true);
      await pc.succeed(0xe7);
      assert.deepEqual(Buffer.from(rig.disks[0].image.subarray(30 * SECTOR, 34 * SECTOR)), pattern(30, 4, 2));
    },
  },
  {
    name: 'a write that the server refuses ends with DF and ERR, not with success',
    simulatedTime: true,
    run: async (pc: Pc, rig: Rig) => {
      await pc.ready();
      rig.disks[0].refuseWrites = true;
      const { status } = await pc.writePio(0x30, lba28(30, 4), pattern(30, 4, 2));
      assertFault(status);
      rig.disks[0].refuseWrites = false;
      assertSuccess(await pc.writePio(0x30, lba28(30, 4), pattern(30, 4, 3)));
      await pc.succeed(0xe7);
      assert.deepEqual(Buffer.from(rig.disks[0].image.subarray(30 * SECTOR, 34 * SECTOR)), pattern(30, 4, 3));
    },
  },
  {
    name: 'a long write that the server refuses ends with DF, after the card has taken it',
    simulatedTime: true,
    run: async (pc: Pc, rig: Rig) => {
      await pc.ready();
      rig.disks[0].refuseWrites = true;
      const { status, moved } = await pc.dma(0x35, lba48(30, 1000), pattern(30, 1000, 2));
      assertFault(status);
      assert.equal(moved, 1000 * SECTOR, 'the local store has taken all of it');
      const pio = await pc.writePio(0x39, lba48(30, 1000), pattern(30, 1000, 2), 16);
      assertFault(pio.status);
      assert.equal(pio.moved, 1000 * SECTOR);
    },
  },
];
