// The image server of a simulation, seen from the process that runs the PC.

import { type ChildProcess, fork } from 'node:child_process';
import { once } from 'node:events';
import { fileURLToPath } from 'node:url';
import { Failure } from '../failure.js';

/** What the server's process is asked for, one at a time. */
export type ServerRequest =
  | { kind: 'openStore'; folder: string }
  | { kind: 'openFiles'; files: Record<string, string> }
  | { kind: 'importRaw'; name: string; file: string }
  | { kind: 'listen'; socket: string }
  | { kind: 'stop' };

/** What it tells: the end of the request, and news at any time. */
export type ServerReport =
  | { kind: 'done'; result: unknown }
  | { kind: 'failed'; message: string }
  | { kind: 'log'; message: string }
  | { kind: 'progress'; percent: number }
  | { kind: 'commit'; image: string; generation: number };

const STOP_TIMEOUT_MS = 10_000;

export class SimulationServer {
  onLog: (message: string) => void = () => {};
  /** How far an import is. */
  onProgress: (percent: number) => void = () => {};
  /** The process has ended without being told to. */
  onCrash: (error: Error) => void = () => {};
  readonly #process: ChildProcess;
  readonly #generations = new Map<string, number>();
  #answer: { resolve: (result: unknown) => void; reject: (error: Error) => void } | null = null;
  #stopping = false;

  constructor() {
    const program = fileURLToPath(new URL('image-server-process.js', import.meta.url));
    // Without this process's own options: what a test runner or a profiler asks of it is not for the server.
    this.#process = fork(program, { stdio: ['ignore', 'ignore', 'inherit', 'ipc'], execArgv: [] });
    this.#process.on('message', (report: ServerReport) => this.#take(report));
    this.#process.on('exit', (status, signal) => {
      const error = new Failure(`the image server has ended: ${signal ?? `exit status ${status}`}`);
      this.#answer?.reject(error);
      if (!this.#stopping) this.onCrash(error);
    });
  }

  /** Serves the images of a store; returns their names. */
  openStore(folder: string): Promise<string[]> {
    return this.#request({ kind: 'openStore', folder }) as Promise<string[]>;
  }

  /** Serves raw files by export name, beside the store. */
  async openFiles(files: Record<string, string>): Promise<void> {
    await this.#request({ kind: 'openFiles', files });
  }

  /** Makes a raw disk image file an image of the store. */
  async importRaw(name: string, file: string): Promise<void> {
    await this.#request({ kind: 'importRaw', name, file });
  }

  /** Resolves when clients can connect. */
  async listen(socket: string): Promise<void> {
    await this.#request({ kind: 'listen', socket });
  }

  /** The newest generation of an image; null when this server has none of that name or it has not been changed. */
  generation(image: string): number | null {
    return this.#generations.get(image) ?? null;
  }

  async stop(): Promise<void> {
    const child = this.#process;
    this.#stopping = true;
    if (child.exitCode !== null || child.signalCode !== null) return;
    const exited = once(child, 'exit');
    const timeout = setTimeout(() => child.kill('SIGKILL'), STOP_TIMEOUT_MS);
    this.#answer = { resolve: () => {}, reject: () => {} };
    child.send({ kind: 'stop' } satisfies ServerRequest, () => {});
    await exited;
    clearTimeout(timeout);
  }

  #request(request: ServerRequest): Promise<unknown> {
    return new Promise((resolve, reject) => {
      this.#answer = { resolve, reject };
      this.#process.send(request, (error) => {
        if (error) reject(error);
      });
    });
  }

  #take(report: ServerReport): void {
    if (report.kind === 'done') this.#answer?.resolve(report.result);
    else if (report.kind === 'failed') this.#answer?.reject(new Failure(report.message));
    else if (report.kind === 'log') this.onLog(report.message);
    else if (report.kind === 'progress') this.onProgress(report.percent);
    else this.#generations.set(report.image, report.generation);
  }
}
