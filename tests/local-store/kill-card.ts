// The process that tests/local-store/kill.test.ts kills: a card on a store in a file, and a PC that writes.
//
//   kill-card.js SOCKET STORE SEED ISSUED

import { loadFirmware } from '../../host/card/firmware.js';
import { InProcessCard } from '../../host/card/in-process.js';
import { DEFAULT_SETTINGS } from '../../host/card/settings.js';
import { FileStore } from '../../host/card/store-file.js';
import { Cable } from '../../host/front-end/cable.js';
import { Random } from '../../host/fuzz/random.js';
import { AtaDriver } from '../../host/pc/ata-driver.js';
import { fillSector, SECTOR } from './history.js';

const [socket, store, seed] = process.argv.slice(2);
const started = performance.now();
const card = new InProcessCard({
  firmware: loadFirmware(),
  settings: { ...DEFAULT_SETTINGS, exportName: 'disk', epochAgeMs: 40 },
  path: { address: { path: socket } },
  memorySize: 16 << 20,
  store: new FileStore(store, 18 << 20),
});
card.onCrash = (error) => {
  throw error;
};
await card.start();
const driver = new AtaDriver(new Cable([card.frontEnd]));
await driver.open();
process.send?.({ kind: 'ready', ms: performance.now() - started });

const disk = new Uint8Array(driver.sectors * SECTOR);
await driver.read(0, disk);
process.send?.({ kind: 'disk', data: Buffer.from(disk).toString('base64') });
let issued = await new Promise<number>((resolve) => process.once('message', resolve));

const random = new Random(Number(seed));
for (;;) {
  const lba = random.below(driver.sectors - 64);
  const sectors = random.between(1, 64);
  issued += 1;
  const data = new Uint8Array(sectors * SECTOR);
  for (let i = 0; i < sectors; i++) fillSector(data.subarray(i * SECTOR, (i + 1) * SECTOR), lba + i, issued);
  // The parent must know of the write before the disk does: the message has left when the callback comes.
  await new Promise<void>((resolve) => process.send?.({ kind: 'begin', lba, sectors }, () => resolve()));
  await driver.write(lba, data);
  process.send?.({ kind: 'end', lba, sectors });
}
