// Cards and the image server (SPEC.md "Between a card and the image server"): what was committed is known exactly, changes are told,
// conflicts go to branches, and no server that knows less than the card is believed.

import assert from 'node:assert/strict';
import crypto from 'node:crypto';
import { test } from 'node:test';
import { setTimeout } from 'node:timers/promises';
import * as nbd from '../../host/server/nbd-protocol.js';
import * as ribbon from '../../host/server/ribbon-protocol.js';
import { parseRetention } from '../../host/store/retention.js';
import type { Store, StoreOptions } from '../../host/store/store.js';
import { afterPowerCut, BLOCK, blockOf, CLIENT, generator, newMedium, openStore } from '../store/model.js';
import { CardClient, errorOf, helloBytes, type Knows } from './card-client.js';

const BLOCKS = 300;

async function newStore(options: StoreOptions = {}): Promise<Store> {
  const store = await openStore(newMedium(), options);
  await store.images.create('a', BLOCKS * BLOCK);
  return store;
}

/** Somebody who is no card changes a block. */
async function administratorWrites(store: Store, block: number, content: number, line = 'a'): Promise<number> {
  const opened = await store.open(line, { ...CLIENT, identity: 'administrator' });
  await opened.write(block * BLOCK, blockOf(content));
  await opened.commit();
  await opened.close(false);
  return store.generation(line);
}

async function contentOf(store: Store, name: string, block: number): Promise<Buffer> {
  const opened = await store.open(name, CLIENT);
  const bytes = Buffer.alloc(BLOCK);
  await opened.read(block * BLOCK, bytes);
  await opened.close(false);
  return bytes;
}

async function connected(store: Store, knows: Knows): Promise<CardClient> {
  const card = new CardClient(store);
  await card.connect(knows);
  assert.equal(card.told!.verdict, 0, card.logs.join('; '));
  return card;
}

/** A card that is told what others have changed, meets it, and comes back for a branch. */
async function conflicted(store: Store, knows: Knows): Promise<CardClient> {
  const told = await connected(store, knows);
  await told.hangUp();
  return connected(store, { ...knows, conflict: true });
}

test('a commit is known by its record number after its answer was lost, and after a crash', async () => {
  const medium = newMedium();
  const store = await openStore(medium);
  await store.images.create('a', BLOCKS * BLOCK);
  const card = await connected(store, {});
  assert.deepEqual(card.told, {
    flags: 32 | 12,
    verdict: 0,
    base: 1,
    generation: 1,
    id: card.told!.id,
    committed: 0,
    line: 'a',
  });
  const knows: Knows = { generation: 1, id: card.told!.id };
  assert.equal(await card.write(5 * BLOCK, blockOf(1)), 0);
  const made = await card.flush(17);
  assert.equal(made.generation, 2);
  await card.hangUp();
  // The card did not hear of it.
  const again = await connected(store, { ...knows, dirty: true });
  assert.deepEqual([again.told!.committed, again.told!.base, again.told!.generation], [17, 2, 2]);
  assert.equal(again.told!.id, made.id);
  // The next epoch is whole in the journal only.
  assert.equal(await again.write(6 * BLOCK, blockOf(2), true), 0);
  await again.flush(20);
  assert.equal(await again.write(7 * BLOCK, blockOf(3)), 0);
  const reopened = await openStore(afterPowerCut(medium, generator(1)));
  const third = await connected(reopened, { ...knows, dirty: true });
  assert.deepEqual([third.told!.committed, third.told!.base, third.told!.generation], [20, 3, 3]);
  assert.deepEqual(await third.read(6 * BLOCK, BLOCK), blockOf(2));
  assert.deepEqual(await third.read(7 * BLOCK, BLOCK), Buffer.alloc(BLOCK));
  const log = reopened.generations('a').map((it) => it.card?.upTo);
  assert.deepEqual(log, [undefined, 17, 20]);
});

test('a card that has let go what was committed, but not noted the generation, is based on it', async () => {
  const store = await newStore();
  const card = await connected(store, {});
  const { id } = card.told!;
  await card.write(3 * BLOCK, blockOf(1));
  await card.flush(5);
  await administratorWrites(store, 9, 2);
  const conflict = await conflicted(store, { generation: 1, id, committed: 5, dirty: true });
  assert.deepEqual([conflict.told!.line, conflict.told!.base], ['a/card-c0ffee00-2', 2]);
  assert.deepEqual(await conflict.read(3 * BLOCK, BLOCK), blockOf(1));
});

