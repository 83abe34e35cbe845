import assert from 'node:assert/strict';
import { type ConformanceCase, SECTORS } from './case.js';
import { assertError, assertSuccess, chs, ERROR_ABRT, ERROR_IDNF, lba28, type Pc, pattern, SECTOR } from './pc.js';

const SET_FEATURES = 0xef;

async function setFeature(pc: Pc, features: number, count = 0): Promise<void> {
  await pc.succeed(SET_FEATURES, { features, count });
}

/** The selected DMA mode as IDENTIFY DEVICE has it. */
async function selectedModes(pc: Pc): Promise<{ multiword: number; ultra: number }> {
  const words = await pc.identify();
  return { multiword: words[63] >> 8, ultra: words[88] >> 8 };
}

export const FEATURE_CASES: ConformanceCase[] = [
  {
    name: 'transfer modes are selected one at a time and shown in words 63 and 88',
    run: async (pc) => {
      await pc.ready();
      for (const mode of [0, 1, 2]) {
        await setFeature(pc, 0x03, 0x20 | mode);
        assert.deepEqual(await selectedModes(pc), { multiword: 1 << mode, ultra: 0 });
      }
      for (const mode of [0, 1, 2, 3, 4, 5]) {
        await setFeature(pc, 0x03, 0x40 | mode);
        assert.deepEqual(await selectedModes(pc), { multiword: 0, ultra: 1 << mode });
      }
      for (const value of [0x00, 0x01, 0x08, 0x09, 0x0a, 0x0b, 0x0c]) await setFeature(pc, 0x03, value);
      assert.deepEqual(await selectedModes(pc), { multiword: 0, ultra: 32 }, 'a PIO mode leaves the DMA mode');
      await setFeature(pc, 0x03, 0x22);
      assert.deepEqual(await selectedModes(pc), { multiword: 4, ultra: 0 });
    },
  },
  {
    name: 'transfer modes that the card does not have are refused, and nothing changes',
    run: async (pc) => {
      await pc.ready();
      await setFeature(pc, 0x03, 0x42);
      const accepted = new Set([0, 1, 8, 9, 10, 11, 12, 0x20, 0x21, 0x22, 0x40, 0x41, 0x42, 0x43, 0x44, 0x45]);
      for (let value = 0; value < 256; value++) {
        if (accepted.has(value)) continue;
        assertError(await pc.command(SET_FEATURES, { features: 0x03, count: value }), ERROR_ABRT);
      }
      assert.deepEqual(await selectedModes(pc), { multiword: 0, ultra: 4 });
    },
  },
  {
    name: 'unknown subcommands are refused',
    run: async (pc) => {
      await pc.ready();
      const known = new Set([0x02, 0x03, 0x55, 0x66, 0x82, 0xaa, 0xcc]);
      for (let features = 0; features < 256; features++) {
        if (known.has(features)) continue;
        assertError(await pc.command(SET_FEATURES, { features }), ERROR_ABRT);
      }
    },
  },
  {
    name: 'write cache and look-ahead are switched and shown in word 85',
    run: async (pc) => {
      await pc.ready();
      const enabled = async (): Promise<number> => (await pc.identify())[85] & 0x60;
      assert.equal(await enabled(), 0x60);
      await setFeature(pc, 0x82);
      assert.equal(await enabled(), 0x40);
      await setFeature(pc, 0x55);
      assert.equal(await enabled(), 0x00);
      await setFeature(pc, 0x02);
      await setFeature(pc, 0xaa);
      assert.equal(await enabled(), 0x60);
    },
  },
  {
    name: 'with the write cache off a write ends when the server has committed it',
    run: async (pc, rig) => {
      await pc.ready();
      await setFeature(pc, 0x82);
      for (const code of [0x30, 0xc5]) {
        const data = pattern(40, 20, code);
        assertSuccess(await pc.writePio(code, lba28(40, 20), data, code === 0xc5 ? 16 : 1));
        assert.deepEqual(Buffer.from(rig.disks[0].image.subarray(40 * SECTOR, 60 * SECTOR)), data);
      }
      assertSuccess(await pc.dma(0xca, lba28(40, 20), pattern(40, 20, 1)));
      assert.deepEqual(Buffer.from(rig.disks[0].image.subarray(40 * SECTOR, 60 * SECTOR)), pattern(40, 20, 1));
    },
  },
  {
    name: 'SET MULTIPLE MODE sets the length of the DRQ data blocks',
    run: async (pc, rig) => {
      pattern(0, 256).copy(rig.disks[0].image);
      await pc.ready();
      for (const multiple of [1, 2, 4, 8, 16]) {
        await pc.succeed(0xc6, { count: multiple });
        assert.equal((await pc.identify())[59], 0x100 | multiple);
        for (const count of [1, multiple, multiple + 1, 3 * multiple, 100]) {
          assert.deepEqual((await pc.readPio(0xc4, lba28(7, count), count, multiple)).data, pattern(7, count));
          assertSuccess(await pc.writePio(0xc5, lba28(7, count), pattern(7, count), multiple));
        }
      }
    },
  },
  {
    name: 'SET MULTIPLE MODE with a count that is not supported, or 0, disables READ and WRITE MULTIPLE',
    run: async (pc) => {
      await pc.ready();
      for (const count of [0, 3, 5, 15, 17, 32, 64, 128, 255]) {
        await pc.succeed(0xc6, { count: 8 });
        const ending = await pc.command(0xc6, { count });
        if (count === 0) assertSuccess(ending);
        else assertError(ending, ERROR_ABRT);
        assert.equal((await pc.identify())[59], 0);
        for (const code of [0xc4, 0xc5, 0x29, 0x39]) assertError(await pc.command(code, lba28(0, 1)), ERROR_ABRT);
      }
      await pc.succeed(0xc6, { count: 16 });
      assertSuccess(await pc.readPio(0xc4, lba28(0, 1), 1, 16));
    },
  },
  {
    name: 'INITIALIZE DEVICE PARAMETERS sets the CHS translation',
    run: async (pc, rig) => {
      pattern(0, 8192).copy(rig.disks[0].image);
      await pc.ready();
      for (const { heads, track } of [
        { heads: 4, track: 17 },
        { heads: 1, track: 255 },
        { heads: 16, track: 63 },
        { heads: 15, track: 1 },
      ]) {
        await pc.succeed(0x91, { count: track, device: heads - 1 });
        const words = await pc.identify();
        const cylinders = Math.min(Math.floor(SECTORS / (heads * track)), 65535);
        assert.deepEqual([...words.subarray(54, 57)], [cylinders, heads, track]);
        assert.equal(words[57] | (words[58] << 16), cylinders * heads * track);
        assert.deepEqual([words[1], words[3], words[6]], [16, 16, 63], 'the default translation stays');
        const { data } = await pc.readPio(0x20, chs(2, heads - 1, track, 1), 1);
        assert.deepEqual(data, pattern((2 * heads + heads - 1) * track + track - 1, 1));
        if (heads < 16) assertError(await pc.command(0x40, chs(0, heads, 1, 1)), ERROR_IDNF);
        if (track < 255) assertError(await pc.command(0x40, chs(0, 0, track + 1, 1)), ERROR_IDNF);
      }
    },
  },
  {
    name: 'INITIALIZE DEVICE PARAMETERS that make no sense are refused',
    devices: [{ deviceNumber: 0, size: 100 * SECTOR }],
    run: async (pc) => {
      await pc.ready();
      assertError(await pc.command(0x91, { count: 0, device: 15 }), ERROR_ABRT);
      assertError(await pc.command(0x91, { count: 63, device: 15 }), ERROR_ABRT);
      assert.deepEqual([...(await pc.identify()).subarray(54, 57)], [1, 1, 63]);
      await pc.succeed(0x91, { count: 50, device: 1 });
      assert.deepEqual([...(await pc.identify()).subarray(54, 57)], [1, 2, 50]);
    },
  },
  {
    name: 'SRST keeps what the PC has set, and reverts it after SET FEATURES CCh',
    run: async (pc) => {
      await pc.ready();
      const set = async (): Promise<void> => {
        await setFeature(pc, 0x82);
        await setFeature(pc, 0x55);
        await setFeature(pc, 0x03, 0x41);
        await pc.succeed(0xc6, { count: 4 });
        await pc.succeed(0x91, { count: 17, device: 3 });
      };
      const state = async (): Promise<number[]> => {
        const words = await pc.identify();
        return [words[54], words[55], words[56], words[59], words[63], words[85], words[88]];
      };
      const defaults = await state();
      await set();
      const changed = await state();
      assert.notDeepEqual(changed, defaults);
      await pc.softwareReset();
      assert.deepEqual(await state(), changed);
      await setFeature(pc, 0xcc);
      await pc.softwareReset();
      assert.deepEqual(await state(), defaults);
      await set();
      await setFeature(pc, 0xcc);
      await setFeature(pc, 0x66);
      await pc.softwareReset();
      assert.deepEqual(await state(), changed);
    },
  },
];
