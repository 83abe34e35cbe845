// A world for cards in this process with one source of time and chance: nothing happens but by run(), and the same seed
// gives the same run. The image server at the other end of every stream is the real NBD session, without sockets.

import type { NetworkPath } from '../card/network.js';
import type { CardNetwork, World } from '../card/world.js';
import { Random } from '../fuzz/random.js';
import type { Exports } from '../server/export.js';
import { NbdSession, type Transport } from '../server/nbd-session.js';

/** The firmware's NetState. */
const CLOSED = 0;
const CONNECTING = 1;
const OPEN = 2;

export interface SimulatedWorldOptions {
  seed: number;
  /** What the image server offers. */
  exports: Exports;
  /** One way, in ms; chance adds up to as much again. 0: things happen in order, without time passing. */
  latencyMs?: number;
}

interface Happening {
  atMs: number;
  order: number;
  callback: () => void;
}

export class SimulatedWorld implements World {
  readonly random: Random;
  /** Milliseconds since the beginning. */
  nowMs = 0;
  /** False: connections cannot be made. Those that exist stay: see `breakLinks()`. */
  reachable = true;
  readonly exports: Exports;
  readonly latencyMs: number;
  readonly #happenings: Happening[] = [];
  #order = 0;
  readonly #networks: SimulatedCardNetwork[] = [];

  constructor(options: SimulatedWorldOptions) {
    this.random = new Random(options.seed);
    this.exports = options.exports;
    this.latencyMs = options.latencyMs ?? 0;
  }

  clockMs(): number {
    return this.nowMs >>> 0;
  }

  randomU32(): number {
    return this.random.u32();
  }

  after(ms: number, callback: () => void): () => void {
    const happening = { atMs: this.nowMs + ms, order: this.#order++, callback };
    this.#happenings.push(happening);
    return () => {
      const index = this.#happenings.indexOf(happening);
      if (index >= 0) this.#happenings.splice(index, 1);
    };
  }

  network(_paths: NetworkPath[]): CardNetwork {
    const network = new SimulatedCardNetwork(this);
    this.#networks.push(network);
    return network;
  }

  /** Every connection breaks, with what is on its way. */
  breakLinks(): void {
    for (const network of this.#networks) network.breakAll();
  }

  /** Lets time pass until `condition` holds; false when it does not within `limitMs`. */
  run(condition: () => boolean, limitMs: number): boolean {
    const endMs = this.nowMs + limitMs;
    while (!condition()) {
      const next = this.#next();
      if (next === null || next.atMs > endMs) {
        this.nowMs = endMs;
        return condition();
      }
      this.#happen(next);
    }
    return true;
  }

  /** Lets `ms` pass. */
  pass(ms: number): void {
    this.run(() => false, ms);
  }

  #next(): Happening | null {
    let next: Happening | null = null;
    for (const happening of this.#happenings) {
      if (
        next === null ||
        happening.atMs < next.atMs ||
        (happening.atMs === next.atMs && happening.order < next.order)
      ) {
        next = happening;
      }
    }
    return next;
  }

  #happen(happening: Happening): void {
    this.#happenings.splice(this.#happenings.indexOf(happening), 1);
    this.nowMs = Math.max(this.nowMs, happening.atMs);
    happening.callback();
  }

  /** When something sent now arrives. */
  delayMs(): number {
    return this.latencyMs === 0 ? 0 : this.latencyMs + this.random.below(this.latencyMs + 1);
  }
}

/** All streams of one card. */
class SimulatedCardNetwork implements CardNetwork {
  onChange: () => void = () => {};
  onError: (message: string) => void = () => {};
  readonly #world: SimulatedWorld;
  readonly #streams = new Map<number, SimulatedStream>();

  constructor(world: SimulatedWorld) {
    this.#world = world;
  }

  open(number: number): void {
    this.close(number);
    this.#streams.set(number, new SimulatedStream(this.#world, this));
  }

  close(number: number): void {
    this.#streams.get(number)?.close();
    this.#streams.delete(number);
  }

