// The simulated network between a card and its image server: byte streams with the manners of TCP over a bad line.
//
// A direction has a latency, a rate and a way of cutting bytes into segments; it can be blocked (nothing arrives; the sender's
// system keeps it and sends it again when the block ends). Streams are cut by a reset. What one side has given up may still be
// on its way to the other: a server can hold a session whose card is long gone.
//
// Faults of this zone and what they may cost: any of them a connection; none of them an acknowledged write, an order of
// writes, or a byte.

import { MS, SECOND, type Timer, type World } from './world.js';

/** The firmware's NetState. */
export const NetState = { CLOSED: 0, CONNECTING: 1, OPEN: 2 } as const;

export type Delivery =
  /** As large as they were sent. */
  | 'whole'
  /** Ethernet frames. */
  | 'frames'
  /** Any size, down to single bytes. */
  | 'pieces';

export interface NetworkSettings {
  latencyUs: number;
  /** Up to this much more, drawn for each segment; segments stay in order. */
  jitterUs: number;
  bytesPerSecond: number;
  delivery: Delivery;
  /** A sender takes no more than this beyond what the receiver has taken. */
  windowBytes: number;
}

/** What the server side of a connection sees. */
export interface ServerEnd {
  /** Bytes have arrived, or the peer has ended: look at `received` and `ended`. */
  onInput: () => void;
  /** There is room to send again after send() did not take all. */
  onDrain: () => void;
}

const FRAME = 1448;
/** A system that gets no answer to what it sent sends it again about then. */
const RETRANSMIT_US = 300 * MS;
/** A connection that cannot be set up is given up by the system after this. */
const CONNECT_TIMEOUT_US = 120 * SECOND;
/** An idle peer that is gone is noticed after this: 15 s, then 10 probes of a second (server.ts, setKeepAlive). */
const KEEPALIVE_US = 25 * SECOND;

/** One direction of one connection. */
class Pipe {
  /** Sent and not yet taken by the receiver. */
  outstanding = 0;
  /** Arrived and not taken. */
  readonly arrived: Uint8Array[] = [];
  arrivedBytes = 0;
  /** No more will arrive after what has. */
  ended = false;
  /** It ended without an end: reset, or the peer has been silent for too long. */
  broken = false;
  /** Segments on their way or held. */
  inFlight = 0;
  /** Arrival of the last segment: segments stay in order. */
  #lastUs = 0;
  #closed = false;
  #dead = false;
  readonly #direction: Direction;
  /** Segments that met a block. */
  #held: (() => void)[] = [];

  constructor(
    direction: Direction,
    readonly onArrival: () => void,
    readonly onRoom: () => void,
  ) {
    this.#direction = direction;
    direction.pipes.add(this);
  }

  /** Takes what fits into the window; returns how many bytes. */
  send(bytes: Uint8Array): number {
    const { settings } = this.#direction;
    const room = settings.windowBytes - this.outstanding;
    const count = Math.min(room, bytes.length);
    if (count <= 0 || this.#closed) return 0;
    // Buffer.slice() would not copy.
    const copy = new Uint8Array(bytes.subarray(0, count));
    this.outstanding += count;
    for (let at = 0; at < count; ) {
      const size = Math.min(this.#direction.segmentSize(), count - at);
      const segment = copy.subarray(at, at + size);
      at += size;
      this.#carry(this.#direction.transmit(size), () => {
        this.arrived.push(segment);
        this.arrivedBytes += segment.length;
        this.onArrival();
      });
    }
    return count;
  }

