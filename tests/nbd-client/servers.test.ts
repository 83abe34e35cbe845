// Servers that others have written: nbdkit with its filters, and qemu-nbd.

import assert from 'node:assert/strict';
import fs from 'node:fs';
import path from 'node:path';
import { after, test } from 'node:test';
import { NbdError, RequestState } from '../../host/fuzz/nbd-client.js';
import { testImage } from './bench.js';
import { hasCommand, RealClient, RealServer } from './real.js';

const IMAGE_SIZE = 4 << 20;
const IMAGE = testImage(IMAGE_SIZE);
const DONE = { state: RequestState.DONE, errno: 0 };
const NBDKIT = ['-f', '--exit-with-parent', '-U', 'SOCKET'];
const EIO = 5;

const cleanUp: (() => unknown)[] = [];
after(async () => {
  for (const clean of cleanUp.reverse()) await clean();
});

interface Session {
  server: RealServer;
  real: RealClient;
}

/** A server with the test image as FOLDER/image, and a client of it. */
async function session(command: string, args: string[], exportName = ''): Promise<Session> {
  const server = new RealServer();
  cleanUp.push(() => server.remove());
  fs.writeFileSync(path.join(server.folder, 'image'), IMAGE);
  await server.start(command, args);
  const real = new RealClient({ address: { path: server.socket } }, { exportName });
  cleanUp.push(() => real.stop());
  return { server, real };
}

/** Reads, writes, reads back, flushes; what was written is in the server's file. */
async function exercise(real: RealClient): Promise<void> {
  await real.up();
  assert.equal(real.client.exportSize, BigInt(IMAGE_SIZE));
  for (const [offset, length] of [
    [0, 512],
    [131_072, 131_072],
    [IMAGE_SIZE - 4096, 4096],
  ]) {
    assert.deepEqual(await real.read(offset, length), DONE);
    assert.ok(real.bytes(length).equals(IMAGE.subarray(offset, offset + length)), `read of ${length} at ${offset}`);
  }
  const data = Buffer.from(testImage(131_072)).reverse();
  assert.deepEqual(await real.write(524_288, data, 100), DONE);
  assert.deepEqual(await real.flush(), DONE);
  assert.deepEqual(await real.read(524_288, 131_072), DONE);
  assert.ok(real.bytes(131_072).equals(data), 'what was written is not read back');
}

/** Many requests at once, more than fit. */
async function crowd(real: RealClient): Promise<void> {
  const total = 200;
  let started = 0;
  let ended = 0;
  const active = new Map<number, number>();
  await real.up();
  const turn = (): void => {
    for (const [slot, number] of active) {
      if (real.client.state(slot) === RequestState.PENDING) continue;
      assert.equal(real.client.state(slot), RequestState.DONE, real.client.log.join('\n'));
      const offset = (number * 37 * 4096) % (1 << 19);
      assert.ok(real.bytes(8192, slot * 2).equals(IMAGE.subarray(offset, offset + 8192)), `request ${number}`);
      real.client.release(slot);
      active.delete(slot);
      ended += 1;
    }
    while (started < total) {
      const offset = (started * 37 * 4096) % (1 << 19);
      // The slot is not known before: they come in order of number, lowest free first.
      const free = [...Array(16).keys()].find((slot) => !active.has(slot));
      if (free === undefined) break;
      const slot = real.client.read(offset, 8192, real.pieces(free * 2, 8192));
      assert.equal(slot, free);
      active.set(slot, started);
      started += 1;
    }
  };
  while (ended < total) {
    turn();
    real.step();
    await real.until(
      'moved',
      () => ended === total || [...active.keys()].some((slot) => real.client.state(slot) !== 1),
    );
  }
}

