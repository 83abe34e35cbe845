// Push and pull between real servers: only what is missing goes over the line, and nothing is believed.

import assert from 'node:assert/strict';
import crypto from 'node:crypto';
import fs from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import { after, before, test } from 'node:test';
import { ByteRates } from '../../host/server/byte-rate.js';
import { parseConfig } from '../../host/server/config.js';
import { apiRoutes } from '../../host/server/http-api.js';
import { replicationRoutes } from '../../host/server/http-replication.js';
import { HttpError, type Route } from '../../host/server/http-route.js';
import { HttpServer } from '../../host/server/http-server.js';
import { type AdminProgress, adminOperations } from '../../host/store/admin.js';
import { BATCH_BLOBS_MAX, BlobSink, decodeBatch, encodeBatch } from '../../host/store/replica.js';
import { Store } from '../../host/store/store.js';
import { encodeNode, ZERO_HASH } from '../../host/store/tree.js';
import { CLIENT } from '../store/model.js';

const MIB = 1024 * 1024;
const SIZE = 40 * MIB + 512;
const TOKENS = { mirror: 'mirror-token', card: 'card-token' };
const hashed = (token: string) => `sha256:${crypto.createHash('sha256').update(token).digest('hex')}`;
const CONFIG = JSON.stringify({
  identities: {
    mirror: { tokens: [hashed(TOKENS.mirror)], rights: { '*': 'administer' } },
    card: { tokens: [hashed(TOKENS.card)], rights: { disk: 'write', own: 'administer' } },
  },
});

let folder = '';
/** Where images are made, and the server that they go to and come from. */
let origin: Store;
let hub: Store;
let http: HttpServer;
/** Called before each request: may throw. */
let meddle: (route: Route) => void = () => {};
/** Changes what the hub sends of blobs. */
let spoil: (bytes: Buffer) => Buffer = (bytes) => bytes;

const file = (name: string) => path.join(folder, name);
const remote = (token: keyof typeof TOKENS = 'mirror') => ({ tokenFile: file(token), caFile: null });
const url = (name: string) => `${http.url}/${name}`;
const admin = (store: Store, onProgress?: AdminProgress) => adminOperations(store, 'test', onProgress);

before(async () => {
  folder = fs.mkdtempSync(path.join(os.tmpdir(), 'ribbon-replica-'));
  for (const [name, token] of Object.entries(TOKENS)) fs.writeFileSync(file(name), `${token}\n`);
  // Every commit stays a generation of its own.
  origin = await Store.open(file('origin'), { digestDelayMs: 10, coalesceMs: 0 });
  hub = await Store.open(file('hub'), { digestDelayMs: 10, coalesceMs: 0 });
  const config = parseConfig(CONFIG, folder, 'test');
  const routes = [...apiRoutes(hub, config), ...replicationRoutes(hub, config)].map((route) => ({
    ...route,
    handle: async (...args: Parameters<Route['handle']>) => {
      meddle(route);
      const answer = await route.handle(...args);
      if (route.path.endsWith('/read') && typeof answer === 'object' && 'bytes' in answer)
        return { ...answer, bytes: spoil(answer.bytes as Buffer) };
      return answer;
    },
  }));
  http = new HttpServer({ store: hub, config, configured: true, routes, log: () => {} });
  await http.listen({ kind: 'tcp', host: '127.0.0.1', port: 0 });
});

after(async () => {
  await http.close();
  await origin.close();
  await hub.close();
  fs.rmSync(folder, { recursive: true, force: true });
});

async function write(store: Store, name: string, offset: number, bytes: Buffer): Promise<void> {
  const opened = await store.open(name, CLIENT);
  await opened.write(offset, bytes);
  await opened.close(true);
  await store.digestAll();
}

