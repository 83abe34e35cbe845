// The life of a connection: haggling with servers of every ability, refusals, back-off, silence, a clean stop.

import assert from 'node:assert/strict';
import { test } from 'node:test';
import { compileNbdClient, NbdError, type NbdErrorName, RequestState } from '../../host/fuzz/nbd-client.js';
import { FLAG_READ_ONLY, FLAGS_ALL, optionReply, type PeerOptions } from '../../host/fuzz/nbd-peer.js';
import { Bench, NO_TIMER, testImage } from './bench.js';

const IMAGE = testImage(1 << 20);
const OPT_STARTTLS = 5;
const REP_ACK = 1;
const REP_ERR_POLICY = 0x80000002;
const REP_ERR_TLS_REQD = 0x80000005;
const REP_ERR_SHUTDOWN = 0x80000007;
const CMD_WRITE = 1;
const CMD_DISC = 2;

const server = (options: Partial<PeerOptions> = {}): PeerOptions => ({ image: Buffer.from(IMAGE), ...options });
/** Answers every option like this. */
const replyAlways = (type: number, text = ''): Partial<PeerOptions> => ({
  mangle: (message, kind) =>
    kind === 'option' ? [optionReply(message.readUInt32BE(8), type, Buffer.from(text))] : [message],
});

test('the errors have the numbers that the firmware gives them', async () => {
  const exports = WebAssembly.Module.exports(await compileNbdClient()).map(({ name }) => name);
  const names = exports.filter((name) => name.startsWith('NbdError.')).map((name) => name.slice('NbdError.'.length));
  assert.deepEqual(names.sort(), Object.keys(NbdError).sort());
  const { client } = new Bench({ peers: [null] });
  for (const name of Object.keys(NbdError) as NbdErrorName[])
    assert.equal(client.constant(`NbdError.${name}`), NbdError[name]);
});

const ABILITIES: [string, Partial<PeerOptions>][] = [
  ['everything', {}],
  ['no structured replies', { structured: false }],
  ['no GO', { go: false }],
  ['no GO, no structured replies, zeroes', { go: false, structured: false, noZeroes: false }],
  ['zeroes', { noZeroes: false }],
  ['block sizes', { blockSizes: { minimum: 512, preferred: 4096, maximum: 33_554_432 } }],
  ['a maximum block of 4 KiB', { blockSizes: { minimum: 1, preferred: 4096, maximum: 4096 } }],
  ['a maximum block of 100,000', { blockSizes: { minimum: 1, preferred: 4096, maximum: 100_000 } }],
];
const DELIVERIES: [string, ((bytes: number) => number) | undefined][] = [
  ['whole', undefined],
  ['byte by byte', () => 1],
  ['by 13 bytes', () => 13],
];

for (const [ability, options] of ABILITIES) {
  for (const [delivery, limit] of DELIVERIES) {
    test(`${ability}, ${delivery}: reads, writes, flushes`, () => {
      const peer = server(options);
      const bench = new Bench({ peers: [peer], ...(limit && { limit }) });
      bench.run();
      assert.equal(bench.client.up, true, bench.client.log.join('\n'));
      assert.equal(bench.client.exportSize, BigInt(IMAGE.length));
      bench.assertReads(IMAGE, 0, 131_072);
      bench.assertReads(IMAGE, IMAGE.length - 512, 512);
      bench.assertReads(IMAGE, 4097, 1);
      const data = testImage(20_000).reverse();
      const pieces = bench.pieces(data.length);
      bench.put(pieces, data);
      const write = bench.client.write(1000, data.length, pieces);
      bench.run();
      const flush = bench.client.flush();
      bench.run();
      assert.equal(bench.client.state(write), RequestState.DONE);
      assert.equal(bench.client.state(flush), RequestState.DONE);
      assert.ok(peer.image.subarray(1000, 21_000).equals(data));
      assert.ok(peer.image.subarray(0, 1000).equals(IMAGE.subarray(0, 1000)));
      assert.equal(bench.client.statistics.protocolErrors, 0);
      const { bytesFromServer } = bench.client.statistics;
      assert.ok(bytesFromServer > 131_072 && bytesFromServer < 140_000, `${bytesFromServer} bytes`);
    });
  }
}

