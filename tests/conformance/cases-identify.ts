import assert from 'node:assert/strict';
import { type ConformanceCase, SECTORS } from './case.js';
import { type Pc, SECTOR } from './pc.js';

function text(words: Uint16Array, first: number, last: number): string {
  const bytes = Buffer.from(words.slice(first, last + 1).buffer).swap16();
  return bytes.toString('latin1');
}

/** Words whose value follows from [ATA-6] 8.15 and what the card claims; the others are tested where they change. */
const FIXED: [number, number, string][] = [
  [0, 0x0040, 'ATA, not removable, response complete'],
  [2, 0xc837, 'no SET FEATURES needed to spin up'],
  [47, 0x8010, 'at most 16 sectors a DRQ data block'],
  [49, 0x2f00, 'standby timer, IORDY, LBA, DMA'],
  [50, 0x4000, 'capabilities'],
  [53, 0x0007, 'words 54-58, 64-70 and 88 are valid'],
  [59, 0x0110, 'READ/WRITE MULTIPLE enabled with 16'],
  [62, 0x0000, 'no single word DMA'],
  [63, 0x0407, 'MWDMA 0-2, mode 2 selected'],
  [64, 0x0003, 'PIO 3 and 4'],
  [65, 120, 'MWDMA cycle'],
  [66, 120, 'MWDMA cycle'],
  [67, 120, 'PIO cycle without flow control'],
  [68, 120, 'PIO cycle with IORDY'],
  [80, 0x0078, 'ATA-3 to ATA/ATAPI-6'],
  [82, 0x4068, 'NOP, look-ahead, write cache, power management'],
  [83, 0x7400, 'FLUSH CACHE, FLUSH CACHE EXT, 48-bit'],
  [84, 0x4000, 'extensions'],
  [85, 0x4068, 'enabled'],
  [86, 0x3400, 'enabled'],
  [87, 0x4000, 'default'],
  [88, 0x003f, 'UDMA 0-5, none selected'],
];

async function capacities(pc: Pc): Promise<{ lba28: number; lba48: number }> {
  const words = await pc.identify();
  return {
    lba28: (words[60] | (words[61] << 16)) >>> 0,
    lba48: words[100] + words[101] * 2 ** 16 + words[102] * 2 ** 32 + words[103] * 2 ** 48,
  };
}

export const IDENTIFY_CASES: ConformanceCase[] = [
  {
    name: 'every fixed word',
    run: async (pc) => {
      await pc.ready();
      const words = await pc.identify();
      for (const [index, value, meaning] of FIXED) assert.equal(words[index], value, `word ${index}: ${meaning}`);
    },
  },
  {
    name: 'the sum of all 512 bytes is zero',
    run: async (pc) => {
      await pc.ready();
      const words = await pc.identify();
      assert.equal(words[255] & 0xff, 0xa5);
      let sum = 0;
      for (const word of words) sum += (word & 0xff) + (word >> 8);
      assert.equal(sum & 0xff, 0);
    },
  },
  {
    name: 'serial number, firmware revision and model number come from the settings',
    devices: [
      {
        deviceNumber: 0,
        size: 1 << 20,
        settings: { serial: 'testdisk', firmware: 'version', model: 'A model number of forty characters, 40ch' },
      },
    ],
    run: async (pc) => {
      await pc.ready();
      const words = await pc.identify();
      assert.equal(text(words, 10, 19), 'testdisk            ');
      assert.equal(text(words, 23, 26), 'version ');
      assert.equal(text(words, 27, 46), 'A model number of forty characters, 40ch');
    },
  },
  {
    name: 'capacity and default translation',
    run: async (pc) => {
      await pc.ready();
      const words = await pc.identify();
      assert.deepEqual([words[1], words[3], words[6]], [16, 16, 63]);
      assert.deepEqual([words[54], words[55], words[56]], [16, 16, 63]);
      assert.equal(words[57] | (words[58] << 16), 16 * 16 * 63);
      assert.deepEqual(await capacities(pc), { lba28: SECTORS, lba48: SECTORS });
    },
  },
  {
    name: 'word 93 without Device 1: answers for it',
    run: async (pc) => {
      await pc.ready();
      assert.equal((await pc.identify())[93], 0x604b);
    },
  },
  {
    name: 'word 93 of two devices',
    devices: [
      { deviceNumber: 0, size: 100 * SECTOR },
      { deviceNumber: 1, size: 100 * SECTOR },
    ],
    run: async (pc) => {
      await pc.ready();
      assert.equal((await pc.identify())[93], 0x603b);
      pc.select(1);
      await pc.ready();
      assert.equal((await pc.identify())[93], 0x6b00);
    },
  },
];