async function same(a: Store, b: Store, name: string, other = name): Promise<void> {
  const told = (store: Store, it: string) =>
    store
      .generations(it)
      .map(({ generation, root, size, timeMs, who, why, id }) => [generation, root, size, timeMs, who, why, id]);
  assert.deepEqual(told(a, name), told(b, other));
  assert.deepEqual(a.infoOf(name).tags, b.infoOf(other).tags);
  assert.deepEqual((await admin(b).verify([other])).damages, []);
}

test('a first push brings everything, the next one only what is new', async () => {
  fs.writeFileSync(file('raw'), Buffer.concat([crypto.randomBytes(9 * MIB), Buffer.alloc(SIZE - 9 * MIB)]));
  await origin.images.importRaw('disk', file('raw'));
  await write(origin, 'disk', 20 * MIB, crypto.randomBytes(MIB));
  await admin(origin).snapshot('disk@1', 'golden');
  const first = await admin(origin).push('disk', url('disk'), remote());
  assert.equal(first.generations, 2);
  assert.ok(first.blobs > 2560 && first.blobs < 2560 + 60, `${first.blobs} blobs`);
  await same(origin, hub, 'disk');
  assert.deepEqual(await admin(origin).push('disk', url('disk'), remote()), { generations: 0, blobs: 0, bytes: 0 });
  await write(origin, 'disk', 39 * MIB, Buffer.alloc(4096, 1));
  const next = await admin(origin).push('disk', url('disk'), remote());
  // One block, and a node of each of three levels.
  assert.deepEqual([next.generations, next.blobs], [1, 4]);
  assert.ok(next.bytes < 6000, `${next.bytes} bytes`);
  await same(origin, hub, 'disk');
});

test('pull makes the same image, and goes on with it', async () => {
  const replica = await Store.open(file('replica'), { digestDelayMs: 10, coalesceMs: 0 });
  try {
    await admin(replica).pull(url('disk'), 'disk', remote('card'));
    await same(origin, replica, 'disk');
    await write(origin, 'disk', 30 * MIB, crypto.randomBytes(70_000));
    await admin(origin).push('disk', url('disk'), remote());
    const next = await admin(replica).pull(url('disk'), 'disk', remote('card'));
    assert.equal(next.generations, 1);
    assert.ok(next.blobs <= 18 + 4, `${next.blobs} blobs`);
    await same(origin, replica, 'disk');
    // The generation that both have in common is forgotten by the origin: it is still known that nothing else happened here.
    await write(hub, 'disk', 0, Buffer.alloc(4096, 2));
    await hub.images.forget('disk', [hub.generation('disk') - 1]);
    assert.equal((await admin(replica).pull(url('disk'), 'disk', remote('card'))).generations, 1);
    assert.equal(replica.generation('disk'), hub.generation('disk'));
    // Written here: now it has a history of its own.
    await write(replica, 'disk', 0, Buffer.alloc(4096, 3));
    await assert.rejects(admin(replica).pull(url('disk'), 'disk', remote('card')), /the other direction\?/);
    await write(hub, 'disk', 0, Buffer.alloc(4096, 4));
    const head = replica.generation('disk');
    await assert.rejects(
      admin(replica).pull(url('disk'), 'disk', remote('card')),
      /both have been changed; nothing was done/,
    );
    await assert.rejects(
      admin(replica).push('disk', url('disk'), remote()),
      /both have been changed; nothing was done/,
    );
    assert.equal(replica.generation('disk'), head);
    await admin(replica).pull(url('disk'), 'theirs', remote('card'));
    await same(hub, replica, 'disk', 'theirs');
  } finally {
    await replica.close();
  }
});

