// The card in QEMU: the real runtime on its own drivers, with TLS through lwIP and the Ethernet MAC, both engines.

import assert from 'node:assert/strict';
import { createHash } from 'node:crypto';
import { after, before, describe, test } from 'node:test';
import type { LogLevel } from '../../host/card/card.js';
import { QemuCard } from '../../host/card/qemu.js';
import { DEFAULT_SETTINGS } from '../../host/card/settings.js';
import { Cable } from '../../host/front-end/cable.js';
import { buildQemuCard, FIRMWARE, qemuCard } from './builds.js';
import { IMAGE_NAME, pattern, TestImage } from './image.js';
import { Command, Pc } from './pc.js';

const SECTORS = 65_536; // 32 MiB

function randomBytes(seed: string, length: number): Buffer {
  const parts: Buffer[] = [];
  for (let i = 0; i * 64 < length; i++) parts.push(createHash('sha512').update(`${seed} ${i}`).digest());
  return Buffer.concat(parts).subarray(0, length);
}

for (const engine of ['aot', 'wasm3'] as const) {
  describe(`QEMU card, ${engine}, TLS-PSK`, () => {
    const image = new TestImage(SECTORS);
    const expected = pattern(0, SECTORS);
    const log: string[] = [];
    let card: QemuCard;
    let pc: Pc;

    const logged = async (pattern: RegExp): Promise<void> => {
      const deadline = Date.now() + 30_000;
      while (!log.some((line) => pattern.test(line))) {
        if (Date.now() > deadline) throw new Error(`no line matches ${pattern}:\n${log.join('\n')}`);
        await new Promise((done) => setTimeout(done, 20));
      }
    };

    before(async () => {
      await buildQemuCard(engine);
      card = new QemuCard({
        program: qemuCard(engine),
        firmware: FIRMWARE,
        settings: {
          ...DEFAULT_SETTINGS,
          acknowledgementPoint: 'remote-received',
          exportName: IMAGE_NAME,
          serial: `QEMU-${engine}`,
          tls: true,
        },
        path: await image.serveTcp({ tls: true }),
      });
      card.onLog = (level: LogLevel, line: string) => log.push(`${level}: ${line}`);
      await card.start();
      pc = new Pc(new Cable([card.frontEnd]));
      await pc.ready();
    });

    after(async () => {
      await card?.stop(0);
      await image.close();
    });

    test('starts the engine that was asked for, and takes an address on both ports', async () => {
      assert.ok(
        log.some((line) => line.includes(`engine=${engine}`)),
        log.join('\n'),
      );
      await logged(/network 0: address=10\.0\.2\.\d+/);
      await logged(/network 1: address=10\.0\.3\.\d+/);
    });

    test('IDENTIFY DEVICE', async () => {
      const words = await pc.identify();
      const serial = Buffer.from(words.buffer, words.byteOffset + 20, 20)
        .swap16()
        .toString('latin1')
        .trim();
      assert.equal(serial, `QEMU-${engine}`);
      assert.equal(words[100] + words[101] * 65_536, SECTORS);
    });

    test('reads by PIO and DMA', async () => {
      assert.deepEqual(await pc.read(0, 1, Command.READ_SECTORS), pattern(0, 1));
      assert.deepEqual(await pc.read(SECTORS - 600, 600), pattern(SECTORS - 600, 600));
      assert.deepEqual(await pc.read(8000, 3000, Command.READ_DMA_EXT), pattern(8000, 3000));
    });

    test('writes are in the master image after a flush', async () => {
      const piece = randomBytes('piece', 5 * 512);
      const bulk = randomBytes('bulk', 2500 * 512);
      await pc.write(77, piece);
      await pc.write(5001, bulk, Command.WRITE_DMA_EXT);
      assert.deepEqual(await pc.read(77, 5), piece);
      assert.deepEqual(await pc.read(5001, 2500), bulk);
      await pc.flush();
      expected.set(piece, 77 * 512);
      expected.set(bulk, 5001 * 512);
      assert.ok(image.content().equals(expected));
    });

    test('the image server is killed and comes back while the PC writes and reads', async () => {
      const piece = randomBytes('while it is away', 40 * 512);
      await image.stopServer('SIGKILL');
      const written = pc.write(40_000, piece);
      await image.serveTcp({ tls: true });
      await written;
      assert.deepEqual(await pc.read(40_000, 40), piece);
      assert.deepEqual(await pc.read(20_000, 40), pattern(20_000, 40));
      await pc.flush();
      expected.set(piece, 40_000 * 512);
      assert.ok(image.content().equals(expected));
    });

    test('the Ethernet cable is pulled and put back while the PC writes', async () => {
      const piece = randomBytes('without a cable', 40 * 512);
      log.length = 0;
      await card.setLink(0, false);
      await logged(/network 0: link down/);
      const written = pc.write(50_000, piece);
      await card.setLink(0, true);
      await logged(/network 0: link up/);
      await written;
      await pc.flush();
      expected.set(piece, 50_000 * 512);
      assert.ok(image.content().equals(expected));
    });

    test('everything is committed when the card is switched off', async () => {
      const last = randomBytes('last', 300 * 512);
      await pc.write(60_000, last, Command.WRITE_DMA_EXT);
      assert.equal(await card.stop(), 0);
      expected.set(last, 60_000 * 512);
      assert.ok(image.content().equals(expected));
    });
  });
}
