// A worker thread of the pool: runs the seeds that it is given, one after the other.

import { parentPort, workerData } from 'node:worker_threads';
import type { Batch } from './pool.js';
import { run } from './run.js';
import { drawScenario } from './scenario.js';
import { summarise } from './summary.js';

const { firmware, length } = workerData as Batch;
const port = parentPort!;

port.on('message', async (seed: number) => {
  const started = performance.now();
  const result = await run(drawScenario(seed, length), { firmware });
  port.postMessage(summarise(result, performance.now() - started));
});
