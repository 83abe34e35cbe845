// The simulated world: one clock, one queue of events, one source of chance. Everything that happens in a run happens in an
// event of this queue, in an order that the seed alone decides.
//
// Time is in microseconds, as whole numbers. Two events at the same time happen in the order in which they were scheduled.
// The image server's core uses promises; `settle()` lets them run to their end before the next event, so that they too happen
// at a fixed moment.

import { Random } from '../fuzz/random.js';
import { type Replacements, settlePromises } from './guard.js';

export const MS = 1_000;
export const SECOND = 1_000_000;

/** A scheduled event; `World.cancel()` takes it out again. */
export interface Timer {
  atUs: number;
  order: number;
  run: (() => void) | null;
}

/** Something that a correct card, server or world never does: the run has failed. */
export class Violation extends Error {
  override name = 'Violation';
  constructor(
    /** The oracle that noticed, O1 to O8, or `crash`, `stuck`. */
    readonly oracle: string,
    message: string,
  ) {
    super(message);
  }
}

export class World {
  nowUs = 0;
  /** The only source of chance in a run. */
  readonly random: Random;
  /** Events so far. */
  events = 0;
  /** Folds every event's time and order: two runs of one seed have the same. */
  digest = 0;
  /** What an event, or a promise in it, has found wrong. */
  #failure: unknown = null;
  /** Set where a promise may have been resolved or made in this event. */
  promises = false;
  readonly #queue: Timer[] = [];
  #order = 0;
  #stopped = false;
  readonly #trace: ((line: string) => void) | null;

  constructor(seed: number, trace: ((line: string) => void) | null = null) {
    this.random = new Random(seed);
    this.#trace = trace;
  }

  get tracing(): boolean {
    return this.#trace !== null;
  }

  /** One line of the timeline. Call it behind `tracing` where the text is costly. */
  trace(who: string, text: string): void {
    if (this.#trace === null) return;
    this.#trace(`${(this.nowUs / SECOND).toFixed(6).padStart(12)} s  ${who.padEnd(7)} ${text}`);
  }

  /** Runs `run` after `delayUs`. */
  schedule(delayUs: number, run: () => void): Timer {
    return this.scheduleAt(this.nowUs + Math.max(0, Math.round(delayUs)), run);
  }

  scheduleAt(atUs: number, run: () => void): Timer {
    const timer = { atUs: Math.max(atUs, this.nowUs), order: this.#order++, run };
    push(this.#queue, timer);
    return timer;
  }

  cancel(timer: Timer | null): void {
    if (timer !== null) timer.run = null;
  }

  stop(): void {
    this.#stopped = true;
  }

  /** Ends the run with this error: for places whose caller would take a throw for something else. */
  fail(error: unknown): void {
    this.#failure ??= error;
    this.#stopped = true;
  }

  /** Runs `check`; a violation that it throws ends the run. */
  watch(check: () => void): void {
    try {
      check();
    } catch (error) {
      this.fail(error);
    }
  }

  /** Runs events until `stop()`, or until none are left. Throws what has been found wrong. */
  async run(): Promise<void> {
    await this.#run();
    if (this.#failure !== null) throw this.#failure;
  }

  async #run(): Promise<void> {
    while (!this.#stopped) {
      const next = pop(this.#queue);
      if (next === null) return;
      if (next.run === null) continue;
      this.nowUs = next.atUs;
      this.events += 1;
      this.digest = (Math.imul(this.digest ^ next.atUs, 0x01000193) + next.order) >>> 0;
      next.run();
      if (this.promises) {
        this.promises = false;
        await settlePromises();
      }
    }
  }
}

// A binary heap, the earliest event first.

function before(a: Timer, b: Timer): boolean {
  return a.atUs < b.atUs || (a.atUs === b.atUs && a.order < b.order);
}

function push(heap: Timer[], timer: Timer): void {
  let at = heap.length;
  heap.push(timer);
  while (at > 0) {
    const parent = (at - 1) >> 1;
    if (!before(timer, heap[parent])) break;
    heap[at] = heap[parent];
    at = parent;
  }
  heap[at] = timer;
}

function pop(heap: Timer[]): Timer | null {
  if (heap.length === 0) return null;
  const first = heap[0];
  const last = heap.pop()!;
  if (heap.length === 0) return first;
  let at = 0;
  for (;;) {
    let child = 2 * at + 1;
    if (child >= heap.length) break;
    if (child + 1 < heap.length && before(heap[child + 1], heap[child])) child += 1;
    if (!before(heap[child], last)) break;
    heap[at] = heap[child];
    at = child;
  }
  heap[at] = last;
  return first;
}

/** The image store's timers and its few random bytes, for guarded(). */
export function replacementsOf(world: World): Replacements {
  return {
    setTimeout: (callback: () => void, ms = 0) => {
      const timer = world.schedule(ms * MS, () => {
        world.promises = true;
        callback();
      });
      return Object.assign(timer, { unref: () => timer });
    },
    clearTimeout: (timer: Timer | null) => world.cancel(timer),
    randomBytes: (count: number) => Buffer.from(Array.from({ length: count }, () => world.random.below(256))),
  };
}
