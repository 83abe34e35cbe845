// An image server with one image of known content, for the cards of these tests.

import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import type { NetworkPath } from '../../host/card/network.js';
import { ImageServer } from '../../host/server/server.js';
import { Store } from '../../host/store/store.js';

export const IMAGE_NAME = 'disk';

/** Sector `lba` before anything is written: its number, over and over. */
export function pattern(lba: number, sectors: number): Buffer {
  const data = Buffer.alloc(sectors * 512);
  for (let at = 0; at < data.length; at += 4) data.writeUInt32LE((lba + Math.floor(at / 512)) ^ 0x5eed0000, at);
  return data;
}

export class TestImage {
  readonly folder = mkdtempSync(join(tmpdir(), 'ribbon-image-'));
  readonly #store: Store;
  readonly #storeFolder: string;
  #server: ImageServer | null = null;

  private constructor(store: Store, storeFolder: string) {
    this.#store = store;
    this.#storeFolder = storeFolder;
  }

  static async create(sectors: number): Promise<TestImage> {
    const folder = mkdtempSync(join(tmpdir(), 'ribbon-store-'));
    const store = await Store.open(folder);
    const raw = join(folder, 'source');
    writeFileSync(raw, pattern(0, sectors));
    await store.importRaw(IMAGE_NAME, raw);
    return new TestImage(store, folder);
  }

  /** Starts a server on a socket of its own. */
  async serveUnix(): Promise<NetworkPath> {
    const path = join(this.folder, 'nbd');
    this.#server = new ImageServer({ exports: this.#store, listen: [{ kind: 'unix', path }] });
    await this.#server.listen();
    return { address: { path } };
  }

  async serveTcp(port = 0): Promise<{ address: { host: string; port: number } }> {
    const server = new ImageServer({ exports: this.#store, listen: [{ kind: 'tcp', host: '127.0.0.1', port }] });
    await server.listen();
    this.#server = server;
    const address = server.addresses[0];
    if (address.kind !== 'tcp') throw new Error('not a TCP address');
    return { address: { host: address.host, port: address.port } };
  }

  async stopServer(): Promise<void> {
    await this.#server?.close();
    this.#server = null;
  }

  generation(): number {
    return this.#store.generation(IMAGE_NAME);
  }

  /** The master image as it is now. */
  async content(): Promise<Buffer> {
    const file = join(this.folder, 'copy');
    await this.#store.exportRaw(IMAGE_NAME, file);
    return readFileSync(file);
  }

  async close(): Promise<void> {
    await this.stopServer();
    await this.#store.close();
    rmSync(this.folder, { recursive: true, force: true });
    rmSync(this.#storeFolder, { recursive: true, force: true });
  }
}
