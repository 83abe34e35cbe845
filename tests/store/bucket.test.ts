// A store in a bucket, on a real S3 engine: what one server commits others see, and nothing is lost with a server's disk.

import assert from 'node:assert/strict';
import fs from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import { after, before, test } from 'node:test';
import { CEPH_TOOLS, Ceph } from '../../host/bench/ceph.js';
import { SecondWriters } from '../../host/server/second-writer.js';
import { adminOperations } from '../../host/store/admin.js';
import { COLLECTOR_KEY, logObject } from '../../host/store/bucket/format.js';
import { Bucket, type BucketSettings } from '../../host/store/bucket/s3.js';
import { collectGarbage } from '../../host/store/garbage.js';
import { emptyBatch, LmdbIndex } from '../../host/store/index.js';
import { type BucketOptions, Store, type StoreOptions } from '../../host/store/store.js';
import { verify } from '../../host/store/verify.js';
import { needs } from '../server/needs.js';
import { BadNetwork, type Fate } from './bad-network.js';
import { BLOCK, blockOf, CLIENT, type Content, generator, mismatches, readValue } from './model.js';

const MIB = 1024 * 1024;
const NEEDS = needs(...CEPH_TOOLS);
let ceph: Ceph;
const folders: string[] = [];
const servers: Server[] = [];
const networks: BadNetwork[] = [];

before(async () => {
  if (NEEDS.skip === undefined) ceph = await Ceph.start();
});

after(async () => {
  // What a failed test has left would try for ever to reach a bucket that is no more.
  for (const { store } of servers) store.shared!.giveUpSoon(0);
  for (const { store } of servers) await store.close().catch(() => {});
  for (const network of networks) await network.close();
  await ceph?.stop();
  for (const folder of folders) fs.rmSync(folder, { recursive: true, force: true });
});

async function badNetwork(url: string): Promise<BadNetwork> {
  const network = await BadNetwork.infrontOf(url);
  networks.push(network);
  return network;
}

function newFolder(): string {
  const folder = fs.mkdtempSync(path.join(os.tmpdir(), 'ribbon-bucket-'));
  folders.push(folder);
  return folder;
}

interface Server {
  store: Store;
  folder: string;
  log: string[];
}

/** A server of its own; nothing happens by itself but what a test waits for. */
async function serve(
  settings: BucketSettings,
  name: string,
  more: Partial<BucketOptions> = {},
  options: StoreOptions = {},
  folder = newFolder(),
): Promise<Server> {
  const log: string[] = [];
  const bucket = {
    bucket: new Bucket(settings),
    name,
    cacheBytes: 64 * MIB,
    pollMs: 100,
    signMs: 250,
    waitMaxMs: 200,
    ...more,
  };
  const store = await Store.open(folder, {
    bucket,
    coalesceMs: 0,
    log: (level, message) => {
      log.push(`${level} ${message}`);
      if (process.env.RIBBON_TEST_LOG !== undefined) console.error(name, level, message);
    },
    ...options,
  });
  const server = { store, folder, log };
  servers.push(server);
  return server;
}

async function put(store: Store, name: string, values: Record<number, number>): Promise<void> {
  const opened = await store.open(name, CLIENT);
  for (const [block, value] of Object.entries(values)) await opened.write(Number(block) * BLOCK, blockOf(value));
  await opened.commit();
  await opened.close(true);
}

test('what is committed is in the bucket: an empty disk is enough to go on', NEEDS, async () => {
  const settings = await ceph.newBucket();
  const one = await serve(settings, 'one');
  await one.store.images.create('a', 300 * BLOCK);
  await put(one.store, 'a', { 5: 77, 200: 78 });
  await put(one.store, 'a', { 5: 79 });
  await one.store.close();
  const two = await serve(settings, 'two');
  assert.equal(two.store.generation('a'), 3);
  assert.equal(await readValue(two.store, 'a', 5), 79);
  assert.equal(await readValue(two.store, 'a@2', 5), 77);
  assert.equal(await readValue(two.store, 'a', 200), 78);
  await two.store.close();
});

