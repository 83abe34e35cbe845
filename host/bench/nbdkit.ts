// An image server that is not ours, with an empty image, for benchmarks of the card alone.

import { spawn } from 'node:child_process';
import { mkdtempSync, rmSync, truncateSync, writeFileSync } from 'node:fs';
import net from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import type { NetworkPath } from '../card/network.js';
import { Failure } from '../failure.js';

export interface Nbdkit {
  readonly path: NetworkPath;
  /** Scratch space that goes when the server goes. */
  readonly folder: string;
  kill(): void;
}

/** Runs nbdkit's file plugin while `use` runs. */
export async function withNbdkit<T>(imageBytes: number, use: (server: Nbdkit) => Promise<T>): Promise<T> {
  const folder = mkdtempSync(join(tmpdir(), 'ribbon-bench-'));
  const image = join(folder, 'image');
  const socket = join(folder, 'nbd');
  writeFileSync(image, '');
  truncateSync(image, imageBytes);
  const server = spawn('nbdkit', ['--foreground', '--exit-with-parent', '-U', socket, 'file', image], {
    stdio: 'ignore',
  });
  let failure: Error | null = null;
  server.on('error', (error) => {
    failure = error;
  });
  try {
    for (let tries = 0; !(await answers(socket)); tries++) {
      if (failure !== null) throw new Failure(`nbdkit does not start: ${(failure as Error).message}`);
      if (tries > 500) throw new Failure('nbdkit does not start');
      await sleep(10);
    }
    return await use({ path: { address: { path: socket } }, folder, kill: () => server.kill('SIGKILL') });
  } finally {
    server.kill();
    rmSync(folder, { recursive: true, force: true });
  }
}

function answers(socket: string): Promise<boolean> {
  return new Promise((done) => {
    const attempt = net.connect(socket);
    attempt.once('connect', () => {
      attempt.destroy();
      done(true);
    });
    attempt.once('error', () => done(false));
  });
}
