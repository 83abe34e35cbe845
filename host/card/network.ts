// The network group of the firmware's imports over node:net and node:tls: byte streams with their buffers.
//
// Nothing here calls the firmware: a change is told by `onChange`, and the firmware looks for itself in its next step.

import net from 'node:net';
import tls from 'node:tls';

/** One route to an image server, and who we are on it. */
export interface NetworkPath {
  address: { host: string; port: number } | { path: string };
  /** TLS-PSK identity and key, or certificates; absent when the server offers no TLS. */
  tls?: { identity: string; key: Buffer } | { ca: string; cert: string; key: string; serverName: string };
}

/** The firmware's NetState. */
const CLOSED = 0;
const CONNECTING = 1;
const OPEN = 2;

/** Beyond this much unsent data a stream takes no more. */
const SEND_BUFFER_SIZE = 1 << 20;
/** Received data beyond this makes the peer wait. */
const RECEIVE_BUFFER_SIZE = 4 << 20;
const CHUNK_SIZE = 256 << 10;
const SPARE_CHUNKS_MAX = 4;

/** What the firmware has handed over on its way: its own memory is free when send() returns. */
interface Chunk {
  bytes: Buffer;
  /** Writes of the socket that are not over. */
  underWay: number;
}

const NO_CHUNK: Chunk = { bytes: Buffer.alloc(0), underWay: 1 };

interface Stream {
  socket: net.Socket;
  state: number;
  received: Buffer[];
  receivedBytes: number;
  path: NetworkPath;
  /** What is to be sent: from `from` to `to`. What lies before is on its way. */
  chunk: Chunk;
  from: number;
  to: number;
}

export class Network {
  onChange: () => void = () => {};
  /** Why a stream could not be opened or broke, for the log. */
  onError: (message: string) => void = () => {};
  readonly #paths: NetworkPath[];
  readonly #streams = new Map<number, Stream>();
  /** Those with something in their chunk. */
  readonly #unsent = new Set<Stream>();
  readonly #spare: Chunk[] = [];

  constructor(paths: NetworkPath[]) {
    this.#paths = paths;
  }

