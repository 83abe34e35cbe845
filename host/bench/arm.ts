// Instruction budget of the card on a Cortex-A9. QEMU counts instructions (`-icount shift=0`: one instruction is one
// nanosecond of the guest's clock), and the card counts the time that it does not sleep: so each figure is the same in every
// run, on any machine, to the 10 instructions of the guest's timer.
//
// The image server is a program on this machine; how fast it is has no part in the figures. A write is counted twice: with the image
// server away, when its acknowledgement is all that there is to do, and with the image server there, which is looked at meanwhile: what is
// written is sent later, with its epoch.

import { execFileSync } from 'node:child_process';
import { randomFillSync } from 'node:crypto';
import { truncateSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import { FIRMWARE_FILE } from '../card/firmware.js';
import { QemuCard } from '../card/qemu.js';
import { DEFAULT_SETTINGS } from '../card/settings.js';
import { Failure } from '../failure.js';
import { Cable } from '../front-end/cable.js';
import { Register, STATUS_BSY, STATUS_ERR } from '../front-end/front-end.js';
import { type Nbdkit, withNbdkit } from './nbdkit.js';
import type { Benchmark, BenchOptions, Figure } from './report.js';

/** More than the card's RAM caches: what was read first is then on the SD card alone. */
const IMAGE_BYTES = 64 << 20;
const STORE_BYTES = 256 << 20;
/** Blocks from one read of the SD card to the next: more than the card reads ahead. */
const STRIDE = 47;
/** Of the commands that read the whole image once, and of a long write: 128 KiB. */
const PRIME_SECTORS = 256;
const BLOCK_SECTORS = 8;
const BLOCKS = 64;
const QUICK_COUNT = 9;
const NS_PER_INSTRUCTION = 1;
const CMD_IDENTIFY_DEVICE = 0xec;
const CMD_READ_DMA = 0xc8;
const CMD_WRITE_DMA = 0xca;
const CMD_FLUSH_CACHE = 0xe7;
/** [ATA-6]: Ultra DMA mode 2 moves 33.3 MB/s. */
const UDMA2_BLOCK_US = (BLOCK_SECTORS * 512) / 33.3;
/** A Zynq-7000 of the slowest grade. */
const CORE_MHZ = 667;

const ENGINES = [
  { engine: 'aot', program: 'ribbon-card-qemu.elf', readBar: 8_000, writeBar: 16_000 },
  { engine: 'wasm3', program: 'ribbon-card-qemu-wasm3.elf', readBar: 80_000, writeBar: 160_000 },
] as const;

class Meter {
  readonly #card: QemuCard;
  readonly #cable: Cable;

  constructor(card: QemuCard) {
    this.#card = card;
    this.#cable = new Cable([card.frontEnd]);
  }

  /** The card's count, once it is asleep: it stands still for 3 ms of this machine's time. */
  async settled(): Promise<number> {
    let last = this.#card.busyTicks().ticks;
    for (;;) {
      await sleep(3);
      const { ticks } = this.#card.busyTicks();
      if (ticks === last) return ticks;
      last = ticks;
    }
  }

  instructions(ticks: number): number {
    return ((ticks >>> 0) * 1e6) / this.#card.busyTicks().perMs / NS_PER_INSTRUCTION;
  }

  async command(code: number, lba: number, sectors = BLOCK_SECTORS): Promise<void> {
    const cable = this.#cable;
    cable.writeAddress(lba, sectors);
    cable.writeRegister(Register.DEVICE, 0xe0 | (lba >> 24));
    cable.writeRegister(Register.COMMAND, code);
    const deadline = Date.now() + 30_000;
    for (;;) {
      const status = cable.readAlternateStatus();
      const dma = cable.dmaBlock();
      const pio = cable.dataBlock();
      if (dma !== null) {
        // Other data each time: zeros, or what is there already, would cost the card less.
        if (code === CMD_WRITE_DMA) randomFillSync(dma);
        cable.advanceDma(dma.length);
      } else if (pio !== null) cable.advanceData(pio.length);
      else if ((status & STATUS_BSY) === 0) {
        if ((cable.readRegister(Register.STATUS) & STATUS_ERR) !== 0) throw new Error(`command ${code} failed`);
        return;
      } else await new Promise((done) => setImmediate(done));
      if (Date.now() > deadline) throw new Error(`command ${code} does not end`);
    }
  }

  /** The median over all blocks from `first` on: a timer of the network that fires in between spoils some of them. */
  async median(code: number, count: number, first = 0, stride = 1, sectors = BLOCK_SECTORS): Promise<number> {
    const counts: number[] = [];
    for (let i = 0; i < count; i++) {
      const before = await this.settled();
      await this.command(code, (first + (i % BLOCKS) * stride) * BLOCK_SECTORS, sectors);
      counts.push(this.instructions((await this.settled()) - before));
    }
    counts.sort((a, b) => a - b);
    return counts[Math.floor(counts.length / 2)];
  }

  async idleSecond(seconds: number): Promise<number> {
    const before = await this.settled();
    await sleep(seconds * 1000);
    return this.instructions(this.#card.busyTicks().ticks - before) / seconds;
  }
}

type Engine = (typeof ENGINES)[number];

/** Switches a card on and hands `measure` what counts its instructions. */
async function withCard<T>(
  { engine, program }: Engine,
  { path, folder }: Nbdkit,
  measure: (meter: Meter, card: QemuCard) => Promise<T>,
): Promise<T> {
  const storeFile = join(folder, 'sd');
  writeFileSync(storeFile, '');
  truncateSync(storeFile, STORE_BYTES);
  const card = new QemuCard({
    program: fileURLToPath(new URL(`../../boards/${program}`, import.meta.url)),
    firmware: fileURLToPath(FIRMWARE_FILE),
    settings: { ...DEFAULT_SETTINGS, exportName: 'bench' },
    path,
    storeFile,
    countInstructions: true,
  });
  let started = '';
  card.onLog = (_, line) => {
    if (line.includes('engine=')) started = line;
  };
  try {
    await card.start();
    if (!started.includes(`engine=${engine}`)) {
      throw new Failure(
        `${program} runs "${started}", not ${engine}: "npm run build:board" builds it for this firmware`,
      );
    }
    return await measure(new Meter(card), card);
  } finally {
    await card.stop(0);
  }
}

function measureEngine(of: Engine, options: BenchOptions, server: Nbdkit): Promise<Figure[]> {
  const { engine, readBar, writeBar } = of;
  return withCard(of, server, async (meter, card) => {
    const count = options.quick ? QUICK_COUNT : 101;
    await meter.command(CMD_IDENTIFY_DEVICE, 0);
    const boot = meter.instructions(await meter.settled());
    const identify = await meter.median(CMD_IDENTIFY_DEVICE, count);
    for (let lba = 0; lba < IMAGE_BYTES / 512; lba += PRIME_SECTORS)
      await meter.command(CMD_READ_DMA, lba, PRIME_SECTORS);
    const last = IMAGE_BYTES / 4096 - BLOCKS;
    const read = await meter.median(CMD_READ_DMA, count, last);
    const storeReads = card.statistics().storeBlocksRead;
    const stored = await meter.median(CMD_READ_DMA, Math.min(count, BLOCKS), 0, STRIDE);
    if (card.statistics().storeBlocksRead - storeReads < Math.min(count, BLOCKS)) {
      throw new Error('the blocks that were to be read from the SD card were not');
    }
    const written = await meter.median(CMD_WRITE_DMA, count, last);
    await meter.command(CMD_FLUSH_CACHE, 0);
    await sleep(500);
    const idle = await meter.idleSecond(options.quick ? 1 : 5);
    server.kill();
    while (card.statistics().linkState === 'up') await sleep(10);
    await meter.command(CMD_WRITE_DMA, last * BLOCK_SECTORS);
    const write = await meter.median(CMD_WRITE_DMA, count, last);
    const longWrite = await meter.median(CMD_WRITE_DMA, count, last, 0, PRIME_SECTORS);
    const unit = 'instructions';
    const share = read / CORE_MHZ / UDMA2_BLOCK_US;
    return [
      { name: `${engine}: 4 KiB read hit from RAM`, value: read, unit, bar: readBar, atMost: true },
      {
        name: `${engine}: that, at ${CORE_MHZ} MHz and one a cycle, of the wire time at UDMA2`,
        value: 100 * share,
        unit: '%',
      },
      { name: `${engine}: 4 KiB read hit from the SD card`, value: stored, unit },
      { name: `${engine}: 4 KiB write acknowledged at stored`, value: write, unit, bar: writeBar, atMost: true },
      {
        name: `${engine}: that, of the wire time at UDMA2`,
        value: (100 * write) / CORE_MHZ / UDMA2_BLOCK_US,
        unit: '%',
      },
      { name: `${engine}: that, while connected to the image server`, value: written, unit },
      { name: `${engine}: 128 KiB write acknowledged at stored`, value: longWrite, unit },
      { name: `${engine}: IDENTIFY DEVICE`, value: identify, unit },
      { name: `${engine}: an idle second`, value: idle, unit },
      { name: `${engine}: power-on to the first answered command, asleep time not counted`, value: boot, unit },
    ];
  });
}

/** Two of the figures again, those that nothing on this machine has a part in, without reading the whole image: for a test that they are the same. */
export async function measureAgain(): Promise<Figure[]> {
  const figures: Figure[] = [];
  for (const of of ENGINES) {
    await withNbdkit(IMAGE_BYTES, (server) =>
      withCard(of, server, async (meter) => {
        const unit = 'instructions';
        await meter.command(CMD_IDENTIFY_DEVICE, 0);
        await meter.settled();
        const identify = await meter.median(CMD_IDENTIFY_DEVICE, QUICK_COUNT);
        const first = IMAGE_BYTES / 4096 - BLOCKS;
        await meter.command(CMD_READ_DMA, first * BLOCK_SECTORS, PRIME_SECTORS);
        const read = await meter.median(CMD_READ_DMA, QUICK_COUNT, first);
        figures.push({ name: `${of.engine}: IDENTIFY DEVICE`, value: identify, unit });
        figures.push({ name: `${of.engine}: 4 KiB read hit from RAM`, value: read, unit });
      }),
    );
  }
  return figures;
}

const benchmark: Benchmark = {
  title: 'instruction budget of the card on a Cortex-A9 (QEMU, -icount)',
  async run(options, onProgress) {
    try {
      execFileSync('qemu-system-arm', ['--version'], { stdio: 'ignore' });
    } catch {
      throw new Failure('qemu-system-arm is not installed');
    }
    const figures: Figure[] = [];
    for (const engine of ENGINES) {
      onProgress(`arm: ${engine.engine}`);
      figures.push(...(await withNbdkit(IMAGE_BYTES, (server) => measureEngine(engine, options, server))));
    }
    return figures;
  },
};

export default benchmark;