  closeAll(): void {
    for (const number of [...this.#streams.keys()]) this.close(number);
  }

  breakAll(): void {
    for (const stream of this.#streams.values()) stream.break();
  }

  state(number: number): number {
    return this.#streams.get(number)?.state ?? CLOSED;
  }

  startTls(): void {
    throw new Error('the simulated network has no TLS');
  }

  receive(number: number, target: Uint8Array): number {
    return this.#streams.get(number)?.receive(target) ?? 0;
  }

  send(number: number, source: Uint8Array): number {
    return this.#streams.get(number)?.send(source) ?? 0;
  }

  flush(): void {}
}

/** One connection: bytes are on their way in order, each piece for the world's delay. */
class SimulatedStream {
  readonly #world: SimulatedWorld;
  readonly #network: SimulatedCardNetwork;
  #state = CONNECTING;
  #session: NbdSession | null = null;
  #broken = false;
  #received: Buffer[] = [];
  /** Bytes for a session that takes none now. */
  #waiting: Buffer[] = [];
  #sentArrivesMs = 0;
  #receivedArrivesMs = 0;

  constructor(world: SimulatedWorld, network: SimulatedCardNetwork) {
    this.#world = world;
    this.#network = network;
    world.after(world.delayMs(), () => this.#connect());
  }

  get state(): number {
    return this.#state === CLOSED && this.#received.length > 0 ? OPEN : this.#state;
  }

  receive(target: Uint8Array): number {
    let moved = 0;
    while (moved < target.length && this.#received.length > 0) {
      const first = this.#received[0];
      const count = Math.min(first.length, target.length - moved);
      target.set(first.subarray(0, count), moved);
      moved += count;
      if (count === first.length) this.#received.shift();
      else this.#received[0] = first.subarray(count);
    }
    return moved;
  }

  send(source: Uint8Array): number {
    if (this.#state !== OPEN) return 0;
    const bytes = Buffer.from(source);
    this.#sentArrivesMs = Math.max(this.#sentArrivesMs, this.#world.nowMs + this.#world.delayMs());
    this.#world.after(this.#sentArrivesMs - this.#world.nowMs, () => this.#deliver(bytes));
    return bytes.length;
  }

  /** The card closes: what it sent before still arrives. */
  close(): void {
    this.#state = CLOSED;
    this.#received = [];
    const arrivesMs = Math.max(this.#sentArrivesMs, this.#world.nowMs);
    this.#world.after(arrivesMs - this.#world.nowMs, () => {
      if (!this.#broken) this.#session?.disconnected();
    });
  }

  break(): void {
    if (this.#broken) return;
    this.#broken = true;
    this.#state = CLOSED;
    this.#received = [];
    this.#session?.disconnected();
    this.#network.onChange();
  }

  #connect(): void {
    if (this.#state !== CONNECTING) return;
    if (!this.#world.reachable) {
      this.#state = CLOSED;
      this.#network.onError('the simulated server cannot be reached');
    } else {
      this.#state = OPEN;
      this.#session = new NbdSession(this.#world.exports, this.#transport());
      this.#session.open();
    }
    this.#network.onChange();
  }

  #deliver(bytes: Buffer): void {
    if (this.#broken || this.#session === null) return;
    this.#waiting.push(bytes);
    this.#drain();
  }

  #drain(): void {
    while (this.#waiting.length > 0 && this.#session !== null && !this.#session.closed) {
      const first = this.#waiting[0];
      const taken = this.#session.receive(first);
      if (taken < first.length) {
        this.#waiting[0] = first.subarray(taken);
        return;
      }
      this.#waiting.shift();
    }
  }

  #transport(): Transport {
    return {
      client: { identity: 'anonymous', address: 'simulated', tls: false },
      tls: 'none',
      send: (bytes, sent) => {
        const copy = Buffer.from(bytes);
        sent();
        this.#receivedArrivesMs = Math.max(this.#receivedArrivesMs, this.#world.nowMs + this.#world.delayMs());
        this.#world.after(this.#receivedArrivesMs - this.#world.nowMs, () => this.#arrive(copy));
        return true;
      },
      startTls: () => {},
      end: () => {
        const arrivesMs = Math.max(this.#receivedArrivesMs, this.#world.nowMs);
        this.#world.after(arrivesMs - this.#world.nowMs, () => {
          if (this.#state === CLOSED) return;
          this.#state = CLOSED;
          this.#network.onChange();
        });
      },
      log: () => {},
      wake: () => this.#drain(),
    };
  }

  #arrive(bytes: Buffer): void {
    if (this.#state !== OPEN || this.#broken) return;
    this.#received.push(bytes);
    this.#network.onChange();
  }
}