/** Waits for what happens by itself. */
async function until(holds: () => boolean | Promise<boolean>, what: string): Promise<void> {
  const deadline = Date.now() + 30_000;
  while (!(await holds())) {
    if (Date.now() > deadline) assert.fail(`waited in vain until ${what}`);
    await new Promise((resolve) => setTimeout(resolve, 10));
  }
}

/** As if the process stood still: it neither gives signs of life nor looks at the log. */
function freeze({ store }: Server): void {
  const { membership, shared } = store as unknown as {
    membership: { timer: NodeJS.Timeout };
    shared: { pollTimer: NodeJS.Timeout };
  };
  clearInterval(membership.timer);
  clearInterval(shared.pollTimer);
}

async function end(...ended: Server[]): Promise<void> {
  for (const { store } of ended) await store.close();
}

test('two servers: one writes, the other follows; who writes where another does is refused', NEEDS, async () => {
  const settings = await ceph.newBucket();
  const one = await serve(settings, 'one', { releaseMs: 50 });
  const two = await serve(settings, 'two', { releaseMs: 50, pollMs: 0x7fff_ffff });
  const heard: string[] = [];
  two.store.on('commit', (line, generation) => heard.push(`${line}@${generation}`));
  await one.store.images.create('a', 300 * BLOCK);
  await two.store.shared!.catchUp();
  assert.deepEqual(heard, ['a@1'], 'an image that another server has made is news too');
  const follow = setInterval(() => void two.store.shared!.catchUp().catch(() => {}), 100);
  const writer = await one.store.open('a', CLIENT);
  await writer.write(0, blockOf(1));
  await writer.commit();
  await until(() => two.store.has('a') && two.store.generation('a') === 2, 'the other server has the generation');
  const reader = await two.store.open('a', CLIENT);
  assert.deepEqual(await mismatches(reader, new Map([[0, 1]]), 300), []);
  await writer.write(BLOCK, blockOf(2));
  assert.equal(await readValue(two.store, 'a', 1), 0, "an open epoch is nobody else's business");
  await writer.commit();
  await until(() => two.store.generation('a') === 3, 'the second generation is there');
  assert.deepEqual(await mismatches(reader, new Map([[0, 1]]), 300), [], 'a reader stays where it is');
  await reader.commit();
  assert.deepEqual(
    await mismatches(
      reader,
      new Map([
        [0, 1],
        [1, 2],
      ]),
      300,
    ),
    [],
    'until it flushes',
  );
  await assert.rejects(async () => reader.write(0, blockOf(9)), /EPERM|written through server 1 \(one\)/);
  const branching = await new SecondWriters(two.store).open('a', CLIENT);
  await branching.write(0, blockOf(9));
  await branching.close(true);
  assert.equal(await readValue(two.store, 'a/anonymous-3', 0), 9, 'or goes on in a branch, by setting');
  await assert.rejects(two.store.images.rollback('a', 2), /written through server 1 \(one\)/);
  await writer.close(true);
  // Given back, the image is anybody's.
  await until(
    async () =>
      put(two.store, 'a', { 2: 3 }).then(
        () => true,
        () => false,
      ),
    'the other server may write',
  );
  await until(() => one.store.generation('a') === 4, 'the first server follows');
  assert.equal(await readValue(one.store, 'a', 2), 3);
  await reader.close(true);
  assert.deepEqual(heard.slice(0, 3), ['a@1', 'a@2', 'a@3']);
  clearInterval(follow);
  await end(one, two);
});

