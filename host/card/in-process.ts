// A card inside this process: the firmware in V8, the front end on the same memory, the network by node:net.
//
// A step runs in the caller's stack: a PC that writes the Command register finds the answer in the registers when the write
// returns, if the card needed nothing from outside.

import { Failure } from '../failure.js';
import { FrontEnd } from '../front-end/front-end.js';
import { acceleratorImports } from './accelerators.js';
import { type Card, EMPTY_IMAGE_MS, LOG_LEVELS, type LogLevel } from './card.js';
import { crc32c } from './crc32c.js';
import type { NetworkPath } from './network.js';
import {
  type AcknowledgementPoint,
  type CardSettings,
  CONTROL_OFFSET,
  encodeControl,
  encodeSettings,
} from './settings.js';
import { type CardStatistics, decodeStatistics, STATISTICS_OFFSET, STATISTICS_SIZE } from './statistics.js';
import { type BlockStore, DEFAULT_STORE_SIZE, type StoreDevice, storeDevice, storeImports } from './store.js';
import { FileStore } from './store-file.js';
import { MemoryStore } from './store-memory.js';
import { STORE_REFUSALS } from './store-refusals.js';
import { type CardNetwork, REAL_WORLD, type World } from './world.js';

const FRONT_END_OFFSET = 0x1000;
const PAGE_SIZE = 65_536;
const NO_TIMER = 0xffffffff;
/** Enough for a PC's working set; the firmware takes any size from 16 MiB up. */
export const DEFAULT_MEMORY_SIZE = 128 << 20;
/** How long a card may take to reach its image server at power-on. */
const START_TIMEOUT_MS = 15_000;

export interface InProcessCardOptions {
  /** The firmware, as built: build/firmware/firmware.wasm. */
  firmware: WebAssembly.Module;
  settings: CardSettings;
  path: NetworkPath;
  /** Linear memory in bytes, a multiple of 64 KiB. */
  memorySize?: number;
  /** Instead: this one, all zeroes, which no other card that runs has. */
  memory?: WebAssembly.Memory;
  deviceNumber?: 0 | 1;
  /** The local store; memory of DEFAULT_STORE_SIZE when absent. The card does not close it. */
  store?: BlockStore | StoreDevice;
  /** Instead: a local store in this file, made if it does not exist, closed when the card is stopped. */
  storeFile?: string;
  /** Time, chance and network, if not the real ones. */
  world?: World;
}

interface FirmwareExports {
  init(): number;
  step(): number;
}

export class InProcessCard implements Card {
  readonly frontEnd: FrontEnd;
  onLog: (level: LogLevel, line: string) => void = () => {};
  onCrash: (error: Error) => void = () => {};
  readonly #memory: WebAssembly.Memory;
  readonly #bytes: Uint8Array;
  readonly #network: CardNetwork;
  readonly #world: World;
  readonly #record: Uint8Array;
  readonly #store: StoreDevice;
  #file: FileStore | null = null;
  readonly #firmware: FirmwareExports;
  readonly #settings: CardSettings;
  readonly #path: NetworkPath;
  #running = false;
  #stepping = false;
  #again = false;
  #cancelTimer: (() => void) | null = null;
  /** Due times count from an arbitrary start, without wrapping. */
  #nowMs = 0;
  #clockMs = 0;
  #timerDueMs = Number.POSITIVE_INFINITY;
  #waiting: (() => void) | null = null;