for (const size of [0, 1, 511, 512, 513, 4095, 5000]) {
  test(`an image of ${size} bytes`, () => {
    const image = testImage(size);
    const bench = new Bench({ peers: [server({ image })] });
    bench.run();
    assert.equal(bench.client.up, true);
    assert.equal(bench.client.exportSize, BigInt(size));
    if (size > 0) bench.assertReads(image, 0, size);
  });
}

test('an export that is not there is refused, asked for slowly, and taken when it appears', () => {
  const missing = server({ exportName: 'other' });
  const peers = [missing, missing, missing, server({ exportName: 'disk' })];
  const bench = new Bench({ peers, settings: { exportName: 'disk' } });
  bench.run();
  assert.equal(bench.client.statistics.linkState, 'refused');
  assert.equal(bench.client.statistics.linkError, NbdError.EXPORT_UNKNOWN);
  assert.ok(
    bench.client.log.some((line) => line.includes('no export "disk"')),
    bench.client.log.join('\n'),
  );
  assert.ok(bench.client.log.some((line) => line.startsWith('W') && line.includes('export=disk')));
  assert.equal(bench.client.statistics.protocolErrors, 0);
  bench.pass(9_999);
  assert.equal(bench.network.opens, 1, 'asked again too soon');
  bench.pass(10_001);
  assert.equal(bench.client.statistics.linkState, 'refused', 'the state stays while it is asked again');
  bench.pass(10_000);
  assert.equal(bench.client.statistics.linkState, 'up');
});

test('the server is told that we leave', () => {
  const bench = new Bench({ peers: [server({ exportName: 'other' })], settings: { exportName: 'disk' } });
  bench.client.step();
  const { peer } = bench.network;
  bench.run();
  assert.equal(peer!.closing, true);
});

test('without GO, a connection that is closed means that there is no such export', () => {
  const bench = new Bench({ peers: [server({ go: false, exportName: 'other' })], settings: { exportName: 'disk' } });
  bench.run();
  assert.equal(bench.client.statistics.linkState, 'refused');
  assert.equal(bench.client.statistics.linkError, NbdError.EXPORT_UNKNOWN);
});

const REFUSALS: [string, keyof typeof NbdError, string, boolean, Partial<PeerOptions>][] = [
  ['policy', 'POLICY', 'refused', false, replyAlways(REP_ERR_POLICY, 'not on Sundays')],
  ['TLS required', 'TLS_REQUIRED', 'refused', false, replyAlways(REP_ERR_TLS_REQD, 'TLS first')],
  ['shutting down', 'SHUTDOWN', 'down', false, replyAlways(REP_ERR_SHUTDOWN)],
  ['TLS unavailable', 'TLS_UNAVAILABLE', 'refused', true, {}],
  [
    'plain bytes behind the start of TLS',
    'TLS_INJECTION',
    'down',
    true,
    { mangle: (m, kind) => [kind === 'option' ? Buffer.concat([optionReply(OPT_STARTTLS, REP_ACK), m]) : m] },
  ],
];

for (const [name, error, linkState, tls, options] of REFUSALS) {
  test(`refusal: ${name}`, () => {
    const bench = new Bench({ peers: [server(options)], settings: { tls } });
    bench.run();
    assert.equal(bench.client.statistics.linkError, NbdError[error], bench.client.log.join('\n'));
    assert.equal(bench.client.statistics.linkState, linkState);
    assert.equal(bench.network.tlsStarts, 0);
  });
}