test('a commit without a write moves the record number all the same, and never back', async () => {
  const store = await newStore();
  const card = await connected(store, {});
  assert.equal((await card.flush(3)).generation, 2);
  assert.equal(errorOf(await card.request(nbd.NBD_CMD_FLUSH, 3, 0)), nbd.NBD_ERRNO.EINVAL);
  assert.equal((await connected(store, { generation: 2, id: card.told!.id })).told!.committed, 3);
});

test('what a card has not committed is discarded, also when it says goodbye', async () => {
  const store = await newStore();
  const card = await connected(store, {});
  assert.equal(await card.write(0, blockOf(9)), 0);
  await card.request(nbd.NBD_CMD_DISC, 0, 0);
  assert.ok(card.ended);
  assert.equal(store.generation('a'), 1);
  const fua = await connected(store, { generation: 1, id: card.told!.id });
  const reply = await fua.request(nbd.NBD_CMD_WRITE, 0, BLOCK, blockOf(9), nbd.NBD_CMD_FLAG_FUA);
  assert.equal(errorOf(reply), nbd.NBD_ERRNO.EINVAL);
});

test('a card is told what others have changed, and its connection ends when they do', async () => {
  const store = await newStore();
  const reader = await connected(store, {});
  const { id } = reader.told!;
  await administratorWrites(store, 40, 7);
  assert.ok(reader.ended, 'a card that only reads learns of it too');
  await administratorWrites(store, 250, 8);
  const card = await connected(store, { generation: 1, id });
  assert.deepEqual([card.told!.base, card.told!.generation], [1, 3]);
  assert.deepEqual(await card.changes(BLOCKS), [40, 250]);
  // Nothing of its own meets that: its epoch goes on top.
  assert.equal(await card.write(41 * BLOCK, blockOf(5)), 0);
  assert.equal((await card.flush(4)).generation, 4);
  assert.deepEqual(await contentOf(store, 'a', 40), blockOf(7));
  assert.deepEqual(await contentOf(store, 'a', 41), blockOf(5));
});

test('more changes than fit a reply are told in several', async () => {
  const store = await openStore(newMedium());
  await store.images.create('a', 3000 * BLOCK);
  const first = await connected(store, {});
  const opened = await store.open('a', { ...CLIENT, identity: 'administrator' });
  const blocks = Array.from({ length: 1400 }, (_, index) => 2 * index);
  for (const block of blocks) await opened.write(block * BLOCK, blockOf(block + 1));
  await opened.commit();
  await opened.close(false);
  const card = await connected(store, { generation: 1, id: first.told!.id });
  assert.deepEqual(await card.changes(3000), blocks);
});

test('a conflict: both sides are kept, reported once, and the card stays on its branch', async () => {
  const store = await newStore();
  const conflicts: string[] = [];
  store.on('conflict', (line) => conflicts.push(line));
  const first = await connected(store, {});
  await first.write(10 * BLOCK, blockOf(1));
  const { generation, id } = await first.flush(5);
  await first.hangUp();
  await administratorWrites(store, 11, 2);
  const knows: Knows = { generation, id, committed: 5, dirty: true };
  const before = await connected(store, knows);
  assert.deepEqual(await before.changes(BLOCKS), [11]);
  await before.hangUp();
  const card = await connected(store, { ...knows, conflict: true });
  assert.equal(card.told!.line, 'a/card-c0ffee00-2');
  assert.deepEqual([card.told!.flags & 16, card.told!.base, card.told!.generation], [16, 2, 2]);
  assert.equal(card.told!.id, id, 'the branch begins as what the card knows');
  // The answer may be lost: asking again changes nothing.
  await card.hangUp();
  const again = await connected(store, { ...knows, conflict: true });
  assert.equal(again.told!.line, 'a/card-c0ffee00-2');
  assert.equal(await again.write(11 * BLOCK, blockOf(3)), 0);
  const own = await again.flush(9);
  assert.equal(own.generation, 3);
  await again.hangUp();
  assert.deepEqual(conflicts, ['a/card-c0ffee00-2']);
  assert.deepEqual(await contentOf(store, 'a', 11), blockOf(2));
  assert.deepEqual(await contentOf(store, 'a/card-c0ffee00-2', 11), blockOf(3));
  assert.deepEqual(await contentOf(store, 'a/card-c0ffee00-2', 10), blockOf(1));
  // A second conflict on the branch is a second branch.
  await administratorWrites(store, 12, 4, 'a/card-c0ffee00-2');
  const second = await conflicted(store, { generation: 3, id: own.id, committed: 9, dirty: true });
  assert.equal(second.told!.line, 'a/card-c0ffee00-3');
});

