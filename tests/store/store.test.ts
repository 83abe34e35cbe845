// The store's behaviour, one test each: generations, branches, readers and writers, garbage collection, damage, a full disk.

import assert from 'node:assert/strict';
import { test } from 'node:test';
import zlib from 'node:zlib';
import { ExportError, ExportRefused } from '../../host/server/export.js';
import { adminOperations } from '../../host/store/admin.js';
import { blocksIn, decodeChanges, encodeChanges, RangeCollector, union } from '../../host/store/changes.js';
import { collectGarbage } from '../../host/store/garbage.js';
import { CHANGED_SINCE, type LineExport } from '../../host/store/line-export.js';
import { Packs } from '../../host/store/pack.js';
import { expired, parseRetention } from '../../host/store/retention.js';
import { sha256 } from '../../host/store/sha256.js';
import type { Store, StoreOptions } from '../../host/store/store.js';
import { TreeView } from '../../host/store/tree.js';
import { verify } from '../../host/store/verify.js';
import {
  BLOCK,
  blockOf,
  CLIENT,
  type Content,
  generator,
  mismatches,
  newMedium,
  openStore,
  readValue,
} from './model.js';

const BLOCKS = 300;

async function newStore(options: StoreOptions = {}) {
  const medium = newMedium();
  const store = await openStore(medium, options);
  await store.images.create('a', BLOCKS * BLOCK);
  return { medium, store };
}

async function put(store: Store, name: string, values: Record<number, number>): Promise<LineExport> {
  const opened = await store.open(name, CLIENT);
  for (const [block, value] of Object.entries(values)) await opened.write(Number(block) * BLOCK, blockOf(value));
  await opened.commit();
  return opened;
}

test('an epoch is visible to its own client only, until it is committed', async () => {
  const { store } = await newStore();
  const writer = await store.open('a', CLIENT);
  const reader = await store.open('a', CLIENT);
  await writer.write(5 * BLOCK, blockOf(77));
  assert.equal(await readValue(store, 'a', 5), 0);
  assert.deepEqual(await mismatches(writer, new Map([[5, 77]]), BLOCKS), []);
  await writer.commit();
  assert.equal(await readValue(store, 'a', 5), 77);
  assert.deepEqual(await mismatches(reader, new Map(), BLOCKS), [], 'a reader stays on its generation');
  await reader.commit();
  assert.deepEqual(await mismatches(reader, new Map([[5, 77]]), BLOCKS), [], 'a flush moves a reader on');
  await store.close();
});

test('a connection that breaks discards its epoch, a clean end commits it', async () => {
  const { store } = await newStore();
  const broken = await store.open('a', CLIENT);
  await broken.write(0, blockOf(1));
  await broken.close(false);
  assert.equal(store.generation('a'), 1);
  const clean = await store.open('a', CLIENT);
  await clean.write(0, blockOf(2));
  await clean.close(true);
  assert.equal(store.generation('a'), 2);
  assert.equal(await readValue(store, 'a', 0), 2);
  await store.close();
});

test('one writer at a time; a writer that has read an old generation is refused', async () => {
  const { store } = await newStore();
  const one = await store.open('a', CLIENT);
  const two = await store.open('a', { ...CLIENT, identity: 'other' });
  await one.write(0, blockOf(1));
  assert.throws(
    () => two.write(0, blockOf(2)),
    (error: ExportError) => error.errno === 'EPERM',
  );
  await one.commit();
  assert.throws(
    () => two.write(0, blockOf(2)),
    (error: ExportError) => error.errno === 'ESHUTDOWN',
  );
  let lost = '';
  one.onLost = (reason) => {
    lost = reason;
  };
  await two.commit();
  await two.write(0, blockOf(2));
  assert.equal(lost, '');
  await two.commit();
  assert.match(lost, /changed by other/);
  assert.throws(() => one.write(0, blockOf(4)), ExportError);
  assert.equal(await readValue(store, 'a', 0), 2);
  await store.close();
});

