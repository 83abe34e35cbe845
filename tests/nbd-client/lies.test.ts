// Servers that lie: each lie is one named error, costs the connection and nothing else, and an honest server afterwards is
// welcome.

import assert from 'node:assert/strict';
import { test } from 'node:test';
import { NbdError, RequestState } from '../../host/fuzz/nbd-client.js';
import {
  chunk,
  dataChunk,
  errorChunk,
  holeChunk,
  noneChunk,
  optionReply,
  type PeerOptions,
  type PeerRequest,
  simpleReply,
} from '../../host/fuzz/nbd-peer.js';
import { Bench, testImage } from './bench.js';

const IMAGE = testImage(1 << 20);
const OFFSET = 8192;
const LENGTH = 16_384;
const DONE = 1;
const OPT_GO = 7;
const OPT_STRUCTURED_REPLY = 8;
const REP_ACK = 1;
const REP_INFO = 3;

type ErrorName = keyof typeof NbdError;

const image = (): Buffer => Buffer.from(IMAGE);
const part = (from: number, to: number): Buffer => IMAGE.subarray(OFFSET + from, OFFSET + to);

/** The greeting with `value` in place of the bytes at `offset`. */
function greeting(value: string, offset: number): Partial<PeerOptions> {
  return edit('greeting', 0, (message) => void message.write(value, offset, 'hex'));
}

/** Changes the nth message of a kind. */
function edit(kind: string, nth: number, change: (message: Buffer) => Buffer | undefined): Partial<PeerOptions> {
  let count = 0;
  return {
    mangle: (message, messageKind) => {
      if (messageKind !== kind) return [message];
      count += 1;
      return [count - 1 === nth ? (change(message) ?? message) : message];
    },
  };
}

/** An information reply to GO in place of the size of the export. */
function information(data: string): Partial<PeerOptions> {
  return edit('option', 1, () => optionReply(OPT_GO, REP_INFO, Buffer.from(data, 'hex')));
}

const HANDSHAKE_LIES: [string, ErrorName, Partial<PeerOptions>][] = [
  ['a greeting that is not NBD', 'BAD_MAGIC', greeting('48545450', 0)],
  ['neither oldstyle nor newstyle', 'BAD_MAGIC', greeting('deadbeef', 8)],
  ['oldstyle', 'NOT_FIXED_NEWSTYLE', greeting('0000420281861253', 8)],
  ['newstyle, not fixed', 'NOT_FIXED_NEWSTYLE', greeting('0002', 16)],
  ['an option reply with bad magic', 'BAD_MAGIC', edit('option', 0, (m) => void m.writeUInt8(1, 0))],
  ['a reply to another option', 'WRONG_OPTION', edit('option', 0, () => optionReply(OPT_GO, REP_ACK))],
  ['an option reply of 4 GiB', 'OVERSIZE', edit('option', 0, (m) => void m.writeUInt32BE(0xffffffff, 16))],
  [
    'an acknowledgement with data',
    'BAD_OPTION_REPLY',
    edit('option', 0, () => optionReply(8, REP_ACK, Buffer.alloc(9))),
  ],
  ['an unknown reply type', 'BAD_OPTION_REPLY', edit('option', 0, () => optionReply(OPT_STRUCTURED_REPLY, 99))],
  ['an acknowledgement without a size', 'BAD_OPTION_REPLY', edit('option', 1, () => optionReply(OPT_GO, REP_ACK))],
  ['information of no type', 'BAD_OPTION_REPLY', information('00')],
  ['a size that is too short', 'BAD_OPTION_REPLY', information('0000 0000000000100000'.replaceAll(' ', ''))],
  ['a size of 2^63', 'EXPORT_SIZE', information('000080000000000000000001')],
  ['block sizes that are too short', 'BAD_OPTION_REPLY', information('000300000001')],
  ['a minimum block of 8 KiB', 'BLOCK_SIZE', information('0003000020000000200000100000')],
  ['a minimum block of 1 KiB', 'BLOCK_SIZE', information('0003000004000000100000100000')],
  ['a minimum block of 0', 'BLOCK_SIZE', information('0003000000000000100000100000')],
  ['a minimum block of 768', 'BLOCK_SIZE', information('0003000003000000100000100000')],
  ['a maximum block of 2 KiB', 'BLOCK_SIZE', information('0003000000010000080000000800')],
  [
    'information without end',
    'BAD_OPTION_REPLY',
    edit('option', 1, () => Buffer.concat(Array(40).fill(optionReply(OPT_GO, REP_INFO, Buffer.from([0, 9]))))),
  ],
];