test('a card that has not heard of its branch does not get another when somebody has changed that meanwhile', async () => {
  const store = await newStore();
  const first = await connected(store, {});
  await first.hangUp();
  await administratorWrites(store, 11, 2);
  const knows: Knows = { generation: 1, id: first.told!.id, dirty: true };
  const unheard = await conflicted(store, knows);
  await unheard.hangUp();
  await administratorWrites(store, 12, 4, 'a/card-c0ffee00-1');
  const again = await connected(store, { ...knows, conflict: true });
  assert.deepEqual([again.told!.line, again.told!.base, again.told!.generation], ['a/card-c0ffee00-1', 1, 2]);
  assert.deepEqual(await again.changes(BLOCKS), [12]);
  await again.hangUp();
  // Now it knows, and meets that, too.
  const second = await connected(store, { ...knows, conflict: true });
  assert.equal(second.told!.line, 'a/card-c0ffee00-1.2');
});

test('a card that comes back while its branch is being made finds it, and does not get another', async () => {
  const store = await newStore();
  const conflicts: string[] = [];
  store.on('conflict', (line) => conflicts.push(line));
  const first = await connected(store, {});
  await first.hangUp();
  await administratorWrites(store, 11, 2);
  const knows: Knows = { generation: 1, id: first.told!.id, dirty: true };
  // The first of the two has lost its power; the second is a new power-on.
  await (await connected(store, knows)).hangUp();
  const before = connected(store, { ...knows, conflict: true });
  const after = await connected(store, { ...knows, session: 2, sessions: [1] });
  assert.deepEqual([after.told!.line, after.told!.flags & 16], ['a/card-c0ffee00-1', 16]);
  await before;
  assert.deepEqual(conflicts, ['a/card-c0ffee00-1']);
});

test('a conflict ends: the branch becomes the image, and the cache of the card stays right', async () => {
  const store = await newStore();
  const first = await connected(store, {});
  await first.hangUp();
  await administratorWrites(store, 11, 2);
  const knows: Knows = { generation: 1, id: first.told!.id, dirty: true };
  const card = await conflicted(store, knows);
  await card.write(11 * BLOCK, blockOf(3));
  const own = await card.flush(9);
  await store.cards.resolve('a', 'c0ffee0000000001', 'branch', 'me');
  assert.ok(card.ended);
  const back = await connected(store, { generation: own.generation, id: own.id, committed: 9 });
  assert.equal(back.told!.line, 'a');
  assert.deepEqual([back.told!.flags & 32, back.told!.base, back.told!.generation], [0, 3, 3]);
  assert.deepEqual(await back.read(11 * BLOCK, BLOCK), blockOf(3));
  assert.deepEqual(await contentOf(store, 'a@2', 11), blockOf(2));
  await back.write(0, blockOf(6));
  await back.flush(10);
});

test('a conflict ends: the image as it is, when nothing of the card is uncommitted', async () => {
  const store = await newStore();
  const first = await connected(store, {});
  await administratorWrites(store, 11, 2);
  await first.hangUp();
  const card = await conflicted(store, { generation: 1, id: first.told!.id, dirty: true });
  await card.write(11 * BLOCK, blockOf(3));
  const own = await card.flush(9);
  await store.cards.resolve('a', 'c0ffee0000000001', 'image', 'me');
  const busy = await connected(store, { generation: own.generation, id: own.id, committed: 9, dirty: true });
  assert.equal(busy.told!.line, 'a/card-c0ffee00-1');
  await busy.hangUp();
  const back = await connected(store, { generation: own.generation, id: own.id, committed: 9 });
  assert.deepEqual([back.told!.line, back.told!.flags & 32, back.told!.base], ['a', 32, 2]);
  assert.deepEqual(await back.read(11 * BLOCK, BLOCK), blockOf(2));
  await back.write(0, blockOf(6));
  assert.equal((await back.flush(12)).generation, 3);
  assert.deepEqual(await contentOf(store, 'a/card-c0ffee00-1', 11), blockOf(3));
});

