// What `npm run build:board` makes for a board with U-Boot and flash, from the QEMU board's program: that it is what its list says, and that it runs.

import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { createHash } from 'node:crypto';
import { mkdirSync, mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, test } from 'node:test';
import { crc32 } from '@node-rs/crc32';
import { FLASH_OWN_OFFSET } from '../../host/card/flash-image.js';
import { QemuCard } from '../../host/card/qemu.js';
import { DEFAULT_SETTINGS } from '../../host/card/settings.js';
import { Cable } from '../../host/front-end/cable.js';
import { writeArtefacts } from '../../tools/boards/artefacts.js';
import { buildQemuCard, FIRMWARE, qemuCard } from './builds.js';
import { IMAGE_NAME, pattern, TestImage } from './image.js';
import { Pc } from './pc.js';

const KEYS_OFFSET = 0x30000; // SPEC.md "Flash layout", from FLASH_OWN_OFFSET
const LOAD_ADDRESS = '0x100000';

const root = mkdtempSync(join(tmpdir(), 'ribbon-artefacts-'));
const folder = join(root, 'boards', 'qemu'); // the key that is made goes to root
const artefact = (name: string): Buffer => readFileSync(join(folder, name));

before(async () => {
  await buildQemuCard('aot');
  mkdirSync(folder, { recursive: true });
  writeArtefacts(folder, qemuCard('aot'), FIRMWARE);
});
after(() => rmSync(root, { recursive: true, force: true }));

test('the list has the size and hash of every file', () => {
  const lines = artefact('MANIFEST').toString().split('\n\n')[0].split('\n');
  const names = lines.map((line) => {
    const [hash, size, name] = line.split(/\s+/);
    const content = name.endsWith('.elf') ? readFileSync(qemuCard('aot')) : artefact(name);
    assert.equal(content.length, Number(size), name);
    assert.equal(createHash('sha256').update(content).digest('hex'), hash, name);
    return name;
  });
  assert.deepEqual(names.slice(1), ['ribbon-card.bin', 'boot.scr', 'firmware.rbfw', 'flash.bin']);
});

test("boot.scr is a script in U-Boot's format that starts the program where it is linked", () => {
  const script = artefact('boot.scr');
  const head = Buffer.from(script.subarray(0, 64));
  const headCrc = head.readUInt32BE(4);
  head.writeUInt32BE(0, 4);
  assert.equal(head.readUInt32BE(0), 0x27051956);
  assert.equal(crc32(head), headCrc);
  assert.equal(head.readUInt32BE(12), script.length - 64);
  assert.equal(crc32(Buffer.from(script.subarray(64))), head.readUInt32BE(24));
  const text = script.subarray(72).toString();
  assert.equal(script.readUInt32BE(64), text.length);
  assert.match(text, new RegExp(`fatload mmc 0 ${LOAD_ADDRESS} ribbon-card.bin\n`));
  assert.match(text, new RegExp(`go ${LOAD_ADDRESS}\n`));
});

test('the binary runs from its load address', async () => {
  const loader = `loader,addr=${LOAD_ADDRESS}`;
  const child = spawn(
    'qemu-system-arm',
    [
      ...['-M', 'xilinx-zynq-a9', '-m', '64', '-nodefaults', '-display', 'none', '-serial', 'stdio'],
      ...[
        '-device',
        `${loader},file=${join(folder, 'ribbon-card.bin')},force-raw=on`,
        '-device',
        `${loader},cpu-num=0`,
      ],
    ],
    { stdio: ['ignore', 'pipe', 'inherit'] },
  );
  let said = '';
  await new Promise<void>((done, fail) => {
    child.stdout.on('data', (data) => {
      said += data;
      if (/halted: there is no firmware/.test(said)) done(); // nothing is in this machine's flash
    });
    child.on('close', () => fail(new Error(`QEMU has ended:\n${said}`)));
    setTimeout(() => fail(new Error(`the program does not say what it should:\n${said}`)), 60_000).unref();
  }).finally(() => child.kill('SIGKILL'));
  assert.match(said, /^info: board: /m);
});

test('a card whose flash has flash.bin, and settings and paths of its own, runs that firmware', async () => {
  const image = new TestImage(16_384);
  const log: string[] = [];
  const card = new QemuCard({
    program: qemuCard('aot'),
    firmware: FIRMWARE,
    settings: { ...DEFAULT_SETTINGS, exportName: IMAGE_NAME },
    path: await image.serveTcp(),
    prepareFlash: (flash) => {
      const own = artefact('flash.bin');
      // Settings, paths, address come from whoever installs the card; keys and firmware are the artefact's.
      flash.fill(0xff, FLASH_OWN_OFFSET + KEYS_OFFSET);
      flash.set(own.subarray(KEYS_OFFSET), FLASH_OWN_OFFSET + KEYS_OFFSET);
    },
  });
  card.onLog = (level, line) => log.push(`${level}: ${line}`);
  try {
    await card.start();
    const pc = new Pc(new Cable([card.frontEnd]));
    await pc.ready();
    assert.deepEqual(await pc.read(300, 20), pattern(300, 20));
    assert.ok(
      log.some((line) => /^info: firmware 0: engine=aot/.test(line)),
      log.join('\n'),
    );
  } finally {
    await card.stop(0);
    await image.close();
  }
});
