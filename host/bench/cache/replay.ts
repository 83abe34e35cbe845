// A recorded PC, a card with a small RAM cache and a local store of some size, and an image server that counts what it is asked for;
// in simulated time, from the real firmware.

import { loadFirmware } from '../../card/firmware.js';
import { InProcessCard } from '../../card/in-process.js';
import { DEFAULT_SETTINGS } from '../../card/settings.js';
import type { CardStatistics } from '../../card/statistics.js';
import { Cable } from '../../front-end/cable.js';
import { Register, STATUS_BSY, STATUS_DF, STATUS_ERR } from '../../front-end/front-end.js';
import type { ExportListing, Exports, OpenExport } from '../../server/export.js';
import { SimulatedStore } from '../../simulation/simulated-store.js';
import { SimulatedWorld } from '../../simulation/simulated-world.js';
import type { TraceAccess } from './trace.js';

const CMD_READ_DMA_EXT = 0x25;
const CMD_WRITE_DMA_EXT = 0x35;
const DEVICE_LBA = 0x40;
const SECTOR_SIZE = 512;
const BLOCK_SIZE = 4096;
const COMMAND_TIMEOUT_MS = 60_000;
/** assembly/local-store: a segment's blocks but its summary, what lies before the first, and the segments that are kept free. */
const SEGMENT_BLOCKS = 256;
const SEGMENT_DATA_BLOCKS = 255;
const SEGMENTS_FREE = 8;
const LOG_START_BLOCKS = 16;
const SEGMENTS_MIN = 16;
/** Memory beside the tables: leaves some 800 blocks to the RAM cache. The tables take 16.9 bytes a block of the store. */
const MEMORY_FIXED = 8 << 20;
const TABLE_BYTES = 17;
const PAGE_SIZE = 65536;

export interface ReplayOptions {
  /** Of the image. */
  sectors: number;
  /** How many blocks the local store is to hold beside the segments that it keeps free. */
  storeBlocks: number;
  firmware?: WebAssembly.Module;
}

export interface Replayed {
  /** Blocks that the image server was asked for, read-ahead included. */
  fetched: number;
  /** The most image blocks that the store has held: of its own some are headers, and some hold what was written again since. */
  heldBlocks: number;
  ramBlocks: number;
  statistics: CardStatistics;
}

export function replay(trace: Iterable<TraceAccess>, options: ReplayOptions): Replayed {
  const rig = new ReplayRig(options);
  try {
    for (const { kind, lba, count } of trace) {
      if (kind === 'read') rig.read(lba, count);
      else rig.write(lba, count);
      // A PC does something between two commands.
      rig.pass(1);
      rig.look();
    }
    return rig.result();
  } finally {
    rig.close();
  }
}

/** Each sector begins with its number, so that a wrong one shows. */
export class ReplayRig {
  readonly #server: CountingServer;
  readonly #world: SimulatedWorld;
  readonly #card: InProcessCard;
  readonly #cable: Cable;
  #ramBlocks = 0;
  #heldBlocks = 0;

