// What is left of a run when it is over: plain data, so that it can travel between threads.

import type { RunResult } from './run.js';

export interface RunSummary {
  seed: number;
  /** Null: all is well. */
  violation: { oracle: string; message: string } | null;
  simulatedUs: number;
  /** How long the run has taken in real time. */
  realMs: number;
  events: number;
  digest: number;
  commands: number;
  errors: number;
  longestUs: number;
  generations: number;
  sectorsChecked: number;
  powerCuts: number;
  writesAtRisk: number;
  connections: number;
  faults: [kind: string, count: number][];
}

export function summarise(result: RunResult, realMs: number): RunSummary {
  const { scenario, violation, lastOperation: _, faults, ...numbers } = result;
  return {
    ...numbers,
    seed: scenario.seed,
    violation: violation === null ? null : { oracle: violation.oracle, message: violation.message },
    realMs,
    faults: [...faults],
  };
}
