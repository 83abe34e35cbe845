// The image server's sockets: accepts, limits, and gives every connection an NbdSession.
//
// System calls and copies decide the speed (FACTS.md), so the socket reads into the session's own buffer, a batch of requests is worked
// off for each read, and the replies of a batch leave in one write.

import fs from 'node:fs';
import net from 'node:net';
import tls from 'node:tls';
import { Failure } from '../failure.js';
import type { ByteRates } from './byte-rate.js';
import type { TlsSettings } from './config.js';
import type { Client, Exports } from './export.js';
import { type ListenAddress, nbdUri } from './listen.js';
import { printable } from './nbd-negotiation.js';
import { NbdSession, type Transport } from './nbd-session.js';
import { RateLimit } from './rate.js';
import { answer } from './stay-awake.js';

export type LogLevel = 'info' | 'warn' | 'error';
export type Log = (level: LogLevel, message: string) => void;

export interface ImageServerOptions {
  exports: Exports;
  listen: ListenAddress[];
  log?: Log;
  /** Connections at once; more are closed at once. */
  connectionsMax?: number;
  /** Of these, from one address or identity. */
  connectionsPerClientMax?: number;
  /** New ones from one network address in a second; more are closed at once. */
  connectionsPerSecond?: number;
  tls?: TlsSettings | null;
  /** What each client may move in a second; missing: as much as it can. */
  byteRates?: ByteRates;
  /** Clients that are not on this machine and write over several connections at once all the same; missing: none. */
  writesTogether?: (client: Client) => boolean;
  /** A client must have opened an export within this time. */
  negotiationTimeoutMs?: number;
  /** A client that takes nothing of the output waiting for it for this long is dropped. */
  stuckTimeoutMs?: number;
}

export class ImageServer {
  /** Where it listens; a TCP port of 0 has become the real one. Valid after listen(). */
  readonly addresses: ListenAddress[] = [];
  readonly connections = new Set<Connection>();
  connectionsTotal = 0;
  private readonly servers: net.Server[] = [];
  private readonly rate: RateLimit;
  private readonly log: Log;

  constructor(private readonly options: ImageServerOptions) {
    this.log = options.log ?? (() => {});
    this.rate = new RateLimit(options.connectionsPerSecond ?? 10_000);
  }

  async listen(): Promise<void> {
    for (const address of this.options.listen) {
      const server = net.createServer({ pauseOnConnect: true, allowHalfOpen: true }, (socket) => this.accept(socket));
      if (address.kind === 'unix') await removeStaleSocket(address.path);
      await new Promise<void>((resolve, reject) => {
        server.once('error', (error: NodeJS.ErrnoException) =>
          reject(new Failure(`cannot listen on ${nbdUri(address, '')}: ${error.message}`)),
        );
        if (address.kind === 'unix') server.listen(address.path, resolve);
        else server.listen(address.port, address.host, resolve);
      });
      this.servers.push(server);
      if (address.kind === 'unix') this.addresses.push(address);
      else this.addresses.push({ ...address, port: (server.address() as net.AddressInfo).port });
    }
  }

  /** Stops listening and ends every connection; what clients have not committed is discarded. */
  async close(): Promise<void> {
    const closed = this.servers.map((server) => new Promise<void>((resolve) => server.close(() => resolve())));
    const ended = [...this.connections].map((connection) => connection.stop('the server is shutting down'));
    await Promise.all([...closed, ...ended]);
  }

  /** The URI of an export at the first address. */
  uri(exportName: string): string {
    return nbdUri(this.addresses[0], exportName);
  }

  private accept(socket: net.Socket): void {
    this.connectionsTotal++;
    if (this.connections.size >= (this.options.connectionsMax ?? 10_000)) {
      this.log('warn', `refused a connection: ${this.connections.size} are open`);
      socket.destroy();
      return;
    }
    const address = addressOf(socket);
    // A card whose server was restarted comes back at once, and so do a thousand: they try again after a while.
    if (socket.remoteAddress !== undefined && !this.rate.take(address)) {
      this.log('warn', `refused a connection: ${address} connects more than ${this.rate.perSecond} times a second`);
      socket.destroy();
      return;
    }
    let same = 0;
    for (const { client } of this.connections) if (client.address === address) same++;
    if (same >= (this.options.connectionsPerClientMax ?? 10_000)) {
      this.log('warn', `refused a connection: ${address} has ${same} open`);
      socket.destroy();
      return;
    }
    const connection = new Connection(socket, this.options, this.log);
    this.connections.add(connection);
    connection.ended.then(() => this.connections.delete(connection));
  }
}