test('a new TLS connection of the same identity takes the role from one with an open epoch', async () => {
  const { store } = await newStore();
  const card = { identity: 'card', address: 'x', tls: true };
  const old = await store.open('a', card);
  const fresh = await store.open('a', card);
  let lost = '';
  old.onLost = (reason) => {
    lost = reason;
  };
  await old.write(0, blockOf(1));
  await fresh.write(BLOCK, blockOf(2));
  assert.match(lost, /taken over/);
  assert.throws(() => old.write(0, blockOf(3)), ExportError);
  await fresh.commit();
  assert.equal(await readValue(store, 'a', 0), 0);
  assert.equal(await readValue(store, 'a', 1), 2);
  await store.close();
});

test('clone, branch, snapshot, rollback, diff, log, rename, rm', async () => {
  const { store } = await newStore();
  const admin = adminOperations(store, 'me');
  await (await put(store, 'a', { 1: 11 })).close(true);
  await (await put(store, 'a', { 1: 12, 200: 5 })).close(true);
  await admin.snapshot('a@2', 'golden');
  await admin.clone('a@golden', 'b');
  await admin.branch('a', 'fix');
  assert.equal(await readValue(store, 'b', 1), 11);
  assert.equal(await readValue(store, 'a/fix', 1), 12);
  assert.equal(store.generation('a/fix'), 3);
  await (await put(store, 'a/fix', { 9: 9 })).close(true);
  assert.equal(store.generation('a/fix'), 4);
  assert.equal(await readValue(store, 'a', 9), 0);
  assert.deepEqual(await admin.diff('a@2', 'a@3'), [
    { offset: BLOCK, length: BLOCK },
    { offset: 200 * BLOCK, length: BLOCK },
  ]);
  assert.equal(await admin.rollback('a@2'), 4);
  assert.equal(await readValue(store, 'a', 1), 11);
  assert.equal(await readValue(store, 'a', 200), 0);
  assert.deepEqual(
    (await admin.log('a')).map(({ generation, why }) => `${generation} ${why}`),
    ['1 created', '2 commit', '3 commit', '4 rollback to 2'],
  );
  await assert.rejects(admin.rm('a', false), /branches/);
  await admin.rename('a', 'c');
  assert.equal(await readValue(store, 'c/fix', 9), 9);
  assert.throws(() => store.open('a', CLIENT), ExportRefused);
  await admin.rm('c/fix', false);
  await admin.rm('c', true);
  await admin.rm('b', false);
  await admin.gc(null);
  assert.equal(store.index.blobCount(), 0, 'nothing is left of images that are gone');
  await store.close();
});

test('rollback and clone refuse what is not there', async () => {
  const { store } = await newStore();
  const admin = adminOperations(store, 'me');
  await assert.rejects(admin.rollback('a@9'), /not kept/);
  await assert.rejects(admin.clone('a', 'a'), /already/);
  for (const name of ['../x', 'a b', '', 'ä', 'x'.repeat(65), 'a/b/c', '.x', 'a\0']) {
    await assert.rejects(admin.create(name, 512), /cannot be the name/, JSON.stringify(name));
  }
  for (const size of [0, -1, 1.5, 2 ** 51, Number.NaN])
    await assert.rejects(store.images.create('n', size), /cannot be/);
  await store.close();
});

test('an image whose size is no multiple of a block', async () => {
  const { store } = await newStore();
  await store.images.create('odd', 10_000);
  const opened = await store.open('odd', CLIENT);
  await opened.write(9_000, Buffer.alloc(1_000, 7));
  await opened.write(4_090, Buffer.alloc(10, 8));
  await opened.zero(9_500, 500);
  await opened.close(true);
  const again = await store.open('odd', CLIENT);
  const bytes = Buffer.alloc(10_000);
  await again.read(0, bytes);
  const expectedBytes = Buffer.alloc(10_000);
  expectedBytes.fill(8, 4_090, 4_100).fill(7, 9_000, 9_500);
  assert.ok(bytes.equals(expectedBytes));
  await again.close(true);
  await store.close();
});

