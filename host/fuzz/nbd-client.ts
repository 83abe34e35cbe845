// The firmware's NBD client alone in V8: assembly/nbd with the few modules that it needs, compiled on first use, and its
// imports wired to whatever network a test or fuzzer brings. The upper layers' side of nbd/client.ts is here as methods.

import fs from 'node:fs';
import path from 'node:path';
import asc from 'assemblyscript/asc';
import { acceleratorImports } from '../card/accelerators.js';
import { crc32c } from '../card/crc32c.js';
import { type CardSettings, DEFAULT_SETTINGS, encodeSettings } from '../card/settings.js';
import { type CardStatistics, decodeStatistics, STATISTICS_OFFSET, STATISTICS_SIZE } from '../card/statistics.js';
import { Failure } from '../failure.js';

const SETTINGS_OFFSET = 0x2000;
const PAGE_SIZE = 65_536;
/** Behind the static data: the harness's own memory, for pieces. */
export const HEAP_OFFSET = 0x200000;
export const PIECE_SIZE = 4096;

/** The network group of the firmware's imports. host/card/network.ts is one; a simulated one is deterministic. */
export interface ClientNetwork {
  open(stream: number, path: number): void;
  close(stream: number): void;
  state(stream: number): number;
  startTls(stream: number): void;
  receive(stream: number, target: Uint8Array): number;
  send(stream: number, source: Uint8Array): number;
  flush?(): void;
}

export const NetState = { CLOSED: 0, CONNECTING: 1, OPEN: 2 } as const;
export const RequestState = { FREE: 0, PENDING: 1, DONE: 2, FAILED: 3, LOST: 4 } as const;

/** The firmware's NbdError, by name. */
export const NbdError = {
  NONE: 0,
  CONNECT: 1,
  CLOSED: 2,
  TRUNCATED: 3,
  SILENCE: 4,
  REQUEST_REFUSED: 5,
  SHUTDOWN: 6,
  DISCONNECTED: 7,
  CONFLICT: 8,
  POINT: 9,
  EXPORT_UNKNOWN: 16,
  POLICY: 17,
  TLS_REQUIRED: 18,
  TLS_UNAVAILABLE: 19,
  TLS_FAILED: 20,
  NOT_FIXED_NEWSTYLE: 21,
  BLOCK_SIZE: 22,
  EXPORT_SHRUNK: 23,
  OPTION_REFUSED: 24,
  SERVER_OLDER: 25,
  STORE_COPIED: 26,
  BAD_MAGIC: 32,
  WRONG_OPTION: 33,
  BAD_OPTION_REPLY: 34,
  OVERSIZE: 35,
  EXPORT_SIZE: 36,
  UNKNOWN_COOKIE: 37,
  BAD_CHUNK: 38,
  CHUNK_RANGE: 39,
  CHUNK_OVERLAP: 40,
  CHUNK_MISSING: 41,
  CHUNK_SCATTERED: 42,
  EARLY_REPLY: 43,
  TLS_INJECTION: 44,
  BAD_EXTENTS: 45,
  CHECKSUM: 46,
} as const;
export type NbdErrorName = keyof typeof NbdError;

export function nbdErrorName(error: number): NbdErrorName {
  const name = (Object.keys(NbdError) as NbdErrorName[]).find((key) => NbdError[key] === error);
  if (name === undefined) throw new Error(`the firmware reports an unknown NbdError: ${error}`);
  return name;
}

interface ClientExports {
  readClock(): void;
  initStatistics(): void;
  initNbd(): void;
  nbdStep(): number;
  nbdTimeoutMs(): number;
  nbdUp(): number;
  nbdConnection(): number;
  nbdExportSize(): bigint;
  nbdExportFlags(): number;
  nbdRead(offset: bigint, length: number): number;
  nbdWrite(offset: bigint, length: number, flags: number): number;
  nbdFlush(record: bigint): number;
  nbdBlockStatus(offset: bigint, length: number): number;
  nbdAsk(offset: bigint, length: number): number;
  nbdResult(slot: number): bigint;
  nbdResult2(slot: number): bigint;
  nbdLeaveOut(slot: number, pieces: number): void;
  setPlaceMode(mode: number): void;
  placeIdentity(card: bigint, session: number, earlier: number, lasts: number, count: number): void;
  placeGeneration(generation: bigint, id: bigint): void;
  placeRecords(upTo: bigint, last: bigint, uncommitted: boolean): void;
  placeConflict(): void;
  placeAgreed(): number;
  placeAsk(): number;
  placeBase(): bigint;
  placeServerGeneration(): bigint;
  placeServerId(): bigint;
  placeServerCommitted(): bigint;
  nbdTrim(offset: bigint, length: number): number;
  nbdSetPiece(slot: number, piece: number, address: number): void;
  nbdState(slot: number): number;
  nbdErrno(slot: number): number;
  nbdRelease(slot: number): void;
  nbdRestart(error: number): void;
  nbdDisconnect(): void;
}

