// A card whose image server has made a generation of its writes, and whose power goes before the answer comes, must be known there
// when it comes back: whatever it has gone through without its server meanwhile, and at whatever moment the power went.

import assert from 'node:assert/strict';
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, describe, it } from 'node:test';
import { loadFirmware } from '../../host/card/firmware.js';
import { InProcessCard } from '../../host/card/in-process.js';
import { DEFAULT_SETTINGS } from '../../host/card/settings.js';
import type { StoreDevice } from '../../host/card/store.js';
import { REAL_WORLD, type World } from '../../host/card/world.js';
import { Cable } from '../../host/front-end/cable.js';
import { AtaDriver } from '../../host/pc/ata-driver.js';
import { ImageServer } from '../../host/server/server.js';
import { type PowerCut, SimulatedStore } from '../../host/simulation/simulated-store.js';
import type { Store } from '../../host/store/store.js';
import { BLOCK, blockOf, newMedium, openStore, readValue } from '../store/model.js';
import { STORE_BYTES } from './rig.js';

const FIRMWARE = loadFirmware();
const BLOCK_SECTORS = BLOCK / 512;
const BLOCKS = 256;
const MEMORY_SIZE = 16 << 20;
/** One more than a superblock has room for. */
const POWER_ONS = 17;
const LOSE_ALL: PowerCut = { kind: 'lose-all' };
const KEEP_ALL: PowerCut = { kind: 'keep-all', sectors: 0 };
const SUPERBLOCKS = 4;
/** The time that a card without its server waits for it passes quickly. */
const SPEED = 10;
const FAST_WORLD: World = {
  ...REAL_WORLD,
  clockMs: () => Math.floor(performance.now() * SPEED) >>> 0,
  after: (ms, callback) => REAL_WORLD.after(ms / SPEED, callback),
};

/** One for all cards: they are on one after the other. */
const memory = new WebAssembly.Memory({ initial: MEMORY_SIZE / 65_536, maximum: MEMORY_SIZE / 65_536 });

/** An image server with one image, and a card that is on now and then. */
class Pair {
  readonly store = new SimulatedStore(STORE_BYTES);
  server!: Store;
  card!: InProcessCard;
  driver!: AtaDriver;
  /** The power goes when the server has made the next generation: nobody hears of it. */
  cutAtCommit = false;
  generations = 0;
  readonly log: string[] = [];
  /** Resolved when the power goes. */
  #cut: Promise<void> = Promise.resolve();
  #isCut: () => void = () => {};
  #nbd!: ImageServer;
  readonly #path: string;

  constructor(folder: string) {
    this.#path = join(folder, 'nbd');
  }

  async open(): Promise<void> {
    this.server = await openStore(newMedium());
    await this.server.images.create('disk', BLOCKS * BLOCK);
    const placeCard: Store['placeCard'] = async (...hello) => {
      const place = await this.server.placeCard(...hello);
      const opened = place.export;
      if (opened === null) return place;
      const commitCard = opened.commitCard!.bind(opened);
      opened.commitCard = async (upTo) => {
        const made = await commitCard(upTo);
        this.generations += 1;
        if (this.cutAtCommit) this.powerOff();
        return made;
      };
      return place;
    };
    const exports = {
      list: this.server.list.bind(this.server),
      open: this.server.open.bind(this.server),
      placeCard,
    };
    this.#nbd = new ImageServer({ exports, listen: [{ kind: 'unix', path: this.#path }] });
    await this.#nbd.listen();
  }

  async close(): Promise<void> {
    this.card?.cut();
    await this.#nbd.close();
    await this.server.close();
    this.store.recycle();
  }

