// The image server of a simulation, seen from the process that runs the PC.

import { type ChildProcess, fork } from 'node:child_process';
import { once } from 'node:events';
import { fileURLToPath } from 'node:url';
import { Failure } from '../failure.js';

export interface ImageServerOptions {
  /** A Unix socket. */
  socket: string;
  /** The images of a store, after importing those that are missing; or raw files, by export name. */
  source: { store: string; importMissing: Record<string, string> } | { files: Record<string, string> };
}

/** What the server's process tells. */
export type ImageServerReport =
  | { kind: 'ready' }
  | { kind: 'failed'; message: string }
  | { kind: 'log'; message: string }
  | { kind: 'progress'; percent: number; what: string }
  | { kind: 'commit'; image: string; generation: number };

const STOP_TIMEOUT_MS = 10_000;

export class SimulationServer {
  onProgress: (percent: number, what: string) => void = () => {};
  onLog: (message: string) => void = () => {};
  readonly #generations = new Map<string, number>();
  #process: ChildProcess | null = null;

  /** Resolves when clients can connect; rejects with a Failure when the images cannot be served. */
  async start(options: ImageServerOptions): Promise<void> {
    const program = fileURLToPath(new URL('image-server-process.js', import.meta.url));
    const child = fork(program, { stdio: ['ignore', 'ignore', 'inherit', 'ipc'] });
    this.#process = child;
    await new Promise<void>((resolve, reject) => {
      child.once('error', reject);
      child.once('exit', () => reject(new Failure('the image server ended before it was ready')));
      child.on('message', (report: ImageServerReport) => {
        if (report.kind === 'ready') resolve();
        else if (report.kind === 'failed') reject(new Failure(report.message));
        else if (report.kind === 'progress') this.onProgress(report.percent, report.what);
        else if (report.kind === 'log') this.onLog(report.message);
        else this.#generations.set(report.image, report.generation);
      });
      child.send(options);
    });
  }

  /** The newest generation of an image; null when this server has none of that name. */
  generation(image: string): number | null {
    return this.#generations.get(image) ?? null;
  }

  async stop(): Promise<void> {
    const child = this.#process;
    this.#process = null;
    if (child === null || child.exitCode !== null || child.signalCode !== null) return;
    const exited = once(child, 'exit');
    const timeout = setTimeout(() => child.kill('SIGKILL'), STOP_TIMEOUT_MS);
    child.send('stop', () => {});
    await exited;
    clearTimeout(timeout);
  }
}