test('a push that is cut short goes on, whatever garbage collection did meanwhile', async () => {
  fs.writeFileSync(file('raw'), crypto.randomBytes(18 * MIB));
  await origin.images.importRaw('cut', file('raw'));
  let puts = 0;
  meddle = (route) => {
    if (route.path.endsWith('/blobs') && ++puts > 5) throw new HttpError(500, 'test', 'cut short by the test');
  };
  await assert.rejects(admin(origin).push('cut', url('cut'), remote()), /cut short by the test/);
  meddle = () => {};
  assert.ok(!hub.has('cut'), 'nothing of it shows');
  const { blobsRemoved } = await admin(hub).gc(null);
  assert.equal(blobsRemoved, 0, 'what has arrived waits for the rest');
  const rest = await admin(origin).push('cut', url('cut'), remote());
  assert.ok(rest.blobs < 18 * 256 - 3000, `only ${rest.blobs} blobs were sent again`);
  await same(origin, hub, 'cut');
});

test('a collection in the middle of a pull takes nothing away', async () => {
  const replica = await Store.open(file('replica2'), { packSizeMax: MIB });
  try {
    // Old content that the pull finds here and uses again, while nothing else needs it any more.
    await replica.images.importRaw('old', file('raw'));
    await admin(replica).rm('old', false);
    let reads = 0;
    const collections: Promise<unknown>[] = [];
    meddle = (route) => {
      if (route.path.endsWith('/read') && ++reads % 2 === 0) collections.push(admin(replica).gc(null));
    };
    await admin(replica).pull(url('cut'), 'cut', remote());
    meddle = () => {};
    await Promise.all(collections);
    await same(hub, replica, 'cut');
  } finally {
    meddle = () => {};
    await replica.close();
  }
});

test('what has another hash is refused and nothing is stored of it', async () => {
  const replica = await Store.open(file('replica3'));
  try {
    let reads = 0;
    spoil = (bytes) => (++reads === 3 ? bytes.subarray(0, bytes.length - 1) : bytes);
    await assert.rejects(admin(replica).pull(url('cut'), 'cut', remote()), /no batch of blobs/);
    spoil = (bytes) => bytes;
    // A bit of a block turned over, in a batch that is otherwise right.
    reads = 0;
    const original = http as unknown as { options: { routes: Route[] } };
    const route = original.options.routes.find((it) => it.path.endsWith('/blobs/read'))!;
    const handle = route.handle;
    route.handle = async (...args) => {
      const answer = (await handle(...args)) as { bytes: Buffer };
      if (++reads !== 3) return answer as never;
      const blobs = (await decodeBatch(answer.bytes)).map((it) => Buffer.from(it));
      blobs[5][100] ^= 4;
      return { ...answer, bytes: await encodeBatch(blobs) } as never;
    };
    spoil = (bytes) => bytes;
    await assert.rejects(
      admin(replica).pull(url('cut'), 'cut', remote()),
      /has another hash: it is damaged there or on the way/,
    );
    route.handle = handle;
    assert.ok(!replica.has('cut'));
    await admin(replica).pull(url('cut'), 'cut', remote());
    await same(hub, replica, 'cut');
  } finally {
    spoil = (bytes) => bytes;
    await replica.close();
  }
});

test('a store takes only trees', async () => {
  const sink = new BlobSink(hub);
  const random = crypto.randomBytes(4096);
  const hash = crypto.createHash('sha256').update(random).digest();
  const node = (level: number, child: Buffer) => {
    const hashes = Buffer.alloc(64 * 32);
    child.copy(hashes, 5 * 32);
    return encodeNode(level, hashes);
  };
  await assert.rejects(sink.put(-1, [random.subarray(1)]), /a block of 4095 bytes/);
  await assert.rejects(sink.put(-1, [Buffer.alloc(4096)]), /a block of zeroes/);
  await assert.rejects(sink.put(0, [random]), /no tree node/);
  await assert.rejects(sink.put(0, [node(0, hash)]), /came before its child/);
  await sink.put(-1, [random]);
  await assert.rejects(sink.put(1, [node(1, hash)]), /for a child, which is none/);
  await assert.rejects(sink.put(1, [node(0, hash)]), /no proper tree node of level 1/);
  await sink.put(0, [node(0, hash)]);
  const leaf = crypto.createHash('sha256').update(node(0, hash)).digest();
  await assert.rejects(sink.put(0, [node(0, leaf)]), /for a child, which is none/);
  const padded = Buffer.concat([node(0, hash), Buffer.alloc(32)]);
  await assert.rejects(sink.put(0, [padded]), /no tree node/);
  assert.deepEqual(await sink.have([hash, leaf, ZERO_HASH, Buffer.alloc(32, 7)]), [true, true, true, false]);
  await admin(hub).gc(null);
  assert.deepEqual(await sink.have([hash, leaf]), [true, true]);
  sink.close();
  await admin(hub).gc(null);
  assert.ok(hub.index.blob(hash) === null || hub.packs.numbers().length > 0);
});