test('changed-since names exactly the changed blocks, in pieces too', async () => {
  const { store } = await newStore();
  await (await put(store, 'a', { 3: 1, 4: 1, 150: 1 })).close(true);
  await (await put(store, 'a', { 4: 2, 299: 1 })).close(true);
  const opened = await store.open('a', CLIENT);
  const ranges = (since: number, step: number) => {
    const changed: number[] = [];
    for (let block = 0; block < BLOCKS; block += step) {
      let at = block;
      const length = Math.min(step, BLOCKS - block) * BLOCK;
      for (const extent of opened.status(`${CHANGED_SINCE}${since}`, block * BLOCK, length, 1000)) {
        for (let end = at + extent.length / BLOCK; at < end; at++) if (extent.flags === 1) changed.push(at);
      }
    }
    return changed;
  };
  for (const step of [BLOCKS, 7, 1]) {
    assert.deepEqual(ranges(1, step), [3, 4, 150, 299]);
    assert.deepEqual(ranges(2, step), [4, 299]);
    assert.deepEqual(ranges(3, step), []);
  }
  assert.deepEqual(opened.metaContexts(`${CHANGED_SINCE}2`), [`${CHANGED_SINCE}2`]);
  assert.deepEqual(opened.metaContexts(`${CHANGED_SINCE}99`), []);
  await opened.close(true);
  await store.close();
});

test('random work with garbage collection in between, against a model', async () => {
  const random = generator(42);
  const pick = (count: number) => Math.floor(random() * count);
  const { store } = await newStore({ spillBlocks: 40 });
  const generations = new Map<number, Content>([[1, new Map()]]);
  let head: Content = new Map();
  let compared = 0;
  const pinned = { generation: 0, opened: null as LineExport | null };
  for (let round = 0; round < 60; round++) {
    const opened = await store.open('a', CLIENT);
    const next: Content = new Map(head);
    for (let write = 0; write < 1 + pick(30); write++) {
      const first = pick(BLOCKS);
      const count = 1 + pick(Math.min(40, BLOCKS - first));
      if (random() < 0.2) {
        await opened.zero(first * BLOCK, count * BLOCK);
        for (let block = first; block < first + count; block++) next.delete(block);
        continue;
      }
      const values = Array.from({ length: count }, () => 1 + pick(random() < 0.5 ? 20 : 100_000));
      await opened.write(first * BLOCK, Buffer.concat(values.map(blockOf)));
      for (const [index, it] of values.entries()) next.set(first + index, it);
    }
    assert.deepEqual(await mismatches(opened, next, BLOCKS), [], `round ${round}: the open epoch`);
    if (random() < 0.8) {
      await opened.close(true);
      head = next;
      generations.set(store.generation('a'), head);
    } else {
      await opened.close(false);
    }
    if (random() < 0.3) {
      await store.digestAll();
      const kept = store.generations('a').map((it) => it.generation);
      const drop = kept.filter(() => random() < 0.5);
      if (pinned.opened === null) {
        pinned.generation = kept[pick(kept.length)];
        pinned.opened = await store.open(`a@${pinned.generation}`, CLIENT);
      }
      await store.images.forget('a', drop);
      await collectGarbage(store);
      assert.deepEqual((await verify(store)).damages, []);
      for (const { generation } of store.generations('a')) {
        const old = await store.open(`a@${generation}`, CLIENT);
        assert.deepEqual(await mismatches(old, generations.get(generation)!, BLOCKS), [], `@${generation}`);
        await old.close(true);
      }
      compared += changeListsAgree(store, `round ${round}`);
      assert.deepEqual(
        await mismatches(pinned.opened, generations.get(pinned.generation)!, BLOCKS),
        [],
        'an open export keeps its generation',
      );
      if (random() < 0.3) {
        await pinned.opened.close(true);
        pinned.opened = null;
      }
    }
  }
  assert.ok(compared > 20, `${compared} pairs of generations were compared`);
  await store.close();
});