test(
  'a server that falls silent loses its images, and what it had not committed; it finds that out and goes on',
  NEEDS,
  async () => {
    const settings = await ceph.newBucket();
    const one = await serve(settings, 'one', { deadMs: 900 });
    await one.store.images.create('a', 300 * BLOCK);
    const writer = await one.store.open('a', CLIENT);
    let lost = '';
    writer.onLost = (reason) => {
      lost = reason;
    };
    await writer.write(0, blockOf(1));
    await writer.commit();
    await writer.write(0, blockOf(66));
    freeze(one);
    const two = await serve(settings, 'two', { deadMs: 900 });
    await assert.rejects(put(two.store, 'a', { 0: 2 }), /written through server 1/);
    await until(
      async () =>
        put(two.store, 'a', { 0: 2 }).then(
          () => true,
          () => false,
        ),
      'the image is free',
    );
    assert.equal(two.store.generation('a'), 3);
    assert.match(two.log.join('\n'), /server 1 \(one\) has given no sign of life/);
    // It wakes up in the middle of its epoch: that must not become a generation.
    await assert.rejects(async () => writer.commit(), /ESHUTDOWN|has not reached the bucket|gone on without it/);
    assert.match(lost, /gone on without it|changed through another server/);
    await until(() => one.store.shared!.server > 2, 'it registers again');
    assert.equal(one.store.generation('a'), 3);
    assert.equal(await readValue(one.store, 'a', 0), 2);
    await assert.rejects(writer.close(false), /has not reached the bucket/);
    await end(two);
    await put(one.store, 'a', { 0: 3 });
    assert.equal(await readValue(one.store, 'a', 0), 3);
    await end(one);
  },
);

test(
  'no request, answer or order of them that a bad network makes of it changes what is committed',
  NEEDS,
  async () => {
    const settings = await ceph.newBucket();
    const network = await badNetwork(settings.url);
    const random = generator(20261126);
    const fates: Fate[] = ['pass', 'pass', 'pass', 'refuse', 'lose', 'twice'];
    let bad = false;
    network.fate = async (method) => {
      if (!bad) return 'pass';
      await new Promise((resolve) => setTimeout(resolve, random() * 5));
      return method === 'PUT' || random() < 0.3 ? fates[Math.floor(random() * fates.length)] : 'pass';
    };
    const one = await serve({ ...settings, url: network.url }, 'one', { waitMaxMs: 20 });
    const two = await serve({ ...settings, url: network.url }, 'two', { waitMaxMs: 20 });
    const both = [one, two];
    const model = new Map<string, Content[]>();
    for (const [index, name] of ['a', 'b'].entries()) {
      await both[index].store.images.create(name, 100 * BLOCK);
      model.set(name, [new Map()]);
    }
    bad = true;
    const work = async (server: Server, name: string) => {
      const opened = await server.store.open(name, CLIENT);
      const contents = model.get(name)!;
      for (let commit = 0; commit < 10; commit++) {
        const next: Content = new Map(contents.at(-1));
        for (let write = 0; write < 3; write++) {
          const block = Math.floor(random() * 100);
          const content = Math.floor(random() * 1e6);
          await opened.write(block * BLOCK, blockOf(content));
          next.set(block, content);
        }
        await opened.commit();
        contents.push(next);
      }
      await opened.close(true);
    };
    await Promise.all([work(one, 'a'), work(two, 'b')]);
    bad = false;
    const three = await serve(settings, 'three');
    for (const [name, contents] of model) {
      assert.equal(three.store.generation(name), contents.length);
      for (const [index, content] of contents.entries()) {
        const opened = await three.store.open(`${name}@${index + 1}`, CLIENT);
        assert.deepEqual(await mismatches(opened, content, 100), [], `${name}@${index + 1}`);
        await opened.close(true);
      }
    }
    assert.deepEqual((await verify(three.store)).damages, []);
    assert.ok(one.store.shared!.reach.bucket.statistics.failures > 0);
    await end(one, two, three);
  },
);

test(
  'a server that is cut off in the middle of a commit has not committed when another has taken over',
  NEEDS,
  async () => {
    const settings = await ceph.newBucket();
    const network = await badNetwork(settings.url);
    const one = await serve({ ...settings, url: network.url }, 'one', { waitMaxMs: 50 });
    await one.store.images.create('a', 300 * BLOCK);
    await put(one.store, 'a', { 0: 1 });
    const writer = await one.store.open('a', CLIENT);
    await writer.write(0, blockOf(2));
    network.fate = () => 'refuse';
    const commit = assert.rejects(async () => writer.commit(), /has not reached the bucket/);
    const two = await serve(settings, 'two', { deadMs: 900 });
    const takeOver = () =>
      put(two.store, 'a', { 1: 3 }).then(
        () => true,
        () => false,
      );
    await until(takeOver, 'the image is free');
    network.fate = () => 'pass';
    await commit;
    await writer.close(false).catch(() => {});
    await until(() => one.store.shared!.server > 2, 'it registers again');
    for (const { store } of [one, two]) {
      assert.equal(store.generation('a'), 3);
      assert.equal(await readValue(store, 'a', 0), 1);
      assert.equal(await readValue(store, 'a', 1), 3);
    }
    await end(one, two);
  },
);

