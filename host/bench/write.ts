// `ribbon bench write`: what a write costs the PC and the line. Simulated time (host/bench/simulated-rig.ts), so that the figures are
// the same on every machine but for what the recorded programs happen to write.

import fs from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import { ACKNOWLEDGEMENT_POINTS, type AcknowledgementPoint } from '../card/settings.js';
import { Random } from '../fuzz/random.js';
import { copyFiles, installPackages, type Recording, record, updateDatabase, writtenBytes } from './recording.js';
import type { Benchmark, BenchOptions, Figure } from './report.js';
import { FAST_LINK, type Link, SimulatedRig, SLOW_LINK } from './simulated-rig.js';

const MIB = 1 << 20;
const SECTOR_SIZE = 512;
const BLOCK_SIZE = 4096;
/** A pause of the recorded PC longer than this is cut: nothing happens in it but an epoch that closes by its age. */
const PAUSE_MAX_MS = 3000;
const DAY_MS = 24 * 3600 * 1000;

const benchmark: Benchmark = {
  title: 'writes, in simulated time: acknowledgement, bytes on the line, and catching up after a day offline',
  async run(options: BenchOptions, onProgress): Promise<Figure[]> {
    const figures: Figure[] = [];
    for (const link of [FAST_LINK, SLOW_LINK]) {
      for (const point of ACKNOWLEDGEMENT_POINTS) {
        onProgress(`${point}, ${link.name}`);
        figures.push(...(await latencies(point, link, options.quick ? 200 : 1000)));
      }
    }
    figures.push(...(await wire(options.quick, onProgress)));
    onProgress('a day offline');
    figures.push(...(await dayOffline(options.quick ? DAY_MS / 48 : DAY_MS)));
    return figures;
  },
};

export default benchmark;

// Acknowledgement

/** A PC that writes 4 KiB anywhere, thinks for 5 to 35 ms, and writes again. */
async function latencies(point: AcknowledgementPoint, link: Link, count: number): Promise<Figure[]> {
  const image = Buffer.alloc(64 * MIB);
  const rig = new SimulatedRig({ seed: 1, link, image, settings: { acknowledgementPoint: point } });
  const random = new Random(5);
  const times: number[] = [];
  await rig.run(async ({ pc }) => {
    for (let i = 0; i < count; i++) {
      await rig.sleep(random.between(5, 35));
      const began = rig.nowMs;
      await pc.write(random.below(image.length / BLOCK_SIZE) * 8, halfRandom(random));
      times.push(rig.nowMs - began);
    }
  });
  times.sort((a, b) => a - b);
  const at = (share: number): number => times[Math.min(times.length - 1, Math.floor(times.length * share))];
  return (
    [
      ['p50', 0.5],
      ['p99', 0.99],
      ['p99.9', 0.999],
    ] as const
  ).map(([name, share]) => ({ name: `${point}, ${link.name}, ${name}`, value: at(share), unit: 'ms' }));
}

/** 4 KiB that shrink to about half. */
function halfRandom(random: Random): Buffer {
  const data = Buffer.alloc(BLOCK_SIZE);
  random.fill(data.subarray(0, BLOCK_SIZE / 2));
  return data;
}

// Bytes on the line

async function wire(quick: boolean, onProgress: (text: string) => void): Promise<Figure[]> {
  const folder = fs.mkdtempSync(path.join(os.tmpdir(), 'ribbon-bench-'));
  try {
    const programs = [installPackages(folder, quick), updateDatabase(quick), copyFiles(folder, quick)];
    const recordings = await record(folder, quick ? 64 : 192, programs, onProgress);
    const figures: Figure[] = [];
    let written = 0;
    let sent = 0;
    for (const recording of recordings) {
      onProgress(`replaying: ${recording.name}`);
      const bytes = await replay(recording);
      written += writtenBytes(recording);
      sent += bytes;
      figures.push({ name: `written by ${recording.name}`, value: writtenBytes(recording) / MIB, unit: 'MiB' });
      figures.push({ name: 'bytes on the line for each', value: bytes / writtenBytes(recording), unit: '' });
    }
    figures.push({
      name: 'bytes on the line for each byte written, all',
      value: sent / written,
      unit: '',
      bar: 0.5,
      atMost: true,
    });
    return figures;
  } finally {
    fs.rmSync(folder, { recursive: true, force: true });
  }
}

