// The HTTP interface: what it answers, whom, and what it makes of nonsense.

import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import crypto from 'node:crypto';
import fs from 'node:fs';
import https from 'node:https';
import net from 'node:net';
import os from 'node:os';
import path from 'node:path';
import { after, before, test } from 'node:test';
import { OPEN_CONFIG, parseConfig, type ServerConfig } from '../../host/server/config.js';
import { apiRoutes } from '../../host/server/http-api.js';
import { metricsRoute } from '../../host/server/http-metrics.js';
import { HttpServer } from '../../host/server/http-server.js';
import { ImageServer } from '../../host/server/server.js';
import { Store } from '../../host/store/store.js';
import { CLIENT } from '../store/model.js';
import { needs } from './needs.js';

const MIB = 1024 * 1024;
const TOKENS: Record<string, string> = { root: 'root-token', reader: 'reader-token', one: 'one-token' };
const hashed = (token: string) => `sha256:${crypto.createHash('sha256').update(token).digest('hex')}`;
const CONFIG = {
  identities: {
    root: { tokens: [hashed(TOKENS.root)], rights: { '*': 'administer' } },
    reader: { tokens: [hashed(TOKENS.reader)], rights: { '*': 'read' } },
    one: { tokens: [hashed(TOKENS.one)], rights: { one: 'administer' } },
  },
  limits: { requestsPerSecond: 500 },
};

let folder = '';
let store: Store;
let http: HttpServer;
const logs: string[] = [];

function serve(config: ServerConfig, configured = true): HttpServer {
  const server = new ImageServer({ exports: store, listen: [] });
  const routes = [...apiRoutes(store, config), metricsRoute({ store, server, http: () => made })];
  const made: HttpServer = new HttpServer({
    ...{ store, config, configured, routes },
    log: (level, message) => logs.push(`${level} ${message}`),
  });
  return made;
}

before(async () => {
  folder = fs.mkdtempSync(path.join(os.tmpdir(), 'ribbon-http-'));
  store = await Store.open(path.join(folder, 'store'), { digestDelayMs: 10 });
  http = serve(parseConfig(JSON.stringify(CONFIG), folder, 'test'));
  await http.listen({ kind: 'tcp', host: '127.0.0.1', port: 0 });
  await store.images.create('one', 3 * MIB + 5);
  await store.images.create('two', MIB);
});

after(async () => {
  await http.close();
  await store.close();
  fs.rmSync(folder, { recursive: true, force: true });
});

interface Answer {
  status: number;
  // biome-ignore lint/suspicious/noExplicitAny: whatever the server says
  json: any;
}

async function ask(who: string | null, method: string, where: string, body?: unknown): Promise<Answer> {
  const headers: Record<string, string> = who === null ? {} : { Authorization: `Bearer ${TOKENS[who] ?? who}` };
  if (body !== undefined) headers['Content-Type'] = 'application/json';
  const sent = body === undefined ? undefined : typeof body === 'string' ? body : JSON.stringify(body);
  const response = await fetch(`${http.url}${where}`, {
    method,
    headers,
    ...(sent === undefined ? {} : { body: sent }),
  });
  const text = await response.text();
  return { status: response.status, json: text === '' ? null : JSON.parse(text) };
}

async function write(name: string, block: number, value: number): Promise<void> {
  const opened = await store.open(name, CLIENT);
  await opened.write(block * 4096, Buffer.alloc(4096, value));
  await opened.close(true);
  await store.digestAll();
}

