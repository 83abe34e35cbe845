// NBD inside TLS: the firmware asks for it before anything else, the runtime has the keys.

import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import { randomBytes } from 'node:crypto';
import fs from 'node:fs';
import path from 'node:path';
import { after, test } from 'node:test';
import type { NetworkPath } from '../../host/card/network.js';
import { NbdError, RequestState } from '../../host/fuzz/nbd-client.js';
import { testImage } from './bench.js';
import { hasCommand, RealClient, RealServer } from './real.js';

const IMAGE = testImage(1 << 20);
const DONE = { state: RequestState.DONE, errno: 0 };
const skip = !hasCommand('nbdkit');
const PSK = ['--tls=require', '--tls-psk=FOLDER/keys'];

const cleanUp: (() => unknown)[] = [];
after(async () => {
  for (const clean of cleanUp.reverse()) await clean();
});

interface Session {
  server: RealServer;
  key: Buffer;
}

/** nbdkit with the test image and a key for `card`. */
async function tlsServer(args: string[]): Promise<Session> {
  const server = new RealServer();
  cleanUp.push(() => server.remove());
  const key = randomBytes(32);
  fs.writeFileSync(path.join(server.folder, 'image'), IMAGE);
  fs.writeFileSync(path.join(server.folder, 'keys'), `card:${key.toString('hex')}\n`, { mode: 0o600 });
  await server.start('nbdkit', ['-f', '--exit-with-parent', '-U', 'SOCKET', ...args, 'file', 'FOLDER/image']);
  return { server, key };
}

function client(server: RealServer, tls: NetworkPath['tls'], wanted = true): RealClient {
  const real = new RealClient({ address: { path: server.socket }, ...(tls && { tls }) }, { tls: wanted });
  cleanUp.push(() => real.stop());
  return real;
}

/** Moves data through TLS, in requests larger than a record. */
async function exercise(real: RealClient): Promise<void> {
  await real.up();
  for (let offset = 0; offset < IMAGE.length; offset += 131_072) {
    assert.deepEqual(await real.read(offset, 131_072), DONE);
    assert.ok(real.bytes(131_072).equals(IMAGE.subarray(offset, offset + 131_072)), `at ${offset}`);
  }
  const data = randomBytes(131_072);
  assert.deepEqual(await real.write(4096, data, 100), DONE);
  assert.deepEqual(await real.flush(), DONE);
  assert.deepEqual(await real.read(4096, 131_072), DONE);
  assert.ok(real.bytes(131_072).equals(data));
  assert.equal(real.client.statistics.protocolErrors, 0);
}

test('a pre-shared key', { skip }, async () => {
  const { server, key } = await tlsServer(PSK);
  await exercise(client(server, { identity: 'card', key }));
});

test('a wrong key is refused, and is not asked about all the time', { skip }, async () => {
  const { server } = await tlsServer(PSK);
  const real = client(server, { identity: 'card', key: randomBytes(32) });
  await real.until('refused', () => real.client.statistics.linkState === 'refused');
  assert.equal(real.client.statistics.linkError, NbdError.TLS_FAILED);
  assert.ok(real.client.timeoutMs() >= 9000);
});

test('a key is needed but the runtime has none', { skip }, async () => {
  const { server } = await tlsServer(PSK);
  const real = client(server, undefined);
  await real.until('refused', () => real.client.statistics.linkState === 'refused');
  assert.equal(real.client.statistics.linkError, NbdError.TLS_FAILED);
});

test('the server requires TLS, the settings do not have it', { skip }, async () => {
  const { server, key } = await tlsServer(PSK);
  const real = client(server, { identity: 'card', key }, false);
  await real.until('refused', () => real.client.statistics.linkState === 'refused');
  assert.equal(real.client.statistics.linkError, NbdError.TLS_REQUIRED);
});

test('the settings require TLS, the server does not have it: nothing is asked in the clear', { skip }, async () => {
  const { server, key } = await tlsServer(['--tls=off']);
  const real = client(server, { identity: 'card', key });
  await real.until('refused', () => real.client.statistics.linkState === 'refused');
  assert.equal(real.client.statistics.linkError, NbdError.TLS_UNAVAILABLE);
  // Greeting and the refusal of one option; our flags, STARTTLS and ABORT.
  assert.equal(real.client.statistics.bytesToServer, 4 + 16 + 16);
});

test('certificates on both sides', { skip: skip || !hasOpenssl() }, async () => {
  const server = new RealServer();
  cleanUp.push(() => server.remove());
  const pki = makeCertificates(server.folder);
  fs.writeFileSync(path.join(server.folder, 'image'), IMAGE);
  const tls = ['--tls=require', '--tls-certificates=FOLDER', '--tls-verify-peer'];
  await server.start('nbdkit', ['-f', '--exit-with-parent', '-U', 'SOCKET', ...tls, 'file', 'FOLDER/image']);
  await exercise(client(server, { ...pki, serverName: 'localhost' }));
  const stranger = client(server, { ...pki, serverName: 'elsewhere' });
  await stranger.until('refused', () => stranger.client.statistics.linkState === 'refused');
  assert.equal(stranger.client.statistics.linkError, NbdError.TLS_FAILED);
});

function hasOpenssl(): boolean {
  try {
    execFileSync('openssl', ['version'], { stdio: 'ignore' });
    return true;
  } catch {
    return false;
  }
}

/** A CA, and a server's and a card's certificate by it, under the names that nbdkit looks for. */
function makeCertificates(folder: string): { ca: string; cert: string; key: string } {
  const openssl = (...args: string[]): void => {
    execFileSync('openssl', args, { cwd: folder, stdio: 'ignore' });
  };
  const ec = ['-newkey', 'ec', '-pkeyopt', 'ec_paramgen_curve:P-256', '-nodes', '-days', '2'];
  openssl('req', '-x509', ...ec, '-subj', '/CN=test CA', '-keyout', 'ca-key.pem', '-out', 'ca-cert.pem');
  for (const [name, subject] of [
    ['server', 'localhost'],
    ['client', 'card'],
  ]) {
    const [key, cert] = [`${name}-key.pem`, `${name}-cert.pem`];
    const by = ['-CA', 'ca-cert.pem', '-CAkey', 'ca-key.pem'];
    const san = ['-addext', `subjectAltName=DNS:${subject}`];
    openssl('req', '-x509', ...ec, ...by, ...san, '-subj', `/CN=${subject}`, '-keyout', key, '-out', cert);
  }
  const read = (name: string): string => fs.readFileSync(path.join(folder, name), 'utf8');
  return { ca: read('ca-cert.pem'), cert: read('client-cert.pem'), key: read('client-key.pem') };
}
