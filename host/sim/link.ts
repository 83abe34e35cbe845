// The line between the cards and their image server: a relay that is as slow and as far as it is told, and that can be pulled.
//
// A pulled line says nothing to either end, as a cable does: what is on its way waits, new connections do not come about, and
// whoever gives up learns it alone. The other end hears of it when the line is back.

import { rmSync } from 'node:fs';
import net from 'node:net';
import type { NetworkPath } from '../card/network.js';
import { Failure } from '../failure.js';

export interface LinkOptions {
  /** Each way; null: as fast as it goes. */
  bytesPerSecond: number | null;
  /** Each way. */
  latencyMs: number;
  /** The line goes down or comes up so long after the start. */
  switches: { afterMs: number; up: boolean }[];
}

export const FREE_LINK: LinkOptions = { bytesPerSecond: null, latencyMs: 0, switches: [] };

const BITS: Record<string, number> = { kbit: 1e3, mbit: 1e6, gbit: 1e9 };
const MILLISECONDS: Record<string, number> = { ms: 1, s: 1000, m: 60_000 };

/** `1.5Mbit,40ms,down@20s,up@60s`: any of these, in any order. */
export function parseLink(text: string, before: LinkOptions = FREE_LINK): LinkOptions {
  const link = { ...before, switches: [...before.switches] };
  for (const part of text.split(',')) {
    const rate = /^(\d+(?:\.\d+)?)([kMG]bit)$/i.exec(part);
    const latency = /^(\d+(?:\.\d+)?)(ms|s)$/.exec(part);
    const change = /^(up|down)@(\d+(?:\.\d+)?)(ms|s|m)$/.exec(part);
    if (rate !== null && Number(rate[1]) > 0) {
      link.bytesPerSecond = (Number(rate[1]) * BITS[rate[2].toLowerCase()]) / 8;
    } else if (latency !== null) {
      link.latencyMs = Number(latency[1]) * MILLISECONDS[latency[2]];
    } else if (change !== null) {
      link.switches.push({ up: change[1] === 'up', afterMs: Number(change[2]) * MILLISECONDS[change[3]] });
    } else {
      throw new Failure(`"${part}" says nothing about a line: write 1.5Mbit, 40ms (each way), down@20s or up@60s`);
    }
  }
  return link;
}

/** How time passes for a link: for tests that do not wait. */
export interface LinkClock {
  nowMs(): number;
  after(ms: number, run: () => void): void;
}

const REAL_CLOCK: LinkClock = {
  nowMs: () => performance.now(),
  after: (ms, run) => void setTimeout(run, ms).unref(),
};

/** What is sent waits so long in the sender's buffers at most; then the sender waits. */
const BUFFER_MAX = 256 << 10;
const PIECE = 16 << 10;

export class Link {
  onChange: (up: boolean) => void = () => {};
  readonly #options: LinkOptions;
  readonly #clock: LinkClock;
  readonly #server: net.Server;
  readonly #connections = new Set<Connection>();
  #up = true;
  #closed = false;

