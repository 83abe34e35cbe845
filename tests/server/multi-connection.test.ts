// Writers with several connections, as users have them: stock clients that use what NBD_FLAG_CAN_MULTI_CONN allows, and a server that is
// killed right after one connection's flush.

import assert from 'node:assert/strict';
import { type ChildProcess, execFile, spawn } from 'node:child_process';
import crypto from 'node:crypto';
import fs from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import { after, before, test } from 'node:test';
import { fileURLToPath } from 'node:url';
import { promisify } from 'node:util';
import type { Client, ExportListing, Exports, OpenExport } from '../../host/server/export.js';
import * as nbd from '../../host/server/nbd-protocol.js';
import { ImageServer } from '../../host/server/server.js';
import { Store } from '../../host/store/store.js';
import { BLOCK, blockOf } from '../store/model.js';
import { needs } from './needs.js';
import { PlainClient } from './plain-client.js';

const MAIN = fileURLToPath(new URL('../../host/main.js', import.meta.url));
const MIB = 1024 * 1024;
// A thread of nbdcopy, with a connection of its own, takes 128 MiB at a time: there are four, with a little in each.
const SHARE = 128 * MIB;
const SIZE = 4 * SHARE;
const run = promisify(execFile);

let folder = '';
let store: Store;
let server: ImageServer;
let raw = '';
/** For each opening, the requests that it has written with. */
let writes: number[] = [];

/** The store, with every connection's writes counted. */
class Counting implements Exports {
  list(client: Client): ExportListing[] {
    return store.list(client);
  }

  async open(name: string, client: Client): Promise<OpenExport> {
    const opened = await store.open(name, client);
    const number = writes.push(0) - 1;
    const write = opened.write.bind(opened);
    opened.write = (offset, data) => {
      writes[number]++;
      return write(offset, data);
    };
    return opened;
  }
}

before(async () => {
  folder = fs.mkdtempSync(path.join(os.tmpdir(), 'ribbon-multi-'));
  raw = path.join(folder, 'raw.img');
  const file = fs.openSync(raw, 'w');
  fs.ftruncateSync(file, SIZE);
  for (let at = 0; at < SIZE; at += SHARE) fs.writeSync(file, crypto.randomBytes(10 * MIB), 0, 10 * MIB, at);
  fs.closeSync(file);
  store = await Store.open(path.join(folder, 'store'), { digestDelayMs: 10 });
  server = new ImageServer({ exports: new Counting(), listen: [{ kind: 'unix', path: path.join(folder, 's') }] });
  await server.listen();
});

after(async () => {
  await server.close();
  await store.close();
  fs.rmSync(folder, { recursive: true, force: true });
});

/** Fails unless the image is what was copied to it. */
async function checkCopy(name: string): Promise<void> {
  const file = path.join(folder, 'out.img');
  await store.images.exportRaw(name, null, file);
  await run('cmp', [file, raw]);
}

/** How many connections have written since the last call. */
function writingConnections(): number {
  const count = writes.filter((it) => it > 0).length;
  writes = [];
  return count;
}

for (const flush of [[], ['--flush']]) {
  test(
    `nbdcopy over four connections ${flush.join('')} makes one generation`,
    needs('nbdcopy', 'nbdinfo'),
    async () => {
      const name = `four${flush.length}`;
      await store.images.create(name, SIZE);
      const { stdout } = await run('nbdinfo', ['--json', server.uri(name)]);
      assert.equal(JSON.parse(stdout).exports[0].can_multi_conn, true);
      writingConnections();
      await run('nbdcopy', ['--threads=4', '--connections=4', '--requests=8', ...flush, raw, server.uri(name)]);
      assert.equal(writingConnections(), 4);
      assert.equal(store.generation(name), 2);
      await checkCopy(name);
    },
  );
}