  constructor(options: InProcessCardOptions) {
    const size = options.memory?.buffer.byteLength ?? options.memorySize ?? DEFAULT_MEMORY_SIZE;
    if (size % PAGE_SIZE !== 0) throw new Failure(`card memory must be a multiple of 64 KiB, not ${size} bytes`);
    this.#settings = options.settings;
    this.#path = options.path;
    this.#record = encodeSettings(options.settings);
    this.#memory = options.memory ?? new WebAssembly.Memory({ initial: size / PAGE_SIZE, maximum: size / PAGE_SIZE });
    this.#bytes = new Uint8Array(this.#memory.buffer);
    this.#world = options.world ?? REAL_WORLD;
    if (options.storeFile !== undefined) this.#file = new FileStore(options.storeFile, DEFAULT_STORE_SIZE);
    const store = options.store ?? this.#file ?? new MemoryStore(DEFAULT_STORE_SIZE);
    this.#store =
      'start' in store ? store : storeDevice(store, (message) => this.onLog('warning', `local store: ${message}`));
    this.#network = this.#world.network([options.path]);
    this.#network.onChange = () => this.#step();
    this.#network.onError = (message) => this.onLog('warning', `network: ${message}`);
    this.frontEnd = new FrontEnd(this.#memory.buffer, FRONT_END_OFFSET, options.deviceNumber ?? 0);
    this.frontEnd.onEvent = () => this.#step();
    const instance = new WebAssembly.Instance(options.firmware, this.#imports());
    this.#firmware = instance.exports as unknown as FirmwareExports;
  }

  async start(): Promise<void> {
    const error = this.#firmware.init();
    if (error !== 0) throw new Failure(`the firmware refuses its settings or memory: error 0x${error.toString(16)}`);
    this.#running = true;
    this.frontEnd.powerOn();
    this.#step();
    const isUp = (): boolean => this.statistics().linkState === 'up' && this.statistics().storeState !== 'starting';
    let hasStarted = false;
    const started = (): boolean => {
      hasStarted = hasStarted || this.#started();
      return hasStarted;
    };
    await this.#until(() => started() || isUp(), START_TIMEOUT_MS);
    // The card learns before it has a disk: an image without a sector is one that stays without.
    if (this.#running && !started()) await this.#until(started, EMPTY_IMAGE_MS);
    if (!this.#running && !hasStarted) throw new Failure('the card has lost its power before it was ready');
    if (this.statistics().sectors > 0) return;
    const { linkState, storeState, storeError } = this.statistics();
    await this.stop(0);
    if (storeState === 'refused') throw new Failure(STORE_REFUSALS[storeError ?? 'device']);
    const where =
      'path' in this.#path.address ? this.#path.address.path : `${this.#path.address.host}:${this.#path.address.port}`;
    if (linkState === 'refused') {
      throw new Failure(
        `the image server at ${where} refuses the image "${this.#settings.exportName}" (see the log above)`,
      );
    }
    if (linkState === 'up') throw new Failure(`the image "${this.#settings.exportName}" is smaller than one sector`);
    throw new Failure(`no answer from the image server at ${where} within ${START_TIMEOUT_MS / 1000} s`);
  }

  async stop(timeoutMs = 10_000): Promise<number> {
    if (this.#running) await this.#until(() => this.statistics().lagBytes === 0, timeoutMs);
    const left = this.#running ? this.statistics().lagBytes : 0;
    this.cut();
    return left;
  }

  statistics(): CardStatistics {
    const record = this.#bytes.subarray(STATISTICS_OFFSET, STATISTICS_OFFSET + STATISTICS_SIZE);
    return decodeStatistics(record, this.#world.clockMs());
  }

  /** Switches the acknowledgement point while the card runs. */
  setAcknowledgementPoint(point: AcknowledgementPoint): void {
    this.#bytes.set(encodeControl(point), CONTROL_OFFSET);
    this.#step();
  }

  /** Power cut: nothing is finished, nothing is sent any more. */
  cut(): void {
    this.#running = false;
    this.#cancelTimer?.();
    this.#network.closeAll();
    this.#file?.close();
    this.#file = null;
    this.#waiting?.();
  }

  #started(): boolean {
    const { sectors, linkState, storeState } = this.statistics();
    if (storeState === 'starting') return false;
    return sectors > 0 || storeState === 'refused' || linkState === 'refused';
  }

  /** Resolves when `condition` holds after a step, or at the time-out. */
  #until(condition: () => boolean, timeoutMs: number): Promise<void> {
    if (condition()) return Promise.resolve();
    return new Promise((resolve) => {
      const done = (): void => {
        cancel();
        this.#waiting = null;
        resolve();
      };
      const cancel = this.#world.after(timeoutMs, done);
      this.#waiting = () => {
        if (!this.#running || condition()) done();
      };
    });
  }

  /** Runs the firmware until it has nothing to do; an event during a step asks for another. */
  #step(): void {
    if (this.#stepping) {
      this.#again = true;
      return;
    }
    if (!this.#running) return;
    this.#stepping = true;
    let dueMs: number;
    try {
      do {
        this.#again = false;
        dueMs = this.#firmware.step() >>> 0;
        this.#network.flush();
      } while (this.#again);
    } catch (error) {
      this.#running = false;
      this.#network.closeAll();
      this.onCrash(error as Error);
      return;
    } finally {
      this.#stepping = false;
    }
    this.#schedule(dueMs);
    this.#waiting?.();
  }

  #schedule(dueMs: number): void {
    if (dueMs === NO_TIMER) return;
    const clockMs = this.#world.clockMs();
    this.#nowMs += (clockMs - this.#clockMs) >>> 0;
    this.#clockMs = clockMs;
    // An earlier timer does: a step too many costs nothing.
    const due = this.#nowMs + dueMs;
    if (this.#timerDueMs <= due) return;
    this.#cancelTimer?.();
    this.#timerDueMs = due;
    this.#cancelTimer = this.#world.after(dueMs, () => {
      this.#cancelTimer = null;
      this.#timerDueMs = Number.POSITIVE_INFINITY;
      this.#step();
    });
  }

  #view(address: number, length: number): Uint8Array {
    if (address + length > this.#bytes.length)
      throw new RangeError(`import argument out of memory: ${address}+${length}`);
    return this.#bytes.subarray(address, address + length);
  }

  /** The same list as assembly/imports.ts, in the same order. wasm hands u32 values over as signed numbers. */
  #imports(): WebAssembly.Imports {
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
        clock_ms: () => this.#world.clockMs(),
        random_u32: () => this.#world.randomU32(),
        log_write: (level: number, text: number, length: number) => {
          const line = Buffer.from(this.#view(text >>> 0, length >>> 0)).toString('utf8');
          this.onLog(LOG_LEVELS[level] ?? 'error', line);
        },
        settings_read: (target: number, capacity: number) => {
          const length = Math.min(this.#record.length, capacity >>> 0);
          this.#view(target >>> 0, length).set(this.#record.subarray(0, length));
          return length;
        },
        front_end_ring: () => this.frontEnd.ring(),
        net_open: (stream: number, path: number) => network.open(stream, path),
        net_close: (stream: number) => network.close(stream),
        net_state: (stream: number) => network.state(stream),
        net_start_tls: (stream: number) => network.startTls(stream),
        net_receive: (stream: number, target: number, capacity: number) =>
          network.receive(stream, this.#view(target >>> 0, capacity >>> 0)),
        net_send: (stream: number, source: number, length: number) =>
          network.send(stream, this.#view(source >>> 0, length >>> 0)),
        ...storeImports(
          this.#store,
          (address, length) => this.#view(address, length),
          () => this.#step(),
        ),
        crc32c: (seed: number, source: number, length: number) =>
          crc32c(this.#view(source >>> 0, length >>> 0), seed >>> 0),
        ...acceleratorImports((address, length) => this.#view(address >>> 0, length >>> 0)),
      },
    };
  }

  /** An AssemblyScript string: UTF-16, its length in bytes before it. */
  #readString(address: number): string {
    if (address === 0) return '?';
    const view = new DataView(this.#memory.buffer);
    const length = view.getUint32((address >>> 0) - 4, true);
    return Buffer.from(this.#view(address >>> 0, length)).toString('utf16le');
  }
}
