// The image store: space and import speed against borg on a series of related Debian images, and what single operations cost.

import { execFile, execFileSync } from 'node:child_process';
import crypto from 'node:crypto';
import fs from 'node:fs';
import net from 'node:net';
import os from 'node:os';
import path from 'node:path';
import { promisify } from 'node:util';
import v8 from 'node:v8';
import vm from 'node:vm';
import { ImageServer } from '../server/server.js';
import { blocksIn } from '../store/changes.js';
import { CHANGED_SINCE } from '../store/line-export.js';
import { Store } from '../store/store.js';
import { BLOCK_SIZE, ZERO_HASH } from '../store/tree.js';
import { debianSeries, SERIES_SIZE } from './debian-series.js';
import { needTools } from './need-tools.js';
import type { Benchmark, BenchOptions, Figure } from './report.js';

const run = promisify(execFile);
const MIB = 1024 * 1024;
const CLIENT = { identity: 'anonymous', address: 'bench', tls: false };

const benchmark: Benchmark = {
  title: 'the image store: four related 1 GiB images of a Debian system against borg; single operations',
  async run(options: BenchOptions, onProgress): Promise<Figure[]> {
    needTools(['borg', 'mke2fs', 'debugfs', 'dpkg-deb'], 'borgbackup, e2fsprogs');
    const folder = fs.mkdtempSync(path.join(os.tmpdir(), 'ribbon-bench-'));
    try {
      return [
        ...(await series(folder, options.quick, onProgress)),
        ...(await operations(folder, options.quick, onProgress)),
      ];
    } finally {
      fs.rmSync(folder, { recursive: true, force: true });
    }
  },
};

export default benchmark;

/** A quick run takes the first eighth of each image. */
async function series(folder: string, quick: boolean, onProgress: (text: string) => void): Promise<Figure[]> {
  let images = await debianSeries(onProgress);
  const size = quick ? SERIES_SIZE / 8 : SERIES_SIZE;
  if (quick) images = images.map((image, index) => firstPart(image, size, path.join(folder, `image${index}.raw`)));
  const environment = {
    ...process.env,
    BORG_BASE_DIR: path.join(folder, 'borg-base'),
    BORG_UNKNOWN_UNENCRYPTED_REPO_ACCESS_IS_OK: 'yes',
  };
  const repository = path.join(folder, 'borg');
  await run('borg', ['init', '-e', 'none', repository], { env: environment });
  const store = await Store.open(path.join(folder, 'series'));
  let borgSeconds = 0;
  let ownSeconds = 0;
  for (const [index, image] of images.entries()) {
    onProgress(`importing image ${index + 1} of 4`);
    borgSeconds += await seconds(() =>
      run('borg', ['create', '-C', 'zstd,3', `${repository}::${index}`, image], { env: environment }),
    );
    ownSeconds += await seconds(() => store.images.importRaw(`image${index}`, image));
  }
  await store.close();
  const total = (images.length * size) / MIB;
  return [
    {
      name: 'four images, total stored',
      value: sizeOf(path.join(folder, 'series')) / MIB,
      unit: 'MiB',
      peer: { name: 'borg zstd,3', value: sizeOf(repository) / MIB },
      bar: 1,
      atMost: true,
    },
    {
      name: 'import',
      value: total / ownSeconds,
      unit: 'MiB/s',
      peer: { name: 'borg zstd,3', value: total / borgSeconds },
      bar: 1,
    },
  ];
}

function firstPart(image: string, size: number, target: string): string {
  execFileSync('cp', ['--sparse=always', image, target]);
  fs.truncateSync(target, size);
  return target;
}

async function operations(folder: string, quick: boolean, onProgress: (text: string) => void): Promise<Figure[]> {
  const store = await Store.open(path.join(folder, 'operations'), { coalesceMs: 0 });
  const figures: Figure[] = [];
  const value = (name: string, it: number, unit: string, atMost?: number) =>
    figures.push({ name, value: it, unit, ...(atMost === undefined ? {} : { bar: atMost, atMost: true }) });

  onProgress('commit of 1,000 random blocks');
  await store.images.create('large', 100 * 1024 ** 3);
  const times: number[] = [];
  for (let round = 0; round < (quick ? 3 : 15); round++) {
    const writer = await store.open('large', CLIENT);
    for (let block = 0; block < 1000; block++) {
      await writer.write(crypto.randomInt(25 * MIB) * BLOCK_SIZE, crypto.randomBytes(BLOCK_SIZE));
    }
    times.push(1000 * (await seconds(async () => writer.commit())));
    await writer.close(true);
  }
  value('commit of 1,000 random blocks in 100 GiB', times.sort((a, b) => a - b)[Math.floor(times.length / 2)], 'ms');
  await store.digestAll();
  value('  written to the journal for it', recordedBytes(1000) / MIB, 'MiB');
  value(
    '  written to packs by its digest',
    sizeOf(path.join(folder, 'operations', 'packs')) / times.length / MIB,
    'MiB',
  );

  const blocks = quick ? 65_536 : 1024 * 1024;
  for (const [label, run] of [
    ['in runs of 64', 64],
    ['singly', 1],
  ] as const) {
    onProgress(`1 TiB, ${blocks} changed blocks ${label}`);
    const name = `terabyte-${run}`;
    await store.images.create(name, 1024 ** 4);
    const root = await changedTree(store, blocks, run);
    const line = store.line(name);
    await store.images.newGeneration(line, root, 1024 ** 4, 'bench', 'bench');
    const older = store.findGeneration(line, 1)!;
    const compared = await seconds(() => {
      const found = blocksIn(store.differingRanges(older, line.view));
      if (found !== blocks) throw new Error(`${found} blocks differ, ${blocks} were changed`);
    });
    const opened = await store.open(name, CLIENT);
    let changed = 0;
    const taken = await seconds(async () => {
      for (let at = 0; at < 1024 ** 4; ) {
        for (const extent of opened.status(`${CHANGED_SINCE}1`, at, Math.min(2 ** 31, 1024 ** 4 - at), 8192)) {
          if (extent.flags === 1) changed += extent.length / BLOCK_SIZE;
          at += extent.length;
        }
      }
    });
    if (changed !== blocks) throw new Error(`${changed} blocks were reported, ${blocks} were changed`);
    value(`changed-since, 1 TiB, ${blocks} blocks changed ${label}`, taken, 's', 1);
    value('  the same by comparing the trees', compared, 's');
    await opened.close(true);
  }

  // A clone waits for the disk twice: what the index has written, then the page that makes it count. What the disk itself takes for that is shown below it.
  const clones: number[] = [];
  const flushes: number[] = [];
  const probe = fs.openSync(path.join(folder, 'probe'), 'w');
  for (let round = 0; round < 51; round++) {
    clones.push(1000 * (await seconds(() => store.images.clone('terabyte-64', null, `clone${round}`))));
    flushes.push(1000 * (await seconds(async () => flushTwice(probe, round))));
  }
  fs.closeSync(probe);
  const middle = (times: number[]) => times.sort((a, b) => a - b)[Math.floor(times.length / 2)];
  value('clone of 1 TiB, median', middle(clones), 'ms', 10);
  value('  the slowest of 51', clones.at(-1)!, 'ms');
  value('  two flushes of 4 KiB, median', middle(flushes), 'ms');
  value('  the slowest of 51', flushes.at(-1)!, 'ms');

  onProgress('memory');
  figures.push(...(await memory(store, folder)));
  await store.close();
  return figures;
}