/** Every two kept generations: their change lists together name each block that differs. Returns how many pairs there were. */
function changeListsAgree(store: Store, where: string): number {
  const line = store.line('a');
  const kept = store.generations('a');
  let pairs = 0;
  for (const [index, older] of kept.entries()) {
    for (const newer of kept.slice(index)) {
      const view = new TreeView(store.nodes, Buffer.from(newer.root, 'hex'), newer.size);
      const listed = store.listedChanges(line, older.generation, newer.generation);
      assert.ok(listed !== null, `${where}: the changes from ${older.generation} to ${newer.generation} are listed`);
      const differing = store.differingRanges(older, view);
      assert.deepEqual(union([listed, differing]), listed, `${where}: ${older.generation} to ${newer.generation}`);
      view.close();
      pairs++;
    }
  }
  return pairs;
}

test('change lists: what is listed, and what is done without one', async () => {
  const { medium, store } = await newStore();
  await (await put(store, 'a', { 3: 1, 4: 1, 5: 0, 200: 1 })).close(true);
  const zeroing = await store.open('a', CLIENT);
  await zeroing.zero(2 * BLOCK, 100 * BLOCK);
  await zeroing.write(4 * BLOCK, blockOf(1));
  await zeroing.close(true);
  await (await put(store, 'a', { 3: 9, 200: 1, 201: 5 })).close(true);
  await store.digestAll();
  const line = store.line('a');
  const blocks = (since: number, generation: number) => {
    const found: number[] = [];
    const ranges = store.listedChanges(line, since, generation)!;
    for (let at = 0; at < ranges.length; at += 2) for (let it = ranges[at]; it < ranges[at + 1]; it++) found.push(it);
    return found;
  };
  // Written with the content that was there (4 and 200, and zeroes at 5) is not changed.
  assert.deepEqual([blocks(1, 2), blocks(2, 3), blocks(3, 4)], [[3, 4, 200], [3], [3, 201]]);
  assert.deepEqual(blocks(1, 4), [3, 4, 200, 201]);
  const rolledBack = await store.images.rollback('a', 2);
  assert.deepEqual(blocks(4, rolledBack), [3, 201]);
  await store.images.forget('a', [2, 3]);
  assert.deepEqual(blocks(1, 4), [3, 4, 200, 201]);
  assert.equal(store.listedChanges(line, 2, 4), null);
  const changedSinceOne = async () => {
    const opened = await store.open('a', CLIENT);
    const extents = opened.status(`${CHANGED_SINCE}1`, 0, BLOCKS * BLOCK, 100);
    await opened.close(true);
    return extents.map((extent) => [extent.flags, extent.length / BLOCK]);
  };
  const found = [
    [0, 3],
    [1, 2],
    [0, 195],
  ];
  const listed = [...found, [1, 2], [0, 98]];
  assert.deepEqual(await changedSinceOne(), listed);
  // A damaged list counts for nothing: the trees say the same, but for 201, which was changed and changed back.
  for (const [key, list] of medium.index.changesByKey) {
    const damaged = Buffer.from(list);
    damaged[damaged.length - 1] ^= 1;
    medium.index.changesByKey.set(key, damaged);
  }
  assert.equal(store.listedChanges(line, 1, 4), null);
  assert.deepEqual(await changedSinceOne(), [...found, [1, 1], [0, 99]]);
  await store.images.remove('a');
  assert.equal(medium.index.changesByKey.size, 0);
  await store.close();
});

test('change lists survive being stored, whatever their gaps', () => {
  const random = generator(7);
  for (let round = 0; round < 200; round++) {
    const collector = new RangeCollector();
    const model = new Set<number>();
    const far = random() < 0.2 ? 2 ** 37 : 0;
    for (let count = Math.floor(random() * 50); count > 0; count--) {
      const first = far * Math.floor(random() * 2) + Math.floor(random() * 400);
      const end = first + 1 + Math.floor(random() * 5);
      collector.add(first, end);
      for (let block = first; block < end; block++) model.add(block);
    }
    const ranges = collector.ranges();
    const decoded = decodeChanges(encodeChanges(round * 2 ** 40, ranges))!;
    assert.equal(decoded.since, round * 2 ** 40);
    assert.deepEqual(decoded.ranges, ranges);
    assert.equal(blocksIn(ranges), model.size);
    for (let at = 2; at < ranges.length; at += 2) assert.ok(ranges[at] > ranges[at - 1]);
    for (let at = 0; at < ranges.length; at += 2) assert.ok(model.has(ranges[at]) && model.has(ranges[at + 1] - 1));
  }
});

