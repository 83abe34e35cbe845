// The card in the simulated world: the firmware as built, the real front end on its memory, and the imports from the world.
// A power cut drops the instance; powering on makes a new one.
//
// On a board the firmware runs beside the bus interface, so an event reaches it a little later: `reactionUs`. With 0 it runs in
// the PC's own access, as in the in-process card.

import { acceleratorImports } from '../card/accelerators.js';
import { LOG_LEVELS } from '../card/card.js';
import { crc32c } from '../card/crc32c.js';
import { type CardSettings, encodeSettings } from '../card/settings.js';
import { type CardStatistics, decodeStatistics, STATISTICS_OFFSET, STATISTICS_SIZE } from '../card/statistics.js';
import { type StoreDevice, storeImports } from '../card/store.js';
import { FrontEnd } from '../front-end/front-end.js';
import type { SimulatedNetwork } from './network.js';
import { MS, type Timer, Violation, type World } from './world.js';

const FRONT_END_OFFSET = 0x1000;
const PAGE_SIZE = 65_536;
const NO_TIMER = 0xffffffff;
/** So many steps at one moment are a firmware that runs in circles. */
const STEPS_MAX = 20_000;
const POLLS_MAX = 100_000;

export interface SimulatedCardOptions {
  firmware: WebAssembly.Module;
  settings: CardSettings;
  memorySize: number;
  /** From an event to the firmware's step. */
  reactionUs: number;
  /** clock_ms() when the run begins: the clock wraps at 2^32. */
  clockStartMs: number;
  /** The local store; what is on it outlives the card's power. */
  store: StoreDevice;
}

interface FirmwareExports {
  init(): number;
  step(): number;
}

/** Memories are kept from run to run: V8 reserves gigabytes of address space for each. */
const memories = new Map<number, WebAssembly.Memory>();

function memoryOf(size: number): WebAssembly.Memory {
  let memory = memories.get(size);
  if (memory === undefined) {
    memory = new WebAssembly.Memory({ initial: size / PAGE_SIZE, maximum: size / PAGE_SIZE });
    memories.set(size, memory);
  }
  new Uint8Array(memory.buffer).fill(0);
  return memory;
}

const LINK_UP = 3;

export class SimulatedCard {
  /** Of the card as it was powered on last. */
  frontEnd!: FrontEnd;
  /** After every step: the statistics may have changed. */
  onStep: () => void = () => {};
  powered = false;
  readonly #world: World;
  readonly #network: SimulatedNetwork;
  readonly #options: SimulatedCardOptions;
  readonly #record: Uint8Array;
  #memory!: WebAssembly.Memory;
  #bytes!: Uint8Array;
  #view!: DataView;
  #firmware!: FirmwareExports;
  #timer: Timer | null = null;
  #wake: Timer | null = null;
  #stepping = false;
  #again = false;
  #steps = 0;
  #polls = 0;
  #jumpedMs = 0;
  #stepsAtUs = -1;

  constructor(world: World, network: SimulatedNetwork, options: SimulatedCardOptions) {
    this.#world = world;
    this.#network = network;
    this.#options = options;
    this.#record = encodeSettings(options.settings);
    network.onChange = () => this.#event();
  }

  /** A new instance on memory that holds nothing. The front end is a new one, too: put it on a cable, then call start(). */
  powerOn(): void {
    const { firmware, memorySize } = this.#options;
    this.#memory = memoryOf(memorySize);
    this.#bytes = new Uint8Array(this.#memory.buffer);
    this.#view = new DataView(this.#memory.buffer);
    this.frontEnd = new FrontEnd(this.#memory.buffer, FRONT_END_OFFSET, 0);
    this.frontEnd.onEvent = () => this.#event();
    this.#firmware = new WebAssembly.Instance(firmware, this.#imports()).exports as unknown as FirmwareExports;
  }

  /** The firmware starts. */
  start(): void {
    this.powered = true;
    this.#world.trace('card', 'power on');
    const error = this.#run(() => this.#firmware.init());
    if (error !== 0) throw new Violation('crash', `init() gave error 0x${error.toString(16)}`);
    this.frontEnd.powerOn();
    this.step();
  }

  powerOff(): void {
    this.powered = false;
    this.#world.trace('card', 'power off');
    this.#world.cancel(this.#timer);
    this.#world.cancel(this.#wake);
    this.#timer = this.#wake = null;
    this.#network.cardLost();
  }

  statistics(): CardStatistics {
    return decodeStatistics(
      this.#bytes.subarray(STATISTICS_OFFSET, STATISTICS_OFFSET + STATISTICS_SIZE),
      this.clockMs(),
    );
  }

  /** The linear memory, as of the last power-on. */
  get memory(): Uint8Array {
    return this.#bytes;
  }

  /** What statistics().lagBytes is, without reading all the rest. */
  get lagBytes(): number {
    return (
      this.#view.getUint32(STATISTICS_OFFSET + 96, true) + this.#view.getUint32(STATISTICS_OFFSET + 100, true) * 2 ** 32
    );
  }

  /** The image server's generation that the card has learnt of, with everything before it; 0 when none. */
  get generation(): number {
    return (
      this.#view.getUint32(STATISTICS_OFFSET + 208, true) +
      this.#view.getUint32(STATISTICS_OFFSET + 212, true) * 2 ** 32
    );
  }

  get linkUp(): boolean {
    return this.#view.getUint32(STATISTICS_OFFSET + 8, true) === LINK_UP;
  }

  get lagEpochs(): number {
    return this.#view.getUint32(STATISTICS_OFFSET + 104, true);
  }

  get lagMs(): number {
    return (this.clockMs() - this.#view.getUint32(STATISTICS_OFFSET + 108, true)) >>> 0;
  }

  /** StoreState of the statistics. */
  get storeState(): number {
    return this.#view.getUint32(STATISTICS_OFFSET + 128, true);
  }

  /** The clock goes ahead: what was to be done meanwhile is overdue. */
  jumpClock(ms: number): void {
    this.#jumpedMs += ms;
    this.#event();
  }

  clockMs(): number {
    return (this.#options.clockStartMs + this.#jumpedMs + Math.floor(this.#world.nowUs / MS)) >>> 0;
  }

  /** Something has happened that the firmware should look at. */
  #event(): void {
    if (!this.powered) return;
    if (this.#stepping) {
      this.#again = true;
    } else if (this.#options.reactionUs === 0) {
      this.step();
    } else if (this.#wake === null) {
      this.#wake = this.#world.schedule(this.#options.reactionUs, () => {
        this.#wake = null;
        this.step();
      });
    }
  }

