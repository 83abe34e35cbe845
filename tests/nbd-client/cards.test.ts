// The firmware's NBD client as a card, on the real server's session and store (SPEC.md "Between a card and the image server").

import assert from 'node:assert/strict';
import crypto from 'node:crypto';
import { test } from 'node:test';
import { compileNbdClient, NbdError } from '../../host/fuzz/nbd-client.js';
import * as nbd from '../../host/server/nbd-protocol.js';
import * as ribbon from '../../host/server/ribbon-protocol.js';
import type { Store } from '../../host/store/store.js';
import { BLOCK, blockOf, CLIENT, generator, newMedium, openStore } from '../store/model.js';
import { CardBench } from './session-network.js';

const BLOCKS = 300;

async function newStore(): Promise<Store> {
  const store = await openStore(newMedium());
  await store.images.create('a', BLOCKS * BLOCK);
  return store;
}

async function newBench(store: Store, settings = {}): Promise<CardBench> {
  return new CardBench(await compileNbdClient(), store, settings);
}

async function administratorWrites(store: Store, block: number, content: number): Promise<void> {
  const opened = await store.open('a', { ...CLIENT, identity: 'administrator' });
  await opened.write(block * BLOCK, blockOf(content));
  await opened.commit();
  await opened.close(false);
}

const shake = (length: number, seed: number) =>
  crypto.createHash('shake256', { outputLength: length }).update(`${seed}`).digest();
const log = (bench: CardBench) => [...bench.client.log, ...bench.network.logs].join('\n');

for (const deflate of [false, true]) {
  test(`writes, commits and reads ${deflate ? 'deflated' : 'as they are'}`, async () => {
    const store = await newStore();
    const bench = await newBench(store, { deflate });
    await bench.connect();
    assert.ok(bench.client.up, log(bench));
    assert.deepEqual({ ...bench.client.place, id: 0n }, { base: 1n, generation: 1n, id: 0n, committed: 0n, ask: true });
    const model = Buffer.alloc(BLOCKS * BLOCK);
    const random = generator(3);
    let record = 0;
    for (let turn = 0; turn < 60; turn++) {
      const first = Math.floor(random() * (BLOCKS * 8 - 256));
      const sectors = 1 + Math.floor(random() * 256);
      const data = random() < 0.5 ? shake(sectors * 512, turn) : Buffer.alloc(sectors * 512, `turn ${turn} `);
      data.copy(model, first * 512);
      assert.equal(await bench.write(first * 512, data), 2, log(bench));
      if (turn % 5 === 4) {
        record += 7;
        const made = await bench.flush(record);
        assert.equal(made?.generation, BigInt(store.generation('a')));
        assert.equal(made?.id.toString(16).padStart(16, '0'), store.line('a').headId);
      }
      const from = Math.floor(random() * (BLOCKS * 8 - 256)) * 512;
      const length = 512 * (1 + Math.floor(random() * 256));
      assert.deepEqual(await bench.read(from, length), model.subarray(from, from + length));
    }
  });
}

test('what compresses takes little of the link, both ways', async () => {
  const store = await newStore();
  const bench = await newBench(store);
  await bench.connect();
  const text = Buffer.alloc(32 * BLOCK, 'the quick brown fox jumps over the lazy dog; ');
  const before = bench.network.toServerBytes;
  await bench.write(0, text);
  assert.ok(bench.network.toServerBytes - before < text.length / 20, `${bench.network.toServerBytes - before} bytes`);
  const back = bench.network.toCardBytes;
  assert.deepEqual(await bench.read(0, text.length), text);
  assert.ok(bench.network.toCardBytes - back < text.length / 20);
});

test('a plain NBD server: the option is refused, and no record number is sent', async () => {
  const store = await newStore();
  const exports = { list: store.list.bind(store), open: store.open.bind(store) };
  const bench = new CardBench(await compileNbdClient(), exports);
  await bench.connect({ generation: 5n, id: 9n, committed: 17n });
  assert.ok(bench.client.up, log(bench));
  assert.equal(bench.client.place, null);
  assert.equal(await bench.write(0, blockOf(1)), 2);
  assert.notEqual(await bench.flush(40), null);
  assert.deepEqual(await bench.read(0, BLOCK), blockOf(1));
});

