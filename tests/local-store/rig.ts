// One card with a simulated store, one disk on an image server, one PC; every generation on the server is checked.

import assert from 'node:assert/strict';
import { loadFirmware } from '../../host/card/firmware.js';
import { InProcessCard } from '../../host/card/in-process.js';
import { type CardSettings, DEFAULT_SETTINGS } from '../../host/card/settings.js';
import { Cable } from '../../host/front-end/cable.js';
import { Register, STATUS_BSY, STATUS_DF, STATUS_ERR } from '../../host/front-end/front-end.js';
import { FaultyDisk, FaultyDisks } from '../../host/simulation/faulty-disk.js';
import { SimulatedStore } from '../../host/simulation/simulated-store.js';
import { SimulatedWorld } from '../../host/simulation/simulated-world.js';
import { History, SECTOR } from './history.js';

const WRITE_DMA_EXT = 0x35;
const READ_DMA_EXT = 0x25;
const FLUSH_CACHE = 0xe7;
const SET_FEATURES = 0xef;
const LBA = 0x40;

export interface RigOptions {
  seed?: number;
  /** Of the image. */
  sectors?: number;
  storeBytes?: number;
  memorySize?: number;
  /** Instead of the one that is built. */
  firmware?: WebAssembly.Module;
  settings?: Partial<CardSettings>;
  latencyMs?: number;
  storeMs?: number;
}

export interface Outcome {
  failed: boolean;
  status: number;
  error: number;
  /** The power went before the command ended. */
  cut: boolean;
}

/** Compiled once: V8 goes on to make it faster. */
const FIRMWARE = loadFirmware();

const PAGE_SIZE = 65_536;
/** Memories of cards that are off, by size. V8 does not see what they weigh, and would let thousands of them pile up. */
const memories = new Map<number, WebAssembly.Memory[]>();

/** A memory of zeroes. */
function takeMemory(size: number): WebAssembly.Memory {
  const memory = memories.get(size)?.pop();
  if (memory === undefined) return new WebAssembly.Memory({ initial: size / PAGE_SIZE, maximum: size / PAGE_SIZE });
  new Uint8Array(memory.buffer).fill(0);
  return memory;
}

function giveMemoryBack(memory: WebAssembly.Memory): void {
  const size = memory.buffer.byteLength;
  const free = memories.get(size);
  if (free === undefined) memories.set(size, [memory]);
  else free.push(memory);
}

export const STORE_BYTES = 18 << 20;

export class StoreRig {
  readonly disk: FaultyDisk;
  readonly world: SimulatedWorld;
  readonly history: History;
  readonly settings: CardSettings;
  store: SimulatedStore;
  card!: InProcessCard;
  cable!: Cable;
  /** How long each operation of the store takes. */
  storeMs: number;
  log: string[] = [];
  /** How many commands the newest generation is the outcome of. */
  generation = 0;
  /** How many commands the PC had issued when its last FLUSH CACHE was answered. */
  flushed = 0;
  #cut = false;
  /** What was wrong with a generation: thrown where time passes, not into the server. */
  #violation: Error | null = null;
  readonly #memorySize: number;
  /** Of the card that is on. */
  #memory: WebAssembly.Memory | null = null;
  readonly #firmware: WebAssembly.Module | undefined;

  constructor(options: RigOptions = {}) {
    const sectors = options.sectors ?? 4096;
    this.history = new History(sectors);
    this.disk = new FaultyDisk(sectors * SECTOR);
    this.history.base().copy(this.disk.image);
    this.disk.onCommit = () => {
      try {
        this.checkGeneration();
      } catch (error) {
        this.#violation ??= error as Error;
      }
    };
    this.store = new SimulatedStore(options.storeBytes ?? STORE_BYTES);
    const exports = new FaultyDisks(new Map(['disk', 'other'].map((name) => [name, this.disk])));
    this.world = new SimulatedWorld({ seed: options.seed ?? 1, exports, latencyMs: options.latencyMs ?? 0 });
    this.settings = { ...DEFAULT_SETTINGS, exportName: 'disk', ...options.settings };
    this.#memorySize = options.memorySize ?? 16 << 20;
    this.#firmware = options.firmware;
    this.storeMs = options.storeMs ?? 0;
  }

  /** O2 and O3: base plus a prefix of the PC's commands, which never shrinks. */
  checkGeneration(): void {
    this.generation = this.history.prefixOf(
      this.disk.image,
      this.generation,
      this.history.issued,
      `generation ${this.disk.commitsDone}`,
    );
  }

  /** Powers the card on and waits until the disk is there, or the store is refused, or the power goes. */
  powerOn(limitMs = 60_000): void {
    this.#cut = false;
    this.#memory ??= takeMemory(this.#memorySize);
    const { storeMs } = this;
    this.store.later = storeMs === 0 ? null : (end) => void this.world.after(storeMs, end);
    this.store.onCut = () => {
      this.#cut = true;
    };
    this.card = new InProcessCard({
      firmware: this.#firmware ?? FIRMWARE,
      settings: this.settings,
      path: { address: { path: 'simulated' } },
      memory: this.#memory,
      store: this.store,
      world: this.world,
    });
    this.card.onLog = (level, line) => this.log.push(`${level} ${line}`);
    this.card.onCrash = (error) => {
      throw error;
    };
    this.cable = new Cable([this.card.frontEnd]);
    this.card.start().catch(() => {});
    this.until(() => this.card.statistics().storeState === 'refused' || this.ready(), limitMs);
  }

  /** The end of the rig; what it had is for others. */
  dispose(): void {
    this.powerOff();
    this.store.recycle();
  }

  ready(): boolean {
    return this.card.statistics().sectors > 0 && (this.cable.readAlternateStatus() & STATUS_BSY) === 0;
  }

