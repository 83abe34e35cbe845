// The image server under the clients that everybody has: libnbd's tools, QEMU's, fio. Each test skips where its tool is not installed.

import assert from 'node:assert/strict';
import { execFile, execFileSync } from 'node:child_process';
import crypto from 'node:crypto';
import fs from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import { after, before, test } from 'node:test';
import { promisify } from 'node:util';
import { parseConfig } from '../../host/server/config.js';
import { ImageServer } from '../../host/server/server.js';
import { Store } from '../../host/store/store.js';

const run = promisify(execFile);
const MIB = 1024 * 1024;
const SIZE = 24 * MIB + 512;

let folder = '';
let store: Store;
let server: ImageServer;
let raw = '';
const logs: string[] = [];

const has = (tool: string): boolean => {
  try {
    execFileSync('sh', ['-c', `command -v ${tool}`], { stdio: 'ignore' });
    return true;
  } catch {
    return false;
  }
};
const needs = (...tools: string[]) => {
  const missing = tools.filter((tool) => !has(tool));
  return missing.length === 0 ? {} : { skip: `not installed: ${missing.join(', ')}` };
};

before(async () => {
  folder = fs.mkdtempSync(path.join(os.tmpdir(), 'ribbon-stock-'));
  raw = path.join(folder, 'raw.img');
  const bytes = Buffer.alloc(SIZE);
  crypto.randomFillSync(bytes, 0, 3 * MIB);
  bytes.fill('compressible ', 8 * MIB, 12 * MIB);
  crypto.randomFillSync(bytes, SIZE - 700);
  fs.writeFileSync(raw, bytes);
  store = await Store.open(path.join(folder, 'store'), { digestDelayMs: 10 });
  await store.images.importRaw('disk', raw);
  await store.images.create('empty', SIZE);
  server = new ImageServer({
    exports: store,
    listen: [
      { kind: 'unix', path: path.join(folder, 's') },
      { kind: 'tcp', host: '127.0.0.1', port: 0 },
    ],
    log: (level, message) => logs.push(`${level} ${message}`),
  });
  await server.listen();
});

after(async () => {
  await server.close();
  await store.close();
  fs.rmSync(folder, { recursive: true, force: true });
});

async function rawOf(name: string, at: number | null = null): Promise<Buffer> {
  const file = path.join(folder, 'out.img');
  await store.images.exportRaw(name, at, file);
  return fs.readFileSync(file);
}

test('nbdinfo lists, describes and maps', needs('nbdinfo'), async () => {
  const { stdout } = await run('nbdinfo', ['--json', '--list', server.uri('')]);
  const { exports } = JSON.parse(stdout) as { exports: Record<string, unknown>[] };
  assert.deepEqual(
    exports.map((it) => [
      it['export-name'],
      it['export-size'],
      it.can_flush,
      it.can_fua,
      it.can_trim,
      it.can_zero,
      it.is_read_only,
    ]),
    ['disk', 'empty'].map((name) => [name, SIZE, true, true, true, true, false]),
  );
  assert.deepEqual(exports[0].block_size_preferred, 4096);
  const map = JSON.parse((await run('nbdinfo', ['--json', '--map', server.uri('disk')])).stdout) as {
    offset: number;
    length: number;
    type: number;
  }[];
  assert.deepEqual(
    map.map(({ offset, length, type }) => [offset, length, type]),
    [
      [0, 3 * MIB, 0],
      [3 * MIB, 5 * MIB, 3],
      [8 * MIB, 4 * MIB, 0],
      [12 * MIB, 12 * MIB - 4096, 3],
      [24 * MIB - 4096, 4096 + 512, 0],
    ],
  );
});

test('nbdcopy out and in, one connection and several', needs('nbdcopy'), async () => {
  const out = path.join(folder, 'copy.img');
  for (const connections of ['1', '4']) {
    await run('nbdcopy', [`--connections=${connections}`, server.uri('disk'), out]);
    assert.ok(fs.readFileSync(out).equals(fs.readFileSync(raw)), `${connections} connections`);
    fs.rmSync(out);
  }
  await run('nbdcopy', [raw, server.uri('empty')]);
  assert.ok((await rawOf('empty')).equals(fs.readFileSync(raw)));
});

test('the two images are the same blocks, stored once', needs('nbdcopy'), async () => {
  await store.digestAll();
  const blocks = store.builder.statistics;
  assert.ok(blocks.newBytes < 4.5 * MIB, `${blocks.newBytes} bytes are stored`);
});

