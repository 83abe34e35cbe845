// The protocol by a client that breaks every rule: NbdSession without sockets, on a store in memory.
//
// Invariants: nothing thrown, no "session failed" in the log, every session that is told of the end of its connection lets its export go,
// and what was not committed never shows.

import assert from 'node:assert/strict';
import { before, test } from 'node:test';
import { NBD_REQUEST_MAX } from '../../host/server/nbd-negotiation.js';
import * as nbd from '../../host/server/nbd-protocol.js';
import { NbdSession, type Transport } from '../../host/server/nbd-session.js';
import { noCodec, zstdCodec } from '../../host/store/codec.js';
import type { StoreFile } from '../../host/store/files.js';
import { MemoryIndex } from '../../host/store/index.js';
import { MemoryFiles } from '../../host/store/memory-files.js';
import type { Store } from '../../host/store/store.js';
import { BLOCK, blockOf, CLIENT, generator, newMedium, openStore } from '../store/model.js';
import { CoverageMeter } from './coverage.js';

const SIZE = 300 * BLOCK;

class Line {
  readonly session: NbdSession;
  output = Buffer.alloc(0);
  ended = false;
  tlsStarted = false;
  readonly logs: string[] = [];
  private left = Buffer.alloc(0);

  constructor(store: Store, tls: Transport['tls'] = 'none') {
    this.session = new NbdSession(store, {
      client: CLIENT,
      tls,
      send: (bytes, sent) => {
        this.output = Buffer.concat([this.output, bytes]);
        sent();
        return true;
      },
      startTls: () => {
        this.tlsStarted = true;
      },
      end: () => {
        this.ended = true;
      },
      log: (level, message) => this.logs.push(`${level} ${message}`),
      wake: () => this.feed(Buffer.alloc(0)),
    });
    this.session.open();
  }

  feed(bytes: Buffer): void {
    const all = Buffer.concat([this.left, bytes]);
    const taken = this.session.receive(all);
    this.left = this.session.closed ? Buffer.alloc(0) : all.subarray(taken);
  }

  async talk(bytes: Buffer, piece = bytes.length): Promise<Buffer> {
    const from = this.output.length;
    for (let at = 0; at < bytes.length; at += piece) {
      this.feed(bytes.subarray(at, at + piece));
      if (piece < bytes.length && (at & 63) === 0) await settle();
    }
    await settle();
    return this.output.subarray(from);
  }

  async hangUp(): Promise<void> {
    this.session.disconnected();
    await settle();
  }
}

/** Lets everything that waits for memory only come to its end. */
async function settle(): Promise<void> {
  for (let turn = 0; turn < 3; turn++) await new Promise<void>((resolve) => setImmediate(resolve));
}

function option(number: number, data: Buffer | string = ''): Buffer {
  const bytes = Buffer.from(data as string);
  const head = Buffer.alloc(16);
  head.writeBigUInt64BE(nbd.IHAVEOPT);
  head.writeUInt32BE(number, 8);
  head.writeUInt32BE(bytes.length, 12);
  return Buffer.concat([head, bytes]);
}

function named(name: string, ...rest: number[]): Buffer {
  const bytes = Buffer.from(name);
  const data = Buffer.alloc(4 + bytes.length + 2 + 2 * rest.length);
  data.writeUInt32BE(bytes.length);
  bytes.copy(data, 4);
  data.writeUInt16BE(rest.length, 4 + bytes.length);
  for (const [index, value] of rest.entries()) data.writeUInt16BE(value, 6 + bytes.length + 2 * index);
  return data;
}

function contexts(name: string, ...queries: string[]): Buffer {
  const text = (it: string) => {
    const bytes = Buffer.from(it);
    const length = Buffer.alloc(4);
    length.writeUInt32BE(bytes.length);
    return Buffer.concat([length, bytes]);
  };
  const count = Buffer.alloc(4);
  count.writeUInt32BE(queries.length);
  return Buffer.concat([text(name), count, ...queries.map(text)]);
}

