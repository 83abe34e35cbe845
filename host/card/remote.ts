// A card that is a process of its own: the runtime of boards/, as a Linux program (posix.ts) or in QEMU (qemu.ts). What the
// two share: the front end over shared memory, the doorbell socket, the log, the statistics.

import { type ChildProcess, spawn } from 'node:child_process';
import { lookup } from 'node:dns/promises';
import { closeSync, mkdtempSync, openSync, readSync, rmSync, statSync, writeSync } from 'node:fs';
import net from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { Failure } from '../failure.js';
import type { FrontEnd } from '../front-end/front-end.js';
import { type Card, EMPTY_IMAGE_MS, LOG_LEVELS, type LogLevel } from './card.js';
import { FrontEndLink, readSharedMemoryHead, type SharedMemoryHead } from './front-end-link.js';
import type { NetworkPath } from './network.js';
import { type AcknowledgementPoint, type CardSettings, CONTROL_OFFSET, encodeControl } from './settings.js';
import { type CardStatistics, decodeStatistics, STATISTICS_OFFSET, STATISTICS_SIZE } from './statistics.js';
import { DEFAULT_STORE_SIZE } from './store.js';
import { makeStoreFile } from './store-file.js';
import { STORE_REFUSALS } from './store-refusals.js';

const DOORBELL_RING = 1;
const DOORBELL_STARTED = 2;
const RING = Buffer.from([DOORBELL_RING]);
/** How often a card whose state only the shared memory tells is looked at. */
const LOOK_INTERVAL_MS = 20;
const SETTLE_MS = 500;
/** A process that has been asked to end, and has nothing more to do, is killed after this. */
const END_TIMEOUT_MS = 5_000;

export interface RemoteCardOptions {
  /** The firmware file, as built: build/firmware/firmware.wasm. */
  firmware: string;
  settings: CardSettings;
  path: NetworkPath;
  deviceNumber?: 0 | 1;
  engine?: 'auto' | 'wasm3' | 'aot';
  /** The local store's file, kept when the card is switched off; made if it does not exist. Without it the card has an empty
   * one of its own, which goes with the card. In QEMU it is the SD card's image: its size is a power of two. */
  storeFile?: string;
}

/** How to start a card's process, and where the memory is that it shares. */
export interface Launch {
  command: string;
  arguments: string[];
  memoryFile: string;
  /** Offset of the shared memory's head in that file. */
  headOffset: number;
  doorbell: string;
  /** How long the card may take to reach its image server. */
  startTimeoutMs: number;
}

/** Cards that have a process or files: what is left of them when this process ends is taken along. */
const present = new Set<RemoteCard>();
process.on('exit', () => {
  for (const card of present) card.discard();
});

export abstract class RemoteCard implements Card {
  readonly frontEnd: FrontEnd;
  onLog: (level: LogLevel, line: string) => void = () => {};
  onCrash: (error: Error) => void = () => {};
  /** Files of this card: in memory where there is such a file system, as the linear memory is one of them, and keys are. */
  protected readonly folder: string;
  readonly #link: FrontEndLink;
  readonly #options: RemoteCardOptions;
  #process: ChildProcess | null = null;
  #ended: Promise<void> = Promise.resolve();
  #socket: net.Socket | null = null;
  #file = -1;
  #head: SharedMemoryHead | null = null;
  #launch: Launch | null = null;
  #stopping = false;
  #upSince = 0;
  #wake: () => void = () => {};

  constructor(options: RemoteCardOptions) {
    this.#options = options;
    this.#link = new FrontEndLink(options.deviceNumber ?? 0);
    this.frontEnd = this.#link.frontEnd;
    this.#link.onRing = () => this.#socket?.write(RING);
    this.#link.onNonsense = (error) => this.onCrash(error);
    this.folder = mkdtempSync(join(sharedMemoryFolder(), 'ribbon-card-'));
    present.add(this);
  }

  /** Writes what the process needs into `folder`. */
  protected abstract prepare(): Promise<Launch>;

  /** The file of the local store, there from now on. */
  protected storeFile(): string {
    const name = this.#options.storeFile ?? join(this.folder, 'store');
    makeStoreFile(name, DEFAULT_STORE_SIZE);
    return name;
  }

  /** A line of the process's output that is not a log line. */
  protected onOutput(line: string): void {
    this.onLog('warning', line);
  }

  /** The card's process; null when it does not run. For tests that kill it. */
  get pid(): number | null {
    return this.#process?.pid ?? null;
  }