test('changes by others are told in as many answers as they take', async () => {
  const store = await openStore(newMedium());
  await store.images.create('a', 3000 * BLOCK);
  const bench = await newBench(store);
  await bench.connect();
  const id = bench.client.place!.id;
  const opened = await store.open('a', { ...CLIENT, identity: 'administrator' });
  const blocks = Array.from({ length: 1400 }, (_, index) => 2 * index + 1);
  for (const block of blocks) await opened.write(block * BLOCK, blockOf(block + 1));
  await opened.commit();
  await opened.close(false);
  bench.knows({ generation: 1n, id });
  await bench.settle();
  assert.equal(bench.client.up, false, 'the server has ended the connection');
  await bench.pass(150);
  assert.deepEqual([bench.client.place?.base, bench.client.place?.generation], [1n, 2n], log(bench));
  assert.deepEqual(await bench.changes(3000), blocks);
});

test('an answer to a commit is lost: the next connection tells that it was done', async () => {
  const store = await newStore();
  const bench = await newBench(store);
  await bench.connect();
  const id = bench.client.place!.id;
  await bench.write(0, blockOf(1));
  bench.network.toCard = () => Buffer.alloc(0);
  assert.equal(await bench.flush(12), null);
  bench.network.toCard = (bytes) => bytes;
  bench.knows({ generation: 1n, id, dirty: true });
  bench.client.restart(NbdError.REQUEST_REFUSED);
  await bench.pass(200);
  assert.deepEqual([bench.client.place?.committed, bench.client.place?.base], [12n, 2n], log(bench));
});

test('a conflict is settled on a branch', async () => {
  const store = await newStore();
  const bench = await newBench(store);
  await bench.connect();
  const id = bench.client.place!.id;
  bench.knows({ generation: 1n, id, dirty: true });
  await administratorWrites(store, 7, 1);
  await bench.settle();
  await bench.pass(200);
  assert.deepEqual([bench.client.place?.base, bench.client.place?.generation], [1n, 2n], log(bench));
  bench.knows({ generation: 1n, id, dirty: true, conflict: true });
  bench.client.restart(NbdError.CONFLICT);
  await bench.settle();
  await bench.pass(200);
  assert.deepEqual([bench.client.place?.base, bench.client.place?.generation], [1n, 1n], log(bench));
  await bench.write(7 * BLOCK, blockOf(2));
  await bench.flush(3);
  assert.deepEqual(
    store.info().map((it) => [it.name, it.generation]),
    [
      ['a', 2],
      ['a/card-00000000-1', 2],
    ],
  );
  assert.match(bench.client.log.join('\n'), /E conflict: .* branch a\/card-00000000-1/);
});

test('a server that knows less, and a copied store, are refused', async () => {
  const store = await newStore();
  const bench = await newBench(store);
  await bench.connect({ generation: 5n, id: 1n, committed: 10n });
  assert.equal(bench.client.statistics.linkError, NbdError.SERVER_OLDER);
  assert.equal(bench.client.statistics.linkState, 'refused');
  const first = await newBench(store);
  await first.connect({ card: 5n });
  await first.write(0, blockOf(1));
  const made = await first.flush(10);
  const copy = await newBench(store);
  await copy.connect({ card: 5n, session: 2, generation: 1n, id: made!.id, dirty: true });
  assert.equal(copy.client.statistics.linkError, NbdError.STORE_COPIED);
});

