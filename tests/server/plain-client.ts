// A plain NBD client for tests that kill its server: one request at a time, and the socket's end is an error.

import assert from 'node:assert/strict';
import net from 'node:net';
import * as nbd from '../../host/server/nbd-protocol.js';
import { BLOCK } from '../store/model.js';

/** A plain NBD client: one request at a time is enough, the server is killed in the middle of any. */
export class PlainClient {
  private readonly socket: net.Socket;
  private received = Buffer.alloc(0);
  private wake: () => void = () => {};
  private closed = false;

  constructor(file: string) {
    this.socket = net.connect(file);
    this.socket.on('data', (bytes: Buffer) => {
      this.received = Buffer.concat([this.received, bytes]);
      this.wake();
    });
    this.socket.on('error', () => {});
    this.socket.on('close', () => {
      this.closed = true;
      this.wake();
    });
  }

  async open(name: string): Promise<void> {
    await this.take(18);
    const option = Buffer.alloc(20 + name.length);
    option.writeUInt32BE(3);
    option.writeBigUInt64BE(nbd.IHAVEOPT, 4);
    option.writeUInt32BE(nbd.NBD_OPT_EXPORT_NAME, 12);
    option.writeUInt32BE(name.length, 16);
    option.write(name, 20);
    this.socket.write(option);
    await this.take(10);
  }

  async request(command: number, block: number, count: number, payload: Buffer = Buffer.alloc(0)): Promise<Buffer> {
    const head = Buffer.alloc(28);
    head.writeUInt32BE(nbd.NBD_REQUEST_MAGIC);
    head.writeUInt16BE(command, 6);
    head.writeBigUInt64BE(BigInt(block * BLOCK), 16);
    head.writeUInt32BE(count * BLOCK, 24);
    this.socket.write(Buffer.concat([head, payload]));
    const reply = await this.take(16);
    assert.equal(reply.readUInt32BE(4), 0, 'the server answered with an error');
    return command === nbd.NBD_CMD_READ ? this.take(count * BLOCK) : reply;
  }

  private async take(count: number): Promise<Buffer> {
    while (this.received.length < count) {
      if (this.closed) throw new Error('connection lost');
      await new Promise<void>((resolve) => {
        this.wake = resolve;
      });
    }
    const bytes = this.received.subarray(0, count);
    this.received = this.received.subarray(count);
    return bytes;
  }

  end(): void {
    this.socket.destroy();
  }
}
