// `ribbon image verify-prefix`: the reader made from SPEC.md against stores that the real firmware wrote and lost power on.
//
// The reader and the firmware share the document and nothing else. Three things must agree at every cut: what the PC did, what
// the firmware makes of the store when it comes back, and what the reader says of the store before that.

import assert from 'node:assert/strict';
import { execFileSync, spawnSync } from 'node:child_process';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { describe, it } from 'node:test';
import { fileURLToPath } from 'node:url';
import { crc32c } from '../../host/card/crc32c.js';
import { loadFirmware } from '../../host/card/firmware.js';
import { InProcessCard } from '../../host/card/in-process.js';
import { type CardSettings, DEFAULT_SETTINGS } from '../../host/card/settings.js';
import { Cable } from '../../host/front-end/cable.js';
import { Random } from '../../host/fuzz/random.js';
import { BLOCK_SIZE } from '../../host/local-store/format.js';
import type { Master } from '../../host/local-store/nbd-image.js';
import {
  openStoreFile,
  StoreLog,
  type StoreProblem,
  type StoreSource,
  UnusableStore,
} from '../../host/local-store/read-store.js';
import { type PrefixReport, verifyPrefix } from '../../host/local-store/verify-prefix.js';
import { AtaDriver } from '../../host/pc/ata-driver.js';
import { ImageServer } from '../../host/server/server.js';
import type { PowerCut, SimulatedStore } from '../../host/simulation/simulated-store.js';
import { Store } from '../../host/store/store.js';
import { countOperations, runAndCut } from './cuts.js';
import { SECTOR } from './history.js';
import { StoreRig } from './rig.js';
import { WORKLOADS } from './workloads.js';

const RIBBON = fileURLToPath(new URL('../../host/main.js', import.meta.url));
const CUTS = 10;

function sourceOf(store: SimulatedStore): StoreSource {
  return {
    blocks: store.blocks,
    read: (block, count) => Buffer.from(store.bytes.slice(block * BLOCK_SIZE, (block + count) * BLOCK_SIZE)),
    close: () => {},
  };
}

function masterOf(image: Buffer): Master {
  return {
    name: 'the master',
    size: image.length,
    read: async (offset, length) => image.subarray(offset, offset + length),
    close: async () => {},
  };
}

function verify(rig: StoreRig, image = rig.disk.image): Promise<PrefixReport> {
  const log = new StoreLog(sourceOf(rig.store));
  return verifyPrefix({ log, master: masterOf(image), serverRecord: null, isForeign: () => false });
}

/** The disk that the PC would see, put together from the reader's records and the master. */
function viewOf(log: StoreLog, master: Buffer): Buffer {
  const view = Buffer.alloc(Math.ceil(master.length / BLOCK_SIZE) * BLOCK_SIZE);
  master.copy(view);
  for (const record of log.records()) {
    if (record.isVoid) continue;
    for (const block of log.blocksOf(record)) {
      const data = log.readBlock(block);
      assert.ok(data !== null, `block ${block.at} of the store is damaged`);
      for (let sector = 0; sector < 8; sector++) {
        if ((block.valid & (1 << sector)) === 0) continue;
        data.copy(view, block.image * BLOCK_SIZE + sector * SECTOR, sector * SECTOR, (sector + 1) * SECTOR);
      }
    }
  }
  return view.subarray(0, master.length);
}

/** A card that has been switched off: `dirty` writes of one block each are not with the server. */
function usedRig(dirty: number, settings: Partial<CardSettings> = {}): StoreRig {
  const rig = new StoreRig({ settings });
  rig.powerOn();
  for (let i = 0; i < 30; i++) rig.write(i * 20, 9);
  rig.drain();
  rig.pass(2000);
  rig.setReachable(false);
  for (let i = 0; i < dirty; i++) rig.write(i * 8, 8);
  rig.powerOff();
  rig.store.powerCut({ kind: 'keep-all', sectors: 0 });
  return rig;
}