  /** The sender ends the stream, behind everything that it has sent. */
  end(): void {
    if (this.#closed) return;
    this.#closed = true;
    this.#carry(this.#direction.transmit(0), () => {
      this.ended = true;
      this.#direction.pipes.delete(this);
      this.onArrival();
    });
  }

  /** Nothing that is on its way arrives, and nobody is told. */
  destroy(): void {
    this.#closed = true;
    this.#held = [];
    this.#dead = true;
    this.inFlight = 0;
    this.#direction.pipes.delete(this);
  }

  /** Drops everything on its way; the end arrives in its place, unless the line is blocked. */
  reset(): void {
    if (this.ended) return;
    this.destroy();
    if (this.#direction.blocked) return;
    this.#direction.world.schedule(this.#direction.settings.latencyUs, () => {
      if (this.ended) return;
      this.ended = this.broken = true;
      this.onArrival();
    });
  }

  take(target: Uint8Array): number {
    let moved = 0;
    while (moved < target.length && this.arrived.length > 0) {
      const first = this.arrived[0];
      const count = Math.min(first.length, target.length - moved);
      target.set(count === first.length ? first : first.subarray(0, count), moved);
      moved += count;
      if (count === first.length) this.arrived.shift();
      else this.arrived[0] = first.subarray(count);
    }
    this.taken(moved);
    return moved;
  }

  /** The receiver has taken bytes: the sender's window moves when it hears of it. */
  taken(bytes: number): void {
    if (bytes === 0) return;
    this.arrivedBytes -= bytes;
    const wasFull = this.outstanding >= this.#direction.settings.windowBytes;
    this.outstanding -= bytes;
    if (wasFull) this.#direction.world.schedule(this.#direction.settings.latencyUs, this.onRoom);
  }

  /** The direction is open again. */
  unblock(): void {
    if (this.#held.length === 0) return;
    const { world, settings } = this.#direction;
    world.schedule(settings.latencyUs + world.random.below(RETRANSMIT_US), () => {
      // It may be blocked again by now.
      while (!this.#direction.blocked && this.#held.length > 0) {
        this.inFlight -= 1;
        this.#held.shift()!();
      }
    });
  }

  #carry(atUs: number, arrive: () => void): void {
    const { world } = this.#direction;
    this.#lastUs = Math.max(this.#lastUs, atUs);
    this.inFlight += 1;
    world.scheduleAt(this.#lastUs, () => {
      if (this.#dead) return;
      // In order: what follows a held segment is held, too.
      if (this.#direction.blocked || this.#held.length > 0) {
        this.#held.push(arrive);
        return;
      }
      this.inFlight -= 1;
      arrive();
    });
  }
}

/** One direction of the line, shared by its connections. */
class Direction {
  blocked = false;
  readonly pipes = new Set<Pipe>();
  /** How long the bytes that were sent keep a sender busy at least, in all. */
  busyUs = 0;
  #freeAtUs = 0;

  constructor(
    readonly world: World,
    readonly settings: NetworkSettings,
  ) {}

  segmentSize(): number {
    const { random } = this.world;
    switch (this.settings.delivery) {
      case 'whole':
        return 65_536;
      case 'frames':
        return FRAME;
      case 'pieces':
        return random.chance(0.25) ? random.between(1, 40) : random.between(41, 16_384);
    }
  }

  /** Puts a segment on the line; returns when it arrives. */
  transmit(bytes: number): number {
    const { settings, world } = this;
    const sendUs = Math.ceil((bytes * SECOND) / settings.bytesPerSecond);
    // With a small window and a long way the line is idle most of the time.
    const windowUs = (bytes * 2 * (settings.latencyUs + settings.jitterUs)) / settings.windowBytes;
    this.busyUs += Math.max(sendUs, windowUs);
    this.#freeAtUs = Math.max(this.#freeAtUs, world.nowUs) + sendUs;
    const jitterUs = settings.jitterUs > 0 ? world.random.below(settings.jitterUs) : 0;
    return this.#freeAtUs + settings.latencyUs + jitterUs;
  }

  setBlocked(blocked: boolean): void {
    if (this.blocked === blocked) return;
    this.blocked = blocked;
    if (!blocked) for (const pipe of [...this.pipes]) pipe.unblock();
  }

