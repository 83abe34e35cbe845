// A PC, a card, a line and an image server in simulated time, for figures that no load of this machine can change: the real
// firmware, the real front end, the real NBD session and image store; the line and the local store take the time that they are
// told to take.

import { loadFirmware } from '../card/firmware.js';
import { type CardSettings, DEFAULT_SETTINGS } from '../card/settings.js';
import { Cable } from '../front-end/cable.js';
import { Register, STATUS_BSY, STATUS_DF, STATUS_ERR } from '../front-end/front-end.js';
import { NO_FAULTS, SimulatedBlockDevice } from '../soak/block-device.js';
import { SimulatedCard } from '../soak/card.js';
import { guarded } from '../soak/guard.js';
import type { Blocks, ImageBackend } from '../soak/memory-store.js';
import { SimulatedNetwork } from '../soak/network.js';
import { SimulatedServer } from '../soak/server.js';
import { MS, replacementsOf, SECOND, World } from '../soak/world.js';
import { noCodec } from '../store/codec.js';
import { MemoryIndex } from '../store/index.js';
import { MemoryFiles } from '../store/memory-files.js';
import { Store } from '../store/store.js';

const EXPORT_NAME = 'disk';
const CLIENT = { identity: 'bench', address: 'here', tls: false };
const WALL_CLOCK_MS = 1_700_000_000_000;
const SECTOR_SIZE = 512;
/** From DMARQ or INTRQ to the PC's next move. */
const PC_REACTION_US = 5;
/** UDMA mode 2. */
const BUS_BYTES_PER_US = 33;
const COMMAND_SECTORS_MAX = 2048;

const CMD_READ_DMA_EXT = 0x25;
const CMD_WRITE_DMA_EXT = 0x35;
const CMD_FLUSH_CACHE_EXT = 0xea;
const DEVICE_LBA = 0x40;

export interface Link {
  name: string;
  bitsPerSecond: number;
  /** There and back. */
  roundTripMs: number;
}

export const FAST_LINK: Link = { name: '100 Mbit/s, 40 ms', bitsPerSecond: 100e6, roundTripMs: 40 };
export const SLOW_LINK: Link = { name: '1.5 Mbit/s, 40 ms', bitsPerSecond: 1.5e6, roundTripMs: 40 };

export interface SimulatedRigOptions {
  seed: number;
  link: Link;
  /** What the image begins as. */
  image: Buffer;
  settings?: Partial<CardSettings>;
  storeBytes?: number;
  memorySize?: number;
  /** The image server keeps generations apart that are made within a moment. */
  keepsEveryGeneration?: boolean;
}

/** The local store: an SD card of the better sort, 100 MB/s, 2 ms for a flush. */
const DEVICE = { operationUs: 150, blockUs: 41, flushUs: 2 * MS, faults: NO_FAULTS };

export class SimulatedRig {
  readonly world: World;
  readonly network: SimulatedNetwork;
  readonly card: SimulatedCard;
  readonly server: SimulatedServer;
  readonly backend: MemoryBackend;
  pc!: RigPc;

  constructor(options: SimulatedRigOptions) {
    this.world = new World(options.seed);
    const { bitsPerSecond, roundTripMs } = options.link;
    this.network = new SimulatedNetwork(this.world, {
      latencyUs: (roundTripMs * MS) / 2,
      jitterUs: 0,
      bytesPerSecond: bitsPerSecond / 8,
      delivery: 'frames',
      windowBytes: 1 << 20,
    });
    this.backend = new MemoryBackend(this.world, options.image, options.keepsEveryGeneration === true);
    this.server = new SimulatedServer(this.world, this.network, this.backend);
    const device = new SimulatedBlockDevice(this.world, {
      ...DEVICE,
      blocks: (options.storeBytes ?? 256 << 20) / 4096,
    });
    this.card = new SimulatedCard(this.world, this.network, {
      firmware: loadFirmware(),
      settings: { ...DEFAULT_SETTINGS, exportName: EXPORT_NAME, ...options.settings },
      memorySize: options.memorySize ?? 64 << 20,
      reactionUs: 2,
      clockStartMs: 0,
      store: device,
    });
  }

  /** Switches everything on and runs `body` in simulated time. */
  async run(body: (rig: SimulatedRig) => Promise<void>): Promise<void> {
    await guarded(replacementsOf(this.world), async () => {
      this.server.state = 'down';
      this.server.start();
      this.world.schedule(100 * MS, () => {
        this.card.powerOn();
        this.pc = new RigPc(this.world, new Cable([this.card.frontEnd]));
        this.card.onStep = () => this.pc.look();
        this.card.start();
        this.world.promises = true;
        this.#live(body);
      });
      await this.world.run();
    });
  }

  async #live(body: (rig: SimulatedRig) => Promise<void>): Promise<void> {
    try {
      await this.until(() => this.card.statistics().linkState === 'up' && this.card.statistics().sectors > 0);
      await body(this);
      this.world.stop();
    } catch (error) {
      this.world.fail(error);
    }
  }

  sleep(ms: number): Promise<void> {
    return new Promise((resolve) => {
      this.world.schedule(ms * MS, () => {
        this.world.promises = true;
        resolve();
      });
    });
  }

  async until(condition: () => boolean, everyMs = 10): Promise<void> {
    while (!condition()) await this.sleep(everyMs);
  }

  /** Both directions are dead, or alive again. */
  setLink(up: boolean): void {
    this.network.up.setBlocked(!up);
    this.network.down.setBlocked(!up);
    if (!up) this.network.breakConnections();
  }

  get nowMs(): number {
    return this.world.nowUs / MS;
  }

  /** What the card has sent and taken. */
  wireBytes(): number {
    const { bytesToServer, bytesFromServer } = this.card.statistics();
    return bytesToServer + bytesFromServer;
  }
}