test('a server that knows less than the card is refused, reported once, and decided by an administrator', async () => {
  const medium = newMedium();
  const store = await openStore(medium);
  await store.images.create('a', BLOCKS * BLOCK);
  const backup = afterPowerCut(medium, generator(3));
  const card = await connected(store, {});
  await card.write(0, blockOf(1));
  const made = await card.flush(50);
  const restored = await openStore(backup);
  const conflicts: string[] = [];
  restored.on('conflict', (line) => conflicts.push(line));
  const knows: Knows = { generation: made.generation, id: made.id, committed: 50, dirty: true };
  for (let attempt = 0; attempt < 3; attempt++) {
    const refused = new CardClient(restored);
    assert.equal((await refused.connect(knows)).verdict, 1);
  }
  assert.deepEqual(conflicts, ['a']);
  // Another history with the same numbers.
  await administratorWrites(restored, 0, 9);
  await administratorWrites(restored, 1, 9);
  assert.equal((await new CardClient(restored).connect({ ...knows, committed: 0, dirty: true })).verdict, 1);
  await restored.cards.resolve('a', 'c0ffee0000000001', 'image', 'me');
  const branch = await connected(restored, knows);
  assert.deepEqual([branch.told!.line, branch.told!.flags & 48], ['a/card-c0ffee00-3', 48]);
  assert.equal(branch.told!.committed, 50);
  await branch.write(0, blockOf(4));
  await branch.flush(51);
  assert.deepEqual(await contentOf(restored, 'a', 0), blockOf(9));
});

test('a copied local store is refused', async () => {
  const store = await newStore();
  const original = await connected(store, { session: 7 });
  const { id } = original.told!;
  await original.write(0, blockOf(1));
  await original.flush(50);
  await original.hangUp();
  const copy = new CardClient(store);
  assert.equal((await copy.connect({ generation: 1, id, session: 8, sessions: [5, 6], dirty: true })).verdict, 2);
  // It has fewer records than the server has committed.
  const shorter = new CardClient(store);
  assert.equal((await shorter.connect({ generation: 1, id, session: 7, newest: 49, dirty: true })).verdict, 2);
  await connected(store, { generation: 1, id, session: 8, sessions: [7], dirty: true });
});

test('a card whose log has lost its end is told so, and what is committed of it is not missed', async () => {
  const store = await newStore();
  const before = await connected(store, { session: 7 });
  await before.write(0, blockOf(1));
  const made = await before.flush(48);
  await before.write(BLOCK, blockOf(2));
  const lost = await before.flush(60);
  await before.hangUp();
  await administratorWrites(store, 20, 9);
  const knows: Knows = { generation: made.generation, id: made.id, committed: 40, newest: 55, session: 8, dirty: true };
  const card = await connected(store, { ...knows, sessions: [{ session: 7, last: 52 }] });
  assert.deepEqual([card.told!.flags & 32, card.told!.committed, card.told!.base], [32, 52, lost.generation]);
  assert.deepEqual(await card.changes(BLOCKS), [20], 'what others have changed since is told all the same');
  assert.ok(store.lines.get('a')!.record.cards !== undefined);
  // The numbers behind the last that is left are given again.
  await card.write(2 * BLOCK, blockOf(3));
  await card.flush(55);
  await card.hangUp();
  const again = await connected(store, { ...knows, committed: 54, newest: 70, sessions: [{ session: 7, last: 52 }] });
  assert.deepEqual([again.told!.flags & 32, again.told!.committed], [0, 55]);
  for (const content of [1, 2, 3]) assert.deepEqual(await contentOf(store, 'a', content - 1), blockOf(content));
});

test('what a lost card had sent and not committed becomes a branch, if its PC counts on it', async () => {
  for (const early of [true, false]) {
    const store = await openStore(newMedium(), { cardLostMs: 1 });
    await store.images.create('a', BLOCKS * BLOCK);
    const card = await connected(store, { early });
    await card.write(0, blockOf(1));
    await card.flush(10);
    await card.write(0, blockOf(2));
    await card.write(BLOCK, blockOf(3));
    await card.hangUp();
    for (let turn = 0; turn < 100 && !store.lines.has('a/left-c0ffee00-2'); turn++) await setTimeout(5);
    assert.deepEqual([...store.lines.keys()], early ? ['a', 'a/left-c0ffee00-2'] : ['a']);
    assert.deepEqual(await contentOf(store, 'a', 0), blockOf(1));
    if (early)
      for (const block of [0, 1])
        assert.deepEqual(await contentOf(store, 'a/left-c0ffee00-2', block), blockOf(block + 2));
    await store.close();
  }
});