test('an administrator does everything that `ribbon image` does', async () => {
  assert.equal((await ask('root', 'POST', '/v1/images', { name: 'api', size: MIB })).status, 201);
  await write('api', 3, 7);
  assert.equal((await ask('root', 'PUT', '/v1/images/api/tags/golden', { at: 2 })).json.tags.golden, 2);
  await write('api', 9, 9);
  const { json: generations } = await ask('root', 'GET', '/v1/images/api/generations?limit=2');
  assert.deepEqual(
    generations.map((it: Record<string, unknown>) => [it.generation, it.why]),
    [
      [3, 'commit'],
      [2, 'commit'],
    ],
  );
  assert.equal((await ask('root', 'GET', '/v1/images/api/generations?before=2')).json.length, 1);
  assert.deepEqual((await ask('root', 'GET', '/v1/images/api/diff?from=golden&to=3')).json, {
    ranges: [{ offset: 9 * 4096, length: 4096 }],
    complete: true,
  });
  assert.equal((await ask('root', 'POST', '/v1/images/api/rollback', { to: 'golden' })).json.generation, 4);
  assert.equal((await ask('root', 'POST', '/v1/images/api/branches', { name: 'fix', at: 3 })).json.generation, 3);
  assert.equal((await ask('root', 'GET', '/v1/images/api%2Ffix')).json.name, 'api/fix');
  assert.equal((await ask('root', 'POST', '/v1/images/api/clone', { name: 'copy' })).status, 201);
  assert.deepEqual((await ask('root', 'GET', '/v1/merge-base?a=copy&b=api%2Ffix')).json, {
    line: 'api',
    generation: 3,
    kept: true,
  });
  assert.equal((await ask('root', 'PATCH', '/v1/images/copy', { name: 'moved' })).json.name, 'moved');
  assert.deepEqual((await ask('root', 'POST', '/v1/verify', {})).json.damages, []);
  assert.equal((await ask('root', 'DELETE', '/v1/images/api')).json.error.code, 'refused');
  assert.equal((await ask('root', 'DELETE', '/v1/images/api%2Ffix')).status, 204);
  assert.equal((await ask('root', 'DELETE', '/v1/images/api')).status, 409, 'it is tagged');
  assert.equal((await ask('root', 'DELETE', '/v1/images/api/tags/golden')).status, 204);
  for (const name of ['api', 'moved']) assert.equal((await ask('root', 'DELETE', `/v1/images/${name}`)).status, 204);
  assert.equal((await ask('root', 'POST', '/v1/gc', { retention: 'all:ever' })).status, 200);
  assert.ok(
    logs.some((it) => /^info http: root at 127\.0\.0\.1: POST \/v1\/gc/.test(it)),
    'changes are in the log',
  );
});

test('content, whole and in ranges', async () => {
  const warnings: Error[] = [];
  process.on('warning', (warning) => warnings.push(warning));
  await write('one', 300, 5);
  const get = (range?: string) =>
    fetch(`${http.url}/v1/images/one/content`, {
      headers: { Authorization: `Bearer ${TOKENS.reader}`, ...(range === undefined ? {} : { Range: range }) },
    });
  const whole = Buffer.from(await (await get()).arrayBuffer());
  assert.equal(whole.length, 3 * MIB + 5);
  assert.equal(whole[300 * 4096], 5);
  const part = await get('bytes=1228799-1228801');
  assert.deepEqual([part.status, part.headers.get('content-range')], [206, `bytes 1228799-1228801/${3 * MIB + 5}`]);
  assert.deepEqual([...Buffer.from(await part.arrayBuffer())], [0, 5, 5]);
  assert.equal((await (await get('bytes=-7')).arrayBuffer()).byteLength, 7);
  assert.equal((await get('bytes=99999999-')).status, 416);
  assert.equal((await get('lines=1-2')).status, 200);
  // A client that is slow to read makes the server wait for it many times: nothing is left behind by that.
  await store.images.create('large', 64 * MIB);
  const { port } = http.address as { port: number };
  const socket = net.connect(port, '127.0.0.1');
  socket.write(
    `GET /v1/images/large/content HTTP/1.1\r\nHost: a\r\nConnection: close\r\nAuthorization: Bearer ${TOKENS.reader}\r\n\r\n`,
  );
  let received = 0;
  for await (const chunk of socket) received += (chunk as Buffer).length;
  assert.ok(received > 64 * MIB);
  assert.deepEqual(warnings, []);
  await store.images.remove('large');
});

