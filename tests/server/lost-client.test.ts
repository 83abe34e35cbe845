// A client that stops taking replies and then goes away must not keep the image from the next writer: its session ends with
// its socket, also when requests of it are still waiting.

import assert from 'node:assert/strict';
import { mkdtemp, rm } from 'node:fs/promises';
import net from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test } from 'node:test';
import type { Exports, OpenExport } from '../../host/server/export.js';
import { ImageServer } from '../../host/server/server.js';

const SIZE = 64 << 20;

/** An export that counts its openings. */
class Counting implements Exports {
  open_ = 0;
  list(): [] {
    return [];
  }
  open(): OpenExport {
    this.open_ += 1;
    return {
      size: SIZE,
      readOnly: false,
      multiConnection: false,
      description: '',
      read: () => undefined,
      write: () => undefined,
      zero: () => undefined,
      commit: () => undefined,
      metaContexts: () => [],
      status: () => [],
      close: () => {
        this.open_ -= 1;
        return undefined;
      },
    };
  }
}

function optionExportName(): Buffer {
  const name = Buffer.from('disk');
  const option = Buffer.alloc(4 + 16 + name.length);
  option.writeUInt32BE(3, 0); // fixed newstyle, no zeroes
  option.writeBigUInt64BE(0x49484156454f5054n, 4);
  option.writeUInt32BE(1, 12); // NBD_OPT_EXPORT_NAME
  option.writeUInt32BE(name.length, 16);
  name.copy(option, 20);
  return option;
}

function readRequest(cookie: bigint, length: number): Buffer {
  const request = Buffer.alloc(28);
  request.writeUInt32BE(0x25609513, 0);
  request.writeBigUInt64BE(cookie, 8);
  request.writeUInt32BE(length, 24);
  return request;
}

test('the session of a client that took no replies ends with its socket', async (context) => {
  const folder = await mkdtemp(join(tmpdir(), 'ribbon-server-'));
  const path = join(folder, 'nbd.sock');
  const exports = new Counting();
  const server = new ImageServer({ exports, listen: [{ kind: 'unix', path }] });
  await server.listen();
  context.after(async () => {
    await server.close();
    await rm(folder, { recursive: true });
  });

  const socket = net.connect(path);
  socket.on('error', () => {});
  await new Promise((resolve) => socket.once('connect', resolve));
  socket.write(optionExportName());
  // Far more than any socket buffer holds, and more requests behind it than the session takes.
  const requests = Array.from({ length: 20_000 }, (_, index) => readRequest(BigInt(index), 1 << 20));
  socket.pause();
  for (const request of requests) socket.write(request);
  while (exports.open_ === 0) await new Promise((resolve) => setTimeout(resolve, 5));
  await new Promise((resolve) => setTimeout(resolve, 200));
  assert.equal(exports.open_, 1);
  socket.destroy();

  for (let i = 0; i < 200 && exports.open_ > 0; i++) await new Promise((resolve) => setTimeout(resolve, 20));
  assert.equal(exports.open_, 0, 'the session still has its export');
  assert.equal(server.connections.size, 0);
});
