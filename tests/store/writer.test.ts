// Several connections of one client that write to one line: one epoch, one flush for all, and nothing of it when one of them breaks.

import assert from 'node:assert/strict';
import { test } from 'node:test';
import type { Client, ExportError } from '../../host/server/export.js';
import { SecondWriters } from '../../host/server/second-writer.js';
import { zstdCodec } from '../../host/store/codec.js';
import type { LineExport } from '../../host/store/line-export.js';
import type { Store, StoreOptions } from '../../host/store/store.js';
import { TOGETHER_MS } from '../../host/store/writer.js';
import {
  BLOCK,
  blockOf,
  type Content,
  generator,
  mismatches,
  CLIENT as NETWORK,
  newMedium,
  openStore,
  readValue,
} from './model.js';

const BLOCKS = 300;
/** On the server's own machine. */
const CLIENT: Client = { ...NETWORK, writesTogether: true };
const OTHER: Client = { ...CLIENT, address: 'elsewhere' };

async function newStore(options: StoreOptions = {}) {
  const medium = newMedium();
  const clock = { ms: 1_700_000_000_000 };
  const store = await openStore(medium, { nowMs: () => ++clock.ms, ...options });
  await store.images.create('a', BLOCKS * BLOCK);
  return { medium, store, clock };
}

async function connections(store: Store, count: number, client = CLIENT): Promise<LineExport[]> {
  const all: LineExport[] = [];
  for (let number = 0; number < count; number++) all.push(await store.open('a', client));
  return all;
}

function lossesOf(all: LineExport[]): string[] {
  const losses: string[] = all.map(() => '');
  for (const [index, it] of all.entries()) {
    it.onLost = (reason) => {
      losses[index] = reason;
    };
  }
  return losses;
}

const refused = (errno: string) => (error: ExportError) => error.errno === errno;

test('what one connection writes the others read; a flush on any commits it all as one generation', async () => {
  const { store } = await newStore();
  const [a, b, c] = await connections(store, 3);
  const reader = await store.open('a', OTHER);
  assert.deepEqual(
    [a, b, c, reader].map((it) => it.multiConnection),
    [true, true, true, true],
  );
  await a.write(0, blockOf(1));
  await b.write(BLOCK, blockOf(2));
  await b.write(10, Buffer.from('in a block of the other'));
  const expected: Content = new Map([[1, 2]]);
  const first = Buffer.alloc(BLOCK);
  blockOf(1).copy(first);
  first.write('in a block of the other', 10);
  for (const it of [a, b, c]) {
    const bytes = Buffer.alloc(2 * BLOCK);
    await it.read(0, bytes);
    assert.ok(bytes.subarray(0, BLOCK).equals(first));
    assert.ok(bytes.subarray(BLOCK).equals(blockOf(2)));
  }
  assert.equal(await readValue(store, 'a', 1), 0, 'nobody else sees it');
  await c.commit();
  assert.equal(store.generation('a'), 2);
  assert.equal(await readValue(store, 'a', 1), 2);
  assert.deepEqual(await mismatches(reader, new Map(), BLOCKS), [], 'a reader stays on its generation');
  // The next epoch is theirs too, and the next flush again covers what another has written.
  await c.write(0, blockOf(5));
  await a.commit();
  await b.commit();
  assert.equal(store.generation('a'), 3);
  expected.set(0, 5);
  assert.deepEqual(await mismatches(b, expected, BLOCKS), []);
  for (const it of [a, b, c, reader]) await it.close(true);
  assert.equal(store.generation('a'), 3);
  assert.equal(store.infoOf('a').writer, null);
  await store.close();
});

test('the goodbye of one that has written commits what all have written; of one that has not, nothing', async () => {
  const { store } = await newStore();
  const [a, b, c] = await connections(store, 3);
  await a.write(0, blockOf(1));
  await b.write(BLOCK, blockOf(2));
  await c.close(true);
  assert.equal(store.generation('a'), 1);
  await a.close(true);
  assert.equal(store.generation('a'), 2);
  assert.deepEqual([await readValue(store, 'a', 0), await readValue(store, 'a', 1)], [1, 2]);
  await b.write(0, blockOf(3));
  await b.close(true);
  assert.equal(store.generation('a'), 3);
  await store.close();
});

