import assert from 'node:assert/strict';
import { STATUS_BSY, STATUS_DF, STATUS_DRDY, STATUS_DRQ, STATUS_ERR } from '../../host/front-end/front-end.js';
import type { ConformanceCase } from './case.js';
import { assertSuccess, chs, type Ending, lba28, lba48, type Pc, pattern, SECTOR, type Taskfile } from './pc.js';
import type { Rig } from './rig.js';

const BIG = 48 << 20;

interface DataCommand {
  name: string;
  code: number;
  way: 'pio' | 'multiple' | 'dma';
  extended?: boolean;
}

const READS: DataCommand[] = [
  { name: 'READ SECTORS', code: 0x20, way: 'pio' },
  { name: 'READ SECTORS without retry', code: 0x21, way: 'pio' },
  { name: 'READ SECTORS EXT', code: 0x24, way: 'pio', extended: true },
  { name: 'READ MULTIPLE', code: 0xc4, way: 'multiple' },
  { name: 'READ MULTIPLE EXT', code: 0x29, way: 'multiple', extended: true },
  { name: 'READ DMA', code: 0xc8, way: 'dma' },
  { name: 'READ DMA without retry', code: 0xc9, way: 'dma' },
  { name: 'READ DMA EXT', code: 0x25, way: 'dma', extended: true },
];

const WRITES: DataCommand[] = [
  { name: 'WRITE SECTORS', code: 0x30, way: 'pio' },
  { name: 'WRITE SECTORS without retry', code: 0x31, way: 'pio' },
  { name: 'WRITE SECTORS EXT', code: 0x34, way: 'pio', extended: true },
  { name: 'WRITE MULTIPLE', code: 0xc5, way: 'multiple' },
  { name: 'WRITE MULTIPLE EXT', code: 0x39, way: 'multiple', extended: true },
  { name: 'WRITE DMA', code: 0xca, way: 'dma' },
  { name: 'WRITE DMA without retry', code: 0xcb, way: 'dma' },
  { name: 'WRITE DMA EXT', code: 0x35, way: 'dma', extended: true },
];

/** Lengths around the DRQ data block (16 sectors), the cache block, the half of the data buffer (256) and its double. */
const COUNTS_28 = [1, 2, 15, 16, 17, 100, 255, 256];
const COUNTS_48 = [1, 16, 255, 256, 257, 511, 512, 513, 1025];
const MULTIPLE = 16;

function taskfile(command: DataCommand, lba: number, count: number): Taskfile {
  return command.extended ? lba48(lba, count) : lba28(lba, count);
}

async function read(pc: Pc, command: DataCommand, lba: number, count: number): Promise<Ending & { data: Buffer }> {
  const parameters = taskfile(command, lba, count);
  if (command.way !== 'dma') {
    return pc.readPio(command.code, parameters, count, command.way === 'multiple' ? MULTIPLE : 1);
  }
  const data = Buffer.alloc(count * SECTOR);
  const result = await pc.dma(command.code, parameters, data);
  assert.equal(result.interrupted, true, 'a DMA command interrupts at its end');
  return { ...result, data };
}

async function write(pc: Pc, command: DataCommand, lba: number, data: Buffer): Promise<Ending> {
  const parameters = taskfile(command, lba, data.length / SECTOR);
  if (command.way !== 'dma') {
    return pc.writePio(command.code, parameters, data, command.way === 'multiple' ? MULTIPLE : 1);
  }
  const result = await pc.dma(command.code, parameters, data);
  assert.equal(result.interrupted, true, 'a DMA command interrupts at its end');
  assert.equal(result.moved, data.length);
  return result;
}

/** After success the registers show the last sector, and a count of 0. */
function assertEnd(pc: Pc, command: DataCommand, lba: number, count: number): void {
  const result = pc.result();
  assert.equal(result.count, 0);
  assert.equal(command.extended ? result.lba48 : result.lba28, lba + count - 1);
}