function request(
  command: number,
  offset: number,
  length: number,
  payload = Buffer.alloc(0),
  flags = 0,
  cookie = 1,
): Buffer {
  const head = Buffer.alloc(28);
  head.writeUInt32BE(nbd.NBD_REQUEST_MAGIC);
  head.writeUInt16BE(flags, 4);
  head.writeUInt16BE(command, 6);
  head.writeBigUInt64BE(BigInt(cookie), 8);
  head.writeBigUInt64BE(BigInt(offset), 16);
  head.writeUInt32BE(length, 24);
  return Buffer.concat([head, payload]);
}

const FLAGS = Buffer.from([0, 0, 0, 3]);
const GO = option(nbd.NBD_OPT_GO, named('a'));
const STRUCTURED = option(nbd.NBD_OPT_STRUCTURED_REPLY);

/** The reply type of the first option reply. */
const replyType = (output: Buffer) => (output.length < 20 ? null : output.readUInt32BE(12));
/** The error of the first reply, simple or structured. */
function errorOf(output: Buffer): number {
  if (output.readUInt32BE(0) === nbd.NBD_SIMPLE_REPLY_MAGIC) return output.readUInt32BE(4);
  return output.readUInt16BE(6) === nbd.NBD_REPLY_TYPE_ERROR ? output.readUInt32BE(20) : 0;
}

async function newStore(): Promise<Store> {
  const store = await openStore(newMedium());
  await store.images.create('a', SIZE);
  const opened = await store.open('a', CLIENT);
  await opened.write(BLOCK, blockOf(5));
  await opened.close(true);
  await store.digestAll();
  return store;
}

async function connected(store: Store, structured = false): Promise<Line> {
  const line = new Line(store);
  await line.talk(Buffer.concat([FLAGS, ...(structured ? [STRUCTURED] : []), GO]));
  assert.ok(line.session.transmitting);
  return line;
}

/** What the tests of this file must reach; a card's own commands have theirs in cards.test.ts. */
const REACHED: Record<string, number> = {
  'host/server/nbd-negotiation.js': 0.78,
  'host/server/nbd-session.js': 0.7,
  'host/server/nbd-output.js': 0.9,
};
const coverage = new CoverageMeter();
before(() => coverage.start());

test('every way of cutting the stream gives the same answers', async () => {
  const conversation = Buffer.concat([
    FLAGS,
    option(nbd.NBD_OPT_LIST),
    STRUCTURED,
    option(nbd.NBD_OPT_SET_META_CONTEXT, contexts('a', 'base:allocation', 'x-ribbon:changed-since=1')),
    option(nbd.NBD_OPT_INFO, named('a', 1, 2, 3)),
    option(nbd.NBD_OPT_INFO, named('nothing')),
    GO,
    request(nbd.NBD_CMD_READ, 0, 3 * BLOCK),
    request(nbd.NBD_CMD_BLOCK_STATUS, 0, SIZE),
    request(nbd.NBD_CMD_WRITE, 100, 5000, Buffer.alloc(5000, 9)),
    request(nbd.NBD_CMD_WRITE_ZEROES, 2000, 100),
    request(nbd.NBD_CMD_READ, 0, 2 * BLOCK),
    request(nbd.NBD_CMD_TRIM, 0, BLOCK),
    request(nbd.NBD_CMD_CACHE, 0, BLOCK),
    request(nbd.NBD_CMD_READ, SIZE, 1),
    request(nbd.NBD_CMD_READ, 50, 70_000),
  ]);
  let expected: Buffer | null = null;
  for (const piece of [conversation.length, 1, 7, 27, 28, 29, 4096, 5000]) {
    const store = await newStore();
    const line = new Line(store);
    await line.talk(conversation, piece);
    await line.hangUp();
    expected ??= line.output;
    assert.ok(line.output.equals(expected), `pieces of ${piece}`);
    assert.deepEqual(
      line.logs.filter((it) => it.startsWith('error')),
      [],
    );
    assert.equal(store.generation('a'), 2, 'the connection broke: nothing was committed');
    await store.close();
  }
});