/** The real image store on files in memory. Its disk costs no time: what is measured is the card and the line. */
class MemoryBackend implements ImageBackend {
  readonly size: number;
  full = false;
  unreadable = null;
  readonly commitsUs = 0;
  readonly busy = false;
  #store: Store | null = null;

  constructor(
    readonly world: World,
    readonly image: Buffer,
    readonly keepsEveryGeneration: boolean,
  ) {
    this.size = image.length;
  }

  get store(): Store {
    if (this.#store === null) throw new Error('the image store is not open');
    return this.#store;
  }

  get exports(): Store {
    return this.store;
  }

  async start(): Promise<void> {
    const store = await Store.openParts(
      { files: new MemoryFiles(), index: new MemoryIndex(), storeId: Buffer.alloc(16, 7), unlock: () => {} },
      {
        // zstd works in threads of its own: real time.
        codec: noCodec,
        ...(this.keepsEveryGeneration ? { coalesceMs: 0 } : {}),
        nowMs: () => WALL_CLOCK_MS + Math.floor(this.world.nowUs / 1000),
        pause: () => () => Promise.resolve(),
        freeBytes: () => Number.MAX_SAFE_INTEGER,
      },
    );
    await store.images.create(EXPORT_NAME, this.size);
    const opened = await store.open(EXPORT_NAME, CLIENT);
    const piece = 1 << 20;
    for (let at = 0; at < this.size; at += piece) {
      const data = this.image.subarray(at, Math.min(at + piece, this.size));
      if (data.some((byte) => byte !== 0)) await opened.write(at, data);
    }
    await opened.commit();
    await opened.close(true);
    await store.digestAll();
    this.#store = store;
  }

  crash(): void {
    throw new Error('this server does not crash');
  }

  newest(): Promise<Blocks> {
    throw new Error('nobody asks');
  }

  /** The newest generation, whole; after run(). */
  async content(): Promise<Buffer> {
    const opened = await this.store.open(EXPORT_NAME, CLIENT);
    const target = Buffer.alloc(this.size);
    const piece = 1 << 20;
    for (let at = 0; at < this.size; at += piece)
      await opened.read(at, target.subarray(at, Math.min(at + piece, this.size)));
    await opened.close(false);
    return target;
  }
}

/** A PC's driver by LBA48 and DMA, one command at a time. */
export class RigPc {
  readonly #world: World;
  readonly #cable: Cable;
  #waiting: { condition: () => boolean; resolve: () => void } | null = null;

  constructor(world: World, cable: Cable) {
    this.#world = world;
    this.#cable = cable;
    cable.onInterrupt = () => this.look();
    cable.onDmaRequest = () => this.look();
  }

  async read(lba: number, target: Uint8Array): Promise<void> {
    await this.#transfer(CMD_READ_DMA_EXT, lba, target);
  }

  async write(lba: number, source: Uint8Array): Promise<void> {
    await this.#transfer(CMD_WRITE_DMA_EXT, lba, source);
  }

  flush(): Promise<void> {
    return this.#command(CMD_FLUSH_CACHE_EXT, 0, new Uint8Array(0));
  }

  /** Something has moved: what is waited for may hold now. */
  look(): void {
    const waiting = this.#waiting;
    if (waiting === null || !waiting.condition()) return;
    this.#waiting = null;
    // Not in the middle of the card's step.
    this.#world.schedule(PC_REACTION_US, () => {
      this.#world.promises = true;
      waiting.resolve();
    });
  }

  async #transfer(command: number, lba: number, data: Uint8Array): Promise<void> {
    const limit = COMMAND_SECTORS_MAX * SECTOR_SIZE;
    for (let at = 0; at < data.length; at += limit) {
      await this.#command(command, lba + at / SECTOR_SIZE, data.subarray(at, at + limit));
    }
  }

  async #command(command: number, lba: number, data: Uint8Array): Promise<void> {
    const cable = this.#cable;
    const count = data.length / SECTOR_SIZE;
    await this.#until(() => (cable.readAlternateStatus() & STATUS_BSY) === 0);
    cable.writeRegister(Register.DEVICE, DEVICE_LBA);
    cable.writeAddress(Math.floor(lba / 2 ** 24), count >> 8);
    cable.writeAddress(lba, count);
    cable.writeRegister(Register.COMMAND, command);
    for (let moved = 0; moved < data.length; ) {
      await this.#until(() => cable.dmaDirection() !== null || (cable.readAlternateStatus() & STATUS_BSY) === 0);
      const block = cable.dmaBlock();
      if (block === null || block.length === 0) break;
      const part = data.subarray(moved, moved + block.length);
      if (cable.dmaDirection() === 'in') part.set(block.subarray(0, part.length));
      else block.set(part);
      moved += part.length;
      await this.#pass(Math.ceil(part.length / BUS_BYTES_PER_US));
      cable.advanceDma(part.length);
    }
    await this.#until(() => (cable.readAlternateStatus() & STATUS_BSY) === 0);
    const status = cable.readRegister(Register.STATUS);
    if ((status & (STATUS_ERR | STATUS_DF)) !== 0) {
      const at = (this.#world.nowUs / SECOND).toFixed(3);
      throw new Error(
        `command ${command.toString(16)}h at LBA ${lba} failed after ${at} s: status ${status.toString(16)}h`,
      );
    }
  }

  #pass(us: number): Promise<void> {
    return new Promise((resolve) => {
      this.#world.schedule(us, () => {
        this.#world.promises = true;
        resolve();
      });
    });
  }

  #until(condition: () => boolean): Promise<void> {
    if (condition()) return Promise.resolve();
    return new Promise((resolve) => {
      this.#waiting = { condition, resolve };
    });
  }
}
