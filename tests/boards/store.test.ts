// The local store on the boards: what was acknowledged as stored outlives a power cut without the image server's help; an SD
// card that is pulled gives errors, never wrong data.

import assert from 'node:assert/strict';
import { createHash } from 'node:crypto';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, describe, test } from 'node:test';
import type { NetworkPath } from '../../host/card/network.js';
import { PosixCard } from '../../host/card/posix.js';
import { QemuCard } from '../../host/card/qemu.js';
import { DEFAULT_SETTINGS } from '../../host/card/settings.js';
import { Cable } from '../../host/front-end/cable.js';
import { buildPosixCard, buildQemuCard, FIRMWARE, POSIX_CARD, qemuCard } from './builds.js';
import { IMAGE_NAME, pattern, TestImage } from './image.js';
import { assemble, STORE_ASYNCHRONOUS } from './modules.js';
import { AtaError, Command, Pc } from './pc.js';
import { MODULES } from './posix-card.js';

const SECTORS = 32_768; // 16 MiB
/** Long enough for every test: nothing is committed before the power goes. */
const NEVER_MS = 600_000;

function bytes(seed: string, sectors: number): Buffer {
  const parts: Buffer[] = [];
  for (let i = 0; i < sectors * 8; i++) parts.push(createHash('sha512').update(`${seed} ${i}`).digest());
  return Buffer.concat(parts);
}

const WRITES: { lba: number; data: Buffer; command: number }[] = [
  { lba: 1, data: bytes('one sector', 1), command: Command.WRITE_SECTORS },
  { lba: 101, data: bytes('not aligned', 37), command: Command.WRITE_SECTORS_EXT },
  { lba: 4096, data: bytes('several records', 1500), command: Command.WRITE_DMA_EXT },
  { lba: 5000, data: bytes('over it', 64), command: Command.WRITE_DMA_EXT },
];

/** The disk as the PC left it. */
function written(): Buffer {
  const disk = pattern(0, SECTORS);
  for (const { lba, data } of WRITES) disk.set(data, lba * 512);
  return disk;
}

type BoardCard = PosixCard | QemuCard;

const BOARDS = {
  posix: {
    build: (_engine: 'aot' | 'wasm3') => buildPosixCard(),
    make: (engine: 'aot' | 'wasm3', path: NetworkPath, storeFile: string, epochAgeMs: number): BoardCard =>
      new PosixCard({
        program: POSIX_CARD,
        firmware: FIRMWARE,
        engine,
        settings: { ...DEFAULT_SETTINGS, exportName: IMAGE_NAME, epochAgeMs },
        path,
        storeFile,
        memorySize: 32 << 20,
      }),
  },
  qemu: {
    build: (engine: 'aot' | 'wasm3') => buildQemuCard(engine),
    make: (engine: 'aot' | 'wasm3', path: NetworkPath, storeFile: string, epochAgeMs: number): BoardCard =>
      new QemuCard({
        program: qemuCard(engine),
        firmware: FIRMWARE,
        settings: { ...DEFAULT_SETTINGS, exportName: IMAGE_NAME, epochAgeMs },
        path,
        storeFile,
      }),
  },
};

async function start(card: BoardCard, log: string[]): Promise<Pc> {
  card.onLog = (level, line) => log.push(`${level}: ${line}`);
  try {
    await card.start();
  } catch (error) {
    throw new Error(`${(error as Error).message}\n${log.join('\n')}`);
  }
  const pc = new Pc(new Cable([card.frontEnd]));
  await pc.ready();
  return pc;
}

async function logged(log: string[], pattern: RegExp): Promise<void> {
  const deadline = Date.now() + 10_000;
  while (!log.some((line) => pattern.test(line))) {
    if (Date.now() > deadline) throw new Error(`no line matches ${pattern}:\n${log.join('\n')}`);
    await new Promise((done) => setTimeout(done, 20));
  }
}

