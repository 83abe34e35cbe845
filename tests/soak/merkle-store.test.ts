// The real image store in the simulated world, by itself: it says of every generation whose it is.

import assert from 'node:assert/strict';
import { test } from 'node:test';
import type { CardHello, Client } from '../../host/server/export.js';
import { guarded } from '../../host/soak/guard.js';
import { BLOCK, EXPORT_NAME, type StoreWatcher } from '../../host/soak/memory-store.js';
import { MerkleStore } from '../../host/soak/merkle-store.js';
import { MS, replacementsOf, World } from '../../host/soak/world.js';

const CLIENT: Client = { identity: 'anonymous', address: '192.0.2.1', tls: false };
const HELLO: CardHello = {
  ...{ card: '0123456789abcdef', session: 1, sessions: [], generation: 0, id: '0000000000000000' },
  ...{ committed: 0, newest: 1, dirty: false, conflict: false, early: false },
};
/** The store begins to bring an epoch of so many blocks into a tree before it is committed. */
const SPILLED_BLOCKS = 300;

class Rig {
  readonly world = new World(1);
  /** What the watcher was told. */
  readonly told: string[] = [];
  readonly store: MerkleStore;

  constructor() {
    const watcher: StoreWatcher = {
      received: () => {},
      committed: (generation, changed) => this.told.push(`generation ${generation}: card, ${changed.size} blocks`),
      administrated: (generation, number, changed) =>
        this.told.push(`generation ${generation}: administrator #${number}, ${changed.size} blocks`),
      conflict: (base) => this.told.push(`conflict since ${base}`),
      refused: (base) => this.told.push(`refused at ${base}`),
      reopened: () => {},
    };
    this.store = new MerkleStore(this.world, 1024 * BLOCK, { commitUs: 10 * MS, commitJitterUs: 0 }, watcher);
  }

  async run(body: () => Promise<void>): Promise<void> {
    const { world } = this;
    world.schedule(0, () => {
      world.promises = true;
      body().then(
        () => world.stop(),
        (error: unknown) => world.fail(error),
      );
    });
    await guarded(replacementsOf(world), () => world.run());
  }

  wait(us: number): Promise<void> {
    return new Promise((resolve) => {
      this.world.schedule(us, () => {
        this.world.promises = true;
        resolve();
      });
    });
  }
}

test('a commit that waits for its epoch to leave memory has no place among the generations', async () => {
  const rig = new Rig();
  const { store } = rig;
  await rig.run(async () => {
    await store.start();
    const { export: card } = await store.exports.placeCard!(EXPORT_NAME, CLIENT, HELLO);
    for (let block = 0; block < SPILLED_BLOCKS; block++) await card!.write(block * BLOCK, Buffer.alloc(BLOCK, 1));
    const refused = assert.rejects(card!.commitCard!(1), /closed/);
    await rig.wait(MS);
    assert.equal(store.busy, true);
    assert.deepEqual(rig.told, []);
    // The connection breaks, and before the store has come so far somebody else commits.
    const closed = card!.close(false);
    assert.equal(await store.administrate(new Map([[500, Buffer.alloc(BLOCK, 2)]]), 7), true);
    assert.deepEqual(rig.told, ['generation 2: administrator #7, 1 blocks']);
    await refused;
    await closed;
    assert.equal(store.busy, false);
  });
});

test('an epoch that leaves memory before it is committed is a generation of the card', async () => {
  const rig = new Rig();
  const { store } = rig;
  await rig.run(async () => {
    await store.start();
    const { export: card } = await store.exports.placeCard!(EXPORT_NAME, CLIENT, HELLO);
    for (let block = 0; block < SPILLED_BLOCKS; block++) await card!.write(block * BLOCK, Buffer.alloc(BLOCK, 1));
    assert.equal((await card!.commitCard!(1)).generation, 2);
    assert.deepEqual(rig.told, [`generation 2: card, ${SPILLED_BLOCKS} blocks`]);
  });
});
