// A day in simulated time (RIBBON_LONG=1; otherwise two hours): a PC works in bursts, the line fails every hour, the local store is written over and
// over. Invariant: after the first hour the card takes no more memory than before. Linear memory cannot grow, and all that lies in it is laid out by
// init(): what could grow is what is touched of it.
//
// What the C runtime takes is for tests/boards/leaks.test.ts.

import assert from 'node:assert/strict';
import { test } from 'node:test';
import { FAST_LINK, SimulatedRig } from '../../host/bench/simulated-rig.js';
import { Random } from '../../host/fuzz/random.js';

const HOURS = process.env.RIBBON_LONG === '1' ? 24 : 2;
const HOUR_MS = 3_600_000;
const IMAGE_BYTES = 16 << 20;
/** Written over several times in an hour. */
const STORE_BYTES = 32 << 20;
const BURST_COMMANDS = 60;
/** From one burst to the next: 60 an hour. */
const REST_MS = 55_000;
/** Of every hour, the line is dead. */
const OUTAGE_BURSTS = 5;
const PAGE = 4096;
/** Buffers and tables that happen to hold nothing but zeros at the end of an hour, or not. */
const PAGES_EITHER_WAY = 3;

/** Pages of the memory that hold something. */
function pagesInUse(memory: Uint8Array): number {
  const words = new BigUint64Array(memory.buffer, memory.byteOffset, memory.length / 8);
  let count = 0;
  for (let page = 0; page < words.length; page += PAGE / 8) {
    let at = page;
    while (at < page + PAGE / 8 && words[at] === 0n) at++;
    if (at < page + PAGE / 8) count++;
  }
  return count;
}

test(`${HOURS} simulated hours: the card takes no more memory at the end than after the first`, async (t) => {
  const random = new Random(5);
  const image = Buffer.alloc(IMAGE_BYTES);
  for (let at = 0; at < IMAGE_BYTES; at += 4) image.writeUInt32LE(0x5eed0000 + at, at); // no page of it is zero
  const expected = Buffer.from(image);
  const rig = new SimulatedRig({
    seed: 5,
    link: FAST_LINK,
    image,
    storeBytes: STORE_BYTES,
    memorySize: 32 << 20,
  });
  const pages: number[] = [];
  let commands = 0;

  const burst = async (): Promise<void> => {
    for (let i = 0; i < BURST_COMMANDS; i++) {
      const sectors = random.pick([1, 8, 64, 256]);
      const lba = random.below(IMAGE_BYTES / 512 - sectors);
      const bytes = Buffer.alloc(sectors * 512);
      commands++;
      if (random.chance(0.5)) {
        bytes.fill(random.u32().toString(36));
        await rig.pc.write(lba, bytes);
        expected.set(bytes, lba * 512);
      } else {
        await rig.pc.read(lba, bytes);
        assert.ok(bytes.equals(expected.subarray(lba * 512, lba * 512 + bytes.length)), `sectors ${lba} +${sectors}`);
      }
    }
    await rig.pc.flush();
  };

  await rig.run(async () => {
    // Everything that a PC can read is in the cache from the first hour on.
    for (let at = 0; at < IMAGE_BYTES; at += 1 << 20) await rig.pc.read(at / 512, Buffer.alloc(1 << 20));
    for (let hour = 1; hour <= HOURS; hour++) {
      for (let i = 0; rig.nowMs < hour * HOUR_MS; i++) {
        if (i === 1) rig.setLink(false);
        if (i === 1 + OUTAGE_BURSTS) rig.setLink(true);
        await burst();
        await rig.sleep(REST_MS);
      }
      await rig.until(() => rig.card.statistics().lagBytes === 0);
      pages.push(pagesInUse(rig.card.memory));
    }
    const { blocksWritten, connects } = {
      blocksWritten: rig.card.statistics().storeBlocksWritten,
      connects: rig.card.statistics().connects,
    };
    t.diagnostic(
      `${commands} commands, ${blocksWritten} blocks written to a store of ${STORE_BYTES / 4096}, ${connects} connections`,
    );
    t.diagnostic(`pages of 4 KiB in use after each hour: ${pages.join(' ')}`);
    assert.ok(blocksWritten > (2 * STORE_BYTES) / 4096, 'the store has not been written over: then this says little');
    assert.ok(connects > HOURS, 'the line has not failed');
  });
  assert.ok((await rig.backend.content()).equals(expected));
  assert.ok(Math.max(...pages) <= pages[0] + PAGES_EITHER_WAY, `grows: ${pages.join(' ')}`);
});