/** Where sockets read to while their session has no room; what comes is copied out at once, so that all may share it. */
const SCRATCH = Buffer.allocUnsafeSlow(64 * 1024);

let connectionNumber = 0;

/** One client's socket and the session on it. */
export class Connection {
  /** Who it is changes when TLS has told. */
  client: Client;
  session: NbdSession;
  /** Resolved when the socket is closed and the session has let go of its export. */
  readonly ended: Promise<void>;
  private readonly name: string;
  private socket: net.Socket;
  /** Bytes that came while the session took none. */
  private left: Buffer | null = null;
  private inputOver = false;
  private sessionOver = false;
  private socketOver = false;
  private resolveEnded!: () => void;
  private readonly timer: NodeJS.Timeout;
  private stuckSince = 0;
  private ageMs = 0;
  private secondsOver = 0;
  /** Runs while the client has moved more than it may. */
  private rateTimer: NodeJS.Timeout | null = null;

  constructor(
    accepted: net.Socket,
    private readonly options: ImageServerOptions,
    private readonly log: Log,
  ) {
    this.name = `connection ${++connectionNumber}`;
    this.ended = new Promise((resolve) => {
      this.resolveEnded = resolve;
    });
    this.client = this.clientOf('anonymous', addressOf(accepted), false);
    // pauseOnConnect gave a socket that has not begun to read, so that its handle can be moved to one that reads into our buffer.
    this.socket = this.adopt(accepted);
    this.session = new NbdSession(options.exports, this.transport(false));
    this.listenTo(this.socket);
    this.session.open();
    resumeReading(this.socket);
    this.timer = setInterval(() => this.checkTime(), 1000).unref();
  }

  private clientOf(identity: string, address: string, tls: boolean): Client {
    const client = { identity, address, tls };
    return { ...client, writesTogether: isHere(address) || this.options.writesTogether?.(client) === true };
  }

  stop(reason: string): Promise<void> {
    if (this.session.closed) this.socket.destroy();
    else this.session.abort(reason);
    return this.ended;
  }

  /** Moves the accepted handle to a socket that reads into the session's own buffer, which net.Server cannot make. */
  private adopt(accepted: net.Socket): net.Socket {
    const internals = accepted as unknown as { _handle: unknown; _server: unknown };
    const handle = internals._handle;
    const server = internals._server;
    internals._handle = null;
    internals._server = null;
    const onread = {
      // Asked for after every read: where the next bytes go is the session's decision.
      buffer: () => this.session?.buffer() ?? SCRATCH,
      callback: (count: number, buffer: Uint8Array): boolean => answer(() => this.received(count, buffer)),
    };
    const options = { handle, onread, allowHalfOpen: true, manualStart: true } as unknown as net.SocketConstructorOpts;
    const socket = new net.Socket(options);
    // The server counts its connections by this when it closes.
    (socket as unknown as { _server: unknown })._server = server;
    socket.setNoDelay(true);
    socket.setKeepAlive(true, 15_000);
    return socket;
  }

  /** `count` bytes have come into `buffer`; false stops the reading of the socket. */
  private received(count: number, buffer: Uint8Array): boolean {
    this.options.byteRates?.spend(this.client, count);
    const session = this.session;
    const target = this.left === null ? session.buffer() : null;
    if (target !== null && target.buffer === buffer.buffer && target.byteOffset === buffer.byteOffset) {
      session.advance(count);
    } else {
      // The session's place has moved since the socket was told it (or it had none).
      this.deliver(Buffer.from(buffer.subarray(0, count)));
    }
    return session.closed || (this.left === null && session.buffer() !== null);
  }

  /** Gives the session bytes that came in another buffer; keeps what it does not take yet. */
  private deliver(bytes: Buffer): void {
    const all = this.left === null ? bytes : Buffer.concat([this.left, bytes]);
    const taken = this.session.receive(all);
    this.left = taken === all.length || this.session.closed ? null : all.subarray(taken);
  }