test('batches that lie', async () => {
  const good = await encodeBatch([Buffer.alloc(4096, 1), Buffer.alloc(0)]);
  assert.deepEqual(
    (await decodeBatch(good)).map((it) => it.length),
    [4096, 0],
  );
  const changed = (change: (bytes: Buffer) => void) => {
    const bytes = Buffer.from(good);
    change(bytes);
    return bytes;
  };
  for (const bad of [
    Buffer.alloc(0),
    good.subarray(0, 15),
    good.subarray(0, 20),
    changed((it) => it.writeUInt32LE(3, 4)),
    changed((it) => it.writeUInt32LE(BATCH_BLOBS_MAX + 1, 4)),
    changed((it) => it.writeUInt32LE(0xffffffff, 8)),
    // Unpacks to more than it says.
    changed((it) => it.writeUInt32LE(10, 8)),
    changed((it) => it.writeUInt8(2, 12)),
    changed((it) => it.writeUInt8(0, 12)),
  ])
    await assert.rejects(decodeBatch(bad), /no batch of blobs/);
});

test('rights, tokens and records', async () => {
  await origin.images.create('private', MIB);
  await assert.rejects(admin(origin).push('private', url('private'), remote('card')), /404|403/);
  await assert.rejects(admin(origin).push('private', url('own'), remote('card')), /allowed to read every image/);
  await assert.rejects(admin(origin).pull(url('cut'), 'x', remote('card')), /no such image, or you may not read it/);
  fs.writeFileSync(file('wrong'), 'wrong-token');
  await assert.rejects(
    admin(origin).pull(url('cut'), 'x', { tokenFile: file('wrong'), caFile: null }),
    /no bearer token that is known/,
  );
  await assert.rejects(
    admin(origin).pull('http://backup.example:1/disk', 'x', remote()),
    /not sent to backup\.example:1 in clear text/,
  );
  await assert.rejects(admin(origin).pull('ftp://a/b', 'x', remote()), /is not http\(s\)/);
  const ask = async (where: string, body: unknown) => {
    const headers = { Authorization: `Bearer ${TOKENS.mirror}`, 'Content-Type': 'application/json' };
    const response = await fetch(`${http.url}/v1/images/${where}`, {
      method: 'POST',
      headers,
      body: JSON.stringify(body),
    });
    return `${response.status} ${await response.text()}`;
  };
  const record = {
    version: 1,
    generation: 3,
    root: '00'.repeat(32),
    size: MIB,
    timeMs: 1,
    who: 'a',
    why: 'b',
    changedBlocks: 0,
    from: 3,
  };
  assert.match(
    await ask('fresh/generations', { generation: { ...record, timeMs: Date.now() + 1e10 } }),
    /^409 .*set the clocks right/,
  );
  assert.match(
    await ask('fresh/generations', { generation: { ...record, root: '11'.repeat(32) } }),
    /^409 .*not the root of a tree/,
  );
  assert.match(
    await ask('fresh/generations', { generation: { ...record, generation: 0 } }),
    /^409 .*no record of a generation/,
  );
  assert.match(await ask('fresh/generations', { generation: { ...record, size: 2 ** 52 } }), /^409 /);
  assert.match(await ask('..%2F..%2Fx/generations', { generation: record }), /^(404|400|409) /);
  assert.ok(!hub.has('fresh'));
  assert.match(await ask('fresh/generations', { generation: record }), /^204 /);
  assert.equal(hub.generation('fresh'), 3);
  assert.match(
    await ask('fresh/generations', { generation: record, expected: 'nonsense' }),
    /^409 .*changed meanwhile/,
  );
});