test('qemu-img compares, converts and maps', needs('qemu-img'), async () => {
  await run('qemu-img', ['compare', '-f', 'raw', '-F', 'raw', raw, server.uri('disk')]);
  const out = path.join(folder, 'disk.qcow2');
  await run('qemu-img', ['convert', '-f', 'raw', '-O', 'qcow2', server.uri('disk'), out]);
  await run('qemu-img', ['compare', '-f', 'qcow2', '-F', 'raw', out, server.uri('disk')]);
  await store.images.create('converted', SIZE);
  await run('qemu-img', ['convert', '-n', '-f', 'qcow2', '-O', 'raw', out, server.uri('converted')]);
  assert.ok((await rawOf('converted')).subarray(0, SIZE).equals(fs.readFileSync(raw)));
  const map = JSON.parse((await run('qemu-img', ['map', '--output=json', '-f', 'raw', server.uri('disk')])).stdout) as {
    zero: boolean;
    length: number;
  }[];
  assert.equal(
    map.filter((it) => !it.zero).reduce((sum, it) => sum + it.length, 0),
    3 * MIB + 4 * MIB + 4096 + 512,
  );
});

test('qemu-io: odd offsets, zeroes, discard, FUA; a killed client commits nothing', needs('qemu-io'), async () => {
  await store.images.create('io', SIZE);
  const io = (...commands: string[]) =>
    run('qemu-io', ['-t', 'writeback', '-f', 'raw', ...commands.flatMap((it) => ['-c', it]), server.uri('io')]);
  await io('write -P 5 1000 5000', 'write -P 6 3000 10', 'write -z 100000 70000', 'read -P 6 3000 10', 'flush');
  const first = store.generation('io');
  assert.equal(first, 2);
  await io('write -P 7 20000 100000', 'discard 40960 40960', 'write -f -P 8 0 512', 'read -P 0 40960 40960');
  assert.ok(store.generation('io') > first);
  const expected = Buffer.alloc(SIZE);
  expected.fill(5, 1000, 6000).fill(6, 3000, 3010).fill(7, 20_000, 120_000).fill(0, 40_960, 81_920).fill(8, 0, 512);
  assert.ok((await rawOf('io')).equals(expected));
  const generation = store.generation('io');
  await assert.rejects(io('write -P 9 0 4096', 'sigraise 9'));
  while (store.infoOf('io').writer !== null) await new Promise((resolve) => setTimeout(resolve, 10));
  assert.equal(store.generation('io'), generation);
  assert.ok((await rawOf('io')).equals(expected));
});

test('nbdinfo --map=x-ribbon:changed-since=N', needs('nbdinfo', 'qemu-io'), async () => {
  await store.images.create('since', 8 * MIB);
  const io = (command: string) => run('qemu-io', ['-f', 'raw', '-c', command, server.uri('since')]);
  await io('write -P 1 1M 64k');
  await io('write -P 2 1088k 4k');
  await store.digestAll();
  const changed = async (since: number) => {
    const { stdout } = await run('nbdinfo', ['--json', `--map=x-ribbon:changed-since=${since}`, server.uri('since')]);
    return (JSON.parse(stdout) as { offset: number; length: number; type: number }[])
      .filter((it) => it.type === 1)
      .map((it) => [it.offset, it.length]);
  };
  const generations = store.generations('since').map((it) => it.generation);
  assert.deepEqual(await changed(1), [[MIB, 17 * 4096]]);
  assert.deepEqual(await changed(generations.at(-1)!), []);
  await assert.rejects(changed(77));
});

test('fio verifies what it has written', needs('fio'), async () => {
  await store.images.create('fio', 32 * MIB);
  await run('fio', [
    ...[
      '--name=v',
      '--ioengine=nbd',
      `--uri=${server.uri('fio')}`,
      '--size=32m',
      '--rw=randrw',
      '--bsrange=512-128k',
      '--bs_unaligned',
    ],
    ...[
      '--iodepth=16',
      '--fsync=50',
      '--verify=crc32c',
      '--verify_state_save=0',
      '--verify_fatal=1',
      '--do_verify=1',
      '--io_size=48m',
    ],
  ]);
});

test('an old generation is a read-only export', needs('nbdinfo', 'nbdcopy'), async () => {
  const { stdout } = await run('nbdinfo', ['--json', server.uri('disk@1')]);
  assert.equal(JSON.parse(stdout).exports[0].is_read_only, true);
  assert.equal(JSON.parse(stdout).exports[0].can_multi_conn, true);
  await assert.rejects(run('nbdcopy', [raw, server.uri('disk@1')]));
});

