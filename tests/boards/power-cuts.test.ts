// Power cuts of a QEMU card with an SD card, at random moments of its work: kill -9, memory gone, power on again. Invariant: every write that
// the PC was told is done is there, on the disk that the PC sees and in the end in the master image. The one command that was under
// way may be done, not done, or done in part, sector by sector.

import assert from 'node:assert/strict';
import { after, before, describe, test } from 'node:test';
import { QemuCard } from '../../host/card/qemu.js';
import { DEFAULT_SETTINGS } from '../../host/card/settings.js';
import { Cable } from '../../host/front-end/cable.js';
import { buildQemuCard, FIRMWARE, qemuCard } from './builds.js';
import { IMAGE_NAME, pattern, TestImage } from './image.js';
import { Command, Pc } from './pc.js';

const SEED = Number(process.env.RIBBON_SEED ?? 1);
const LONG = process.env.RIBBON_LONG === '1' ? 10 : 1;
const SECTORS = 16_384;
/** Few, so that blocks are overwritten again and again: that is where an old copy could come back. */
const WORKING_SET = 2048;
const CUT_WITHIN_MS = 150;

for (const [engine, cuts] of [
  ['aot', 14 * LONG],
  ['wasm3', 6 * LONG],
] as const) {
  describe(`${engine}, SD card, TLS-PSK`, () => {
    const image = new TestImage(SECTORS);
    const expected = pattern(0, SECTORS);
    /** What a sector may hold besides: the write that was under way. */
    const log: string[] = [];
    let card: QemuCard;
    let state = (SEED * 2654435761) >>> 0 || 1;
    let stamp = 1;

    const below = (limit: number): number => {
      state ^= state << 13;
      state ^= state >>> 17;
      state ^= state << 5;
      return (state >>> 0) % limit;
    };

    /** Sectors that say where they belong and which write they are of. */
    const data = (lba: number, sectors: number): Buffer => {
      const bytes = Buffer.alloc(sectors * 512);
      stamp++;
      for (let at = 0; at < bytes.length; at += 8) {
        bytes.writeUInt32LE(lba + Math.floor(at / 512), at);
        bytes.writeUInt32LE(stamp, at + 4);
      }
      return bytes;
    };

    const powerOn = async (): Promise<Pc> => {
      await card.start();
      const pc = new Pc(new Cable([card.frontEnd]));
      await pc.ready();
      return pc;
    };

    /** Writes until the power is gone; `expected` has what was acknowledged. Returns the write that was not. */
    const writeUntilCut = async (pc: Pc): Promise<{ lba: number; bytes: Buffer } | null> => {
      let isCut = false;
      const cut = new Promise<void>((done) => setTimeout(done, below(CUT_WITHIN_MS))).then(async () => {
        await card.cutPower();
        isCut = true;
        pc.switchOff();
      });
      let underWay: { lba: number; bytes: Buffer } | null = null;
      while (!isCut) {
        const sectors = [1, 3, 8, 16, 40, 256][below(6)];
        const lba = below(WORKING_SET - sectors);
        const bytes = data(lba, sectors);
        underWay = { lba, bytes };
        const command = below(2) === 0 ? Command.WRITE_DMA_EXT : Command.WRITE_SECTORS_EXT;
        try {
          await pc.write(lba, bytes, command);
        } catch (error) {
          if (!isCut) throw error;
          break;
        }
        // An acknowledgement that was on its way when the power went still is one.
        expected.set(bytes, lba * 512);
        underWay = null;
      }
      await cut;
      return underWay;
    };

    const check = async (pc: Pc, underWay: { lba: number; bytes: Buffer } | null, cut: number): Promise<void> => {
      for (let lba = 0; lba < WORKING_SET; lba += 256) {
        const read = await pc.read(lba, 256, Command.READ_DMA_EXT);
        for (let i = 0; i < 256; i++) {
          const sector = read.subarray(i * 512, i * 512 + 512);
          const at = (lba + i) * 512;
          if (sector.equals(expected.subarray(at, at + 512))) continue;
          const offset = underWay === null ? -1 : lba + i - underWay.lba;
          const mayBe = offset >= 0 && underWay !== null && offset * 512 < underWay.bytes.length;
          const attempted = mayBe ? underWay?.bytes.subarray(offset * 512, offset * 512 + 512) : undefined;
          assert.ok(
            attempted !== undefined && sector.equals(attempted),
            `sector ${lba + i} after cut ${cut} (RIBBON_SEED=${SEED}) holds write ${sector.readUInt32LE(4)} of sector ` +
              `${sector.readUInt32LE(0)}, acknowledged was ${expected.readUInt32LE(at + 4)}\n${log.slice(-20).join('\n')}`,
          );
          expected.set(sector, at);
        }
      }
    };

    before(async () => {
      await buildQemuCard(engine);
      card = new QemuCard({
        program: qemuCard(engine),
        firmware: FIRMWARE,
        settings: { ...DEFAULT_SETTINGS, exportName: IMAGE_NAME, tls: true, epochAgeMs: 200 },
        path: await image.serveTcp({ tls: true }),
      });
      card.onLog = (level, line) => log.push(`${level}: ${line}`);
    });

    after(async () => {
      await card?.stop(0);
      await image.close();
    });

    test(`${cuts} power cuts: no acknowledged write is lost`, async (t) => {
      let cutShort = 0;
      for (let cut = 1; cut <= cuts; cut++) {
        const pc = await powerOn();
        assert.ok(
          log.some((line) => line.includes(`engine=${engine}`)),
          log.join('\n'),
        );
        const underWay = await writeUntilCut(pc);
        if (underWay !== null) cutShort++;
        await check(await powerOn(), underWay, cut);
        if (cut < cuts) await card.cutPower();
      }
      t.diagnostic(`${cutShort} of ${cuts} cuts hit a write, ${stamp} writes in all`);
      assert.ok(cutShort > 0, 'no cut has hit a write: then this says little');
      assert.equal(await card.stop(60_000), 0);
      assert.ok(image.content().equals(expected), 'the master image is not what the PC saw');
    });
  });
}
