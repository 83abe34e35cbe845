// `ribbon serve` on a bucket: killed with kill -9 at every step of a commit, on the disk that it had and on an empty one; two servers,
// of which one is killed; what a wrong configuration says. Ceph's gateway is the object store.

import assert from 'node:assert/strict';
import { type ChildProcess, execFile, spawn } from 'node:child_process';
import fs from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import { after, before, test } from 'node:test';
import { fileURLToPath } from 'node:url';
import { promisify } from 'node:util';
import { CEPH_TOOLS, Ceph } from '../../host/bench/ceph.js';
import * as nbd from '../../host/server/nbd-protocol.js';
import type { BucketSettings } from '../../host/store/bucket/s3.js';
import { BadNetwork } from '../store/bad-network.js';
import { BLOCK, blockOf } from '../store/model.js';
import { needs } from './needs.js';
import { PlainClient } from './plain-client.js';

const MAIN = fileURLToPath(new URL('../../host/main.js', import.meta.url));
const BLOCKS = 64;
const NEEDS = needs(...CEPH_TOOLS);
const run = promisify(execFile);
const folder = fs.mkdtempSync(path.join(os.tmpdir(), 'ribbon-bucket-serve-'));
const servers = new Set<Server>();
let ceph: Ceph;
let network: BadNetwork | undefined;

before(async () => {
  if (NEEDS.skip === undefined) ceph = await Ceph.start();
});

after(async () => {
  for (const server of servers) server.process.kill('SIGKILL');
  await network?.close();
  await ceph?.stop();
  fs.rmSync(folder, { recursive: true, force: true });
});

interface Server {
  process: ChildProcess;
  exited: Promise<void>;
  store: string;
  socket: string;
  log: () => string;
}

let count = 0;

function configure(settings: BucketSettings, name: string, mode = 0o600): string {
  const keys = path.join(folder, `keys-${++count}.json`);
  const { accessKeyId, secretAccessKey, url, region } = settings;
  fs.writeFileSync(keys, JSON.stringify({ accessKeyId, secretAccessKey }), { mode });
  const config = path.join(folder, `config-${count}.json`);
  const bucket = { url, region, credentials: keys, name, takeoverSeconds: 2 };
  fs.writeFileSync(config, JSON.stringify({ anonymous: { '*': 'administer' }, bucket }));
  return config;
}

async function start(config: string, store: string): Promise<Server> {
  const socket = path.join(folder, `s${++count}`);
  const args = [MAIN, 'serve', '--store', store, '--listen', `unix:${socket}`, '--config', config];
  const child = spawn(process.execPath, args, { stdio: ['ignore', 'pipe', 'pipe'] });
  let log = '';
  child.stderr!.on('data', (text) => {
    log += text;
  });
  const exited = new Promise<void>((resolve) => child.once('exit', () => resolve()));
  const server = { process: child, exited, store, socket, log: () => log };
  servers.add(server);
  await new Promise<void>((resolve, reject) => {
    child.stdout!.once('data', () => resolve());
    exited.then(() => reject(new Error(`the server ended before it listened:\n${log}`)));
  });
  return server;
}

async function stop(server: Server, signal: NodeJS.Signals = 'SIGTERM'): Promise<void> {
  server.process.kill(signal);
  await server.exited;
  servers.delete(server);
}

async function connect(server: Server): Promise<PlainClient> {
  const client = new PlainClient(server.socket);
  await client.open('a');
  return client;
}

/** Writes the value everywhere and commits; throws when the server dies or refuses. */
async function commit(client: PlainClient, value: number): Promise<void> {
  await client.request(
    nbd.NBD_CMD_WRITE,
    0,
    BLOCKS,
    Buffer.concat(Array.from({ length: BLOCKS }, () => blockOf(value))),
  );
  await client.request(nbd.NBD_CMD_FLUSH, 0, 0);
}