test(
  'while the bucket does not answer: what is here is read, what is not is an error, commits wait',
  NEEDS,
  async () => {
    const settings = await ceph.newBucket();
    const one = await serve(settings, 'one');
    await one.store.images.create('a', 300 * BLOCK);
    await put(one.store, 'a', { 1: 11, 2: 12 });
    await end(one);
    const network = await badNetwork(settings.url);
    const two = await serve({ ...settings, url: network.url }, 'two', { readMs: 2000, waitMaxMs: 50 });
    await put(two.store, 'a', { 3: 13 });
    assert.equal(await readValue(two.store, 'a', 3), 13);
    network.fate = () => 'refuse';
    assert.equal(await readValue(two.store, 'a', 3), 13, 'what was written here is here');
    await assert.rejects(readValue(two.store, 'a', 1), /the bucket did not answer/);
    let committed = false;
    const commit = put(two.store, 'a', { 4: 14 }).then(() => {
      committed = true;
    });
    await until(() => two.log.some((line) => line.startsWith('error the bucket http')), 'the log says so');
    assert.equal(committed, false);
    network.fate = () => 'pass';
    await commit;
    assert.equal(await readValue(two.store, 'a', 1), 11);
    assert.equal(await readValue(two.store, 'a', 4), 14);
    await until(() => two.log.some((line) => /answers again/.test(line)), 'the log says that it is over');
    // One line for an outage, not one for each request; a busy machine may make two of it.
    const errors = two.log.filter((line) => line.startsWith('error'));
    assert.ok(errors.length <= 2, two.log.join('\n'));
    await end(two);
  },
);

test('a read of the log that is never answered does not keep a server from following it', NEEDS, async () => {
  const settings = await ceph.newBucket();
  const network = await badNetwork(settings.url);
  const one = await serve(settings, 'one');
  await one.store.images.create('a', 300 * BLOCK);
  const two = await serve({ ...settings, url: network.url }, 'two');
  let stuck = 0;
  network.fate = (method, name): Fate | Promise<Fate> => {
    if (method !== 'GET' || !/\/log\/\w+$/.test(name) || stuck > 0) return 'pass';
    stuck++;
    return new Promise(() => {});
  };
  await until(() => stuck > 0, 'a request has got stuck');
  const begin = performance.now();
  await put(one.store, 'a', { 1: 1 });
  await until(() => two.store.generation('a') === 2, 'the other server has the generation');
  // It would be 15 s, after which the request is given up, and more. Most of what it takes is 2 s.
  assert.ok(performance.now() - begin < 12_000, `${performance.now() - begin} ms`);
  assert.ok(two.store.shared!.reach.bucket.statistics.seconds > 0);
  await end(one, two);
});

test('a damaged object is an error that names it, a damaged cache is fetched again', NEEDS, async () => {
  const settings = await ceph.newBucket();
  const one = await serve(settings, 'one');
  await one.store.images.create('a', 3000 * BLOCK);
  await put(one.store, 'a', { 1: 11 });
  const many = Object.fromEntries(Array.from({ length: 200 }, (_, index) => [index + 1000, index + 1]));
  await put(one.store, 'a', many);
  await end(one);
  const bucket = new Bucket(settings);
  const two = await serve(settings, 'two');
  assert.equal(await readValue(two.store, 'a', 1000), 1);
  const location = two.store.index.blob(two.store.line('a').view.hashOf(1000))!;
  const file = path.join(two.folder, `packs/${String(location.pack).padStart(8, '0')}.rbp`);
  const bytes = fs.readFileSync(file);
  await end(two);
  const last = location.groupOffset + location.groupLength - 1;
  bytes[last] ^= 0x55;
  fs.writeFileSync(file, bytes);
  const three = await serve(settings, 'three', {}, {}, two.folder);
  assert.equal(await readValue(three.store, 'a', 1000), 1, 'the bucket has it as it was');
  await end(three);
  const name = `packs/${String(location.pack).padStart(8, '0')}`;
  const object = (await bucket.get(name))!;
  object[last] ^= 0x55;
  await bucket.put(name, object);
  const four = await serve(settings, 'four');
  await assert.rejects(
    readValue(four.store, 'a', 1000),
    new RegExp(`the object ${name} of the bucket is damaged in the group at ${location.groupOffset}`),
  );
  assert.equal(await readValue(four.store, 'a', 1), 11, 'the rest is well');
  const { damages } = await verify(four.store);
  assert.ok(
    damages.length > 0 && damages.every(({ generations }) => generations.join() === 'a@3'),
    JSON.stringify(damages),
  );
  await end(four);
  bucket.close();
});

