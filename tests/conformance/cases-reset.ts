import assert from 'node:assert/strict';
import { Register, STATUS_BSY, STATUS_DRDY, STATUS_DRQ } from '../../host/front-end/front-end.js';
import { type ConformanceCase, SIZE } from './case.js';
import { assertSuccess, lba28, type Pc, pattern, SECTOR } from './pc.js';
import type { DeviceOptions, Rig } from './rig.js';

const DEVICE_0: DeviceOptions = { deviceNumber: 0, size: SIZE };
const DEVICE_1: DeviceOptions = { deviceNumber: 1, size: 2 * SIZE };

/** [ATA-6] 9.12: what a device without the PACKET command set leaves in the registers. */
function assertSignature(pc: Pc, device: 0 | 1): void {
  const [count, low, mid, high] = [2, 3, 4, 5].map((register) => pc.read(register));
  assert.deepEqual({ count, low, mid, high }, { count: 1, low: 1, mid: 0, high: 0 });
  assert.equal(pc.read(Register.DEVICE) & 0x1f, device << 4, 'DEV, and no head');
}

/** EXECUTE DEVICE DIAGNOSTIC; the result is in Device 0's registers. */
async function diagnose(pc: Pc): Promise<number> {
  pc.write(Register.COMMAND, 0x90);
  assert.equal(pc.read(Register.DEVICE) & 0x10, 0, 'DEV is 0 at once');
  await pc.ready(10_000);
  assert.equal(pc.interrupt, true, 'Device 0 interrupts');
  const { status, error } = pc.ending();
  assert.equal(status & (STATUS_BSY | STATUS_DRDY | STATUS_DRQ | 1), STATUS_DRDY);
  return error;
}

/** Brings the device into the middle of a transfer. */
const TRANSFERS: { name: string; begin(pc: Pc, rig: Rig): Promise<void> }[] = [
  {
    name: 'a PIO data-in command',
    begin: async (pc, rig) => {
      pc.start(0x20, lba28(8, 4));
      await pc.ready();
      rig.cable.readData16();
      assert.equal(pc.status & STATUS_DRQ, STATUS_DRQ);
    },
  },
  {
    name: 'a PIO data-out command',
    begin: async (pc, rig) => {
      pc.start(0x30, lba28(8, 4));
      await pc.ready();
      rig.cable.writeData16(0x1234);
      assert.equal(pc.status & STATUS_DRQ, STATUS_DRQ);
    },
  },
  {
    name: 'a DMA data-in command',
    begin: async (pc, rig) => {
      pc.start(0xc8, lba28(8, 4));
      await rig.until(() => rig.cable.dmaDirection() === 'in');
      rig.cable.advanceDma(SECTOR);
    },
  },
  {
    name: 'a DMA data-out command',
    begin: async (pc, rig) => {
      pc.start(0xca, lba28(8, 4));
      await rig.until(() => rig.cable.dmaDirection() === 'out');
      rig.cable.advanceDma(SECTOR);
    },
  },
  {
    name: 'a read that waits for the image server',
    begin: async (pc, rig) => {
      rig.disks[0].reads.hold();
      pc.start(0x20, lba28(8, 4));
      await rig.until(() => rig.disks[0].reads.waiting > 0);
      assert.equal(pc.status & STATUS_BSY, STATUS_BSY);
    },
  },
  {
    name: 'a flush that waits for the image server',
    begin: async (pc, rig) => {
      rig.disks[0].commits.hold();
      await pc.writePio(0x30, lba28(100, 1), pattern(100, 1));
      pc.start(0xe7);
      await rig.until(() => rig.disks[0].commits.waiting > 0);
      assert.equal(pc.status & STATUS_BSY, STATUS_BSY);
    },
  },
];

