// A card of `ribbon sim` that is switched on again: what its local store has does not come from the server once more, but for what others
// have changed meanwhile.

import assert from 'node:assert/strict';
import { randomFillSync } from 'node:crypto';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { after, before, test } from 'node:test';
import type { CardStatistics } from '../../host/card/statistics.js';
import { AtaDriver } from '../../host/pc/ata-driver.js';
import { Simulation } from '../../host/sim/simulation.js';
import { Store } from '../../host/store/store.js';

const IMAGE_SIZE = 8 << 20;
const READ_SIZE = 2 << 20;
const CHANGED_AT = 1 << 20;
const CLIENT = { identity: 'administrator', address: 'test', tls: false };

let folder: string;
let store: string;
const content = randomFillSync(Buffer.alloc(IMAGE_SIZE));

before(() => {
  folder = mkdtempSync(path.join(tmpdir(), 'ribbon-second-'));
  store = path.join(folder, 'store');
  writeFileSync(path.join(folder, 'raw'), content);
});
after(() => rmSync(folder, { recursive: true, force: true }));

/** Switches the card on, reads the beginning of its disk, and switches it off. */
async function powerOnAndRead(): Promise<{ data: Buffer; statistics: CardStatistics }> {
  const simulation = await Simulation.start(
    {
      card: 'inproc',
      disks: [{ exportName: 'disk' }],
      images: { store, makeImage: async () => path.join(folder, 'raw'), files: {} },
      localStores: path.join(folder, 'cards'),
    },
    {
      onLog: (level, line) => assert.ok(level !== 'error' && level !== 'warning', line),
      onProgress: () => {},
      onCrash: (error) => {
        throw error;
      },
    },
  );
  try {
    const driver = new AtaDriver(simulation.cable);
    await driver.open();
    const data = Buffer.alloc(READ_SIZE);
    await driver.read(0, data);
    return { data, statistics: simulation.cards[0].statistics() };
  } finally {
    await simulation.stop();
  }
}

test('the second start reads from the local store', async () => {
  const first = await powerOnAndRead();
  assert.ok(first.data.equals(content.subarray(0, READ_SIZE)));
  assert.ok(first.statistics.bytesFromServer >= READ_SIZE);
  const second = await powerOnAndRead();
  assert.ok(second.data.equals(content.subarray(0, READ_SIZE)));
  assert.ok(second.statistics.bytesFromServer < READ_SIZE / 4, `${second.statistics.bytesFromServer} bytes came again`);
});

test('what an administrator has changed between two starts comes from the server, and only that', async () => {
  const changed = randomFillSync(Buffer.alloc(4096));
  const opened = await Store.open(store);
  const writer = await opened.open('disk', CLIENT);
  await writer.write(CHANGED_AT, changed);
  await writer.close(true);
  await opened.close();
  changed.copy(content, CHANGED_AT);
  const { data, statistics } = await powerOnAndRead();
  assert.ok(data.equals(content.subarray(0, READ_SIZE)));
  assert.equal(statistics.blocksForgotten, 1);
  assert.ok(statistics.bytesFromServer < READ_SIZE / 4, `${statistics.bytesFromServer} bytes came again`);
});
