// A disk image behind an NBD server, read by its URI: [NBD] fixed newstyle, in clear, one request at a time.

import net from 'node:net';
import { Failure } from '../failure.js';

const NBDMAGIC = 0x4e42444d41474943n;
const IHAVEOPT = 0x49484156454f5054n;
const OPT_REPLY_MAGIC = 0x3e889045565a9n;
const REQUEST_MAGIC = 0x25609513;
const SIMPLE_REPLY_MAGIC = 0x67446698;
const FLAG_FIXED_NEWSTYLE = 1;
const OPT_GO = 7;
const REP_ACK = 1;
const REP_INFO = 3;
const INFO_EXPORT = 0;
const CMD_READ = 0;
const CMD_DISC = 2;
const OPTION_REPLY_MAX = 64 * 1024;
const OPTION_REPLIES_MAX = 64;
const ANSWER_TIMEOUT_MS = 30_000;

/** What can be read at any place. */
export interface Master {
  /** What it is, for messages. */
  readonly name: string;
  readonly size: number;
  read(offset: number, length: number): Promise<Buffer>;
  close(): Promise<void>;
}

/** `nbd://HOST[:PORT]/EXPORT` or `nbd+unix:///EXPORT?socket=FILE`. */
export async function openNbdImage(uri: string): Promise<Master> {
  const { target, exportName } = parseNbdUri(uri);
  const stream = await Stream.connect(target, uri);
  try {
    const size = await negotiate(stream, exportName, uri);
    return {
      name: uri,
      size,
      read: (offset, length) => readNbd(stream, offset, length, uri),
      close: async () => {
        stream.write(request(CMD_DISC, 0, 0));
        stream.end();
      },
    };
  } catch (error) {
    stream.end();
    throw error;
  }
}

export function parseNbdUri(uri: string): { target: net.NetConnectOpts; exportName: string } {
  let url: URL;
  try {
    url = new URL(uri);
  } catch {
    throw new Failure(`"${uri}" is not an NBD URI: write nbd://HOST[:PORT]/IMAGE or nbd+unix:///IMAGE?socket=FILE`);
  }
  const exportName = decodeURIComponent(url.pathname.replace(/^\//, ''));
  if (url.protocol === 'nbd:' && url.hostname !== '') {
    const host = url.hostname.replace(/^\[|\]$/g, '');
    return { target: { host, port: url.port === '' ? 10809 : Number(url.port) }, exportName };
  }
  const socket = url.searchParams.get('socket');
  if (url.protocol === 'nbd+unix:' && socket !== null) return { target: { path: socket }, exportName };
  const tls = url.protocol.startsWith('nbds')
    ? '; TLS is not spoken here: use the store folder, or a local socket'
    : '';
  throw new Failure(`"${uri}" is not nbd://HOST[:PORT]/IMAGE or nbd+unix:///IMAGE?socket=FILE${tls}`);
}

async function negotiate(stream: Stream, exportName: string, uri: string): Promise<number> {
  const greeting = await stream.take(18);
  const isNewstyle = greeting.readBigUInt64BE(0) === NBDMAGIC && greeting.readBigUInt64BE(8) === IHAVEOPT;
  if (!isNewstyle || (greeting.readUInt16BE(16) & FLAG_FIXED_NEWSTYLE) === 0) {
    throw new Failure(`${uri}: what answers is no NBD server that can negotiate`);
  }
  const name = Buffer.from(exportName, 'utf8');
  const option = Buffer.alloc(4 + 16 + 4 + name.length + 2);
  option.writeUInt32BE(FLAG_FIXED_NEWSTYLE, 0);
  option.writeBigUInt64BE(IHAVEOPT, 4);
  option.writeUInt32BE(OPT_GO, 12);
  option.writeUInt32BE(4 + name.length + 2, 16);
  option.writeUInt32BE(name.length, 20);
  name.copy(option, 24);
  stream.write(option);
  let size: number | null = null;
  for (let replies = 0; replies < OPTION_REPLIES_MAX; replies++) {
    const head = await stream.take(20);
    const type = head.readUInt32BE(12);
    const length = head.readUInt32BE(16);
    if (head.readBigUInt64BE(0) !== OPT_REPLY_MAGIC || length > OPTION_REPLY_MAX) {
      throw new Failure(`${uri}: an option reply of type ${type} and length ${length} makes no sense`);
    }
    const data = await stream.take(length);
    if (type === REP_ACK && size !== null) return size;
    if (type >= 2 ** 31) throw new Failure(`${uri} refuses the export "${exportName}": ${data.toString('utf8')}`);
    if (type === REP_INFO && length >= 12 && data.readUInt16BE(0) === INFO_EXPORT)
      size = Number(data.readBigUInt64BE(2));
  }
  throw new Failure(`${uri} does not say how large the export "${exportName}" is`);
}

async function readNbd(stream: Stream, offset: number, length: number, uri: string): Promise<Buffer> {
  stream.write(request(CMD_READ, offset, length));
  const reply = await stream.take(16);
  if (reply.readUInt32BE(0) !== SIMPLE_REPLY_MAGIC) throw new Failure(`${uri}: an answer that is no reply`);
  const error = reply.readUInt32BE(4);
  if (error !== 0) throw new Failure(`${uri} cannot read ${length} bytes at ${offset}: NBD error ${error}`);
  return stream.take(length);
}

function request(command: number, offset: number, length: number): Buffer {
  const bytes = Buffer.alloc(28);
  bytes.writeUInt32BE(REQUEST_MAGIC, 0);
  bytes.writeUInt16BE(command, 6);
  bytes.writeBigUInt64BE(BigInt(offset), 16);
  bytes.writeUInt32BE(length, 24);
  return bytes;
}

/** A socket from which exact numbers of bytes are taken. */
class Stream {
  readonly #socket: net.Socket;
  readonly #uri: string;
  #pieces: Buffer[] = [];
  #bytes = 0;
  #ended: Error | null = null;
  #wake: () => void = () => {};

  private constructor(socket: net.Socket, uri: string) {
    this.#socket = socket;
    this.#uri = uri;
    socket.setTimeout(ANSWER_TIMEOUT_MS, () => socket.destroy(new Error('no answer for 30 s')));
    socket.on('data', (data: Buffer) => {
      this.#pieces.push(data);
      this.#bytes += data.length;
      this.#wake();
    });
    socket.on('error', (error) => {
      this.#ended = error;
      this.#wake();
    });
    socket.on('close', () => {
      this.#ended ??= new Error('the server has closed the connection');
      this.#wake();
    });
  }

  static connect(target: net.NetConnectOpts, uri: string): Promise<Stream> {
    return new Promise((resolve, reject) => {
      const socket = net.connect(target);
      socket.once('error', (error) => reject(new Failure(`cannot reach ${uri}: ${error.message}`)));
      socket.once('connect', () => {
        socket.removeAllListeners('error');
        resolve(new Stream(socket, uri));
      });
    });
  }

  write(bytes: Buffer): void {
    this.#socket.write(bytes);
  }

  end(): void {
    this.#socket.setTimeout(0);
    this.#socket.end();
  }

  async take(count: number): Promise<Buffer> {
    while (this.#bytes < count) {
      if (this.#ended !== null) throw new Failure(`${this.#uri}: ${this.#ended.message}`);
      await new Promise<void>((resolve) => {
        this.#wake = resolve;
      });
    }
    const all = this.#pieces.length === 1 ? this.#pieces[0] : Buffer.concat(this.#pieces);
    this.#pieces = all.length > count ? [all.subarray(count)] : [];
    this.#bytes -= count;
    return all.subarray(0, count);
  }
}