describe('verify-prefix on stores that lost their power', () => {
  for (const workload of WORKLOADS) {
    it(workload.name, async () => {
      const random = new Random(11);
      const total = countOperations(workload);
      for (let cut = 0; cut < CUTS; cut++) {
        const at = 12 + Math.floor(((total - 12) * cut) / CUTS);
        const rig = runAndCut(workload, at);
        const how: PowerCut =
          cut % 3 === 0
            ? { kind: 'lose-all' }
            : cut % 3 === 1
              ? { kind: 'keep-all', sectors: random.below(rig.store.cutSectors + 1) }
              : { kind: 'chance', random };
        rig.store.powerCut(how);
        const where = `cut at operation ${at} of ${total}, ${how.kind}`;
        const log = new StoreLog(sourceOf(rig.store));
        const report = await verify(rig);
        assert.deepEqual(report.differences, [], where);
        assert.deepEqual(report.lost, [], where);
        const low = rig.settings.acknowledgementPoint === 'received' ? rig.generation : rig.history.acknowledged;
        const seen = rig.history.prefixOf(viewOf(log, rig.disk.image), low, rig.history.issued, `the view, ${where}`);

        // The server is there, for the size of the disk, but nothing is committed.
        rig.setReachable(true);
        rig.disk.commits.hold();
        rig.powerOn();
        const { storeState, lagBytes, storeBlocksDirty } = rig.card.statistics();
        assert.equal(storeState, 'ready', where);
        const records = [...log.records()].filter((record) => log.isUncommitted(record));
        assert.equal(records.reduce((sum, it) => sum + it.sectors, 0) * SECTOR, lagBytes, `lag, ${where}`);
        assert.equal(report.uncommittedBlocks, storeBlocksDirty, `dirty blocks, ${where}`);
        rig.history.acknowledged = low;
        assert.equal(rig.checkView(), seen, `the firmware sees another disk, ${where}`);
        rig.powerOff();
      }
    });
  }

  it('a log that went round many times, with merges, partial blocks and the server gone', async () => {
    const rig = new StoreRig({ sectors: 65_541, settings: { epochAgeMs: 50 } });
    const random = new Random(3);
    rig.powerOn();
    for (let round = 0; round < 6; round++) {
      rig.setReachable(round % 2 === 0);
      for (let i = 0; i < 120; i++) rig.write(random.below(6000), random.between(1, 200));
    }
    assert.ok(rig.card.statistics().merges > 0, 'the log was merged');
    rig.powerOff();
    rig.store.powerCut({ kind: 'lose-all' });
    const log = new StoreLog(sourceOf(rig.store));
    assert.ok(log.tail > 1, `the log is at segment ${log.head}`);
    const report = await verify(rig);
    assert.deepEqual({ differences: report.differences, lost: report.lost }, { differences: [], lost: [] });
    rig.history.prefixOf(viewOf(log, rig.disk.image), rig.history.acknowledged, rig.history.issued, 'the view');
  });
});