  /** False when the power goes before the disk is there. */
  async powerOn(isReachable: boolean, device: StoreDevice = this.store): Promise<boolean> {
    // What the PC was doing with the card that was on before must have come to its end: the next one has the same memory.
    await new Promise<void>((resolve) => setImmediate(resolve));
    new Uint8Array(memory.buffer).fill(0);
    this.#cut = new Promise((resolve) => {
      this.#isCut = resolve;
    });
    this.store.onCut = () => this.powerOff();
    this.card = new InProcessCard({
      firmware: FIRMWARE,
      // One epoch for all that is written in a row.
      settings: { ...DEFAULT_SETTINGS, exportName: 'disk', epochAgeMs: 20 },
      path: { address: { path: isReachable ? this.#path : `${this.#path}-gone` } },
      memory,
      store: device,
      world: FAST_WORLD,
    });
    this.card.onLog = (level, line) => this.log.push(`${level} ${line}`);
    const driver = new AtaDriver(new Cable([this.card.frontEnd]));
    this.driver = driver;
    const isOn = this.card.start().then(() => driver.open().then(() => true));
    return this.#unlessCut(isOn, false);
  }

  powerOff(): void {
    this.card.cut();
    this.#isCut();
  }

  /** The block gets this value; true when the card has said so. */
  write(block: number, value: number): Promise<boolean> {
    const written = this.driver.write(block * BLOCK_SECTORS, blockOf(value)).then(() => true);
    return this.#unlessCut(written, false);
  }

  /** Until the server has everything, the card is refused, or the power goes. */
  async drain(): Promise<void> {
    for (const endMs = Date.now() + 20_000; ; ) {
      const { lagBytes, linkState, linkError } = this.card.statistics();
      if ((lagBytes === 0 && linkState === 'up') || linkState === 'refused') return;
      assert.ok(Date.now() < endMs, `lag ${lagBytes}, link ${linkState}, error ${linkError}`);
      if (await this.#unlessCut(new Promise<boolean>((resolve) => void setTimeout(resolve, 1, false)), true)) return;
    }
  }

  #unlessCut(done: Promise<boolean>, otherwise: boolean): Promise<boolean> {
    // What the PC was doing then ends nowhere.
    done.catch(() => {});
    return Promise.race([done, this.#cut.then(() => otherwise)]);
  }

  /** On and off, the server out of reach. */
  async offline(values: (round: number) => number | null = () => null): Promise<void> {
    for (let round = 0; round < POWER_ONS; round++) {
      assert.ok(await this.powerOn(false));
      const value = values(round);
      if (value !== null) assert.ok(await this.write(10 + round, value));
      this.powerOff();
      this.store.powerCut(LOSE_ALL);
    }
  }

  /** Comes back and is not refused; the server gets what there is. */
  async comeBack(): Promise<void> {
    this.cutAtCommit = false;
    assert.ok(await this.powerOn(true));
    await this.drain();
    assert.equal(this.card.statistics().linkState, 'up', this.log.slice(-8).join('\n'));
    assert.equal(this.card.statistics().lagBytes, 0);
    this.powerOff();
  }
}

describe('a card that has lost the answer to a commit', () => {
  let folder = '';
  let pair: Pair;
  before(async () => {
    folder = await mkdtemp(join(tmpdir(), 'ribbon-sessions-'));
  });
  after(() => rm(folder, { recursive: true }));

  async function withPair(body: () => Promise<void>): Promise<void> {
    pair = new Pair(folder);
    await pair.open();
    try {
      await body();
    } finally {
      await pair.close();
    }
  }

  /** Writes, and loses its power when that has become a generation. */
  async function loseAnswer(value: number): Promise<void> {
    assert.ok(await pair.powerOn(true));
    const before = pair.generations;
    pair.cutAtCommit = true;
    assert.ok(await pair.write(1, value));
    await pair.drain();
    assert.equal(pair.generations, before + 1);
    pair.store.powerCut(LOSE_ALL);
  }

  it(`is known after ${POWER_ONS} power-ons without its server, with what it wrote in each`, () =>
    withPair(async () => {
      await loseAnswer(7);
      await pair.offline((round) => 100 + round);
      await pair.comeBack();
      const values = [];
      for (let round = 0; round < POWER_ONS; round++) values.push(await readValue(pair.server, 'disk', 10 + round));
      assert.deepEqual(
        values,
        values.map((_, round) => 100 + round),
      );
      assert.equal(await readValue(pair.server, 'disk', 1), 7);
    }));

  it(`is known when ${POWER_ONS} answers in a row are lost`, () =>
    withPair(async () => {
      for (let round = 0; round < POWER_ONS; round++) await loseAnswer(200 + round);
      await pair.comeBack();
      assert.equal(await readValue(pair.server, 'disk', 1), 200 + POWER_ONS - 1);
    }));

  for (const how of [LOSE_ALL, KEEP_ALL]) {
    it(`is known wherever the power went before, ${how.kind}`, () =>
      withPair(async () => {
        // Without its size the disk would not be there without its server.
        assert.ok(await pair.powerOn(true));
        await pair.drain();
        pair.powerOff();
        pair.store.powerCut(how);
        let committed = 0;
        for (let at = 1, isOver = false; !isOver; at++) {
          const before = pair.generations;
          pair.cutAtCommit = true;
          pair.store.cutAt = pair.store.operations + at;
          const wrote = (await pair.powerOn(true)) && (await pair.write(1, at));
          if (wrote) await pair.drain();
          isOver = pair.store.operations < pair.store.cutAt;
          committed += pair.generations - before;
          pair.store.cutAt = Number.POSITIVE_INFINITY;
          pair.powerOff();
          pair.store.powerCut(how);
          await pair.offline();
          await pair.comeBack();
          pair.store.powerCut(how);
          if (wrote) assert.equal(await readValue(pair.server, 'disk', 1), at, `cut at operation ${at}`);
        }
        assert.ok(committed > 0, 'no commit was cut');
      }));
  }

  it('commits on a store that takes no superblock any more, and says so', () =>
    withPair(async () => {
      assert.ok(await pair.powerOn(true));
      await pair.drain();
      pair.powerOff();
      pair.store.powerCut(LOSE_ALL);
      let isOn = false;
      const refused: number[] = [];
      const device: StoreDevice = {
        blocks: pair.store.blocks,
        start: (operation) => {
          const isRefused = isOn && operation.kind === 'write' && operation.block < SUPERBLOCKS;
          if (!isRefused) return pair.store.start(operation);
          refused.push(operation.block);
          operation.done(true);
        },
      };
      assert.ok(await pair.powerOn(true, device));
      isOn = true;
      assert.ok(await pair.write(1, 9));
      await pair.drain();
      assert.equal(await readValue(pair.server, 'disk', 1), 9);
      assert.equal(new Set(refused).size, SUPERBLOCKS - 1, 'each place is tried, but for that of the copy that counts');
      assert.ok(pair.log.some((line) => line.startsWith('error') && line.includes('superblock')));
    }));
});

/** The first life ends at operation `at` of the store, and another without the server follows. True when the first ended by itself. */
async function meet(pair: Pair, at: number, how: PowerCut): Promise<boolean> {
  pair.store.cutAt = at;
  if (await pair.powerOn(true)) await pair.drain();
  const isOver = pair.store.operations < at;
  pair.store.cutAt = Number.POSITIVE_INFINITY;
  pair.powerOff();
  pair.store.powerCut(how);
  const isOn = pair.powerOn(false).catch(() => false);
  while (pair.card.statistics().storeState === 'starting') await new Promise((done) => void setTimeout(done, 1));
  // The disk is there if its size is known, and then there must be a generation below what is written to it.
  const wrote = pair.card.statistics().sectors > 0 && (await isOn) && (await pair.write(2, at));
  pair.powerOff();
  await isOn;
  pair.store.powerCut(LOSE_ALL);
  await pair.comeBack();
  if (wrote) assert.equal(await readValue(pair.server, 'disk', 2), at, `cut at operation ${at}`);
  if (isOver) assert.ok(wrote, 'a card that has met its server has a disk without it');
  return isOver;
}

describe('a card that loses its power while it meets its server for the first time', () => {
  const cuts: PowerCut[] = [LOSE_ALL, KEEP_ALL, { kind: 'keep-some', blocks: (block) => block < SUPERBLOCKS }];
  for (const how of cuts) {
    it(`is known when it comes back, with what it wrote without its server before, ${how.kind}`, async () => {
      const folder = await mkdtemp(join(tmpdir(), 'ribbon-first-'));
      for (let at = 1, isOver = false; !isOver; at++) {
        const pair = new Pair(folder);
        await pair.open();
        try {
          isOver = await meet(pair, at, how);
        } finally {
          await pair.close();
        }
      }
      await rm(folder, { recursive: true });
    });
  }
});