test('rights: by token, by image; what may not be read does not exist', async () => {
  const status = async (...args: Parameters<typeof ask>) => (await ask(...args)).status;
  assert.equal(await status(null, 'GET', '/v1/health'), 200);
  assert.deepEqual((await ask(null, 'GET', '/v1/images')).json, []);
  assert.equal(await status(null, 'GET', '/v1/images/one'), 401);
  assert.equal(await status(null, 'GET', '/v1/images/nothing'), 401, 'nobody learns what there is');
  assert.equal(await status('wrong-token', 'GET', '/v1/images'), 401);
  assert.equal(await status('reader', 'GET', '/v1/images/one'), 200);
  assert.equal(await status('reader', 'POST', '/v1/images', { name: 'x', size: 1 }), 403);
  assert.equal(await status('reader', 'DELETE', '/v1/images/one'), 403);
  assert.equal(await status('reader', 'POST', '/v1/gc', {}), 403);
  assert.deepEqual(
    (await ask('one', 'GET', '/v1/images')).json.map((it: { name: string }) => it.name),
    ['one'],
  );
  const [hidden, missing] = [await ask('one', 'GET', '/v1/images/two'), await ask('one', 'GET', '/v1/images/nothing')];
  assert.deepEqual(hidden, missing);
  assert.equal(hidden.status, 404);
  assert.equal(await status('one', 'POST', '/v1/images/one/clone', { name: 'stolen' }), 403);
  assert.equal(await status('one', 'PATCH', '/v1/images/one', { name: 'two' }), 403);
  assert.equal(await status('one', 'GET', '/v1/merge-base?a=one&b=two'), 404);
  assert.equal(await status('one', 'GET', '/metrics'), 403);
  assert.ok(
    logs.some((it) => /^warn http: one at 127\.0\.0\.1: GET \/metrics/.test(it)),
    'refusals are in the log',
  );
  assert.ok(!logs.some((it) => Object.values(TOKENS).some((token) => it.includes(token))), 'tokens are not');
});

test('nonsense gets a clear answer in JSON, and changes nothing', async () => {
  const names = store.info().map((it) => it.name);
  const bad = async (status: number, ...args: Parameters<typeof ask>) => {
    const answer = await ask(...args);
    assert.equal(answer.status, status, JSON.stringify([args, answer]));
    assert.ok(answer.json.error.code.length > 0 && answer.json.error.message.length > 10, JSON.stringify(answer));
  };
  for (const name of ['..', '.', 'a b', 'a\0b', 'x'.repeat(300), 'e\u0301', '\u202eexe', '', '-rf', 'a/b', '%2e%2e'])
    await bad(409, 'root', 'POST', '/v1/images', { name, size: 4096 });
  for (const name of ['..%2F..%2Fetc', '%00', 'one%00', 'x'.repeat(300), '%e2%80%ae', 'one@1'])
    await bad(404, 'root', 'GET', `/v1/images/${name}`);
  for (const size of [-1, 0.5, 2 ** 60, '1', null]) await bad(400, 'root', 'POST', '/v1/images', { name: 'new', size });
  await bad(409, 'root', 'POST', '/v1/images', { name: 'new', size: 0 });
  await bad(409, 'root', 'POST', '/v1/images', { name: 'new', size: 2 ** 51 });
  await bad(400, 'root', 'POST', '/v1/images', { name: 'new', size: 1, colour: 'red' });
  await bad(400, 'root', 'POST', '/v1/images', '{"name":');
  await bad(400, 'root', 'POST', '/v1/images', '[]');
  await bad(400, 'root', 'POST', '/v1/images', 'null');
  await bad(400, 'root', 'POST', '/v1/images', '{"__proto__":{"size":1},"name":"new"}');
  await bad(413, 'root', 'POST', '/v1/images', JSON.stringify({ name: 'x'.repeat(70_000), size: 1 }));
  await bad(409, 'root', 'POST', '/v1/images', { name: 'one', size: 4096 });
  await bad(404, 'root', 'GET', '/v2/images');
  await bad(405, 'root', 'DELETE', '/v1/images');
  await bad(400, 'root', 'GET', '/v1/images/one?at=1');
  await bad(400, 'root', 'GET', '/v1/images/one/generations?limit=-1');
  await bad(400, 'root', 'GET', '/v1/images/one/generations?limit=1&limit=2');
  await bad(400, 'root', 'GET', '/v1/images/one/diff');
  await bad(400, 'root', 'GET', '/v1/images/%ff');
  await bad(414, 'root', 'GET', `/v1/${'x'.repeat(3000)}`);
  await bad(409, 'root', 'GET', '/v1/images/one/diff?from=77');
  await bad(409, 'root', 'PUT', '/v1/images/one/tags/7', {});
  const form = await fetch(`${http.url}/v1/gc`, {
    ...{ method: 'POST', body: 'x=1' },
    headers: { Authorization: `Bearer ${TOKENS.root}`, 'Content-Type': 'text/plain' },
  });
  assert.equal(form.status, 415, 'what a web page may send without being asked');
  assert.deepEqual(
    store.info().map((it) => it.name),
    names,
  );
  assert.ok(!logs.some((it) => it.startsWith('error')), logs.filter((it) => it.startsWith('error')).join('\n'));
});