describe('verify-prefix and the master', () => {
  it('says at which record the master stands, for every prefix of the log', async () => {
    const rig = usedRig(9);
    const image = Buffer.from(rig.disk.image);
    const log = new StoreLog(sourceOf(rig.store));
    const writes = [...log.records()].filter((record) => log.isUncommitted(record));
    assert.equal(writes.length, 9);
    assert.equal((await verify(rig, image)).left.commands, 9);
    for (const [i, record] of writes.entries()) {
      for (const block of log.blocksOf(record)) log.readBlock(block)!.copy(image, block.image * BLOCK_SIZE);
      const report = await verify(rig, image);
      assert.deepEqual(
        { master: report.master, left: report.left.commands, wrong: report.differenceCount },
        { master: record.number, left: 8 - i, wrong: 0 },
      );
      assert.equal(report.left.next?.record, writes[i + 1]?.number);
    }
  });

  it('a later write without an earlier one is no prefix', async () => {
    const rig = usedRig(9);
    const image = Buffer.from(rig.disk.image);
    const log = new StoreLog(sourceOf(rig.store));
    const writes = [...log.records()].filter((record) => log.isUncommitted(record));
    for (const i of [0, 1, 2, 5]) {
      for (const block of log.blocksOf(writes[i])) log.readBlock(block)!.copy(image, block.image * BLOCK_SIZE);
    }
    const report = await verify(rig, image);
    assert.equal(report.master, writes[2].number, 'the nearest point');
    assert.equal(report.differenceCount, 8, 'the eight sectors of write 5');
    assert.equal(report.differences[0].lba, 5 * 8);
  });

  it('a clean sector that the master does not have is found', async () => {
    const rig = usedRig(2);
    rig.disk.image[25 * 20 * SECTOR + 3] ^= 1;
    const report = await verify(rig);
    assert.deepEqual(
      report.differences.map(({ lba }) => lba),
      [25 * 20],
    );
  });

  it('a write that only the card had and that rots is lost, one that the master has is not', async () => {
    for (const [dirty, lost] of [
      [true, 8],
      [false, 0],
    ] as const) {
      const rig = usedRig(4);
      const log = new StoreLog(sourceOf(rig.store));
      const record = [...log.records()].filter(
        (it) => log.isUncommitted(it) === dirty && it.kind === 1 && it.sectors === (dirty ? 8 : 9),
      )[1];
      const [block] = log.blocksOf(record);
      rig.store.tamper(block.at, (data) => data.fill(9, 100, 105));
      const report = await verify(rig);
      assert.equal(report.lost.length, lost);
      assert.equal(report.differenceCount, 0);
      assert.equal(report.rottenCleanBlocks, dirty ? 0 : 1);
    }
  });
});

function seal(data: Uint8Array): void {
  new DataView(data.buffer, data.byteOffset).setUint32(8, crc32c(data.subarray(12, 512)), true);
}

const UNUSABLE: { name: string; problem: StoreProblem; spoil(rig: StoreRig): void }[] = [
  {
    name: 'blank',
    problem: 'blank',
    spoil: (rig) => {
      for (let block = 0; block < 4; block++) rig.store.tamper(block, (data) => data.fill(0));
    },
  },
  {
    name: 'something else',
    problem: 'foreign',
    spoil: (rig) => {
      for (let block = 0; block < 4; block++) rig.store.tamper(block, (data) => data.fill(0x5a));
    },
  },
  {
    name: 'half overwritten',
    problem: 'damaged',
    spoil: (rig) => {
      for (let block = 0; block < 4; block++) rig.store.tamper(block, (data) => data.fill(0x77, 100, 300));
    },
  },
  {
    name: 'of a later version',
    problem: 'newer',
    spoil: (rig) =>
      rig.store.tamper(1, (data) => {
        data[4] = 9;
        seal(data);
      }),
  },
  {
    name: 'larger by its superblock than it is',
    problem: 'shrunk',
    spoil: (rig) => {
      for (let block = 0; block < 4; block++) {
        rig.store.tamper(block, (data) => {
          new DataView(data.buffer, data.byteOffset).setUint32(32, rig.store.blocks + 1, true);
          seal(data);
        });
      }
    },
  },
  {
    name: 'without the header of a record that had been stored',
    problem: 'log-damaged',
    spoil: (rig) => {
      const log = new StoreLog(sourceOf(rig.store));
      const [record] = [...log.records()].filter((it) => log.isUncommitted(it)).slice(-3);
      const [block] = log.blocksOf(record);
      rig.store.tamper(block.at - 1, (data) => data.fill(0));
    },
  },
];

