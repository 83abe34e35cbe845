// An NBD server without I/O for one connection, written from the protocol and not from our image server: honest, but as odd
// as the protocol allows (requests carried out and answered in any order, replies cut into chunks in any order, holes), and
// with a hook for lies.

import { ByteQueue } from './byte-queue.js';
import type { Random } from './random.js';

const MAGIC = 0x4e42444d41474943n;
const MAGIC_OPTION = 0x49484156454f5054n;
const MAGIC_OPTION_REPLY = 0x0003e889045565a9n;
const MAGIC_REQUEST = 0x25609513;
const MAGIC_SIMPLE_REPLY = 0x67446698;
const MAGIC_STRUCTURED_REPLY = 0x668e33ef;
const REQUEST_SIZE = 28;

const OPT_EXPORT_NAME = 1;
const OPT_ABORT = 2;
const OPT_GO = 7;
const OPT_STRUCTURED_REPLY = 8;
const REP_ACK = 1;
const REP_INFO = 3;
const REP_ERR_UNSUP = 0x80000001;
const REP_ERR_UNKNOWN = 0x80000006;
const INFO_EXPORT = 0;
const INFO_BLOCK_SIZE = 3;

const CMD_READ = 0;
const CMD_WRITE = 1;
const CMD_DISC = 2;
const CMD_FLUSH = 3;
const CMD_TRIM = 4;
const CMD_FLAG_FUA = 1;
const FLAG_DONE = 1;
const TYPE_NONE = 0;
const TYPE_OFFSET_DATA = 1;
const TYPE_OFFSET_HOLE = 2;
const TYPE_ERROR = 0x8001;
const TYPE_ERROR_OFFSET = 0x8002;
const EIO = 5;
const EINVAL = 22;
const ENOSPC = 28;

/** has flags, flush, FUA, trim */
export const FLAGS_ALL = 1 | 4 | 8 | 32;
export const FLAG_READ_ONLY = 2;

export interface PeerOptions {
  /** What the export holds; writes change it. */
  image: Buffer;
  exportName?: string;
  flags?: number;
  structured?: boolean;
  /** NBD_OPT_GO is known. */
  go?: boolean;
  noZeroes?: boolean;
  blockSizes?: { minimum: number; preferred: number; maximum: number };
  /** As odd as allowed, by this chance; plain and in order without. */
  odd?: Random;
  /** Shares of requests that end in an error, of any kind. */
  errorRate?: number;
  /** Answers this request in another way; null leaves it to the server. */
  answer?: (request: PeerRequest, peer: NbdPeer) => Buffer[] | null;
  /** What goes out instead of a message. */
  mangle?: (message: Buffer, kind: MessageKind, peer: NbdPeer) => Buffer[];
}

export type MessageKind = 'greeting' | 'option' | 'export' | 'reply';

export interface PeerRequest {
  flags: number;
  type: number;
  cookie: bigint;
  offset: number;
  length: number;
  data: Buffer;
}

/** An answer in parts that must keep their order, or need not. */
interface Answer {
  parts: Buffer[];
}

export class NbdPeer {
  readonly requests: PeerRequest[] = [];
  /** The server closes the connection when everything is sent. */
  closing = false;
  disconnected = false;
  structured = false;
  readonly #options: PeerOptions;
  readonly #input = new ByteQueue();
  #phase: 'flags' | 'options' | 'transmission' = 'flags';
  readonly #output: Buffer[] = [];
  readonly #waiting: PeerRequest[] = [];
  readonly #answers: Answer[] = [];
  /** The write whose payload has begun to come, and the last that was refused before it was all here. */
  #seen = 0n;
  #refused = 0n;

  constructor(options: PeerOptions) {
    this.#options = options;
    const greeting = Buffer.alloc(18);
    greeting.writeBigUInt64BE(MAGIC, 0);
    greeting.writeBigUInt64BE(MAGIC_OPTION, 8);
    greeting.writeUInt16BE(options.noZeroes === false ? 1 : 3, 16);
    this.#put(greeting, 'greeting');
  }

