// `ribbon bench ata`: what a PC gets from its disk through the card in this process, against v86's own IDE disk in memory. The same
// guest boots the same image on each and measures itself, by DMA and by PIO.

import { readFileSync } from 'node:fs';
import { mkdtemp, rm } from 'node:fs/promises';
import os from 'node:os';
import path from 'node:path';
import { buildDemoImage } from '../../tools/demo-image.js';
import { Cable } from '../front-end/cable.js';
import { GuestShell } from '../pc/shell.js';
import { V86Pc } from '../pc/v86.js';
import { Simulation } from '../sim/simulation.js';
import type { Benchmark, BenchOptions, Figure } from './report.js';

const BOOT_TIMEOUT_MS = 600_000;
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
  bar?: number;
}

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
    name: 'sequential writes',
    unit: 'MB/s',
    readAhead: 2048,
    command: (count) => `dd if=/dev/zero of=/dev/sda2 bs=1M count=${count} conv=fsync`,
    count: 48,
    blockSize: 1 << 20,
    bar: 1,
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

/** Runs of each measurement in one boot; the best counts: whatever else the machine does only takes away. */
const REPEATS = 5;
const QUICK_REPEATS = 2;

const benchmark: Benchmark = {
  title: "a PC's disk through the card, against v86's own IDE disk",
  async run(options: BenchOptions, onProgress): Promise<Figure[]> {
    const image = await buildDemoImage((percent, what) => onProgress(`demo image: ${what} ${Math.round(percent)} %`));
    const card = await onCard(image, (shell) => measureAll(shell, options, (text) => onProgress(`card: ${text}`)));
    const builtIn = await onBuiltInDisk(image, (shell) =>
      measureAll(shell, options, (text) => onProgress(`v86's own disk: ${text}`)),
    );
    return [...card].map(([name, { value, measurement }]) => ({
      name,
      value,
      unit: measurement.unit,
      peer: { name: "v86's own disk", value: builtIn.get(name)?.value ?? Number.NaN },
      ...(measurement.bar === undefined ? {} : { bar: measurement.bar }),
    }));
  },
};

export default benchmark;

type Results = Map<string, { value: number; measurement: Measurement }>;

async function onCard(image: string, measure: (shell: GuestShell) => Promise<Results>): Promise<Results> {
  const folder = await mkdtemp(path.join(os.tmpdir(), 'ribbon-bench-'));
  try {
    const simulation = await Simulation.start(
      {
        card: 'inproc',
        disks: [{ exportName: 'disk' }],
        images: { store: path.join(folder, 'store'), makeImage: async () => image, files: {} },
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
      return await onPc(await V86Pc.create({ cables: [simulation.cable, new Cable([])] }), measure);
    } finally {
      await simulation.stop();
    }
  } finally {
    await rm(folder, { recursive: true, force: true });
  }
}

async function onBuiltInDisk(image: string, measure: (shell: GuestShell) => Promise<Results>): Promise<Results> {
  const content = readFileSync(image);
  const disk = content.buffer.slice(content.byteOffset, content.byteOffset + content.length) as ArrayBuffer;
  return onPc(await V86Pc.create({ builtInDisk: disk }), measure);
}

async function onPc(pc: V86Pc, measure: (shell: GuestShell) => Promise<Results>): Promise<Results> {
  try {
    const shell = new GuestShell(pc);
    await pc.start();
    await shell.ready(BOOT_TIMEOUT_MS);
    return await measure(shell);
  } finally {
    await pc.stop();
  }
}

async function measureAll(
  shell: GuestShell,
  options: BenchOptions,
  onProgress: (text: string) => void,
): Promise<Results> {
  const results: Results = new Map();
  // The writes go over the data partition.
  await runInGuest(shell, 'umount /data');
  for (const mode of MODES) {
    await runInGuest(shell, `ata-mode ${mode}`);
    for (const measurement of MEASUREMENTS) {
      onProgress(`${mode.toUpperCase()}, ${measurement.name}`);
      const repeats = options.quick ? QUICK_REPEATS : REPEATS;
      const value = await measureBest(shell, measurement, repeats);
      results.set(`${mode.toUpperCase()}, ${measurement.name}`, { value, measurement });
    }
  }
  return results;
}

/** The first run is not counted: it fills the cache. */
async function measureBest(shell: GuestShell, measurement: Measurement, repeats: number): Promise<number> {
  const { count, readAhead, command } = measurement;
  const prepare = `sync; echo 3 > /proc/sys/vm/drop_caches; blockdev --setra ${readAhead} /dev/sda`;
  let best = 0;
  for (let i = 0; i <= repeats; i++) {
    const output = await runInGuest(shell, `${prepare}; time ${command(count)}`);
    const [, minutes, rest] = /^real\s+(\d+)m ?([0-9.]+)s/m.exec(output) ?? [];
    const seconds = 60 * Number(minutes) + Number(rest);
    if (!(seconds > 0)) throw new Error(`the shell reports no time: ${output}`);
    const requests = count / seconds;
    const value = measurement.unit === 'MB/s' ? (requests * measurement.blockSize) / 1e6 : requests;
    if (i > 0) best = Math.max(best, value);
  }
  return best;
}

async function runInGuest(shell: GuestShell, command: string): Promise<string> {
  const parts: Buffer[] = [];
  const status = await shell.run(command, (bytes) => parts.push(bytes));
  const output = Buffer.concat(parts).toString('latin1');
  if (status !== 0) throw new Error(`"${command}" failed in the guest with status ${status}: ${output}`);
  return output;
}
