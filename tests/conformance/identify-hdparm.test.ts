// A second source for IDENTIFY DEVICE: what hdparm makes of the card's 256 words.

import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import { describe, it } from 'node:test';
import { Pc } from './pc.js';
import { type DeviceOptions, makeInProcessCard, simulatedRig } from './rig.js';

const GIB = 1 << 30;

async function identifyText(device: DeviceOptions, prepare: (pc: Pc) => Promise<void>): Promise<string> {
  const rig = await simulatedRig(makeInProcessCard)([device]);
  try {
    const pc = new Pc(rig);
    await pc.ready();
    await prepare(pc);
    const words = Array.from(await pc.identify(), (word) => word.toString(16).padStart(4, '0'));
    const rows = Array.from({ length: 32 }, (_, row) => words.slice(row * 8, row * 8 + 8).join(' '));
    return execFileSync('hdparm', ['--Istdin'], { input: `${rows.join('\n')}\n`, encoding: 'utf8' });
  } finally {
    await rig.close();
  }
}

/** Every expected line is there, blanks between words apart. */
function assertLines(text: string, expected: string[]): void {
  const lines = text.split('\n').map((line) => line.trim().replace(/\s+/g, ' '));
  for (const line of expected) assert.ok(lines.includes(line), `"${line}" is not in\n${text}`);
}

describe('IDENTIFY DEVICE as hdparm reads it', () => {
  it('after power-on', async () => {
    const settings = { serial: 'SN-0042', firmware: '1.2', model: 'A CARD' };
    const text = await identifyText({ deviceNumber: 0, size: 64 << 20, settings }, async () => {});
    assertLines(text, [
      'ATA device, with non-removable media',
      'Model Number: A CARD',
      'Serial Number: SN-0042',
      'Firmware Revision: 1.2',
      'Used: ATA/ATAPI-6 published, ANSI INCITS 361-2002',
      'Supported: 6 5 4',
      'cylinders 130 130',
      'heads 16 16',
      'sectors/track 63 63',
      'CHS current addressable sectors: 131040',
      'LBA user addressable sectors: 131072',
      'LBA48 user addressable sectors: 131072',
      'LBA, IORDY(can be disabled)',
      "Standby timer values: spec'd by Standard, no device specific minimum",
      'R/W multiple sector transfer: Max = 16 Current = 16',
      'DMA: mdma0 mdma1 *mdma2 udma0 udma1 udma2 udma3 udma4 udma5',
      'Cycle time: min=120ns recommended=120ns',
      'PIO: pio0 pio1 pio2 pio3 pio4',
      'Cycle time: no flow control=120ns IORDY flow control=120ns',
      '* Power Management feature set',
      '* Write cache',
      '* Look-ahead',
      '* NOP cmd',
      '* 48-bit Address feature set',
      '* Mandatory FLUSH_CACHE',
      '* FLUSH_CACHE_EXT',
      'CBLID- above Vih',
      'Device num = 0 determined by the jumper',
      'Checksum: correct',
    ]);
  });

  it('lists no feature that the card does not have', async () => {
    const text = await identifyText({ deviceNumber: 0, size: 64 << 20 }, async () => {});
    const features = text.slice(text.indexOf('Enabled'), text.indexOf('HW reset')).trim().split('\n').slice(1);
    assert.equal(features.length, 7, text);
  });

  it('after SET FEATURES, SET MULTIPLE MODE and INITIALIZE DEVICE PARAMETERS', async () => {
    const text = await identifyText({ deviceNumber: 0, size: 64 << 20 }, async (pc) => {
      await pc.succeed(0xef, { features: 0x03, count: 0x45 });
      await pc.succeed(0xef, { features: 0x82 });
      await pc.succeed(0xef, { features: 0x55 });
      await pc.succeed(0xc6, { count: 8 });
      await pc.succeed(0x91, { count: 17, device: 7 });
    });
    assertLines(text, [
      'cylinders 130 963',
      'heads 16 8',
      'sectors/track 63 17',
      'CHS current addressable sectors: 130968',
      'R/W multiple sector transfer: Max = 16 Current = 8',
      'DMA: mdma0 mdma1 mdma2 udma0 udma1 udma2 udma3 udma4 *udma5',
      'Write cache',
      'Look-ahead',
      'Checksum: correct',
    ]);
  });

  it('of Device 1', async () => {
    const text = await identifyText({ deviceNumber: 1, size: GIB >> 4 }, async (pc) => {
      pc.select(1);
      await pc.ready();
    });
    assertLines(text, ['Device num = 1 determined by the jumper', 'Checksum: correct']);
  });
});
