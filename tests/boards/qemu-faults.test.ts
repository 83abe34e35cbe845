// What can be wrong with a card in QEMU when it is switched on: a firmware that never ends a step, one that the runtime refuses,
// slots that are damaged.

import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { before, test } from 'node:test';
import { encodeFirmwarePackage, FIRMWARE_HEAD_SIZE, makeFirmwareKey } from '../../host/card/firmware-package.js';
import { FLASH_FIRMWARE_OFFSET, FLASH_FIRMWARE_SLOT_SIZE } from '../../host/card/flash-image.js';
import { QemuCard } from '../../host/card/qemu.js';
import { DEFAULT_SETTINGS } from '../../host/card/settings.js';
import { Cable } from '../../host/front-end/cable.js';
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

test('both slots damaged: the card says so on its console, and resets to try again', async () => {
  const image = new TestImage(16_384);
  const log: string[] = [];
  const card = new QemuCard({
    program: qemuCard('aot'),
    firmware: FIRMWARE,
    fallbackFirmware: FIRMWARE,
    settings: { ...DEFAULT_SETTINGS, exportName: IMAGE_NAME },
    path: await image.serveTcp(),
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
  try {
    const count = (pattern: RegExp): number => log.filter((line) => pattern.test(line)).length;
    const deadline = Date.now() + 60_000;
    while (count(/^info: board:/) < 2 && Date.now() < deadline) await new Promise((done) => setTimeout(done, 50));
    assert.ok(count(/firmware slot 0: damaged/) >= 1, log.join('\n'));
    assert.ok(count(/firmware slot 1: damaged/) >= 1, log.join('\n'));
    assert.ok(count(/^error: halted: there is no firmware/) >= 1, log.join('\n'));
    assert.equal(count(/^info: board:/), 2, 'it did not reset');
  } finally {
    await card.stop(0);
    await started;
    await image.close();
  }
});