test('what a server says is logged, but not as it likes', () => {
  const bench = new Bench({ peers: [server(replyAlways(REP_ERR_POLICY, '\x1b[2Jpay \x00 first'))] });
  bench.run();
  assert.ok(
    bench.client.log.some((line) => line.endsWith('image server says: ?[2Jpay ? first')),
    bench.client.log.join('\n'),
  );
});

test('back-off doubles from 100 ms to 10 s', () => {
  const bench = new Bench({ peers: [null] });
  bench.run();
  const at = [0];
  for (let ms = 1; ms <= 60_000; ms++) {
    bench.pass(1);
    if (bench.network.opens > at.length) at.push(ms);
  }
  const gaps = at.slice(1).map((ms, i) => ms - at[i]);
  assert.deepEqual(gaps.slice(0, 9), [100, 200, 400, 800, 1600, 3200, 6400, 10_000, 10_000]);
  assert.equal(bench.client.statistics.linkError, NbdError.CONNECT);
  assert.equal(bench.client.log.filter((line) => line.startsWith('W')).length, 1, 'one warning for one outage');
});

test('chance adds up to half to the back-off', () => {
  const bench = new Bench({ peers: [null] });
  bench.random = 50;
  bench.run();
  assert.equal(bench.client.timeoutMs(), 150);
});

test('an idle connection needs no timer', () => {
  const bench = new Bench({ peers: [server()] });
  bench.run();
  assert.equal(bench.client.timeoutMs(), NO_TIMER);
  bench.pass(1_000_000);
  assert.equal(bench.client.connection, 1);
});

test('a server that is silent about a request is given up after 10 s, with more patience each time', () => {
  const mute: PeerOptions = server({ mangle: (message, kind) => (kind === 'reply' ? [] : [message]) });
  const bench = new Bench({ peers: [mute, mute, mute, server()] });
  bench.run();
  for (const seconds of [10, 20, 40]) {
    const slot = bench.client.flush();
    bench.run();
    bench.pass(seconds * 1000 - 1);
    assert.equal(bench.client.state(slot), RequestState.PENDING, `${seconds} s`);
    bench.pass(1);
    assert.equal(bench.client.state(slot), RequestState.LOST, `${seconds} s`);
    assert.equal(bench.client.statistics.linkError, NbdError.SILENCE);
    bench.client.release(slot);
    bench.pass(1000);
    assert.equal(bench.client.up, true);
  }
  // A flush is answered: patience is back to normal.
  const slot = bench.client.flush();
  bench.run();
  assert.equal(bench.client.state(slot), RequestState.DONE);
  bench.client.release(slot);
  bench.network.cut = true;
  bench.client.flush();
  bench.run();
  assert.equal(bench.client.timeoutMs(), 10_000);
});

test('a server that is silent is given up although it is asked for more all the time', () => {
  const mute: PeerOptions = server({ mangle: (message, kind) => (kind === 'reply' ? [] : [message]) });
  const bench = new Bench({ peers: [mute, server()] });
  bench.run();
  // A PC reads; its reads are given up before the server is.
  for (let second = 0; second < 12; second += 4) {
    const slot = bench.client.read(0, 512, bench.pieces(512));
    bench.run();
    bench.pass(4000);
    bench.client.release(slot);
  }
  assert.equal(bench.client.statistics.linkError, NbdError.SILENCE);
  bench.pass(1000);
  assert.equal(bench.client.connection, 2);
});

test('a server that is silent in the handshake is given up after 10 s', () => {
  const bench = new Bench({ peers: [server({ mangle: () => [] }), server()] });
  bench.run();
  bench.pass(9_999);
  assert.equal(bench.network.opens, 1);
  bench.pass(200);
  assert.equal(bench.client.up, true);
});

