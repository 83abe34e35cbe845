// The image server against nbdkit's file plugin and qemu-nbd on qcow2: same data, same client, same run.
//
// The data is random (nothing compresses or is found twice), so that every server moves the same bytes. All servers run all the time and
// are measured in turn, in short slices; what counts is the median of the ratios of each round, so that other load on the machine meets
// all alike. What ribbon does with written data after it has answered is waited for before another is measured, and shown.

import { type ChildProcess, execFile, execFileSync, spawn } from 'node:child_process';
import crypto from 'node:crypto';
import fs from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import { fileURLToPath } from 'node:url';
import { promisify } from 'node:util';
import { Failure } from '../failure.js';
import { needTools } from './need-tools.js';
import type { Benchmark, BenchOptions, Figure } from './report.js';

const run = promisify(execFile);
const MAIN = fileURLToPath(new URL('../main.js', import.meta.url));
const EXPORT = 'bench';
const MIB = 1024 * 1024;
const USER = 'bench';

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
const READS = WORKLOADS.filter(({ fio }) => fio[0].includes('read'));

interface Place {
  folder: string;
  socket: string;
  tls: boolean;
}

interface Server {
  name: string;
  exportName: string;
  command(place: Place): [string, ...string[]];
  /** Its data, for taking it out of the page cache. */
  data: string;
}

const RIBBON: Server = {
  name: 'ribbon',
  exportName: EXPORT,
  data: 'store',
  command: ({ folder, socket, tls }) => [
    process.execPath,
    ...[MAIN, 'serve', '--store', path.join(folder, 'store'), '--listen', `unix:${socket}`],
    ...(tls ? ['--config', path.join(folder, 'tls.json')] : []),
  ],
};
const NBDKIT: Server = {
  name: 'nbdkit file',
  exportName: '',
  data: 'nbdkit.img',
  command: ({ folder, socket, tls }) => [
    'nbdkit',
    ...['-f', '-U', socket],
    ...(tls ? ['--tls=require', `--tls-psk=${path.join(folder, 'keys.psk')}`] : []),
    ...['file', path.join(folder, 'nbdkit.img')],
  ],
};
const QEMU: Server = {
  name: 'qemu-nbd qcow2',
  exportName: '',
  data: 'qemu.qcow2',
  command: ({ folder, socket }) => ['qemu-nbd', '-t', '-k', socket, '-f', 'qcow2', path.join(folder, 'qemu.qcow2')],
};

/** Long enough for V8, and for the journal of the writes to go round once. */
const WARM_UP_SECONDS = 5;

interface Plan {
  size: number;
  seconds: number;
  rounds: number;
  roundsCold: number;
  /** For random reads: what a server does in its first second is not what it does. Sequential ones would begin again from the front. */
  secondsCold: number;
}

const benchmark: Benchmark = {
  title: 'the image server, unix socket, random data, medians of interleaved rounds',
  async run(options: BenchOptions, onProgress): Promise<Figure[]> {
    needTools(['fio', 'nbdkit', 'qemu-nbd', 'qemu-img', 'nbdcopy'], 'fio, nbdkit, qemu-utils, libnbd-bin');
    const plan: Plan = options.quick
      ? { size: 64 * MIB, seconds: 0.5, rounds: 3, roundsCold: 1, secondsCold: 1 }
      : { size: 512 * MIB, seconds: 1, rounds: 9, roundsCold: 5, secondsCold: 4 };
    const figures: Figure[] = [];
    await withFolder(memoryFolder(), plan, onProgress, async (folder) => {
      figures.push(...(await warm(folder, plan, onProgress)), ...(await encrypted(folder, plan, onProgress)));
    });
    await withFolder(os.tmpdir(), plan, onProgress, async (folder) => {
      figures.push(...(await cold(folder, plan, onProgress)));
    });
    return figures;
  },
};

export default benchmark;

/** Memory-backed when there is room, so that the servers are compared and not the disk. */
function memoryFolder(): string {
  try {
    const status = fs.statfsSync('/dev/shm');
    if (status.bavail * status.bsize > 8 * 1024 ** 3) return '/dev/shm';
  } catch {}
  return os.tmpdir();
}

async function withFolder(
  parent: string,
  plan: Plan,
  onProgress: (text: string) => void,
  work: (folder: string) => Promise<void>,
): Promise<void> {
  const folder = fs.mkdtempSync(path.join(parent, 'ribbon-bench-'));
  try {
    onProgress(`preparing in ${folder}`);
    await prepare(folder, plan.size);
    await work(folder);
  } finally {
    fs.rmSync(folder, { recursive: true, force: true });
  }
}

