// The card's local store in the simulated world: an SD card that takes its time and has faults. It takes the operations of the
// `store_` imports (4096-byte blocks, asynchronous, a write durable once a flush that started after it has ended).
//
// Faults of this zone, and what each may cost:
//
//   power cut      every write that no flush has made durable is kept, lost or torn at 512 bytes, each sector on its own;
//                  nothing that was flushed
//   lost write     ended well, and the old content is still there              } what was in the block: the card must notice
//   misdirected    ended well, and lies in another block                       } (checksums, sequence numbers) and give an
//   bit rot        a stored bit has changed                                    } error, never wrong bytes; what the image
//   read error     the block cannot be read any more                           } server has is fetched from there
//   slow           an operation takes up to a second                           time
//   failed write   ends with an error, and is there or not                     } nothing: it is repeated. Three in a row of
//   failed flush   ends with an error, and what it was for is not durable      } one operation: the store takes no more writes
//
// The device remembers which blocks it has damaged, so that a checker can tell what was forced (store-damage.ts).

import type { Random } from '../fuzz/random.js';
import { MS, SECOND, type Timer, type World } from './world.js';

export const STORE_BLOCK_SIZE = 4096;
const SECTOR_SIZE = 512;

/** As host/card/store.ts has it. */
export interface BlockOperation {
  kind: 'read' | 'write' | 'flush' | 'trim';
  block: number;
  count: number;
  memory: Uint8Array;
  done(failed: boolean): void;
}

export interface BlockDeviceFaults {
  /** Chances for each write. */
  lostWrite: number;
  misdirectedWrite: number;
  /** Chances for each operation. */
  bitRot: number;
  readError: number;
  slow: number;
  failedWrite: number;
  failedFlush: number;
}

export const NO_FAULTS: BlockDeviceFaults = {
  lostWrite: 0,
  misdirectedWrite: 0,
  bitRot: 0,
  readError: 0,
  slow: 0,
  failedWrite: 0,
  failedFlush: 0,
};

export interface BlockDeviceSettings {
  blocks: number;
  /** For each operation, and for each block that it moves; a flush is slower. */
  operationUs: number;
  blockUs: number;
  flushUs: number;
  faults: BlockDeviceFaults;
}

/** Who follows what is written. */
export interface DeviceWatcher {
  /** A write ends well, whatever becomes of it; before anything of it is there. */
  wrote(block: number, data: Uint8Array): void;
  /** A flush has ended; one that has failed has dropped what it was for. */
  flushed(failed: boolean): void;
  powerCut(): void;
}

interface Write {
  block: number;
  data: Uint8Array;
}

const ZERO = new Uint8Array(STORE_BLOCK_SIZE);

export class SimulatedBlockDevice {
  readonly blocks: number;
  operations = 0;
  /** The power goes as the operation with this number begins: it never ends, nor does any after it. */
  cutAt = Number.POSITIVE_INFINITY;
  onCut: () => void = () => {};
  /** Blocks whose content is not what was written to them last, by this device's own fault. */
  readonly damaged = new Set<number>();
  watcher: DeviceWatcher | null = null;
  readonly faultCounts: Record<keyof BlockDeviceFaults, number> = { ...NO_FAULTS };
  readonly #world: World;
  readonly #settings: BlockDeviceSettings;
  readonly #random: Random;
  /** What a read gives. */
  readonly #content = new Map<number, Uint8Array>();
  /** What a read must give. */
  readonly #meant = new Map<number, Uint8Array>();
  /** What a power cut cannot take. */
  readonly #durable = new Map<number, Uint8Array>();
  readonly #unreadable = new Set<number>();
  /** Writes that have ended since the last flush began, and those before it until it has ended. */
  #unflushed: Write[] = [];
  #underWay: BlockOperation | null = null;
  /** Operations wait here: the device does one at a time. */
  #queue: BlockOperation[] = [];
  #timer: Timer | null = null;
  #dead = false;

  constructor(world: World, settings: BlockDeviceSettings) {
    this.#world = world;
    this.#settings = settings;
    this.#random = world.random;
    this.blocks = settings.blocks;
  }

