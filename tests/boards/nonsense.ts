// A front end gone mad: writes anything into the register block that it shares with the card, and rings. Invariants:
//   - neither firmware nor runtime fails;
//   - after a hardware reset the card is a disk again, with the master image's size and content.

import assert from 'node:assert/strict';
import { closeSync, openSync, writeSync } from 'node:fs';
import type { RemoteCard } from '../../host/card/remote.js';
import { FrontEndEvent } from '../../host/front-end/front-end.js';
import type { Pc } from './pc.js';

const SEED = Number(process.env.RIBBON_SEED ?? 1);
const ROUNDS = 600;
const BLOCK_SIZE = 80;
const EVENT_SEQUENCE = 16;
const COMMAND = 75;
/** What the card does for the PC in earnest would change the image: writes and TRIM get another command in their place. */
const WRITES = [0x30, 0x31, 0x32, 0x33, 0x34, 0x35, 0x39, 0x3c, 0xc5, 0xca, 0xcb, 0x06, 0xce, 0x3d];
const CMD_IDENTIFY_DEVICE = 0xec;

export async function writeNonsense(card: RemoteCard, pc: Pc, log: string[]): Promise<void> {
  const shared = card.sharedBlock;
  assert.ok(shared !== null);
  let state = (SEED * 2654435761) >>> 0 || 1;
  const below = (limit: number): number => {
    state ^= state << 13;
    state ^= state >>> 17;
    state ^= state << 5;
    return (state >>> 0) % limit;
  };
  const words = await pc.identify();
  log.length = 0;
  const memory = openSync(shared.file, 'r+');
  try {
    for (let round = 0; round < ROUNDS; round++) {
      const nonsense = Buffer.from(Array.from({ length: 1 + below(BLOCK_SIZE) }, () => below(256)));
      const at = below(BLOCK_SIZE - nonsense.length + 1);
      const command = COMMAND - at;
      if (command >= 0 && command < nonsense.length && WRITES.includes(nonsense[command])) {
        nonsense[command] = CMD_IDENTIFY_DEVICE;
      }
      writeSync(memory, nonsense, 0, nonsense.length, shared.offset + at);
      if (round % 2 === 0) {
        // An event in its right form, with a wild number and length.
        const event = Buffer.alloc(12);
        event.writeUInt32LE(below(0xffffffff), 0);
        event.writeUInt32LE(below(FrontEndEvent.DMA_TERMINATED + 2), 4);
        event.writeUInt32LE(below(2) === 0 ? below(0xffffffff) : below(70_000), 8);
        writeSync(memory, event, 0, event.length, shared.offset + EVENT_SEQUENCE);
      }
      card.ringCard();
      if (round % 4 === 0) await new Promise((done) => setTimeout(done, 1));
    }
  } finally {
    closeSync(memory);
  }
  card.frontEnd.powerOn();
  await pc.ready();
  assert.deepEqual(await pc.identify(), words, `RIBBON_SEED=${SEED}`);
  const failures = log.filter((line) => line.startsWith('error:'));
  assert.deepEqual(failures, [], `RIBBON_SEED=${SEED}: the firmware or the runtime failed`);
}