/** What a card says of itself; see assembly/nbd/place.ts. */
export interface CardKnows {
  card: bigint;
  session: number;
  sessions: { session: number; last: bigint }[];
  sessionsAt: number;
  generation: bigint;
  id: bigint;
  committed: bigint;
  newest: bigint;
  dirty: boolean;
  conflict: boolean;
}

export interface NbdClientOptions {
  network: ClientNetwork;
  settings?: Partial<CardSettings>;
  memorySize?: number;
  clockMs?: () => number;
  random?: () => number;
  onLog?: (line: string) => void;
}

export class NbdClient {
  readonly memory: Uint8Array;
  readonly log: string[] = [];
  readonly #exports: ClientExports;
  readonly #network: ClientNetwork;
  readonly #clockMs: () => number;

  constructor(module: WebAssembly.Module, options: NbdClientOptions) {
    const pages = (options.memorySize ?? 3 << 20) / PAGE_SIZE;
    const memory = new WebAssembly.Memory({ initial: pages, maximum: pages });
    this.memory = new Uint8Array(memory.buffer);
    this.memory.set(encodeSettings({ ...DEFAULT_SETTINGS, ...options.settings }), SETTINGS_OFFSET);
    this.#network = options.network;
    this.#clockMs = options.clockMs ?? (() => Math.floor(performance.now()) >>> 0);
    const random = options.random ?? (() => Math.floor(Math.random() * 2 ** 32));
    const network = this.#network;
    const view = (address: number, length: number): Uint8Array => this.view(address >>> 0, length >>> 0);
    const instance = new WebAssembly.Instance(module, {
      env: {
        memory,
        abort: (message: number, file: number, line: number, column: number) => {
          throw new Error(`trap: ${this.#string(message)} at ${this.#string(file)}:${line}:${column}`);
        },
      },
      imports: {
        clock_ms: () => this.#clockMs(),
        random_u32: () => random(),
        log_write: (level: number, text: number, length: number) => {
          const line = `${'EWID'[level]} ${Buffer.from(view(text, length)).toString('utf8')}`;
          this.log.push(line);
          options.onLog?.(line);
        },
        net_open: (stream: number, path: number) => network.open(stream, path),
        net_close: (stream: number) => network.close(stream),
        net_state: (stream: number) => network.state(stream),
        net_start_tls: (stream: number) => network.startTls(stream),
        net_receive: (stream: number, target: number, capacity: number) =>
          network.receive(stream, view(target, capacity)),
        net_send: (stream: number, source: number, length: number) => network.send(stream, view(source, length)),
        settings_read: () => 0,
        crc32c: (seed: number, source: number, length: number) => crc32c(view(source, length), seed >>> 0),
        ...acceleratorImports(view),
      },
    });
    this.#exports = instance.exports as unknown as ClientExports;
    this.#firmware.initStatistics();
    this.#firmware.initNbd();
  }

