// Who is refused, or sent elsewhere: second writers, too many connections, certificates whose time is over, clocks that go backwards.

import assert from 'node:assert/strict';
import { execFile, execFileSync } from 'node:child_process';
import { once } from 'node:events';
import fs from 'node:fs';
import net from 'node:net';
import os from 'node:os';
import path from 'node:path';
import { after, before, test } from 'node:test';
import { promisify } from 'node:util';
import { ByteRates } from '../../host/server/byte-rate.js';
import { parseConfig } from '../../host/server/config.js';
import { ExportError } from '../../host/server/export.js';
import * as nbd from '../../host/server/nbd-protocol.js';
import { RateLimit } from '../../host/server/rate.js';
import { SecondWriters } from '../../host/server/second-writer.js';
import { ImageServer } from '../../host/server/server.js';
import { adminOperations } from '../../host/store/admin.js';
import { parseRetention } from '../../host/store/retention.js';
import { Store } from '../../host/store/store.js';
import { BLOCK, blockOf } from '../store/model.js';
import { needs } from './needs.js';
import { PlainClient } from './plain-client.js';

const run = promisify(execFile);
const MIB = 1024 * 1024;
const client = (identity: string) => ({ identity, address: identity, tls: false });

let folder = '';
let store: Store;
let nowMs = Date.now();
const logs: string[] = [];

before(async () => {
  folder = fs.mkdtempSync(path.join(os.tmpdir(), 'ribbon-refusals-'));
  store = await Store.open(path.join(folder, 'store'), {
    digestDelayMs: 10,
    coalesceMs: 0,
    nowMs: () => nowMs,
    log: (level, message) => logs.push(`${level} ${message}`),
  });
});

after(async () => {
  await store.close();
  fs.rmSync(folder, { recursive: true, force: true });
});

async function valueAt(name: string, block: number): Promise<number> {
  const opened = await store.open(name, client('reader'));
  const target = Buffer.alloc(4);
  await opened.read(block * BLOCK, target);
  await opened.close(true);
  return target.readUInt32LE();
}

test('the second writer goes on in a branch, by setting; nothing of either is lost', async () => {
  await store.images.create('disk', 8 * MIB);
  const exports = new SecondWriters(store);
  const first = await exports.open('disk', client('first'));
  const second = await exports.open('disk', client('second writer!'));
  const third = await exports.open('disk', client('third'));
  await first.write(0, blockOf(1));
  // Several requests at once, as a client with many in flight sends them.
  await Promise.all([second.write(0, blockOf(2)), second.write(BLOCK, blockOf(22)), second.zero(2 * BLOCK, BLOCK)]);
  const target = Buffer.alloc(BLOCK);
  await second.read(BLOCK, target);
  assert.deepEqual(target, blockOf(22), 'it reads what it has written');
  await first.commit();
  // The image has changed under the third, which has not written yet.
  await third.zero(3 * BLOCK, BLOCK);
  await third.write(BLOCK + 7, Buffer.from('part of a block'));
  for (const opened of [first, second, third]) await opened.close(true);
  assert.deepEqual(
    store.info().map((it) => [it.name, it.generation]),
    [
      ['disk', 2],
      ['disk/second_writer_-1', 2],
      ['disk/third-1', 2],
    ],
  );
  assert.deepEqual([await valueAt('disk', 0), await valueAt('disk', 1)], [blockOf(1).readUInt32LE(), 0]);
  assert.deepEqual(
    [await valueAt('disk/second_writer_-1', 0), await valueAt('disk/second_writer_-1', 1)],
    [blockOf(2).readUInt32LE(), blockOf(22).readUInt32LE()],
  );
  assert.equal((await adminOperations(store, 'x').mergeBase('disk', 'disk/third-1'))?.generation, 1);
  assert.ok(
    logs.some((it) =>
      /being written by first .*second writer! .*goes on in the branch disk\/second_writer_-1/.test(it),
    ),
  );
  // Who had written before and was overtaken is refused as ever: its epoch is not that of a branch.
  const again = await exports.open('disk', client('second writer!'));
  const other = await exports.open('disk', client('first'));
  await again.write(0, blockOf(5));
  await again.commit();
  await other.commit();
  await other.write(0, blockOf(6));
  await other.commit();
  assert.throws(() => again.write(0, blockOf(7)), ExportError);
  await again.close(false);
  await other.close(true);
  const broken = await exports.open('disk', client('broken'));
  const busy = await exports.open('disk', client('busy'));
  await busy.write(0, blockOf(8));
  await broken.write(0, blockOf(9));
  await broken.close(false);
  await busy.close(true);
  assert.equal(store.generation('disk/broken-4'), 4, 'what broke off is discarded in a branch too');
  const { writesTogether } = parseConfig(
    '{"identities":{"a":{"rights":{},"multiConnection":true},"b":{"rights":{}}}}',
    folder,
    'c',
  );
  assert.deepEqual(
    ['a', 'b', 'c'].map((identity) => writesTogether({ identity, address: 'x', tls: true })),
    [true, false, false],
  );
  assert.equal(
    writesTogether({ identity: 'a', address: 'x', tls: false }),
    false,
    'a name counts only when it is proved',
  );
  assert.throws(
    () => parseConfig('{"identities":{"a":{"rights":{},"multiConnection":1}}}', folder, 'c'),
    /is not true or false/,
  );
  assert.throws(() => parseConfig('{"secondWriter":"fork"}', folder, 'c'), /secondWriter is "refuse" or "branch"/);
  assert.equal(parseConfig('{"secondWriter":"branch"}', folder, 'c').branchSecondWriter, true);
});

