// First light: a PC boots from the card, works on its disk by DMA and by PIO, and what it has synced is in the master image.

import assert from 'node:assert/strict';
import { after, before, describe, test } from 'node:test';
import { BOOT_TIMEOUT_MS, BootedPc } from './booted-pc.js';
import { assertNoDiskMessages, assertTreesIn, FILE_SIZE, FILES, writeTree } from './tree.js';

const MODES = ['dma', 'pio'] as const;
const DISK_SECTORS = 262_144;

describe('a PC that boots from the card', () => {
  let pc: BootedPc;
  const sums: Record<string, string> = {};

  before(
    async () => {
      pc = await BootedPc.start();
    },
    { timeout: BOOT_TIMEOUT_MS },
  );
  after(() => pc?.remove());

  test('SeaBIOS finds the disk and boots from it by INT 13h', () => {
    const log = pc.biosLog.join('\n');
    assert.match(log, /ata0-0: RIBBON VIRTUAL DISK ATA-6 Hard-Disk \(128 MiBytes\)/);
    assert.match(log, /Booting from Hard Disk/);
  });

  test('libata binds without a warning or an error', async () => {
    const { output } = await pc.guest('dmesg -r');
    assert.match(output, /ata1\.00: ATA-6: RIBBON VIRTUAL DISK, 7\.31/);
    assert.equal(await transferMode(pc), 'XFER_MW_DMA_2');
    assertNoDiskMessages(output);
  });

  test('hdparm -I reads what the card says it is', async () => {
    const { output, status } = await pc.guest('hdparm -I /dev/sda');
    assert.equal(status, 0);
    for (const expected of [
      /Model Number: +RIBBON VIRTUAL DISK\s*$/m,
      /Serial Number: +SERIAL-42\s*$/m,
      /Firmware Revision: +7\.31\s*$/m,
      /Supported: 6 /,
      /cylinders\s+260\s+260/,
      /heads\s+16\s+16/,
      /sectors\/track\s+63\s+63/,
      new RegExp(`LBA\\s+user addressable sectors: +${DISK_SECTORS}\\s*$`, 'm'),
      new RegExp(`LBA48\\s+user addressable sectors: +${DISK_SECTORS}\\s*$`, 'm'),
      /device size with M = 1024\*1024: +128 MBytes/,
      /LBA, IORDY/,
      /R\/W multiple sector transfer: Max = 16/,
      /DMA: mdma0 mdma1 \*mdma2/,
      /PIO: pio0 pio1 pio2 pio3 pio4/,
      /\*\s+Mandatory FLUSH_CACHE/,
      /\*\s+FLUSH_CACHE_EXT/,
      /\*\s+48-bit Address feature set/,
      /Device num = 0/,
      /Checksum: correct/,
    ]) {
      assert.match(output, expected);
    }
    // The checksum of word 255, by a second reader.
    const { output: words } = await pc.guest('hdparm --Istdout /dev/sda');
    const bytes = Buffer.from(words.replace(/^.*:$/m, '').replace(/\s/g, ''), 'hex').swap16();
    assert.equal(bytes.length, 512);
    assert.equal(bytes[510], 0xa5);
    assert.equal(
      bytes.reduce((sum, byte) => (sum + byte) & 0xff, 0),
      0,
    );
  });

  for (const mode of MODES) {
    test(`writes, syncs and reads back ${FILES} files by ${mode.toUpperCase()}`, {
      timeout: BOOT_TIMEOUT_MS,
    }, async () => {
      if (mode === 'pio') {
        const switched = await pc.guest('ata-mode pio');
        assert.equal(switched.status, 0, switched.output);
      }
      const before = pc.simulation.cards[0].statistics();
      const { output, status } = await pc.guest(writeTree(mode));
      assert.equal(status, 0, output);
      assert.equal(output.trim().split('\n').length, FILES);
      sums[mode] = output;
      const log = (await pc.guest('dmesg -r')).output;
      assert.equal(await transferMode(pc), mode === 'pio' ? 'XFER_PIO_4' : 'XFER_MW_DMA_2');
      assertNoDiskMessages(log);
      const sectors = pc.simulation.cards[0].statistics().sectorsWritten - before.sectorsWritten;
      assert.ok(sectors >= (FILES * FILE_SIZE) / 512, `${sectors} sectors were written`);
    });
  }

  test('with the PC off the master image is a clean file system with the same files', {
    timeout: BOOT_TIMEOUT_MS,
  }, async () => {
    const { status, output } = await pc.guest('umount /data');
    assert.equal(status, 0, output);
    assert.equal(await pc.powerOff(), 0);
    const disk = await pc.copyMaster();
    await assertTreesIn(disk, pc.folder, sums);
  });

  test('the installation had nothing to complain about', () => {
    assert.deepEqual(pc.messages, []);
  });
});

/** How libata drives the disk. */
async function transferMode(pc: BootedPc): Promise<string> {
  const command =
    'for device in /sys/class/ata_device/dev*; do [ "$(cat $device/class)" = ata ] && cat $device/xfer_mode; done';
  return (await pc.guest(command)).output.trim();
}