  /** Runs the firmware until it has nothing to do. */
  step(): void {
    if (!this.powered || this.#stepping) return;
    this.#countSteps();
    this.#stepping = true;
    let dueMs = NO_TIMER;
    try {
      do {
        this.#again = false;
        this.#polls = 0;
        dueMs = this.#run(() => this.#firmware.step()) >>> 0;
      } while (this.#again);
    } finally {
      this.#stepping = false;
    }
    this.#world.cancel(this.#timer);
    this.#timer = null;
    // A step that is due at once comes with the next tick of the card's clock at the latest.
    if (dueMs !== NO_TIMER) this.#timer = this.#world.schedule(dueMs === 0 ? 50 : dueMs * MS, () => this.step());
    this.onStep();
  }

  #countSteps(): void {
    if (this.#stepsAtUs !== this.#world.nowUs) {
      this.#stepsAtUs = this.#world.nowUs;
      this.#steps = 0;
    }
    if (++this.#steps > STEPS_MAX) throw new Violation('stuck', `${STEPS_MAX} steps of the firmware at one moment`);
  }

  /** The firmware looks at the network in every round of a step. */
  #countPolls(): void {
    if (++this.#polls > POLLS_MAX) throw new Violation('stuck', `step() has not ended after ${POLLS_MAX} rounds`);
  }

  /** A trap or a failed assertion is a violation of its own. */
  #run(body: () => number): number {
    try {
      return body();
    } catch (error) {
      if (error instanceof Violation) throw error;
      this.powered = false;
      throw new Violation('crash', `the firmware stopped: ${error instanceof Error ? error.message : String(error)}`);
    }
  }

  #slice(address: number, length: number): Uint8Array {
    const from = address >>> 0;
    const to = from + (length >>> 0);
    if (to > this.#bytes.length) throw new RangeError(`import argument out of memory: ${from}+${length >>> 0}`);
    return this.#bytes.subarray(from, to);
  }

  /** The same list as assembly/imports.ts, in the same order. */
  #imports(): WebAssembly.Imports {
    const world = this.#world;
    const network = this.#network;
    return {
      env: {
        memory: this.#memory,
        abort: (message: number, file: number, line: number, column: number) => {
          const text = `${this.#readString(message)} at ${this.#readString(file)}:${line}:${column}`;
          throw new Error(`firmware assertion failed: ${text}`);
        },
      },
      imports: {
        clock_ms: () => this.clockMs(),
        random_u32: () => world.random.u32(),
        log_write: (level: number, text: number, length: number) => {
          if (!world.tracing) return;
          const line = Buffer.from(this.#slice(text, length)).toString('utf8');
          world.trace('card', `${LOG_LEVELS[level] ?? 'error'}: ${line}`);
        },
        settings_read: (target: number, capacity: number) => {
          const length = Math.min(this.#record.length, capacity >>> 0);
          this.#slice(target, length).set(this.#record.subarray(0, length));
          return length;
        },
        front_end_ring: () => this.frontEnd.ring(),
        net_open: (_stream: number, _path: number) => network.open(),
        net_close: (_stream: number) => network.close(),
        net_state: (_stream: number) => {
          this.#countPolls();
          return network.state();
        },
        net_start_tls: (_stream: number) => {
          throw new Violation('crash', 'TLS was started although the settings say that there is none');
        },
        net_receive: (_stream: number, target: number, capacity: number) =>
          network.receive(this.#slice(target, capacity)),
        net_send: (_stream: number, source: number, length: number) => network.send(this.#slice(source, length)),
        ...storeImports(
          this.#options.store,
          (address, length) => this.#slice(address, length),
          () => this.#event(),
        ),
        crc32c: (seed: number, source: number, length: number) => crc32c(this.#slice(source, length), seed >>> 0),
        ...acceleratorImports((address, length) => this.#slice(address, length)),
      },
    };
  }

  /** An AssemblyScript string: UTF-16, its length in bytes before it. */
  #readString(address: number): string {
    if (address === 0) return '?';
    const length = this.#view.getUint32((address >>> 0) - 4, true);
    return Buffer.from(this.#slice(address, length)).toString('utf16le');
  }
}