const NEGOTIATION: { name: string; bytes: Buffer; type?: number; ends?: boolean; tls?: Transport['tls'] }[] = [
  { name: 'unknown client flags', bytes: Buffer.from([0, 0, 0, 4]), ends: true },
  { name: 'bad option magic', bytes: Buffer.concat([FLAGS, Buffer.alloc(16, 1)]), ends: true },
  { name: 'unknown option', bytes: Buffer.concat([FLAGS, option(99, 'x')]), type: nbd.NBD_REP_ERR_UNSUP },
  { name: 'extended headers', bytes: Buffer.concat([FLAGS, option(11)]), type: nbd.NBD_REP_ERR_UNSUP },
  {
    name: 'too much option data',
    bytes: Buffer.concat([FLAGS, option(nbd.NBD_OPT_GO, Buffer.alloc(20_000))]),
    type: nbd.NBD_REP_ERR_TOO_BIG,
  },
  { name: 'absurd option data', bytes: Buffer.concat([FLAGS, option(nbd.NBD_OPT_GO).fill(0xff, 12)]), ends: true },
  {
    name: 'list with data',
    bytes: Buffer.concat([FLAGS, option(nbd.NBD_OPT_LIST, 'x')]),
    type: nbd.NBD_REP_ERR_INVALID,
  },
  {
    name: 'structured with data',
    bytes: Buffer.concat([FLAGS, option(nbd.NBD_OPT_STRUCTURED_REPLY, 'x')]),
    type: nbd.NBD_REP_ERR_INVALID,
  },
  { name: 'go, empty', bytes: Buffer.concat([FLAGS, option(nbd.NBD_OPT_GO)]), type: nbd.NBD_REP_ERR_INVALID },
  {
    name: 'go, name longer than its data',
    bytes: Buffer.concat([FLAGS, option(nbd.NBD_OPT_GO, named('a').fill(0xff, 0, 4))]),
    type: nbd.NBD_REP_ERR_INVALID,
  },
  {
    name: 'go, a byte too many',
    bytes: Buffer.concat([FLAGS, option(nbd.NBD_OPT_GO, Buffer.concat([named('a'), Buffer.alloc(1)]))]),
    type: nbd.NBD_REP_ERR_INVALID,
  },
  ...['', '..', '../a', 'a/../b', 'a\0', 'A', 'a@', '@1', 'a@b@c', 'x'.repeat(300), 'a@99999', 'a/none', 'ａ', 'a‮'].map(
    (name) => ({
      name: `go "${JSON.stringify(name).slice(0, 30)}"`,
      bytes: Buffer.concat([FLAGS, option(nbd.NBD_OPT_GO, named(name))]),
      type: name.includes('\0') ? nbd.NBD_REP_ERR_INVALID : nbd.NBD_REP_ERR_UNKNOWN,
    }),
  ),
  {
    name: 'go, not UTF-8',
    bytes: Buffer.concat([FLAGS, option(nbd.NBD_OPT_GO, Buffer.from([0, 0, 0, 1, 0xff, 0, 0]))]),
    type: nbd.NBD_REP_ERR_INVALID,
  },
  { name: 'export name, unknown', bytes: Buffer.concat([FLAGS, option(nbd.NBD_OPT_EXPORT_NAME, 'b')]), ends: true },
  {
    name: 'meta context without structured replies',
    bytes: Buffer.concat([FLAGS, option(nbd.NBD_OPT_SET_META_CONTEXT, contexts('a', 'base:'))]),
    type: nbd.NBD_REP_ERR_INVALID,
  },
  {
    name: 'meta context, queries cut off',
    bytes: Buffer.concat([FLAGS, option(nbd.NBD_OPT_LIST_META_CONTEXT, contexts('a', 'base:').subarray(0, 11))]),
    type: nbd.NBD_REP_ERR_INVALID,
  },
  {
    name: 'starttls without TLS',
    bytes: Buffer.concat([FLAGS, option(nbd.NBD_OPT_STARTTLS)]),
    type: nbd.NBD_REP_ERR_POLICY,
  },
  { name: 'go before TLS', bytes: Buffer.concat([FLAGS, GO]), type: nbd.NBD_REP_ERR_TLS_REQD, tls: 'required' },
  {
    name: 'list before TLS',
    bytes: Buffer.concat([FLAGS, option(nbd.NBD_OPT_LIST)]),
    type: nbd.NBD_REP_ERR_TLS_REQD,
    tls: 'required',
  },
  {
    name: 'export name before TLS',
    bytes: Buffer.concat([FLAGS, option(nbd.NBD_OPT_EXPORT_NAME, 'a')]),
    ends: true,
    tls: 'required',
  },
  {
    name: 'bytes smuggled behind STARTTLS',
    bytes: Buffer.concat([FLAGS, option(nbd.NBD_OPT_STARTTLS), GO]),
    ends: true,
    tls: 'required',
  },
];

