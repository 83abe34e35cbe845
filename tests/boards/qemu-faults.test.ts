// What can be wrong with a card in QEMU when it is switched on: a firmware that never ends a step, one that the runtime refuses,
// slots that are damaged.

import assert from 'node:assert/strict';
import { createSocket } from 'node:dgram';
import { once } from 'node:events';
import { readFileSync } from 'node:fs';
import { before, test } from 'node:test';
import { encodeFirmwarePackage, FIRMWARE_HEAD_SIZE, makeFirmwareKey } from '../../host/card/firmware-package.js';
import { FLASH_FIRMWARE_OFFSET, FLASH_FIRMWARE_SLOT_SIZE, FLASH_OWN_OFFSET } from '../../host/card/flash-image.js';
import { QemuCard } from '../../host/card/qemu.js';
import { DEFAULT_SETTINGS } from '../../host/card/settings.js';
import { Cable } from '../../host/front-end/cable.js';
import { Register, STATUS_BSY } from '../../host/front-end/front-end.js';
import { buildQemuCard, FIRMWARE, qemuCard } from './builds.js';
import { IMAGE_NAME, pattern, TestImage } from './image.js';
import { assemble, REFUSED, TRAPPING } from './modules.js';
import { Pc } from './pc.js';
import { MODULES } from './posix-card.js';

before(() => buildQemuCard('aot'));

/** Switches on a card with two firmware images; the second one has to end up running. */
async function runsFallback(
  firmware: string,
  expected: RegExp,
  count: number,
  prepareFlash: (flash: Buffer) => void = () => {},
): Promise<void> {
  const image = new TestImage(16_384);
  const log: string[] = [];
  const card = new QemuCard({
    program: qemuCard('aot'),
    firmware,
    fallbackFirmware: FIRMWARE,
    settings: { ...DEFAULT_SETTINGS, exportName: IMAGE_NAME },
    path: await image.serveTcp(),
    prepareFlash,
  });
  card.onLog = (level, line) => log.push(`${level}: ${line}`);
  try {
    await card.start();
    const pc = new Pc(new Cable([card.frontEnd]));
    await pc.ready();
    assert.deepEqual(await pc.read(300, 20), pattern(300, 20));
    assert.equal(log.filter((line) => expected.test(line)).length, count, log.join('\n'));
    assert.ok(
      log.some((line) => /^info: firmware [01]: engine=aot/.test(line)),
      log.join('\n'),
    );
  } finally {
    await card.stop(0);
    await image.close();
  }
}

test('a step that does not end is trapped by the watchdog interrupt, three times; the other image runs', async () => {
  const endless = TRAPPING.find((module) => module.name === 'endless-loop');
  assert.ok(endless);
  await runsFallback(assemble(endless, MODULES), /^error: firmware 0: watchdog:/, 3);
});

test('an access out of bounds is trapped, three times; the other image runs', async () => {
  await runsFallback(assemble(TRAPPING[0], MODULES), /^error: firmware 0: out-of-bounds:/, 3);
});

test('a firmware that the check refuses is not run; the other image runs', async () => {
  await runsFallback(assemble(REFUSED[0], MODULES), /^error: firmware 0: refused: recursion/, 1);
});

test("a stranger's firmware is not run; the other image runs", async () => {
  const stranger = makeFirmwareKey();
  await runsFallback(FIRMWARE, /^error: firmware slot 0: not signed with a key that this card trusts/, 1, (flash) =>
    flash.set(encodeFirmwarePackage(9, readFileSync(FIRMWARE), stranger.privateKey), FLASH_FIRMWARE_OFFSET),
  );
});

const flip = (offset: number) => (flash: Buffer) => {
  flash[offset] ^= 1;
};

