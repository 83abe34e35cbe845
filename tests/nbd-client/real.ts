// A client on the real network, the one that the card in this process uses, and real servers to talk to.

import { type ChildProcess, execFileSync, spawn } from 'node:child_process';
import fs from 'node:fs';
import net from 'node:net';
import os from 'node:os';
import path from 'node:path';
import { Network, type NetworkPath } from '../../host/card/network.js';
import type { CardSettings } from '../../host/card/settings.js';
import { compileNbdClient, HEAP_OFFSET, NbdClient, PIECE_SIZE, RequestState } from '../../host/fuzz/nbd-client.js';

const WAIT_MS = 20_000;
const module = await compileNbdClient();

export class RealClient {
  readonly client: NbdClient;
  readonly network: Network;
  #timer: NodeJS.Timeout | null = null;
  #waiting: (() => void) | null = null;
  #stepping = false;
  #again = false;

  constructor(networkPath: NetworkPath, settings: Partial<CardSettings> = {}) {
    this.network = new Network([networkPath]);
    this.client = new NbdClient(module, { network: this.network, settings, memorySize: 8 << 20 });
    this.network.onChange = () => this.step();
    this.step();
  }

  step(): void {
    // An import that causes an event asks for another step.
    if (this.#stepping) {
      this.#again = true;
      return;
    }
    this.#stepping = true;
    do {
      this.#again = false;
      this.client.step();
    } while (this.#again);
    this.#stepping = false;
    if (this.#timer !== null) clearTimeout(this.#timer);
    const dueMs = this.client.timeoutMs();
    this.#timer = dueMs === 0xffffffff ? null : setTimeout(() => this.step(), dueMs);
    this.#waiting?.();
  }

  /** Resolves when the condition holds after a step; the log tells why it did not. */
  until(what: string, condition: () => boolean): Promise<void> {
    return new Promise((resolve, reject) => {
      const check = (): void => {
        if (!condition()) return;
        clearTimeout(timeout);
        this.#waiting = null;
        resolve();
      };
      const timeout = setTimeout(() => {
        this.#waiting = null;
        reject(new Error(`not ${what} after ${WAIT_MS} ms\n${this.client.log.join('\n')}`));
      }, WAIT_MS);
      this.#waiting = check;
      check();
    });
  }

  up(): Promise<void> {
    return this.until('up', () => this.client.up);
  }

  /** Starts a request and waits for its end; its state and error number. */
  async end(start: () => number): Promise<{ state: number; errno: number }> {
    await this.up();
    const slot = start();
    this.step();
    await this.until('ended', () => this.client.state(slot) !== RequestState.PENDING);
    const result = { state: this.client.state(slot), errno: this.client.errno(slot) };
    this.client.release(slot);
    return result;
  }

  /** Every 4096 bytes of `length` from piece number `first` on. */
  pieces(first: number, length: number): number[] {
    return Array.from({ length: Math.ceil(length / PIECE_SIZE) }, (_, i) => HEAP_OFFSET + (first + i) * PIECE_SIZE);
  }

  read(offset: number, length: number, first = 0): Promise<{ state: number; errno: number }> {
    return this.end(() => this.client.read(offset, length, this.pieces(first, length)));
  }

  write(offset: number, data: Uint8Array, first = 0): Promise<{ state: number; errno: number }> {
    this.client.memory.set(data, HEAP_OFFSET + first * PIECE_SIZE);
    return this.end(() => this.client.write(offset, data.length, this.pieces(first, data.length)));
  }

  flush(): Promise<{ state: number; errno: number }> {
    return this.end(() => this.client.flush());
  }

  bytes(length: number, first = 0): Buffer {
    return Buffer.from(this.client.view(HEAP_OFFSET + first * PIECE_SIZE, length));
  }

  stop(): void {
    this.client.disconnect();
    this.step();
    if (this.#timer !== null) clearTimeout(this.#timer);
    this.network.onChange = () => {};
    this.network.closeAll();
  }
}

/** A server process on a unix socket in a folder of its own. */
export class RealServer {
  readonly folder = fs.mkdtempSync(path.join(os.tmpdir(), 'ribbon-nbd-'));
  readonly socket = path.join(this.folder, 'socket');
  #process: ChildProcess | null = null;
  #output = '';

  /** Runs `command`; `SOCKET` and `FOLDER` in its arguments stand for this server's. */
  async start(command: string, args: string[]): Promise<void> {
    const words = args.map((word) => word.replaceAll('SOCKET', this.socket).replaceAll('FOLDER', this.folder));
    const child = spawn(command, words, { stdio: ['ignore', 'pipe', 'pipe'] });
    this.#process = child;
    for (const stream of [child.stdout, child.stderr]) stream.on('data', (text) => (this.#output += text));
    const ended = new Promise<never>((_, reject) => {
      child.once('error', reject);
      child.once('exit', (code) => reject(new Error(`${command} ended with ${code}: ${this.#output}`)));
    });
    ended.catch(() => {});
    await Promise.race([ended, this.#listening(child)]);
  }

  kill(signal: NodeJS.Signals): Promise<void> {
    const child = this.#process;
    this.#process = null;
    if (child === null || child.exitCode !== null) return Promise.resolve();
    return new Promise((resolve) => {
      child.once('exit', () => resolve());
      child.kill(signal);
    });
  }

  async remove(): Promise<void> {
    await this.kill('SIGKILL');
    fs.rmSync(this.folder, { recursive: true, force: true });
  }

  async #listening(child: ChildProcess): Promise<void> {
    while (child.exitCode === null && !(await canConnect(this.socket))) {
      await new Promise((resolve) => setTimeout(resolve, 20));
    }
  }
}

function canConnect(socketPath: string): Promise<boolean> {
  return new Promise((resolve) => {
    const socket = net.connect({ path: socketPath });
    socket.once('connect', () => socket.end(() => resolve(true)));
    socket.once('error', () => resolve(false));
  });
}

/** False where a server that a test needs is not installed. */
export function hasCommand(command: string): boolean {
  try {
    execFileSync(command, ['--version'], { stdio: 'ignore' });
    return true;
  } catch {
    return false;
  }
}