test('nbdcopy from one image to another, several connections to each', needs('nbdcopy'), async () => {
  await store.images.create('copy', SIZE);
  writingConnections();
  await run('nbdcopy', ['--threads=4', server.uri('four0'), server.uri('copy')]);
  assert.ok(writingConnections() > 1);
  assert.equal(store.generation('copy'), 2);
  await checkCopy('copy');
});

test('qemu-img convert, out of order, and compare', needs('qemu-img'), async () => {
  await store.images.create('converted', SIZE);
  await run('qemu-img', ['convert', '-n', '-W', '-m', '8', '-f', 'raw', '-O', 'raw', raw, server.uri('converted')]);
  await run('qemu-img', ['compare', '-f', 'raw', '-F', 'raw', raw, server.uri('converted')]);
  await checkCopy('converted');
});

test(
  'a copy that is killed in the middle leaves nothing, and the image to the next one',
  needs('nbdcopy'),
  async () => {
    await store.images.create('killed', SIZE);
    writingConnections();
    const copy = spawn('nbdcopy', ['--threads=4', '--connections=4', '--requests=2', raw, server.uri('killed')], {
      stdio: 'ignore',
    });
    const exited = new Promise<void>((resolve) => copy.once('exit', () => resolve()));
    while (writes.filter((it) => it > 0).length < 2) await new Promise((resolve) => setImmediate(resolve));
    copy.kill('SIGKILL');
    await exited;
    while (server.connections.size > 0) await new Promise((resolve) => setTimeout(resolve, 5));
    assert.equal(store.infoOf('killed').writer, null);
    assert.equal(store.generation('killed'), 1);
    await run('nbdcopy', ['--threads=4', raw, server.uri('killed')]);
    await checkCopy('killed');
  },
);

async function startServer(folderOfStore: string, socket: string): Promise<ChildProcess> {
  const child = spawn(process.execPath, [MAIN, 'serve', '--store', folderOfStore, '--listen', `unix:${socket}`], {
    stdio: ['ignore', 'pipe', 'inherit'],
  });
  await new Promise<void>((resolve, reject) => {
    child.stdout!.once('data', () => resolve());
    child.once('exit', (code) => reject(new Error(`the server ended with ${code} before it listened`)));
  });
  return child;
}

test('kill -9 right after a flush on one connection: what was answered on the others is there', async () => {
  const killed = path.join(folder, 'killed');
  const socket = path.join(folder, 'k');
  await run(process.execPath, [MAIN, 'image', 'create', '--store', killed, 'a', String(64 * BLOCK)]);
  for (let round = 1; round <= 5; round++) {
    const child = await startServer(killed, socket);
    const exited = new Promise<void>((resolve) => child.once('exit', () => resolve()));
    const clients = [new PlainClient(socket), new PlainClient(socket), new PlainClient(socket)];
    for (const client of clients) await client.open('a');
    if (round > 1) {
      const bytes = await clients[0].request(nbd.NBD_CMD_READ, 0, 4);
      const values = [0, 1, 2, 3].map((block) => bytes.readUInt32LE(block * BLOCK));
      assert.deepEqual(values, [100 + round - 1, 200 + round - 1, round - 1, 0], `after kill ${round - 1}`);
    }
    await Promise.all([
      clients[1].request(nbd.NBD_CMD_WRITE, 0, 1, blockOf(100 + round)),
      clients[2].request(nbd.NBD_CMD_WRITE, 1, 1, blockOf(200 + round)),
    ]);
    await clients[0].request(nbd.NBD_CMD_WRITE, 2, 1, blockOf(round));
    await clients[0].request(nbd.NBD_CMD_FLUSH, 0, 0);
    // Not flushed: it must be gone.
    await clients[1].request(nbd.NBD_CMD_WRITE, 3, 1, blockOf(9));
    child.kill('SIGKILL');
    await exited;
    for (const client of clients) client.end();
  }
  const { stdout } = await run(process.execPath, [MAIN, 'image', 'verify', '--store', killed]);
  assert.match(stdout, /: 0 damaged/);
});
