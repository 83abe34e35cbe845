// A card as the server sees it: NBD_OPT_RIBBON and a card's own commands, on a session without sockets.

import assert from 'node:assert/strict';
import zlib from 'node:zlib';
import { crc32c } from '../../host/card/crc32c.js';
import * as nbd from '../../host/server/nbd-protocol.js';
import { NbdSession } from '../../host/server/nbd-session.js';
import * as ribbon from '../../host/server/ribbon-protocol.js';
import type { Store } from '../../host/store/store.js';
import { BLOCK, CLIENT } from '../store/model.js';

export interface Knows {
  card?: bigint;
  session?: number;
  /** With the last record of each, 1,000,000 where nothing is said. */
  sessions?: (number | { session: number; last: number })[];
  generation?: number;
  id?: string;
  committed?: number;
  newest?: number;
  dirty?: boolean;
  conflict?: boolean;
  early?: boolean;
  features?: number;
  name?: string;
  version?: number;
}

export interface Told {
  flags: number;
  verdict: number;
  base: number;
  generation: number;
  id: string;
  committed: number;
  line: string;
}

export function helloBytes(knows: Knows): Buffer {
  const name = Buffer.from(knows.name ?? 'a');
  const sessions = knows.sessions ?? [];
  const data = Buffer.alloc(52 + 12 * sessions.length + name.length);
  data.writeUInt16BE(knows.version ?? 1, 0);
  data.writeUInt16BE(
    (knows.dirty ? 1 : 0) | (knows.conflict ? 2 : 0) | (knows.early ? 16 : 0) | (knows.features ?? 12),
    2,
  );
  data.writeUInt32BE(knows.session ?? 1, 4);
  data.writeBigUInt64BE(knows.card ?? 0xc0ffee0000000001n, 8);
  data.writeBigUInt64BE(BigInt(knows.generation ?? 0), 16);
  data.write(knows.id ?? '0'.repeat(16), 24, 'hex');
  data.writeBigUInt64BE(BigInt(knows.committed ?? 0), 32);
  data.writeBigUInt64BE(BigInt(knows.newest ?? 1_000_000), 40);
  data.writeUInt16BE(sessions.length, 48);
  data.writeUInt16BE(name.length, 50);
  for (const [index, it] of sessions.entries()) {
    const { session, last } = typeof it === 'number' ? { session: it, last: 1_000_000 } : it;
    data.writeUInt32BE(session, 52 + 12 * index);
    data.writeBigUInt64BE(BigInt(last), 56 + 12 * index);
  }
  name.copy(data, 52 + 12 * sessions.length);
  return data;
}

export class CardClient {
  readonly session: NbdSession;
  ended = false;
  readonly logs: string[] = [];
  told: Told | null = null;
  output = Buffer.alloc(0);
  private left = Buffer.alloc(0);
  private cookie = 0n;