  open(number: number, pathNumber: number): void {
    this.close(number);
    const path = this.#paths[pathNumber];
    if (path === undefined) return;
    const socket = net.connect({ ...path.address, noDelay: true });
    const stream: Stream = {
      socket,
      state: CONNECTING,
      received: [],
      receivedBytes: 0,
      path,
      chunk: NO_CHUNK,
      from: 0,
      to: 0,
    };
    this.#streams.set(number, stream);
    socket.on('connect', () => this.#setState(stream, OPEN));
    this.#listen(stream, socket);
  }

  close(number: number): void {
    const stream = this.#streams.get(number);
    if (stream === undefined) return;
    this.#streams.delete(number);
    // What was written goes out (a disconnect request, say) before the connection is closed.
    this.flush();
    stream.socket.removeAllListeners();
    stream.socket.on('error', () => {});
    stream.socket.destroySoon();
  }

  closeAll(): void {
    for (const number of [...this.#streams.keys()]) this.close(number);
  }

  state(number: number): number {
    const stream = this.#streams.get(number);
    return stream === undefined || (stream.state === CLOSED && stream.receivedBytes === 0)
      ? CLOSED
      : stream.state || OPEN;
  }

  startTls(number: number): void {
    const stream = this.#streams.get(number);
    if (stream === undefined || stream.state !== OPEN) return;
    const plain = stream.socket;
    this.flush();
    plain.removeAllListeners();
    stream.state = CONNECTING;
    const secure = connectTls(plain, stream.path, (message) => this.onError(message));
    if (secure === null) {
      plain.destroy();
      this.#setState(stream, CLOSED);
      return;
    }
    stream.socket = secure;
    secure.on('secureConnect', () => this.#setState(stream, OPEN));
    this.#listen(stream, secure);
  }

  /** Moves received bytes into `target`; returns how many. */
  receive(number: number, target: Uint8Array): number {
    const stream = this.#streams.get(number);
    if (stream === undefined) return 0;
    let moved = 0;
    while (moved < target.length && stream.received.length > 0) {
      const first = stream.received[0];
      const count = Math.min(first.length, target.length - moved);
      target.set(count === first.length ? first : first.subarray(0, count), moved);
      moved += count;
      if (count === first.length) stream.received.shift();
      else stream.received[0] = first.subarray(count);
    }
    stream.receivedBytes -= moved;
    if (stream.receivedBytes < RECEIVE_BUFFER_SIZE && stream.socket.isPaused()) stream.socket.resume();
    return moved;
  }

  /** Takes bytes to send; returns how many. */
  send(number: number, source: Uint8Array): number {
    const stream = this.#streams.get(number);
    if (stream === undefined || stream.state !== OPEN) return 0;
    const room = SEND_BUFFER_SIZE - stream.socket.writableLength - (stream.to - stream.from);
    if (room <= 0) return 0;
    const part = source.length <= room ? source : source.subarray(0, room);
    this.#put(stream, part);
    return part.length;
  }

  /** Hands what was sent in this step to the system, in as few writes as it takes. */
  flush(): void {
    if (this.#unsent.size === 0) return;
    for (const stream of this.#unsent) this.#write(stream);
    this.#unsent.clear();
  }

  #put(stream: Stream, part: Uint8Array): void {
    for (let done = 0; done < part.length; ) {
      if (stream.to === stream.chunk.bytes.length) this.#newChunk(stream);
      const count = Math.min(part.length - done, stream.chunk.bytes.length - stream.to);
      stream.chunk.bytes.set(count === part.length ? part : part.subarray(done, done + count), stream.to);
      stream.to += count;
      done += count;
    }
    this.#unsent.add(stream);
  }

  #newChunk(stream: Stream): void {
    this.#write(stream);
    const last = stream.chunk;
    stream.chunk = this.#spare.pop() ?? { bytes: Buffer.allocUnsafeSlow(CHUNK_SIZE), underWay: 0 };
    stream.from = stream.to = 0;
    this.#giveBack(last);
  }

  #write(stream: Stream): void {
    const { chunk, from, to } = stream;
    if (from === to) return;
    stream.from = to;
    chunk.underWay += 1;
    stream.socket.write(chunk.bytes.subarray(from, to), () => {
      chunk.underWay -= 1;
      // A stream's own is begun again: what is near is in the processor's cache.
      if (stream.chunk !== chunk) this.#giveBack(chunk);
      else if (chunk.underWay === 0 && stream.from === stream.to) stream.from = stream.to = 0;
    });
  }

  #giveBack(chunk: Chunk): void {
    if (chunk.underWay === 0 && this.#spare.length < SPARE_CHUNKS_MAX) this.#spare.push(chunk);
  }

  #listen(stream: Stream, socket: net.Socket): void {
    socket.on('data', (data: Buffer) => {
      stream.received.push(data);
      stream.receivedBytes += data.length;
      if (stream.receivedBytes >= RECEIVE_BUFFER_SIZE) socket.pause();
      this.onChange();
    });
    socket.on('drain', () => this.onChange());
    socket.on('error', (error) => this.onError(error.message));
    socket.on('close', () => this.#setState(stream, CLOSED));
  }

  #setState(stream: Stream, state: number): void {
    stream.state = state;
    this.onChange();
  }
}

function connectTls(socket: net.Socket, path: NetworkPath, onError: (message: string) => void): tls.TLSSocket | null {
  const how = path.tls;
  if (how === undefined) {
    onError('the settings ask for TLS, but this path has neither a key nor certificates');
    return null;
  }
  if ('identity' in how) {
    return tls.connect({
      socket,
      pskCallback: () => ({ identity: how.identity, psk: how.key }),
      ciphers: 'PSK-AES128-GCM-SHA256',
      maxVersion: 'TLSv1.2',
      // A peer that knows the key is the server: there is no name to check.
      checkServerIdentity: () => undefined,
    });
  }
  return tls.connect({
    socket,
    ca: how.ca,
    cert: how.cert,
    key: how.key,
    servername: how.serverName,
    minVersion: 'TLSv1.2',
  });
}
