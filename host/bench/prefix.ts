// `ribbon bench prefix`: real programs on a real ext4 file system, the network pulled in the middle and put back, and then e2fsck on every
// generation that the image server has kept: each must be a file system that a power cut could have left.
//
// What the programs do is recorded (host/bench/recording.ts) and done again by a PC in simulated time on the real firmware, line
// and image store (host/bench/simulated-rig.ts). The generations are read through the NBD server, as disk@N. The journal is
// replayed first, as every mount does; after that e2fsck must have nothing to say.

import { execFile } from 'node:child_process';
import fs from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import { promisify } from 'node:util';
import { openNbdImage } from '../local-store/nbd-image.js';
import { ImageServer } from '../server/server.js';
import type { Store } from '../store/store.js';
import { copyFiles, installPackages, type Recording, record, updateDatabase } from './recording.js';
import type { Benchmark, BenchOptions, Figure } from './report.js';
import { FAST_LINK, SimulatedRig } from './simulated-rig.js';

const run = promisify(execFile);
const MIB = 1 << 20;
const MEGABYTES = 64;
const PAUSE_MAX_MS = 3000;
/** The programs ran in memory: a PC with a disk gives the epochs time to become generations. */
const SLOWER = 10;

const benchmark: Benchmark = {
  title: 'e2fsck of every generation of runs in which the network was pulled and put back',
  async run(options: BenchOptions, onProgress): Promise<Figure[]> {
    const folder = fs.mkdtempSync(path.join(os.tmpdir(), 'ribbon-bench-'));
    try {
      // Small programs: every generation is checked whole.
      const programs = [installPackages(folder, true), updateDatabase(true), copyFiles(folder, true)];
      const recordings = await record(folder, MEGABYTES, options.quick ? programs.slice(1, 2) : programs, onProgress);
      const figures: Figure[] = [];
      for (const recording of recordings) {
        onProgress(`replaying: ${recording.name}`);
        const { store, lagOffline } = await replay(recording);
        const { checked, unclean } = await checkGenerations(
          store,
          folder,
          onProgress,
          options.quick ? 20 : Number.POSITIVE_INFINITY,
        );
        figures.push(
          { name: `${recording.name}: lag when the network is put back`, value: lagOffline / MIB, unit: 'MiB' },
          { name: 'generations checked', value: checked, unit: '', bar: 2 },
          { name: 'generations that e2fsck complains of', value: unclean, unit: '', bar: 0, atMost: true },
        );
      }
      return figures;
    } finally {
      fs.rmSync(folder, { recursive: true, force: true });
    }
  },
};

export default benchmark;

/** The network is down for the second third of the run. */
async function replay(recording: Recording): Promise<{ store: Store; lagOffline: number }> {
  const accesses = recording.accesses.filter((it) => it.kind !== 'read');
  const rig = new SimulatedRig({ seed: 4, link: FAST_LINK, image: recording.base, keepsEveryGeneration: true });
  let lagOffline = 0;
  await rig.run(async ({ pc }) => {
    let lastMs = accesses[0]?.atMs ?? 0;
    for (const [i, access] of accesses.entries()) {
      if (i === Math.floor(accesses.length / 3)) rig.setLink(false);
      if (i === Math.floor((2 * accesses.length) / 3)) {
        lagOffline = rig.card.lagBytes;
        rig.setLink(true);
      }
      await rig.sleep(Math.min((access.atMs - lastMs) * SLOWER, PAUSE_MAX_MS));
      lastMs = access.atMs;
      if (access.kind === 'flush') await pc.flush();
      else if (access.kind === 'write') await pc.write(access.offset / 512, access.data);
    }
    await rig.until(() => rig.card.lagBytes === 0);
  });
  if (!(await rig.backend.content()).equals(recording.end)) {
    throw new Error(`${recording.name}: the master is not the disk that was recorded`);
  }
  return { store: rig.backend.store, lagOffline };
}

async function checkGenerations(
  store: Store,
  folder: string,
  onProgress: (text: string) => void,
  limit: number,
): Promise<{ checked: number; unclean: number }> {
  await store.digestAll();
  const socket = path.join(folder, 'generations.sock');
  const server = new ImageServer({ exports: store, listen: [{ kind: 'unix', path: socket }] });
  await server.listen();
  const file = path.join(folder, 'generation');
  let checked = 0;
  let unclean = 0;
  try {
    // Generation 1 is empty, 2 the disk before the run.
    const generations = store.generations('disk').filter((it) => it.generation >= 2);
    for (const { generation } of generations.slice(-limit)) {
      onProgress(`e2fsck: generation ${generation}, ${checked} of ${generations.length}, ${unclean} unclean`);
      const image = await openNbdImage(`nbd+unix:///disk@${generation}?socket=${socket}`);
      const handle = await fs.promises.open(file, 'w');
      for (let at = 0; at < image.size; at += MIB) await handle.write(await image.read(at, MIB), 0, MIB, at);
      await handle.close();
      await image.close();
      checked += 1;
      if (!(await isClean(file))) unclean += 1;
    }
  } finally {
    await server.close();
  }
  return { checked, unclean };
}

async function isClean(file: string): Promise<boolean> {
  // 1: the journal was replayed.
  const replayed = await run('e2fsck', ['-y', '-E', 'journal_only', file]).then(
    () => 0,
    (error: { code?: number }) => error.code ?? 8,
  );
  if (replayed > 1) return false;
  return run('e2fsck', ['-f', '-n', file]).then(
    () => true,
    () => false,
  );
}
