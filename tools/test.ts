// Runs every test: `npm test`, or those with every TEXT in "suite: file": `npm test -- --only TEXT…`. What it runs:
//
//   lint         biome over the whole tree
//   types        the TypeScript compiler
//   firmware     assembly/**/*.spec.ts with as-pect
//   host         *.test.ts with node:test, each file in a process of its own
//
// One more at a time than there are processors: many wait for a card or a time-out now and then. The files of one folder run one after the
// other, as they share what they build; those of tests/boards share it by their content (tools/boards/c-build.ts), and run as they come.
// The last line is `N passed, M failed`. Skipped tests are listed with their reasons; one without a reason fails.

import { readdirSync } from 'node:fs';
import { availableParallelism } from 'node:os';
import { dirname, join, resolve } from 'node:path';
import { fileURLToPath } from 'node:url';
import { findSpecs, runSpec } from './firmware-specs.js';
import { indent, type Result, runTestFile } from './node-tests.js';
import { endRuns, runNode } from './run-node.js';

const ROOT = resolve(fileURLToPath(import.meta.url), '../../..');
/** A file that does not end must not stop the others. Long runs (RIBBON_LONG=1) take up to an hour each. */
const FILE_TIMEOUT_MS = process.env.RIBBON_LONG === '1' ? 7_200_000 : 600_000;
const SLOWEST_SHOWN = 8;

interface Task {
  suite: 'lint' | 'types' | 'firmware' | 'host';
  name: string;
  run(): Promise<Result>;
}

/** What says much in little time comes first: most tests are over in three minutes. Then the longest folder, so that nothing waits for
 * it at the end. */
const FIRST_LANES = [
  ...['biome', 'tsc', ...findSpecs(), 'host/card', 'host', 'tests/conformance', 'tests/bench'],
  ...['tests/boards/engine.test.ts', 'tests/boards/conformance-posix.test.ts', 'tests/nbd-client', 'tests/build'],
  ...['tests/boards/conformance-qemu.test.ts', 'tests/boards/conformance-sanitized.test.ts', 'tests/local-store'],
  ...['tests/server', 'tests/pc'],
];
const FREE_FOLDER = 'tests/boards';
const SOON_SECONDS = 180;

interface Finished extends Result {
  task: Task;
  seconds: number;
  /** Of the whole run. */
  soon: boolean;
}

function allTasks(): Task[] {
  const biome = ['node_modules/@biomejs/biome/bin/biome', 'check', '--error-on-warnings', '--max-diagnostics=200'];
  const tests = ['host', 'tools', 'tests'].flatMap(findTests);
  return [
    { suite: 'lint', name: 'biome', run: () => runTool(biome) },
    { suite: 'types', name: 'tsc', run: () => runTool(['node_modules/typescript/bin/tsc', '-p', '.']) },
    ...findSpecs().map((spec): Task => ({ suite: 'firmware', name: spec, run: () => runFirmwareSpec(spec) })),
    ...tests.map(
      (file): Task => ({
        suite: 'host',
        name: file,
        run: () => runTestFile(compiledName(file), ROOT, FILE_TIMEOUT_MS),
      }),
    ),
  ];
}

/** Test files by their sources: build/ may still hold what is no longer there. */
function findTests(folder: string): string[] {
  return readdirSync(join(ROOT, folder), { recursive: true, encoding: 'utf8' })
    .filter((file) => file.endsWith('.test.ts'))
    .map((file) => join(folder, file))
    .sort();
}

function compiledName(file: string): string {
  return join('build', file.replace(/\.ts$/, '.js'));
}

/** A program whose exit status says all. */
async function runTool(command: string[]): Promise<Result> {
  const { code, output } = await runNode(command, ROOT, FILE_TIMEOUT_MS);
  return { passed: code === 0 ? 1 : 0, failed: code === 0 ? 0 : 1, skipped: [], output };
}

async function runFirmwareSpec(spec: string): Promise<Result> {
  const { passed, failed, output } = await runSpec(spec, FILE_TIMEOUT_MS);
  return { passed, failed, skipped: [], output };
}

/** Runs lanes of tasks, `width` lanes at a time, each in order. */
async function runLanes(lanes: Task[][], width: number, finished: Finished[]): Promise<void> {
  const queue = [...lanes];
  const begin = performance.now();
  const worker = async (): Promise<void> => {
    for (let lane = queue.shift(); lane !== undefined; lane = queue.shift()) {
      for (const task of lane) {
        const started = performance.now();
        const result = await task.run();
        const now = performance.now();
        const soon = now - begin <= SOON_SECONDS * 1000;
        const one = { ...result, task, seconds: (now - started) / 1000, soon };
        finished.push(one);
        showFinished(one);
      }
    }
  };
  await Promise.all(Array.from({ length: width }, worker));
}