test("a rate limit lets one second's worth through, and then as many as time brings", () => {
  let now = 0;
  const limit = new RateLimit(5, () => now);
  const taken = (name: string, count: number) =>
    Array.from({ length: count }, () => limit.take(name)).filter(Boolean).length;
  assert.equal(taken('a', 20), 5);
  assert.equal(taken('b', 3), 3);
  now += 400;
  assert.equal(taken('a', 20), 2);
  now += 3_600_000;
  assert.equal(taken('a', 20), 5);
  for (let index = 0; index < 20_000; index++) limit.take(`address ${index}`);
  assert.equal(taken('b', 20), 5, 'forgotten, and not a leak');
});

test('bytes: a second of them at once, then as many as time brings, for each client apart', () => {
  let now = 0;
  const config = parseConfig(
    '{"limits":{"bytesPerSecond":10000},"identities":{"a":{"rights":{},"bytesPerSecond":5000},"b":{"rights":{}}}}',
    folder,
    'c',
  );
  const rates = new ByteRates(config.bytesPerSecondOf, () => now);
  const a = { identity: 'a', address: '1', tls: true };
  assert.equal(rates.spend(a, 5000), 0);
  assert.equal(rates.spend(a, 10_000), 2000, 'a debt of two seconds');
  assert.equal(rates.spend({ ...a, identity: 'b' }, 10_000), 0, 'others are not concerned');
  assert.equal(rates.spend({ ...a, tls: false }, 20_000), 1000, 'a name counts only when it is proved');
  now += 3000;
  assert.equal(rates.spend(a, 5000), 0, 'paid');
  now += 3_600_000;
  assert.equal(rates.spend(a, 5001) > 0, true, 'nothing is saved up');
  assert.throws(
    () => parseConfig('{"limits":{"bytesPerSecond":1}}', folder, 'c'),
    /bytesPerSecond is a number from 4096/,
  );
  assert.equal(new ByteRates(() => null).spend(a, 1e12), 0);
});

test('a client that has moved more than it may is made to wait, and gets everything', async () => {
  const rates = new ByteRates(() => 2 * 1024 * 1024);
  const socket = path.join(folder, 'slow');
  const server = new ImageServer({ exports: store, listen: [{ kind: 'unix', path: socket }], byteRates: rates });
  await store.images.create('slow', 1024 * BLOCK);
  await server.listen();
  const plain = new PlainClient(socket);
  try {
    await plain.open('slow');
    const bytes = Buffer.concat(Array.from({ length: 512 }, (_, index) => blockOf(index + 1)));
    await plain.request(nbd.NBD_CMD_WRITE, 0, 512, bytes);
    assert.ok((await plain.request(nbd.NBD_CMD_READ, 0, 512)).equals(bytes));
    await plain.request(nbd.NBD_CMD_FLUSH, 0, 0);
    assert.ok(rates.statistics.waits > 0);
  } finally {
    plain.end();
    await server.close();
  }
});