  /** Where the register block lies in the memory that this card shares, null while it is off. For tests that write past the front end. */
  get sharedBlock(): { file: string; offset: number } | null {
    if (this.#launch === null || this.#head === null) return null;
    return { file: this.#launch.memoryFile, offset: this.#head.linearOffset + this.#head.frontEndOffset };
  }

  /** Rings the card, with or without news. For tests. */
  ringCard(): void {
    this.#socket?.write(RING);
  }

  async start(): Promise<void> {
    const launch = await this.prepare();
    this.#launch = launch;
    this.#stopping = false;
    this.#spawn(launch);
    await this.#connect(launch);
    const deadline = Date.now() + launch.startTimeoutMs;
    // A firmware that traps before it has set anything up is followed by another: the head alone says too little.
    const isUp = (): boolean => this.#readHead()?.running === true && this.#tryStatistics() !== null;
    await this.#until(isUp, deadline);
    if (!isUp()) {
      const failure = this.#startFailure('the card did not start');
      await this.stop(0);
      throw failure;
    }
    this.#attach();
    this.frontEnd.powerOn();
    await this.#until(() => this.#isReady(), deadline);
    if (this.#process !== null && (this.#tryStatistics()?.sectors ?? 0) > 0) {
      // The order that ends the reset is on its way. A Device 0 that waits for its Device 1 may keep BSY longer.
      await this.#until(() => !this.frontEnd.busy, Date.now() + SETTLE_MS);
      return;
    }
    const failure = this.#startFailure('');
    await this.stop(0);
    throw failure;
  }

  async stop(timeoutMs = 10_000): Promise<number> {
    const lag = (): number => this.#tryStatistics()?.lagBytes ?? 0;
    if (this.#process !== null) await this.#until(() => lag() === 0, Date.now() + timeoutMs);
    const left = lag();
    this.#stopping = true;
    this.#process?.kill('SIGTERM');
    const timer = setTimeout(() => {
      this.onLog('warning', `the card's process does not end within ${END_TIMEOUT_MS / 1000} s and is killed`);
      this.#process?.kill('SIGKILL');
    }, END_TIMEOUT_MS);
    await this.#ended;
    clearTimeout(timer);
    this.#release();
    this.discard();
    return left;
  }

  /** Leaves nothing behind, at once. */
  discard(): void {
    present.delete(this);
    this.#process?.kill('SIGKILL');
    rmSync(this.folder, { recursive: true, force: true });
  }

  /** Power cut: the process is killed where it stands. start() powers it on again, with the local store as it was left. */
  async cutPower(): Promise<void> {
    this.#stopping = true;
    this.#process?.kill('SIGKILL');
    await this.#ended;
    this.#release();
    if (this.#launch !== null) rmSync(this.#launch.memoryFile, { force: true });
  }

  setAcknowledgementPoint(point: AcknowledgementPoint): void {
    const head = this.#readHead();
    if (head === null) throw new Error('the card is off');
    writeSync(this.#file, encodeControl(point), 0, 4, head.linearOffset + CONTROL_OFFSET);
    this.#socket?.write(RING);
  }

  statistics(): CardStatistics {
    const statistics = this.#tryStatistics();
    if (statistics === null) throw new Error('the card is off, or its firmware is being started');
    return statistics;
  }

  #tryStatistics(): CardStatistics | null {
    const head = this.#readHead();
    if (head === null) return null;
    const record = Buffer.alloc(STATISTICS_SIZE);
    readSync(this.#file, record, 0, STATISTICS_SIZE, head.linearOffset + STATISTICS_OFFSET);
    // Cleared while a firmware that has trapped is started again.
    return record.readUInt32LE(0) === 0 ? null : decodeStatistics(record, head.clockMs);
  }

  /** Time that the card's processor has not slept, in ticks modulo 2^32; as it was when the card last went to sleep. */
  busyTicks(): { ticks: number; perMs: number } {
    const head = this.#readHead();
    if (head === null) throw new Error('the card is off');
    return { ticks: head.busyTicks, perMs: head.ticksPerMs };
  }

  #readHead(): SharedMemoryHead | null {
    return this.#file < 0 || this.#launch === null ? null : readSharedMemoryHead(this.#file, this.#launch.headOffset);
  }

  #isReady(): boolean {
    const statistics = this.#tryStatistics();
    if (statistics === null || statistics.storeState === 'starting') return false;
    const { sectors, linkState, storeState } = statistics;
    if (sectors > 0 || storeState === 'refused' || linkState === 'refused') return true;
    // The card may be between the two: an image without a sector is one that stays without.
    if (linkState !== 'up') this.#upSince = 0;
    else if (this.#upSince === 0) this.#upSince = Date.now();
    return this.#upSince !== 0 && Date.now() - this.#upSince > EMPTY_IMAGE_MS;
  }

  #startFailure(what: string): Failure {
    const { address } = this.#options.path;
    const where = 'path' in address ? address.path : `${address.host}:${address.port}`;
    if (this.#process === null) return new Failure("the card's process has ended (see the log above)");
    if (what !== '') return new Failure(`${what} within ${(this.#launch?.startTimeoutMs ?? 0) / 1000} s`);
    const image = this.#options.settings.exportName;
    const statistics = this.#tryStatistics();
    if (statistics?.storeState === 'refused') return new Failure(STORE_REFUSALS[statistics.storeError ?? 'device']);
    const linkState = statistics?.linkState;
    if (linkState === 'refused')
      return new Failure(`the image server at ${where} refuses the image "${image}" (see the log above)`);
    if (linkState === 'up') return new Failure(`the image "${image}" is smaller than one sector`);
    return new Failure(
      `no answer from the image server at ${where} within ${(this.#launch?.startTimeoutMs ?? 0) / 1000} s`,
    );
  }

  #spawn(launch: Launch): void {
    const child = spawn(launch.command, launch.arguments, { stdio: ['ignore', 'pipe', 'pipe'] });
    this.#process = child;
    child.stdout.on(
      'data',
      lines((line) => this.#takeLine(line)),
    );
    child.stderr.on(
      'data',
      lines((line) => this.onOutput(line)),
    );
    this.#ended = new Promise((done) => {
      child.on('error', (error) => this.onOutput(`${launch.command}: ${error.message}`));
      child.on('close', (code, signal) => {
        this.#process = null;
        this.#link.detach();
        this.#wake();
        if (!this.#stopping) this.onCrash(new Error(`the card's process ended: ${signal ?? `exit status ${code}`}`));
        done();
      });
    });
  }

  /** Lines are `level: text`. */
  #takeLine(output: string): void {
    const line = output.trimEnd(); // a console ends lines with CR, LF
    const colon = line.indexOf(': ');
    const level = LOG_LEVELS.find((name) => name === line.slice(0, colon));
    if (level === undefined) this.onOutput(line);
    else this.onLog(level, line.slice(colon + 2));
  }

  /** The doorbell's socket appears while the process starts. */
  async #connect(launch: Launch): Promise<void> {
    const deadline = Date.now() + launch.startTimeoutMs;
    for (;;) {
      const socket = await new Promise<net.Socket | null>((done) => {
        const attempt = net.connect(launch.doorbell);
        attempt.once('connect', () => done(attempt));
        attempt.once('error', () => done(null));
      });
      if (socket !== null) {
        socket.on('data', (bytes: Buffer) => this.#takeDoorbell(bytes));
        socket.on('error', () => {});
        this.#socket = socket;
        return;
      }
      if (this.#process === null || Date.now() > deadline) throw this.#startFailure('the doorbell did not appear');
      await sleep(5);
    }
  }

  #takeDoorbell(bytes: Buffer): void {
    if (bytes.includes(DOORBELL_STARTED)) this.#attach();
    this.#link.ring();
    this.#wake();
  }

  #attach(): void {
    const launch = this.#launch;
    if (launch === null) return;
    if (this.#file < 0) this.#file = openSync(launch.memoryFile, 'r+');
    this.#head = this.#readHead();
    if (this.#head !== null) {
      this.#link.attach(this.#file, launch.headOffset, this.#head.linearOffset + this.#head.frontEndOffset);
    }
  }

  #release(): void {
    this.#link.detach();
    this.#socket?.destroy();
    this.#socket = null;
    if (this.#file >= 0) closeSync(this.#file);
    this.#file = -1;
    this.#head = null;
  }

  /** Resolves when `condition` holds, the process has ended, or the deadline has passed. */
  async #until(condition: () => boolean, deadline: number): Promise<void> {
    while (this.#process !== null && !condition() && Date.now() < deadline) {
      await new Promise<void>((done) => {
        const timer = setTimeout(done, LOOK_INTERVAL_MS);
        this.#wake = () => {
          clearTimeout(timer);
          done();
        };
      });
    }
    this.#wake = () => {};
  }
}

/** The text of SPEC.md "Network paths". The card knows numeric addresses only: names are looked up here. */
export async function encodePath(path: NetworkPath, host?: string): Promise<string> {
  const { address, tls } = path;
  let text: string;
  if ('path' in address) {
    text = `unix ${address.path}`;
  } else {
    const numeric = host ?? (await lookup(address.host)).address;
    text = `tcp ${numeric} ${address.port}`;
  }
  if (tls === undefined) return `${text}\n`;
  if (!('identity' in tls)) throw new Failure('this card knows TLS with a pre-shared key only, not with certificates');
  return `${text} psk ${tls.identity} ${tls.key.toString('hex')}\n`;
}

function sharedMemoryFolder(): string {
  try {
    if (statSync('/dev/shm').isDirectory()) return '/dev/shm';
  } catch {
    // No such file system: the memory then lies in a file on disk, slower but the same.
  }
  return tmpdir();
}

function lines(take: (line: string) => void): (data: Buffer) => void {
  let rest = '';
  return (data) => {
    const parts = (rest + data.toString()).split('\n');
    rest = parts.pop() ?? '';
    for (const part of parts) take(part);
  };
}

function sleep(ms: number): Promise<void> {
  return new Promise((done) => setTimeout(done, ms));
}