export const DATA_CASES: ConformanceCase[] = [
  ...READS.map((command) => ({
    name: command.name,
    run: async (pc: Pc, rig: Rig) => {
      const { image } = rig.disks[0];
      pattern(0, image.length / SECTOR).copy(image);
      await pc.ready();
      let lba = 3;
      for (const count of command.extended ? COUNTS_48 : COUNTS_28) {
        for (const again of [false, true]) {
          const result = await read(pc, command, lba, count);
          assertSuccess(result);
          assert.ok(result.data.equals(pattern(lba, count)), `${count} sectors at ${lba}${again ? ', again' : ''}`);
          assertEnd(pc, command, lba, count);
        }
        lba += count + 5;
      }
    },
  })),
  ...WRITES.map((command) => ({
    name: command.name,
    run: async (pc: Pc, rig: Rig) => {
      await pc.ready();
      let lba = 3;
      const expected = Buffer.alloc(rig.disks[0].image.length);
      for (const count of command.extended ? COUNTS_48 : COUNTS_28) {
        const data = pattern(lba, count, count);
        data.copy(expected, lba * SECTOR);
        assertSuccess(await write(pc, command, lba, data));
        assertEnd(pc, command, lba, count);
        const back = await pc.readPio(0x24, lba48(lba, count), count);
        assert.ok(back.data.equals(data), `${count} sectors at ${lba} read back`);
        lba += count + 5;
      }
      await pc.succeed(0xe7);
      assert.ok(rig.disks[0].image.equals(expected), 'the master image has exactly what was written');
    },
  })),
  {
    name: '65,536 sectors in one command, by DMA and by PIO',
    devices: [{ deviceNumber: 0, size: BIG }],
    run: async (pc, rig) => {
      const count = 65536;
      const data = pattern(11, count, 1);
      await pc.ready();
      assertSuccess(await pc.dma(0x35, lba48(11, count), data));
      const back = Buffer.alloc(data.length);
      assertSuccess(await pc.dma(0x25, lba48(11, count), back));
      assert.ok(back.equals(data));
      const result = await pc.readPio(0x29, lba48(11, count), count, MULTIPLE);
      assertSuccess(result);
      assert.ok(result.data.equals(data));
      assert.equal(pc.result().lba48, 11 + count - 1);
      await pc.succeed(0xea);
      assert.ok(rig.disks[0].image.subarray(11 * SECTOR, (11 + count) * SECTOR).equals(data));
    },
  },
  {
    name: 'READ VERIFY SECTORS in all its forms moves nothing',
    run: async (pc) => {
      await pc.ready();
      for (const code of [0x40, 0x41]) {
        await pc.succeed(code, lba28(5, 0));
        assert.equal(pc.result().lba28, 5 + 255);
      }
      await pc.succeed(0x42, lba48(5, 1000));
      assert.equal(pc.result().lba48, 5 + 999);
    },
  },
  {
    name: 'a CHS address is the sector that the translation says',
    run: async (pc, rig) => {
      pattern(0, 4096).copy(rig.disks[0].image);
      await pc.ready();
      const { data } = await pc.readPio(0x20, chs(1, 2, 3, 2), 2);
      const lba = (1 * 16 + 2) * 63 + 3 - 1;
      assert.deepEqual(data, pattern(lba, 2));
      const { cylinder, head, sector } = pc.result();
      assert.deepEqual({ cylinder, head, sector }, { cylinder: 1, head: 2, sector: 4 });
    },
  },
  {
    name: 'IDENTIFY DEVICE can be read word by word, reading Status before each',
    run: async (pc, rig) => {
      await pc.ready();
      pc.start(0xec);
      await pc.ready();
      for (let i = 0; i < 256; i++) {
        const status = pc.read(7);
        assert.equal(status & (STATUS_DRDY | STATUS_DRQ), STATUS_DRDY | STATUS_DRQ);
        assert.equal(status & (STATUS_BSY | STATUS_DF | STATUS_ERR), 0);
        rig.cable.readData16();
      }
      assertSuccess(pc.ending());
    },
  },
  {
    name: 'a DMA engine that stops early ends the command without error or interrupt',
    run: async (pc, rig) => {
      pattern(0, 64).copy(rig.disks[0].image);
      await pc.ready();
      for (const limit of [0, 2, SECTOR, 4 * SECTOR - 2]) {
        const data = Buffer.alloc(4 * SECTOR);
        const result = await pc.dma(0xc8, lba28(10, 4), data, { limit });
        assertSuccess(result);
        assert.equal(result.interrupted, false);
        assert.equal(result.moved, limit);
        assert.deepEqual(data.subarray(0, limit), pattern(10, 4).subarray(0, limit));
      }
      for (const limit of [0, SECTOR]) {
        const result = await pc.dma(0xca, lba28(10, 4), pattern(10, 4, 9), { limit });
        assertSuccess(result);
        assert.equal(result.interrupted, false);
      }
      assertSuccess(await pc.dma(0xca, lba28(10, 4), pattern(10, 4, 5)));
      assert.deepEqual((await pc.readPio(0x20, lba28(10, 4), 4)).data, pattern(10, 4, 5));
    },
  },
  {
    name: 'a DMA engine that was stopped while the device was still reading ends the command',
    run: async (pc, rig) => {
      await pc.ready();
      rig.disks[0].reads.hold();
      pc.start(0xc8, lba28(10, 4));
      await rig.until(() => rig.disks[0].reads.waiting > 0);
      rig.cable.terminateDma();
      rig.disks[0].reads.release();
      await pc.ready();
      assert.equal(pc.interrupt, false);
      assertSuccess(pc.ending());
      const data = Buffer.alloc(4 * SECTOR, 1);
      assertSuccess(await pc.dma(0xc8, lba28(10, 4), data));
      assert.deepEqual(data, Buffer.alloc(4 * SECTOR));
    },
  },
  {
    name: 'a DMA engine that stops while the next part is still being read ends the command',
    run: async (pc, rig) => {
      pattern(0, 4096).copy(rig.disks[0].image);
      await pc.ready();
      pc.start(0x25, lba48(0, 1024));
      await rig.until(() => rig.cable.dmaDirection() === 'in');
      rig.disks[0].reads.hold();
      rig.cable.advanceDma(SECTOR);
      rig.cable.terminateDma();
      rig.disks[0].reads.release();
      await pc.ready();
      assertSuccess(pc.ending());
      assert.deepEqual((await pc.readPio(0x24, lba48(2000, 300), 300)).data, pattern(2000, 300));
    },
  },
  {
    name: 'a DMA engine may move any even number of bytes at a time',
    run: async (pc, rig) => {
      pattern(0, 1024).copy(rig.disks[0].image);
      await pc.ready();
      for (const piece of [2, 62, 510, 4096, 65534]) {
        const data = Buffer.alloc(600 * SECTOR);
        assertSuccess(await pc.dma(0x25, lba48(1, 600), data, { piece }));
        assert.ok(data.equals(pattern(1, 600)), `pieces of ${piece}`);
      }
    },
  },
];