export const RESET_CASES: ConformanceCase[] = [
  {
    name: 'power-on leaves signature and diagnostic code',
    run: async (pc) => {
      await pc.ready();
      assertSignature(pc, 0);
      assert.equal(pc.read(Register.ERROR), 0x01);
      assert.equal(pc.interrupt, false);
    },
  },
  {
    name: 'SRST leaves signature and diagnostic code, selects Device 0, and keeps the disk',
    devices: [DEVICE_0, DEVICE_1],
    run: async (pc) => {
      await pc.ready();
      pc.select(1);
      await pc.writePio(0x30, lba28(5, 1), pattern(5, 1));
      const { error } = await pc.softwareReset();
      assert.equal(error, 0x01);
      assertSignature(pc, 0);
      pc.select(1);
      await pc.ready();
      assert.equal(pc.read(Register.ERROR), 0x01);
      assert.deepEqual((await pc.readPio(0x20, lba28(5, 1), 1)).data, pattern(5, 1));
    },
  },
  {
    name: 'BSY as long as SRST is set',
    run: async (pc, rig) => {
      await pc.ready();
      pc.setControl(0x04);
      await rig.pass(20);
      assert.equal(pc.status & STATUS_BSY, STATUS_BSY);
      pc.write(Register.COMMAND, 0xec);
      pc.setControl(0x04);
      await rig.pass(20);
      assert.equal(pc.status & STATUS_BSY, STATUS_BSY);
      pc.setControl(0);
      await pc.ready();
      assertSignature(pc, 0);
    },
  },
  ...TRANSFERS.map(({ name, begin }) => ({
    name: `SRST in the middle of ${name}`,
    run: async (pc: Pc, rig: Rig) => {
      pattern(0, 64).copy(rig.disks[0].image);
      await pc.ready();
      await begin(pc, rig);
      const reset = pc.softwareReset();
      rig.disks[0].reads.release();
      rig.disks[0].commits.release();
      assert.equal((await reset).error, 0x01);
      assertSignature(pc, 0);
      assert.equal(rig.cable.dataBlock(), null);
      assert.equal(rig.cable.dmaDirection(), null);
      const { data, status } = await pc.readPio(0x20, lba28(8, 4), 4);
      assertSuccess({ status, error: 0 });
      assert.deepEqual(data, pattern(8, 4), 'a cut write has changed nothing here, a read brings the disk');
    },
  })),
  {
    name: 'a write that was cut by SRST leaves whole sectors, old or new',
    run: async (pc, rig) => {
      pattern(0, 1024).copy(rig.disks[0].image);
      await pc.ready();
      pc.start(0x34, { count: 0, lbaLow: 0, device: 0x40, previous: { count: 2 } });
      for (let block = 0; block < 300; block++) {
        await pc.ready();
        const target = rig.cable.dataBlock();
        assert.ok(target !== null);
        target.set(pattern(block, 1, 7));
        rig.cable.advanceData(SECTOR);
      }
      await pc.softwareReset();
      for (let lba = 0; lba < 512; lba++) {
        const { data } = await pc.readPio(0x20, lba28(lba, 1), 1);
        const isOld = data.equals(pattern(lba, 1));
        const isNew = lba < 300 && data.equals(pattern(lba, 1, 7));
        assert.ok(isOld || isNew, `sector ${lba}`);
      }
    },
  },
  {
    name: 'EXECUTE DEVICE DIAGNOSTIC without Device 1',
    run: async (pc) => {
      await pc.ready();
      assert.equal(await diagnose(pc), 0x01);
      assertSignature(pc, 0);
    },
  },
  {
    name: 'EXECUTE DEVICE DIAGNOSTIC while an absent Device 1 is selected',
    run: async (pc) => {
      await pc.ready();
      pc.select(1);
      assert.equal(pc.read(Register.DEVICE) & 0x10, 0x10);
      assert.equal(await diagnose(pc), 0x01);
      assertSignature(pc, 0);
    },
  },
  {
    name: 'EXECUTE DEVICE DIAGNOSTIC of two devices, from Device 1',
    devices: [DEVICE_0, DEVICE_1],
    run: async (pc) => {
      await pc.ready();
      pc.select(1);
      await pc.ready();
      assert.equal(await diagnose(pc), 0x01);
      assertSignature(pc, 0);
      pc.select(1);
      await pc.ready();
      assertSignature(pc, 1);
      assert.equal(pc.read(Register.ERROR), 0x01);
      assert.equal(pc.interrupt, false);
    },
  },
  {
    name: 'Device 0 reports a Device 1 that does not pass its diagnostics, after 6 s',
    devices: [DEVICE_0, { ...DEVICE_1, dead: true }],
    simulatedTime: true,
    run: async (pc, rig) => {
      await pc.ready();
      assert.equal(pc.read(Register.ERROR), 0x81);
      pc.write(Register.COMMAND, 0x90);
      await rig.pass(5_900);
      assert.equal(pc.status & STATUS_BSY, STATUS_BSY);
      await rig.pass(200);
      assert.equal(pc.status & STATUS_BSY, 0);
      assert.equal(pc.ending().error, 0x81);
      assert.equal((await pc.softwareReset()).error, 0x81);
      assertSuccess(await pc.command(0xe7));
    },
  },
  {
    name: 'a device whose image server does not answer keeps BSY, as a disk that spins up',
    devices: [DEVICE_0, { ...DEVICE_1, dead: true }],
    simulatedTime: true,
    run: async (pc, rig) => {
      await rig.setReachable(false);
      await pc.ready();
      const started = rig.cards[1].start();
      pc.select(1);
      await rig.pass(5_000);
      assert.equal(pc.status & STATUS_BSY, STATUS_BSY);
      pc.start(0xec);
      assert.equal(pc.status & STATUS_BSY, STATUS_BSY, 'a command while BSY has no effect');
      await rig.setReachable(true);
      await pc.ready(30_000);
      await started;
      assert.equal(pc.status & STATUS_DRDY, STATUS_DRDY);
      assert.equal(pc.read(Register.DEVICE) & 0x10, 0x10, 'Device 1 is still selected');
      // The writes to the registers had no effect either.
      assert.equal(pc.read(Register.SECTOR_COUNT), 1);
    },
  },
  {
    name: 'commands go to the selected device alone',
    devices: [DEVICE_0, DEVICE_1],
    run: async (pc, rig) => {
      await pc.ready();
      for (const device of [0, 1] as const) {
        pc.select(device);
        await pc.ready();
        const words = await pc.identify();
        assert.equal(words[60] | (words[61] << 16), (SIZE << device) / SECTOR);
        await pc.writePio(0x30, lba28(77, 1), pattern(77, 1, device + 1));
      }
      for (const device of [0, 1] as const) {
        pc.select(device);
        await pc.succeed(0xe7);
        const stored = rig.disks[device].image.subarray(77 * SECTOR, 78 * SECTOR);
        assert.deepEqual(Buffer.from(stored), pattern(77, 1, device + 1));
      }
    },
  },
  {
    name: 'the other device interrupts only while it is selected',
    devices: [DEVICE_0, DEVICE_1],
    run: async (pc, rig) => {
      await pc.ready();
      pc.start(0xe7);
      await rig.until(() => rig.cable.interrupt);
      pc.select(1);
      assert.equal(pc.interrupt, false, 'Device 0 has released INTRQ');
      await pc.ready();
      pc.read(Register.STATUS);
      pc.select(0);
      assert.equal(pc.interrupt, true, 'its interrupt is still pending');
      pc.read(Register.STATUS);
      assert.equal(pc.interrupt, false);
    },
  },
  {
    name: 'an absent Device 1 reads status 00h and takes no command',
    run: async (pc) => {
      await pc.ready();
      pc.select(1);
      assert.equal(pc.status, 0);
      assert.equal(pc.read(Register.STATUS), 0);
      pc.write(Register.SECTOR_COUNT, 0x55);
      pc.write(Register.LBA_LOW, 0xaa);
      assert.equal(pc.read(Register.SECTOR_COUNT), 0x55, 'Device 0 answers for the registers');
      assert.equal(pc.read(Register.LBA_LOW), 0xaa);
      pc.write(Register.COMMAND, 0xec);
      assert.equal(pc.status, 0);
      assert.equal(pc.interrupt, false);
      pc.select(0);
      assert.equal(pc.status & (STATUS_BSY | STATUS_DRQ), 0, 'Device 0 did not take it either');
    },
  },
  {
    name: 'an absent Device 0 leaves the bus undriven',
    devices: [DEVICE_1],
    run: async (pc) => {
      pc.select(1);
      await pc.ready();
      assertSuccess(await pc.command(0xe7));
      pc.select(0);
      assert.equal(pc.read(Register.STATUS), 0x7f);
      assert.equal(pc.read(Register.SECTOR_COUNT), 0x7f);
      pc.select(1);
      assert.equal((await pc.identify())[93], 0x6b00);
    },
  },
];