  constructor(store: Store, client = CLIENT) {
    this.session = new NbdSession(store, {
      client,
      tls: 'none',
      send: (bytes, sent) => {
        this.output = Buffer.concat([this.output, bytes]);
        sent();
        return true;
      },
      startTls: () => {},
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
    this.left = this.session.closed ? Buffer.alloc(0) : Buffer.from(all.subarray(taken));
  }

  async talk(bytes: Buffer): Promise<Buffer> {
    const from = this.output.length;
    this.feed(bytes);
    for (let turn = 0; turn < 8 || (turn < 500 && this.output.length === from && !this.ended); turn++)
      await new Promise<void>((resolve) => setImmediate(resolve));
    return this.output.subarray(from);
  }

  option(number: number, data: Buffer = Buffer.alloc(0)): Promise<Buffer> {
    const head = Buffer.alloc(16);
    head.writeBigUInt64BE(nbd.IHAVEOPT);
    head.writeUInt32BE(number, 8);
    head.writeUInt32BE(data.length, 12);
    return this.talk(Buffer.concat([head, data]));
  }

  /** Up to the answer to NBD_OPT_RIBBON. */
  async hello(knows: Knows): Promise<Buffer> {
    await this.talk(Buffer.from([0, 0, 0, 3]));
    await this.option(nbd.NBD_OPT_STRUCTURED_REPLY);
    const reply = await this.option(ribbon.NBD_OPT_RIBBON, helloBytes(knows));
    if (reply.length > 20 && reply.readUInt32BE(12) === ribbon.NBD_REP_RIBBON) {
      const at = 20;
      this.told = {
        flags: reply.readUInt16BE(at + 2),
        verdict: reply.readUInt16BE(at + 4),
        base: Number(reply.readBigUInt64BE(at + 8)),
        generation: Number(reply.readBigUInt64BE(at + 16)),
        id: reply.toString('hex', at + 24, at + 32),
        committed: Number(reply.readBigUInt64BE(at + 32)),
        line: reply.toString('utf8', at + 40, at + 40 + reply.readUInt16BE(at + 6)),
      };
    }
    return reply;
  }

  /** Connects, and opens what the server has found for the card. */
  async connect(knows: Knows): Promise<Told> {
    await this.hello(knows);
    assert.ok(this.told !== null, `no answer: ${this.logs.join('; ')}`);
    if (this.told.verdict !== 0) return this.told;
    const name = Buffer.from(knows.name ?? 'a');
    const data = Buffer.alloc(6 + name.length);
    data.writeUInt32BE(name.length);
    name.copy(data, 4);
    await this.option(nbd.NBD_OPT_GO, data);
    return this.told;
  }

  request(
    command: number,
    offset: number,
    length: number,
    payload: Buffer = Buffer.alloc(0),
    flags = 0,
  ): Promise<Buffer> {
    const head = Buffer.alloc(28);
    head.writeUInt32BE(nbd.NBD_REQUEST_MAGIC);
    head.writeUInt16BE(flags, 4);
    head.writeUInt16BE(command, 6);
    head.writeBigUInt64BE(++this.cookie, 8);
    head.writeBigUInt64BE(BigInt(offset), 16);
    head.writeUInt32BE(length, 24);
    return this.talk(Buffer.concat([head, payload]));
  }

  /** Writes; `damage` is called with the payload before it is sent. */
  async write(
    offset: number,
    data: Buffer,
    packed = false,
    damage: (payload: Buffer) => void = () => {},
  ): Promise<number> {
    const payload = writePayload(offset, data, packed);
    damage(payload);
    return errorOf(await this.request(ribbon.NBD_CMD_WRITE_PIECES, offset, data.length, payload));
  }

  async flush(record: number): Promise<{ generation: number; id: string }> {
    const reply = await this.request(nbd.NBD_CMD_FLUSH, record, 0);
    assert.equal(errorOf(reply), 0, this.logs.join('; '));
    assert.equal(reply.readUInt16BE(6), ribbon.NBD_REPLY_TYPE_COMMITTED);
    return { generation: Number(reply.readBigUInt64BE(20)), id: reply.toString('hex', 28, 36) };
  }

  async read(offset: number, length: number): Promise<Buffer> {
    const reply = await this.request(nbd.NBD_CMD_READ, offset, length);
    assert.equal(errorOf(reply), 0);
    assert.equal(reply.readUInt16BE(6), ribbon.NBD_REPLY_TYPE_PIECES);
    const starts = ribbon.pieceStarts(offset, length);
    const pieces = reply.readUInt16BE(30);
    assert.equal(pieces, starts.length - 1);
    const body = reply.subarray(36 + 4 * pieces);
    const data = reply.readUInt16BE(28) === 1 ? zlib.inflateRawSync(body) : Buffer.from(body);
    for (let i = 0; i < pieces; i++)
      assert.equal(crc32c(data.subarray(starts[i], starts[i + 1])), reply.readUInt32BE(36 + 4 * i));
    return data;
  }

  /** The changed blocks that the server tells about. */
  async changes(blocks: number): Promise<number[]> {
    const found: number[] = [];
    for (let at = 0; at < blocks * BLOCK; ) {
      const reply = await this.request(nbd.NBD_CMD_BLOCK_STATUS, at, blocks * BLOCK - at);
      assert.equal(reply.readUInt16BE(6), nbd.NBD_REPLY_TYPE_BLOCK_STATUS);
      assert.equal(reply.readUInt32BE(20), 1);
      const extents = (reply.readUInt32BE(16) - 4) / 8;
      assert.ok(extents <= ribbon.EXTENTS_MAX);
      for (let i = 0; i < extents; i++) {
        const length = reply.readUInt32BE(24 + 8 * i);
        if (reply.readUInt32BE(28 + 8 * i) === 1)
          for (let block = at / BLOCK; block < (at + length) / BLOCK; block++) found.push(block);
        at += length;
      }
    }
    return found;
  }

  async hangUp(): Promise<void> {
    this.session.disconnected();
    for (let turn = 0; turn < 8; turn++) await new Promise<void>((resolve) => setImmediate(resolve));
  }
}

export function writePayload(offset: number, data: Buffer, packed: boolean): Buffer {
  const starts = ribbon.pieceStarts(offset, data.length);
  const pieces = starts.length - 1;
  const deflated = packed ? zlib.deflateRawSync(data) : data;
  const body = deflated.length < data.length ? deflated : data;
  const head = Buffer.alloc(16 + 4 * pieces);
  head.writeUInt16BE(body === data ? 0 : 1, 0);
  head.writeUInt16BE(pieces, 2);
  head.writeUInt32BE(pieces >= 32 ? 0xffff_ffff : 2 ** pieces - 1, 4);
  head.writeUInt32BE(pieces > 32 ? 1 : 0, 8);
  head.writeUInt32BE(body.length, 12);
  for (let i = 0; i < pieces; i++) head.writeUInt32BE(crc32c(data.subarray(starts[i], starts[i + 1])), 16 + 4 * i);
  return Buffer.concat([head, body]);
}

/** The error of a reply, simple or structured; 0 for none. */
export function errorOf(output: Buffer): number {
  if (output.length < 16) return -1;
  if (output.readUInt32BE(0) === nbd.NBD_SIMPLE_REPLY_MAGIC) return output.readUInt32BE(4);
  return output.readUInt16BE(6) === nbd.NBD_REPLY_TYPE_ERROR ? output.readUInt32BE(20) : 0;
}
