// `ribbon soak`: the deterministic simulator. One seed is one whole run.

import os from 'node:os';
import { type Command, InvalidArgumentError } from 'commander';
import { loadFirmware } from '../card/firmware.js';
import { Failure } from '../failure.js';
import type { RunSummary } from '../soak/summary.js';

interface Options {
  seeds: number;
  first: number;
  seed?: number;
  operations: number;
  keep?: string;
  trace?: boolean;
  shrink: boolean;
  jobs: number;
  firmware?: string;
  mutants?: boolean;
  mutant?: string;
}

export function register(program: Command): void {
  program
    .command('soak')
    .description('simulate PC, card, network and image server with faults, from seeds, and check every promise')
    .option('--seeds <number>', 'how many runs, each with the next seed', wholeNumber, 500)
    .option('--first <number>', 'the first seed', wholeNumber, 1)
    .option('--seed <number>', 'one run: this seed again', wholeNumber)
    .option('--operations <number>', 'what the PC does in a run', wholeNumber, 300)
    .option('--keep <list>', 'with --seed: only these operations and faults (a shrunk run prints its list)')
    .option('--trace', "with --seed: print the run's timeline")
    .option('--no-shrink', 'leave a failing run as long as it is')
    .option('--jobs <number>', 'threads', wholeNumber, Math.min(4, os.availableParallelism()))
    .option('--firmware <file>', 'a firmware other than the one built here')
    .option('--mutants', 'plant known bugs into the firmware one at a time: each must be found within --seeds')
    .option('--mutant <name>', 'run with this bug planted')
    .addHelpText(
      'after',
      `
A run is a PC that uses its disk in every way it can, the real firmware and front end, the real NBD server core, and a
network, a store and power that fail. All time is simulated and all chance follows from the seed, so a run that fails
fails again. Exit status: 0 all is well, 1 a promise was broken (or a mutant was not found).

Examples:
  ribbon soak --seeds 10000
  ribbon soak --seed 1219 --trace
  ribbon soak --mutants`,
    )
    .action(soak);
}

function wholeNumber(text: string): number {
  const value = Number(text);
  if (!/^\d+$/.test(text) || value > 0xffffffff) {
    throw new InvalidArgumentError('It must be a whole number from 0 to 4294967295.');
  }
  return value;
}

async function soak(options: Options): Promise<void> {
  if (options.operations < 1 || options.jobs < 1 || options.seeds < 1) {
    throw new Failure('--seeds, --operations and --jobs must be at least 1');
  }
  if (options.keep !== undefined && options.seed === undefined) throw new Failure('--keep needs --seed');
  if (options.mutants) return soakMutants(options);
  const firmware = await firmwareFor(options);
  if (options.seed !== undefined) return replay(options.seed, options, firmware);
  if (options.trace) throw new Failure('--trace needs --seed: a timeline is of one run');
  return soakSeeds(options, firmware);
}

async function firmwareFor(options: Options): Promise<WebAssembly.Module> {
  if (options.mutant === undefined) {
    return options.firmware === undefined ? loadFirmware() : loadFirmware(options.firmware);
  }
  const { compileMutant, listMutants } = await import('../soak/mutants.js');
  const mutants = listMutants();
  const mutant = mutants.find(({ name }) => name === options.mutant);
  if (mutant === undefined) {
    const names = mutants.map(({ name }) => name).join(', ');
    throw new Failure(`there is no mutant "${options.mutant}"; there are: ${names}`);
  }
  return compileMutant(mutant.number);
}

/** One run, with its timeline if it is asked for. */
async function replay(seed: number, options: Options, firmware: WebAssembly.Module): Promise<void> {
  const [{ drawScenario }, { run }, { applyKeep }] = await modules();
  let scenario = drawScenario(seed, options.operations);
  if (options.keep !== undefined) {
    const kept = applyKeep(scenario, options.keep);
    if (kept === null) throw new Failure(`--keep "${options.keep}" is not a list like 0-10,44/2 (operations/faults)`);
    scenario = kept;
  }
  const started = performance.now();
  const trace = (line: string): void => void process.stdout.write(`${line}\n`);
  const result = await run(scenario, { firmware, ...(options.trace ? { trace } : {}) });
  const { summarise } = await import('../soak/summary.js');
  const summary = summarise(result, performance.now() - started);
  process.stdout.write(`${describe(summary)}\n`);
  if (summary.violation !== null) fail(summary, options, options.keep);
}