test('a card that comes back leaves nothing; a server that stops keeps what is left', async () => {
  const medium = newMedium();
  const store = await openStore(medium);
  await store.images.create('a', BLOCKS * BLOCK);
  const card = await connected(store, { early: true, session: 7 });
  await card.write(0, blockOf(2));
  await card.hangUp();
  await connected(store, { early: true, session: 7, generation: 1, id: card.told!.id, dirty: true });
  const other = await connected(store, { early: true, card: 0xbeefn });
  await other.write(BLOCK, blockOf(3));
  await other.hangUp();
  await store.close();
  const again = await openStore(medium);
  assert.deepEqual([...again.lines.keys()], ['a', 'a/left-00000000-1']);
  assert.deepEqual(await contentOf(again, 'a/left-00000000-1', 1), blockOf(3));
});

test('a card that has nothing to lose takes another image of the same name', async () => {
  const store = await newStore();
  const card = await connected(store, { generation: 12, id: 'ab'.repeat(8) });
  assert.deepEqual([card.told!.flags & 32, card.told!.base], [32, 1]);
});

test('the retention keeps what a card knows', async () => {
  const store = await newStore();
  const first = await connected(store, {});
  for (let turn = 0; turn < 5; turn++) await administratorWrites(store, 20 + turn, turn + 1);
  await store.digestAll();
  await store.images.applyRetention(parseRetention('1d:2d'));
  assert.deepEqual(
    store.generations('a').map((it) => it.generation),
    [1, 6],
  );
  const card = await connected(store, { generation: 1, id: first.told!.id });
  assert.deepEqual(await card.changes(BLOCKS), [20, 21, 22, 23, 24]);
});

test('commits of a card and of others are never kept as one', async () => {
  const store = await newStore({ coalesceMs: 1e9 });
  const card = await connected(store, {});
  for (let record = 1; record <= 3; record++) {
    await card.write(record * BLOCK, blockOf(record));
    await card.flush(record);
  }
  await administratorWrites(store, 9, 9);
  await store.digestAll();
  assert.deepEqual(
    store.generations('a').map((it) => [it.generation, it.card?.upTo]),
    [
      [1, undefined],
      [4, 3],
      [5, undefined],
    ],
  );
});

test('a newer connection of a card puts an end to an older one, with its open epoch', async () => {
  const store = await newStore();
  const older = await connected(store, {});
  await older.write(0, blockOf(1));
  const newer = await connected(store, { generation: 1, id: older.told!.id, dirty: true });
  assert.ok(older.ended);
  assert.equal(await newer.write(0, blockOf(2)), 0);
  await newer.flush(8);
  assert.deepEqual(await contentOf(store, 'a', 0), blockOf(2));
});

test('damage on the way is found: nothing of the write counts', async () => {
  const store = await newStore();
  const card = await connected(store, {});
  const random = generator(5);
  for (const packed of [false, true]) {
    for (let turn = 0; turn < 40; turn++) {
      const data = Buffer.concat([blockOf(turn + 1), blockOf(turn + 2)]);
      const flip = (payload: Buffer) => {
        const at = 16 + Math.floor(random() * (payload.length - 16));
        payload[at] ^= 1 << Math.floor(random() * 8);
      };
      const offset = 4 * BLOCK + 512 * (turn % 9);
      assert.equal(await card.write(offset, data, packed, flip), nbd.NBD_ERRNO.EIO);
      assert.equal(card.ended, false);
    }
  }
  assert.deepEqual(await card.read(4 * BLOCK, BLOCK), Buffer.alloc(BLOCK));
});

test('every range arrives and comes back, in one piece or thirty-three', async () => {
  const store = await newStore();
  const card = await connected(store, {});
  for (const [first, sectors] of [
    [0, 8],
    [3, 256],
    [8, 256],
    [5, 1],
    [7, 2],
    [100, 255],
  ]) {
    for (const packed of [false, true]) {
      const data = crypto
        .createHash('shake256', { outputLength: sectors * 256 })
        .update(`${first}`)
        .digest();
      const whole = Buffer.concat([data, data]);
      assert.equal(await card.write(first * 512, whole, packed), 0);
      assert.deepEqual(await card.read(first * 512, whole.length), whole);
    }
  }
});