test('one that breaks with uncommitted writes takes all of them along; one without is not missed', async () => {
  const { store } = await newStore();
  const [a, b, c, d] = await connections(store, 4);
  const losses = lossesOf([a, b, c, d]);
  await a.write(0, blockOf(1));
  await b.write(BLOCK, blockOf(2));
  await c.commit();
  // What this one had written is committed.
  await a.close(false);
  await d.close(false);
  await c.write(2 * BLOCK, blockOf(3));
  assert.deepEqual(losses, ['', '', '', '']);
  await b.write(3 * BLOCK, blockOf(4));
  await b.close(false);
  assert.match(losses[2], /broke off with uncommitted writes/);
  assert.throws(() => c.commit(), refused('ESHUTDOWN'), 'a flush must not succeed without what is gone');
  await c.close(true);
  assert.equal(store.generation('a'), 2);
  assert.deepEqual(
    [await readValue(store, 'a', 0), await readValue(store, 'a', 1), await readValue(store, 'a', 2)],
    [1, 2, 0],
  );
  await store.close();
});

test('who comes late, or from elsewhere, is another client, and no connection is promised what is not kept', async () => {
  const { store, clock } = await newStore();
  const [a, b] = await connections(store, 2);
  const elsewhere = await store.open('a', OTHER);
  const named = await store.open('a', { ...CLIENT, identity: 'named', tls: true });
  await a.write(0, blockOf(1));
  const late = await store.open('a', CLIENT);
  assert.equal(late.multiConnection, false);
  for (const it of [elsewhere, named, late]) assert.throws(() => it.write(0, blockOf(2)), refused('EPERM'));
  await b.commit();
  for (const it of [a, b, elsewhere, named, late]) await it.close(true);

  const [slow] = await connections(store, 1);
  clock.ms += TOGETHER_MS + 1;
  const [after] = await connections(store, 1);
  assert.deepEqual([slow.multiConnection, after.multiConnection], [false, false]);
  await slow.write(0, blockOf(3));
  assert.throws(() => after.write(0, blockOf(4)), refused('EPERM'));
  await slow.close(true);
  await after.close(true);

  // Of the same TLS identity, who comes late has lost its other connections and takes their place.
  const tls = { identity: 'card', address: 'x', tls: true, writesTogether: true };
  const old = await connections(store, 3, tls);
  const losses = lossesOf(old);
  await old[0].write(0, blockOf(5));
  await old[1].write(BLOCK, blockOf(6));
  const [fresh] = await connections(store, 1, tls);
  await fresh.write(2 * BLOCK, blockOf(7));
  for (const loss of losses) assert.match(loss, /taken over/);
  await fresh.close(true);
  assert.deepEqual(
    [await readValue(store, 'a', 0), await readValue(store, 'a', 1), await readValue(store, 'a', 2)],
    [3, 0, 7],
  );
  await store.close();
});

test('over a network, what an older connection still brings is not mixed with what a newer one has written', async () => {
  const { store } = await newStore();
  // The client has given the first up and come back; its first write over that is still on its way.
  const [old, fresh] = await connections(store, 2, NETWORK);
  assert.deepEqual([old.multiConnection, fresh.multiConnection], [false, false]);
  await fresh.write(0, blockOf(1));
  await fresh.write(0, blockOf(2));
  assert.throws(() => old.write(0, blockOf(1)), refused('EPERM'));
  await fresh.commit();
  assert.throws(() => old.write(0, blockOf(1)), refused('ESHUTDOWN'));
  assert.equal(await readValue(store, 'a', 0), 2);
  await old.close(false);
  await fresh.close(true);
  assert.equal(store.generation('a'), 2);
  await store.close();
});

