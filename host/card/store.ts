// The local store as a card in this process has it: a block device behind the firmware's `store_*` imports.

export const STORE_BLOCK_SIZE = 4096;

/** A device that is done when the call returns. A throw is an error of the device: the operation has failed. */
export interface BlockStore {
  /** Size in blocks of 4096 bytes; does not change. */
  readonly blocks: number;
  read(block: number, target: Uint8Array): void;
  /** Later reads see it; durable once a later flush() has returned. */
  write(block: number, source: Uint8Array): void;
  flush(): void;
  /** Nobody needs the content any more. */
  trim(block: number, count: number): void;
  close(): void;
}

const NONE_COMPLETED = 0xffffffff;
const FAILED = 0x100;

/** The store group of assembly/imports.ts over a BlockStore: operations end at once, and are reported when the firmware asks. */
export class StoreImports {
  onError: (message: string) => void = () => {};
  readonly #store: BlockStore | null;
  readonly #view: (address: number, length: number) => Uint8Array;
  readonly #completed: number[] = [];

  constructor(store: BlockStore | null, view: (address: number, length: number) => Uint8Array) {
    this.#store = store;
    this.#view = view;
  }

  functions(): Record<string, (...args: number[]) => number | undefined> {
    const store = this.#store;
    return {
      store_size: () => store?.blocks ?? 0,
      store_read: (tag, block, count, target) =>
        this.#run(tag, 'read', block, count, () => store?.read(block >>> 0, this.#blocks(target, count))),
      store_write: (tag, block, count, source) =>
        this.#run(tag, 'write', block, count, () => store?.write(block >>> 0, this.#blocks(source, count))),
      store_flush: (tag) => this.#run(tag, 'flush', 0, 0, () => store?.flush()),
      store_trim: (tag, block, count) =>
        this.#run(tag, 'trim', block, count, () => store?.trim(block >>> 0, count >>> 0)),
      store_completed: () => this.#completed.shift() ?? NONE_COMPLETED,
    };
  }

  #blocks(address: number, count: number): Uint8Array {
    return this.#view(address >>> 0, (count >>> 0) * STORE_BLOCK_SIZE);
  }

  #run(tag: number, what: string, block: number, count: number, operation: () => void): undefined {
    const size = this.#store?.blocks ?? 0;
    if ((block >>> 0) + (count >>> 0) > size) {
      throw new RangeError(`store_${what} outside of the store: block ${block >>> 0}, count ${count >>> 0}, size ${size}`);
    }
    try {
      operation();
      this.#completed.push(tag);
    } catch (error) {
      this.#completed.push(tag | FAILED);
      this.onError(`${what} of block ${block >>> 0}: ${(error as Error).message}`);
    }
    return undefined;
  }
}
