// The line of `ribbon sim --link`: everything arrives, in order and whole, however slow and far; a pulled cable says nothing.

import assert from 'node:assert/strict';
import { randomBytes } from 'node:crypto';
import { once } from 'node:events';
import { mkdtempSync, rmSync } from 'node:fs';
import net from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test } from 'node:test';
import { FREE_LINK, Link, type LinkClock, type LinkOptions, parseLink } from '../../host/sim/link.js';

/** Time that passes when it is told to. */
class ManualClock implements LinkClock {
  #nowMs = 0;
  #waiting: { atMs: number; run: () => void }[] = [];

  nowMs(): number {
    return this.#nowMs;
  }

  after(ms: number, run: () => void): void {
    this.#waiting.push({ atMs: this.#nowMs + ms, run });
  }

  pass(ms: number): void {
    const endMs = this.#nowMs + ms;
    for (;;) {
      this.#waiting.sort((a, b) => a.atMs - b.atMs);
      if (this.#waiting.length === 0 || this.#waiting[0].atMs > endMs) break;
      const { atMs, run } = this.#waiting.shift()!;
      this.#nowMs = atMs;
      run();
    }
    this.#nowMs = endMs;
  }
}

interface Ends {
  link: Link;
  clock: ManualClock;
  near: net.Socket;
  far: net.Socket;
  /** Where the line begins, and the connections that have come out of it. */
  line: string;
  accepted: net.Socket[];
  /** What has come out at either end. */
  atNear: () => Buffer;
  atFar: () => Buffer;
}

/** Lets what sockets have to tell be told. */
async function settle(): Promise<void> {
  for (let i = 0; i < 20; i++) await new Promise((done) => setImmediate(done));
}

async function until(condition: () => boolean, clock?: ManualClock): Promise<void> {
  while (!condition()) {
    await settle();
    clock?.pass(1);
  }
}

async function withLink(options: LinkOptions, run: (ends: Ends) => Promise<void>): Promise<void> {
  const folder = mkdtempSync(join(tmpdir(), 'ribbon-link-'));
  const server = net.createServer({ allowHalfOpen: true });
  server.listen(join(folder, 'server'));
  await once(server, 'listening');
  const accepted: net.Socket[] = [];
  server.on('connection', (socket) => accepted.push(socket));
  const clock = new ManualClock();
  const line = join(folder, 'line');
  const link = new Link({ path: join(folder, 'server') }, options, clock);
  await link.listen(line);
  const near = net.connect({ path: line, allowHalfOpen: true });
  const [far] = (await once(server, 'connection')) as [net.Socket];
  const collect = (socket: net.Socket): (() => Buffer) => {
    const parts: Buffer[] = [];
    socket.on('data', (bytes: Buffer) => parts.push(bytes));
    socket.on('error', () => {});
    return () => Buffer.concat(parts);
  };
  try {
    await run({ link, clock, near, far, line, accepted, atNear: collect(near), atFar: collect(far) });
  } finally {
    near.destroy();
    far.destroy();
    link.close();
    server.close();
    rmSync(folder, { recursive: true });
  }
}

test('parses what is said about a line, and refuses what says nothing', () => {
  const link = parseLink('up@60s,down@20s', parseLink('1.5Mbit,40ms'));
  assert.deepEqual(link, {
    bytesPerSecond: 187_500,
    latencyMs: 40,
    switches: [
      { up: true, afterMs: 60_000 },
      { up: false, afterMs: 20_000 },
    ],
  });
  assert.deepEqual(FREE_LINK.switches, []);
  for (const text of ['', '40', '0Mbit', 'down', 'down@', 'sideways@3s', '1.5Mbit;40ms']) {
    assert.throws(() => parseLink(text), /says nothing about a line/);
  }
});

for (const [name, options] of [
  ['a free line', FREE_LINK],
  ['a slow and distant line', parseLink('100Mbit,15ms')],
] as const) {
  test(`${name} carries both ways, whole and in order, and then the end`, () =>
    withLink(options, async ({ clock, near, far, atNear, atFar }) => {
      const up = randomBytes(3_000_000);
      const down = randomBytes(1_000_000);
      near.end(up);
      far.end(down);
      let ends = 0;
      for (const socket of [near, far]) socket.on('end', () => (ends += 1));
      await until(() => ends === 2, clock);
      assert.ok(atFar().equals(up));
      assert.ok(atNear().equals(down));
    }));
}

test('rate and latency are what they are said to be', () =>
  withLink(parseLink('8Mbit,100ms'), async ({ clock, near, atFar }) => {
    near.write(Buffer.alloc(50_000));
    await settle();
    // 50,000 bytes at 1,000,000 a second take 50 ms; the last of them arrive 100 ms later.
    clock.pass(110);
    await settle();
    assert.ok(atFar().length < 16_384, `${atFar().length} bytes`);
    clock.pass(41);
    await until(() => atFar().length === 50_000);
  }));

test('a pulled cable says nothing to either end, and loses nothing that they do not give up', () =>
  withLink(FREE_LINK, async ({ link, near, far, atFar }) => {
    const closed: string[] = [];
    near.on('close', () => closed.push('near'));
    far.on('end', () => closed.push('far'));
    near.write('before ');
    await until(() => atFar().length === 7);
    link.set(false);
    near.write('while it is out ');
    await settle();
    assert.equal(atFar().toString(), 'before ');
    link.set(true);
    await until(() => atFar().length === 23);
    assert.deepEqual(closed, []);
    // Who gives up is not heard of before the cable is back.
    link.set(false);
    near.destroy();
    await settle();
    assert.deepEqual(closed, ['near']);
    link.set(true);
    await until(() => closed.length === 2);
  }));

test('a connection made while the cable is out comes about when it is back', () =>
  withLink(FREE_LINK, async ({ link, line, accepted }) => {
    link.set(false);
    const late = net.connect(line);
    late.write('hello');
    await once(late, 'connect');
    await settle();
    assert.equal(accepted.length, 1);
    link.set(true);
    await until(() => accepted.length === 2);
    const [bytes] = (await once(accepted[1], 'data')) as [Buffer];
    assert.equal(bytes.toString(), 'hello');
    late.destroy();
    accepted[1].destroy();
  }));

test('the line goes down and comes up when it was said to', () =>
  withLink(parseLink('down@20s,up@60s'), async ({ link, clock }) => {
    const seen: boolean[] = [];
    link.onChange = (up) => seen.push(up);
    clock.pass(19_999);
    assert.deepEqual(seen, []);
    clock.pass(1);
    assert.equal(link.up, false);
    clock.pass(40_000);
    assert.deepEqual(seen, [false, true]);
  }));
