// What goes wrong in a run, and when: carries out the faults of a scenario, and knows since when all has been well.

import type { ImageBackend } from './memory-store.js';
import { rateOf, type SimulatedNetwork } from './network.js';
import type { Fault, FaultKind } from './scenario.js';
import type { SimulatedServer } from './server.js';
import { SECOND, type Timer, type World } from './world.js';

const SLOWDOWN = 10;

/** What the local store may cost. */
export interface StoreWeather {
  /** May reading these sectors be an error, whatever the image server has? */
  isLost(lba: number, count: number): boolean;
  /** May writes and flushes fail: what they wait for may never happen? */
  readonly holdsUp: boolean;
}

/** Has anything been wrong lately? */
export interface Weather {
  readonly store: StoreWeather;
  /** Was any fault there at `sinceUs`, or at any time since? */
  disturbedSince(sinceUs: number): boolean;
  /** How long the line will take for what the card still has to send. */
  readonly backlogUs: number;
  /** How long line and server have been at work for the card, in all: what the world takes even when all is well. */
  readonly workUs: number;
}

export interface CardFaults {
  powerCut(offUs: number): void;
  clockJump(ms: number): void;
}

export interface Administrators {
  /** Changes a part of the image. */
  change(): void;
}

export class Faults implements Weather {
  readonly counts = new Map<FaultKind, number>();
  readonly store: StoreWeather;
  readonly #world: World;
  readonly #network: SimulatedNetwork;
  readonly #server: SimulatedServer;
  readonly #store: ImageBackend;
  readonly #card: CardFaults;
  readonly #administrators: Administrators;
  #waiting: Fault[];
  readonly #starts = new Set<Timer>();
  /** Faults that are there now, with the timer that ends them. */
  readonly #active = new Map<Fault, Timer>();
  /** Faults that wait for the next generation. */
  #atCommit: Fault[] = [];
  #lastEndUs = Number.NEGATIVE_INFINITY;
  readonly #rate: number;

  constructor(
    world: World,
    network: SimulatedNetwork,
    server: SimulatedServer,
    store: ImageBackend,
    card: CardFaults,
    localStore: StoreWeather,
    administrators: Administrators,
    faults: readonly Fault[],
  ) {
    this.#world = world;
    this.#network = network;
    this.#server = server;
    this.#store = store;
    this.#card = card;
    this.store = localStore;
    this.#administrators = administrators;
    this.#waiting = [...faults].sort((a, b) => a.atOperation - b.atOperation || a.number - b.number);
    this.#rate = network.settings.bytesPerSecond;
  }

  disturbedSince(sinceUs: number): boolean {
    return this.#active.size > 0 || this.#lastEndUs >= sinceUs;
  }

  /** What the card says that it still has to send. */
  lagBytes: () => number = () => 0;

  get backlogUs(): number {
    return (this.lagBytes() * SECOND) / rateOf(this.#network.settings);
  }

  get workUs(): number {
    return this.#network.up.busyUs + this.#network.down.busyUs + this.#store.commitsUs;
  }

  /** The PC begins an operation: faults that belong to it, or to one that was taken out of the scenario, are on their way. */
  operation(number: number): void {
    while (this.#waiting.length > 0 && this.#waiting[0].atOperation <= number) {
      const fault = this.#waiting.shift()!;
      if (fault.atCommit) {
        this.#atCommit.push(fault);
        continue;
      }
      this.#beginLater(fault);
    }
  }

  /** The card has made a generation, and is not told yet. */
  committed(): void {
    for (const fault of this.#atCommit) this.#beginLater(fault);
    this.#atCommit = [];
  }

  #beginLater(fault: Fault): void {
    const timer = this.#world.schedule(fault.delayUs, () => {
      this.#starts.delete(timer);
      this.#begin(fault);
    });
    this.#starts.add(timer);
  }

  /** From now on nothing goes wrong any more. */
  stop(): void {
    this.#waiting = [];
    this.#atCommit = [];
    for (const timer of this.#starts) this.#world.cancel(timer);
    this.#starts.clear();
    for (const [fault, timer] of [...this.#active]) {
      this.#world.cancel(timer);
      this.#end(fault);
    }
  }

  #begin(fault: Fault): void {
    const { kind } = fault;
    this.counts.set(kind, (this.counts.get(kind) ?? 0) + 1);
    this.#world.trace('fault', `${kind}, ${(fault.durationUs / 1000).toFixed(0)} ms (fault ${fault.number})`);
    this.#active.set(
      fault,
      this.#world.schedule(fault.durationUs, () => this.#end(fault)),
    );
    switch (kind) {
      case 'break':
        this.#network.breakConnections();
        break;
      case 'server-killed':
        this.#server.crash('down');
        break;
      case 'machine-lost':
        this.#server.crash('gone');
        break;
      case 'power-cut':
        this.#card.powerCut(fault.durationUs);
        break;
      case 'clock-jump':
        this.#card.clockJump(this.#world.random.below(2 * 3_600_000));
        break;
      case 'administrator':
        this.#administrators.change();
        break;
      case 'unreadable': {
        const from = this.#world.random.below(this.#store.size);
        this.#store.unreadable = { from, to: from + this.#world.random.pick([512, 65_536, this.#store.size]) };
        break;
      }
      default:
        this.#update();
    }
  }

  #end(fault: Fault): void {
    this.#active.delete(fault);
    this.#lastEndUs = this.#world.nowUs;
    this.#world.trace('fault', `${fault.kind} is over (fault ${fault.number})`);
    if (!this.#is('unreadable')) this.#store.unreadable = null;
    if (!this.#is('server-killed') && !this.#is('machine-lost')) this.#server.start();
    this.#update();
  }

  #is(kind: FaultKind): boolean {
    for (const fault of this.#active.keys()) if (fault.kind === kind) return true;
    return false;
  }

  /** Faults overlap: a thing is wrong while any of them says so. */
  #update(): void {
    this.#network.up.setBlocked(this.#is('block-up') || this.#is('block-both'));
    this.#network.down.setBlocked(this.#is('block-down') || this.#is('block-both'));
    this.#network.settings.bytesPerSecond = this.#is('slow-line')
      ? Math.max(64_000, this.#rate / SLOWDOWN)
      : this.#rate;
    this.#store.full = this.#is('disk-full');
  }
}