const DAMAGES: { name: string; damage: (flash: Buffer) => unknown; says: RegExp[] }[] = [
  {
    name: 'nothing has been written',
    damage: (flash) => flash.fill(0xff),
    says: [
      /^error: flash: no firmware keys/,
      /^error: flash: no network paths/,
      /^error: halted: there is no firmware/,
    ],
  },
  {
    name: 'the settings',
    damage: flip(FLASH_OWN_OFFSET + 100),
    says: [/^error: firmware 0: .*init\(\) answers 0x105/, /^error: halted: no firmware image runs/],
  },
  {
    name: 'the network paths',
    damage: flip(FLASH_OWN_OFFSET + 0x10000 + 20),
    says: [/^error: flash: no network paths/, /^info: firmware 0: engine=aot/],
  },
  {
    name: 'address and seed',
    damage: flip(FLASH_OWN_OFFSET + 0x20000 + 20),
    says: [/^warning: random numbers: no seed in flash/, /^info: image server connected/],
  },
  {
    name: 'the keys',
    damage: flip(FLASH_OWN_OFFSET + 0x30000 + 20),
    says: [/^error: flash: no firmware keys/, /^error: halted: there is no firmware/],
  },
];

for (const { name, damage, says } of DAMAGES) {
  test(`damaged in flash: ${name}: the card says so`, async () => {
    const image = new TestImage(16_384);
    const log: string[] = [];
    const card = new QemuCard({
      program: qemuCard('aot'),
      firmware: FIRMWARE,
      settings: { ...DEFAULT_SETTINGS, exportName: IMAGE_NAME },
      path: await image.serveTcp(),
      prepareFlash: (flash) => void damage(flash),
    });
    card.onLog = (level, line) => log.push(`${level}: ${line}`);
    const started = card.start().catch(() => {}); // a card that is halted does not, or not in time
    try {
      const missing = (): RegExp[] => says.filter((wanted) => !log.some((line) => wanted.test(line)));
      const deadline = Date.now() + 60_000;
      while (missing().length > 0 && Date.now() < deadline) await new Promise((done) => setTimeout(done, 20));
      assert.deepEqual(missing(), [], log.join('\n'));
    } finally {
      await card.stop(0);
      await started;
      await image.close();
    }
  });
}

test('both slots damaged: the card says so on its console and to its log server, keeps the PC with BSY, and resets to try again', async () => {
  const image = new TestImage(16_384);
  const log: string[] = [];
  const received: string[] = [];
  const logServer = createSocket('udp4').on('message', (datagram) => received.push(datagram.toString()));
  logServer.bind(0, '127.0.0.1');
  await once(logServer, 'listening');
  const card = new QemuCard({
    program: qemuCard('aot'),
    firmware: FIRMWARE,
    fallbackFirmware: FIRMWARE,
    settings: { ...DEFAULT_SETTINGS, exportName: IMAGE_NAME },
    path: await image.serveTcp(),
    networkLines: [`log 10.0.2.2 ${logServer.address().port}`],
    prepareFlash: (flash) => {
      flash[FLASH_FIRMWARE_OFFSET + 5000] ^= 1;
      flash[FLASH_FIRMWARE_OFFSET + FLASH_FIRMWARE_SLOT_SIZE + FIRMWARE_HEAD_SIZE] ^= 0x80;
    },
  });
  card.onLog = (level, line) => log.push(`${level}: ${line}`);
  const started = card.start().then(
    () => assert.fail('a card without firmware has started'),
    () => {},
  );
  const cable = new Cable([card.frontEnd]);
  try {
    const count = (lines: string[], pattern: RegExp): number => lines.filter((line) => pattern.test(line)).length;
    const deadline = Date.now() + 60_000;
    while (count(log, /^info: board:/) < 2 && Date.now() < deadline) {
      cable.writeRegister(Register.COMMAND, 0x20); // READ SECTORS
      assert.equal(cable.readAlternateStatus() & STATUS_BSY, STATUS_BSY);
      assert.equal(cable.dataBlock(), null);
      await new Promise((done) => setTimeout(done, 50));
    }
    assert.ok(count(log, /firmware slot 0: damaged/) >= 1, log.join('\n'));
    assert.ok(count(log, /firmware slot 1: damaged/) >= 1, log.join('\n'));
    assert.ok(count(log, /^error: halted: there is no firmware/) >= 1, log.join('\n'));
    assert.equal(count(log, /^info: board:/), 2, 'it did not reset');
    for (const text of ['firmware slot 0: damaged', 'firmware slot 1: damaged', 'halted: there is no firmware']) {
      assert.ok(
        count(received, new RegExp(`^<13[12]>1 - ribbon-02[0-9a-f]{10} card - - - ${text}`)) >= 1,
        received.join('\n'),
      );
    }
  } finally {
    await card.stop(0);
    await started;
    logServer.close();
    await image.close();
  }
});