test('garbage collection gives space back, and none that is needed', async () => {
  const { store, medium } = await newStore();
  const values = (from: number) => Object.fromEntries(Array.from({ length: 200 }, (_, block) => [block, from + block]));
  for (let round = 0; round < 5; round++) await (await put(store, 'a', values(round * 1000 + 1))).close(true);
  await store.digestAll();
  const before = medium.files.used;
  await store.images.forget('a', [2, 3, 4, 5]);
  const report = await collectGarbage(store);
  assert.ok(report.packsRemoved > 0);
  assert.ok(medium.files.used < before - 3 * 200 * BLOCK, `${before} bytes became ${medium.files.used}`);
  assert.equal(await readValue(store, 'a', 7), 4008);
  assert.deepEqual((await verify(store)).damages, []);
  await store.close();
});

test('what is left of a large group is found wherever in the group it lies', async () => {
  const { store } = await newStore();
  const values = (from: number, count: number, value: number) =>
    Object.fromEntries(Array.from({ length: count }, (_, index) => [from + index, value + from + index]));
  await (await put(store, 'a', values(0, 64, 1000))).close(true);
  await store.digestAll();
  // Blocks 33 and 34 of the group are needed, 1 and 2, whose bits would be the same in a word of 32, are not.
  await (await put(store, 'a', { ...values(0, 33, 2000), ...values(35, 29, 2000) })).close(true);
  await store.digestAll();
  await store.images.forget('a', [2]);
  const { packsRemoved } = await collectGarbage(store);
  assert.ok(packsRemoved > 0);
  for (let block = 0; block < 64; block++)
    assert.equal(await readValue(store, 'a', block), block === 33 || block === 34 ? 1000 + block : 2000 + block);
  assert.deepEqual((await verify(store)).damages, []);
  for (const block of [1, 2]) assert.equal(store.index.blob(sha256(blockOf(1000 + block))), null, `block ${block}`);
  await store.close();
});

test('blocks that are not compressed lie at multiples of 4096, when there are many', async () => {
  const { store } = await newStore({ spillBlocks: 1000, journalSegmentSlots: 1000, packSizeMax: 2 ** 20 });
  const opened = await put(
    store,
    'a',
    Object.fromEntries(Array.from({ length: 150 }, (_, block) => [block, 1 + block])),
  );
  await opened.close(true);
  await store.digestAll();
  const line = store.line('a');
  const offsets = Array.from({ length: 150 }, (_, block) =>
    Packs.rawOffset(store.index.blob(line.view.hashOf(block))!),
  );
  assert.ok(
    offsets.every((offset) => offset % BLOCK === 0),
    offsets.join(' '),
  );
  assert.equal(offsets[63] - offsets[0], 63 * BLOCK, offsets.join(' '));
  // Whole groups are read to where they are wanted, from a leaf's beginning and from the middle of one.
  for (const first of [0, 30]) {
    line.view.forget();
    const bytes = Buffer.alloc(120 * BLOCK);
    await line.view.read(first * BLOCK, bytes, 0, bytes.length);
    for (let index = 0; index < 120; index++)
      assert.ok(
        bytes.subarray(index * BLOCK, (index + 1) * BLOCK).equals(blockOf(1 + first + index)),
        `block ${first + index}`,
      );
  }
  await store.close();
});

