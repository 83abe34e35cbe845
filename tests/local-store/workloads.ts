// Scripted work for a card whose power goes at any moment: short, and between them through every path of the store.

import type { CardSettings } from '../../host/card/settings.js';
import { Random } from '../../host/fuzz/random.js';
import type { StoreRig } from './rig.js';

export interface Workload {
  name: string;
  settings?: Partial<CardSettings>;
  sectors?: number;
  /** Of each operation of the store; otherwise it is done at once. */
  storeMs?: number;
  /** Stops by itself when rig.cut is true. */
  run(rig: StoreRig): void;
}

/** Runs the steps as long as there is power. */
function steps(rig: StoreRig, count: number, step: (i: number) => void): void {
  for (let i = 0; i < count && !rig.cut; i++) step(i);
}

export const WORKLOADS: Workload[] = [
  {
    name: 'small writes with the server there',
    settings: { epochAgeMs: 50 },
    run(rig) {
      steps(rig, 14, (i) => {
        rig.write((i * 13) % 60, 1 + (i % 5));
        if (i % 3 === 2) rig.pass(30);
      });
      if (!rig.cut) rig.pass(1500);
    },
  },
  {
    name: 'overwrites of the same few blocks without a server',
    storeMs: 1,
    run(rig) {
      rig.setReachable(false);
      steps(rig, 12, (i) => rig.write(8 * (i % 3) + (i % 2), 3 + (i % 7)));
    },
  },
  {
    name: 'commands of many chunks',
    settings: { epochAgeMs: 20 },
    run(rig) {
      steps(rig, 4, (i) => {
        rig.write(i * 100 + 3, 700);
        rig.write(i * 50, 9);
        rig.pass(25);
      });
    },
  },
  {
    name: 'reads, fills, flushes and a link that comes and goes',
    storeMs: 1,
    settings: { epochAgeMs: 40 },
    run(rig) {
      steps(rig, 6, (i) => {
        rig.read(i * 300, 64);
        rig.write(i * 300 + 2, 5);
        if (i === 2) rig.setReachable(false);
        if (i === 4) rig.setReachable(true);
        if (!rig.cut) rig.flush();
        rig.pass(260);
      });
      if (!rig.cut) rig.pass(3000);
    },
  },
  {
    name: 'writes acknowledged when received, several on their way to the store',
    storeMs: 4,
    settings: { acknowledgementPoint: 'received', epochAgeMs: 30 },
    run(rig) {
      steps(rig, 10, (i) => {
        rig.store.holdFlushes = i % 4 !== 3;
        if (i % 4 === 3) rig.store.release();
        rig.write(i * 5, 6);
        rig.pass(3);
      });
      rig.store.release();
      if (!rig.cut) rig.pass(600);
    },
  },
  {
    name: 'flushes of writes that were acknowledged when received',
    storeMs: 4,
    settings: { acknowledgementPoint: 'received' },
    run(rig) {
      steps(rig, 8, (i) => {
        rig.write(i * 5, 6);
        if (!rig.cut) rig.write(i * 5 + 200, 3);
        if (!rig.cut) rig.flush();
      });
    },
  },
];

const MERGES_SECTORS = 20_000;

/** Too long for a cut at every operation: the log is full of what is not committed, and merged to make room. */
export const MERGES: Workload = {
  name: 'a full log that is merged',
  storeMs: 1,
  sectors: MERGES_SECTORS,
  run(rig) {
    const random = new Random(3);
    rig.setReachable(false);
    steps(rig, 260, () => rig.write(random.below(MERGES_SECTORS - 260), random.between(1, 250), 60_000));
  },
};

const LOG_START = 16;
const SEGMENT = 256;

export function isSummary(block: number): boolean {
  return block >= LOG_START && (block - LOG_START) % SEGMENT === SEGMENT - 1;
}