test('garbage is collected while other servers read and write; nothing that they need goes', NEEDS, async () => {
  const settings = await ceph.newBucket();
  const quick = { retiredMs: 0, orphanMs: 0 };
  const one = await serve(settings, 'one', quick);
  const two = await serve(settings, 'two', quick);
  await one.store.images.create('a', 3000 * BLOCK);
  for (let round = 1; round <= 6; round++) {
    await put(
      one.store,
      'a',
      Object.fromEntries(Array.from({ length: 100 }, (_, index) => [index, round * 1000 + index])),
    );
  }
  await two.store.images.create('b', 100 * BLOCK);
  await until(() => two.store.has('a') && two.store.generation('a') === 7, 'the other server is up to date');
  const reader = await two.store.open('a@3', CLIENT);
  await one.store.images.forget('a', [1, 2, 3, 4, 5, 6]);
  let writing = true;
  const writes = (async () => {
    // The same blocks as in what has been forgotten: they are used again while they are being collected.
    for (let round = 0; writing; round++) {
      await put(two.store, 'b', { [round % 100]: 1000 + (round % 100) });
      await new Promise((resolve) => setTimeout(resolve, 50));
    }
  })();
  const report = await collectGarbage(one.store);
  assert.ok(report.packsRemoved > 0 && report.blobsRemoved > 0, JSON.stringify(report));
  await collectGarbage(one.store);
  writing = false;
  await writes;
  const content: Content = new Map(Array.from({ length: 100 }, (_, index) => [index, 2000 + index]));
  assert.deepEqual(await mismatches(reader, content, 3000), [], 'what is open elsewhere stays');
  await reader.close(true);
  // What a collection retires, a later one removes.
  while ((await collectGarbage(one.store)).packsRemoved > 0);
  await collectGarbage(one.store);
  await two.store.shared!.catchUp();
  assert.equal(await readValue(two.store, 'a', 99), 6099);
  for (const { store } of [one, two]) assert.deepEqual((await verify(store)).damages, []);
  const bucket = new Bucket(settings);
  const objects = (await bucket.list('packs/')).map(({ name }) => Number(/(\d+)/.exec(name)![1]));
  const counted = new Set([...one.store.shared!.packRecords()].map(([pack]) => pack));
  const made = [...one.store.packs.made, ...two.store.packs.made];
  assert.deepEqual(
    objects.filter((pack) => !counted.has(pack) && !made.includes(pack)),
    [],
    'no object is left over',
  );
  await end(one, two);
  const three = await serve(settings, 'three');
  assert.deepEqual((await verify(three.store)).damages, []);
  await end(three);
  bucket.close();
});

/** Requests that wait until they are let through, and how many are waiting. */
class Gate {
  waiting = 0;
  isOpen = false;
  private readonly held: (() => void)[] = [];

  async pass(): Promise<void> {
    if (this.isOpen) return;
    this.waiting++;
    await new Promise<void>((resolve) => this.held.push(resolve));
  }

  release(): void {
    this.isOpen = true;
    for (const go of this.held) go();
  }
}

