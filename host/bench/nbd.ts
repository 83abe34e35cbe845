// The image server against nbdkit's file plugin and qemu-nbd on qcow2: same data, same fio, same run, medians of interleaved rounds.
//
// The data is random (nothing compresses or is found twice), so that every server moves the same bytes.

import { type ChildProcess, execFile, execFileSync, spawn } from 'node:child_process';
import crypto from 'node:crypto';
import fs from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import { fileURLToPath } from 'node:url';
import { promisify } from 'node:util';
import { Failure } from '../failure.js';
import type { Benchmark, BenchOptions, Figure } from './report.js';

const run = promisify(execFile);
const MAIN = fileURLToPath(new URL('../main.js', import.meta.url));
const EXPORT = 'bench';

interface Workload {
  name: string;
  unit: 'IOPS' | 'MiB/s';
  fio: string[];
  /** The least ratio to nbdkit's file plugin that issue 4 asks for. */
  bar: number;
}

const WORKLOADS: Workload[] = [
  { name: '4K random read QD1', unit: 'IOPS', fio: ['--rw=randread', '--bs=4k', '--iodepth=1'], bar: 1 },
  { name: '4K random read QD32', unit: 'IOPS', fio: ['--rw=randread', '--bs=4k', '--iodepth=32'], bar: 1.3 },
  { name: '1M sequential read', unit: 'MiB/s', fio: ['--rw=read', '--bs=1m', '--iodepth=4'], bar: 1 },
  {
    name: '4K random write QD32, flush every 128',
    unit: 'IOPS',
    fio: ['--rw=randwrite', '--bs=4k', '--iodepth=32', '--fsync=128'],
    bar: 0.7,
  },
  { name: '1M sequential write', unit: 'MiB/s', fio: ['--rw=write', '--bs=1m', '--iodepth=4'], bar: 0.7 },
];

interface Server {
  name: string;
  start(folder: string, socket: string): ChildProcess;
  exportName: string;
}

const RIBBON: Server = {
  name: 'ribbon',
  exportName: EXPORT,
  start: (folder, socket) =>
    spawn(process.execPath, [MAIN, 'serve', '--store', path.join(folder, 'store'), '--listen', `unix:${socket}`], {
      stdio: ['ignore', 'ignore', 'inherit'],
    }),
};
const NBDKIT: Server = {
  name: 'nbdkit file',
  exportName: '',
  start: (folder, socket) =>
    spawn('nbdkit', ['-f', '-U', socket, 'file', path.join(folder, 'nbdkit.img')], { stdio: 'ignore' }),
};
const QEMU: Server = {
  name: 'qemu-nbd qcow2',
  exportName: '',
  start: (folder, socket) =>
    spawn('qemu-nbd', ['-t', '-k', socket, '-f', 'qcow2', path.join(folder, 'qemu.qcow2')], { stdio: 'ignore' }),
};

const benchmark: Benchmark = {
  title: 'the image server, unix socket, fio nbd engine, random data, medians',
  async run(options: BenchOptions, onProgress): Promise<Figure[]> {
    for (const tool of ['fio', 'nbdkit', 'qemu-nbd', 'qemu-img', 'nbdcopy']) needTool(tool);
    const size = (options.quick ? 64 : 512) * 1024 * 1024;
    const rounds = options.quick ? 1 : 3;
    const seconds = options.quick ? 1 : 3;
    const folder = fs.mkdtempSync(path.join(workFolder(), 'ribbon-bench-'));
    try {
      onProgress('preparing');
      await prepare(folder, size);
      return await measure(folder, size, rounds, seconds, onProgress);
    } finally {
      fs.rmSync(folder, { recursive: true, force: true });
    }
  },
};

export default benchmark;

/** Memory-backed when there is room, so that the servers are compared and not the disk. */
function workFolder(): string {
  try {
    const status = fs.statfsSync('/dev/shm');
    if (status.bavail * status.bsize > 8 * 1024 ** 3) return '/dev/shm';
  } catch {}
  return os.tmpdir();
}

function needTool(tool: string): void {
  try {
    execFileSync(tool, ['--version'], { stdio: 'ignore' });
  } catch {
    throw new Failure(`this benchmark needs ${tool}: install it (Debian packages fio, nbdkit, qemu-utils, libnbd-bin)`);
  }
}