/** Bytes as they are on a connection of its own; what comes back until it is closed. */
function raw(bytes: string | Buffer): Promise<string> {
  const { port } = http.address as { port: number };
  return new Promise((resolve, reject) => {
    const socket = net.connect(port, '127.0.0.1', () => socket.write(bytes));
    let text = '';
    socket.on('data', (data) => {
      text += data;
    });
    socket.on('error', (error: NodeJS.ErrnoException) => (error.code === 'ECONNRESET' ? resolve(text) : reject(error)));
    socket.on('close', () => resolve(text));
  });
}

test('what is not HTTP, too large, or half finished', async () => {
  assert.match(await raw('NBDMAGICIHAVEOPT\r\n\r\n'), /^HTTP\/1\.1 400 .*"error"/s);
  assert.match(await raw(crypto.randomBytes(5000)), /^HTTP\/1\.1 400/);
  assert.match(await raw(`GET / HTTP/1.1\r\nX: ${'y'.repeat(20_000)}\r\n\r\n`), /^HTTP\/1\.1 431 .*too_large/s);
  assert.match(
    await raw('GET /v1/health HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n'),
    /^HTTP\/1\.1 400/,
  );
  const head = `Host: a\r\nAuthorization: Bearer ${TOKENS.root}\r\nContent-Type: application/json\r\n`;
  // A body that is announced too large is refused before it comes; one that lies about it as soon as it is seen.
  assert.match(await raw(`POST /v1/images HTTP/1.1\r\n${head}Content-Length: 999999999\r\n\r\n`), /^HTTP\/1\.1 413/);
  assert.match(
    await raw(
      `POST /v1/images HTTP/1.1\r\n${head}Transfer-Encoding: chunked\r\n\r\n1ffff\r\n${' '.repeat(0x1ffff)}\r\n`,
    ),
    /^HTTP\/1\.1 413/,
  );
  const { port } = http.address as { port: number };
  const half = net.connect(port, '127.0.0.1', () =>
    half.end(`POST /v1/images HTTP/1.1\r\n${head}Content-Length: 50\r\n\r\n{"na`),
  );
  await new Promise((resolve) => half.once('close', resolve).resume());
  assert.equal((await ask('root', 'GET', '/v1/images')).status, 200);
});

test('too many requests, and too many wrong tokens', async () => {
  const limited = serve(parseConfig(JSON.stringify({ ...CONFIG, limits: { requestsPerSecond: 5 } }), folder, 'test'));
  await limited.listen({ kind: 'tcp', host: '127.0.0.1', port: 0 });
  try {
    const storm = async (token: string, count: number) => {
      const headers = { Authorization: `Bearer ${token}` };
      const all = await Promise.all(
        Array.from({ length: count }, () => fetch(`${limited.url}/v1/health`, { headers })),
      );
      return all.map(({ status, headers: answer }) =>
        status === 429 ? `429 ${answer.get('retry-after')}` : `${status}`,
      );
    };
    const answers = await storm(TOKENS.root, 60);
    assert.ok(answers.includes('200') && answers.includes('429 1'), answers.join(' '));
    assert.ok((await storm(TOKENS.reader, 1)).includes('200'), 'others are not concerned');
    const guesses = await storm('guess', 60);
    assert.ok(guesses.includes('401') && guesses.includes('429 1'), guesses.join(' '));
  } finally {
    await limited.close();
  }
});