test(
  'TLS with a key and with a certificate; everybody else is refused',
  needs('nbdinfo', 'nbdcopy', 'openssl'),
  async () => {
    const key = crypto.randomBytes(32).toString('hex');
    fs.writeFileSync(path.join(folder, 'keys.psk'), `card:${key}\nother:${'00'.repeat(32)}\n`);
    certificates(folder);
    const config = parseConfig(
      JSON.stringify({
        identities: { card: { psk: key, rights: { tls: 'write' } }, admin: { rights: { '*': 'read' } } },
        tls: { certificate: 'server-cert.pem', key: 'server-key.pem', ca: 'ca-cert.pem' },
      }),
      folder,
      'test',
    );
    const tlsFolder = path.join(folder, 'tls-store');
    const tlsStore = await Store.open(tlsFolder, { access: config.access });
    const tlsLogs: string[] = [];
    const tlsServer = new ImageServer({
      exports: tlsStore,
      listen: [{ kind: 'tcp', host: '127.0.0.1', port: 0 }],
      tls: config.tls,
      log: (level, message) => tlsLogs.push(`${level} ${message}`),
    });
    await tlsServer.listen();
    try {
      await tlsStore.images.create('tls', SIZE);
      await tlsStore.images.create('secret', SIZE);
      const { port } = tlsServer.addresses[0] as { port: number };
      const psk = (user: string, name: string) =>
        `nbds://${user}@127.0.0.1:${port}/${name}?tls-psk-file=${folder}/keys.psk`;
      const x509 = (name: string, from = folder) => `nbds://localhost:${port}/${name}?tls-certificates=${from}`;
      await run('nbdcopy', [raw, psk('card', 'tls')]);
      const out = path.join(folder, 'tls.img');
      await run('nbdcopy', [x509('tls'), out]);
      assert.ok(fs.readFileSync(out).equals(fs.readFileSync(raw)));
      assert.equal(tlsStore.generations('tls').at(-1)?.who ?? 'card', 'card');
      const listed = JSON.parse((await run('nbdinfo', ['--json', '--list', psk('card', '')])).stdout);
      assert.deepEqual(
        listed.exports.map((it: Record<string, string>) => it['export-name']),
        ['tls'],
        'a card sees its own images only',
      );
      await assert.rejects(run('nbdinfo', ['--size', psk('card', 'secret')]));
      await assert.rejects(run('nbdcopy', [raw, x509('tls')]), 'the certificate may read only');
      await assert.rejects(run('nbdinfo', ['--size', psk('other', 'tls')]), 'a wrong key');
      await assert.rejects(run('nbdinfo', ['--size', `nbd://127.0.0.1:${port}/tls`]), 'no TLS');
      const foreign = path.join(folder, 'foreign');
      fs.mkdirSync(foreign);
      certificates(foreign);
      fs.copyFileSync(path.join(folder, 'ca-cert.pem'), path.join(foreign, 'ca-cert.pem'));
      await assert.rejects(run('nbdinfo', ['--size', x509('tls', foreign)]), "another authority's certificate");
      // A name that is known, with a cipher suite that its key cannot serve: OpenSSL goes on without the key.
      const before = tlsLogs.length;
      await run(process.execPath, ['-e', NAME_WITHOUT_KEY, String(port)]).catch(() => {});
      for (let wait = 0; tlsLogs.length === before && wait < 100; wait++)
        await new Promise((resolve) => setTimeout(resolve, 20));
      assert.match(tlsLogs.slice(before).join('\n'), /TLS: /, 'a name without its key');
      assert.ok(
        tlsLogs.some((it) => /TLS/.test(it)),
        'refusals are in the log',
      );
      assert.ok(!tlsLogs.some((it) => it.startsWith('error')), tlsLogs.join('\n'));
    } finally {
      await tlsServer.close();
      await tlsStore.close();
    }
  },
);

test('nothing went wrong in the log', () => {
  assert.deepEqual(
    logs.filter((it) => it.startsWith('error')),
    [],
  );
});

/** An authority, a certificate for localhost, and one for "admin", as libnbd names the files. */
function certificates(target: string): void {
  const script = `
    ec="-newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes"
    openssl req -x509 $ec -keyout ca.key -out ca-cert.pem -subj /CN=authority -days 2
    printf 'subjectAltName=DNS:localhost' > san
    for it in server:localhost client:admin; do
      name=\${it%%:*}
      openssl req $ec -keyout $name-key.pem -out $name.csr -subj /CN=\${it#*:}
      openssl x509 -req -in $name.csr -CA ca-cert.pem -CAkey ca.key -CAcreateserial -days 2 -out $name-cert.pem -extfile san
    done`;
  execFileSync('sh', ['-ec', script], { cwd: target, stdio: 'ignore' });
}

/** A client in a process of its own: it offers the name "card" with a wrong key and a suite that does not go with keys. */
const NAME_WITHOUT_KEY = `
  const net = require('net'), tls = require('tls');
  const socket = net.connect(Number(process.argv[1]), '127.0.0.1');
  let seen = 0;
  socket.on('data', function data(bytes) {
    seen += bytes.length;
    if (seen === 18) socket.write(Buffer.from('0000000349484156454f50540000000500000000', 'hex'));
    if (seen !== 38) return;
    socket.removeListener('data', data);
    const inner = tls.connect({ socket, rejectUnauthorized: false, minVersion: 'TLSv1.3',
      ciphers: 'TLS_AES_256_GCM_SHA384:PSK-AES128-GCM-SHA256', pskCallback: () => ({ identity: 'card', psk: Buffer.alloc(32, 1) }) });
    inner.on('error', () => process.exit(1));
    inner.on('close', () => process.exit(1));
    inner.on('secureConnect', () => setTimeout(() => process.exit(0), 500));
  });`;
