// `ribbon bench ata`: what a PC gets from its disk through the card in this process, against v86's own IDE disk in memory. The same
// guest boots the same image on each and measures itself, by DMA and by PIO.
//
// The card is what `npm start` gives: its local store in a file. v86's own disk is memory that nothing survives, as a disk with a
// write cache: its peer is a card that calls a write done when it has it (`received`). What `npm start` promises more, a write that is
// done when it is flushed to the local store (`stored`), is shown beside it.

import { readFileSync } from 'node:fs';
import { mkdtemp, rm } from 'node:fs/promises';
import os from 'node:os';
import path from 'node:path';
import { setTimeout } from 'node:timers/promises';
import { buildDemoImage } from '../../tools/demo-image.js';
import type { Card } from '../card/card.js';
import { Cable } from '../front-end/cable.js';
import { GuestShell } from '../pc/shell.js';
import { V86Pc, type V86PcOptions } from '../pc/v86.js';
import { Simulation } from '../sim/simulation.js';
import type { Benchmark, BenchOptions, Figure } from './report.js';

const BOOT_TIMEOUT_MS = 600_000;
const LAG_POLL_MS = 20;
const MODES = ['dma', 'pio'] as const;

/** One thing that the guest measures: a `dd` on the disk, timed by the shell to 10 ms, the guest's own cache dropped before. */
interface Measurement {
  name: string;
  unit: 'MB/s' | 'commands/s';
  /** Sectors that the kernel reads ahead, 0: every page is a command of its own. */
  readAhead: number;
  command: (count: number) => string;
  /** Requests of `blockSize` bytes in a run. */
  count: number;
  blockSize: number;
  /** When a write is done; `stored` where nothing is said. */
  point?: 'received';
  bar?: number;
}

/** MiB. */
const WRITE_COUNT = 48;

const MEASUREMENTS: Measurement[] = [
  {
    name: 'sequential read hits',
    unit: 'MB/s',
    readAhead: 2048,
    command: (count) => `dd if=/dev/sda of=/dev/null bs=1M count=${count}`,
    count: 48,
    blockSize: 1 << 20,
    bar: 1,
  },
  {
    name: 'sequential writes, done when received',
    unit: 'MB/s',
    readAhead: 2048,
    command: writes,
    count: WRITE_COUNT,
    blockSize: 1 << 20,
    point: 'received',
    bar: 1,
  },
  {
    name: 'sequential writes, done when stored',
    unit: 'MB/s',
    readAhead: 2048,
    command: writes,
    count: WRITE_COUNT,
    blockSize: 1 << 20,
  },
  {
    name: '4 KiB read hits',
    unit: 'commands/s',
    readAhead: 0,
    command: (count) => `dd if=/dev/sda of=/dev/null bs=4096 count=${count}`,
    count: 4000,
    blockSize: 4096,
  },
];

/** Ends in a FLUSH CACHE, which every card answers when all of it is on the local store. */
function writes(count: number): string {
  return `dd if=/dev/zero of=/dev/sda2 bs=1M count=${count} conv=fsync`;
}

/** Pairs of runs of each measurement; the median counts. */
const PAIRS = 9;
const QUICK_PAIRS = 3;

const benchmark: Benchmark = {
  title: "a PC's disk through the card, against v86's own IDE disk",
  async run(options: BenchOptions, onProgress): Promise<Figure[]> {
    const image = await buildDemoImage((percent, what) => onProgress(`demo image: ${what} ${Math.round(percent)} %`));
    return withCard(image, async (simulation) => {
      onProgress('starting two PCs');
      const card = await Guest.start({ cables: [simulation.cable, new Cable([])] });
      try {
        const builtIn = await Guest.start({ builtInDisk: readBuffer(image) });
        try {
          return await measureAll({ card, builtIn, controller: simulation.cards[0] }, options, onProgress);
        } finally {
          await builtIn.stop();
        }
      } finally {
        await card.stop();
      }
    });
  },
};

export default benchmark;

/** A booted PC that runs only while it is asked for something: two of them share a processor without meeting. */
class Guest {
  readonly #pc: V86Pc;
  readonly #shell: GuestShell;

  static async start(options: V86PcOptions): Promise<Guest> {
    const guest = new Guest(await V86Pc.create(options));
    await guest.#pc.start();
    await guest.#shell.ready(BOOT_TIMEOUT_MS);
    // The writes go over the data partition.
    await guest.#run('umount /data');
    await guest.#pc.pause();
    return guest;
  }

  private constructor(pc: V86Pc) {
    this.#pc = pc;
    this.#shell = new GuestShell(pc);
  }

  async run(command: string): Promise<string> {
    await this.#pc.resume();
    try {
      return await this.#run(command);
    } finally {
      await this.#pc.pause();
    }
  }

