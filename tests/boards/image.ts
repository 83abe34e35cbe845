// One disk image of known content behind nbdkit: an NBD server that is not ours, so that what these tests show depends on the
// card alone. (That our own image server works with every card is shown by `ribbon sim` and its tests.)

import { type ChildProcess, spawn } from 'node:child_process';
import { randomBytes } from 'node:crypto';
import { chmodSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import net from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import type { NetworkPath } from '../../host/card/network.js';

/** nbdkit's file plugin serves its one image under any name. */
export const IMAGE_NAME = 'disk';
const PSK_IDENTITY = 'card';

/** Sector `lba` before anything is written: its number, over and over. */
export function pattern(lba: number, sectors: number): Buffer {
  const data = Buffer.alloc(sectors * 512);
  for (let at = 0; at < data.length; at += 4) data.writeUInt32LE((lba + Math.floor(at / 512)) ^ 0x5eed0000, at);
  return data;
}

export class TestImage {
  readonly folder = mkdtempSync(join(tmpdir(), 'ribbon-image-'));
  readonly file = join(this.folder, 'disk.img');
  readonly #key = randomBytes(32);
  #port = 0;
  #process: ChildProcess | null = null;
  #ended: Promise<void> = Promise.resolve();

  constructor(sectors: number) {
    writeFileSync(this.file, pattern(0, sectors));
  }

  async serveUnix(): Promise<NetworkPath> {
    const path = join(this.folder, 'nbd');
    await this.#spawn(['-U', path], () => net.connect(path));
    return { address: { path } };
  }

  /** On loopback; after stopServer() again on the same port. With TLS, clients without the key are refused. */
  async serveTcp(options: { tls?: boolean } = {}): Promise<NetworkPath> {
    if (this.#port === 0) this.#port = await freePort();
    const port = this.#port;
    const args = ['-i', '127.0.0.1', '-p', String(port)];
    if (options.tls) {
      const keys = join(this.folder, 'keys.psk');
      writeFileSync(keys, `${PSK_IDENTITY}:${this.#key.toString('hex')}\n`);
      chmodSync(keys, 0o600);
      args.push('--tls=require', `--tls-psk=${keys}`);
    }
    await this.#spawn(args, () => net.connect(port, '127.0.0.1'));
    const tls = options.tls ? { tls: { identity: PSK_IDENTITY, key: this.#key } } : {};
    return { address: { host: '127.0.0.1', port }, ...tls };
  }

  async stopServer(signal: NodeJS.Signals = 'SIGTERM'): Promise<void> {
    this.#process?.kill(signal);
    await this.#ended;
  }

  /** The master image as it is now. */
  content(): Buffer {
    return readFileSync(this.file);
  }

  async close(): Promise<void> {
    await this.stopServer();
    rmSync(this.folder, { recursive: true, force: true });
  }

  async #spawn(args: string[], connect: () => net.Socket): Promise<void> {
    const child = spawn('nbdkit', ['--foreground', '--exit-with-parent', ...args, 'file', this.file], {
      stdio: ['ignore', 'ignore', 'inherit'],
    });
    this.#process = child;
    this.#ended = new Promise((done) => {
      child.on('close', () => {
        this.#process = null;
        done();
      });
    });
    const deadline = Date.now() + 10_000;
    for (;;) {
      const isUp = await new Promise<boolean>((done) => {
        const socket = connect();
        socket.once('connect', () => done(true));
        socket.once('error', () => done(false));
        socket.once('connect', () => socket.destroy());
      });
      if (isUp) return;
      if (this.#process === null || Date.now() > deadline) throw new Error('nbdkit does not start');
      await new Promise((done) => setTimeout(done, 10));
    }
  }
}

export async function freePort(): Promise<number> {
  const probe = net.createServer();
  await new Promise<void>((done) => probe.listen(0, '127.0.0.1', done));
  const { port } = probe.address() as net.AddressInfo;
  await new Promise((done) => probe.close(done));
  return port;
}