test('parts of one block, written over several connections at once from a cold store, are all there', async () => {
  const { medium, store } = await newStore({ codec: zstdCodec });
  const filler = await store.open('a', CLIENT);
  for (let block = 0; block < BLOCKS; block++) await filler.write(block * BLOCK, blockOf(1000 + block));
  await filler.close(true);
  await store.close();
  for (let round = 0; round < 20; round++) {
    const cold = await openStore(medium, { codec: zstdCodec });
    const all = await connections(cold, 4);
    const block = 10 * round;
    const expected = Buffer.concat([blockOf(1000 + block), blockOf(1001 + block)]);
    if (round === 0) {
      const probe = all[0].read(block * BLOCK, Buffer.alloc(BLOCK));
      assert.ok(probe instanceof Promise, 'a cold read takes its time: the writes below meet');
      await probe;
    }
    const parts = all.map((it, index) => {
      const at = 1000 * index + 100;
      const bytes = Buffer.alloc(900, 0xa0 + index);
      bytes.copy(expected, at);
      return it.write(block * BLOCK + at, bytes);
    });
    // And a whole one while parts of it are on their way.
    const whole = blockOf(77);
    if (round % 2 === 1) {
      parts.push(all[0].write((block + 1) * BLOCK, whole));
      const tail = all[1].write((block + 1) * BLOCK + 4000, Buffer.alloc(50, 9));
      parts.push(tail);
      whole.fill(9, 4000, 4050).copy(expected, BLOCK);
    }
    await Promise.all(parts);
    const bytes = Buffer.alloc(2 * BLOCK);
    await all[3].read(block * BLOCK, bytes);
    assert.ok(bytes.equals(expected), `round ${round}`);
    await all[2].commit();
    for (const it of all) await it.close(false);
    await cold.close();
  }
});

test('random work over several connections, with spills, digests and breaks, against a model', async () => {
  const seed = Number(process.env.RIBBON_SEED ?? Date.now());
  const random = generator(seed);
  const pick = (count: number) => Math.floor(random() * count);
  const { store } = await newStore({ spillBlocks: 40 });
  let head: Content = new Map();
  for (let round = 0; round < 40; round++) {
    const all = await connections(store, 1 + pick(4));
    let next: Content = new Map(head);
    for (let step = 0; step < 1 + pick(40); step++) {
      const opened = all[pick(all.length)];
      const first = pick(BLOCKS);
      const count = 1 + pick(Math.min(40, BLOCKS - first));
      const kind = random();
      if (kind < 0.15) {
        await opened.zero(first * BLOCK, count * BLOCK);
        for (let block = first; block < first + count; block++) next.delete(block);
      } else if (kind < 0.25) {
        await opened.commit();
        // Nobody has written yet: a flush then only moves readers.
        if (opened.hasWritten) head = new Map(next);
      } else if (kind < 0.3) {
        await store.digestAll();
      } else {
        const values = Array.from({ length: count }, () => 1 + pick(100_000));
        await opened.write(first * BLOCK, Buffer.concat(values.map(blockOf)));
        for (const [index, it] of values.entries()) next.set(first + index, it);
      }
      if (step % 8 === 0 && all[0].hasWritten) {
        const eye = all[pick(all.length)];
        assert.deepEqual(await mismatches(eye, next, BLOCKS), [], `seed ${seed} round ${round} step ${step}`);
      }
    }
    const breaks = random() < 0.4;
    // All break, or all say goodbye: mixtures are in the tests above.
    for (const it of all) await it.close(!breaks);
    if (!breaks) head = next;
    next = head;
    const reader = await store.open('a', OTHER);
    assert.deepEqual(await mismatches(reader, head, BLOCKS), [], `seed ${seed} round ${round}`);
    await reader.close(true);
  }
  await store.close();
});

test('a second client with several connections goes on with all of them in one branch', async () => {
  const { store } = await newStore();
  const exports = new SecondWriters(store);
  const [first] = await connections(store, 1, OTHER);
  await first.write(0, blockOf(1));
  const second = [await exports.open('a', CLIENT), await exports.open('a', CLIENT), await exports.open('a', CLIENT)];
  assert.deepEqual(
    second.map((it) => it.multiConnection),
    [true, true, true],
  );
  // All at once: each is refused.
  await Promise.all(second.map((it, index) => it.write((index + 1) * BLOCK, blockOf(index + 11))));
  const bytes = Buffer.alloc(4 * BLOCK);
  await second[0].read(0, bytes);
  assert.deepEqual(
    [0, 1, 2, 3].map((block) => bytes.readUInt32LE(block * BLOCK)),
    [0, 11, 12, 13],
  );
  await second[2].commit();
  assert.deepEqual(
    store.info().map((it) => [it.name, it.generation]),
    [
      ['a', 1],
      ['a/anonymous-1', 2],
    ],
  );
  for (const it of second) await it.close(true);
  await first.close(true);
  assert.equal(await readValue(store, 'a/anonymous-1', 3), 13);
  await store.close();
});