function flushTwice(file: number, round: number): void {
  for (const at of [0, BLOCK_SIZE]) {
    fs.writeSync(file, Buffer.alloc(BLOCK_SIZE, round), 0, BLOCK_SIZE, at);
    fs.fdatasyncSync(file);
  }
}

/** What one commit adds to the journal: its blocks, and a record of 20 bytes for each (SPEC.md "Journal"). */
function recordedBytes(blocks: number): number {
  return (blocks + Math.ceil((256 + 20 * blocks) / BLOCK_SIZE)) * BLOCK_SIZE;
}

/**
 * A tree of 1 TiB in which `count` blocks are not zero, in runs at random places of even strides. They have 4,096 contents, which makes
 * most leaves of the tree different and does not store a million blocks first.
 */
async function changedTree(store: Store, count: number, run: number): Promise<Buffer> {
  const total = 1024 ** 4 / BLOCK_SIZE;
  const stride = Math.floor(total / (count / run));
  let root: Buffer = ZERO_HASH;
  for (let done = 0; done < count; done += 16_384) {
    const numbers = new Float64Array(Math.min(16_384, count - done));
    for (let index = 0, first = 0; index < numbers.length; index++) {
      if (index % run === 0) first = Math.floor((done + index) / run) * stride + crypto.randomInt(stride - run + 1);
      numbers[index] = first + (index % run);
    }
    const source = {
      read: (first: number, many: number, target: Buffer) => {
        for (let index = 0; index < many; index++) {
          target.fill(`block ${numbers[first + index] % 4096} `, index * BLOCK_SIZE, (index + 1) * BLOCK_SIZE);
        }
      },
    };
    root = await store.builder.addBlocks(root, 1024 ** 4, 1024 ** 4, numbers, source, []);
  }
  return root;
}

/** A full garbage collection, with or without --expose-gc. */
function collectNow(): void {
  v8.setFlagsFromString('--expose-gc');
  vm.runInNewContext('gc')();
}

async function memory(store: Store, folder: string): Promise<Figure[]> {
  const used = async () => {
    // What the work before has left goes in several steps: buffers are freed by the event loop after their owners.
    for (let turn = 0; turn < 4; turn++) {
      collectNow();
      await new Promise((resolve) => setTimeout(resolve, 100));
    }
    const { heapUsed, external } = process.memoryUsage();
    return heapUsed + external;
  };
  const many = 1000;
  const start = await used();
  const opened = [];
  for (let index = 0; index < many; index++) opened.push(await store.open('large', CLIENT));
  const perExport = ((await used()) - start) / many;
  for (const it of opened) await it.close(true);
  const socket = path.join(folder, 's');
  const server = new ImageServer({
    exports: store,
    listen: [{ kind: 'unix', path: socket }],
    negotiationTimeoutMs: 60_000,
  });
  await server.listen();
  const idle = await used();
  const sockets: net.Socket[] = [];
  for (let index = 0; index < 100; index++) {
    const it = net.connect(socket);
    await new Promise((resolve) => it.once('data', resolve));
    sockets.push(it);
  }
  const perConnection = ((await used()) - idle) / sockets.length;
  for (const it of sockets) it.destroy();
  await server.close();
  return [
    { name: 'memory per open export', value: perExport / 1024, unit: 'KiB' },
    { name: 'memory per idle connection (both ends)', value: perConnection / 1024, unit: 'KiB' },
  ];
}

async function seconds(work: () => unknown): Promise<number> {
  const begin = performance.now();
  await work();
  return (performance.now() - begin) / 1000;
}

/** Bytes on the disk below a folder. */
function sizeOf(folder: string): number {
  return Number(execFileSync('du', ['-s', '-B1', folder]).toString().split('\t')[0]);
}