/** Test files of one folder share a lane, but those of FREE_FOLDER; everything else has one of its own. */
function lanesOf(tasks: Task[]): Task[][] {
  const lanes = new Map<string, Task[]>(FIRST_LANES.map((lane) => [lane, []]));
  for (const task of tasks) {
    const folder = dirname(task.name);
    const key = task.suite === 'host' && folder !== FREE_FOLDER ? folder : task.name;
    lanes.set(key, [...(lanes.get(key) ?? []), task]);
  }
  return [...lanes.values()];
}

function showFinished({ task, passed, failed, skipped, output, seconds }: Finished): void {
  const mark = failed === 0 ? 'ok    ' : 'FAILED';
  const counts = `${passed} passed${failed > 0 ? `, ${failed} failed` : ''}${skippedText(skipped.length)}`;
  process.stdout.write(`${mark} ${seconds.toFixed(1).padStart(6)} s  ${task.suite}: ${task.name}: ${counts}\n`);
  if (failed > 0) process.stdout.write(`${indent(output)}\n`);
}

function skippedText(count: number): string {
  return count > 0 ? `, ${count} skipped` : '';
}

function showSummary(finished: Finished[], seconds: number): void {
  const lines: string[] = [];
  const slowest = [...finished].sort((a, b) => b.seconds - a.seconds).slice(0, SLOWEST_SHOWN);
  if (finished.length > SLOWEST_SHOWN) {
    lines.push('', 'slowest:', ...slowest.map((it) => `  ${it.seconds.toFixed(1).padStart(6)} s  ${it.task.name}`));
  }
  const skips = finished.flatMap(({ task, skipped }) => skipped.map((text) => `  ${task.name}: ${text}`));
  if (skips.length > 0) lines.push('', 'skipped:', ...skips);
  const failures = finished.filter(({ failed }) => failed > 0);
  if (failures.length > 0) lines.push('', 'failed:', ...failures.map(({ task }) => `  ${task.name}`));
  lines.push('', 'suite      passed  failed  skipped  seconds');
  for (const suite of new Set(finished.map(({ task }) => task.suite))) {
    const own = finished.filter(({ task }) => task.suite === suite);
    const cells = [sum(own, 'passed'), sum(own, 'failed'), own.flatMap(({ skipped }) => skipped).length];
    const time = own.reduce((total, it) => total + it.seconds, 0).toFixed(0);
    lines.push(`${suite.padEnd(9)} ${cells.map((cell) => String(cell).padStart(7)).join(' ')} ${time.padStart(9)}`);
  }
  const early = finished.filter(({ soon }) => soon);
  const share = seconds > SOON_SECONDS ? `, ${sum(early, 'passed')} tests passed in the first ${SOON_SECONDS}` : '';
  lines.push('', `${seconds.toFixed(0)} seconds${share}`);
  lines.push(`${sum(finished, 'passed')} passed, ${sum(finished, 'failed')} failed`);
  process.stdout.write(`${lines.join('\n')}\n`);
}

function sum(results: Result[], field: 'passed' | 'failed'): number {
  return results.reduce((total, result) => total + result[field], 0);
}

async function main([option, ...texts]: string[]): Promise<void> {
  if (option !== undefined && (option !== '--only' || texts.length === 0)) {
    process.stderr.write('usage: npm test [-- --only TEXT...]: the tests with every TEXT in their "suite: file"\n');
    process.exitCode = 2;
    return;
  }
  const tasks = allTasks().filter(({ suite, name }) => texts.every((text) => `${suite}: ${name}`.includes(text)));
  for (const signal of ['SIGINT', 'SIGTERM'] as const) {
    process.on(signal, () => {
      endRuns();
      process.exit(130);
    });
  }
  const started = performance.now();
  const finished: Finished[] = [];
  await runLanes(lanesOf(tasks), Math.min(2, availableParallelism()) + 1, finished);
  showSummary(finished, (performance.now() - started) / 1000);
  if (tasks.length === 0) process.stderr.write(`no test has "${texts.join('" and "')}" in its name\n`);
  if (tasks.length === 0 || sum(finished, 'failed') > 0) process.exitCode = 1;
}

await main(process.argv.slice(2));
