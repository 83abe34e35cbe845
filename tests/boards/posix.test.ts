// The real firmware on the posix runtime, both engines: a PC reads and writes through the front end in shared memory, and what
// it wrote is in the master image.

import assert from 'node:assert/strict';
import { createHash } from 'node:crypto';
import { before, test } from 'node:test';
import { PosixCard } from '../../host/card/posix.js';
import { DEFAULT_SETTINGS } from '../../host/card/settings.js';
import { Cable } from '../../host/front-end/cable.js';
import { buildPosixCard, FIRMWARE, POSIX_CARD } from './builds.js';
import { IMAGE_NAME, pattern, TestImage } from './image.js';
import { Command, Pc } from './pc.js';

const SECTORS = 65_536; // 32 MiB

before(buildPosixCard);

function randomBytes(seed: string, length: number): Buffer {
  const parts: Buffer[] = [];
  for (let i = 0; i * 64 < length; i++) parts.push(createHash('sha512').update(`${seed} ${i}`).digest());
  return Buffer.concat(parts).subarray(0, length);
}

for (const engine of ['wasm3', 'aot'] as const) {
  test(`posix ${engine}: reads, writes, and what is written is in the master image`, async () => {
    const image = new TestImage(SECTORS);
    const log: string[] = [];
    const card = new PosixCard({
      program: POSIX_CARD,
      firmware: FIRMWARE,
      engine,
      settings: {
        ...DEFAULT_SETTINGS,
        acknowledgementPoint: 'remote-received',
        exportName: IMAGE_NAME,
        serial: `POSIX-${engine}`,
      },
      path: await image.serveUnix(),
      memorySize: 32 << 20,
    });
    card.onLog = (level, line) => log.push(`${level}: ${line}`);
    let crash: Error | null = null;
    card.onCrash = (error) => {
      crash = error;
    };
    try {
      await card.start();
      assert.ok(
        log.some((line) => line.includes(`engine=${engine}`)),
        log.join('\n'),
      );
      const pc = new Pc(new Cable([card.frontEnd]));
      await pc.ready();

      const words = await pc.identify();
      const serial = Buffer.from(words.buffer, words.byteOffset + 20, 20)
        .swap16()
        .toString('latin1')
        .trim();
      assert.equal(serial, `POSIX-${engine}`);
      assert.equal(words[100] + words[101] * 65_536, SECTORS);

      assert.deepEqual(await pc.read(0, 1, Command.READ_SECTORS), pattern(0, 1));
      assert.deepEqual(await pc.read(1000, 300), pattern(1000, 300));
      assert.deepEqual(await pc.read(SECTORS - 600, 600, Command.READ_DMA_EXT), pattern(SECTORS - 600, 600));

      const piece = randomBytes(`pio ${engine}`, 5 * 512);
      const bulk = randomBytes(`dma ${engine}`, 700 * 512);
      await pc.write(77, piece);
      await pc.write(5001, bulk, Command.WRITE_DMA_EXT);
      assert.deepEqual(await pc.read(77, 5), piece);
      assert.deepEqual(await pc.read(5001, 700), bulk);
      await pc.flush();

      const expected = pattern(0, SECTORS);
      expected.set(piece, 77 * 512);
      expected.set(bulk, 5001 * 512);
      assert.equal(await card.stop(), 0);
      assert.ok(image.content().equals(expected), 'the master image is not what the PC wrote');
      assert.equal(crash, null);
    } finally {
      await card.stop(0);
      await image.close();
    }
  });
}

test('a card whose process does not end when it is asked to is killed', async () => {
  const image = new TestImage(SECTORS);
  const card = new PosixCard({
    program: POSIX_CARD,
    firmware: FIRMWARE,
    settings: { ...DEFAULT_SETTINGS, exportName: IMAGE_NAME },
    path: await image.serveUnix(),
    memorySize: 32 << 20,
  });
  try {
    await card.start();
    const log: string[] = [];
    card.onLog = (level, line) => log.push(`${level}: ${line}`);
    process.kill(card.pid as number, 'SIGSTOP');
    await card.stop(0);
    assert.equal(card.pid, null);
    assert.match(log.join('\n'), /does not end within 5 s and is killed/);
  } finally {
    card.discard();
    await image.close();
  }
});
