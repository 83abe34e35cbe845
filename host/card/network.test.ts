import assert from 'node:assert/strict';
import { mkdtempSync, rmSync } from 'node:fs';
import net from 'node:net';
import os from 'node:os';
import path from 'node:path';
import { test } from 'node:test';
import { Network } from './network.js';

test('what was sent arrives as it was, whatever becomes of the memory it was sent from', async () => {
  const folder = mkdtempSync(path.join(os.tmpdir(), 'ribbon-test-'));
  const socket = path.join(folder, 'peer');
  const received: Buffer[] = [];
  let peer: net.Socket | undefined;
  const server = net.createServer({ pauseOnConnect: true }, (it) => {
    peer = it;
  });
  await new Promise<void>((resolve) => server.listen(socket, resolve));
  const network = new Network([{ address: { path: socket } }]);
  const changed = () =>
    new Promise<void>((resolve) => {
      network.onChange = resolve;
    });
  try {
    network.open(0, 0);
    while (network.state(0) !== 2 || peer === undefined) await Promise.race([changed(), new Promise(setImmediate)]);
    // More than the peer's system takes, in pieces of all sizes.
    const memory = new Uint8Array(128 << 10);
    const expected: Buffer[] = [];
    let stalls = 0;
    for (let i = 0, bytes = 0; bytes < 6 << 20; i++) {
      const piece = memory.subarray(0, [28, 100, 131_072, 16_384, 70_001][i % 5]);
      piece.fill(i % 251);
      expected.push(Buffer.from(piece));
      bytes += piece.length;
      for (let done = 0; done < piece.length; ) {
        const count = network.send(0, piece.subarray(done));
        done += count;
        if (count > 0) continue;
        network.flush();
        if (stalls++ === 0) {
          peer.on('data', (data) => received.push(data));
          peer.resume();
        }
        await changed();
      }
      memory.fill(0xee);
    }
    network.flush();
    const length = expected.reduce((sum, { length }) => sum + length, 0);
    while (received.reduce((sum, { length }) => sum + length, 0) < length) await new Promise(setImmediate);
    assert.ok(stalls > 0, 'the peer was never behind');
    assert.ok(Buffer.concat(received).equals(Buffer.concat(expected)));
  } finally {
    network.closeAll();
    peer?.destroy();
    server.close();
    rmSync(folder, { recursive: true, force: true });
  }
});