  /** The session takes input again: first what was kept back. */
  private wake(): void {
    if (this.left !== null) this.deliver(Buffer.alloc(0));
    if (this.left !== null) return;
    if (this.inputOver) this.session.disconnected();
    else resumeReading(this.socket);
  }

  private inputEnded(): void {
    this.inputOver = true;
    if (this.left === null) this.session.disconnected();
  }

  private listenTo(socket: net.Socket): void {
    socket.on('end', () => {
      if (this.socket === socket) this.inputEnded();
    });
    socket.on('error', (error) => {
      // After a goodbye many clients close without reading our last bytes: nothing is wrong then.
      if (!this.session.endedCleanly) this.log('info', `${this.name}: ${error.message}`);
    });
    socket.on('drain', () => {
      if (this.socket !== socket) return;
      this.stuckSince = 0;
      this.resume();
    });
    socket.on('close', () => {
      clearInterval(this.timer);
      if (this.rateTimer !== null) clearTimeout(this.rateTimer);
      this.socketOver = true;
      // Requests that the session had no room for yet would otherwise keep it, and its export, for ever.
      this.left = null;
      this.inputEnded();
      this.checkEnded();
    });
  }

  private transport(inside: boolean): Transport {
    const connection = this;
    const offered = inside || this.options.tls == null ? 'none' : this.options.tls.required ? 'required' : 'offered';
    return {
      client: this.client,
      tls: offered,
      send(bytes, sent) {
        if (connection.socketOver) {
          sent();
          return true;
        }
        const { socket } = connection;
        if (inside) connection.collect();
        const isWithinRate = connection.isWithinRate(bytes.length);
        const left = inside ? bytes : writeNow(socket, bytes);
        if (left === null) {
          sent();
          return isWithinRate;
        }
        const more = socket.write(left, sent);
        if (!more) connection.stuckSince = Date.now();
        return more && isWithinRate;
      },
      startTls: () => connection.startTls(),
      end() {
        connection.sessionOver = true;
        connection.socket.end(() => connection.socket.destroySoon());
        resumeReading(connection.socket);
        connection.checkEnded();
      },
      log: (level, message) => connection.log(level, `${connection.name}: ${message}`),
      wake: () => connection.wake(),
    };
  }

  /** Counts bytes that go to the client. False: the session stops here until they, and what has come from it, are paid for. */
  private isWithinRate(count: number): boolean {
    const waitMs = this.options.byteRates?.spend(this.client, count) ?? 0;
    if (waitMs <= 0) return true;
    this.rateTimer ??= setTimeout(() => {
      this.rateTimer = null;
      this.resume();
    }, waitMs);
    return false;
  }

  private resume(): void {
    if (this.rateTimer === null && !this.socket.writableNeedDrain) this.session.resume();
  }

  /** The client agreed to STARTTLS: a new session begins inside, and only who it proves to be counts. */
  private startTls(): void {
    const settings = this.options.tls!;
    const outer = this.socket;
    // Until the handshake is over there is no session that could end; checkTime() ends a handshake that takes too long.
    this.sessionOver = true;
    let keyName: string | null = null;
    const server = tls.createServer({
      ...settings.options,
      requestCert: settings.certificates,
      rejectUnauthorized: false,
      pskCallback: (_socket: tls.TLSSocket, name: string) => {
        const key = settings.key(name);
        if (key === null) this.log('warn', `${this.name}: unknown PSK identity "${printable(name)}"`);
        else keyName = name;
        return key;
      },
    } as tls.TlsOptions);
    const failed = (error: Error) => {
      if (!this.session.endedCleanly) this.log('warn', `${this.name}: TLS: ${error.message.trim()}`);
      outer.destroy();
    };
    server.once('tlsClientError', failed);
    server.once('secureConnection', (inner) => {
      inner.on('error', failed);
      // A name alone proves nothing: the handshake must have used the key.
      const identity = keyName !== null && usedKey(inner) ? keyName : certificateIdentity(inner);
      if (identity === null)
        failed(new Error(String(inner.authorizationError ?? 'no key and no valid client certificate')));
      else this.startInside(inner, identity);
    });
    server.emit('connection', outer);
  }

