// The local store as a card in this process has it: a block device behind the firmware's `store_*` imports.

export const STORE_BLOCK_SIZE = 4096;
/** Without a store of its own a card has this much in memory. */
export const DEFAULT_STORE_SIZE = 64 << 20;

/** What the firmware has started. */
export interface StoreOperation {
  kind: 'read' | 'write' | 'flush' | 'trim';
  block: number;
  count: number;
  /** The firmware's memory, `count` blocks of it: the device's until it has called done(). Empty for a flush and a trim. */
  memory: Uint8Array;
  /** To be called once, inside start() or later. A device that never does has stopped. */
  done(failed: boolean): void;
}

/** A block device that may take its time. A write is durable once a flush that started after it was done is done. */
export interface StoreDevice {
  /** Size in blocks of 4096 bytes; does not change. */
  readonly blocks: number;
  start(operation: StoreOperation): void;
}

/** A device that is done when the call returns, but for a flush. A throw is an error of the device: the operation has failed. */
export interface BlockStore {
  readonly blocks: number;
  read(block: number, target: Uint8Array): void;
  /** Later reads see it; durable once a later flush() is done. */
  write(block: number, source: Uint8Array): void;
  /** Calls `done` once, inside the call or later, with the error if it has failed. */
  flush(done: (error: Error | null) => void): void;
  /** Nobody needs the content any more. */
  trim(block: number, count: number): void;
  close(): void;
}

/** A BlockStore as a StoreDevice. `onError` hears what the firmware is not told. */
export function storeDevice(store: BlockStore, onError: (message: string) => void): StoreDevice {
  return {
    blocks: store.blocks,
    start({ kind, block, count, memory, done }) {
      const end = (error: Error | null): void => {
        if (error !== null) onError(`${kind} of block ${block}: ${error.message}`);
        done(error !== null);
      };
      if (kind === 'flush') {
        store.flush(end);
        return;
      }
      try {
        if (kind === 'read') store.read(block, memory);
        else if (kind === 'write') store.write(block, memory);
        else store.trim(block, count);
      } catch (error) {
        end(error as Error);
        return;
      }
      end(null);
    },
  };
}

const NONE_COMPLETED = 0xffffffff;
const FAILED = 0x100;

/** The store group of assembly/imports.ts over a device. `onDone`: the firmware has something to look at. */
export function storeImports(
  device: StoreDevice,
  view: (address: number, length: number) => Uint8Array,
  onDone: () => void,
): Record<string, (...args: number[]) => number | undefined> {
  const completed: number[] = [];
  const start = (kind: StoreOperation['kind'], tag: number, block = 0, count = 0, address = 0): undefined => {
    const first = block >>> 0;
    const blocks = count >>> 0;
    if (first + blocks > device.blocks) {
      throw new RangeError(`store_${kind} outside of the store: block ${first}, count ${blocks}, of ${device.blocks}`);
    }
    const hasMemory = kind === 'read' || kind === 'write';
    const memory = view(address >>> 0, hasMemory ? blocks * STORE_BLOCK_SIZE : 0);
    const done = (failed: boolean): void => {
      completed.push(tag | (failed ? FAILED : 0));
      onDone();
    };
    device.start({ kind, block: first, count: blocks, memory, done });
    return undefined;
  };
  return {
    store_size: () => device.blocks,
    store_read: (tag, block, count, target) => start('read', tag, block, count, target),
    store_write: (tag, block, count, source) => start('write', tag, block, count, source),
    store_flush: (tag) => start('flush', tag),
    store_trim: (tag, block, count) => start('trim', tag, block, count),
    store_completed: () => completed.shift() ?? NONE_COMPLETED,
  };
}