async function modules() {
  return Promise.all([import('../soak/scenario.js'), import('../soak/run.js'), import('../soak/shrink.js')] as const);
}

function describe(summary: RunSummary): string {
  const { seed, simulatedUs, commands, errors, generations, connections, powerCuts, writesAtRisk } = summary;
  const faults = summary.faults.map(([kind, count]) => `${count} ${kind}`).join(', ') || 'none';
  return (
    `seed ${seed}: ${(simulatedUs / 1e6).toFixed(0)} s simulated in ${summary.realMs.toFixed(0)} ms; ${commands} commands, ` +
    `${errors} errors, longest ${(summary.longestUs / 1e6).toFixed(1)} s; ${generations} generations, ${connections} connections; ` +
    `${powerCuts} power cuts, ${writesAtRisk} writes at risk by them; faults: ${faults}; ` +
    `digest ${summary.digest.toString(16).padStart(8, '0')}`
  );
}

function fail({ seed, violation }: RunSummary, options: Options, keep?: string): void {
  process.exitCode = 1;
  process.stdout.write(`FAILED ${violation!.oracle}: ${violation!.message}\n`);
  process.stdout.write(`replay: ${replayLine(seed, options, keep)}\n`);
}

/** The one line that replays a run. */
function replayLine(seed: number, options: Options, keep?: string): string {
  const length = options.operations === 300 ? '' : ` --operations ${options.operations}`;
  const mutant = options.mutant === undefined ? '' : ` --mutant ${options.mutant}`;
  const firmware = options.firmware === undefined ? '' : ` --firmware ${options.firmware}`;
  return `npx ribbon soak --seed ${seed}${length}${mutant}${firmware}${keep === undefined ? '' : ` --keep ${keep}`} --trace`;
}

interface Totals {
  runs: number;
  simulatedUs: number;
  commands: number;
  errors: number;
  generations: number;
  sectorsChecked: number;
  powerCuts: number;
  writesAtRisk: number;
  longestUs: number;
  faults: Map<string, number>;
}

async function soakSeeds(options: Options, firmware: WebAssembly.Module): Promise<void> {
  const { runSeeds } = await import('../soak/pool.js');
  const bar = await progressBar(options.seeds);
  const started = performance.now();
  const processorAtStart = process.cpuUsage();
  const totals = newTotals();
  let failed: RunSummary | null = null;
  await runSeeds({
    firmware,
    first: options.first,
    count: options.seeds,
    length: options.operations,
    jobs: options.jobs,
    onResult: (summary) => {
      add(totals, summary);
      bar.update(totals.runs, {
        hours: (totals.simulatedUs / 3.6e9).toFixed(1),
        rate: ((totals.runs * 1000) / (performance.now() - started)).toFixed(1),
      });
      if (summary.violation === null) return true;
      failed = summary;
      return false;
    },
  });
  bar.stop();
  const { user, system } = process.cpuUsage(processorAtStart);
  process.stdout.write(`${describeTotals(totals, performance.now() - started, (user + system) / 1000)}\n`);
  if (failed !== null) await report(failed, options, firmware);
}

/** A failing run is made shorter, then named. */
async function report(failed: RunSummary, options: Options, firmware: WebAssembly.Module): Promise<void> {
  fail(failed, options);
  if (!options.shrink) return;
  const [{ drawScenario }, { run }, { formatKeep, shrink }] = await modules();
  const result = await run(drawScenario(failed.seed, options.operations), { firmware });
  if (result.violation === null) {
    throw new Error(`seed ${failed.seed} failed in a thread and not here: the simulator is not deterministic`);
  }
  const show = (operations: number, faults: number): void => {
    if (process.stderr.isTTY) process.stderr.write(`\r\x1b[Kshrinking: ${operations} operations, ${faults} faults`);
  };
  const shrunk = await shrink(result, { firmware }, show);
  if (process.stderr.isTTY) process.stderr.write('\r\x1b[K');
  const { operations, faults } = shrunk.scenario;
  process.stdout.write(
    `shrunk to ${operations.length} operations and ${faults.length} faults (${shrunk.runs} runs): ` +
      `${shrunk.result.violation!.message}\nreplay: ${replayLine(failed.seed, options, formatKeep(shrunk.scenario))}\n`,
  );
}

