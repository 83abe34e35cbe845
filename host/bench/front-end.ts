// `ribbon bench front-end`: what the card can do when the PC costs nothing. A driver writes the taskfile registers one by one,
// takes DRQ data blocks in bulk and reads Status, with an image server behind the card.

import fs from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import { loadFirmware } from '../card/firmware.js';
import { InProcessCard } from '../card/in-process.js';
import { DEFAULT_SETTINGS } from '../card/settings.js';
import { Cable } from '../front-end/cable.js';
import { Register, STATUS_BSY, STATUS_DRQ, STATUS_ERR } from '../front-end/front-end.js';
import { ImageServer } from '../server/server.js';
import { Store } from '../store/store.js';
import type { Benchmark, BenchOptions, Figure } from './report.js';

const CMD_READ_SECTORS = 0x20;
export const CMD_READ_MULTIPLE = 0xc4;
const CMD_SET_MULTIPLE_MODE = 0xc6;
const DEVICE_LBA = 0x40;
const SECTORS = 8;
export const IMAGE_SIZE = 32 << 20;

const benchmark: Benchmark = {
  title: '4 KiB reads that hit the cache, driven at the front end, no PC, one core',
  async run(options: BenchOptions, onProgress): Promise<Figure[]> {
    const folder = fs.mkdtempSync(path.join(os.tmpdir(), 'ribbon-bench-'));
    const store = await Store.open(folder);
    await store.images.create('bench', IMAGE_SIZE);
    const socket = path.join(folder, 'nbd.sock');
    const server = new ImageServer({ exports: store, listen: [{ kind: 'unix', path: socket }] });
    await server.listen();
    const card = new InProcessCard({
      firmware: loadFirmware(),
      settings: { ...DEFAULT_SETTINGS, exportName: 'bench' },
      path: { address: { path: socket } },
    });
    try {
      const cable = new Cable([card.frontEnd]);
      await card.start();
      const count = options.quick ? 20_000 : 500_000;
      const figures: Figure[] = [];
      for (const [name, command] of [
        ['READ MULTIPLE, one DRQ data block', CMD_READ_MULTIPLE],
        ['READ SECTORS, eight DRQ data blocks', CMD_READ_SECTORS],
      ] as const) {
        onProgress(name);
        setMultiple(cable);
        await warm(cable, command);
        figures.push({ name: `4K read hit, ${name}`, value: rate(cable, command, count), unit: '/s', bar: 100_000 });
      }
      return figures;
    } finally {
      await card.stop();
      await server.close();
      await store.close();
      fs.rmSync(folder, { recursive: true });
    }
  },
};

export default benchmark;

export function setMultiple(cable: Cable): void {
  cable.writeRegister(Register.SECTOR_COUNT, SECTORS);
  cable.writeRegister(Register.COMMAND, CMD_SET_MULTIPLE_MODE);
  if (cable.readRegister(Register.STATUS) & STATUS_ERR) throw new Error('SET MULTIPLE MODE was refused');
}

/** Reads every block once, so that the cache holds them all. */
export async function warm(cable: Cable, command: number): Promise<void> {
  for (let lba = 0; lba < IMAGE_SIZE / 512; lba += SECTORS) {
    issueRead(cable, lba, command);
    while (cable.readAlternateStatus() & STATUS_BSY) await new Promise(setImmediate);
    drain(cable);
  }
}

function issueRead(cable: Cable, lba: number, command: number): void {
  cable.writeRegister(Register.SECTOR_COUNT, SECTORS);
  cable.writeRegister(Register.LBA_LOW, lba & 0xff);
  cable.writeRegister(Register.LBA_MID, (lba >> 8) & 0xff);
  cable.writeRegister(Register.LBA_HIGH, (lba >> 16) & 0xff);
  cable.writeRegister(Register.DEVICE, DEVICE_LBA | (lba >> 24));
  cable.writeRegister(Register.COMMAND, command);
}

function drain(cable: Cable): void {
  let bytes = 0;
  for (;;) {
    const status = cable.readRegister(Register.STATUS);
    if (status & STATUS_ERR) throw new Error(`read failed: status ${status.toString(16)}`);
    if (!(status & STATUS_DRQ)) break;
    const block = cable.dataBlock();
    if (block === null) throw new Error('DRQ is set, but there is no DRQ data block');
    bytes += block.length;
    cable.advanceData(block.length);
  }
  if (bytes !== SECTORS * 512) throw new Error(`${bytes} bytes came instead of ${SECTORS * 512}`);
}

/** Commands a second over `count` reads spread over the image. */
export function rate(cable: Cable, command: number, count: number): number {
  const started = process.hrtime.bigint();
  for (let i = 0; i < count; i++) {
    issueRead(cable, ((i * 7919) % (IMAGE_SIZE / 4096)) * SECTORS, command);
    drain(cable);
  }
  return (count * 1e9) / Number(process.hrtime.bigint() - started);
}
