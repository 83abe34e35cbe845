import assert from 'node:assert/strict';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { it } from 'node:test';
import { STORE_BLOCK_SIZE, type StoreOperation, storeDevice } from './store.js';
import { FileStore } from './store-file.js';

const NO_MEMORY = new Uint8Array(0);

async function withFolder(use: (folder: string) => Promise<void>): Promise<void> {
  const folder = mkdtempSync(join(tmpdir(), 'ribbon-store-'));
  try {
    await use(folder);
  } finally {
    rmSync(folder, { recursive: true });
  }
}

/** One operation, and whether it failed. */
function outcome(start: (done: StoreOperation['done']) => void): { now: boolean; failed: Promise<boolean> } {
  let now = false;
  const failed = new Promise<boolean>((resolve) =>
    start((result) => {
      now = true;
      resolve(result);
    }),
  );
  return { now, failed };
}

it('reads what was written at once, and does not hold the thread up for a flush', async () => {
  await withFolder(async (folder) => {
    const errors: string[] = [];
    const store = new FileStore(join(folder, 'store'), 16 * STORE_BLOCK_SIZE);
    const device = storeDevice(store, (message) => errors.push(message));
    const written = new Uint8Array(2 * STORE_BLOCK_SIZE).fill(7);
    const read = new Uint8Array(2 * STORE_BLOCK_SIZE);
    const write = outcome((done) => device.start({ kind: 'write', block: 3, count: 2, memory: written, done }));
    assert.equal(write.now, true);
    const flush = outcome((done) => device.start({ kind: 'flush', block: 0, count: 0, memory: NO_MEMORY, done }));
    assert.equal(flush.now, false);
    device.start({ kind: 'read', block: 3, count: 2, memory: read, done: () => {} });
    assert.deepEqual(read, written);
    assert.equal(await flush.failed, false);
    assert.deepEqual(errors, []);
    store.close();
  });
});

it('closes its file when the flush on its way has ended', async () => {
  await withFolder(async (folder) => {
    const store = new FileStore(join(folder, 'store'), 16 * STORE_BLOCK_SIZE);
    const block = new Uint8Array(STORE_BLOCK_SIZE);
    store.write(0, block);
    const flushed = new Promise<Error | null>((resolve) => store.flush(resolve));
    store.close();
    store.read(0, block);
    assert.equal(await flushed, null);
    assert.throws(() => store.read(0, block), /EBADF/);
  });
});

it('refuses a flush when it is closed', async () => {
  await withFolder(async (folder) => {
    const errors: string[] = [];
    const store = new FileStore(join(folder, 'store'), 16 * STORE_BLOCK_SIZE);
    const device = storeDevice(store, (message) => errors.push(message));
    store.close();
    const flush = outcome((done) => device.start({ kind: 'flush', block: 0, count: 0, memory: NO_MEMORY, done }));
    assert.equal(await flush.failed, true);
    assert.match(errors.join(), /^flush of block 0: the file is closed/);
  });
});