test('without a configuration: everything, but only by the names of this machine', async () => {
  const open = serve(OPEN_CONFIG, false);
  await open.listen({ kind: 'tcp', host: '127.0.0.1', port: 0 });
  try {
    assert.equal((await fetch(`${open.url}/v1/images/one`)).status, 200);
    const { port } = open.address as { port: number };
    const status = await new Promise((resolve) => {
      import('node:http').then(({ get }) =>
        get({ port, host: '127.0.0.1', path: '/v1/images', headers: { Host: 'evil.example' } }, (it) =>
          resolve(it.resume().statusCode),
        ),
      );
    });
    assert.equal(status, 403, 'a name of somebody else that leads here');
  } finally {
    await open.close();
  }
  await assert.rejects(serve(OPEN_CONFIG, false).listen({ kind: 'tcp', host: '0.0.0.0', port: 0 }), /needs TLS/);
});

test('TLS: a client certificate is an identity, an expired or foreign one is none', needs('openssl'), async () => {
  const script = `
    ec="-newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes"
    openssl req -x509 $ec -keyout ca.key -out ca.pem -subj /CN=authority -days 2
    openssl req -x509 $ec -keyout other.key -out other.pem -subj /CN=authority -days 2
    printf 'subjectAltName=DNS:localhost' > san
    openssl req $ec -keyout server.key -out r.csr -subj /CN=localhost
    openssl x509 -req -in r.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days 2 -out server.pem -extfile san
    openssl req $ec -keyout one.key -out r.csr -subj /CN=one
    openssl x509 -req -in r.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days 2 -out one.pem
    openssl x509 -req -in r.csr -CA other.pem -CAkey other.key -CAcreateserial -days 2 -out foreign.pem
    openssl x509 -req -in r.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days -1 -out expired.pem`;
  execFileSync('sh', ['-ec', script], { cwd: folder, stdio: 'ignore' });
  const tls = { certificate: 'server.pem', key: 'server.key', ca: 'ca.pem' };
  const secure = serve(parseConfig(JSON.stringify({ ...CONFIG, tls }), folder, 'test'));
  await secure.listen({ kind: 'tcp', host: '127.0.0.1', port: 0 });
  const file = (name: string) => fs.readFileSync(path.join(folder, name));
  const get = (certificate: string | null) =>
    new Promise((resolve, reject) => {
      const { port } = secure.address as { port: number };
      const own = certificate === null ? {} : { cert: file(certificate), key: file('one.key') };
      https
        .get({ host: 'localhost', port, path: '/v1/images/one', ca: file('ca.pem'), agent: false, ...own }, (it) =>
          resolve(it.resume().statusCode),
        )
        .on('error', reject);
    });
  try {
    assert.equal(await get('one.pem'), 200);
    assert.equal(await get(null), 401);
    assert.equal(await get('foreign.pem'), 401);
    assert.equal(await get('expired.pem'), 401);
  } finally {
    await secure.close();
  }
});

test('/metrics and the description', async () => {
  const text = await (
    await fetch(`${http.url}/metrics`, { headers: { Authorization: `Bearer ${TOKENS.reader}` } })
  ).text();
  const value = (name: string) => Number(new RegExp(`^${name.replace(/[{}"]/g, '\\$&')} (\\S+)$`, 'm').exec(text)?.[1]);
  assert.equal(value('ribbon_images'), store.info().length);
  assert.equal(value('ribbon_image_generation{image="one"}'), store.generation('one'));
  assert.ok(value('ribbon_commits_total') >= 3 && value('ribbon_http_requests_total{status="404"}') >= 2);
  // Every line is a comment or a sample, as the format wants it.
  for (const line of text.trimEnd().split('\n'))
    assert.match(line, /^(# (HELP|TYPE) \w+ .+|\w+(\{\w+="[^"]*"(,\w+="[^"]*")*\})? -?[0-9.e+]+)$/);
  const { json } = await ask(null, 'GET', '/v1/openapi.json');
  assert.equal(json.openapi, '3.1.0');
  assert.ok(
    json.paths['/v1/images/{image}/rollback'].post.requestBody.content['application/json'].schema.required.includes(
      'to',
    ),
  );
  for (const route of apiRoutes(store, OPEN_CONFIG))
    assert.ok(json.paths[route.path][route.method.toLowerCase()], route.path);
});

test('a token in the configuration is refused unless it is hashed', () => {
  const config = (tokens: unknown) => JSON.stringify({ identities: { a: { tokens, rights: {} } } });
  for (const wrong of ['plain', ['plain'], ['sha256:00'], [7]])
    assert.throws(() => parseConfig(config(wrong), folder, 'c'), /never the token itself/);
});
