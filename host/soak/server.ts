// The image server in the simulated world: the real NBD session on simulated streams, over a store that crashes.

import { NbdSession, type Transport } from '../server/nbd-session.js';
import type { ImageBackend } from './memory-store.js';
import type { Connection, ServerEnd, SimulatedNetwork } from './network.js';
import { Violation, type World } from './world.js';

export type ServerState =
  | 'up'
  /** The process is gone: connections are refused. */
  | 'down'
  /** The machine is gone: nobody answers. */
  | 'gone';

/** Beyond this much that the network has not taken, a session gets no more input. */
const OUTPUT_MAX = 64 * 1024;

export class SimulatedServer {
  state: ServerState = 'up';
  readonly #sessions = new Set<ServerSession>();
  /** Counts crashes: what an earlier life has begun has no effect on a later one. */
  #life = 0;
  #starting = false;

  constructor(
    readonly world: World,
    readonly network: SimulatedNetwork,
    readonly store: ImageBackend,
  ) {
    network.onAccept = (connection) => this.#accept(connection);
  }

  #accept(connection: Connection): ServerEnd | 'refused' | 'nobody' {
    if (this.state === 'down') return 'refused';
    if (this.state === 'gone') return 'nobody';
    const session = new ServerSession(this, connection, (ended) => this.#sessions.delete(ended));
    this.#sessions.add(session);
    session.start();
    return session;
  }

  /** The process, or the whole machine, goes without a word. */
  crash(state: 'down' | 'gone'): void {
    this.world.trace('server', state === 'down' ? 'killed' : 'machine lost');
    this.#life += 1;
    this.#starting = false;
    // A process cannot be killed any more on a machine that is gone, and leaves it gone.
    if (this.state === 'gone') state = 'gone';
    this.state = state;
    for (const session of this.#sessions) session.kill(state);
    this.#sessions.clear();
    this.store.crash(state);
    if (state === 'gone') this.network.setMachine(false);
  }

  /** The server comes back; it serves once its store is open. */
  start(): void {
    if (this.state === 'up' || this.#starting) return;
    this.#starting = true;
    if (this.state === 'gone') this.network.setMachine(true);
    this.state = 'down';
    this.world.promises = true;
    const life = this.#life;
    this.store.start().then(
      () => {
        if (life !== this.#life) return;
        this.#starting = false;
        this.world.trace('server', 'started');
        this.state = 'up';
      },
      (error: unknown) => {
        if (life === this.#life) this.world.fail(error);
      },
    );
  }
}

class ServerSession implements ServerEnd {
  readonly #session: NbdSession;
  readonly #connection: Connection;
  readonly #server: SimulatedServer;
  readonly #ended: (session: ServerSession) => void;
  /** Output that the network has not taken yet. */
  #output: Buffer[] = [];
  #outputBytes = 0;
  #over = false;
  #dead = false;

  constructor(server: SimulatedServer, connection: Connection, ended: (session: ServerSession) => void) {
    this.#server = server;
    this.#connection = connection;
    this.#ended = ended;
    this.#session = new NbdSession(server.store.exports, this.#transport());
  }

  #transport(): Transport {
    const { world } = this.#server;
    const name = `connection ${this.#connection.number}`;
    return {
      client: { identity: 'anonymous', address: '192.0.2.1', tls: false },
      tls: 'none',
      send: (bytes, sent) => this.#send(bytes, sent),
      startTls: () => {},
      end: () => {
        this.#over = true;
        this.#finish();
      },
      log: (level, message) => {
        world.trace('server', `${name}: ${level}: ${message}`);
        if (message.startsWith('session failed')) world.fail(new Violation('crash', `${name}: ${message}`));
      },
      wake: () => this.onInput(),
    };
  }

  #send(bytes: Buffer, sent: () => void): boolean {
    if (this.#dead) return true;
    let taken = 0;
    if (this.#outputBytes === 0) taken = this.#connection.send(bytes);
    if (taken < bytes.length) {
      this.#output.push(Buffer.from(bytes.subarray(taken)));
      this.#outputBytes += bytes.length - taken;
    }
    sent();
    return this.#outputBytes < OUTPUT_MAX;
  }

  /** The server speaks first. */
  start(): void {
    this.#session.open();
  }

  /** Bytes have come, or the connection has ended. */
  onInput(): void {
    if (this.#dead) return;
    const { toServer } = this.#connection;
    if (toServer.broken) {
      // As a socket's 'close': nothing can be sent any more, and what was not taken yet is dropped.
      this.#outputBytes = 0;
      this.#output = [];
      this.#session.disconnected();
      this.#finish();
      return;
    }
    // Work that waits for a commit goes on in a promise.
    this.#server.world.promises = true;
    while (toServer.arrived.length > 0) {
      const first = toServer.arrived[0];
      const count = this.#session.receive(first);
      if (this.#dead || count === 0) break;
      if (count === first.length) toServer.arrived.shift();
      else toServer.arrived[0] = first.subarray(count);
      toServer.taken(count);
    }
    if (this.#session.closed) this.#finish();
    else if (toServer.ended && toServer.arrived.length === 0) this.#session.disconnected();
  }

  onDrain(): void {
    if (this.#dead) return;
    while (this.#output.length > 0) {
      const first = this.#output[0];
      const count = this.#connection.send(first);
      this.#outputBytes -= count;
      if (count < first.length) {
        this.#output[0] = first.subarray(count);
        return;
      }
      this.#output.shift();
    }
    if (this.#over) this.#finish();
    else {
      this.#session.resume();
      this.#server.world.promises = true;
    }
  }

  /** The session is over: the connection ends behind the output that is left. */
  #finish(): void {
    if (this.#dead || this.#outputBytes > 0) return;
    this.#dead = true;
    this.#connection.end();
    this.#ended(this);
  }

  /** The process that this session was in is gone. */
  kill(how: 'down' | 'gone'): void {
    this.#dead = true;
    if (how === 'down') this.#connection.reset();
    else this.#connection.vanish();
  }
}
