// What a PC gets from each card, in the same run: sequential reads that the card's RAM has, and writes, by DMA commands of 128 KiB. The PC is a
// loop over the cable in this process, so that the card and the way to it are all that is measured; the card in this process is the peer.

import { setTimeout as sleep } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import type { Card } from '../card/card.js';
import { FIRMWARE_FILE, loadFirmware } from '../card/firmware.js';
import { InProcessCard } from '../card/in-process.js';
import type { NetworkPath } from '../card/network.js';
import { PosixCard } from '../card/posix.js';
import { QemuCard } from '../card/qemu.js';
import { DEFAULT_SETTINGS } from '../card/settings.js';
import { Failure } from '../failure.js';
import { Cable } from '../front-end/cable.js';
import { Register, STATUS_BSY, STATUS_ERR } from '../front-end/front-end.js';
import { withNbdkit } from './nbdkit.js';
import type { Benchmark, Figure } from './report.js';

const IMAGE_BYTES = 16 << 20;
const COMMAND_SECTORS = 256;
const CMD_READ_DMA = 0xc8;
const CMD_WRITE_DMA = 0xca;

const FIRMWARE = fileURLToPath(FIRMWARE_FILE);
const program = (name: string): string => fileURLToPath(new URL(`../../boards/${name}`, import.meta.url));

type MakeCard = (path: NetworkPath) => Card;
const settings = { ...DEFAULT_SETTINGS, exportName: 'bench' };
const MEMORY_SIZE = 64 << 20;
const CARDS: [string, MakeCard][] = [
  [
    'in process, V8',
    (path) => new InProcessCard({ firmware: loadFirmware(), settings, path, memorySize: MEMORY_SIZE }),
  ],
  ...(['aot', 'wasm3'] as const).map((engine): [string, MakeCard] => [
    `Linux process, ${engine}`,
    (path) =>
      new PosixCard({
        program: program('ribbon-card'),
        firmware: FIRMWARE,
        engine,
        settings,
        path,
        memorySize: MEMORY_SIZE,
      }),
  ]),
  ...(
    [
      ['aot', 'ribbon-card-qemu.elf'],
      ['wasm3', 'ribbon-card-qemu-wasm3.elf'],
    ] as const
  ).map(([engine, elf]): [string, MakeCard] => [
    `QEMU, ${engine}`,
    (path) => new QemuCard({ program: program(elf), firmware: FIRMWARE, settings, path }),
  ]),
];

async function command(cable: Cable, code: number, lba: number): Promise<void> {
  cable.writeAddress(lba, COMMAND_SECTORS);
  cable.writeRegister(Register.DEVICE, 0xe0);
  cable.writeRegister(Register.COMMAND, code);
  for (;;) {
    const block = cable.dmaBlock();
    if (block !== null) cable.advanceDma(block.length);
    else if ((cable.readAlternateStatus() & STATUS_BSY) !== 0) await new Promise((done) => setImmediate(done));
    else if ((cable.readRegister(Register.STATUS) & STATUS_ERR) !== 0) throw new Failure(`command ${code} failed`);
    else return;
  }
}

/** MB/s over the whole image. */
async function pass(cable: Cable, code: number): Promise<number> {
  const start = performance.now();
  for (let lba = 0; lba < IMAGE_BYTES / 512; lba += COMMAND_SECTORS) await command(cable, code, lba);
  return IMAGE_BYTES / 1e3 / (performance.now() - start);
}

function median(values: number[]): number {
  return values.sort((a, b) => a - b)[Math.floor(values.length / 2)];
}

async function measure(make: MakeCard, rounds: number): Promise<{ start: number; read: number; write: number }> {
  return await withNbdkit(IMAGE_BYTES, async ({ path }) => {
    const begun = performance.now();
    const card = make(path);
    try {
      await card.start();
      const start = performance.now() - begun;
      const cable = new Cable([card.frontEnd]);
      await pass(cable, CMD_READ_DMA); // from the server into RAM
      const reads: number[] = [];
      const writes: number[] = [];
      for (let round = 0; round < rounds; round++) {
        reads.push(await pass(cable, CMD_READ_DMA));
        writes.push(await pass(cable, CMD_WRITE_DMA));
        while (card.statistics().lagBytes > 0) await sleep(20);
      }
      return { start, read: median(reads), write: median(writes) };
    } finally {
      await card.stop(0);
    }
  });
}

const benchmark: Benchmark = {
  title: 'sequential throughput of every card, beside the one in this process',
  async run(options, onProgress) {
    const figures: Figure[] = [];
    let peer: { read: number; write: number } | null = null;
    for (const [name, make] of CARDS) {
      onProgress(`cards: ${name}`);
      const { start, read, write } = await measure(make, options.quick ? 3 : 15);
      const against = (value: number | undefined): Partial<Figure> =>
        value === undefined ? {} : { peer: { name: CARDS[0][0], value } };
      figures.push({ name: `${name}: read hits`, value: read, unit: 'MB/s', ...against(peer?.read) });
      figures.push({ name: `${name}: writes`, value: write, unit: 'MB/s', ...against(peer?.write) });
      figures.push({ name: `${name}: power-on to the disk`, value: start, unit: 'ms' });
      peer ??= { read, write };
    }
    return figures;
  },
};

export default benchmark;