async function prepare(folder: string, size: number): Promise<void> {
  const raw = path.join(folder, 'nbdkit.img');
  const fd = fs.openSync(raw, 'w');
  const chunk = Buffer.alloc(4 * 1024 * 1024);
  for (let at = 0; at < size; at += chunk.length) fs.writeSync(fd, crypto.randomFillSync(chunk));
  fs.closeSync(fd);
  await run('qemu-img', ['convert', '-f', 'raw', '-O', 'qcow2', raw, path.join(folder, 'qemu.qcow2')]);
  await run(process.execPath, [MAIN, 'image', 'import', '--store', path.join(folder, 'store'), EXPORT, raw]);
}

async function measure(
  folder: string,
  size: number,
  rounds: number,
  seconds: number,
  onProgress: (text: string) => void,
): Promise<Figure[]> {
  const servers = [RIBBON, NBDKIT, QEMU];
  const results = new Map<string, number[]>();
  const add = (server: Server, name: string, value: number) => {
    const key = `${server.name}\n${name}`;
    results.set(key, [...(results.get(key) ?? []), value]);
  };
  const cold = '1M sequential read, server just started';
  for (let round = 0; round < rounds; round++) {
    for (const server of servers) {
      await withServer(server, folder, async (uri) => {
        const begin = performance.now();
        await run('nbdcopy', [uri, 'null:']);
        add(server, cold, size / 1024 ** 2 / ((performance.now() - begin) / 1000));
      });
    }
    for (const workload of WORKLOADS) {
      for (const server of servers) {
        onProgress(`round ${round + 1} of ${rounds}: ${workload.name}, ${server.name}`);
        await withServer(server, folder, async (uri) => {
          // Warm: everything has been read once.
          await run('nbdcopy', [uri, 'null:']);
          add(server, workload.name, await fio(uri, workload, size, seconds));
        });
      }
    }
  }
  const figure = (workload: { name: string; unit: string }, peer: Server, bar: number | null): Figure => ({
    name: workload.name,
    value: median(results.get(`ribbon\n${workload.name}`)!),
    unit: workload.unit,
    peer: { name: peer.name, value: median(results.get(`${peer.name}\n${workload.name}`)!) },
    ...(bar === null ? {} : { bar }),
  });
  return [
    ...WORKLOADS.map((workload) => figure(workload, NBDKIT, workload.bar)),
    figure({ name: cold, unit: 'MiB/s' }, NBDKIT, null),
    ...WORKLOADS.map((workload) => figure(workload, QEMU, 1)),
  ];
}

async function withServer(server: Server, folder: string, work: (uri: string) => Promise<void>): Promise<void> {
  const socket = path.join(folder, 'nbd.sock');
  fs.rmSync(socket, { force: true });
  const child = server.start(folder, socket);
  const ended = new Promise<void>((resolve) => child.once('exit', () => resolve()));
  try {
    for (let waited = 0; !fs.existsSync(socket); waited += 20) {
      if (child.exitCode !== null || waited > 60_000) throw new Failure(`${server.name} did not start`);
      await new Promise((resolve) => setTimeout(resolve, 20));
    }
    await work(`nbd+unix:///${server.exportName}?socket=${socket}`);
  } finally {
    child.kill('SIGTERM');
    await ended;
  }
}

async function fio(uri: string, workload: Workload, size: number, seconds: number): Promise<number> {
  const { stdout } = await run(
    'fio',
    [
      '--name=bench',
      '--ioengine=nbd',
      `--uri=${uri}`,
      `--size=${size}`,
      `--runtime=${seconds}`,
      '--time_based',
      '--randrepeat=0',
      '--norandommap',
      '--refill_buffers',
      '--output-format=json',
      ...workload.fio,
    ],
    { maxBuffer: 16 * 1024 * 1024 },
  );
  const job = JSON.parse(stdout.slice(stdout.indexOf('{'))).jobs[0];
  const side = workload.fio[0].includes('read') ? job.read : job.write;
  return workload.unit === 'IOPS' ? side.iops : side.bw_bytes / 1024 ** 2;
}

function median(values: number[]): number {
  const sorted = [...values].sort((a, b) => a - b);
  return sorted[Math.floor(sorted.length / 2)];
}
