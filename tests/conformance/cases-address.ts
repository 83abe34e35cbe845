import assert from 'node:assert/strict';
import { type ConformanceCase, SECTORS } from './case.js';
import { assertError, assertSuccess, chs, ERROR_IDNF, lba28, lba48, type Pc, pattern, SECTOR } from './pc.js';

const CYLINDERS = Math.floor(SECTORS / (16 * 63));

/** Every command that has an address, and how it takes it. */
const LBA28_COMMANDS = [0x20, 0x21, 0x30, 0x31, 0x40, 0x41, 0xc4, 0xc5, 0xc8, 0xc9, 0xca, 0xcb];
const LBA48_COMMANDS = [0x24, 0x25, 0x29, 0x34, 0x35, 0x39, 0x42];

/** What is asked for, and the first sector of it that does not exist. */
const OUTSIDE: { lba: number; count: number; bad: number }[] = [
  { lba: SECTORS, count: 1, bad: SECTORS },
  { lba: SECTORS - 1, count: 2, bad: SECTORS },
  { lba: SECTORS - 255, count: 256, bad: SECTORS },
  { lba: 0x0fffffff, count: 1, bad: 0x0fffffff },
  { lba: 0x0fffffff, count: 256, bad: 0x0fffffff },
];

const OUTSIDE_48 = [
  { lba: SECTORS - 65535, count: 65536, bad: SECTORS },
  { lba: 2 ** 32, count: 1, bad: 2 ** 32 },
  { lba: 2 ** 32 + 5, count: 8, bad: 2 ** 32 + 5 },
  { lba: 2 ** 48 - 1, count: 65536, bad: 2 ** 48 - 1 },
];

/** An image of `sectors` can be read and written by CHS as IDENTIFY DEVICE describes it, up to its last sector by LBA. */
async function wholeDisk(pc: Pc, sectors: number): Promise<void> {
  const words = await pc.identify();
  const [cylinders, heads, track] = [words[1], words[3], words[6]];
  assert.ok(cylinders >= 1 && heads >= 1 && heads <= 16 && track >= 1 && track <= 63);
  assert.ok(cylinders * heads * track <= sectors);
  assert.equal(words[60] | (words[61] << 16), sectors);
  const last = cylinders * heads * track - 1;
  assertSuccess(await pc.writePio(0x30, chs(cylinders - 1, heads - 1, track, 1), pattern(last, 1, 3)));
  assert.deepEqual((await pc.readPio(0x20, lba28(last, 1), 1)).data, pattern(last, 1, 3));
  assertError(await pc.command(0x40, chs(cylinders, 0, 1, 1)), ERROR_IDNF);
  assertSuccess(await pc.writePio(0x30, lba28(sectors - 1, 1), pattern(sectors - 1, 1, 4)));
  assert.deepEqual((await pc.readPio(0x20, lba28(sectors - 1, 1), 1)).data, pattern(sectors - 1, 1, 4));
  assertError(await pc.command(0x40, lba28(sectors, 1)), ERROR_IDNF);
  await pc.succeed(0xe7);
}

export const ADDRESS_CASES: ConformanceCase[] = [
  {
    name: 'LBA out of range: IDNF with the first bad sector, nothing moved',
    run: async (pc) => {
      await pc.ready();
      for (const { lba, count, bad } of OUTSIDE) {
        for (const code of LBA28_COMMANDS) {
          assertError(await pc.command(code, lba28(lba, count)), ERROR_IDNF);
          assert.equal(pc.result().lba28, bad, `command ${code.toString(16)}, ${count} at ${lba}`);
        }
      }
      for (const { lba, count, bad } of [...OUTSIDE, ...OUTSIDE_48]) {
        if (lba < 0) continue;
        for (const code of LBA48_COMMANDS) {
          assertError(await pc.command(code, lba48(lba, count)), ERROR_IDNF);
          assert.equal(pc.result().lba48, bad, `command ${code.toString(16)}, ${count} at ${lba}`);
        }
      }
    },
  },
  {
    name: 'the last sector can be read in every form',
    run: async (pc, rig) => {
      pattern(0, SECTORS).copy(rig.disks[0].image);
      await pc.ready();
      assert.deepEqual((await pc.readPio(0x20, lba28(SECTORS - 1, 1), 1)).data, pattern(SECTORS - 1, 1));
      assert.deepEqual((await pc.readPio(0x24, lba48(SECTORS - 1, 1), 1)).data, pattern(SECTORS - 1, 1));
      const lastChs = CYLINDERS * 16 * 63 - 1;
      assert.deepEqual((await pc.readPio(0x20, chs(CYLINDERS - 1, 15, 63, 1), 1)).data, pattern(lastChs, 1));
    },
  },
  {
    name: 'CHS out of range: IDNF with the first bad address',
    run: async (pc) => {
      await pc.ready();
      const outside: [number, number, number][] = [
        [0, 0, 0],
        [0, 0, 64],
        [0, 0, 255],
        [CYLINDERS, 0, 1],
        [65535, 15, 63],
      ];
      for (const code of LBA28_COMMANDS) {
        for (const [cylinder, head, sector] of outside) {
          assertError(await pc.command(code, chs(cylinder, head, sector, 1)), ERROR_IDNF);
          const result = pc.result();
          assert.deepEqual([result.cylinder, result.head, result.sector], [cylinder, head, sector]);
        }
        assertError(await pc.command(code, chs(CYLINDERS - 1, 15, 60, 5)), ERROR_IDNF);
        const result = pc.result();
        assert.deepEqual([result.cylinder, result.head, result.sector], [CYLINDERS, 0, 1], 'a range over the end');
      }
    },
  },
  {
    name: 'SEEK checks its address; RECALIBRATE has none; all sixteen codes of each',
    run: async (pc) => {
      await pc.ready();
      for (let code = 0x70; code <= 0x7f; code++) {
        await pc.succeed(code, lba28(SECTORS - 1, 0));
        assertError(await pc.command(code, lba28(SECTORS, 0)), ERROR_IDNF);
        await pc.succeed(code, chs(CYLINDERS - 1, 15, 63, 0));
        assertError(await pc.command(code, chs(CYLINDERS, 0, 1, 0)), ERROR_IDNF);
      }
      for (let code = 0x10; code <= 0x1f; code++) await pc.succeed(code, lba28(SECTORS, 0));
    },
  },
  ...[1, 2, 62, 63, 64, 100, 1007, 1008, 1009, 4097].map((sectors) => ({
    name: `an image of ${sectors} sectors can be used to its last`,
    devices: [{ deviceNumber: 0 as const, size: sectors * SECTOR }],
    run: async (pc: Pc) => {
      await pc.ready();
      await wholeDisk(pc, sectors);
    },
  })),
  {
    name: 'an image whose size is not a multiple of 512 bytes shows its whole sectors',
    devices: [{ deviceNumber: 0, size: 1000 * SECTOR + 100 }],
    run: async (pc) => {
      await pc.ready();
      await wholeDisk(pc, 1000);
    },
  },
];