test('blocks that the server has are asked for, and left out of the write', async () => {
  const store = await newStore();
  const bench = await newBench(store);
  await bench.connect();
  const known = shake(BLOCK, 1);
  await bench.write(200 * BLOCK, known);
  await bench.flush(1);
  await store.digestAll();
  const data = Buffer.concat([shake(BLOCK, 2), known, shake(BLOCK, 3), known]);
  const hashes = Buffer.concat(
    [0, 1, 2, 3].map((i) =>
      crypto
        .createHash('sha256')
        .update(data.subarray(i * BLOCK, (i + 1) * BLOCK))
        .digest(),
    ),
  );
  assert.equal(await bench.ask(40 * BLOCK, hashes), 0b1010n, log(bench));
  const before = bench.network.toServerBytes;
  assert.equal(await bench.write(40 * BLOCK, data, 0b1010), 2);
  assert.ok(bench.network.toServerBytes - before < 2 * BLOCK + 200);
  await bench.flush(2);
  assert.deepEqual(await bench.read(40 * BLOCK, data.length), data);
});

test('payload that is damaged on its way is sent again, three times at most', async () => {
  const store = await newStore();
  const bench = await newBench(store);
  await bench.connect();
  const data = Buffer.alloc(8 * BLOCK, 'some text that is easily compressed; ');
  let damages = 2;
  const flip = (bytes: Buffer) => {
    if (bytes.length > 64 && damages-- > 0) bytes[bytes.length - 9] ^= 4;
    return bytes;
  };
  bench.network.toServer = flip;
  assert.equal(await bench.write(512, data), 2, log(bench));
  bench.network.toServer = (bytes) => bytes;
  damages = 2;
  bench.network.toCard = flip;
  assert.deepEqual(await bench.read(512, data.length), data);
  assert.match(log(bench), /payload damaged on its way/);
  damages = 99;
  assert.equal(await bench.read(512, data.length), null);
  assert.equal(bench.client.statistics.linkError, NbdError.CHECKSUM);
});

test('the limit of the link is kept, and nothing is given up for it', async () => {
  const store = await newStore();
  const bench = await newBench(store, { linkRateBytes: 8192, deflate: false });
  await bench.connect();
  const address = 0x220000;
  bench.client.view(address, 131_072).set(shake(131_072, 1));
  const pieces = Array.from({ length: 32 }, (_, i) => address + 4096 * i);
  const slot = bench.client.write(0, 131_072, pieces);
  const startMs = bench.nowMs;
  await bench.settle();
  while (bench.client.state(slot) === 1 && bench.nowMs - startMs < 60_000) {
    assert.ok(bench.client.timeoutMs() <= 1000, 'it wakes up to go on');
    await bench.pass(100);
  }
  assert.equal(bench.client.state(slot), 2, log(bench));
  const seconds = (bench.nowMs - startMs) / 1000;
  assert.ok(seconds > 13 && seconds < 17, `131,072 bytes at 8 KiB a second took ${seconds} s`);
});

test('nonsense from the server: no answer makes the firmware trap or take wrong bytes for right', async () => {
  const store = await newStore();
  const writer = await newBench(store);
  await writer.connect({ card: 77n });
  const content = Buffer.alloc(64 * BLOCK);
  for (let i = 0; i < 64; i++) (i % 3 === 0 ? shake(BLOCK, i) : Buffer.alloc(BLOCK, `${i} `)).copy(content, i * BLOCK);
  for (let i = 0; i < 64; i += 16) await writer.write(i * BLOCK, content.subarray(i * BLOCK, (i + 16) * BLOCK));
  await writer.flush(1);
  let right = 0;
  for (let seed = 1; seed <= 200; seed++) {
    const random = generator(seed);
    const bench = await newBench(store, { deflate: random() < 0.7 });
    let clean = Math.floor(random() * 10);
    const mangle = (bytes: Buffer): Buffer => {
      if (clean-- > 0) return bytes;
      const what = random();
      const at = Math.floor(random() * bytes.length);
      if (what < 0.5) bytes[at] ^= 1 << Math.floor(random() * 8);
      else if (what < 0.6) bytes.writeUInt8(255, at);
      else if (what < 0.7) return bytes.subarray(0, at);
      else if (what < 0.75) return Buffer.concat([bytes, bytes.subarray(at)]);
      return bytes;
    };
    // What a server that lies could say of the place itself cannot be told from the truth: it is not mangled in every run.
    if (random() < 0.5) clean += 3;
    bench.network.toCard = mangle;
    await bench.connect({ card: BigInt(seed), generation: 1n, newest: 5n });
    for (let turn = 0; turn < 6; turn++) {
      if (!bench.client.up) await bench.pass(20_000);
      if (!bench.client.up) continue;
      const first = Math.floor(random() * 400);
      const length = 512 * (1 + Math.floor(random() * 100));
      const which = random();
      if (which < 0.6) {
        const bytes = await bench.read(first * 512, length);
        if (bytes === null) continue;
        assert.deepEqual(bytes, content.subarray(first * 512, first * 512 + length), `seed ${seed}`);
        right++;
      } else if (which < 0.8) await bench.changes(BLOCKS);
      else await bench.ask(100 * BLOCK, shake(32 * 3, seed));
    }
    bench.network.close();
  }
  assert.ok(right > 25, `${right} reads came through`);
});