  get cut(): boolean {
    return this.#cut;
  }

  /** Power cut of the card; the store's content is for store.powerCut() to decide. */
  powerOff(): void {
    this.card.cut();
    this.world.breakLinks();
    if (this.#memory !== null) giveMemoryBack(this.#memory);
    this.#memory = null;
  }

  until(condition: () => boolean, limitMs = 60_000): boolean {
    const held = this.world.run(() => this.#cut || this.#violation !== null || condition(), limitMs);
    if (this.#violation !== null) throw this.#violation;
    assert.ok(held, `did not happen within ${limitMs} ms: ${condition}\n${this.log.slice(-20).join('\n')}`);
    return !this.#cut;
  }

  pass(ms: number): void {
    this.world.run(() => this.#cut || this.#violation !== null, ms);
    if (this.#violation !== null) throw this.#violation;
  }

  setReachable(reachable: boolean): void {
    this.world.reachable = reachable;
    if (!reachable) this.world.breakLinks();
  }

  /** A write of the PC; it is in the history. */
  write(lba: number, sectors: number, limitMs?: number): Outcome {
    const outcome = this.#dma(WRITE_DMA_EXT, lba, this.history.next(lba, sectors), limitMs);
    if (!outcome.cut && !outcome.failed) this.history.acknowledge();
    return outcome;
  }

  /** A write whose data are all with the card; end() waits for its end. */
  startWrite(lba: number, sectors: number): void {
    this.#transfer(WRITE_DMA_EXT, lba, this.history.next(lba, sectors));
  }

  read(lba: number, sectors: number, limitMs?: number): Outcome & { data: Buffer } {
    const data = Buffer.alloc(sectors * SECTOR);
    return { ...this.#dma(READ_DMA_EXT, lba, data, limitMs), data };
  }

  flush(): Outcome {
    this.startFlush();
    const outcome = this.end();
    if (!outcome.cut && !outcome.failed) this.flushed = this.history.issued;
    return outcome;
  }

  /** FLUSH CACHE is written to the command register. */
  startFlush(): void {
    this.#start(FLUSH_CACHE, 0, 0);
  }

  /** SET FEATURES 02h or 82h. */
  setWriteCache(enabled: boolean): Outcome {
    this.cable.writeRegister(Register.FEATURES, enabled ? 0x02 : 0x82);
    this.#start(SET_FEATURES, 0, 0);
    return this.end();
  }

  get busy(): boolean {
    return (this.cable.readAlternateStatus() & STATUS_BSY) !== 0;
  }

  /** The whole disk as the PC sees it. */
  readDisk(): Buffer {
    // What is not on the card must be had from the server.
    this.until(() => this.card.statistics().linkState === 'up' || !this.world.reachable);
    const pieces: Buffer[] = [];
    for (let lba = 0; lba < this.history.sectors; lba += 1024) {
      const { data, failed, status, error } = this.read(lba, Math.min(1024, this.history.sectors - lba));
      assert.ok(
        !failed,
        `read of ${lba} fails: status ${status}, error ${error}\n${this.log.slice(-12).join('\n')}\n${JSON.stringify(this.card.statistics())}`,
      );
      pieces.push(data);
    }
    return Buffer.concat(pieces);
  }

  /** O1 and O7: what the PC sees is a prefix of what it did, with everything that it was told is done. */
  checkView(): number {
    return this.history.prefixOf(this.readDisk(), this.history.acknowledged, this.history.issued, 'the disk');
  }

  /** O8: with nothing in the way, everything reaches the server. */
  drain(limitMs = 120_000): void {
    this.until(() => this.card.statistics().lagBytes === 0, limitMs);
    this.generation = this.history.prefixOf(
      this.disk.image,
      Math.max(this.generation, this.history.acknowledged),
      this.history.issued,
      'the master image',
    );
  }

  #start(command: number, lba: number, sectors: number): void {
    const { cable } = this;
    cable.writeRegister(Register.DEVICE, 0xa0 | LBA);
    cable.writeAddress(Math.floor(lba / 2 ** 24), sectors >> 8);
    cable.writeAddress(lba, sectors);
    cable.writeRegister(Register.COMMAND, command);
  }

  #dma(command: number, lba: number, data: Uint8Array, limitMs?: number): Outcome {
    this.#transfer(command, lba, data, limitMs);
    return this.end(limitMs);
  }

  /** Moves the data of a command; returns when the card wants no more of it, or has no more. */
  #transfer(command: number, lba: number, data: Uint8Array, limitMs?: number): void {
    const { cable } = this;
    let moved = 0;
    const move = (): void => {
      for (let block = cable.dmaBlock(); block !== null && block.length > 0; block = cable.dmaBlock()) {
        const part = data.subarray(moved, moved + block.length);
        if (cable.dmaDirection() === 'in') part.set(block);
        else block.set(part);
        moved += block.length;
        cable.advanceDma(block.length);
        if (this.#cut) return;
      }
    };
    this.#start(command, lba, data.length / SECTOR);
    while (
      moved < data.length &&
      this.until(() => cable.dmaDirection() !== null || (cable.readAlternateStatus() & STATUS_BSY) === 0, limitMs) &&
      cable.dmaDirection() !== null
    ) {
      move();
    }
  }

  /** Waits until the command ends. */
  end(limitMs?: number): Outcome {
    const ended = this.until(() => (this.cable.readAlternateStatus() & STATUS_BSY) === 0, limitMs);
    if (!ended) return { failed: false, status: 0, error: 0, cut: true };
    const status = this.cable.readRegister(Register.STATUS);
    const error = this.cable.readRegister(Register.ERROR);
    return { failed: (status & (STATUS_DF | STATUS_ERR)) !== 0, status, error, cut: false };
  }
}