async function soakMutants(options: Options): Promise<void> {
  const [{ compileMutant, listMutants }, { runSeeds }] = await Promise.all([
    import('../soak/mutants.js'),
    import('../soak/pool.js'),
  ]);
  let missed = 0;
  for (const mutant of listMutants()) {
    const firmware = await compileMutant(mutant.number);
    let runs = 0;
    let found: RunSummary | null = null;
    const onResult = (summary: RunSummary): boolean => {
      runs += 1;
      if (summary.violation !== null) found = summary;
      return summary.violation === null;
    };
    const { first, seeds, operations, jobs } = options;
    await runSeeds({ firmware, first, count: seeds, length: operations, jobs, onResult });
    const { violation, seed } = (found ?? {}) as Partial<RunSummary>;
    if (violation == null) missed += 1;
    process.stdout.write(
      violation == null
        ? `${mutant.name.padEnd(24)} NOT FOUND in ${runs} runs: ${mutant.bug}\n`
        : `${mutant.name.padEnd(24)} found after ${String(runs).padStart(3)} runs by ${violation.oracle} (seed ${seed}): ${firstLine(violation.message)}\n`,
    );
  }
  if (missed > 0) throw new Failure(`${missed} mutants were not found within ${options.seeds} runs`);
}

function firstLine(text: string): string {
  const line = text.split('\n', 1)[0];
  return line.length > 120 ? `${line.slice(0, 119)}…` : line;
}

function newTotals(): Totals {
  return {
    runs: 0,
    simulatedUs: 0,
    commands: 0,
    errors: 0,
    generations: 0,
    sectorsChecked: 0,
    powerCuts: 0,
    writesAtRisk: 0,
    longestUs: 0,
    faults: new Map(),
  };
}

function add(totals: Totals, summary: RunSummary): void {
  totals.runs += 1;
  totals.simulatedUs += summary.simulatedUs;
  totals.commands += summary.commands;
  totals.errors += summary.errors;
  totals.generations += summary.generations;
  totals.sectorsChecked += summary.sectorsChecked;
  totals.powerCuts += summary.powerCuts;
  totals.writesAtRisk += summary.writesAtRisk;
  totals.longestUs = Math.max(totals.longestUs, summary.longestUs);
  for (const [kind, count] of summary.faults) totals.faults.set(kind, (totals.faults.get(kind) ?? 0) + count);
}

/** `processorMs`: of all threads, so that what else runs on this machine does not count. */
function describeTotals(totals: Totals, realMs: number, processorMs: number): string {
  const faults = [...totals.faults].sort(([a], [b]) => (a < b ? -1 : 1)).map(([kind, count]) => `${count} ${kind}`);
  return [
    `${totals.runs} runs: ${(totals.simulatedUs / 3.6e9).toFixed(1)} simulated hours in ${(realMs / 1000).toFixed(1)} s`,
    `  ${((totals.runs * 1000) / realMs).toFixed(1)} seeds/s; in a second of processor time ` +
      `${((totals.runs * 1000) / processorMs).toFixed(1)} seeds, ${(totals.simulatedUs / 1000 / processorMs).toFixed(0)} times real time`,
    `  ${totals.commands} commands, ${totals.errors} errors, the longest command ${(totals.longestUs / 1e6).toFixed(1)} s`,
    `  ${totals.generations} generations and ${totals.sectorsChecked} sectors read checked`,
    `  faults: ${faults.join(', ') || 'none'}; ${totals.writesAtRisk} writes at risk by ${totals.powerCuts} power cuts`,
  ].join('\n');
}

async function progressBar(total: number) {
  const { SingleBar } = await import('cli-progress');
  const bar = new SingleBar({
    format: '{bar} {value}/{total} runs, {hours} simulated hours, {rate} seeds/s, {eta_formatted} left',
    barsize: 30,
    hideCursor: true,
    clearOnComplete: true,
    noTTYOutput: false,
  });
  if (process.stderr.isTTY) bar.start(total, 0, { hours: '0.0', rate: '0.0' });
  return bar;
}
