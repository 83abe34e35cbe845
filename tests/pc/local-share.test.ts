// `ribbon sim --local-share`: the images of a device on one local store, and what is said when that cannot be.

import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdtempSync, readdirSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { after, before, test } from 'node:test';
import { decodePartitionTable } from '../../host/local-store/format.js';
import { openStoreFile, partitionOf, StoreLog } from '../../host/local-store/read-store.js';
import { run } from './booted-pc.js';
import { RIBBON } from './port-client.js';

let folder: string;
let store: string;
let socket: string;

before(async () => {
  folder = mkdtempSync(path.join(tmpdir(), 'ribbon-share-'));
  store = path.join(folder, 'store');
  socket = path.join(folder, 'card');
  for (const name of ['a', 'b', 'c'])
    await run(process.execPath, [RIBBON, 'image', 'create', name, '4M', '--store', store]);
});
after(() => rmSync(folder, { recursive: true, force: true }));

/** Powers a card on, and off again when its disk is there; what it complained of. */
async function powerOn(options: string[]): Promise<{ status: number | null; errors: string }> {
  const args = [RIBBON, 'sim', '--pc', 'nbd', '--listen', `unix:${socket}`, ...options];
  const child = spawn(process.execPath, args, { stdio: ['ignore', 'pipe', 'pipe'] });
  let errors = '';
  child.stdout.once('data', () => child.kill('SIGTERM'));
  child.stderr.on('data', (text) => {
    errors += text;
  });
  await once(child, 'close');
  return { status: child.exitCode, errors };
}

function powerOnImage(image: string, share: string): ReturnType<typeof powerOn> {
  return powerOn(['--store', store, '--image', image, '--local-share', share]);
}

test('two images share the local store of a device, each with the size that was asked for', async () => {
  for (const [image, share] of [
    ['a', '20M'],
    ['b', '1000M'],
    ['a', '20M'],
  ]) {
    assert.deepEqual(await powerOnImage(image, share), { status: 0, errors: '' });
  }
  assert.deepEqual(readdirSync(path.join(folder, 'cards')), ['device0']);
  const source = openStoreFile(path.join(folder, 'cards', 'device0'));
  try {
    const partitions = decodePartitionTable(source.read(0, 4)) ?? [];
    assert.deepEqual(
      partitions.map(({ imageName, blocks }) => [imageName, (blocks - 16) / 256]),
      [
        ['a', 20],
        ['b', 1000],
      ],
    );
    const { superblock } = new StoreLog(partitionOf(source, 'a'));
    assert.deepEqual([superblock.imageName, superblock.segments, superblock.powerOns], ['a', 20, 2]);
  } finally {
    source.close();
  }
});

test('a share that cannot be is refused, with the value, the limits and the way out', async () => {
  const { errors: changed } = await powerOnImage('a', '30M');
  assert.match(changed, /"a" has 20M of the local store \S+device0, and keeps that: say --local-share 20M, not 30M/);
  const { errors: full } = await powerOnImage('c', '16M');
  assert.match(full, /"c" cannot have 16M .*"a" 20M, "b" 1000M are taken .*there is no place.*--local-stores/s);
  const other = ['--local-stores', path.join(folder, 'other'), '--store', store];
  assert.equal((await powerOn(['--image', 'a', '--local-share', '900M', ...other])).status, 0);
  const { errors: large, status } = await powerOn(['--image', 'b', '--local-share', '200M', ...other]);
  assert.match(large, /"b" cannot have 200M .*"a" 900M are taken .*123M are left\. Ask for less, at least 16M/s);
  assert.equal(status, 1);
  for (const share of ['15M', '1024M', '16385K']) {
    const { errors } = await powerOnImage('c', share);
    assert.match(errors, new RegExp(`--local-share must be from 16M to 1023M and a multiple of 1M, not ${share}`));
  }
  const { errors: notKept } = await powerOn(['--server', 'unix:/nowhere', '--local-share', '16M']);
  assert.match(notKept, /--local-share with --server needs --local-stores/);
});