test('negotiation: each broken rule has its answer', async () => {
  const store = await newStore();
  for (const { name, bytes, type, ends, tls } of NEGOTIATION) {
    const line = new Line(store, tls);
    const answer = await line.talk(bytes);
    assert.equal(line.ended, ends === true, `${name}: ended`);
    assert.equal(line.tlsStarted, false, name);
    if (type !== undefined) assert.equal(replyType(answer), type, name);
    assert.deepEqual(
      line.logs.filter((it) => it.startsWith('error')),
      [],
      name,
    );
    await line.hangUp();
  }
  assert.equal(store.infoOf('a').readers, 0, 'an export was left open');
  await store.close();
});

const { EINVAL, ENOSPC, EPERM, EOVERFLOW } = nbd.NBD_ERRNO;
const TRANSMISSION: { name: string; bytes: Buffer; errno?: number; ends?: boolean; readOnly?: boolean }[] = [
  { name: 'bad magic', bytes: Buffer.alloc(28, 3), ends: true },
  { name: 'unknown command', bytes: request(77, 0, 0), errno: EINVAL },
  { name: 'unknown flag', bytes: request(nbd.NBD_CMD_READ, 0, BLOCK, Buffer.alloc(0), 0x100), errno: EINVAL },
  { name: 'length 0', bytes: request(nbd.NBD_CMD_READ, 0, 0), errno: EINVAL },
  { name: 'read beyond the end', bytes: request(nbd.NBD_CMD_READ, SIZE - 1, 2), errno: EINVAL },
  { name: 'read at 2^63', bytes: request(nbd.NBD_CMD_READ, 2 ** 63, 1), errno: EINVAL },
  { name: 'write beyond the end', bytes: request(nbd.NBD_CMD_WRITE, SIZE, 2, Buffer.alloc(2)), errno: ENOSPC },
  { name: 'trim beyond the end', bytes: request(nbd.NBD_CMD_TRIM, SIZE, 2), errno: ENOSPC },
  { name: 'status without a context', bytes: request(nbd.NBD_CMD_BLOCK_STATUS, 0, BLOCK), errno: EINVAL },
  { name: 'write with length 0', bytes: request(nbd.NBD_CMD_WRITE, 0, 0), errno: EINVAL },
  { name: 'an absurd write', bytes: request(nbd.NBD_CMD_WRITE, 0, 0xffff_ffff), ends: true },
  {
    name: 'write to a generation',
    bytes: request(nbd.NBD_CMD_WRITE, 0, 512, Buffer.alloc(512)),
    errno: EPERM,
    readOnly: true,
  },
  { name: 'zero a generation', bytes: request(nbd.NBD_CMD_WRITE_ZEROES, 0, 512), errno: EPERM, readOnly: true },
];

test('transmission: each broken rule has its answer, and the connection goes on', async () => {
  const store = await newStore();
  for (const { name, bytes, errno, ends, readOnly } of TRANSMISSION) {
    for (const structured of [false, true]) {
      const line = new Line(store);
      const go = readOnly ? option(nbd.NBD_OPT_GO, named('a@2')) : GO;
      await line.talk(Buffer.concat([FLAGS, ...(structured ? [STRUCTURED] : []), go]));
      const answer = await line.talk(bytes);
      assert.equal(line.ended, ends === true, `${name}: ended`);
      if (errno !== undefined) {
        assert.equal(errorOf(answer), errno, name);
        const next = await line.talk(request(nbd.NBD_CMD_READ, BLOCK, 8));
        assert.equal(next.readUInt32LE(next.length - 8), 5, `${name}: the next read`);
      }
      assert.deepEqual(
        line.logs.filter((it) => it.startsWith('error')),
        [],
        name,
      );
      await line.hangUp();
    }
  }
  await store.close();
});