for (const [name, error, peer] of HANDSHAKE_LIES) {
  test(`handshake: ${name}`, () => {
    const bench = new Bench({ peers: [{ image: image(), ...peer }, { image: image() }] });
    bench.run();
    assert.equal(bench.client.up, false);
    assertError(bench, error);
    bench.pass(15_000);
    assert.equal(bench.client.up, true, bench.client.log.join('\n'));
    bench.assertReads(IMAGE, OFFSET, LENGTH);
  });
}

/** Answers to a read of LENGTH bytes at OFFSET. */
const READ_LIES: [string, ErrorName, (request: PeerRequest) => Buffer[]][] = [
  ['bad magic', 'BAD_MAGIC', () => [Buffer.alloc(16, 0x11)]],
  ['a simple reply where chunks were agreed', 'BAD_MAGIC', (r) => [simpleReply(r), part(0, LENGTH)]],
  ['a slot that is not in use', 'UNKNOWN_COOKIE', (r) => [noneChunk({ cookie: r.cookie + 1n })]],
  ['a slot that is not there', 'UNKNOWN_COOKIE', (r) => [noneChunk({ cookie: r.cookie | 0xffn }), part(0, 4)]],
  ['another generation', 'UNKNOWN_COOKIE', (r) => [noneChunk({ cookie: r.cookie ^ (1n << 32n) })]],
  ['generation 0', 'UNKNOWN_COOKIE', (r) => [noneChunk({ cookie: r.cookie & 0xffffffffn })]],
  ['an unknown chunk type', 'BAD_CHUNK', (r) => [chunk(r, DONE, 77, Buffer.alloc(4))]],
  ['block status, not asked', 'BAD_CHUNK', (r) => [chunk(r, DONE, 5, Buffer.alloc(12))]],
  ['an empty chunk that is not the last', 'BAD_CHUNK', (r) => [noneChunk(r, 0)]],
  ['an empty chunk with data', 'BAD_CHUNK', (r) => [chunk(r, DONE, 0, Buffer.alloc(4))]],
  ['data without data', 'OVERSIZE', (r) => [chunk(r, DONE, 1, Buffer.alloc(8))]],
  ['data without an offset', 'OVERSIZE', (r) => [chunk(r, DONE, 1, Buffer.alloc(8), 4)]],
  ['data of 4 GiB', 'CHUNK_RANGE', (r) => [chunk(r, DONE, 1, Buffer.alloc(64), 0xffffffff)]],
  ['data before the request', 'CHUNK_RANGE', (r) => [dataChunk(r, OFFSET - 1, part(0, LENGTH), DONE)]],
  ['data behind the request', 'CHUNK_RANGE', (r) => [dataChunk(r, OFFSET + 1, part(0, LENGTH), DONE)]],
  ['more data than asked', 'CHUNK_RANGE', (r) => [dataChunk(r, OFFSET, IMAGE.subarray(OFFSET, 40_000), DONE)]],
  ['an offset that wraps', 'CHUNK_RANGE', (r) => [wrapped(dataChunk(r, OFFSET, part(0, 512), DONE))]],
  ['a hole of no bytes', 'CHUNK_RANGE', (r) => [holeChunk(r, OFFSET, 0, DONE)]],
  ['a hole of 4 GiB', 'CHUNK_RANGE', (r) => [holeChunk(r, OFFSET, 0xffffffff, DONE)]],
  ['a hole with data', 'OVERSIZE', (r) => [chunk(r, DONE, 2, Buffer.alloc(16))]],
  ['the same bytes twice', 'CHUNK_OVERLAP', (r) => [data(r, 0, LENGTH, 0), data(r, 0, LENGTH, DONE)]],
  ['one byte twice', 'CHUNK_OVERLAP', (r) => [data(r, 0, 4097, 0), data(r, 4096, LENGTH, DONE)]],
  ['a hole over data', 'CHUNK_OVERLAP', (r) => [data(r, 4096, LENGTH, 0), holeChunk(r, OFFSET, 4097, DONE)]],
  ['nothing at all', 'CHUNK_MISSING', (r) => [noneChunk(r)]],
  ['the first byte missing', 'CHUNK_MISSING', (r) => [data(r, 1, LENGTH, DONE)]],
  ['the last byte missing', 'CHUNK_MISSING', (r) => [data(r, 0, LENGTH - 1, DONE)]],
  ['a byte in the middle missing', 'CHUNK_MISSING', (r) => [data(r, 4097, LENGTH, 0), data(r, 0, 4096, DONE)]],
  ['an error whose text is longer than the chunk', 'OVERSIZE', (r) => [longText(errorChunk(r, 5, 'text'))]],
  ['an error of 64 KiB', 'OVERSIZE', (r) => [errorChunk(r, 5, 'x'.repeat(65_000))]],
  ['an error that is too short', 'OVERSIZE', (r) => [chunk(r, DONE, 0x8001, Buffer.alloc(8), 2)]],
];