test('a slow trickle is not silence', () => {
  const bench = new Bench({ peers: [server()] });
  bench.run();
  bench.network.cut = true;
  const slot = bench.client.read(0, 512, bench.pieces(512));
  bench.run();
  const reply = Buffer.alloc(20);
  reply.writeUInt32BE(0x668e33ef, 0);
  for (const byte of reply.subarray(0, 8)) {
    bench.network.inject(Buffer.from([byte]));
    bench.pass(9_000);
  }
  assert.equal(bench.client.state(slot), RequestState.PENDING);
  assert.equal(bench.client.connection, 1);
});

test('a clean stop: what is outstanding ends, then NBD_CMD_DISC, and no more', () => {
  const bench = new Bench({ peers: [server()] });
  bench.run();
  const { peer } = bench.network;
  const write = bench.client.write(0, 4096, bench.pieces(4096));
  bench.client.disconnect();
  assert.equal(bench.client.read(0, 512, []), -1, 'no new requests');
  bench.run();
  assert.equal(bench.client.state(write), RequestState.DONE);
  assert.deepEqual(
    peer!.requests.map(({ type }) => type),
    [CMD_WRITE, CMD_DISC],
  );
  assert.equal(bench.client.statistics.linkState, 'down');
  bench.pass(100_000);
  assert.equal(bench.network.opens, 1);
  assert.equal(bench.client.timeoutMs(), NO_TIMER);
});

test('giving up a connection loses what is outstanding, at once', () => {
  const bench = new Bench({ peers: [server()] });
  bench.run();
  const slots = [bench.client.flush(), bench.client.read(0, 512, bench.pieces(512)), bench.client.flush()];
  bench.client.restart(NbdError.REQUEST_REFUSED);
  assert.deepEqual(
    slots.map((slot) => bench.client.state(slot)),
    Array(3).fill(RequestState.LOST),
  );
  assert.equal(bench.client.up, false);
  assert.equal(bench.client.statistics.linkError, NbdError.REQUEST_REFUSED);
  for (const slot of slots) bench.client.release(slot);
  bench.pass(100);
  assert.equal(bench.client.connection, 2);
  bench.assertReads(IMAGE, 0, 4096);
});

test('an export may grow under the PC but not shrink', () => {
  const smaller = server({ image: testImage(1 << 19) });
  const larger = server({ image: testImage(1 << 21) });
  const bench = new Bench({ peers: [server(), larger, smaller, server()] });
  bench.run();
  bench.client.restart(NbdError.CLOSED);
  bench.pass(100);
  assert.equal(bench.client.exportSize, 1n << 21n);
  bench.client.restart(NbdError.CLOSED);
  bench.pass(300);
  assert.equal(bench.client.statistics.linkState, 'refused');
  assert.equal(bench.client.statistics.linkError, NbdError.EXPORT_SHRUNK);
  bench.pass(10_000);
  assert.equal(bench.client.up, true);
});

test('a read-only export says so, and refuses a write with EPERM without harm to the connection', () => {
  const bench = new Bench({ peers: [server({ flags: FLAGS_ALL | FLAG_READ_ONLY })] });
  bench.run();
  assert.ok((bench.client.exportFlags & FLAG_READ_ONLY) !== 0);
  const slot = bench.client.write(0, 512, bench.pieces(512));
  bench.run();
  assert.equal(bench.client.state(slot), RequestState.FAILED);
  assert.equal(bench.client.errno(slot), 1);
  bench.assertReads(IMAGE, 0, 4096);
});

test('what is not offered is not sent', () => {
  const bench = new Bench({ peers: [server({ flags: 1 })] });
  bench.run();
  const { peer } = bench.network;
  const flush = bench.client.flush();
  const trim = bench.client.trim(0, 4096);
  const write = bench.client.write(0, 512, bench.pieces(512), 1);
  bench.run();
  assert.equal(bench.client.state(flush), RequestState.DONE);
  assert.equal(bench.client.state(trim), RequestState.DONE);
  assert.equal(bench.client.state(write), RequestState.FAILED);
  assert.equal(bench.client.errno(write), 95);
  assert.equal(peer!.requests.length, 0);
});