const SERVERS: [string, string, string[], string?][] = [
  ['nbdkit file', 'nbdkit', [...NBDKIT, 'file', 'FOLDER/image']],
  ['nbdkit file, simple replies', 'nbdkit', [...NBDKIT, '--no-sr', 'file', 'FOLDER/image']],
  ['nbdkit file, no NO_ZEROES', 'nbdkit', [...NBDKIT, '--mask-handshake=1', 'file', 'FOLDER/image']],
  [
    'nbdkit file, slow, all at once',
    'nbdkit',
    [...NBDKIT, '--filter=delay', 'file', 'FOLDER/image', 'rdelay=5ms', 'wdelay=5ms'],
  ],
  ['nbdkit file, no FUA', 'nbdkit', [...NBDKIT, '--filter=fua', 'file', 'FOLDER/image', 'fuamode=discard']],
  [
    'nbdkit file, at most 64 KiB at once',
    'nbdkit',
    [
      ...NBDKIT,
      '--filter=blocksize-policy',
      'file',
      'FOLDER/image',
      'blocksize-maximum=64K',
      'blocksize-error-policy=error',
    ],
  ],
  [
    'nbdkit file behind an export name',
    'nbdkit',
    [...NBDKIT, '--filter=exportname', 'file', 'FOLDER/image', 'exportname=disk', 'exportname-strict=true'],
    'disk',
  ],
  ['qemu-nbd raw', 'qemu-nbd', ['-k', 'SOCKET', '-t', '-f', 'raw', '-x', 'disk', 'FOLDER/image'], 'disk'],
  ['qemu-nbd raw, no discard', 'qemu-nbd', ['-k', 'SOCKET', '-t', '-f', 'raw', '--discard=off', 'FOLDER/image']],
];

for (const [name, command, args, exportName] of SERVERS) {
  test(name, { skip: !hasCommand(command) }, async () => {
    const { server, real } = await session(command, args, exportName);
    await crowd(real);
    await exercise(real);
    const written = fs.readFileSync(path.join(server.folder, 'image'));
    const expected = Buffer.from(IMAGE);
    Buffer.from(testImage(131_072)).reverse().copy(expected, 524_288);
    assert.ok(written.equals(expected), 'the image is not what was written');
    assert.equal(real.client.statistics.protocolErrors, 0);
    assert.equal(real.client.connection, 1);
  });
}

test('nbdkit with holes: chunks of zeros', { skip: !hasCommand('nbdkit') }, async () => {
  const { real } = await session('nbdkit', [...NBDKIT, 'data', '@0x8000 1 2 3 4 @0x20000 5', 'size=1M']);
  real.client.memory.fill(0xff, 0x200000, 0x200000 + 262_144);
  assert.deepEqual(await real.read(0, 131_072), DONE);
  const expected = Buffer.alloc(131_072);
  expected.set([1, 2, 3, 4], 0x8000);
  assert.ok(real.bytes(131_072).equals(expected));
});

test('qemu-nbd with holes: chunks of zeros', { skip: !hasCommand('qemu-nbd') }, async () => {
  const server = new RealServer();
  cleanUp.push(() => server.remove());
  const file = path.join(server.folder, 'image');
  fs.writeFileSync(file, '');
  fs.truncateSync(file, 1 << 20);
  const handle = fs.openSync(file, 'r+');
  fs.writeSync(handle, Buffer.alloc(65_536, 0x3c), 0, 65_536, 65_536);
  fs.closeSync(handle);
  await server.start('qemu-nbd', ['-k', 'SOCKET', '-t', '-f', 'raw', 'FOLDER/image']);
  const real = new RealClient({ address: { path: server.socket } });
  cleanUp.push(() => real.stop());
  real.client.memory.fill(0xff, 0x200000, 0x200000 + 262_144);
  assert.deepEqual(await real.read(16_384, 131_072), DONE);
  const expected = Buffer.concat([Buffer.alloc(49_152), Buffer.alloc(65_536, 0x3c), Buffer.alloc(16_384)]);
  assert.ok(real.bytes(131_072).equals(expected));
  // The hole and the data came apart: fewer bytes than were asked for.
  assert.ok(real.client.statistics.bytesFromServer < 100_000, `${real.client.statistics.bytesFromServer} bytes`);
});

test('nbdkit with errors: the error number, and the connection goes on', { skip: !hasCommand('nbdkit') }, async () => {
  const filters = ['--filter=error', 'file', 'FOLDER/image', 'error=ENOSPC', 'error-pwrite-rate=1'];
  const { real } = await session('nbdkit', [...NBDKIT, ...filters]);
  assert.deepEqual(await real.write(0, Buffer.alloc(4096)), { state: RequestState.FAILED, errno: 28 });
  assert.deepEqual(await real.read(0, 131_072), DONE);
  assert.ok(real.bytes(131_072).equals(IMAGE.subarray(0, 131_072)));
  assert.equal(real.client.connection, 1);
});