test('a payload that is too large is taken off the stream and refused', async () => {
  const store = await openStore(newMedium());
  await store.images.create('a', 64 * 1024 * 1024);
  const line = await connected(store);
  const length = NBD_REQUEST_MAX + 4096;
  const answer = await line.talk(request(nbd.NBD_CMD_WRITE, 0, length, Buffer.alloc(length, 1)), 1024 * 1024);
  assert.equal(errorOf(answer), EOVERFLOW);
  const read = await line.talk(request(nbd.NBD_CMD_READ, 0, 4));
  assert.equal(read.readUInt32LE(16), 0, 'nothing of it was written');
  await line.hangUp();
  await store.close();
});

test('a client that does not read stops being served, and goes on when it reads', async () => {
  const store = await newStore();
  let blocked = false;
  let bytes = 0;
  const session = new NbdSession(store, {
    client: CLIENT,
    tls: 'none',
    send: (it, sent) => {
      bytes += it.length;
      sent();
      return !blocked;
    },
    startTls: () => {},
    end: () => {},
    log: () => {},
    wake: () => {},
  });
  session.open();
  session.receive(Buffer.concat([FLAGS, GO]));
  await settle();
  blocked = true;
  const before = bytes;
  const reads = Buffer.concat(Array.from({ length: 1000 }, () => request(nbd.NBD_CMD_READ, 0, 256 * 1024)));
  let taken = session.receive(reads);
  assert.ok(bytes - before < 2 * 1024 * 1024, `${bytes - before} bytes were made for a client that takes none`);
  blocked = false;
  for (let turn = 0; turn < 1000 && bytes - before < 1000 * (256 * 1024 + 16); turn++) {
    session.resume();
    taken += session.receive(reads.subarray(taken));
  }
  assert.equal(bytes - before, 1000 * (256 * 1024 + 16));
  session.disconnected();
  await settle();
  await store.close();
});

for (const [kind, codec] of [
  ['as they are', noCodec],
  ['compressed', zstdCodec],
] as const) {
  for (const structured of [true, false]) {
    test(`a damaged block (${kind}, structured replies: ${structured}) is EIO, and the rest can be read`, async () => {
      const medium = newMedium();
      const store = await openStore(medium, { codec });
      await store.images.create('a', SIZE);
      const writer = await store.open('a', CLIENT);
      for (let block = 0; block < 64; block++) await writer.write(block * BLOCK, blockOf(1000 + block));
      await writer.close(true);
      await store.close();
      // In the payload of the first group, which holds block 0.
      const payload = codec === noCodec ? BLOCK : 64 + 32 + 36 * 16;
      medium.files.flipBit(`packs/${medium.files.list('packs')[0]}`, 8 * (payload + 30));
      const line = await connected(await openStore(medium, { codec }), structured);
      const answer = async (bytes: Buffer) => {
        const from = line.output.length;
        line.feed(bytes);
        // Decoding is done in another thread.
        for (let turn = 0; turn < 500 && line.output.length === from; turn++)
          await new Promise<void>((resolve) => setTimeout(resolve, 2));
        return line.output.subarray(from);
      };
      assert.equal(errorOf(await answer(request(nbd.NBD_CMD_READ, 0, BLOCK))), nbd.NBD_ERRNO.EIO);
      const whole = await answer(request(nbd.NBD_CMD_READ, 20 * BLOCK, BLOCK));
      assert.equal(errorOf(whole), 0);
      assert.ok(whole.subarray(-BLOCK).equals(blockOf(1020)));
      await line.hangUp();
      assert.ok(line.ended);
    });
  }
}

