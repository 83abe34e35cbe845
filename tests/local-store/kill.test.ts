// A process that holds a card is killed, again and again, while its PC writes: no write that the PC was told is done is lost.
//
// What is real here: the process, the store in a file with fdatasync, the image server on a socket, the kill. The page cache
// survives a killed process, so that a missing flush does not show; tests/local-store/power-cut.test.ts is for that.
// RIBBON_KILLS=50 for a long run.

import assert from 'node:assert/strict';
import { fork } from 'node:child_process';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { describe, it } from 'node:test';
import { fileURLToPath } from 'node:url';
import { Random } from '../../host/fuzz/random.js';
import { ImageServer } from '../../host/server/server.js';
import { FaultyDisk, FaultyDisks } from '../../host/simulation/faulty-disk.js';
import { History, SECTOR } from './history.js';

const SECTORS = 4096;
const KILLS = Number(process.env.RIBBON_KILLS ?? 12);

/** From the card's process: a write began, or was acknowledged, or the whole disk as the PC reads it. */
type Message =
  | { kind: 'ready'; ms: number }
  | { kind: 'begin' | 'end'; lba: number; sectors: number }
  | { kind: 'disk'; data: string };

describe('kill -9 of the process that holds the card', () => {
  it(`${KILLS} times at random moments: no acknowledged write is lost`, async () => {
    const folder = mkdtempSync(join(tmpdir(), 'ribbon-kill-'));
    const socket = join(folder, 'server');
    const random = new Random(7);
    const history = new History(SECTORS);
    const disk = new FaultyDisk(SECTORS * SECTOR);
    history.base().copy(disk.image);
    const exports = new FaultyDisks(new Map([['disk', disk]]));
    const server = new ImageServer({ exports, listen: [{ kind: 'unix', path: socket }] });
    await server.listen();
    try {
      let generation = 0;
      for (let kill = 0; kill <= KILLS; kill++) {
        const last = kill === KILLS;
        const data = await life(socket, join(folder, 'store'), history, random, last);
        if (data !== null) history.truncate(history.prefixOf(data, history.acknowledged, history.issued, 'the disk'));
        generation = history.prefixOf(disk.image, generation, history.issued, 'the master image');
      }
      assert.ok(history.issued > KILLS, `${history.issued} writes`);
    } finally {
      await server.close();
      rmSync(folder, { recursive: true, force: true });
    }
  });
});

/** Powers a card on in a process of its own, learns what is on its disk, lets it write, kills it. */
function life(
  socket: string,
  store: string,
  history: History,
  random: Random,
  last: boolean,
): Promise<Uint8Array | null> {
  const child = fork(fileURLToPath(new URL('./kill-card.js', import.meta.url)), [
    socket,
    store,
    String(random.u32()),
    String(history.issued),
  ]);
  let data: Buffer | null = null;
  return new Promise((resolve, reject) => {
    child.on('error', reject);
    child.on('exit', () => resolve(data));
    child.on('message', (message: Message) => {
      if (message.kind === 'begin') history.next(message.lba, message.sectors);
      else if (message.kind === 'end') history.acknowledge();
      else if (message.kind === 'ready') assert.ok(message.ms < 10_000, `recovery took ${message.ms} ms`);
      else if (message.kind === 'disk') {
        data = Buffer.from(message.data, 'base64');
        // The commands of this life come on top of what was found.
        history.truncate(history.prefixOf(data, history.acknowledged, history.issued, 'the disk'));
        data = null;
        child.send(history.issued);
        if (last) child.kill('SIGKILL');
        else setTimeout(() => child.kill('SIGKILL'), random.between(5, 400));
      }
    });
  });
}