/** What the image holds, which must be one value. */
async function content(server: Server): Promise<number> {
  const client = await connect(server);
  const bytes = await client.request(nbd.NBD_CMD_READ, 0, BLOCKS);
  client.end();
  const value = bytes.readUInt32LE(0);
  for (let block = 0; block < BLOCKS; block++)
    assert.ok(
      bytes.subarray(block * BLOCK, (block + 1) * BLOCK).equals(blockOf(value)),
      `block ${block} is of another epoch`,
    );
  return value;
}

/** Where a server is killed in the middle of a commit, and what is the image then. */
const KILLS: { at: RegExp; carriedOut: boolean; isThere: boolean }[] = [
  { at: /\/packs\/\d+$/, carriedOut: false, isThere: false },
  { at: /\/packs\/\d+$/, carriedOut: true, isThere: false },
  { at: /\/log\/\w+$/, carriedOut: false, isThere: false },
  { at: /\/log\/\w+$/, carriedOut: true, isThere: true },
];

test('a server that is killed at any step of a commit has committed it or not, and loses nothing', NEEDS, async () => {
  const settings = await ceph.newBucket();
  network = await BadNetwork.infrontOf(settings.url);
  const config = configure({ ...settings, url: network.url }, 'one');
  let server = await start(config, path.join(folder, 'killed-0'));
  await run(process.execPath, [MAIN, 'image', 'create', '--store', server.store, 'a', String(BLOCKS * BLOCK)]);
  let expected = 0;
  let value = 0;
  for (const [index, { at, carriedOut, isThere }] of KILLS.entries()) {
    const client = await connect(server);
    await commit(client, ++value);
    expected = value;
    let killed = false;
    network.fate = async (method, name) => {
      if (killed || method !== 'PUT' || !at.test(name)) return 'pass';
      killed = true;
      if (!carriedOut) await stop(server, 'SIGKILL');
      return carriedOut ? 'lose' : 'refuse';
    };
    const attempt = assert.rejects(commit(client, ++value), /connection lost/);
    if (carriedOut) {
      // Its answer is on the way, and does not arrive.
      while (!killed) await new Promise((resolve) => setTimeout(resolve, 1));
      await stop(server, 'SIGKILL');
    }
    await attempt;
    network.fate = () => 'pass';
    if (isThere) expected = value;
    // The disk that it had, or an empty one.
    server = await start(
      config,
      path.join(folder, index === KILLS.length - 1 ? `killed-${index + 1}` : path.basename(server.store)),
    );
    const found = await content(server);
    // A request that was refused just before the kill may have been sent again and carried out: only an answer decides.
    assert.ok(
      found === expected || (carriedOut && found === value),
      `after kill ${index}: ${found}, expected ${expected}`,
    );
    expected = found;
    await waitUntilFree(server);
  }
  await stop(server);
  const last = await start(config, path.join(folder, 'killed-last'));
  assert.equal(await content(last), value);
  const { stdout } = await run(process.execPath, [MAIN, 'image', 'verify', '--store', last.store]);
  assert.match(stdout, /: 0 damaged/);
  await stop(last);

  /** On an empty disk nobody knows that the one who wrote before is dead. */
  async function waitUntilFree(it: Server): Promise<void> {
    value += 1000;
    for (;;) {
      const client = await connect(it);
      try {
        await commit(client, value);
        client.end();
        return;
      } catch {
        client.end();
        await new Promise((resolve) => setTimeout(resolve, 100));
      }
    }
  }
});