/** Files that bring nothing into the page cache before they are told to. */
class SlowFiles extends MemoryFiles {
  readonly waiting: (() => void)[] = [];

  override open(name: string): StoreFile {
    const file = super.open(name);
    file.prefetch = () => new Promise((resolve) => void this.waiting.push(resolve));
    return file;
  }
}

async function slowLine(): Promise<{ line: Line; files: SlowFiles; store: Store }> {
  const files = new SlowFiles();
  const medium = { files, index: new MemoryIndex() };
  const store = await openStore(medium);
  await store.images.create('a', SIZE);
  const writer = await store.open('a', CLIENT);
  for (let block = 0; block < 64; block++) await writer.write(block * BLOCK, blockOf(1000 + block));
  await writer.close(true);
  await store.close();
  const again = await openStore(medium);
  return { line: await connected(again, false), files, store: again };
}

const read = (block: number, cookie: number, blocks = 1) =>
  request(nbd.NBD_CMD_READ, block * BLOCK, blocks * BLOCK, undefined, 0, cookie);

test('reads that wait for the medium do not hold up the requests behind them', async () => {
  const { line, files, store } = await slowLine();
  const flush = request(nbd.NBD_CMD_FLUSH, 0, 0, undefined, 0, 3);
  const early = await line.talk(Buffer.concat([read(3, 1), read(40, 2), flush]));
  assert.equal(files.waiting.length, 2);
  assert.equal(early.length, 16, 'the flush only');
  assert.equal(early.readUInt32BE(12), 3);
  const from = line.output.length;
  files.waiting[1]();
  await settle();
  files.waiting[0]();
  await settle();
  const late = line.output.subarray(from);
  assert.equal(late.length, 2 * (16 + BLOCK));
  assert.equal(late.readUInt32BE(12), 2);
  assert.ok(late.subarray(16, 16 + BLOCK).equals(blockOf(1040)));
  assert.equal(late.readUInt32BE(16 + BLOCK + 12), 1);
  assert.ok(late.subarray(-BLOCK).equals(blockOf(1003)));
  // What has been read once is there.
  const again = await line.talk(Buffer.concat([read(3, 4), read(40, 5)]));
  assert.equal(again.length, 2 * (16 + BLOCK));
  assert.equal(files.waiting.length, 2);
  await line.hangUp();
  assert.ok(line.ended);
  await store.close();
});

test('a client that goes while its reads wait for the medium lets its export go when they are over', async () => {
  for (const goodbye of [false, true]) {
    const { line, files, store } = await slowLine();
    await line.talk(Buffer.concat([read(3, 1), read(30, 2, 20)]));
    assert.equal(files.waiting.length, 2);
    if (goodbye) await line.talk(request(nbd.NBD_CMD_DISC, 0, 0));
    else await line.hangUp();
    for (const go of files.waiting) go();
    await settle();
    assert.ok(line.ended);
    assert.ok(!line.logs.some((it) => it.includes('session failed')), line.logs.join());
    await store.close();
  }
});

test('no more reads wait for the medium than are good for the server', async () => {
  const { line, files, store } = await slowLine();
  const all = Buffer.concat(Array.from({ length: 300 }, (_, i) => read(i % 64, i + 1, 1 + (i % 3))));
  const before = line.output.length;
  line.feed(all);
  await settle();
  assert.ok(files.waiting.length <= 65, `${files.waiting.length} at once`);
  let bytes = 0;
  for (let i = 0; i < 300; i++) bytes += 16 + (1 + (i % 3)) * BLOCK;
  for (let turn = 0; turn < 300 && line.output.length < before + bytes; turn++) {
    for (const go of files.waiting.splice(0)) go();
    await settle();
  }
  assert.equal(line.output.length, before + bytes);
  await line.hangUp();
  await store.close();
});