  /** Bytes from the client. */
  take(bytes: Uint8Array): void {
    this.#input.push(bytes);
    try {
      while (!this.closing && this.#parse()) {}
    } catch (error) {
      // A client that was lied to may be out of step, but an honest server must never see it.
      if (this.#options.mangle === undefined) throw error;
      this.closing = true;
    }
  }

  /** The next bytes for the client, null when there are none now. */
  next(): Buffer | null {
    if (this.#output.length === 0) this.#work();
    return this.#output.shift() ?? null;
  }

  get idle(): boolean {
    return this.#output.length === 0 && this.#waiting.length === 0 && this.#answers.length === 0;
  }

  #put(message: Buffer, kind: MessageKind): void {
    const mangle = this.#options.mangle;
    this.#output.push(...(mangle === undefined ? [message] : mangle(message, kind, this)));
  }

  #parse(): boolean {
    if (this.#phase === 'options') return this.#parseOption();
    if (this.#phase === 'transmission') return this.#parseRequest();
    if (this.#input.length < 4) return false;
    this.#input.take(4);
    this.#phase = 'options';
    return true;
  }

  #parseOption(): boolean {
    if (this.#input.length < 16) return false;
    const header = this.#input.peek(16);
    if (header.readBigUInt64BE(0) !== MAGIC_OPTION) throw new Error('client sent a bad option magic');
    const option = header.readUInt32BE(8);
    const length = header.readUInt32BE(12);
    if (this.#input.length < 16 + length) return false;
    this.#option(option, this.#input.take(16 + length).subarray(16));
    return true;
  }

  #option(option: number, data: Buffer): void {
    const { structured = true, go = true, exportName = '', blockSizes } = this.#options;
    if (option === OPT_ABORT) {
      this.closing = true;
    } else if (option === OPT_STRUCTURED_REPLY && structured) {
      this.structured = true;
      this.#put(optionReply(option, REP_ACK), 'option');
    } else if (option === OPT_EXPORT_NAME) {
      if (data.toString() !== exportName) this.closing = true;
      else this.#exportNameReply();
    } else if (option === OPT_GO && go) {
      const name = data.subarray(4, 4 + data.readUInt32BE(0)).toString();
      if (name !== exportName) {
        this.#put(optionReply(option, REP_ERR_UNKNOWN, Buffer.from(`no export "${name}"`)), 'option');
        return;
      }
      const info = Buffer.alloc(12);
      info.writeUInt16BE(INFO_EXPORT, 0);
      info.writeBigUInt64BE(BigInt(this.#options.image.length), 2);
      info.writeUInt16BE(this.#options.flags ?? FLAGS_ALL, 10);
      this.#put(optionReply(option, REP_INFO, info), 'option');
      if (blockSizes !== undefined) this.#put(optionReply(option, REP_INFO, blockSizeInfo(blockSizes)), 'option');
      this.#put(optionReply(option, REP_ACK), 'option');
      this.#phase = 'transmission';
    } else {
      this.#put(optionReply(option, REP_ERR_UNSUP, Buffer.from('not here')), 'option');
    }
  }

  #exportNameReply(): void {
    const reply = Buffer.alloc(this.#options.noZeroes === false ? 134 : 10);
    reply.writeBigUInt64BE(BigInt(this.#options.image.length), 0);
    reply.writeUInt16BE(this.#options.flags ?? FLAGS_ALL, 8);
    this.#put(reply, 'export');
    this.#phase = 'transmission';
  }

  #parseRequest(): boolean {
    if (this.#input.length < REQUEST_SIZE) return false;
    const header = this.#input.peek(REQUEST_SIZE);
    if (header.readUInt32BE(0) !== MAGIC_REQUEST) throw new Error('client sent a bad request magic');
    const type = header.readUInt16BE(6);
    const length = header.readUInt32BE(24);
    const payload = type === CMD_WRITE ? length : 0;
    if (this.#input.length < REQUEST_SIZE + payload) {
      this.#refuseEarly(header);
      return false;
    }
    const bytes = this.#input.take(REQUEST_SIZE + payload);
    const request: PeerRequest = {
      flags: bytes.readUInt16BE(4),
      type,
      cookie: bytes.readBigUInt64BE(8),
      offset: Number(bytes.readBigUInt64BE(16)),
      length,
      data: Buffer.from(bytes.subarray(REQUEST_SIZE)),
    };
    this.#checkRequest(request);
    this.requests.push(request);
    if (request.cookie === this.#refused) return true;
    if (type === CMD_DISC) {
      this.disconnected = true;
      this.closing = true;
    } else {
      this.#waiting.push(request);
    }
    return true;
  }

  /** A write may be refused as soon as its header is here; its payload still comes, and goes nowhere. */
  #refuseEarly(header: Buffer): void {
    const { odd, errorRate = 0 } = this.#options;
    const cookie = header.readBigUInt64BE(8);
    if (odd === undefined || cookie === this.#seen) return;
    this.#seen = cookie;
    if (!odd.chance(errorRate)) return;
    this.#refused = cookie;
    this.#answers.push({ parts: [simpleReply({ cookie }, ENOSPC)] });
  }

  /** What a client must keep to. */
  #checkRequest(request: PeerRequest): void {
    const { image, flags = FLAGS_ALL, go = true } = this.#options;
    // Without GO there is no way to tell.
    const blockSizes = go ? this.#options.blockSizes : undefined;
    const where = `type=${request.type} offset=${request.offset} length=${request.length}`;
    if (request.type > CMD_TRIM) throw new Error(`client sent an unknown command: ${where}`);
    if (request.offset + request.length > image.length) throw new Error(`client asked beyond the end: ${where}`);
    if (request.type === CMD_FLUSH && (flags & 4) === 0) throw new Error('client sent a flush that was not offered');
    if (request.type === CMD_TRIM && (flags & 32) === 0) throw new Error('client sent a trim that was not offered');
    if ((request.flags & CMD_FLAG_FUA) !== 0 && (flags & 8) === 0) throw new Error('client sent FUA, not offered');
    if (blockSizes !== undefined && request.type <= CMD_WRITE && request.length > blockSizes.maximum) {
      throw new Error(`client sent more than the maximum block: ${where}`);
    }
    if (this.#waiting.some((other) => other.cookie === request.cookie)) throw new Error(`cookie used twice: ${where}`);
  }

  /** Carries requests out and lays parts of answers on the wire, one step. */
  #work(): void {
    const { odd } = this.#options;
    while (this.#waiting.length > 0) {
      const i = odd === undefined ? 0 : odd.below(this.#waiting.length);
      const [request] = this.#waiting.splice(i, 1);
      this.#answers.push({ parts: this.#options.answer?.(request, this) ?? this.#carryOut(request) });
      if (odd?.chance(0.5) === true) break;
    }
    if (this.#answers.length === 0) return;
    const i = odd === undefined ? 0 : odd.below(this.#answers.length);
    const part = this.#answers[i].parts.shift();
    if (this.#answers[i].parts.length === 0) this.#answers.splice(i, 1);
    if (part !== undefined) this.#put(part, 'reply');
  }

  /** Does what the request asks for; the answer's messages. */
  #carryOut(request: PeerRequest): Buffer[] {
    const { image, odd, errorRate = 0, flags = FLAGS_ALL } = this.#options;
    if (odd?.chance(errorRate) === true) return this.error(request, odd.pick([EIO, EINVAL, ENOSPC]));
    if (request.type === CMD_WRITE) {
      if ((flags & FLAG_READ_ONLY) !== 0) return this.error(request, 1);
      request.data.copy(image, request.offset);
    }
    if (request.type === CMD_TRIM) image.subarray(request.offset, request.offset + request.length).fill(0);
    if (request.type !== CMD_READ) {
      return [this.structured && odd?.chance(0.5) === true ? noneChunk(request) : simpleReply(request)];
    }
    const data = Buffer.from(image.subarray(request.offset, request.offset + request.length));
    if (!this.structured) return [Buffer.concat([simpleReply(request), data])];
    if (odd === undefined) return [dataChunk(request, request.offset, data, FLAG_DONE)];
    return this.#chunks(request, data, odd);
  }

  /** An error answer in one of the forms that the protocol has. */
  error(request: PeerRequest, errno: number): Buffer[] {
    const { odd } = this.#options;
    if (!this.structured || (request.type !== CMD_READ && odd?.chance(0.5) !== false)) {
      return [simpleReply(request, errno)];
    }
    const text = 'server error '.repeat(odd?.below(60) ?? 1);
    const chunk = odd?.chance(0.5) === true ? errorOffsetChunk(request, errno, text) : errorChunk(request, errno, text);
    if (request.type !== CMD_READ || odd?.chance(0.5) !== true) return [chunk];
    // Some data, an error somewhere, the end.
    chunk.writeUInt16BE(0, 4);
    const data = Buffer.alloc(Math.min(512, request.length), 0xee);
    return [dataChunk(request, request.offset, data, 0), chunk, noneChunk(request)];
  }

  /** The data in chunks of any size, in any order, with holes; the end on the last, or on its own. */
  #chunks(request: PeerRequest, data: Buffer, odd: Random): Buffer[] {
    const parts: Buffer[] = [];
    const isFine = odd.chance(0.1);
    let piecesLeft = isFine ? 1000 : odd.pick([1, 2, 24]);
    for (let at = 0; at < data.length; ) {
      const rest = data.length - at;
      piecesLeft -= 1;
      const wanted = isFine ? odd.between(200, 1000) : odd.chance(0.5) ? odd.between(1, rest) : 512;
      const length = piecesLeft <= 0 ? rest : Math.min(rest, wanted);
      const part = data.subarray(at, at + length);
      const isHole = part.every((byte) => byte === 0) && odd.chance(0.8);
      const offset = request.offset + at;
      parts.push(isHole ? holeChunk(request, offset, length, 0) : dataChunk(request, offset, part, 0));
      at += length;
    }
    if (odd.chance(0.7)) odd.shuffle(parts);
    if (odd.chance(0.5)) parts[parts.length - 1].writeUInt16BE(FLAG_DONE, 4);
    else parts.push(noneChunk(request));
    return parts;
  }
}

// Messages

export function optionReply(option: number, type: number, data: Uint8Array = Buffer.alloc(0)): Buffer {
  const reply = Buffer.alloc(20);
  reply.writeBigUInt64BE(MAGIC_OPTION_REPLY, 0);
  reply.writeUInt32BE(option, 8);
  reply.writeUInt32BE(type, 12);
  reply.writeUInt32BE(data.length, 16);
  return Buffer.concat([reply, data]);
}

function blockSizeInfo(sizes: { minimum: number; preferred: number; maximum: number }): Buffer {
  const info = Buffer.alloc(14);
  info.writeUInt16BE(INFO_BLOCK_SIZE, 0);
  info.writeUInt32BE(sizes.minimum, 2);
  info.writeUInt32BE(sizes.preferred, 6);
  info.writeUInt32BE(sizes.maximum, 10);
  return info;
}

type Named = Pick<PeerRequest, 'cookie'>;

export function simpleReply(request: Named, errno = 0): Buffer {
  const reply = Buffer.alloc(16);
  reply.writeUInt32BE(MAGIC_SIMPLE_REPLY, 0);
  reply.writeUInt32BE(errno, 4);
  reply.writeBigUInt64BE(request.cookie, 8);
  return reply;
}

/** `length` is what the header says, which in a lie is not what follows. */
export function chunk(request: Named, flags: number, type: number, payload: Uint8Array, length?: number): Buffer {
  const header = Buffer.alloc(20);
  header.writeUInt32BE(MAGIC_STRUCTURED_REPLY, 0);
  header.writeUInt16BE(flags, 4);
  header.writeUInt16BE(type, 6);
  header.writeBigUInt64BE(request.cookie, 8);
  header.writeUInt32BE(length ?? payload.length, 16);
  return Buffer.concat([header, payload]);
}

export function noneChunk(request: Named, flags = FLAG_DONE): Buffer {
  return chunk(request, flags, TYPE_NONE, Buffer.alloc(0));
}

export function dataChunk(request: Named, offset: number, data: Uint8Array, flags: number): Buffer {
  const where = Buffer.alloc(8);
  where.writeBigUInt64BE(BigInt(offset), 0);
  return chunk(request, flags, TYPE_OFFSET_DATA, Buffer.concat([where, data]));
}

export function holeChunk(request: Named, offset: number, length: number, flags: number): Buffer {
  const hole = Buffer.alloc(12);
  hole.writeBigUInt64BE(BigInt(offset), 0);
  hole.writeUInt32BE(length, 8);
  return chunk(request, flags, TYPE_OFFSET_HOLE, hole);
}

export function errorChunk(request: Named, errno: number, text: string, flags = FLAG_DONE): Buffer {
  return chunk(request, flags, TYPE_ERROR, errorPayload(errno, text));
}

export function errorOffsetChunk(request: PeerRequest, errno: number, text: string, flags = FLAG_DONE): Buffer {
  const offset = Buffer.alloc(8);
  offset.writeBigUInt64BE(BigInt(request.offset), 0);
  return chunk(request, flags, TYPE_ERROR_OFFSET, Buffer.concat([errorPayload(errno, text), offset]));
}

function errorPayload(errno: number, text: string): Buffer {
  const fixed = Buffer.alloc(6);
  fixed.writeUInt32BE(errno, 0);
  fixed.writeUInt16BE(text.length, 4);
  return Buffer.concat([fixed, Buffer.from(text, 'latin1')]);
}