  /** Where the backlog of the line ends. */
  get freeAtUs(): number {
    return Math.max(this.#freeAtUs, this.world.nowUs);
  }
}

export class Connection {
  /** A NetState, as the card sees it. */
  state: number = NetState.CONNECTING;
  readonly toServer: Pipe;
  readonly toCard: Pipe;
  /** Null: the server's system knows nothing of this connection (any more). */
  server: ServerEnd | null = null;
  /** The card's system knows nothing of it any more. */
  forgotten = false;
  #keepalive: Timer | null = null;
  readonly #network: SimulatedNetwork;

  constructor(
    network: SimulatedNetwork,
    readonly number: number,
  ) {
    this.#network = network;
    this.toServer = new Pipe(
      network.up,
      () => this.#arrivedAtServer(),
      () => network.onChange(),
    );
    this.toCard = new Pipe(
      network.down,
      () => this.#arrivedAtCard(),
      () => this.server?.onDrain(),
    );
  }

  #arrivedAtServer(): void {
    if (this.server === null) {
      this.#network.answerUnknown(this);
      return;
    }
    this.watchPeer();
    this.server.onInput();
  }

  #arrivedAtCard(): void {
    if (!this.forgotten) this.#network.onChange();
    // The card's system answers a segment of a connection that it does not know with a reset.
    else this.toServer.reset();
  }

  // Server side

  /** Returns how many bytes were taken; onDrain() follows when that was not all. */
  send(bytes: Uint8Array): number {
    return this.toCard.send(bytes);
  }

  /** An orderly end behind everything sent. */
  end(): void {
    this.toCard.end();
    this.#close();
  }

  /** The server's process is gone and its system closes the connection. */
  reset(): void {
    this.toCard.reset();
    this.#close();
  }

  /** The server's machine is gone: nobody says anything. */
  vanish(): void {
    this.toCard.destroy();
    this.#close();
  }

  #close(): void {
    this.server = null;
    this.world.cancel(this.#keepalive);
    this.#keepalive = null;
  }

  /** Tells the server when the card has been gone for long. */
  watchPeer(): void {
    const { world } = this;
    world.cancel(this.#keepalive);
    this.#keepalive = world.schedule(KEEPALIVE_US, () => {
      if (!this.#network.blocked && !this.forgotten) {
        this.watchPeer();
        return;
      }
      this.#keepalive = null;
      this.toServer.destroy();
      this.toServer.ended = this.toServer.broken = true;
      this.server?.onInput();
    });
  }

  get world(): World {
    return this.#network.world;
  }
}

/** The network as the card's runtime offers it to the firmware: the `net_` imports. */
/** Bytes a second: no faster than the line, and than a window each round trip. */
export function rateOf({ bytesPerSecond, windowBytes, latencyUs, jitterUs }: NetworkSettings): number {
  return Math.min(bytesPerSecond, (windowBytes * SECOND) / (2 * latencyUs + jitterUs));
}

export class SimulatedNetwork {
  /** The card has something to look at. */
  onChange: () => void = () => {};
  /** A connection has reached the server's system: give it a ServerEnd, or answer 'refused', or 'nobody' is there. */
  onAccept: (connection: Connection) => ServerEnd | 'refused' | 'nobody' = () => 'refused';
  readonly up: Direction;
  readonly down: Direction;
  opens = 0;
  #machineUp = true;
  #current: Connection | null = null;
  readonly #all = new Set<Connection>();

  constructor(
    readonly world: World,
    readonly settings: NetworkSettings,
  ) {
    this.up = new Direction(world, settings);
    this.down = new Direction(world, settings);
  }

  // The card's side. There is one stream.

