// The runtime on the Zynq board, beyond its firmware: addresses that are given, cables of both ports, a core that stands still, a front
// end that writes nonsense. One card, in this order.

import assert from 'node:assert/strict';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, test } from 'node:test';
import { QemuCard } from '../../host/card/qemu.js';
import { DEFAULT_SETTINGS } from '../../host/card/settings.js';
import { Cable } from '../../host/front-end/cable.js';
import { buildQemuCard, FIRMWARE, qemuCard } from './builds.js';
import { jump } from './gdb.js';
import { IMAGE_NAME, pattern, TestImage } from './image.js';
import { writeNonsense } from './nonsense.js';
import { Pc } from './pc.js';

const SECTORS = 16_384;
/** boards/zynq/startup.S: the vector of an exception that never happens, a branch to itself. */
const ENDLESS_LOOP = 0x00100014;
const SUPERVISOR_WITH_INTERRUPTS = 0x13;

const image = new TestImage(SECTORS);
const folder = mkdtempSync(join(tmpdir(), 'ribbon-gdb-'));
const gdb = join(folder, 'gdb');
const log: string[] = [];
let card: QemuCard;
let pc: Pc;

async function logged(wanted: RegExp): Promise<string> {
  const deadline = Date.now() + 60_000;
  for (;;) {
    const line = log.find((it) => wanted.test(it));
    if (line !== undefined) return line;
    if (Date.now() > deadline) throw new Error(`no line matches ${wanted}:\n${log.join('\n')}`);
    await new Promise((done) => setTimeout(done, 20));
  }
}

before(async () => {
  await buildQemuCard('aot');
  card = new QemuCard({
    program: qemuCard('aot'),
    firmware: FIRMWARE,
    settings: { ...DEFAULT_SETTINGS, exportName: IMAGE_NAME },
    path: await image.serveTcp(),
    networkLines: ['interface 0 static 10.0.2.77/24 10.0.2.2', 'interface 1 dhcp'],
    qemuArguments: ['-gdb', `unix:${gdb},server=on,wait=off`],
  });
  card.onLog = (level, line) => log.push(`${level}: ${line}`);
  await card.start();
  pc = new Pc(new Cable([card.frontEnd]));
  await pc.ready();
});

after(async () => {
  await card?.stop(0);
  await image.close();
  rmSync(folder, { recursive: true, force: true });
});

test('one port has the address that it was given, the other one gets its own', async () => {
  await logged(/^info: network 0: address=10\.0\.2\.77 gateway=10\.0\.2\.2 static$/);
  await logged(/^info: network 1: address=10\.0\.3\.\d+ gateway=10\.0\.3\.2 dhcp$/);
  assert.deepEqual(await pc.read(40, 8), pattern(40, 8));
});

test('the cable of the port that is not in use comes and goes without an effect', async () => {
  log.length = 0;
  await card.setLink(1, false);
  await logged(/^warning: network 1: link down$/);
  assert.deepEqual(await pc.read(4000, 64), pattern(4000, 64));
  await card.setLink(1, true);
  await logged(/^info: network 1: link up$/);
  assert.deepEqual(await pc.read(5000, 64), pattern(5000, 64));
  assert.ok(!log.some((line) => /network 0|connection lost/.test(line)), log.join('\n'));
});

test('a core that stands still is reset; the crash record tells; the PC gets its data', async () => {
  await pc.write(100, pattern(7, 20));
  await pc.flush();
  log.length = 0;
  await jump(gdb, ENDLESS_LOOP, SUPERVISOR_WITH_INTERRUPTS);
  // 6 to 8 s and a start: within the 30 s that a system gives a disk.
  assert.deepEqual(await pc.read(6000, 16), pattern(6000, 16));
  // Where the core was decides who ends it: inside a step the firmware's watchdog, which starts the firmware again; elsewhere the runtime's,
  // which resets the board and leaves a crash record for the next start.
  const ended = await logged(
    /^error: (runtime failed: the runtime does not come back at 0x100014|firmware 0: watchdog: a step did not end in time) ?/,
  );
  if (ended.startsWith('error: runtime failed')) {
    await logged(
      /^warning: last crash: watchdog: the runtime does not come back at 0x100014 line=1048596 .* engine=aot/,
    );
  }
  await logged(/^warning: front end: event 2 of the PC is taken again$/);
  assert.deepEqual(await pc.read(100, 20), pattern(7, 20));
});

test('a front end that writes nonsense does not bring the card down', () => writeNonsense(card, pc, log));