function data(request: PeerRequest, from: number, to: number, flags: number): Buffer {
  return dataChunk(request, OFFSET + from, part(from, to), flags);
}

function wrapped(message: Buffer): Buffer {
  message.writeBigUInt64BE(0xffff_ffff_ffff_fffen, 20);
  return message;
}

function longText(message: Buffer): Buffer {
  message.writeUInt16BE(500, 24);
  return message;
}

for (const [name, error, answer] of READ_LIES) {
  test(`read: ${name}`, () => {
    const bench = new Bench({ peers: [{ image: image(), answer }, { image: image() }] });
    bench.run();
    const pieces = bench.pieces(LENGTH);
    const slot = bench.client.read(OFFSET, LENGTH, pieces);
    bench.run();
    assert.equal(bench.client.state(slot), RequestState.LOST, bench.client.log.join('\n'));
    assertError(bench, error);
    assert.equal(bench.client.statistics.protocolErrors, 1);
    bench.assertCanaries(pieces);
    bench.client.release(slot);
    bench.pass(1000);
    bench.assertReads(IMAGE, OFFSET, LENGTH);
  });
}

const WRITE_LIES: [string, ErrorName, (request: PeerRequest) => Buffer[]][] = [
  ['data for a write', 'BAD_CHUNK', (r) => [data(r, 0, 512, DONE)]],
  ['a hole for a write', 'BAD_CHUNK', (r) => [holeChunk(r, OFFSET, 512, DONE)]],
  ['a chunk type that is not there', 'BAD_CHUNK', (r) => [chunk(r, DONE, 3, Buffer.alloc(0))]],
];

for (const [name, error, answer] of WRITE_LIES) {
  test(`write: ${name}`, () => {
    const bench = new Bench({ peers: [{ image: image(), answer }, { image: image() }] });
    bench.run();
    const slot = bench.client.write(OFFSET, LENGTH, bench.pieces(LENGTH));
    bench.run();
    assert.equal(bench.client.state(slot), RequestState.LOST);
    assertError(bench, error);
  });
}

test('a reply that comes twice is a reply to nothing', () => {
  const twice = (message: Buffer, kind: string): Buffer[] => (kind === 'reply' ? [message, message] : [message]);
  const bench = new Bench({ peers: [{ image: image(), mangle: twice }, { image: image() }] });
  bench.run();
  bench.assertReads(IMAGE, OFFSET, LENGTH);
  const slot = bench.client.read(0, 512, bench.pieces(512));
  bench.run();
  assert.equal(bench.client.state(slot), RequestState.LOST);
  assertError(bench, 'UNKNOWN_COOKIE');
});

test('a write that is done before it was sent', () => {
  let cookie = 0n;
  // Half of the payload leaves, then the stream takes no more.
  let budget = Number.POSITIVE_INFINITY;
  const limit = (bytes: number): number => {
    const count = Math.min(bytes, budget);
    budget -= count;
    return count;
  };
  const bench = new Bench({ peers: [{ image: image() }], limit });
  bench.run();
  const slot = bench.client.write(OFFSET, LENGTH, bench.pieces(LENGTH));
  const { peer } = bench.network;
  const take = peer!.take.bind(peer);
  peer!.take = (bytes) => {
    if (cookie === 0n) cookie = Buffer.from(bytes).readBigUInt64BE(8);
    take(bytes);
  };
  budget = 28 + 5000;
  bench.client.step();
  assert.notEqual(cookie, 0n);
  budget = 16;
  bench.network.inject(simpleReply({ cookie }));
  bench.client.step();
  assert.equal(bench.client.state(slot), RequestState.LOST);
  assertError(bench, 'EARLY_REPLY');
});

