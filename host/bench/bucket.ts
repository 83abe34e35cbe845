// A store in a bucket of Ceph's gateway on this machine, memory under it: what a commit waits for, what a cold read costs, how late another
// server is. The same store in a folder is the peer.

import crypto from 'node:crypto';
import fs from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import { Bucket, type BucketSettings } from '../store/bucket/s3.js';
import type { LineExport } from '../store/line-export.js';
import { Store } from '../store/store.js';
import { BLOCK_SIZE } from '../store/tree.js';
import { CEPH_TOOLS, Ceph } from './ceph.js';
import { needTools } from './need-tools.js';
import type { Benchmark, Figure } from './report.js';

const MIB = 1024 * 1024;
const CLIENT = { identity: 'anonymous', address: 'bench', tls: false };
const WRITERS = 32;

const benchmark: Benchmark = {
  title: 'a store in a bucket (Ceph RGW on loopback, in memory), against the same in a folder',
  async run({ quick }, onProgress): Promise<Figure[]> {
    needTools(CEPH_TOOLS, 'ceph-mon, ceph-osd, radosgw, ceph-common');
    const folder = fs.mkdtempSync(path.join(os.tmpdir(), 'ribbon-bench-bucket-'));
    onProgress('starting Ceph');
    const ceph = await Ceph.start();
    try {
      const settings = await ceph.newBucket();
      onProgress('commits');
      const own = await commits(await Store.open(path.join(folder, 'folder')), quick ? 20 : 300);
      const shared = await commits(await openShared(settings, path.join(folder, 'one')), quick ? 20 : 300);
      const figures: Figure[] = ['p50', 'p99'].map((name, index) => ({
        name: `commit of one block, ${name}`,
        value: shared.ms[index],
        unit: 'ms',
        peer: { name: 'folder', value: own.ms[index] },
      }));
      figures.push({
        name: `commits of ${WRITERS} images at once`,
        value: shared.together,
        unit: 'a second',
        peer: { name: 'folder', value: own.together },
      });
      onProgress('another server');
      figures.push(...(await lag(settings, folder, quick ? 5 : 30)));
      onProgress('cold reads');
      figures.push(...(await reads(settings, folder, (quick ? 16 : 256) * MIB)));
      return figures;
    } finally {
      await ceph.stop();
      fs.rmSync(folder, { recursive: true, force: true });
    }
  },
};

export default benchmark;

function openShared(settings: BucketSettings, folder: string): Promise<Store> {
  return Store.open(folder, { bucket: { bucket: new Bucket(settings), name: 'bench', cacheBytes: 1024 * MIB } });
}

async function commitBlock(opened: LineExport, block: number): Promise<void> {
  await opened.write(block * BLOCK_SIZE, crypto.randomBytes(BLOCK_SIZE));
  await opened.commit();
}

async function commits(store: Store, count: number): Promise<{ ms: [number, number]; together: number }> {
  const times: number[] = [];
  await store.images.create('single', 64 * MIB);
  const opened = await store.open('single', CLIENT);
  for (let block = 0; block < count; block++) {
    const begin = performance.now();
    await commitBlock(opened, block);
    if (block > count / 10) times.push(performance.now() - begin);
  }
  await opened.close(true);
  times.sort((a, b) => a - b);
  const writers: LineExport[] = [];
  for (let index = 0; index < WRITERS; index++) {
    await store.images.create(`image${index}`, 64 * MIB);
    writers.push(await store.open(`image${index}`, CLIENT));
  }
  await Promise.all(writers.map((it) => commitBlock(it, 0)));
  const rounds = Math.ceil(count / 20);
  const begin = performance.now();
  await Promise.all(
    writers.map(async (it) => {
      for (let round = 1; round <= rounds; round++) await commitBlock(it, round);
    }),
  );
  const together = (WRITERS * rounds * 1000) / (performance.now() - begin);
  for (const it of writers) await it.close(true);
  await store.close();
  return { ms: [times[Math.floor(times.length / 2)], times[Math.floor(times.length * 0.99)]], together };
}

/** From the answer of a commit on one server until the other has the generation. */
async function lag(settings: BucketSettings, folder: string, count: number): Promise<Figure[]> {
  const one = await openShared(settings, path.join(folder, 'writer'));
  const two = await openShared(settings, path.join(folder, 'reader'));
  const times: number[] = [];
  const opened = await one.open('single', CLIENT);
  for (let block = 0; block < count; block++) {
    const seen = new Promise<void>((resolve) => two.once('commit', () => resolve()));
    await opened.write(block * BLOCK_SIZE, crypto.randomBytes(BLOCK_SIZE));
    await opened.commit();
    const begin = performance.now();
    await seen;
    times.push(performance.now() - begin);
  }
  await opened.close(true);
  await one.close();
  await two.close();
  times.sort((a, b) => a - b);
  return [
    { name: 'another server has it, p50', value: times[Math.floor(times.length / 2)], unit: 'ms' },
    { name: 'another server has it, most', value: times.at(-1)!, unit: 'ms' },
  ];
}

async function reads(settings: BucketSettings, folder: string, size: number): Promise<Figure[]> {
  const file = path.join(folder, 'disk.raw');
  const fd = fs.openSync(file, 'w');
  for (let at = 0; at < size; at += MIB) fs.writeSync(fd, crypto.randomBytes(MIB), 0, MIB, at);
  fs.closeSync(fd);
  const one = await openShared(settings, path.join(folder, 'importer'));
  const imported = await seconds(() => one.images.importRaw('disk', file));
  await one.close();
  let two: Store | null = null;
  const start = await seconds(async () => {
    two = await openShared(settings, path.join(folder, 'cold'));
  });
  const store = two as unknown as Store;
  const opened = await store.open('disk', CLIENT);
  const block = Buffer.alloc(BLOCK_SIZE);
  const large = Buffer.alloc(MIB);
  const random = async (count: number) => {
    // Each in a quarter of a MiB of its own, so that none finds what another has brought along.
    const step = size / 2 / count;
    return (
      count /
      (await seconds(async () => {
        for (let index = 0; index < count; index++)
          await opened.read(Math.floor((index * step) / BLOCK_SIZE) * BLOCK_SIZE, block);
      }))
    );
  };
  const sequential = async () =>
    size /
    2 /
    MIB /
    (await seconds(async () => {
      for (let at = size / 2; at < size; at += MIB) await opened.read(at, large);
    }));
  const count = size / 2 / (MIB / 2);
  const coldRandom = await random(count);
  const coldSequential = await sequential();
  const figures: Figure[] = [
    { name: 'import of bytes that do not compress', value: size / MIB / imported, unit: 'MiB/s' },
    { name: 'start on an empty disk', value: start, unit: 's' },
    {
      name: '4K reads one after the other, cold',
      value: coldRandom,
      unit: 'a second',
      peer: { name: 'then from the cache', value: await random(count) },
    },
    {
      name: '1M reads one after the other, cold',
      value: coldSequential,
      unit: 'MiB/s',
      peer: { name: 'then from the cache', value: await sequential() },
    },
  ];
  await opened.close(true);
  await store.close();
  return figures;
}

async function seconds(work: () => Promise<unknown>): Promise<number> {
  const begin = performance.now();
  await work();
  return (performance.now() - begin) / 1000;
}
