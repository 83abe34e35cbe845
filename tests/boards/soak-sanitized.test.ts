// A PC at random on the posix card built with ASan and UBSan: reads, writes, flushes, resets; the image server killed, the firmware trapped, the
// power cut, the card switched off and on. RIBBON_LONG=1: ten minutes of it, half of them with each engine. Invariants:
//   - neither sanitizer has anything to say, also of leaks when the card ends by itself;
//   - no command fails, what is read is what was written last;
//   - in the end the master image is what the PC wrote.

import assert from 'node:assert/strict';
import { rmSync } from 'node:fs';
import { join } from 'node:path';
import { before, test } from 'node:test';
import { PosixCard } from '../../host/card/posix.js';
import { DEFAULT_SETTINGS } from '../../host/card/settings.js';
import { Cable } from '../../host/front-end/cable.js';
import { CONTROL_SRST } from '../../host/front-end/front-end.js';
import { Random } from '../../host/fuzz/random.js';
import { buildSanitizedPosixCard, FIRMWARE, POSIX_CARD_SANITIZED } from './builds.js';
import { IMAGE_NAME, pattern, TestImage } from './image.js';
import { Command, Pc } from './pc.js';

const SEED = Number(process.env.RIBBON_SEED ?? 1);
const LONG_MS = process.env.RIBBON_LONG === '1' ? 600_000 / 2 : 0;
/** Each of them ends in one of the mishaps below: all of them come in a short run. */
const ROUNDS = 5;
const COMMANDS = LONG_MS > 0 ? 150 : 40;
const SECTORS = 65_536;
const LOG_LINES = 1000;
/** Three traps within a minute, and the firmware is given up. */
const TRAP_INTERVAL_MS = 31_000;

before(buildSanitizedPosixCard);

for (const engine of ['wasm3', 'aot'] as const) {
  test(`${engine}: a PC, mishaps, sanitizers`, async (t) => {
    const random = new Random(SEED);
    const image = new TestImage(SECTORS);
    const expected = pattern(0, SECTORS);
    const log: string[] = [];
    const crashes: string[] = [];
    const findings: string[] = [];
    let traps = 0;
    const path = await image.serveTcp({ tls: true });
    const makeCard = (): PosixCard => {
      const made = new PosixCard({
        program: POSIX_CARD_SANITIZED,
        firmware: FIRMWARE,
        engine,
        settings: { ...DEFAULT_SETTINGS, exportName: IMAGE_NAME, tls: true, epochAgeMs: 300 },
        path,
        storeFile: join(image.folder, 'store'),
        memorySize: 32 << 20,
        startTimeoutMs: 60_000,
      });
      made.onLog = (level, line) => {
        log.push(`${level}: ${line}`);
        if (log.length > LOG_LINES) log.splice(0, LOG_LINES / 2);
        if (/Sanitizer|runtime error/.test(line)) findings.push(line);
        if (line.includes('watchdog')) traps++;
      };
      made.onCrash = (error) => crashes.push(error.message);
      return made;
    };
    let card = makeCard();
    const counts = { commands: 0, sectors: 0 };
    let pc!: Pc;
    let trappedMs = -TRAP_INTERVAL_MS;

    const powerOn = async (): Promise<void> => {
      await card.start();
      pc = new Pc(new Cable([card.frontEnd]));
      await pc.ready();
    };
    const work = async (): Promise<void> => {
      const sectors = random.pick([1, 2, 8, 31, 128, 256, 1000]);
      // Half of it where blocks are written again and again.
      const lba = random.below((random.chance(0.5) ? 4096 : SECTORS) - sectors);
      const isDma = random.chance(0.6);
      counts.commands++;
      counts.sectors += sectors;
      if (random.chance(0.05)) await pc.flush();
      if (random.chance(0.5)) {
        const bytes = Buffer.alloc(sectors * 512, random.below(2 ** 31).toString(36));
        await pc.write(lba, bytes, isDma ? Command.WRITE_DMA_EXT : Command.WRITE_SECTORS_EXT);
        expected.set(bytes, lba * 512);
      } else {
        const bytes = await pc.read(lba, sectors, isDma ? Command.READ_DMA_EXT : Command.READ_SECTORS_EXT);
        assert.ok(bytes.equals(expected.subarray(lba * 512, (lba + sectors) * 512)), `sectors ${lba} +${sectors}`);
      }
    };
    const mishaps: Record<string, () => Promise<void> | void> = {
      'image server killed': async () => {
        await image.stopServer('SIGKILL');
        for (let i = 0; i < 20; i++) {
          const lba = random.below(64) * 8;
          const bytes = Buffer.alloc(4096, `offline ${i} `);
          await pc.write(lba, bytes, Command.WRITE_DMA_EXT);
          expected.set(bytes, lba * 512);
        }
        await image.serveTcp({ tls: true });
      },
      trap: () => {
        if (Date.now() - trappedMs < TRAP_INTERVAL_MS) return;
        trappedMs = Date.now();
        process.kill(card.pid ?? 0, 'SIGUSR1');
      },
      'power cut': async () => {
        await card.cutPower();
        await powerOn();
      },
      'switched off and on': async () => {
        assert.equal(await card.stop(60_000), 0);
        card = makeCard();
        await powerOn();
      },
      reset: async () => {
        pc.cable.writeDeviceControl(CONTROL_SRST);
        pc.cable.writeDeviceControl(0);
        await pc.ready();
      },
    };

    try {
      await powerOn();
      const end = Date.now() + LONG_MS;
      const names = Object.keys(mishaps);
      let rounds = 0;
      for (; rounds < ROUNDS || Date.now() < end; rounds++) {
        for (let i = 0; i < COMMANDS; i++) await work();
        await mishaps[names[rounds % names.length]]();
      }
      assert.equal(await card.stop(60_000), 0);
      assert.ok(image.content().equals(expected), 'the master image is not what the PC wrote');
      t.diagnostic(`${rounds} mishaps, ${counts.commands} commands, ${(counts.sectors / 2048).toFixed(0)} MiB`);
      assert.deepEqual(crashes, []);
      assert.deepEqual(findings, []);
      assert.ok(traps > 0, 'no trap, no test');
    } catch (error) {
      const said = log.slice(-60).join('\n');
      throw new Error(`RIBBON_SEED=${SEED}: ${(error as Error).message}\n${crashes.join('\n')}\n${said}`, {
        cause: error,
      });
    } finally {
      await card.stop(0);
      await image.close();
      rmSync(image.folder, { recursive: true, force: true });
    }
  });
}