test('chunks beyond all account: the next connection goes without', () => {
  // Every other 512 bytes of 64 KiB first: 64 loose parts.
  const answer = (request: PeerRequest): Buffer[] => {
    const order = [...Array(128).keys()].sort((a, b) => (a % 2) - (b % 2) || a - b);
    const parts = order.map((i) =>
      dataChunk(request, request.offset + i * 512, IMAGE.subarray(request.offset + i * 512).subarray(0, 512), 0),
    );
    return [...parts, noneChunk(request)];
  };
  const server: PeerOptions = { image: image(), answer };
  const bench = new Bench({ peers: [server, { image: image() }] });
  bench.run();
  const slot = bench.client.read(0, 65_536, bench.pieces(65_536));
  bench.run();
  assert.equal(bench.client.state(slot), RequestState.LOST);
  assertError(bench, 'CHUNK_SCATTERED');
  bench.client.release(slot);
  bench.pass(1000);
  assert.equal(bench.network.peer!.structured, false);
  bench.assertReads(IMAGE, 0, 65_536);
});

/** What the server sends in a session with every kind of answer, and where it ends. */
function session(limitBytes: number, structured: boolean): { bench: Bench; sent: number; slots: number[] } {
  let sent = 0;
  const mangle = (message: Buffer, _kind: string, peer: { closing: boolean }): Buffer[] => {
    const rest = message.subarray(0, Math.max(0, limitBytes - sent));
    sent += message.length;
    if (rest.length < message.length) peer.closing = true;
    return rest.length > 0 ? [rest] : [];
  };
  const answer = (request: PeerRequest): Buffer[] | null => {
    if (!structured || request.offset !== 0 || request.type !== 0) return null;
    const half = request.length / 2;
    return [holeChunk(request, half, half, 0), dataChunk(request, 0, IMAGE.subarray(0, half), 0), noneChunk(request)];
  };
  const failing = (request: PeerRequest): Buffer[] | null =>
    request.offset === 512 && structured ? [errorChunk(request, 5, 'bad sector')] : answer(request);
  const first: PeerOptions = { image: image(), structured, mangle, answer: failing };
  const bench = new Bench({ peers: [first, { image: image() }] });
  bench.run();
  const slots: number[] = [];
  if (bench.client.up) {
    slots.push(bench.client.read(0, 1024, bench.pieces(1024)));
    slots.push(bench.client.write(4096, 512, bench.pieces(512)));
    slots.push(bench.client.read(512, 512, bench.pieces(512)));
    slots.push(bench.client.flush());
    bench.run();
  }
  return { bench, sent, slots };
}

for (const structured of [true, false]) {
  test(`a stream cut at every byte, ${structured ? 'structured' : 'simple'} replies`, () => {
    const whole = session(Number.POSITIVE_INFINITY, structured);
    assert.equal(whole.bench.client.up, true);
    assert.deepEqual(
      whole.slots.map((slot) => whole.bench.client.state(slot)),
      [RequestState.DONE, RequestState.DONE, structured ? RequestState.FAILED : RequestState.DONE, RequestState.DONE],
    );
    for (let bytes = 0; bytes < whole.sent; bytes++) {
      const { bench, slots } = session(bytes, structured);
      const { linkError, connects } = bench.client.statistics;
      assert.equal(bench.client.up, false, `after ${bytes} bytes`);
      assert.ok(
        linkError === NbdError.TRUNCATED || linkError === NbdError.CLOSED,
        `after ${bytes} bytes: ${linkError}`,
      );
      const states = slots.map((slot) => bench.client.state(slot));
      assert.ok(!states.includes(RequestState.PENDING), `after ${bytes} bytes`);
      assert.ok(slots.length === 0 || states.includes(RequestState.LOST), `after ${bytes} bytes`);
      for (const slot of slots) bench.client.release(slot);
      bench.pass(1000);
      assert.equal(bench.client.statistics.connects, connects + 1);
      bench.assertReads(IMAGE, OFFSET, 4096);
    }
  });
}

function assertError(bench: Bench, name: ErrorName): void {
  assert.equal(bench.client.statistics.linkError, NbdError[name], bench.client.log.join('\n'));
}