for (const [name, board] of Object.entries(BOARDS)) {
  for (const engine of ['aot', 'wasm3'] as const) {
    describe(`local store, ${name} card, ${engine}`, () => {
      const image = new TestImage(SECTORS);
      const folder = mkdtempSync(join(tmpdir(), 'ribbon-store-'));
      const storeFile = join(folder, 'store');
      const log: string[] = [];
      const cards: BoardCard[] = [];
      let path: NetworkPath;

      const makeCard = (epochAgeMs: number): BoardCard => {
        const card = board.make(engine, path, storeFile, epochAgeMs);
        cards.push(card);
        return card;
      };

      before(async () => {
        await board.build(engine);
        path = await image.serveTcp();
      });

      after(async () => {
        for (const card of cards) await card.stop(0);
        await image.close();
        rmSync(folder, { recursive: true, force: true });
      });

      test('writes that were acknowledged outlive a power cut; the image server gets them afterwards', async () => {
        const card = makeCard(NEVER_MS);
        const pc = await start(card, log);
        for (const { lba, data, command } of WRITES) await pc.write(lba, data, command);
        await card.cutPower();
        assert.ok(
          image.content().equals(pattern(0, SECTORS)),
          'the image server must not have them: only the store does',
        );

        const again = makeCard(50);
        const pcAgain = await start(again, log);
        for (const { lba, data } of WRITES.slice(0, 2)) {
          assert.ok((await pcAgain.read(lba, data.length / 512)).equals(data), `the PC's write to ${lba} is lost`);
        }
        const expected = written().subarray(4096 * 512, 5600 * 512);
        assert.ok((await pcAgain.read(4096, 1504, Command.READ_DMA_EXT)).equals(expected));
        assert.equal(await again.stop(20_000), 0, log.join('\n'));
        assert.ok(image.content().equals(written()), 'the master image is not what the PC wrote');
      });

      if (name !== 'qemu') return;

      test('the SD card is pulled: writes fail, no read is wrong', async () => {
        const card = makeCard(NEVER_MS) as QemuCard;
        const pc = await start(card, log);
        const before = bytes('before the pull', 40);
        await pc.write(9000, before);
        await card.removeStore();
        const failure = await pc.write(9100, bytes('without a card', 40)).then(
          () => null,
          (error: unknown) => error,
        );
        assert.ok(failure instanceof AtaError, `a write without an SD card ends with ${failure}`);
        const expected = written();
        expected.set(before, 9000 * 512);
        for (const lba of [0, 9000, 20_000]) {
          // An error is right, the right data too.
          const data = await pc.read(lba, 40).catch((error: unknown) => {
            assert.ok(error instanceof AtaError, String(error));
            return null;
          });
          const right = expected.subarray(lba * 512, (lba + 40) * 512);
          if (data !== null) assert.ok(data.equals(right), `wrong data at ${lba}`);
        }
        log.length = 0;
        await card.insertStore();
        await logged(log, /SD card: blocks=/);
        const back = await pc.read(9000, 40).catch((error: unknown) => error);
        assert.ok(back instanceof AtaError || (back as Buffer).equals(before), 'wrong data from the card that is back');
        await card.cutPower();

        const again = makeCard(50);
        const pcAgain = await start(again, log);
        assert.ok((await pcAgain.read(9000, 40)).equals(before), 'a write from before the pull is lost');
        assert.equal(await again.stop(20_000), 0, log.join('\n'));
      });
    });
  }
}

test('the SD driver moves blocks to and from memory that is not aligned, in several pieces', async () => {
  const card = new QemuCard({
    program: qemuCard('wasm3'),
    firmware: assemble(STORE_ASYNCHRONOUS, MODULES),
    settings: DEFAULT_SETTINGS,
    path: { address: { host: '127.0.0.1', port: 9 } },
  });
  const log: string[] = [];
  card.onLog = (level, line) => log.push(`${level}: ${line}`);
  // It is no disk, so the start does not end well.
  const started = card.start().catch(() => {});
  try {
    await logged(log, /^info: (good store|firmware .*: unreachable)|^error: firmware/);
    assert.ok(/info: good store/.test(log.join()), log.join('\n'));
  } finally {
    await started;
    await card.cutPower(); // it has no statistics to wait for
    await card.stop(0);
  }
});