  /** The firmware looks at the clock once a round; here every call is one. */
  get #firmware(): ClientExports {
    this.#exports.readClock();
    return this.#exports;
  }

  view(address: number, length: number): Uint8Array {
    if (address + length > this.memory.length) throw new RangeError(`outside of memory: ${address}+${length}`);
    return this.memory.subarray(address, address + length);
  }

  /** Until nothing moves, as the firmware's step loop does. */
  step(): void {
    while (this.#firmware.nbdStep() !== 0) {}
    this.#network.flush?.();
  }

  /** One nbdStep(); true when it says that something moved. */
  stepOnce(): boolean {
    return this.#firmware.nbdStep() !== 0;
  }

  timeoutMs(): number {
    return this.#firmware.nbdTimeoutMs() >>> 0;
  }

  get up(): boolean {
    return this.#firmware.nbdUp() !== 0;
  }

  get connection(): number {
    return this.#firmware.nbdConnection() >>> 0;
  }

  get exportSize(): bigint {
    return BigInt.asUintN(64, this.#firmware.nbdExportSize());
  }

  get exportFlags(): number {
    return this.#firmware.nbdExportFlags() >>> 0;
  }

  get statistics(): CardStatistics {
    return decodeStatistics(this.view(STATISTICS_OFFSET, STATISTICS_SIZE), this.#clockMs());
  }

  /** Starts a read into `pieces`, an address for every 4096 bytes; -1 when there is no slot. */
  read(offset: number, length: number, pieces: number[]): number {
    return this.#withPieces(this.#firmware.nbdRead(BigInt(offset), length), pieces);
  }

  write(offset: number, length: number, pieces: number[], flags = 0): number {
    return this.#withPieces(this.#firmware.nbdWrite(BigInt(offset), length, flags), pieces);
  }

  /** `record`: what a server that knows cards is told. */
  flush(record = 0n): number {
    return this.#firmware.nbdFlush(record);
  }

  blockStatus(offset: number, length: number, address: number): number {
    return this.#withPieces(this.#firmware.nbdBlockStatus(BigInt(offset), length), [address]);
  }

  ask(offset: number, length: number, hashes: number): number {
    return this.#withPieces(this.#firmware.nbdAsk(BigInt(offset), length), [hashes]);
  }

  leaveOut(slot: number, pieces: number): void {
    this.#firmware.nbdLeaveOut(slot, pieces);
  }

  result(slot: number): bigint {
    return BigInt.asUintN(64, this.#firmware.nbdResult(slot));
  }

  result2(slot: number): bigint {
    return BigInt.asUintN(64, this.#firmware.nbdResult2(slot));
  }

  /** From the next connection on the client is a card that knows this. `sessions`: where earlier ones may be put. */
  beCard(knows: CardKnows): void {
    const view = new DataView(this.memory.buffer);
    const lastsAt = knows.sessionsAt + 64;
    for (const [index, { session, last }] of knows.sessions.entries()) {
      view.setUint32(knows.sessionsAt + 4 * index, session, true);
      view.setBigUint64(lastsAt + 8 * index, last, true);
    }
    this.#firmware.setPlaceMode(2);
    this.#firmware.placeIdentity(knows.card, knows.session, knows.sessionsAt, lastsAt, knows.sessions.length);
    this.#firmware.placeGeneration(knows.generation, knows.id);
    this.#firmware.placeRecords(knows.committed, knows.newest, knows.dirty);
    if (knows.conflict) this.#firmware.placeConflict();
  }

  /** What the server has answered; null when it does not know cards. */
  get place(): { base: bigint; generation: bigint; id: bigint; committed: bigint; ask: boolean } | null {
    if (this.#firmware.placeAgreed() === 0) return null;
    const unsigned = (value: bigint) => BigInt.asUintN(64, value);
    return {
      base: unsigned(this.#firmware.placeBase()),
      generation: unsigned(this.#firmware.placeServerGeneration()),
      id: unsigned(this.#firmware.placeServerId()),
      committed: unsigned(this.#firmware.placeServerCommitted()),
      ask: this.#firmware.placeAsk() !== 0,
    };
  }

  trim(offset: number, length: number): number {
    return this.#firmware.nbdTrim(BigInt(offset), length);
  }

  state(slot: number): number {
    return this.#firmware.nbdState(slot);
  }

  errno(slot: number): number {
    return this.#firmware.nbdErrno(slot) >>> 0;
  }

  release(slot: number): void {
    this.#firmware.nbdRelease(slot);
  }

  restart(error: number): void {
    this.#firmware.nbdRestart(error);
  }

  disconnect(): void {
    this.#firmware.nbdDisconnect();
  }

  /** An enum value of the firmware, as `Enum.NAME`. */
  constant(name: string): number {
    return (this.#exports as unknown as Record<string, WebAssembly.Global>)[name].value as number;
  }

  #withPieces(slot: number, pieces: number[]): number {
    if (slot >= 0) pieces.forEach((address, i) => void this.#firmware.nbdSetPiece(slot, i, address));
    return slot;
  }

  /** An AssemblyScript string: UTF-16, its length in bytes before it. */
  #string(address: number): string {
    if (address === 0) return 'abort';
    const length = new DataView(this.memory.buffer).getUint32((address >>> 0) - 4, true);
    return Buffer.from(this.view(address >>> 0, length)).toString('utf16le');
  }
}

/** Where the checkout is, from build/host/fuzz/. */
const ROOT = path.resolve(import.meta.dirname, '../../..');

let compiled: Promise<WebAssembly.Module> | null = null;

/** The client, compiled from assembly/ once in this process. */
export function compileNbdClient(): Promise<WebAssembly.Module> {
  compiled ??= compile();
  return compiled;
}

async function compile(): Promise<WebAssembly.Module> {
  const files = new Map<string, Uint8Array | string>();
  const { error, stderr } = await asc.main(
    ['--config', 'host/fuzz/nbd-client.asconfig.json', '-O3', '--outFile', 'nbd-client.wasm'],
    {
      readFile: (name: string, base: string) => {
        const file = path.resolve(ROOT, base, name);
        return fs.existsSync(file) ? fs.readFileSync(file, 'utf8') : null;
      },
      writeFile: (name: string, contents: Uint8Array | string) => void files.set(path.basename(name), contents),
      listFiles: () => [],
    },
  );
  const binary = files.get('nbd-client.wasm');
  if (error !== null || !(binary instanceof Uint8Array)) {
    throw new Failure(`assembly/nbd does not compile: ${error?.message ?? 'no output'}\n${stderr.toString()}`);
  }
  return WebAssembly.compile(binary.slice());
}
