// A store in memory, and a model of what it must hold: for each line the content of every generation.

import { noCodec } from '../../host/store/codec.js';
import { type Index, MemoryIndex } from '../../host/store/index.js';
import type { LineExport } from '../../host/store/line-export.js';
import { MemoryFiles } from '../../host/store/memory-files.js';
import { Store, type StoreOptions } from '../../host/store/store.js';

export const BLOCK = 4096;
export const CLIENT = { identity: 'anonymous', address: 'test', tls: false };
const STORE_ID = Buffer.alloc(16, 7);

/** A small fast generator of numbers in [0, 1): one seed, one sequence. */
export function generator(seed: number): () => number {
  let state = seed >>> 0 || 1;
  return () => {
    state = (state + 0x6d2b79f5) >>> 0;
    let value = Math.imul(state ^ (state >>> 15), 1 | state);
    value = (value + Math.imul(value ^ (value >>> 7), 61 | value)) ^ value;
    return ((value ^ (value >>> 14)) >>> 0) / 0x1_0000_0000;
  };
}

/** The index of a medium with a power switch: one operation, all or nothing. */
class CutIndex extends MemoryIndex {
  constructor(private readonly files: MemoryFiles) {
    super();
  }

  override apply(batch: Parameters<Index['apply']>[0]): Promise<void> {
    try {
      this.files.operation();
    } catch (error) {
      return Promise.reject(error);
    }
    return super.apply(batch);
  }
}

export interface Medium {
  files: MemoryFiles;
  index: MemoryIndex;
}

export function newMedium(): Medium {
  const files = new MemoryFiles();
  return { files, index: new CutIndex(files) };
}

/** What is left of the medium when the power comes back. */
export function afterPowerCut(medium: Medium, random: () => number): Medium {
  const files = medium.files.afterPowerCut(random);
  const index = new CutIndex(files);
  for (const [key, value] of medium.index.blobsByHash) index.blobsByHash.set(key, value);
  for (const [key, value] of medium.index.recordsByKey) index.recordsByKey.set(key, value);
  for (const [key, list] of medium.index.changesByKey) index.changesByKey.set(key, list);
  return { files, index };
}

/** Small limits, so that short workloads meet every one; nothing happens by itself. */
export function openStore(medium: Medium, options: StoreOptions = {}): Promise<Store> {
  let time = 1_700_000_000_000;
  return Store.openParts(
    { files: medium.files, index: medium.index, storeId: STORE_ID, unlock: () => {} },
    {
      codec: noCodec,
      journalSegmentSlots: 48,
      packSizeMax: 256 * 1024,
      spillBlocks: 24,
      coalesceMs: 0,
      digestDelayMs: 0x7fff_ffff,
      nowMs: () => ++time,
      pause: () => () => Promise.resolve(),
      ...options,
    },
  );
}

/** The content of an image as a number for each block; 0 is zeroes. */
export type Content = Map<number, number>;

/** A block that says which it is. */
export function blockOf(value: number): Buffer {
  const bytes = Buffer.alloc(BLOCK);
  if (value !== 0) for (let at = 0; at < BLOCK; at += 8) bytes.writeUInt32LE(value, at);
  return bytes;
}

/** The value of a block, see blockOf(), in the newest generation. */
export async function readValue(store: Store, name: string, block: number): Promise<number> {
  const opened = await store.open(name, CLIENT);
  const bytes = Buffer.alloc(BLOCK);
  await opened.read(block * BLOCK, bytes);
  await opened.close(true);
  return bytes.readUInt32LE(0);
}

/** The blocks in which an export differs from what it should hold. */
export async function mismatches(opened: LineExport, content: Content, blocks: number): Promise<string[]> {
  const bytes = Buffer.alloc(blocks * BLOCK, 0xee);
  await opened.read(0, bytes);
  const found: string[] = [];
  for (let block = 0; block < blocks; block++) {
    const value = content.get(block) ?? 0;
    if (bytes.compare(expected(value), 0, BLOCK, block * BLOCK, (block + 1) * BLOCK) === 0) continue;
    found.push(`block ${block} begins with ${bytes.readUInt32LE(block * BLOCK)}, expected ${value}`);
  }
  return found;
}

const blocksByValue = new Map<number, Buffer>();

function expected(value: number): Buffer {
  let bytes = blocksByValue.get(value);
  if (bytes === undefined) {
    bytes = blockOf(value);
    blocksByValue.set(value, bytes);
  }
  return bytes;
}