test('what is offered is sent', () => {
  const peer = server();
  const bench = new Bench({ peers: [peer] });
  bench.run();
  const trim = bench.client.trim(4096, 8192);
  bench.client.write(0, 512, bench.pieces(512), 1);
  bench.run();
  assert.equal(bench.client.state(trim), RequestState.DONE);
  assert.equal(bench.network.peer!.requests[1].flags, 1);
  assert.ok(peer.image.subarray(4096, 12_288).every((byte) => byte === 0));
});

test('16 requests in flight, not one more', () => {
  const bench = new Bench({ peers: [server()] });
  bench.run();
  const pieces = Array.from({ length: 16 }, () => bench.pieces(512));
  const slots = pieces.map((piece, i) => bench.client.read(i * 512, 512, piece));
  assert.deepEqual(slots, [...Array(16).keys()]);
  assert.equal(bench.client.flush(), -1);
  const { peer } = bench.network;
  bench.client.step();
  assert.equal(peer!.requests.length, 16);
  bench.run();
  for (const [i, slot] of slots.entries()) {
    assert.equal(bench.client.state(slot), RequestState.DONE);
    assert.ok(bench.bytes(pieces[i], 512).equals(IMAGE.subarray(i * 512, i * 512 + 512)));
    bench.client.release(slot);
  }
  assert.equal(bench.client.flush() >= 0, true);
});

test('requests that touch an unanswered write wait for it, those that do not go on before', () => {
  const bench = new Bench({ peers: [server()] });
  bench.run();
  const { peer } = bench.network;
  const data = Buffer.alloc(4096, 0x77);
  const source = bench.pieces(4096);
  bench.put(source, data);
  const write = bench.client.write(8192, 4096, source);
  const beside = bench.client.read(4096, 4096, bench.pieces(4096));
  const target = bench.pieces(1024);
  const behind = bench.client.read(12_288 - 512, 1024, target);
  bench.client.step();
  assert.equal(peer!.requests.length, 2, 'the read of what is being written waits');
  bench.run();
  for (const slot of [write, beside, behind]) assert.equal(bench.client.state(slot), RequestState.DONE);
  assert.ok(bench.bytes(target, 512).equals(data.subarray(0, 512)));
  assert.equal(peer!.requests.length, 3);
});

test('an abandoned read does not touch its memory any more', () => {
  const bench = new Bench({ peers: [server()] });
  bench.run();
  const pieces = bench.pieces(131_072);
  const slot = bench.client.read(0, 131_072, pieces);
  bench.client.step();
  bench.client.release(slot);
  bench.run();
  assert.equal(bench.client.state(slot), RequestState.FREE);
  assert.ok(bench.bytes(pieces, 131_072).every((byte) => byte === 0xa5));
  bench.assertReads(IMAGE, 0, 131_072);
});

test('a large read or write is a handful of import calls', () => {
  const bench = new Bench({ peers: [server()] });
  bench.run();
  let calls = 0;
  const { network } = bench;
  for (const name of ['receive', 'send'] as const) {
    const original = network[name].bind(network);
    network[name] = (stream: number, bytes: Uint8Array) => {
      calls += 1;
      return original(stream, bytes);
    };
  }
  // Neighbouring pieces: moved as one.
  const pieces = Array.from({ length: 32 }, (_, i) => 0x200000 + i * 4096);
  const read = bench.client.read(0, 131_072, pieces);
  bench.run();
  assert.equal(bench.client.state(read), RequestState.DONE);
  assert.ok(calls <= 8, `${calls} calls for a read of 128 KiB`);
  bench.client.release(read);
  calls = 0;
  const write = bench.client.write(0, 131_072, pieces);
  bench.run();
  assert.equal(bench.client.state(write), RequestState.DONE);
  assert.ok(calls <= 8, `${calls} calls for a write of 128 KiB`);
});
