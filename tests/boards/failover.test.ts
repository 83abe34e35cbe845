// Two Ethernet ports and two paths in QEMU: the cable of the port that is in use is pulled, back and forth, while the PC reads and writes. Invariants:
//   - the card reaches the image server through the other port, and says so;
//   - no command fails, what is read is right, and every acknowledged write is in the master image in the end.

import assert from 'node:assert/strict';
import { before, test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import type { NetworkPath } from '../../host/card/network.js';
import { QemuCard } from '../../host/card/qemu.js';
import { DEFAULT_SETTINGS } from '../../host/card/settings.js';
import { Cable } from '../../host/front-end/cable.js';
import { buildQemuCard, FIRMWARE, qemuCard } from './builds.js';
import { IMAGE_NAME, pattern, TestImage } from './image.js';
import { Command, Pc } from './pc.js';

const SECTORS = 65_536;
/** The first half is read, each part of it once; the second one written. */
const WRITE_FROM = SECTORS / 2;
const CHUNK = 64;

before(() => buildQemuCard('aot'));

/** Lines of SPEC.md "Network paths" for another address of the same server. */
function pathLine(path: NetworkPath, address: string): string {
  const { address: server, tls } = path;
  assert.ok('port' in server && tls !== undefined && 'identity' in tls);
  return `tcp ${address} ${server.port} psk ${tls.identity} ${tls.key.toString('hex')}`;
}

/** Pulls cables in this order; the port that is left has to carry on. */
const PULLS = [0, 1, 0] as const;

async function failsOver(more: {
  networkLines?: (path: NetworkPath) => string[];
  qemuArguments?: string[];
}): Promise<void> {
  const image = new TestImage(SECTORS);
  const expected = pattern(0, SECTORS);
  const log: string[] = [];
  const path = await image.serveTcp({ tls: true });
  const card = new QemuCard({
    program: qemuCard('aot'),
    firmware: FIRMWARE,
    settings: { ...DEFAULT_SETTINGS, exportName: IMAGE_NAME, tls: true, epochAgeMs: 100 },
    path,
    networkLines: more.networkLines?.(path) ?? [],
    qemuArguments: more.qemuArguments ?? [],
  });
  card.onLog = (level, line) => log.push(`${level}: ${line}`);
  const crashes: string[] = [];
  card.onCrash = (error) => crashes.push(error.message);
  const logged = async (wanted: RegExp, since: number): Promise<void> => {
    const deadline = Date.now() + 60_000;
    while (!log.slice(since).some((line) => wanted.test(line))) {
      if (Date.now() > deadline) throw new Error(`no line matches ${wanted}:\n${log.join('\n')}`);
      await sleep(20);
    }
  };

  try {
    await card.start();
    const pc = new Pc(new Cable([card.frontEnd]));
    await pc.ready();
    let isOver = false;
    let writes = 0;
    let reads = 0;
    const work = (async (): Promise<void> => {
      for (let i = 0; !isOver; i++) {
        const at = (i * CHUNK) % (SECTORS / 2);
        const bytes = Buffer.alloc(CHUNK * 512, `write ${i} of this PC `);
        await pc.write(WRITE_FROM + at, bytes, Command.WRITE_DMA_EXT);
        expected.set(bytes, (WRITE_FROM + at) * 512);
        writes++;
        // Slowly through what the card has not: there is something left to fetch from the server on every path.
        const fresh = Math.min(Math.floor(i / 8) * CHUNK, WRITE_FROM - CHUNK);
        assert.ok((await pc.read(fresh, CHUNK, Command.READ_DMA_EXT)).equals(pattern(fresh, CHUNK)), `sector ${fresh}`);
        reads++;
        await sleep(5);
      }
    })();
    // Whatever stops the PC ends the test, and says why.
    const whileWorking = <T>(wait: Promise<T>): Promise<T | undefined> =>
      Promise.race([wait, work.then(() => undefined)]);

    let active = 0;
    for (const port of PULLS) {
      const other = (1 - port) as 0 | 1;
      // Only now: at power-on the port that has an address first may be either.
      await whileWorking(card.setLink(other, true));
      let since = log.length;
      await whileWorking(card.setLink(port, false));
      await whileWorking(logged(new RegExp(`^warning: network ${port}: link down`), since));
      if (active === port) {
        // At once, not after the silence that a dead line would be noticed by.
        await whileWorking(logged(new RegExp(`^warning: network ${port}: its connection is given up`), since));
        await whileWorking(logged(new RegExp(`^info: network ${other}: connected to 10\\.0\\.\\d\\.2 port`), since));
        await whileWorking(logged(/^info: image server connected/, since));
      }
      active = other;
      // The server gets what is written from now on, through this port.
      const { epochsCommitted } = card.statistics();
      const before = { reads, writes };
      await whileWorking(
        (async () => {
          while (card.statistics().epochsCommitted < epochsCommitted + 2) await sleep(20);
        })(),
      );
      assert.ok(reads > before.reads && writes > before.writes);
      since = log.length;
      await whileWorking(card.setLink(port, true));
      await whileWorking(logged(new RegExp(`^info: network ${port}: link up`), since));
    }
    isOver = true;
    await work;
    assert.equal(await card.stop(60_000), 0, log.join('\n'));
    assert.ok(image.content().equals(expected), 'the master image is not what the PC wrote');
    assert.deepEqual(crashes, []);
  } catch (error) {
    throw new Error(`${(error as Error).message}\n${log.join('\n')}`, { cause: error });
  } finally {
    await card.stop(0);
    await image.close();
  }
}

test('two networks, two addresses of the server: a cable is pulled, the other path is taken, back and forth', () =>
  failsOver({ networkLines: (path) => [pathLine(path, '10.0.3.2')] }));

test('two ports in one network: a cable is pulled, the same path goes on through the other port, back and forth', () =>
  failsOver({ qemuArguments: ['-set', 'netdev.n1.net=10.0.2.0/24'] }));
