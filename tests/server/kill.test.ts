// kill -9 of the server under load: after each kill the image is exactly one of the client's epochs, at least the last acknowledged one,
// and verify is clean. RIBBON_KILLS=200 for a long run.

import assert from 'node:assert/strict';
import { type ChildProcess, execFile, spawn } from 'node:child_process';
import fs from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import { test } from 'node:test';
import { fileURLToPath } from 'node:url';
import { promisify } from 'node:util';
import * as nbd from '../../host/server/nbd-protocol.js';
import { BLOCK, blockOf, type Content, generator } from '../store/model.js';
import { PlainClient } from './plain-client.js';

const MAIN = fileURLToPath(new URL('../../host/main.js', import.meta.url));
const KILLS = Number(process.env.RIBBON_KILLS ?? 8);
const BLOCKS = 2048;
const run = promisify(execFile);

async function startServer(store: string, socket: string): Promise<ChildProcess> {
  const child = spawn(process.execPath, [MAIN, 'serve', '--store', store, '--listen', `unix:${socket}`], {
    stdio: ['ignore', 'pipe', 'inherit'],
  });
  await new Promise<void>((resolve, reject) => {
    child.stdout!.once('data', () => resolve());
    child.once('exit', (code) => reject(new Error(`the server ended with ${code} before it listened`)));
  });
  return child;
}

test(`${KILLS} kills under load`, { timeout: 60_000 + KILLS * 20_000 }, async () => {
  const folder = fs.mkdtempSync(path.join(os.tmpdir(), 'ribbon-kill-'));
  const store = path.join(folder, 'store');
  const socket = path.join(folder, 's');
  const random = generator(Date.now());
  const pick = (count: number) => Math.floor(random() * count);
  await run(process.execPath, [MAIN, 'image', 'create', '--store', store, 'a', String(BLOCKS * BLOCK)]);
  /** What the image may be: what was acknowledged last, and what was attempted after it. */
  let acknowledged: Content = new Map();
  let attempted: Content | null = null;
  let stamp = 0;
  let commits = 0;
  try {
    for (let kill = 0; kill <= KILLS; kill++) {
      const server = await startServer(store, socket);
      const client = new PlainClient(socket);
      await client.open('a');
      const bytes = await client.request(nbd.NBD_CMD_READ, 0, BLOCKS);
      const wrong = (content: Content) => {
        for (let block = 0; block < BLOCKS; block++) {
          if (bytes.compare(blockOf(content.get(block) ?? 0), 0, BLOCK, block * BLOCK, (block + 1) * BLOCK) !== 0)
            return block;
        }
        return -1;
      };
      if (attempted !== null && wrong(attempted) < 0) acknowledged = attempted;
      assert.equal(wrong(acknowledged), -1, `after kill ${kill} this block is from no whole epoch`);
      attempted = null;
      const timer = setTimeout(() => server.kill('SIGKILL'), kill === KILLS ? 1e9 : 20 + pick(900));
      const exited = new Promise<void>((resolve) => server.once('exit', () => resolve()));
      try {
        while (kill < KILLS) {
          const next: Content = new Map(acknowledged);
          for (let write = 0; write < 1 + pick(12); write++) {
            const first = pick(BLOCKS);
            const count = 1 + pick(Math.min(random() < 0.1 ? 400 : 8, BLOCKS - first));
            const values = Array.from({ length: count }, () => ++stamp);
            await client.request(nbd.NBD_CMD_WRITE, first, count, Buffer.concat(values.map(blockOf)));
            for (const [index, value] of values.entries()) next.set(first + index, value);
          }
          attempted = next;
          await client.request(nbd.NBD_CMD_FLUSH, 0, 0);
          acknowledged = next;
          attempted = null;
          commits++;
        }
      } catch (error) {
        assert.match(String(error), /connection lost/);
      }
      client.end();
      clearTimeout(timer);
      if (kill === KILLS) server.kill('SIGTERM');
      await exited;
    }
    assert.ok(commits > KILLS, `only ${commits} commits`);
    const { stdout } = await run(process.execPath, [MAIN, 'image', 'verify', '--store', store]);
    assert.match(stdout, /: 0 damaged/);
  } finally {
    fs.rmSync(folder, { recursive: true, force: true });
  }
});