describe('verify-prefix on stores that cannot be used', () => {
  for (const { name, problem, spoil } of UNUSABLE) {
    it(name, () => {
      const rig = usedRig(9);
      spoil(rig);
      assert.throws(
        () => new StoreLog(sourceOf(rig.store)),
        (error) => error instanceof UnusableStore && error.problem === problem,
      );
    });
  }

  it('every block of a small store in turn, filled with nonsense: never another answer than the firmware’s', async () => {
    const blocks = usedBlocks(usedRig(4));
    for (const [i, block] of blocks.entries()) {
      if (i % 12 !== 0 && block > 16) continue;
      const rig = usedRig(4);
      rig.store.tamper(block, (data) => new Random(block).fill(data));
      let log: StoreLog | null = null;
      try {
        log = new StoreLog(sourceOf(rig.store));
      } catch (error) {
        if (!(error instanceof UnusableStore)) throw error;
      }
      const lagBytes = log === null ? 0 : lagOf(log);
      rig.setReachable(true);
      rig.disk.commits.hold();
      rig.powerOn();
      assert.equal(rig.card.statistics().storeState === 'ready', log !== null, `block ${block}`);
      if (log !== null) assert.equal(rig.card.statistics().lagBytes, lagBytes, `block ${block}`);
    }
  });
});

function lagOf(log: StoreLog): number {
  return [...log.records()].filter((it) => log.isUncommitted(it)).reduce((sum, it) => sum + it.sectors, 0) * SECTOR;
}

function usedBlocks(rig: StoreRig): number[] {
  return Array.from({ length: rig.store.blocks }, (_, block) => block).filter((block) =>
    rig.store.bytes.subarray(block * BLOCK_SIZE, (block + 1) * BLOCK_SIZE).some((byte) => byte !== 0),
  );
}