  private startInside(inner: tls.TLSSocket, identity: string): void {
    this.client = this.clientOf(identity, this.client.address, true);
    this.sessionOver = false;
    this.secondsOver = 0;
    this.socket = inner;
    this.session = NbdSession.insideTls(this.options.exports, this.transport(true), this.session);
    inner.on('drain', () => {
      this.stuckSince = 0;
      this.resume();
    });
    inner.on('end', () => this.inputEnded());
    inner.on('data', (bytes: Buffer) => {
      this.options.byteRates?.spend(this.client, bytes.length);
      this.deliver(bytes);
      if (this.left !== null) inner.pause();
    });
  }

  private collecting = false;

  /** Inside TLS every request comes in a record, and an event, of its own: the replies to those that came together leave together. */
  private collect(): void {
    if (this.collecting) return;
    this.collecting = true;
    const { socket } = this;
    socket.cork();
    setImmediate(() => {
      this.collecting = false;
      socket.uncork();
    });
  }

  private checkTime(): void {
    const negotiationMs = this.options.negotiationTimeoutMs ?? 10_000;
    this.ageMs += 1000;
    if (!this.session.transmitting && this.ageMs > negotiationMs) this.drop('no export opened in time');
    const stuckMs = this.options.stuckTimeoutMs ?? 60_000;
    if (this.stuckSince > 0 && Date.now() - this.stuckSince > stuckMs) this.drop('the client takes no replies');
    if (this.sessionOver && ++this.secondsOver > 5) this.socket.destroy();
  }

  private drop(reason: string): void {
    this.session.abort(reason);
    this.socket.destroy();
  }

  private checkEnded(): void {
    if (this.sessionOver && this.socketOver) this.resolveEnded();
  }
}

/**
 * Was the connection proved by a pre-shared key? In TLS 1.2 the cipher suite says so; in TLS 1.3 a key is a kind of resumption, and
 * there is no other kind here: tickets are off.
 */
function usedKey(socket: tls.TLSSocket): boolean {
  if (socket.getProtocol() === 'TLSv1.3') return socket.isSessionReused();
  return socket.getCipher().name.includes('PSK');
}

/** A certificate names its holder by its common name; null when it is not signed by our authority, or expired. */
function certificateIdentity(socket: tls.TLSSocket): string | null {
  if (!socket.authorized) return null;
  const subject = socket.getPeerCertificate().subject as { CN?: string | string[] } | undefined;
  return typeof subject?.CN === 'string' && subject.CN !== '' ? subject.CN : null;
}

function addressOf(socket: net.Socket): string {
  return socket.remoteAddress ?? 'local';
}

/** The other end is on this machine: when it has gone nothing of it is on its way any more. */
function isHere(address: string): boolean {
  return address === 'local' || address === '::1' || /^(::ffff:)?127\./.test(address);
}

/**
 * Writes as much as the kernel takes at once, past Node's stream, which costs more than the system call when replies are small. Returns
 * what is left for the stream to write, null for nothing.
 */
function writeNow(socket: net.Socket, bytes: Buffer): Buffer | null {
  if (socket.writableLength > 0) return bytes;
  const descriptor = (socket as unknown as { _handle: { fd: number } | null })._handle?.fd ?? -1;
  if (descriptor < 0) return bytes;
  try {
    const count = fs.writeSync(descriptor, bytes);
    return count === bytes.length ? null : bytes.subarray(count);
  } catch {
    // A full socket, or one with an error: the stream will wait, or report it.
    return bytes;
  }
}

/** Starts reading again after the read callback has answered false. */
function resumeReading(socket: net.Socket): void {
  if (!socket.destroyed) socket.resume();
}

/** Removes the socket file of a server that was killed; a live server's is left and listening fails. */
async function removeStaleSocket(path: string): Promise<void> {
  if (!fs.existsSync(path)) return;
  const live = await new Promise<boolean>((resolve) => {
    const probe = net.connect(path, () => {
      probe.destroy();
      resolve(true);
    });
    probe.once('error', () => resolve(false));
  });
  if (live) throw new Failure(`another server listens on ${path}: stop it or choose another path`);
  if (!fs.lstatSync(path).isSocket()) throw new Failure(`${path} exists and is not a socket: choose another path`);
  fs.unlinkSync(path);
}