test(
  'two servers on one bucket: when the one that writes is killed the other has every acknowledged commit, and takes over',
  NEEDS,
  async () => {
    const settings = await ceph.newBucket();
    const one = await start(configure(settings, 'one'), path.join(folder, 'one'));
    const two = await start(configure(settings, 'two'), path.join(folder, 'two'));
    await run(process.execPath, [MAIN, 'image', 'create', '--store', one.store, 'a', String(BLOCKS * BLOCK)]);
    const client = await connect(one);
    let acknowledged = 0;
    const timer = setTimeout(() => one.process.kill('SIGKILL'), 700);
    await assert.rejects(async () => {
      for (let value = 1; ; value++) {
        await commit(client, value);
        acknowledged = value;
      }
    }, /connection lost/);
    clearTimeout(timer);
    await stop(one, 'SIGKILL');
    assert.ok(acknowledged > 0);
    for (;;) {
      const other = await connect(two).catch(() => null);
      try {
        if (other !== null) {
          // What the other sees when it may write is what the image is.
          const bytes = await other.request(nbd.NBD_CMD_READ, 0, 1);
          await commit(other, 1_000_000);
          const before = bytes.readUInt32LE(0);
          assert.ok(before === acknowledged || before === acknowledged + 1, `${before} after ${acknowledged}`);
          break;
        }
      } catch (error) {
        assert.match(String(error), /answered with an error/);
      } finally {
        other?.end();
      }
      await new Promise((resolve) => setTimeout(resolve, 100));
    }
    assert.match(two.log(), /server 1 \(one\) has given no sign of life/);
    const again = await start(configure(settings, 'one'), one.store);
    assert.equal(await content(again), 1_000_000);
    await stop(again);
    await stop(two);
  },
);

test('a flush on one connection covers the others: the server is killed, an empty disk has it all', NEEDS, async () => {
  const config = configure(await ceph.newBucket(), 'several');
  let server = await start(config, path.join(folder, 'several-1'));
  await run(process.execPath, [MAIN, 'image', 'create', '--store', server.store, 'a', String(BLOCKS * BLOCK)]);
  for (let round = 1; round <= 3; round++) {
    const clients = [await connect(server), await connect(server), await connect(server)];
    // The first writes find out at once, each for itself, that the image is this server's.
    await Promise.all(
      clients.map((client, index) =>
        client.request(nbd.NBD_CMD_WRITE, 16 * index, 16, Buffer.concat(Array(16).fill(blockOf(round)))),
      ),
    );
    await clients[1].request(nbd.NBD_CMD_WRITE, 48, 16, Buffer.concat(Array(16).fill(blockOf(round))));
    await clients[2].request(nbd.NBD_CMD_FLUSH, 0, 0);
    await clients[0].request(nbd.NBD_CMD_WRITE, 0, 1, blockOf(999));
    await stop(server, 'SIGKILL');
    for (const client of clients) client.end();
    server = await start(config, path.join(folder, `several-${round % 2 === 0 ? 1 : round + 1}`));
    assert.equal(await content(server), round);
    await new Promise((resolve) => setTimeout(resolve, 2500));
  }
  await stop(server);
});

test('the keys to the bucket are in a file that only its owner reads, and nowhere else', NEEDS, async () => {
  const settings = { ...(await ceph.newBucket()), secretAccessKey: 'ein-falsches-geheimnis' };
  await assert.rejects(
    start(configure(settings, 'x', 0o644), path.join(folder, 'x')),
    /can be read by others than its owner: chmod 600/,
  );
  await assert.rejects(start(configure(settings, 'x'), path.join(folder, 'x')), (error: Error) => {
    assert.match(error.message, /cannot open the store in .*403 SignatureDoesNotMatch \(the credentials/);
    assert.doesNotMatch(error.message, /geheimnis/);
    return true;
  });
  const nobody = { ...settings, url: 'http://127.0.0.1:9/test' };
  await assert.rejects(
    start(configure(nobody, 'x'), path.join(folder, 'x')),
    /ECONNREFUSED \(the address, or the network\)/,
  );
  const inside = { ...settings, url: `http://ich:geheimnis@127.0.0.1:${ceph.port}/test` };
  await assert.rejects(
    start(configure(inside, 'x'), path.join(folder, 'x')),
    /url is http\(s\):\/\/HOST\[:PORT\]\/BUCKET/,
  );
});