test('packs of version 1 are read, those of a later version refused', async () => {
  const { medium, store } = await newStore();
  // So few blocks lie in a pack of either version in the same way.
  await (await put(store, 'a', { 10: 1, 20: 2 })).close(true);
  await store.close();
  const name = `packs/${medium.files.list('packs')[0]}`;
  const file = medium.files.open(name);
  for (const version of [1, 3]) {
    const header = Buffer.alloc(64);
    file.read(header, 0, 64, 0);
    header.writeUInt16LE(version, 8);
    header.writeUInt32LE(zlib.crc32(header.subarray(8)), 4);
    file.write(header, 0, 64, 0);
    const again = await openStore(medium);
    if (version === 1) assert.equal(await readValue(again, 'a', 20), 2);
    else await assert.rejects(readValue(again, 'a', 20), /has version 3, this program knows 1 to 2/);
    await again.close();
  }
  file.close();
});

test('verify names a flipped bit, the generations that need it and the bytes; reads end in an error, never in wrong bytes', async () => {
  const { medium, store } = await newStore();
  await (await put(store, 'a', { 10: 1, 20: 2 })).close(true);
  await (await put(store, 'a', { 10: 3 })).close(true);
  await store.close();
  const pack = medium.files.list('packs')[0];
  let found = 0;
  // The first pack holds generation 2: its blocks are the first two blobs.
  for (const bit of [8 * (64 + 32 + 36 * 2 + 100), 8 * (64 + 32 + 36 * 2 + BLOCK + 100)]) {
    medium.files.flipBit(`packs/${pack}`, bit);
    const again = await openStore(medium);
    const { damages } = await verify(again);
    assert.ok(damages.length > 0, `bit ${bit}`);
    for (const damage of damages)
      assert.ok(
        damage.generations.some((it) => it === 'a@2'),
        JSON.stringify(damage),
      );
    const opened = await again.open('a@2', CLIENT);
    for (const [block, expectedValue] of [
      [10, 1],
      [20, 2],
    ]) {
      const bytes = Buffer.alloc(BLOCK);
      try {
        await opened.read(block * BLOCK, bytes);
        assert.ok(bytes.equals(blockOf(expectedValue)));
      } catch (error) {
        assert.match(String(error), /damaged/);
        found++;
      }
    }
    await assert.rejects(
      collectGarbage(again).then(() => Promise.reject(new Error('no garbage: damaged'))),
      /damaged/,
    );
    await opened.close(true);
    await again.close();
    medium.files.flipBit(`packs/${pack}`, bit);
  }
  assert.equal(found, 2);
});

test('a damaged block costs its neighbours nothing, however many are read at once', async () => {
  const { medium, store } = await newStore();
  const values = Object.fromEntries(Array.from({ length: 64 }, (_, block) => [block, 1000 + block]));
  await (await put(store, 'a', values)).close(true);
  await store.close();
  // Block 5 of the group, whose blocks begin behind pack header, group header and table, at the next multiple of 4096.
  medium.files.flipBit(`packs/${medium.files.list('packs')[0]}`, 8 * (BLOCK + 5 * BLOCK + 9));
  for (const order of [
    [0, 6, 16],
    [16, 6, 0],
  ]) {
    const again = await openStore(medium);
    const opened = await again.open('a', CLIENT);
    for (const first of order) {
      const count = first === 0 ? 5 : 10;
      const bytes = Buffer.alloc(count * BLOCK);
      await opened.read(first * BLOCK, bytes);
      for (let i = 0; i < count; i++)
        assert.ok(bytes.subarray(i * BLOCK, (i + 1) * BLOCK).equals(blockOf(1000 + first + i)), `block ${first + i}`);
    }
    await assert.rejects(async () => opened.read(0, Buffer.alloc(64 * BLOCK)), /damaged/);
    await assert.rejects(async () => opened.read(5 * BLOCK, Buffer.alloc(BLOCK)), /damaged/);
    await opened.close(true);
    await again.close();
  }
});