test('a block that the store has need not be sent', async () => {
  const store = await newStore();
  const card = await connected(store, {});
  await card.write(3 * BLOCK, blockOf(77));
  await card.flush(1);
  await store.digestAll();
  const hash = (bytes: Buffer) => crypto.createHash('sha256').update(bytes).digest();
  const hashes = Buffer.concat([hash(blockOf(78)), hash(blockOf(77)), hash(Buffer.alloc(BLOCK))]);
  const reply = await card.request(ribbon.NBD_CMD_ASK, 50 * BLOCK, 3 * BLOCK, hashes);
  assert.equal(reply.readUInt16BE(6), ribbon.NBD_REPLY_TYPE_KNOWN);
  assert.equal(reply.readUInt32BE(20), 0b010);
  await card.flush(2);
  assert.deepEqual(await contentOf(store, 'a', 51), blockOf(77));
  assert.deepEqual(await contentOf(store, 'a', 50), Buffer.alloc(BLOCK));
});

test('what cannot be is refused: options and commands of every wrong shape', async () => {
  const store = await newStore();
  const refused = async (data: Buffer) => {
    const card = new CardClient(store);
    await card.talk(Buffer.from([0, 0, 0, 3]));
    await card.option(nbd.NBD_OPT_STRUCTURED_REPLY);
    const reply = await card.option(ribbon.NBD_OPT_RIBBON, data);
    await card.hangUp();
    assert.deepEqual(
      card.logs.filter((line) => line.includes('session failed')),
      [],
    );
    return reply.readUInt32BE(12);
  };
  const good = helloBytes({ sessions: [1, 2, 3] });
  for (let length = 0; length < good.length; length++)
    assert.equal(await refused(good.subarray(0, length)), nbd.NBD_REP_ERR_INVALID, `${length} bytes`);
  assert.equal(await refused(Buffer.concat([good, Buffer.alloc(1)])), nbd.NBD_REP_ERR_INVALID);
  assert.equal(await refused(helloBytes({ version: 0 })), nbd.NBD_REP_ERR_INVALID);
  assert.equal(await refused(helloBytes({ sessions: new Array(17).fill(1) })), nbd.NBD_REP_ERR_INVALID);
  assert.equal(await refused(helloBytes({ name: 'a'.repeat(257) })), nbd.NBD_REP_ERR_INVALID);
  assert.equal(await refused(helloBytes({ name: 'nobody' })), nbd.NBD_REP_ERR_UNKNOWN);
  const later = Buffer.concat([helloBytes({ version: 2 }), Buffer.alloc(30)]);
  assert.equal(await refused(later), ribbon.NBD_REP_RIBBON);
  // Without structured replies first.
  const early = new CardClient(store);
  await early.talk(Buffer.from([0, 0, 0, 3]));
  assert.equal((await early.option(ribbon.NBD_OPT_RIBBON, good)).readUInt32BE(12), nbd.NBD_REP_ERR_INVALID);
});

test('random bytes in every field of the option and of the commands', async () => {
  const store = await newStore();
  const random = generator(11);
  const byte = () => Math.floor(random() * 256);
  for (let turn = 0; turn < 300; turn++) {
    const card = new CardClient(store);
    await card.talk(Buffer.from([0, 0, 0, 3]));
    await card.option(nbd.NBD_OPT_STRUCTURED_REPLY);
    const data = helloBytes({ sessions: [1, 2], card: BigInt(turn % 7) });
    for (let flips = byte() % 4; flips > 0; flips--) data[Math.floor(random() * data.length)] = byte();
    await card.option(ribbon.NBD_OPT_RIBBON, data);
    const go = Buffer.from([0, 0, 0, 1, 0x61, 0, 0]);
    await card.option(nbd.NBD_OPT_GO, go);
    for (let commands = 0; commands < 4 && !card.ended; commands++) {
      const which = [nbd.NBD_CMD_FLUSH, ribbon.NBD_CMD_WRITE_PIECES, ribbon.NBD_CMD_ASK, nbd.NBD_CMD_READ][byte() % 4];
      const payload = Buffer.from(Array.from({ length: byte() }, byte));
      if (byte() < 128) payload.fill(0, 0, Math.min(12, payload.length));
      await card.request(which, byte() * 512, byte() * (byte() < 100 ? 4096 : 16), payload);
    }
    await card.hangUp();
    assert.deepEqual(
      card.logs.filter((line) => line.includes('session failed')),
      [],
      `turn ${turn}`,
    );
  }
});