async function prepare(folder: string, size: number): Promise<void> {
  const raw = path.join(folder, 'nbdkit.img');
  const fd = fs.openSync(raw, 'w');
  const chunk = Buffer.alloc(4 * MIB);
  for (let at = 0; at < size; at += chunk.length) fs.writeSync(fd, crypto.randomFillSync(chunk));
  fs.closeSync(fd);
  await run('qemu-img', ['convert', '-f', 'raw', '-O', 'qcow2', raw, path.join(folder, 'qemu.qcow2')]);
  await run(process.execPath, [MAIN, 'image', 'import', '--store', path.join(folder, 'store'), EXPORT, raw]);
  const psk = crypto.randomBytes(32).toString('hex');
  fs.writeFileSync(path.join(folder, 'keys.psk'), `${USER}:${psk}\n`);
  const identities = { [USER]: { psk, rights: { '*': 'write' } } };
  fs.writeFileSync(path.join(folder, 'tls.json'), JSON.stringify({ identities, tls: { required: true } }));
}

// --- what is measured

/** One value for each server and round. */
class Rounds {
  private readonly values = new Map<string, number[]>();

  add(server: Server, value: number): void {
    this.values.set(server.name, [...(this.values.get(server.name) ?? []), value]);
  }

  figure(name: string, unit: string, peer: Server, bar: number | null): Figure {
    const own = this.values.get(RIBBON.name)!;
    const others = this.values.get(peer.name)!;
    const ratios = own.map((value, round) => value / others[round]).sort((a, b) => a - b);
    return {
      name,
      value: median(own),
      unit,
      peer: { name: peer.name, value: median(others) },
      ratio: { median: median(ratios), least: ratios[0], most: ratios.at(-1)! },
      ...(bar === null ? {} : { bar }),
    };
  }
}

/** Everything has been read once, and is in the page cache. */
async function warm(folder: string, plan: Plan, onProgress: (text: string) => void): Promise<Figure[]> {
  const servers = [RIBBON, NBDKIT, QEMU];
  const results = WORKLOADS.map(() => new Rounds());
  const digest: number[] = [];
  await withServers(servers, folder, false, async (running) => {
    for (const it of running) await run('nbdcopy', [it.uri, 'null:']);
    for (const [index, workload] of WORKLOADS.entries()) {
      // A server runs for months: the round in which V8 compiles is not counted.
      for (let round = -1; round < plan.rounds; round++) {
        onProgress(`warm: ${workload.name}, round ${round + 1} of ${plan.rounds}`);
        for (const it of inTurn(running, round)) {
          const seconds = round < 0 ? WARM_UP_SECONDS : plan.seconds;
          const { rate, bytesWritten } = await fio(it.uri, workload, { ...plan, seconds });
          if (round >= 0) results[index].add(it.server, rate);
          const restedMs = await rests(it.child);
          if (it.server === RIBBON && bytesWritten > 0 && restedMs > 0)
            digest.push(bytesWritten / MIB / (restedMs / 1000));
        }
      }
    }
  });
  return [
    ...WORKLOADS.map(({ name, unit, bar }, index) => results[index].figure(name, unit, NBDKIT, bar)),
    ...WORKLOADS.map(({ name, unit }, index) => results[index].figure(name, unit, QEMU, 1)),
    // Short runs may write too little for the digest to be seen.
    ...(digest.length === 0
      ? []
      : [{ name: 'digest of what was written, afterwards', value: median(digest), unit: 'MiB/s' }]),
  ];
}

/** On a disk, nothing in the page cache, the server just started. */
async function cold(folder: string, plan: Plan, onProgress: (text: string) => void): Promise<Figure[]> {
  const servers = [RIBBON, NBDKIT, QEMU];
  const results = READS.map(() => new Rounds());
  for (const [index, workload] of READS.entries()) {
    const seconds = workload.fio[0].includes('rand') ? plan.secondsCold : plan.seconds;
    for (let round = 0; round < plan.roundsCold; round++) {
      onProgress(`cold: ${workload.name}, round ${round + 1} of ${plan.roundsCold}`);
      for (const server of inTurn(servers, round)) {
        execFileSync('sync', ['-f', folder]);
        dropCache(path.join(folder, server.data));
        await withServers([server], folder, false, async ([{ uri }]) => {
          results[index].add(server, (await fio(uri, workload, { ...plan, seconds })).rate);
        });
      }
    }
  }
  const named = ({ name }: Workload) => `cold: ${name}`;
  return [
    ...READS.map((workload, index) => results[index].figure(named(workload), workload.unit, NBDKIT, null)),
    ...READS.map((workload, index) => results[index].figure(named(workload), workload.unit, QEMU, 1)),
  ];
}