  /** `target`: the server's address. */
  constructor(target: NetworkPath['address'], options: LinkOptions, clock = REAL_CLOCK) {
    this.#options = options;
    this.#clock = clock;
    // One line for all connections: they share its rate.
    const lanes: [Lane, Lane] = [new Lane(this, options, clock), new Lane(this, options, clock)];
    this.#server = net.createServer({ allowHalfOpen: true }, (near) => {
      const connection = new Connection(this, near, target, lanes);
      this.#connections.add(connection);
      connection.onEnd = () => this.#connections.delete(connection);
    });
  }

  async listen(path: string): Promise<void> {
    rmSync(path, { force: true });
    await new Promise<void>((done, failed) => {
      this.#server.once('error', failed);
      this.#server.listen(path, done);
    });
    for (const { afterMs, up } of this.#options.switches) this.#clock.after(afterMs, () => this.set(up));
  }

  get up(): boolean {
    return this.#up;
  }

  /** Pulls the cable out, or plugs it in. */
  set(up: boolean): void {
    if (this.#closed || this.#up === up) return;
    this.#up = up;
    this.onChange(up);
    if (up) for (const connection of [...this.#connections]) connection.resume();
  }

  close(): void {
    this.#closed = true;
    this.#server.close();
    for (const connection of [...this.#connections]) connection.destroy();
  }
}

/** One direction of the line. */
class Lane {
  readonly #link: Link;
  readonly #options: LinkOptions;
  readonly #clock: LinkClock;
  /** What has been handed to it has left by then. */
  #busyUntilMs = 0;
  /** On its way, in order: timers alone would not keep it. */
  readonly #queue: { dueMs: number; arrived: () => void }[] = [];

  constructor(link: Link, options: LinkOptions, clock: LinkClock) {
    this.#link = link;
    this.#options = options;
    this.#clock = clock;
  }

  get up(): boolean {
    return this.#link.up;
  }

  /** Runs `arrived` when `bytes` have come through. */
  carry(bytes: number, arrived: () => void): void {
    const { bytesPerSecond, latencyMs } = this.#options;
    if (bytesPerSecond === null && latencyMs === 0) {
      arrived();
      return;
    }
    const takesMs = bytesPerSecond === null ? 0 : (bytes * 1000) / bytesPerSecond;
    this.#busyUntilMs = Math.max(this.#busyUntilMs, this.#clock.nowMs()) + takesMs;
    this.#queue.push({ dueMs: this.#busyUntilMs + latencyMs, arrived });
    if (this.#queue.length === 1) this.#arm();
  }

  #arm(): void {
    this.#clock.after(Math.max(0, this.#queue[0].dueMs - this.#clock.nowMs()), () => {
      // Timers are late rather than early, but not by less than a clock can tell.
      const nowMs = this.#clock.nowMs() + 0.5;
      while (this.#queue.length > 0 && this.#queue[0].dueMs <= nowMs) this.#queue.shift()!.arrived();
      if (this.#queue.length > 0) this.#arm();
    });
  }
}

class Connection {
  onEnd: () => void = () => {};
  readonly #near: net.Socket;
  readonly #target: NetworkPath['address'];
  readonly #lanes: [Lane, Lane];
  #far: net.Socket | null = null;
  #pipes: Pipe[] = [];

  constructor(link: Link, near: net.Socket, target: NetworkPath['address'], lanes: [Lane, Lane]) {
    this.#near = near;
    this.#target = target;
    this.#lanes = lanes;
    near.setNoDelay(true);
    near.on('error', () => {});
    near.on('close', () => {
      if (this.#far === null || this.#far.destroyed) this.onEnd();
    });
    if (link.up) this.#connect();
  }

  #connect(): void {
    const far = net.connect({ ...this.#target, noDelay: true, allowHalfOpen: true });
    this.#far = far;
    far.on('error', () => {});
    far.on('close', () => {
      if (this.#near.destroyed) this.onEnd();
    });
    this.#pipes = [new Pipe(this.#near, far, this.#lanes[0]), new Pipe(far, this.#near, this.#lanes[1])];
  }

  /** The line is back. */
  resume(): void {
    if (this.#far === null && !this.#near.destroyed) this.#connect();
    for (const pipe of this.#pipes) pipe.resume();
  }

  destroy(): void {
    this.#near.destroy();
    this.#far?.destroy();
    this.onEnd();
  }
}

/** What a pipe carries beside bytes: the end of the stream, and that the sender is gone. */
type Arrival = Buffer | 'end' | 'close';

/** From one socket to another, in order. */
class Pipe {
  readonly #from: net.Socket;
  readonly #to: net.Socket;
  readonly #lane: Lane;
  /** What has come through while the line was down. */
  readonly #held: Arrival[] = [];
  #waiting = 0;

  constructor(from: net.Socket, to: net.Socket, lane: Lane) {
    this.#from = from;
    this.#to = to;
    this.#lane = lane;
    from.on('data', (bytes: Buffer) => this.#take(bytes));
    from.on('end', () => lane.carry(0, () => this.#arrive('end')));
    from.on('close', () => lane.carry(0, () => this.#arrive('close')));
    to.on('drain', () => this.#flow());
  }

  resume(): void {
    for (const arrival of this.#held.splice(0)) this.#deliver(arrival);
    this.#flow();
  }

  #take(bytes: Buffer): void {
    for (let at = 0; at < bytes.length; at += PIECE) {
      const piece = bytes.subarray(at, at + PIECE);
      this.#waiting += piece.length;
      this.#lane.carry(piece.length, () => this.#arrive(piece));
    }
    if (this.#waiting >= BUFFER_MAX) this.#from.pause();
  }

  #arrive(arrival: Arrival): void {
    if (this.#lane.up && this.#held.length === 0) this.#deliver(arrival);
    else this.#held.push(arrival);
  }

  #deliver(arrival: Arrival): void {
    if (this.#to.destroyed) return;
    if (arrival === 'end') this.#to.end();
    else if (arrival === 'close') this.#to.destroySoon();
    else {
      this.#waiting -= arrival.length;
      if (this.#to.write(arrival)) this.#flow();
    }
  }

  #flow(): void {
    if (this.#waiting < BUFFER_MAX && this.#to.writableLength < BUFFER_MAX) this.#from.resume();
  }
}