for (const again of [false, true]) {
  test(
    `a block that is used again while it is collected is stored again${again ? ', though the next collection has begun' : ''}`,
    NEEDS,
    async () => {
      const settings = await ceph.newBucket();
      const networks = [await badNetwork(settings.url), await badNetwork(settings.url)];
      // Nothing is read, expelled or given back but when it is told to here.
      const still = { pollMs: 0x7fff_ffff, deadMs: 600_000, releaseMs: 600_000, retiredMs: 0, orphanMs: 0 };
      const one = await serve({ ...settings, url: networks[0].url }, 'one', still);
      const two = await serve({ ...settings, url: networks[1].url }, 'two', still);
      await one.store.images.create('a', 300 * BLOCK);
      const values = (round: number) =>
        Object.fromEntries(Array.from({ length: 100 }, (_, index) => [index, round * 1000 + index]));
      for (let round = 1; round <= 3; round++) await put(one.store, 'a', values(round));
      await two.store.images.create('b', 100 * BLOCK);
      await one.store.images.forget('a', [1, 2, 3]);
      // The first server begins to collect, and does nothing more until it may.
      const collector = new Gate();
      let entries = 0;
      let looks = 0;
      let releasedMs = 0;
      networks[0].fate = async (method, name): Promise<Fate> => {
        if (method === 'GET' && /\/servers\/\w+$/.test(name)) looks++;
        if (method === 'PUT' && /\/log\/\w+$/.test(name) && ++entries > 1) await collector.pass();
        return 'pass';
      };
      const collection = collectGarbage(one.store);
      await until(() => two.store.shared!.catchUp().then(() => two.store.shared!.reused !== null), 'it has begun');
      // The second one knows of that, uses a block again that nobody needed any more, and is about to say so in the log.
      const writer = new Gate();
      networks[1].fate = async (method, name): Promise<Fate> => {
        if (method !== 'PUT' || !/\/log\/\w+$/.test(name)) return 'pass';
        if (!writer.isOpen) await writer.pass();
        // While the next collection asks what is needed here, there is a tree that is in no entry yet.
        else if (again) await until(() => looks >= 3 || performance.now() - releasedMs > 1000, 'it has asked');
        return 'pass';
      };
      const commit = put(two.store, 'b', { 7: 1042 });
      await until(() => writer.waiting > 0, 'the entry is on its way');
      assert.ok(two.store.shared!.reused!.size > 0, 'the block was there');
      // Meanwhile the collection takes the block away and ends, and perhaps the next one begins.
      collector.release();
      assert.ok((await collection).packsRemoved > 0);
      const next = again ? collectGarbage(one.store) : null;
      if (again) await until(() => one.store.shared!.record(COLLECTOR_KEY) !== undefined, 'the next one has begun');
      // All of that is now read in one go.
      const { entriesRead } = two.store.shared!.statistics;
      looks = 0;
      releasedMs = performance.now();
      writer.release();
      await commit;
      assert.ok(two.store.shared!.statistics.entriesRead >= entriesRead + (again ? 3 : 2));
      await next;
      assert.equal(await readValue(two.store, 'b', 7), 1042);
      for (const { store } of [one, two]) {
        await store.shared!.catchUp();
        assert.deepEqual((await verify(store)).damages, []);
      }
      await end(one, two);
      // What is on the disks of the two could hide that it is not in the bucket.
      const three = await serve(settings, 'three');
      assert.deepEqual((await verify(three.store)).damages, []);
      await end(three);
    },
  );
}