/** A second way to the hub, where each client may move so much in a second. */
async function limited<T>(perSecond: number, debtWaitMs: number, work: (url: string, rates: ByteRates) => Promise<T>) {
  const config = parseConfig(CONFIG, folder, 'test');
  const rates = new ByteRates(({ identity }) => (identity === 'mirror' ? perSecond : null));
  const routes = [...apiRoutes(hub, config), ...replicationRoutes(hub, config)];
  const options = { store: hub, config, configured: true, routes, log: () => {}, byteRates: rates, debtWaitMs };
  const server = new HttpServer(options);
  await server.listen({ kind: 'tcp', host: '127.0.0.1', port: 0 });
  try {
    return await work(server.url, rates);
  } finally {
    await server.close();
  }
}

const seconds = async (work: () => Promise<unknown>): Promise<number> => {
  const begin = performance.now();
  await work();
  return (performance.now() - begin) / 1000;
};

for (const debtWaitMs of [20_000, 100]) {
  test(`push and pull keep to the server's bytes a second; it lets them wait for ${debtWaitMs} ms`, async () => {
    const name = `paced${debtWaitMs}`;
    const bytes = 6 * MIB;
    fs.writeFileSync(file('raw'), crypto.randomBytes(bytes));
    await origin.images.importRaw(name, file('raw'));
    const third = await Store.open(file(`third${debtWaitMs}`), { digestDelayMs: 10 });
    await limited(3 * MIB, debtWaitMs, async (base, rates) => {
      // The first second is free, and the debt that the last request leaves is not waited for here.
      const up = await seconds(() => admin(origin).push(name, `${base}/${name}`, remote()));
      assert.ok(up > 0.6, `pushed in ${up} s`);
      const down = await seconds(() => admin(third).pull(`${base}/${name}`, name, remote()));
      assert.ok(down > 0.6, `pulled in ${down} s`);
      assert.ok(up + down < 30, `${up} and ${down} s`);
      assert.ok(rates.statistics.waits > 0);
    });
    await same(origin, hub, name);
    await same(origin, third, name);
    await third.close();
  });
}

test('content at so many bytes a second; who owes too much comes again later; others are not concerned', async () => {
  await limited(MIB, 100, async (base) => {
    const get = (what: string, token: keyof typeof TOKENS) =>
      fetch(`${base}/v1/images/${what}`, { headers: { Authorization: `Bearer ${TOKENS[token]}` } });
    const range = { Range: `bytes=0-${2 * MIB + 256 * 1024 - 1}`, Authorization: `Bearer ${TOKENS.mirror}` };
    const took = await seconds(async () => {
      const answer = await fetch(`${base}/v1/images/disk/content`, { headers: range });
      assert.equal((await answer.arrayBuffer()).byteLength, 2 * MIB + 256 * 1024);
    });
    assert.ok(took > 0.9, `${took} s`);
    const body = Buffer.alloc(2 * MIB);
    const post = await fetch(`${base}/v1/images/disk/blobs?level=0`, {
      method: 'POST',
      headers: { Authorization: `Bearer ${TOKENS.mirror}` },
      body,
    });
    assert.equal(post.status, 409, 'nonsense, but it has been moved');
    const late = await get('disk', 'mirror');
    assert.equal(late.status, 429);
    assert.ok(Number(late.headers.get('retry-after')) >= 1);
    assert.equal((await get('disk', 'card')).status, 200);
  });
});