test('a missing pack is named, and the rest can be read', async () => {
  const { medium, store } = await newStore({ packSizeMax: 4096 });
  await (await put(store, 'a', { 10: 1 })).close(true);
  await store.digestAll();
  await store.images.create('other', BLOCKS * BLOCK);
  await (await put(store, 'other', { 10: 9 })).close(true);
  await store.close();
  medium.files.remove(`packs/${medium.files.list('packs')[0]}`);
  const again = await openStore(medium);
  const { damages } = await verify(again);
  assert.ok(damages.some((it) => /missing/.test(it.message)));
  assert.equal(await readValue(again, 'other', 10), 9);
  await again.close();
});

test('a damaged record in the middle of the journal is reported, nothing after it is taken, and the journal is kept', async () => {
  const { medium, store } = await newStore();
  const writer = await store.open('a', CLIENT);
  for (let round = 1; round <= 3; round++) {
    await writer.write(BLOCK, blockOf(round));
    await writer.commit();
  }
  // Not closed: the process is gone. Slot 0 is the header, then block and record of each commit in turn.
  const segment = `journal/${medium.files.list('journal')[0]}`;
  medium.files.flipBit(segment, 8 * (4 * BLOCK + 50));
  const logs: string[] = [];
  const again = await openStore(medium, { log: (level, message) => logs.push(`${level} ${message}`) });
  assert.equal(again.generation('a'), 2);
  assert.equal(await readValue(again, 'a', 1), 1);
  assert.ok(
    logs.some((it) => /^error a: generation 3 is damaged/.test(it)),
    logs.join('\n'),
  );
  assert.deepEqual(medium.files.list('journal').filter((it) => it.endsWith('.damaged')).length, 1);
  await again.close();
});

test('a store whose index is gone is not taken for a new one', async () => {
  const { medium, store } = await newStore();
  await (await put(store, 'a', { 1: 1 })).close(true);
  await store.close();
  await assert.rejects(openStore({ files: medium.files, index: newMedium().index }), /index is empty/);
});

test('a full disk refuses and loses nothing that was committed', async () => {
  const { medium, store } = await newStore();
  await (await put(store, 'a', { 1: 1 })).close(true);
  await store.digestAll();
  medium.files.capacity = medium.files.used + 60 * BLOCK;
  let failed = 0;
  let head = 1;
  for (let round = 0; round < 30; round++) {
    try {
      const opened = await store.open('a', CLIENT);
      for (let block = 0; block < 20; block++) await opened.write(block * BLOCK, blockOf(1000 * round + block + 1));
      await opened.commit();
      head = 1000 * round + 2;
      await opened.close(true);
    } catch {
      failed++;
    }
  }
  assert.ok(failed > 0, 'the disk was never full');
  medium.files.capacity = Number.POSITIVE_INFINITY;
  const again = await openStore(medium);
  assert.equal(await readValue(again, 'a', 1), head);
  assert.deepEqual((await verify(again)).damages, []);
  await again.close();
});

test('retention keeps what its rules say, the newest and the tagged', () => {
  const hour = 3_600_000;
  const now = 100 * 24 * hour;
  const generations = Array.from({ length: 40 * 24 * 4 }, (_, index) => ({
    generation: index + 1,
    timeMs: now - (40 * 24 * 4 - index) * (hour / 4),
  }));
  const drop = new Set(expired(generations, new Set([3]), parseRetention('all:1d,1h:7d,1d:31d'), now));
  const kept = generations.filter((it) => !drop.has(it.generation));
  const age = (from: number, to: number) =>
    kept.filter((it) => now - it.timeMs >= from * 24 * hour && now - it.timeMs < to * 24 * hour).length;
  assert.equal(age(0, 1), 95);
  assert.equal(age(1, 7), 6 * 24);
  assert.equal(age(7, 31), 24);
  assert.deepEqual(
    kept.filter((it) => now - it.timeMs >= 31 * 24 * hour).map((it) => it.generation),
    [3],
  );
  for (const wrong of ['', 'all', '1x:1d', 'all:1d,1h:1h', '0d:1d'])
    assert.throws(() => parseRetention(wrong), /retention/);
});