test(
  'a server begins with a checkpoint, and one that has slept through the end of its log begins anew',
  NEEDS,
  async () => {
    const settings = await ceph.newBucket();
    const quick = { checkpointEvery: 3, logMs: 0, entriesKept: 1, deadMs: 1000 };
    const one = await serve(settings, 'one', quick);
    await one.store.images.create('a', 300 * BLOCK);
    await put(one.store, 'a', { 0: 1 });
    const sleeper = await serve(settings, 'sleeper');
    const slept = sleeper.store.shared!.log.sequence;
    await sleeper.store.close();
    for (let round = 2; round <= 8; round++) await put(one.store, 'a', { 0: round });
    const bucket = new Bucket(settings);
    // What is newer than the last sign of life stays until the next one.
    const isGone = async (sequence: number): Promise<boolean> => {
      await collectGarbage(one.store);
      return (await bucket.get(logObject(sequence))) === null;
    };
    await until(() => isGone(slept), 'the log begins behind what the sleeper knows');
    assert.equal(await bucket.get('log/00000000000001'), null, 'the beginning of the log is gone');
    const two = await serve(settings, 'two');
    assert.equal(await readValue(two.store, 'a', 0), 8);
    assert.equal(await readValue(two.store, 'a@3', 0), 2);
    const again = await serve(settings, 'sleeper', {}, {}, sleeper.folder);
    assert.match(again.log.join('\n'), /older than the log of the bucket reaches/);
    assert.equal(await readValue(again.store, 'a', 0), 8);
    // One that wakes up days later, where nothing is left of the log, finds that out before it makes anything of its own there.
    freeze(again);
    const asleep = again.store.shared!.log as unknown as { endMs: number };
    for (let round = 9; round <= 16; round++) await put(one.store, 'a', { 0: round });
    await until(() => isGone(again.store.shared!.log.sequence + 1), 'nothing is left of what follows');
    asleep.endMs -= 86_400_000;
    for (const name of ['c', 'd']) await assert.rejects(again.store.images.create(name, BLOCK), /counts for nothing/);
    assert.equal(two.store.has('c'), false);
    await until(() => two.store.generation('a') === 17, 'the others go on');
    await end(one, two, again);
    bucket.close();
  },
);

test('the cache keeps its bound; imports and exports go through it', NEEDS, async () => {
  const settings = await ceph.newBucket();
  const one = await serve(settings, 'one');
  const folder = newFolder();
  const random = generator(7);
  const bytes = Buffer.alloc(24 * MIB);
  for (let at = 0; at < bytes.length; at += 4) bytes.writeUInt32LE(Math.floor(random() * 0x1_0000_0000), at);
  fs.writeFileSync(path.join(folder, 'disk.raw'), bytes);
  await adminOperations(one.store, 'test').import('a', path.join(folder, 'disk.raw'), 'raw');
  await end(one);
  const two = await serve(settings, 'two', { cacheBytes: 4 * MIB }, { packSizeMax: MIB });
  await adminOperations(two.store, 'test').export('a', path.join(folder, 'copy.raw'), 'raw');
  assert.ok(fs.readFileSync(path.join(folder, 'copy.raw')).equals(bytes));
  const { cache } = two.store.shared!;
  assert.ok(cache.bytes > 0 && cache.statistics.fetchedBytes >= bytes.length);
  await end(two);
});

test('the index of a cache finds a blob as long as one of its packs counts, whatever the order', async () => {
  const index = new LmdbIndex(newFolder(), true);
  const at = (pack: number) => ({
    pack,
    groupOffset: 64,
    groupLength: 100,
    inner: 0,
    length: 30,
    count: 1,
    ordinal: 0,
    codec: 0,
  });
  const [one, two] = [Buffer.alloc(32, 1), Buffer.alloc(32, 2)];
  const apply = (blobs: [Buffer, number][], retired: [Buffer, number][]) => {
    const batch = emptyBatch();
    batch.blobs = blobs.map(([hash, pack]) => [hash, at(pack)]);
    batch.retiredBlobs = retired;
    return index.apply(batch);
  };
  await apply(
    [
      [one, 1],
      [one, 3],
      [one, 2],
      [two, 1],
    ],
    [],
  );
  await apply(
    [],
    [
      [one, 2],
      [two, 1],
    ],
  );
  assert.equal(index.hasBlob(two), false);
  assert.notEqual(index.blob(one)?.pack, 2);
  await apply([[one, 4]], [[one, 1]]);
  assert.ok([3, 4].includes(index.blob(one)!.pack));
  assert.deepEqual(
    index
      .blobsIn(new Set([3, 4]))
      .map(([, pack]) => pack)
      .sort(),
    [3, 4],
  );
  await apply(
    [],
    [
      [one, 4],
      [one, 3],
    ],
  );
  assert.equal(index.hasBlob(one), false);
  assert.deepEqual(index.blobsIn(new Set([1, 2, 3, 4])), []);
  await index.close();
});