  constructor({ sectors, storeBlocks, firmware }: ReplayOptions) {
    this.#server = new CountingServer(sectors);
    this.#world = new SimulatedWorld({ seed: 1, exports: this.#server, latencyMs: 1 });
    const segments = Math.max(SEGMENTS_MIN, Math.round(storeBlocks / SEGMENT_DATA_BLOCKS) + SEGMENTS_FREE);
    const blocks = LOG_START_BLOCKS + segments * SEGMENT_BLOCKS;
    const store = new SimulatedStore(blocks * BLOCK_SIZE);
    store.later = (end) => void this.#world.after(0.1, end);
    this.#card = new InProcessCard({
      firmware: firmware ?? loadFirmware(),
      settings: { ...DEFAULT_SETTINGS, exportName: 'disk' },
      path: { address: { path: 'simulated' } },
      memorySize: Math.ceil((MEMORY_FIXED + blocks * TABLE_BYTES) / PAGE_SIZE) * PAGE_SIZE,
      store,
      world: this.#world,
    });
    this.#card.onLog = (_level, line) => {
      this.#ramBlocks = Number(/cache_blocks=(\d+)/.exec(line)?.[1] ?? this.#ramBlocks);
    };
    this.#card.onCrash = (error) => {
      throw error;
    };
    this.#cable = new Cable([this.#card.frontEnd]);
    void this.#card.start();
    this.#until(() => this.#card.statistics().sectors > 0 && this.#idle());
  }

  read(lba: number, count: number): void {
    const data = this.#transfer(CMD_READ_DMA_EXT, lba, Buffer.alloc(count * SECTOR_SIZE));
    for (let i = 0; i < count; i++) {
      const found = data.readUInt32LE(i * SECTOR_SIZE);
      if (found !== lba + i) throw new Error(`sector ${lba + i} reads as sector ${found}`);
    }
  }

  write(lba: number, count: number): void {
    this.#transfer(CMD_WRITE_DMA_EXT, lba, numbered(lba, Buffer.alloc(count * SECTOR_SIZE)));
  }

  pass(ms: number): void {
    this.#world.pass(ms);
  }

  /** Blocks that the image server was asked for so far. */
  get fetched(): number {
    return this.#server.blocksRead;
  }

  /** Notes how many blocks the store holds. */
  look(): void {
    this.#heldBlocks = Math.max(this.#heldBlocks, this.#card.statistics().storeBlocksUsed);
  }

  result(): Replayed {
    this.look();
    return {
      fetched: this.fetched,
      heldBlocks: this.#heldBlocks,
      ramBlocks: this.#ramBlocks,
      statistics: this.#card.statistics(),
    };
  }

  close(): void {
    this.#card.cut();
  }

  #idle(): boolean {
    return (this.#cable.readAlternateStatus() & STATUS_BSY) === 0;
  }

  #until(condition: () => boolean): void {
    if (!this.#world.run(condition, COMMAND_TIMEOUT_MS)) throw new Error(`did not happen: ${condition}`);
  }

  #transfer(command: number, lba: number, data: Buffer): Buffer {
    const cable = this.#cable;
    const count = data.length / SECTOR_SIZE;
    cable.writeRegister(Register.DEVICE, DEVICE_LBA);
    cable.writeAddress(Math.floor(lba / 2 ** 24), count >> 8);
    cable.writeAddress(lba, count);
    cable.writeRegister(Register.COMMAND, command);
    for (let moved = 0; moved < data.length; ) {
      this.#until(() => cable.dmaDirection() !== null || this.#idle());
      const block = cable.dmaBlock();
      if (block === null || block.length === 0) break;
      const part = data.subarray(moved, moved + block.length);
      if (cable.dmaDirection() === 'in') part.set(block.subarray(0, part.length));
      else block.set(part);
      moved += part.length;
      cable.advanceDma(part.length);
    }
    this.#until(() => this.#idle());
    const status = cable.readRegister(Register.STATUS);
    if ((status & (STATUS_ERR | STATUS_DF)) !== 0) throw new Error(`command ${command.toString(16)}h fails at ${lba}`);
    return data;
  }
}

function numbered(lba: number, target: Buffer): Buffer {
  for (let at = 0; at < target.length; at += SECTOR_SIZE) target.writeUInt32LE(lba + at / SECTOR_SIZE, at);
  return target;
}

/** An image whose sectors hold their numbers, whatever is written: the recorded PC writes nothing else. */
class CountingServer implements Exports {
  blocksRead = 0;

  constructor(readonly sectors: number) {}

  list(): ExportListing[] {
    return [{ name: 'disk', description: '' }];
  }

  open(): OpenExport {
    return {
      size: this.sectors * SECTOR_SIZE,
      readOnly: false,
      multiConnection: false,
      description: '',
      read: (offset, target) => {
        const last = Math.ceil((offset + target.length) / BLOCK_SIZE);
        this.blocksRead += last - Math.floor(offset / BLOCK_SIZE);
        numbered(offset / SECTOR_SIZE, target.fill(0));
        return undefined;
      },
      write: () => undefined,
      zero: () => undefined,
      commit: () => undefined,
      metaContexts: () => [],
      status: (_context, _offset, length) => [{ length, flags: 0 }],
      close: () => undefined,
    };
  }
}