test('connections: too many at once, and too many a second', async () => {
  const server = new ImageServer({
    exports: store,
    listen: [{ kind: 'tcp', host: '127.0.0.1', port: 0 }],
    connectionsPerClientMax: 3,
    connectionsPerSecond: 10,
    log: (level, message) => logs.push(`${level} ${message}`),
  });
  await server.listen();
  const { port } = server.addresses[0] as { port: number };
  const sockets: net.Socket[] = [];
  /** Did it get the server's greeting? */
  const connect = async () => {
    const socket = net.connect(port, '127.0.0.1');
    sockets.push(socket);
    socket.on('error', () => {});
    return Promise.race([once(socket, 'data').then(() => true), once(socket, 'close').then(() => false)]);
  };
  try {
    const answers: boolean[] = [];
    for (let index = 0; index < 30; index++) answers.push(await connect());
    assert.deepEqual(
      [answers.slice(0, 3), answers.slice(3, 6)],
      [
        [true, true, true],
        [false, false, false],
      ],
    );
    assert.ok(logs.some((it) => /127\.0\.0\.1 has 3 open/.test(it)));
    assert.ok(logs.some((it) => /127\.0\.0\.1 connects more than 10 times a second/.test(it)));
  } finally {
    for (const socket of sockets) socket.destroy();
    await server.close();
  }
});

test(
  'NBD over TLS: a certificate whose time is over, or has not come, is none',
  needs('nbdinfo', 'openssl'),
  async () => {
    const script = `
    ec="-newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes"
    openssl req -x509 $ec -keyout ca.key -out ca-cert.pem -subj /CN=authority -days 2
    printf 'subjectAltName=DNS:localhost' > san
    openssl req $ec -keyout server-key.pem -out r.csr -subj /CN=localhost
    openssl x509 -req -in r.csr -CA ca-cert.pem -CAkey ca.key -CAcreateserial -days 2 -out server-cert.pem -extfile san
    openssl req $ec -keyout client-key.pem -out r.csr -subj /CN=card
    for it in good:2 expired:-1; do
      mkdir \${it%%:*}
      cp ca-cert.pem client-key.pem \${it%%:*}
      openssl x509 -req -in r.csr -CA ca-cert.pem -CAkey ca.key -CAcreateserial -days \${it#*:} -out \${it%%:*}/client-cert.pem
    done`;
    execFileSync('sh', ['-ec', script], { cwd: folder, stdio: 'ignore' });
    const tls = { certificate: 'server-cert.pem', key: 'server-key.pem', ca: 'ca-cert.pem' };
    const config = parseConfig(JSON.stringify({ identities: { card: { rights: { '*': 'read' } } }, tls }), folder, 'c');
    const server = new ImageServer({
      exports: store,
      listen: [{ kind: 'tcp', host: '127.0.0.1', port: 0 }],
      tls: config.tls,
      log: (level, message) => logs.push(`${level} ${message}`),
    });
    await server.listen();
    try {
      const { port } = server.addresses[0] as { port: number };
      const size = (which: string) =>
        run('nbdinfo', ['--size', `nbds://localhost:${port}/disk?tls-certificates=${path.join(folder, which)}`]);
      assert.equal((await size('good')).stdout.trim(), String(8 * MIB));
      await assert.rejects(size('expired'));
      assert.ok(
        logs.some((it) => /CERT_HAS_EXPIRED|certificate has expired/.test(it)),
        logs.filter((it) => /TLS/.test(it)).join('\n'),
      );
    } finally {
      await server.close();
    }
  },
);

test('a clock that is set back: the order of generations and the retention hold', async () => {
  await store.images.create('clock', MIB);
  const commit = async (value: number) => {
    const opened = await store.open('clock', client('card'));
    await opened.write(0, blockOf(value));
    await opened.close(true);
    await store.digestAll();
  };
  await commit(1);
  nowMs -= 10 * 365 * 86_400_000;
  await commit(2);
  await adminOperations(store, 'x').rollback('clock@1');
  await commit(3);
  const times = store.generations('clock').map((it) => it.timeMs);
  assert.deepEqual(
    times,
    [...times].sort((a, b) => a - b),
  );
  assert.deepEqual(
    store.generations('clock').map((it) => it.generation),
    [1, 2, 3, 4, 5],
  );
  // All are in the future of this clock: none is too old.
  assert.equal(await store.images.applyRetention(parseRetention('all:1d')), 0);
  nowMs += 10 * 365 * 86_400_000;
  assert.equal(await valueAt('clock', 0), blockOf(3).readUInt32LE());
});