test('fuzz: mutated conversations from a seed', async () => {
  const store = await newStore();
  const valid = [
    FLAGS,
    STRUCTURED,
    option(nbd.NBD_OPT_LIST),
    option(nbd.NBD_OPT_SET_META_CONTEXT, contexts('a', 'base:allocation')),
    GO,
    request(nbd.NBD_CMD_WRITE, 512, 9000, Buffer.alloc(9000, 3)),
    request(nbd.NBD_CMD_READ, 0, 20_000),
    request(nbd.NBD_CMD_BLOCK_STATUS, 0, SIZE),
    request(nbd.NBD_CMD_WRITE_ZEROES, 4096, 50_000),
    request(nbd.NBD_CMD_TRIM, 0, SIZE),
    request(nbd.NBD_CMD_WRITE, 8192, 4096, Buffer.alloc(4096, 9), nbd.NBD_CMD_FLAG_FUA),
    request(nbd.NBD_CMD_CACHE, 0, SIZE),
    request(nbd.NBD_CMD_FLUSH, 0, 0),
    request(nbd.NBD_CMD_DISC, 0, 0),
  ];
  const spice = [
    option(nbd.NBD_OPT_STARTTLS),
    option(nbd.NBD_OPT_INFO, named('a', nbd.NBD_INFO_NAME, nbd.NBD_INFO_DESCRIPTION)),
    option(nbd.NBD_OPT_LIST_META_CONTEXT, contexts('a')),
    option(nbd.NBD_OPT_EXPORT_NAME, 'a'),
    option(nbd.NBD_OPT_ABORT),
    option(77, Buffer.alloc(20_000)),
  ];
  const rounds = Number(process.env.RIBBON_FUZZ ?? 1500);
  for (let seed = 1; seed <= rounds; seed++) {
    const random = generator(seed);
    const pick = (count: number) => Math.floor(random() * count);
    const line = new Line(store, pick(4) === 0 ? 'offered' : 'none');
    const steps = valid.map((it) => Buffer.from(it));
    if (pick(2) === 0) steps.splice(1 + pick(4), 0, Buffer.from(spice[pick(spice.length)]));
    for (let fault = 0; fault < 1 + pick(3); fault++) {
      const index = pick(steps.length);
      const kind = pick(5);
      if (kind === 0) steps[index][pick(Math.min(40, steps[index].length))] ^= 1 << pick(8);
      else if (kind === 1) steps[index] = steps[index].subarray(0, pick(steps[index].length));
      else if (kind === 2) steps.splice(index, 1);
      else if (kind === 3) steps.splice(pick(steps.length), 0, steps[index]);
      else if (steps[index].length >= 4)
        steps[index].writeUInt32BE([0, 1, 0x7fff_ffff, 0xffff_ffff][pick(4)], pick(steps[index].length - 3));
      if (steps.length === 0) break;
    }
    const bytes = Buffer.concat(steps);
    const piece = 1 + pick(3000);
    const abortAt = pick(8) === 0 ? pick(bytes.length) : Number.POSITIVE_INFINITY;
    for (let at = 0; at < bytes.length; at += piece) {
      if (at > abortAt) line.session.abort('the test wants it');
      line.feed(bytes.subarray(at, at + piece));
    }
    await settle();
    await line.hangUp();
    assert.ok(line.ended || line.tlsStarted, `seed ${seed}: the session did not end`);
    assert.deepEqual(
      line.logs.filter((it) => it.startsWith('error')),
      [],
      `seed ${seed}`,
    );
  }
  assert.equal(store.infoOf('a').readers, 0);
  // FLUSH and FUA may have come about by a flipped bit; then the change is a whole generation. The image can be read in any case.
  const line = await connected(store);
  assert.equal(errorOf(await line.talk(request(nbd.NBD_CMD_READ, 0, SIZE))), 0);
  await line.hangUp();
  await store.close();
});

test('the rule breakers above have been everywhere', async (context) => {
  const reached = await coverage.stop(Object.keys(REACHED));
  for (const [name, least] of Object.entries(REACHED)) {
    const { share, functionsMissed } = reached.get(name)!;
    const text = `${name}: ${(100 * share).toFixed(1)} % of the code ran; not called: ${functionsMissed.join(', ') || 'none'}`;
    context.diagnostic(text);
    assert.ok(share >= least, text);
  }
});