describe('ribbon image verify-prefix', () => {
  it('reads the file of a dead card, tells by its exit status, and changes nothing', async () => {
    const folder = mkdtempSync(join(tmpdir(), 'ribbon-prefix-'));
    try {
      const rig = usedRig(5);
      const file = join(folder, 'card.store');
      writeFileSync(file, rig.store.bytes, { mode: 0o400 });
      const raw = join(folder, 'raw');
      writeFileSync(raw, rig.disk.image);
      const images = join(folder, 'images');
      execFileSync(process.execPath, [RIBBON, 'image', 'import', 'disk', raw, '--store', images]);
      const run = (...more: string[]) =>
        spawnSync(process.execPath, [RIBBON, 'image', 'verify-prefix', file, ...more], { encoding: 'utf8' });

      const proven = run('--store', images, '--json');
      assert.equal(proven.status, 0, proven.stderr);
      const { report, master } = JSON.parse(proven.stdout);
      assert.deepEqual({ commands: report.left.commands, from: master.recordFrom }, { commands: 5, from: 'content' });

      // The server knows the card's record numbers: they decide.
      const { storeId } = new StoreLog(openStoreFile(file)).superblock;
      const know = async (upTo: number): Promise<void> => {
        const store = await Store.open(images);
        const card = { upTo, generation: 1, id: '', session: 1, known: 1, seenMs: 0 };
        await store.images.changeLine(store.line('disk'), (it) => {
          it.cards = { [storeId]: card };
        });
        await store.close();
      };
      await know(report.committed);
      const known = run('--store', images);
      assert.equal(known.status, 0, known.stdout);
      assert.match(known.stdout, /by the image server’s record, generation 1/);
      await know(report.committed - 1);
      assert.equal(run('--store', images).status, 5, 'restored from a backup');
      await know(report.newest + 1);
      assert.equal(run('--store', images).status, 5, 'an older copy of the store');
      await know(report.newest);
      assert.equal(run('--store', images).status, 2, 'the content is not what the number says');

      // Over NBD, from a server that knows nothing of cards.
      const socket = join(folder, 'nbd.sock');
      const exports = { list: () => [], open: () => rig.disk.open() };
      const server = new ImageServer({ exports, listen: [{ kind: 'unix', path: socket }] });
      await server.listen();
      try {
        const { verifyCardStore } = await import('../../host/commands/verify-prefix.js');
        const uri = `nbd+unix:///disk?socket=${socket}`;
        assert.equal((await verifyCardStore(file, null, { store: '', nbd: uri })).verdict, 'proven');
        rig.disk.image[0] ^= 1;
        assert.equal(
          (await verifyCardStore(file, null, { store: '', nbd: uri })).verdict,
          'differs',
          'neither old nor new',
        );
        rig.disk.image[0] ^= 1;
        rig.disk.image[3000 * SECTOR] ^= 1;
        assert.equal(
          (await verifyCardStore(file, null, { store: '', nbd: uri })).verdict,
          'proven',
          'the card never had it',
        );
        rig.disk.image[500 * SECTOR] ^= 1;
        assert.equal((await verifyCardStore(file, null, { store: '', nbd: uri })).verdict, 'differs');
      } finally {
        await server.close();
      }
      assert.equal(run('none', '--store', images).status, 1, 'no such image');
      writeFileSync(join(folder, 'blank'), Buffer.alloc(20 << 20));
      const blank = spawnSync(process.execPath, [RIBBON, 'image', 'verify-prefix', join(folder, 'blank')]);
      assert.equal(blank.status, 3);
    } finally {
      rmSync(folder, { recursive: true, force: true });
    }
  });

  it('a card and an image server that speak to each other: the server’s record decides', async () => {
    const folder = mkdtempSync(join(tmpdir(), 'ribbon-prefix-'));
    const images = join(folder, 'images');
    const socket = join(folder, 'nbd.sock');
    const file = join(folder, 'card.store');
    const store = await Store.open(images);
    await store.images.create('disk', 8 << 20);
    const server = new ImageServer({ exports: store, listen: [{ kind: 'unix', path: socket }] });
    await server.listen();
    const card = new InProcessCard({
      firmware: loadFirmware(),
      settings: { ...DEFAULT_SETTINGS, exportName: 'disk', epochAgeMs: 20 },
      path: { address: { path: socket } },
      memorySize: 16 << 20,
      storeFile: file,
    });
    try {
      await card.start();
      const driver = new AtaDriver(new Cable([card.frontEnd]));
      await driver.open();
      const data = (byte: number): Uint8Array => new Uint8Array(BLOCK_SIZE).fill(byte);
      for (let i = 1; i <= 5; i++) await driver.write(i * 8, data(i));
      await driver.flush();
      while (card.statistics().lagBytes > 0) await new Promise((resolve) => setTimeout(resolve, 10));
      await server.close();
      await store.close();
      for (let i = 6; i <= 9; i++) await driver.write((i - 2) * 8, data(i));
      card.cut();

      const { verifyCardStore } = await import('../../host/commands/verify-prefix.js');
      const result = await verifyCardStore(file, null, { store: images });
      assert.equal(result.verdict, 'proven', result.reason);
      assert.equal(result.master?.recordFrom, 'image server');
      assert.equal(result.report?.left.commands, 4);
      assert.equal(result.report?.left.next?.lba, 4 * 8);

      // An administrator changes one block that the card has changed too, and one that it has not.
      const change = async (block: number): Promise<void> => {
        const admin = await Store.open(images);
        const opened = await admin.open('disk', { identity: 'administrator', address: 'here', tls: false });
        await opened.write(block * BLOCK_SIZE, Buffer.alloc(BLOCK_SIZE, 0xaa));
        await opened.commit();
        await opened.close(true);
        await admin.digestAll();
        await admin.close();
      };
      await change(1);
      const stale = await verifyCardStore(file, null, { store: images });
      assert.deepEqual({ verdict: stale.verdict, stale: stale.report?.staleBlocks }, { verdict: 'proven', stale: 1 });
      await change(4);
      assert.equal((await verifyCardStore(file, null, { store: images })).verdict, 'conflict');
    } finally {
      card.cut();
      rmSync(folder, { recursive: true, force: true });
    }
  });
});
