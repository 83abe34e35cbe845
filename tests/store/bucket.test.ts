// A store in a bucket, on a real S3 engine: what one server commits others see, and nothing is lost with a server's disk.

import assert from 'node:assert/strict';
import fs from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import { after, before, test } from 'node:test';
import { Bucket, type BucketSettings } from '../../host/store/bucket/s3.js';
import { type BucketOptions, Store, type StoreOptions } from '../../host/store/store.js';
import { needs } from '../server/needs.js';
import { CEPH_TOOLS, Ceph } from './ceph.js';
import { BLOCK, blockOf, CLIENT } from './model.js';

const MIB = 1024 * 1024;
const NEEDS = needs(...CEPH_TOOLS);
let ceph: Ceph;
const folders: string[] = [];

before(async () => {
  if (NEEDS.skip === undefined) ceph = await Ceph.start();
});

after(async () => {
  await ceph?.stop();
  for (const folder of folders) fs.rmSync(folder, { recursive: true, force: true });
});

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
    pollMs: 20,
    signMs: 50,
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
  return { store, folder, log };
}

async function put(store: Store, name: string, values: Record<number, number>): Promise<void> {
  const opened = await store.open(name, CLIENT);
  for (const [block, value] of Object.entries(values)) await opened.write(Number(block) * BLOCK, blockOf(value));
  await opened.commit();
  await opened.close(true);
}

async function value(store: Store, name: string, block: number): Promise<number> {
  const opened = await store.open(name, CLIENT);
  const bytes = Buffer.alloc(BLOCK);
  await opened.read(block * BLOCK, bytes);
  await opened.close(true);
  return bytes.readUInt32LE(0);
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
  assert.equal(await value(two.store, 'a', 5), 79);
  assert.equal(await value(two.store, 'a@2', 5), 77);
  assert.equal(await value(two.store, 'a', 200), 78);
  await two.store.close();
});