test('nbdkit with bad sectors: only they fail', { skip: !hasCommand('nbdkit') }, async () => {
  const script = [
    ...['get_size=echo 1048576', 'pread=if [ $4 -le 8192 ] && [ $(($4+$3)) -gt 8192 ]; then'],
    ...['echo EIO bad sector at 8192 >&2; exit 1; fi; head -c $3 /dev/zero'],
  ];
  const pread = script.slice(1).join(' ');
  const { real } = await session('nbdkit', [...NBDKIT, 'eval', script[0], pread]);
  assert.deepEqual(await real.read(4096, 4096), DONE);
  assert.deepEqual(await real.read(4096, 8192), { state: RequestState.FAILED, errno: EIO });
  assert.deepEqual(await real.read(12_288, 4096), DONE);
});

test('nbdkit read-only', { skip: !hasCommand('nbdkit') }, async () => {
  const { real } = await session('nbdkit', [...NBDKIT, '-r', 'file', 'FOLDER/image']);
  await real.up();
  assert.equal(real.client.exportFlags & 2, 2);
  const { state } = await real.write(0, Buffer.alloc(512));
  assert.equal(state, RequestState.FAILED);
  assert.deepEqual(await real.read(0, 512), DONE);
});

for (const size of [0, 1, 511, 1000, 4097]) {
  test(`nbdkit with an image of ${size} bytes`, { skip: !hasCommand('nbdkit') }, async () => {
    const { real } = await session('nbdkit', [...NBDKIT, 'pattern', `size=${size}`]);
    await real.up();
    assert.equal(real.client.exportSize, BigInt(size));
    if (size > 0) assert.deepEqual(await real.read(0, size), DONE);
  });
}

const REFUSALS: [string, string, string[], string, number][] = [
  [
    'nbdkit: no such export',
    'nbdkit',
    [...NBDKIT, '--filter=exportname', 'null', 'exportname=a', 'exportname-strict=true'],
    'b',
    NbdError.EXPORT_UNKNOWN,
  ],
  ['nbdkit: not fixed newstyle', 'nbdkit', [...NBDKIT, '--mask-handshake=0', 'null'], '', NbdError.NOT_FIXED_NEWSTYLE],
  ['nbdkit: oldstyle', 'nbdkit', [...NBDKIT, '-o', 'null'], '', NbdError.NOT_FIXED_NEWSTYLE],
  [
    'nbdkit: minimum block of 4 KiB',
    'nbdkit',
    [...NBDKIT, '--filter=blocksize-policy', 'null', 'size=1M', 'blocksize-minimum=4K'],
    '',
    NbdError.BLOCK_SIZE,
  ],
  [
    'qemu-nbd: no such export',
    'qemu-nbd',
    ['-k', 'SOCKET', '-t', '-f', 'raw', '-x', 'a', 'FOLDER/image'],
    'b',
    NbdError.EXPORT_UNKNOWN,
  ],
];

for (const [name, command, args, exportName, error] of REFUSALS) {
  test(name, { skip: !hasCommand(command) }, async () => {
    const { real } = await session(command, args, exportName);
    await real.until('refused', () => real.client.statistics.linkState === 'refused');
    assert.equal(real.client.statistics.linkError, error, real.client.log.join('\n'));
  });
}

test('nbdkit killed in the middle of requests and started again', { skip: !hasCommand('nbdkit') }, async () => {
  const args = [...NBDKIT, '--filter=delay', 'file', 'FOLDER/image', 'rdelay=200ms'];
  const { server, real } = await session('nbdkit', args);
  for (let round = 1; round <= 3; round++) {
    await real.up();
    const slots = [0, 1, 2].map((i) => real.client.read(i * 4096, 4096, real.pieces(i, 4096)));
    real.step();
    await server.kill('SIGKILL');
    await real.until('down', () => !real.client.up);
    for (const slot of slots) {
      assert.equal(real.client.state(slot), RequestState.LOST);
      real.client.release(slot);
    }
    fs.rmSync(server.socket, { force: true });
    await server.start('nbdkit', args);
    assert.deepEqual(await real.read(8192, 4096), DONE);
    assert.ok(real.bytes(4096).equals(IMAGE.subarray(8192, 12_288)));
    assert.equal(real.client.connection, round + 1);
  }
});