  async stop(): Promise<void> {
    await this.#pc.stop();
  }

  async #run(command: string): Promise<string> {
    const parts: Buffer[] = [];
    const status = await this.#shell.run(command, (bytes) => parts.push(bytes));
    const output = Buffer.concat(parts).toString('latin1');
    if (status !== 0) throw new Error(`"${command}" failed in the guest with status ${status}: ${output}`);
    return output;
  }
}

async function withCard<T>(image: string, use: (simulation: Simulation) => Promise<T>): Promise<T> {
  const folder = await mkdtemp(path.join(os.tmpdir(), 'ribbon-bench-'));
  try {
    const simulation = await Simulation.start(
      {
        card: 'inproc',
        disks: [{ exportName: 'disk' }],
        images: { store: path.join(folder, 'store'), makeImage: async () => image, files: {} },
        localStores: path.join(folder, 'cards'),
      },
      {
        onLog: () => {},
        onProgress: () => {},
        onCrash: (error) => {
          throw error;
        },
      },
    );
    try {
      return await use(simulation);
    } finally {
      await simulation.stop();
    }
  } finally {
    await rm(folder, { recursive: true, force: true });
  }
}

function readBuffer(file: string): ArrayBuffer {
  const content = readFileSync(file);
  return content.buffer.slice(content.byteOffset, content.byteOffset + content.length) as ArrayBuffer;
}

/** Until the card has written its local store's file over once: a file grows slowly, and a card's store is a device, which does not. */
async function useStore({ card, controller }: Rig, onProgress: (text: string) => void): Promise<void> {
  for (;;) {
    const { storeBlocksWritten, storeBlocks } = controller.statistics();
    if (storeBlocksWritten >= storeBlocks) return;
    onProgress(`using the local store, ${Math.floor((100 * storeBlocksWritten) / storeBlocks)} %`);
    await card.run(writes(WRITE_COUNT));
    await sent(controller);
  }
}

/** Resolves when the image server has what the PC wrote: that is not to be work in the peer's turn. */
async function sent(card: Card): Promise<void> {
  while (card.statistics().lagBytes > 0) await setTimeout(LAG_POLL_MS);
}

interface Rig {
  card: Guest;
  controller: Card;
  builtIn: Guest;
}

async function measureAll(rig: Rig, options: BenchOptions, onProgress: (text: string) => void): Promise<Figure[]> {
  const { card, controller, builtIn } = rig;
  const figures: Figure[] = [];
  const pairs = options.quick ? QUICK_PAIRS : PAIRS;
  await useStore(rig, onProgress);
  for (const mode of MODES) {
    for (const guest of [card, builtIn]) await guest.run(`ata-mode ${mode}`);
    for (const measurement of MEASUREMENTS) {
      const name = `${mode.toUpperCase()}, ${measurement.name}`;
      controller.setAcknowledgementPoint(measurement.point ?? 'stored');
      const results: { card: number; builtIn: number }[] = [];
      // The first pair is not counted: it fills the cache.
      for (let i = 0; i <= pairs; i++) {
        onProgress(`${name}, ${i} of ${pairs}`);
        const ofCard = await measure(card, measurement);
        await sent(controller);
        const pair = { card: ofCard, builtIn: await measure(builtIn, measurement) };
        if (i > 0) results.push(pair);
      }
      figures.push(figureOf(name, measurement, results));
    }
  }
  return figures;
}

/** The machine has other work now and then, which hits both of a pair: the ratio is the median of the pairs' ratios. */
function figureOf(name: string, measurement: Measurement, pairs: { card: number; builtIn: number }[]): Figure {
  const value = median(pairs.map((pair) => pair.card));
  const ratio = median(pairs.map((pair) => pair.card / pair.builtIn));
  return {
    name,
    value,
    unit: measurement.unit,
    peer: { name: "v86's own disk", value: value / ratio },
    ...(measurement.bar === undefined ? {} : { bar: measurement.bar }),
  };
}

function median(values: number[]): number {
  const sorted = [...values].sort((a, b) => a - b);
  return sorted[sorted.length >> 1];
}

async function measure(guest: Guest, measurement: Measurement): Promise<number> {
  const { count, readAhead, command } = measurement;
  const prepare = `sync; echo 3 > /proc/sys/vm/drop_caches; blockdev --setra ${readAhead} /dev/sda`;
  const output = await guest.run(`${prepare}; time ${command(count)}`);
  const [, minutes, rest] = /^real\s+(\d+)m ?([0-9.]+)s/m.exec(output) ?? [];
  const seconds = 60 * Number(minutes) + Number(rest);
  if (!(seconds > 0)) throw new Error(`the shell reports no time: ${output}`);
  const requests = count / seconds;
  return measurement.unit === 'MB/s' ? (requests * measurement.blockSize) / 1e6 : requests;
}
