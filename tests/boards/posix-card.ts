// Runs the posix runtime on test firmwares and collects what it says.

import { type ChildProcess, spawn } from 'node:child_process';
import { existsSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { buildPosix } from '../../tools/build-boards.js';
import { ROOT } from './builds.js';
import { assemble, GOOD, SENDS_TO_NOBODY, STORE_ROUND_TRIP, TRAPPING } from './modules.js';

/** Shared by the test files of this folder: its content follows from modules.ts alone. */
export const MODULES = join(ROOT, 'build', 'boards', 'test-modules');

/** The runtime with the test firmwares compiled in, so that both engines can run them. */
export async function buildTestCard(sanitized: boolean): Promise<string> {
  const firmwares = [GOOD, SENDS_TO_NOBODY, STORE_ROUND_TRIP, ...TRAPPING].map((module) => assemble(module, MODULES));
  const output = join(ROOT, 'build', 'boards', sanitized ? 'test-card-sanitized' : 'test-card');
  await buildPosix(ROOT, { firmwares, sanitized, output });
  return output;
}

/** Of the local store that a test firmware has. */
const STORE_BLOCKS = 16;

export class TestCard {
  readonly folder = mkdtempSync(join(tmpdir(), 'ribbon-board-'));
  readonly doorbell = join(this.folder, 'doorbell');
  readonly crash = join(this.folder, 'crash');
  readonly memory = join(this.folder, 'memory');
  readonly store = join(this.folder, 'store');
  readonly lines: string[] = [];
  exitCode: number | null = null;
  signal: NodeJS.Signals | null = null;
  #process: ChildProcess | null = null;
  #ended: Promise<void> = Promise.resolve();
  #wake: () => void = () => {};

  start(binary: string, firmwares: string[], engine: string, options: { paths?: string; more?: string[] } = {}): void {
    const settings = join(this.folder, 'settings');
    const pathFile = join(this.folder, 'paths');
    writeFileSync(settings, Buffer.alloc(512, 1));
    writeFileSync(pathFile, `# none\n${options.paths ?? ''}`);
    writeFileSync(this.store, Buffer.alloc(STORE_BLOCKS * 4096));
    rmSync(this.doorbell, { force: true });
    const child = spawn(
      binary,
      [
        ...firmwares.flatMap((file) => ['--firmware', file]),
        ...['--settings', settings, '--paths', pathFile, '--memory', this.memory, '--memory-size', String(2 << 20)],
        ...['--doorbell', this.doorbell, '--crash', this.crash, '--engine', engine, '--store', this.store],
        ...(options.more ?? []),
      ],
      { stdio: ['ignore', 'pipe', 'pipe'] },
    );
    this.#process = child;
    let rest = '';
    const take = (data: Buffer): void => {
      const parts = (rest + data.toString()).split('\n');
      rest = parts.pop() ?? '';
      this.lines.push(...parts);
      this.#wake();
    };
    child.stdout.on('data', take);
    child.stderr.on('data', take);
    this.#ended = new Promise((done) => {
      child.on('close', (code, signal) => {
        this.exitCode = code;
        this.signal = signal;
        this.#process = null;
        this.#wake();
        done();
      });
    });
  }

  /** Resolves with the first line that matches, or rejects when the process ends or 30 s pass without one. */
  async line(pattern: RegExp): Promise<string> {
    const deadline = Date.now() + 30_000;
    for (;;) {
      const found = this.lines.find((line) => pattern.test(line));
      if (found !== undefined) return found;
      if (this.#process === null || Date.now() > deadline) {
        throw new Error(
          `no line matches ${pattern}; the card said:\n${this.lines.join('\n')}\nexit ${this.exitCode ?? this.signal}`,
        );
      }
      await new Promise<void>((done) => {
        this.#wake = done;
        setTimeout(done, 1000).unref();
      });
    }
  }

  async stop(): Promise<void> {
    this.#process?.kill('SIGTERM');
    await this.#ended;
  }

  async ended(): Promise<void> {
    await this.#ended;
  }

  crashKind(): number {
    return existsSync(this.crash) && readFileSync(this.crash).length > 0
      ? readFileSync(this.crash).readUInt32LE(12)
      : 0;
  }

  remove(): void {
    rmSync(this.folder, { recursive: true, force: true });
  }
}
