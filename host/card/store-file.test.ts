import assert from 'node:assert/strict';
import { randomBytes } from 'node:crypto';
import { mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { it } from 'node:test';
import { STORE_BLOCK_SIZE, type StoreOperation } from './store.js';
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

/** Starts an operation; `failed` resolves when it is done. */
function start(
  store: FileStore,
  kind: StoreOperation['kind'],
  block = 0,
  memory: Uint8Array = NO_MEMORY,
): { isDone: () => boolean; failed: Promise<boolean> } {
  let isDone = false;
  const failed = new Promise<boolean>((resolve) => {
    const done = (result: boolean): void => {
      assert.equal(isDone, false, 'an operation ends once');
      isDone = true;
      resolve(result);
    };
    store.start({ kind, block, count: memory.length / STORE_BLOCK_SIZE, memory, done });
  });
  return { isDone: () => isDone, failed };
}

function bytes(blocks: number): Buffer {
  return randomBytes(blocks * STORE_BLOCK_SIZE);
}

it('reads what was written at once, and does not hold the thread up for a flush', async () => {
  await withFolder(async (folder) => {
    const store = new FileStore(join(folder, 'store'), 16 * STORE_BLOCK_SIZE);
    const content = bytes(2);
    assert.equal(start(store, 'write', 3, content).isDone(), true);
    const flush = start(store, 'flush');
    assert.equal(flush.isDone(), false);
    const read = Buffer.alloc(2 * STORE_BLOCK_SIZE);
    assert.equal(await start(store, 'read', 3, read).failed, false);
    assert.deepEqual(read, content);
    assert.equal(await flush.failed, false);
    store.close();
  });
});

it('leaves large writes to a thread', async () => {
  await withFolder(async (folder) => {
    const store = new FileStore(join(folder, 'store'), 256 * STORE_BLOCK_SIZE);
    const content = bytes(66);
    const halves = [content.subarray(0, content.length / 2), content.subarray(content.length / 2)];
    const writes = halves.map((half, index) => start(store, 'write', 100 + 33 * index, half));
    assert.deepEqual(
      writes.map(({ isDone }) => isDone()),
      [false, false],
    );
    for (const { failed } of writes) assert.equal(await failed, false);
    const read = Buffer.alloc(content.length);
    await start(store, 'read', 100, read).failed;
    assert.deepEqual(read, content);
    store.close();
  });
});

it('reports writes that fail, small and large', async () => {
  await withFolder(async (folder) => {
    const store = new FileStore(join(folder, 'store'), STORE_BLOCK_SIZE);
    const errors: string[] = [];
    store.onError = (message) => errors.push(message);
    // Farther than a file can be long.
    for (const count of [1, 33]) assert.equal(await start(store, 'write', 2 ** 40, bytes(count)).failed, true);
    assert.equal(errors.length, 2);
    assert.match(errors[0], /^write of block 1099511627776: /);
    store.close();
  });
});

it('closes its file when what threads are at has ended', async () => {
  await withFolder(async (folder) => {
    const store = new FileStore(join(folder, 'store'), 64 * STORE_BLOCK_SIZE);
    const content = bytes(33);
    const write = start(store, 'write', 0, content);
    const flush = start(store, 'flush');
    store.close();
    assert.equal(await write.failed, false);
    assert.equal(await flush.failed, false);
    assert.deepEqual(readFileSync(join(folder, 'store')).subarray(0, content.length), content);
  });
});

it('refuses everything when it is closed', async () => {
  await withFolder(async (folder) => {
    const errors: string[] = [];
    const store = new FileStore(join(folder, 'store'), 16 * STORE_BLOCK_SIZE);
    store.onError = (message) => errors.push(message);
    store.close();
    assert.equal(await start(store, 'flush').failed, true);
    assert.match(errors.join(), /^flush of block 0: the file is closed/);
  });
});