test('answers of every wrong shape are violations', async () => {
  const store = await newStore();
  const place = (change: (reply: Buffer) => Buffer) => async () => {
    const bench = await newBench(store);
    bench.network.toCard = (bytes) => {
      const isPlace = bytes.length > 40 && bytes.readUInt32BE(12) === ribbon.NBD_REP_RIBBON;
      return isPlace ? change(bytes) : bytes;
    };
    await bench.connect();
    return bench;
  };
  const reply = (offset: number, ...bytes: number[]) =>
    place((it) => {
      it.set(bytes, 20 + offset);
      return it;
    });
  const cases: [string, () => Promise<CardBench>][] = [
    ['version 2', reply(0, 0, 2)],
    ['verdict 3', reply(4, 0, 3)],
    ['a name that is longer than the reply', reply(6, 0, 100)],
    ['a name that is shorter', reply(6, 0, 0)],
    ['a base beyond the generation', reply(8, 0, 0, 0, 0, 0, 0, 1, 0)],
    ['a record that the card does not have', reply(32, 0, 0, 0, 0, 0, 1, 0, 0)],
    ['no place at all', place((it) => it.subarray(20 + it.readUInt32BE(16)))],
    ['two places', place((it) => Buffer.concat([it.subarray(0, 20 + it.readUInt32BE(16)), it]))],
  ];
  for (const [name, run] of cases) {
    const bench = await run();
    assert.equal(bench.client.up, false, name);
    assert.equal(bench.client.statistics.linkError, NbdError.BAD_OPTION_REPLY, `${name}: ${log(bench)}`);
  }
  // In transmission: each kind of answer cut to nothing, and put in the place of another.
  const chunks = [nbd.NBD_REPLY_TYPE_BLOCK_STATUS, 0x5242, 0x5243, 0x5244, 1, 2, 0, 99];
  for (const type of chunks) {
    for (const length of [0, 1, 4, 8, 12, 16, 20, 40, 5000, 0xffff_fff0]) {
      for (const kind of ['read', 'flush', 'ask', 'status']) {
        const bench = await newBench(store);
        await bench.connect({ card: 9n });
        bench.network.toCard = (bytes) => {
          const chunk = Buffer.alloc(20 + Math.min(length, 6000));
          bytes.copy(chunk, 0, 0, Math.min(20, bytes.length));
          chunk.writeUInt32BE(nbd.NBD_STRUCTURED_REPLY_MAGIC, 0);
          chunk.writeUInt16BE(1, 4);
          chunk.writeUInt16BE(type, 6);
          chunk.writeUInt32BE(length, 16);
          return chunk;
        };
        if (kind === 'read') assert.equal(await bench.read(0, BLOCK), null);
        if (kind === 'flush' && !(type === 0x5242 && length === 16))
          assert.equal(await bench.flush(5000 + length), null);
        if (kind === 'ask' && !(type === 0x5243 && length === 4)) assert.equal(await bench.ask(0, shake(32, 1)), null);
        if (kind === 'status') await bench.client.blockStatus(0, BLOCK, 0x220000);
        await bench.settle();
        bench.network.close();
      }
    }
  }
});
