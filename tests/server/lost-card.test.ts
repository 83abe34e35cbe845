// A real card at `remote-received` is lost: what its PC was told is on a branch of the server.

import assert from 'node:assert/strict';
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { loadFirmware } from '../../host/card/firmware.js';
import { InProcessCard } from '../../host/card/in-process.js';
import { DEFAULT_SETTINGS } from '../../host/card/settings.js';
import { Cable } from '../../host/front-end/cable.js';
import { AtaDriver } from '../../host/pc/ata-driver.js';
import { ImageServer } from '../../host/server/server.js';
import { BLOCK, blockOf, CLIENT, newMedium, openStore } from '../store/model.js';

const BLOCKS = 1024;
const BLOCK_SECTORS = BLOCK / 512;

test('a card that is lost leaves a branch with what it had told its PC', { timeout: 60_000 }, async () => {
  const folder = await mkdtemp(join(tmpdir(), 'ribbon-lost-'));
  const path = join(folder, 'nbd');
  const store = await openStore(newMedium(), { cardLostMs: 1 });
  await store.images.create('a', BLOCKS * BLOCK);
  const server = new ImageServer({ exports: store, listen: [{ kind: 'unix', path }] });
  await server.listen();
  const card = new InProcessCard({
    firmware: loadFirmware(),
    // One epoch for all, which no time and no size ends.
    settings: { ...DEFAULT_SETTINGS, exportName: 'a', epochAgeMs: 600_000, acknowledgementPoint: 'stored' },
    path: { address: { path } },
    memorySize: 32 << 20,
  });
  try {
    await card.start();
    const driver = new AtaDriver(new Cable([card.frontEnd]));
    await driver.open();
    card.setAcknowledgementPoint('remote-received');
    for (let block = 0; block < 3; block++) await driver.write(block * BLOCK_SECTORS, blockOf(block + 1));
    card.cut();
    const branch = () => [...store.lines.keys()].find((name) => name.startsWith('a/left-'));
    while (branch() === undefined) await sleep(5);
    const left = await store.open(branch() as string, CLIENT);
    const target = Buffer.alloc(3 * BLOCK);
    await left.read(0, target);
    assert.deepEqual(target, Buffer.concat([1, 2, 3].map(blockOf)));
    await left.close(true);
    assert.equal(store.lines.get('a')?.head, 1, 'no generation of the image itself');
  } finally {
    card.cut();
    await server.close();
    await store.close();
    await rm(folder, { recursive: true });
  }
});
