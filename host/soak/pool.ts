// Runs many seeds, in worker threads where there is more than one job. Results come back in no particular order; each is the
// same wherever it ran.

import { Worker } from 'node:worker_threads';
import type { RunSummary } from './summary.js';

export interface PoolOptions {
  firmware: WebAssembly.Module;
  /** First seed, and how many. */
  first: number;
  count: number;
  /** Operations in a run. */
  length: number;
  jobs: number;
  /** Called for every run; false stops the rest. */
  onResult: (summary: RunSummary) => boolean;
}

/** What a worker is told. */
export interface Batch {
  firmware: WebAssembly.Module;
  length: number;
}

/** Resolves when every seed has run, or onResult() has answered false. */
export async function runSeeds({ firmware, first, count, length, jobs, onResult }: PoolOptions): Promise<void> {
  let next = first;
  const end = first + count;
  let stopped = false;
  const work = (worker: Worker): Promise<void> =>
    new Promise((resolve, reject) => {
      const give = (): void => {
        if (stopped || next >= end) resolve();
        else worker.postMessage(next++);
      };
      worker.on('message', (summary: RunSummary) => {
        if (!stopped && !onResult(summary)) stopped = true;
        give();
      });
      worker.on('error', reject);
      give();
    });
  const workers = Array.from(
    { length: Math.min(jobs, count) },
    () => new Worker(new URL('./worker.js', import.meta.url), { workerData: { firmware, length } satisfies Batch }),
  );
  try {
    await Promise.all(workers.map(work));
  } finally {
    await Promise.all(workers.map((worker) => worker.terminate()));
  }
}