/** fio's engine takes no TLS: nbdcopy does. */
async function encrypted(folder: string, plan: Plan, onProgress: (text: string) => void): Promise<Figure[]> {
  const copies: [name: string, unit: string, measure: (it: Running) => Promise<number>][] = [
    ['TLS: nbdcopy from the server', 'MiB/s', ({ uri }) => copyRate([uri, 'null:'], plan.size)],
    [
      'TLS: nbdcopy to the server, flush at the end',
      'MiB/s',
      ({ uri }) => copyRate(['--flush', path.join(folder, 'nbdkit.img'), uri], plan.size),
    ],
    [
      'TLS: 4K reads QD32 (nbdcopy)',
      'MiB/s',
      ({ uri }) => copyRate(['--request-size=4096', '--requests=32', uri, 'null:'], plan.size),
    ],
  ];
  const results = copies.map(() => new Rounds());
  await withServers([RIBBON, NBDKIT], folder, true, async (running) => {
    for (const { uri } of running) await run('nbdcopy', [uri, 'null:']);
    for (const [index, [name, , measure]] of copies.entries()) {
      for (let round = 0; round < plan.roundsCold; round++) {
        onProgress(`${name}, round ${round + 1} of ${plan.roundsCold}`);
        for (const it of inTurn(running, round)) {
          results[index].add(it.server, await measure(it));
          await rests(it.child);
        }
      }
    }
  });
  return copies.map(([name, unit], index) => results[index].figure(name, unit, NBDKIT, 0.8));
}

async function copyRate(parameters: string[], size: number): Promise<number> {
  const begin = performance.now();
  await run('nbdcopy', ['--connections=1', ...parameters]);
  return size / MIB / ((performance.now() - begin) / 1000);
}

// --- servers

interface Running {
  server: Server;
  child: ChildProcess;
  socket: string;
  uri: string;
}

/** The order of one round: none is always first. */
function inTurn<T>(all: T[], round: number): T[] {
  return all.map((_, index) => all[(index + round + all.length) % all.length]);
}

async function withServers(
  servers: Server[],
  folder: string,
  tls: boolean,
  work: (running: Running[]) => Promise<void>,
): Promise<void> {
  const running: Running[] = [];
  try {
    for (const server of servers) running.push(await start(server, folder, tls));
    await work(running);
  } finally {
    for (const { child } of running) {
      const ended = new Promise<void>((resolve) => child.once('exit', () => resolve()));
      if (child.exitCode !== null) continue;
      child.kill('SIGTERM');
      await ended;
    }
  }
}

async function start(server: Server, folder: string, tls: boolean): Promise<Running> {
  const socket = path.join(folder, `${server.data}.sock`);
  fs.rmSync(socket, { force: true });
  const [program, ...parameters] = server.command({ folder, socket, tls });
  const child = spawn(program, parameters, { stdio: ['ignore', 'ignore', 'inherit'] });
  for (let waited = 0; !fs.existsSync(socket); waited += 20) {
    if (child.exitCode !== null || waited > 60_000) throw new Failure(`${server.name} did not start`);
    await new Promise((resolve) => setTimeout(resolve, 20));
  }
  const query = `socket=${socket}${tls ? `&tls-psk-file=${path.join(folder, 'keys.psk')}` : ''}`;
  const uri = `nbd${tls ? 's' : ''}+unix://${tls ? `${USER}@` : ''}/${server.exportName}?${query}`;
  return { server, child, socket, uri };
}

/** Waits until the process has used no processor for 0.8 s; returns how long it went on before that. */
async function rests(child: ChildProcess): Promise<number> {
  const begin = performance.now();
  let used = processorTicks(child.pid!);
  let busyUntil = begin;
  while (performance.now() - busyUntil < 800) {
    await new Promise((resolve) => setTimeout(resolve, 100));
    const now = processorTicks(child.pid!);
    if (now > used + 1) {
      used = now;
      busyUntil = performance.now();
    }
  }
  return busyUntil - begin;
}

function processorTicks(pid: number): number {
  const fields = fs.readFileSync(`/proc/${pid}/stat`, 'utf8').split(') ')[1].split(' ');
  return Number(fields[11]) + Number(fields[12]);
}

/** Takes files that are on the disk out of the page cache. */
function dropCache(name: string): void {
  if (fs.statSync(name).isDirectory()) {
    for (const entry of fs.readdirSync(name)) dropCache(path.join(name, entry));
  } else {
    execFileSync('dd', [`if=${name}`, 'iflag=nocache', 'count=0'], { stdio: 'ignore' });
  }
}

async function fio(uri: string, workload: Workload, plan: Plan): Promise<{ rate: number; bytesWritten: number }> {
  const { stdout } = await run(
    'fio',
    [
      '--name=bench',
      '--ioengine=nbd',
      `--uri=${uri}`,
      `--size=${plan.size}`,
      `--runtime=${Math.round(plan.seconds * 1000)}ms`,
      '--time_based',
      '--randrepeat=0',
      '--norandommap',
      '--refill_buffers',
      '--output-format=json',
      ...workload.fio,
    ],
    { maxBuffer: 16 * MIB },
  );
  const job = JSON.parse(stdout.slice(stdout.indexOf('{'))).jobs[0];
  const side = workload.fio[0].includes('read') ? job.read : job.write;
  return { rate: workload.unit === 'IOPS' ? side.iops : side.bw_bytes / MIB, bytesWritten: job.write.io_bytes };
}

function median(values: number[]): number {
  const sorted = [...values].sort((a, b) => a - b);
  return sorted[Math.floor(sorted.length / 2)];
}