  open(): void {
    this.close();
    this.opens += 1;
    const connection = new Connection(this, this.opens);
    this.#current = connection;
    for (const old of this.#all) if (old.forgotten && old.server === null) this.#all.delete(old);
    this.#all.add(connection);
    this.world.trace('network', `connection ${connection.number} opened`);
    this.#connect(connection, this.world.nowUs);
  }

  /** SYN and its answer; a lost one is sent again. */
  #connect(connection: Connection, startedUs: number): void {
    const { world } = this;
    world.scheduleAt(this.up.transmit(60), () => {
      if (connection.forgotten) return;
      const answer = this.up.blocked ? 'nobody' : this.onAccept(connection);
      if (answer === 'nobody') {
        if (world.nowUs - startedUs > CONNECT_TIMEOUT_US) this.#failed(connection);
        else world.schedule(world.random.between(500 * MS, 1500 * MS), () => this.#connect(connection, startedUs));
        return;
      }
      if (answer !== 'refused') {
        connection.server = answer;
        connection.watchPeer();
      }
      this.#answer(connection, answer !== 'refused');
    });
  }

  #answer(connection: Connection, accepted: boolean): void {
    this.world.scheduleAt(this.down.transmit(60), () => {
      if (connection.forgotten) return;
      if (this.down.blocked) {
        this.world.schedule(RETRANSMIT_US, () => this.#answer(connection, accepted));
        return;
      }
      if (!accepted) {
        this.#failed(connection);
        return;
      }
      connection.state = NetState.OPEN;
      this.onChange();
    });
  }

  #failed(connection: Connection): void {
    connection.state = NetState.CLOSED;
    this.onChange();
  }

  /** Gives the connection up. What was sent may still go out, or not: systems differ. */
  close(): void {
    const connection = this.#current;
    if (connection === null) return;
    this.#current = null;
    connection.forgotten = true;
    connection.toCard.destroy();
    if (this.world.random.chance(0.5)) connection.toServer.end();
    else connection.toServer.reset();
    this.world.trace('network', `connection ${connection.number} closed by the card`);
  }

  state(): number {
    const connection = this.#current;
    if (connection === null) return NetState.CLOSED;
    if (connection.toCard.ended && connection.toCard.arrivedBytes === 0) return NetState.CLOSED;
    return connection.state;
  }

  receive(target: Uint8Array): number {
    const connection = this.#current;
    return connection === null || connection.state !== NetState.OPEN ? 0 : connection.toCard.take(target);
  }

  send(source: Uint8Array): number {
    const connection = this.#current;
    if (connection === null || connection.state !== NetState.OPEN || connection.toCard.ended) return 0;
    return connection.toServer.send(source);
  }

  // Faults

  /** Whatever is connected breaks, on both sides. */
  breakConnections(): void {
    this.world.trace('network', 'connections break');
    for (const connection of this.#all) {
      connection.toServer.reset();
      connection.toCard.reset();
    }
  }

  /** The card loses its power: its system forgets, and says nothing. What is on the line still arrives, or is lost. */
  cardLost(): void {
    const connection = this.#current;
    if (connection === null) return;
    this.#current = null;
    connection.forgotten = true;
    connection.toCard.destroy();
    // Its system sends nothing again.
    if (this.up.blocked || this.world.random.chance(0.5)) connection.toServer.destroy();
  }

  /** Is anything of a card that has lost its power still on its way to the server? */
  get carriesRemains(): boolean {
    for (const connection of this.#all) if (connection.forgotten && connection.toServer.inFlight > 0) return true;
    return false;
  }

  /** The server's machine goes away, or comes back: what was sent to it meanwhile is sent again and answered. */
  setMachine(up: boolean): void {
    this.#machineUp = up;
    if (!up) return;
    for (const connection of this.#all) {
      if (connection.server === null && connection.toServer.outstanding > 0) this.answerUnknown(connection);
    }
  }

  /** The server's system answers a segment of a connection that it does not know with a reset. */
  answerUnknown(connection: Connection): void {
    if (!this.#machineUp || connection.forgotten || connection.state !== NetState.OPEN) return;
    this.world.schedule(this.world.random.below(RETRANSMIT_US), () => {
      if (connection.server === null && this.#machineUp) connection.toCard.reset();
    });
  }

  get blocked(): boolean {
    return this.up.blocked || this.down.blocked;
  }
}