  start(operation: BlockOperation): void {
    if (this.#dead) return;
    this.#queue.push(operation);
    if (this.#timer === null) this.#next();
  }

  #next(): void {
    const operation = this.#queue[0];
    if (operation === undefined) return;
    this.operations += 1;
    if (operation.kind === 'write') this.#underWay = operation;
    if (this.operations >= this.cutAt) {
      this.#dead = true;
      this.onCut();
      return;
    }
    this.#timer = this.#world.schedule(this.#serviceUs(operation), () => {
      this.#timer = null;
      this.#queue.shift();
      const failed = this.#execute(operation);
      this.#underWay = null;
      this.#next();
      operation.done(failed);
    });
  }

  #serviceUs(operation: BlockOperation): number {
    const { operationUs, blockUs, flushUs, faults } = this.#settings;
    if (this.#happens('slow', faults.slow)) return this.#random.between(10 * MS, SECOND);
    return operation.kind === 'flush' ? flushUs : operationUs + operation.count * blockUs;
  }

  #happens(fault: keyof BlockDeviceFaults, chance: number): boolean {
    if (chance === 0 || !this.#random.chance(chance)) return false;
    this.faultCounts[fault] += 1;
    return true;
  }

  /** True when it has failed. */
  #execute({ kind, block, count, memory }: BlockOperation): boolean {
    this.#age();
    switch (kind) {
      case 'read':
        for (let i = 0; i < count; i++) {
          if (this.#unreadable.has(block + i)) return true;
          memory.set(this.#content.get(block + i) ?? ZERO, i * STORE_BLOCK_SIZE);
        }
        return false;
      case 'write':
        if (this.#happens('failedWrite', this.#settings.faults.failedWrite)) {
          if (this.#random.chance(0.5)) this.#write(block, memory);
          return true;
        }
        this.#write(block, memory);
        return false;
      case 'flush':
        if (this.#happens('failedFlush', this.#settings.faults.failedFlush)) {
          // As with Linux's page cache: what could not be written is forgotten, and the next flush succeeds.
          this.#unflushed = [];
          this.watcher?.flushed(true);
          return true;
        }
        for (const write of this.#unflushed) eachBlock(write, (at, data) => this.#durable.set(at, data));
        this.#unflushed = [];
        this.watcher?.flushed(false);
        return false;
      case 'trim':
        return false;
    }
  }

  #write(block: number, memory: Uint8Array): void {
    const { faults } = this.#settings;
    const write = { block, data: memory.slice() };
    this.watcher?.wrote(block, write.data);
    eachBlock(write, (at, data) => this.#meant.set(at, data));
    const count = memory.length / STORE_BLOCK_SIZE;
    if (this.#happens('lostWrite', faults.lostWrite)) {
      for (let i = 0; i < count; i++) this.damaged.add(block + i);
      return;
    }
    if (this.#happens('misdirectedWrite', faults.misdirectedWrite)) {
      for (let i = 0; i < count; i++) this.damaged.add(block + i);
      write.block = this.#random.below(this.blocks - count + 1);
      for (let i = 0; i < count; i++) this.damaged.add(write.block + i);
    } else {
      for (let i = 0; i < count; i++) this.damaged.delete(block + i);
    }
    eachBlock(write, (at, data) => {
      this.#content.set(at, data);
      this.#unreadable.delete(at);
    });
    this.#unflushed.push(write);
  }

  /** Stored bits change, and blocks go bad, as time passes. */
  #age(): void {
    const { faults } = this.#settings;
    if (this.#happens('bitRot', faults.bitRot)) {
      const block = this.#someBlock();
      if (block === null) return;
      const data = this.#content.get(block)!.slice();
      data[this.#random.below(data.length)] ^= 1 << this.#random.below(8);
      this.#content.set(block, data);
      this.#durable.set(block, data);
      this.damaged.add(block);
    }
    if (this.#happens('readError', faults.readError)) {
      const block = this.#someBlock();
      if (block === null) return;
      this.#unreadable.add(block);
      this.damaged.add(block);
    }
  }

  #someBlock(): number | null {
    if (this.#content.size === 0) return null;
    let left = this.#random.below(this.#content.size);
    for (const block of this.#content.keys()) if (left-- === 0) return block;
    return null;
  }

  /** The power goes. Afterwards the device can be used again, with what is left on it. */
  powerCut(): void {
    this.#world.cancel(this.#timer);
    this.#timer = null;
    this.#queue = [];
    const touched = [...this.#unflushed];
    // Its memory is as it was: the card is off.
    if (this.#underWay !== null) touched.push({ block: this.#underWay.block, data: this.#underWay.memory.slice() });
    this.#unflushed = [];
    this.#underWay = null;
    this.watcher?.powerCut();
    // Devices write in any order: of two writes to one place the earlier may win.
    for (const { block, data } of this.#random.shuffle(touched)) {
      const odds = this.#random.pick([0, 0.1, 0.5, 0.9, 1]);
      for (let at = 0; at < data.length; at += SECTOR_SIZE) {
        if (this.#random.chance(odds)) this.#settleSector(block, data, at);
      }
    }
    this.#content.clear();
    for (const [block, data] of this.#durable) this.#content.set(block, data);
    this.#settleDamage();
    this.#dead = false;
    this.cutAt = Number.POSITIVE_INFINITY;
  }

  /** The power cut may have taken what had damaged a block, too. */
  #settleDamage(): void {
    for (const block of this.damaged) {
      const meant = this.#meant.get(block);
      if (this.#unreadable.has(block) || meant === undefined) continue;
      if (Buffer.compare(meant, this.#content.get(block) ?? ZERO) === 0) this.damaged.delete(block);
    }
  }

  #settleSector(first: number, data: Uint8Array, at: number): void {
    const block = first + Math.floor(at / STORE_BLOCK_SIZE);
    const within = at % STORE_BLOCK_SIZE;
    const settled = (this.#durable.get(block) ?? ZERO).slice();
    settled.set(data.subarray(at, at + SECTOR_SIZE), within);
    this.#durable.set(block, settled);
  }
}

function eachBlock({ block, data }: Write, visit: (block: number, data: Uint8Array) => void): void {
  for (let at = 0; at < data.length; at += STORE_BLOCK_SIZE) {
    visit(block + at / STORE_BLOCK_SIZE, data.subarray(at, at + STORE_BLOCK_SIZE));
  }
}