/** The PC does what was recorded, at its pace, and the line carries it. Returns the bytes of both directions that this took. */
async function replay(recording: Recording): Promise<number> {
  const rig = new SimulatedRig({ seed: 2, link: FAST_LINK, image: recording.base });
  let bytes = 0;
  await rig.run(async ({ pc }) => {
    const before = rig.wireBytes();
    let lastMs = recording.accesses[0]?.atMs ?? 0;
    for (const access of recording.accesses) {
      // Reads cost the line what the cache has not; they are not what is counted here.
      if (access.kind === 'read') continue;
      await rig.sleep(Math.min(access.atMs - lastMs, PAUSE_MAX_MS));
      lastMs = access.atMs;
      if (access.kind === 'flush') await pc.flush();
      else await pc.write(access.offset / SECTOR_SIZE, access.data);
    }
    await rig.until(() => rig.card.lagBytes === 0);
    bytes = rig.wireBytes() - before;
  });
  const content = await rig.backend.content();
  if (!content.equals(recording.end)) {
    throw new Error(`${recording.name}: the master is not the disk that was recorded`);
  }
  return bytes;
}

// A day offline

/** A machine that logs: 4 KiB into a ring of 64 MiB every 30 s, and the same 32 blocks of state every 10 minutes. */
async function dayOffline(offlineMs: number): Promise<Figure[]> {
  const image = Buffer.alloc(128 * MIB);
  const rig = new SimulatedRig({ seed: 3, link: SLOW_LINK, image });
  const random = new Random(9);
  let lag = 0;
  let tookMs = 0;
  let wireBytes = 0;
  let worstMs = 0;
  let waitedMs = 0;
  await rig.run(async ({ pc }) => {
    await pc.write(0, halfRandom(random));
    await rig.until(() => rig.card.lagBytes === 0);
    rig.setLink(false);
    const endMs = rig.nowMs + offlineMs;
    for (let i = 0; rig.nowMs < endMs; i++) {
      await rig.sleep(30_000);
      await pc.write(((i * BLOCK_SIZE) % (64 * MIB)) / SECTOR_SIZE, halfRandom(random));
      for (let state = 0; i % 20 === 0 && state < 32; state++) {
        await pc.write((96 * MIB + state * BLOCK_SIZE) / SECTOR_SIZE, halfRandom(random));
      }
    }
    lag = rig.card.lagBytes;
    const before = rig.wireBytes();
    rig.setLink(true);
    const upMs = rig.nowMs;
    await rig.until(() => rig.card.statistics().linkState === 'up');
    waitedMs = rig.nowMs - upMs;
    const startedMs = rig.nowMs;
    let caughtUp = false;
    // The PC goes on while the card catches up.
    while (!caughtUp) {
      await rig.sleep(500);
      caughtUp = rig.card.lagBytes === 0;
      if (caughtUp) break;
      const began = rig.nowMs;
      await pc.write((96 * MIB) / SECTOR_SIZE, halfRandom(random));
      worstMs = Math.max(worstMs, rig.nowMs - began);
    }
    tookMs = rig.nowMs - startedMs;
    wireBytes = rig.wireBytes() - before;
  });
  const hours = offlineMs / 3_600_000;
  const lineMs = (wireBytes * 8 * 1000) / SLOW_LINK.bitsPerSecond;
  return [
    { name: `${hours} h offline: lag when the line is back`, value: lag / MIB, unit: 'MiB' },
    { name: 'until the card is connected again', value: waitedMs / 1000, unit: 's' },
    { name: 'bytes on the line for each of the lag', value: wireBytes / lag, unit: '' },
    {
      name: 'from then until the lag is 0',
      value: tookMs / 1000,
      unit: 's',
      peer: { name: 'bytes / rate', value: lineMs / 1000 },
      bar: 1.5,
      atMost: true,
    },
    { name: 'longest write of the PC meanwhile', value: worstMs, unit: 'ms' },
  ];
}
