// Makes a failing run shorter: takes operations and faults out of its scenario as long as the run still fails in the same way
// (delta debugging). What is left is named on the command line by the numbers of the operations and faults that stay.

import { type RunOptions, type RunResult, run } from './run.js';
import type { Scenario } from './scenario.js';

/** Runs that shrinking may take. */
const RUNS_MAX = 400;

export interface Shrunk {
  scenario: Scenario;
  result: RunResult;
  runs: number;
}

/** `failed` is the result of a run that failed. `onRun` is told how far the shrinking has come. */
export async function shrink(
  failed: RunResult,
  options: RunOptions,
  onRun: (operations: number, faults: number) => void = () => {},
): Promise<Shrunk> {
  const oracle = failed.violation!.oracle;
  let best: Shrunk = { scenario: failed.scenario, result: failed, runs: 0 };
  const attempt = async (change: Partial<Pick<Scenario, 'operations' | 'faults'>>): Promise<boolean> => {
    if (best.runs >= RUNS_MAX) return false;
    const scenario = { ...best.scenario, ...change };
    const result = await run(scenario, options);
    best.runs += 1;
    onRun(best.scenario.operations.length, best.scenario.faults.length);
    if (result.violation?.oracle !== oracle) return false;
    best = { scenario, result, runs: best.runs };
    return true;
  };
  await dropAfterTheEnd(failed, attempt);
  let before: number;
  do {
    before = size(best.scenario);
    await reduce(
      () => best.scenario.faults,
      (faults) => attempt({ faults }),
    );
    await reduce(
      () => best.scenario.operations,
      (operations) => attempt({ operations }),
    );
  } while (size(best.scenario) < before && best.runs < RUNS_MAX);
  return best;
}

function size({ operations, faults }: Scenario): number {
  return operations.length + faults.length;
}

/** What the PC had not begun when the run failed has nothing to do with it, as a rule. */
async function dropAfterTheEnd(
  failed: RunResult,
  attempt: (change: Partial<Pick<Scenario, 'operations' | 'faults'>>) => Promise<boolean>,
): Promise<void> {
  const { operations, faults } = failed.scenario;
  const last = failed.lastOperation;
  await attempt({
    operations: operations.filter(({ number }) => number <= last),
    faults: faults.filter(({ atOperation }) => atOperation <= last),
  });
}

/** Takes out halves, quarters and so on down to single ones. */
async function reduce<T>(list: () => readonly T[], attempt: (rest: T[]) => Promise<boolean>): Promise<void> {
  for (let pieces = 2; ; pieces *= 2) {
    const length = Math.max(1, Math.ceil(list().length / pieces));
    for (let at = list().length - length; list().length > 0 && at > -length; at -= length) {
      const from = Math.max(0, at);
      await attempt([...list().slice(0, from), ...list().slice(at + length)]);
    }
    if (length === 1) return;
  }
}

/** `--keep` of a shrunk scenario: "3-7,12/0,4". */
export function formatKeep({ operations, faults }: Scenario): string {
  return `${formatNumbers(operations.map(({ number }) => number))}/${formatNumbers(faults.map(({ number }) => number))}`;
}

/** The scenario with the operations and faults that `--keep` names; null when the text is none. */
export function applyKeep(scenario: Scenario, keep: string): Scenario | null {
  const parts = keep.split('/');
  if (parts.length !== 2) return null;
  const [operations, faults] = parts.map(parseNumbers);
  if (operations === null || faults === null) return null;
  return {
    ...scenario,
    operations: scenario.operations.filter(({ number }) => operations.has(number)),
    faults: scenario.faults.filter(({ number }) => faults.has(number)),
  };
}

function formatNumbers(numbers: number[]): string {
  const ranges: [number, number][] = [];
  for (const number of [...numbers].sort((a, b) => a - b)) {
    const last = ranges.at(-1);
    if (last !== undefined && last[1] === number - 1) last[1] = number;
    else ranges.push([number, number]);
  }
  return ranges.map(([from, to]) => (from === to ? `${from}` : `${from}-${to}`)).join(',');
}

function parseNumbers(text: string): Set<number> | null {
  const numbers = new Set<number>();
  if (text === '') return numbers;
  for (const range of text.split(',')) {
    const match = /^(\d{1,6})(?:-(\d{1,6}))?$/.exec(range);
    if (match === null) return null;
    for (let number = Number(match[1]); number <= Number(match[2] ?? match[1]); number++) numbers.add(number);
  }
  return numbers;
}
