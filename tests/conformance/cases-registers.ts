import assert from 'node:assert/strict';
import {
  Register,
  STATUS_BSY,
  STATUS_DF,
  STATUS_DRDY,
  STATUS_DRQ,
  STATUS_ERR,
} from '../../host/front-end/front-end.js';
import type { ConformanceCase } from './case.js';
import { assertSuccess, lba28, type Pc, pattern, SECTOR } from './pc.js';
import type { Rig } from './rig.js';

const READ_WRITE_REGISTERS = [Register.SECTOR_COUNT, Register.LBA_LOW, Register.LBA_MID, Register.LBA_HIGH] as const;

/** A command that is on its way until `release()`. */
async function flushInFlight(pc: Pc, rig: Rig): Promise<() => Promise<void>> {
  rig.disks[0].commits.hold();
  await pc.writePio(0x30, lba28(100, 1), pattern(100, 1));
  pc.start(0xe7);
  await rig.until(() => rig.disks[0].commits.waiting > 0);
  return async () => {
    rig.disks[0].commits.release();
    await pc.ready();
    assertSuccess(pc.ending());
  };
}

export const REGISTER_CASES: ConformanceCase[] = [
  {
    name: 'registers hold what was written',
    run: async (pc) => {
      await pc.ready();
      for (const register of READ_WRITE_REGISTERS) {
        for (const value of [0x55, 0xaa, 0x00, 0xff]) {
          pc.write(register, value);
          assert.equal(pc.read(register), value);
        }
      }
    },
  },
  {
    name: 'HOB shows what was in a register before the last write, until a register is written',
    run: async (pc, rig) => {
      await pc.ready();
      for (const register of READ_WRITE_REGISTERS) {
        pc.write(register, register);
        pc.write(register, 0x80 | register);
      }
      rig.cable.writeDeviceControl(0x80);
      for (const register of READ_WRITE_REGISTERS) assert.equal(pc.read(register), register);
      rig.cable.writeDeviceControl(0x00);
      for (const register of READ_WRITE_REGISTERS) assert.equal(pc.read(register), 0x80 | register);
      rig.cable.writeDeviceControl(0x80);
      pc.write(Register.LBA_LOW, 0x11);
      for (const register of [Register.SECTOR_COUNT, Register.LBA_MID, Register.LBA_HIGH]) {
        assert.equal(pc.read(register), 0x80 | register, 'HOB was cleared by the write');
      }
      rig.cable.writeDeviceControl(0x80);
      assert.equal(pc.read(Register.LBA_LOW), 0x80 | Register.LBA_LOW);
    },
  },
  {
    name: 'BSY and a clean status while a command is on its way, and registers can be read',
    run: async (pc, rig) => {
      await pc.ready();
      const finish = await flushInFlight(pc, rig);
      const status = pc.read(Register.STATUS);
      assert.equal(status & (STATUS_BSY | STATUS_DRDY), STATUS_BSY | STATUS_DRDY);
      assert.equal(status & (STATUS_DF | STATUS_ERR | STATUS_DRQ), 0);
      assert.equal(pc.read(Register.DEVICE) & 0x10, 0);
      assert.equal(pc.interrupt, false);
      await finish();
    },
  },
  {
    name: 'writes while BSY have no effect',
    run: async (pc, rig) => {
      await pc.ready();
      const finish = await flushInFlight(pc, rig);
      const before = [2, 3, 4, 5, 6].map((register) => pc.read(register));
      for (const register of [1, 2, 3, 4, 5, 6]) pc.write(register, 0x5a);
      pc.write(Register.COMMAND, 0xec);
      assert.deepEqual(
        [2, 3, 4, 5, 6].map((register) => pc.read(register)),
        before,
      );
      assert.ok(rig.cards[0].frontEnd.writesIgnored >= 7);
      await finish();
      assert.equal(pc.status & STATUS_DRQ, 0, 'the IDENTIFY DEVICE was not taken');
    },
  },
  {
    name: 'writes while DRQ have no effect, and the transfer goes on',
    run: async (pc, rig) => {
      pattern(0, 16).copy(rig.disks[0].image);
      await pc.ready();
      pc.start(0x20, lba28(3, 1));
      await pc.ready();
      for (const register of [1, 2, 3, 4, 5, 6]) pc.write(register, 0x5a);
      pc.write(Register.COMMAND, 0xe7);
      const data = Buffer.alloc(SECTOR);
      for (let i = 0; i < SECTOR; i += 4) data.writeUInt32LE(rig.cable.readData32(), i);
      assert.deepEqual(data, pattern(3, 1));
      assertSuccess(pc.ending());
    },
  },
  {
    name: 'reading more or less than a DRQ data block does no harm',
    run: async (pc, rig) => {
      pattern(0, 16).copy(rig.disks[0].image);
      await pc.ready();
      pc.start(0x20, lba28(3, 1));
      await pc.ready();
      for (let i = 0; i < SECTOR / 2; i++) rig.cable.readData16();
      for (let i = 0; i < 10; i++) assert.equal(rig.cable.readData16(), 0xffff);
      for (let i = 0; i < 10; i++) rig.cable.writeData16(0);
      assertSuccess(pc.ending());
      pc.start(0x20, lba28(4, 1));
      await pc.ready();
      rig.cable.readData16();
      await pc.softwareReset();
      assert.deepEqual((await pc.readPio(0x20, lba28(4, 1), 1)).data, pattern(4, 1));
    },
  },
  {
    name: 'Alternate Status leaves a pending interrupt, Status clears it',
    run: async (pc) => {
      await pc.ready();
      pc.start(0xe7);
      await pc.ready();
      assert.equal(pc.interrupt, true);
      for (let i = 0; i < 3; i++) assert.equal(pc.status & STATUS_BSY, 0);
      assert.equal(pc.interrupt, true);
      pc.read(Register.STATUS);
      assert.equal(pc.interrupt, false);
    },
  },
  {
    name: 'a new command clears a pending interrupt',
    run: async (pc, rig) => {
      await pc.ready();
      pc.start(0xe7);
      await pc.ready();
      assert.equal(pc.interrupt, true);
      const levels: boolean[] = [];
      rig.cable.onInterrupt = (level) => levels.push(level);
      pc.start(0xe7);
      await pc.ready();
      assert.deepEqual(levels, [false, true]);
      rig.cable.onInterrupt = () => {};
      pc.ending();
    },
  },
  {
    name: 'nIEN holds INTRQ back, and a pending interrupt shows again when it is cleared',
    run: async (pc) => {
      await pc.ready();
      pc.setControl(0x02);
      await pc.succeed(0xe7);
      pc.start(0xe7);
      await pc.ready();
      assert.equal(pc.interrupt, false);
      pc.setControl(0x00);
      assert.equal(pc.interrupt, true);
      pc.setControl(0x02);
      assert.equal(pc.interrupt, false);
      pc.setControl(0x00);
      pc.read(Register.STATUS);
      assert.equal(pc.interrupt, false);
    },
  },
  {
    name: 'with nIEN every kind of transfer works by polling',
    run: async (pc) => {
      await pc.ready();
      pc.setControl(0x02);
      assertSuccess(await pc.writePio(0x30, lba28(9, 3), pattern(9, 3)));
      assert.deepEqual((await pc.readPio(0x20, lba28(9, 3), 3)).data, pattern(9, 3));
      const data = Buffer.alloc(3 * SECTOR);
      const result = await pc.dma(0xc8, lba28(9, 3), data);
      assertSuccess(result);
      assert.equal(result.interrupted, false);
      assert.deepEqual(data, pattern(9, 3));
    },
  },
];
