// `ribbon fuzz`: the fuzzers, bounded or for ever. Each case follows from its seed alone.

import { randomBytes } from 'node:crypto';
import { type Command, InvalidArgumentError } from 'commander';
import { Failure } from '../failure.js';

interface FuzzReport {
  cases: number;
}

type Fuzz = (options: {
  seed: number;
  cases: number;
  onCase: (done: number) => boolean | undefined;
}) => Promise<FuzzReport>;

const TARGETS: Record<string, { title: string; load: () => Promise<Fuzz> }> = {
  registers: {
    title: 'the ATA registers: a PC that does anything, on one or two cards, with a failing image server',
    load: async () => (await import('../fuzz/registers.js')).runRegisterFuzz,
  },
  nbd: {
    title: "the firmware's NBD client, against servers that break off and lie",
    load: async () => (await import('../fuzz/nbd.js')).runNbdFuzz,
  },
};

interface Options {
  seed?: number;
  cases: number;
  forever?: boolean;
}

export function register(program: Command): void {
  const targets = Object.entries(TARGETS).map(([name, { title }]) => `  ${name.padEnd(10)} ${title}`);
  program
    .command('fuzz')
    .description('run a seeded fuzzer; a failure prints the line that replays it')
    .argument('<target>', `one of: ${Object.keys(TARGETS).join(', ')}`)
    .option('--seed <number>', 'seed of the first case (chosen by chance without)', wholeNumber)
    .option('--cases <number>', 'how many cases, each with the next seed', wholeNumber, 1000)
    .option('--forever', 'until a case fails or Ctrl-C')
    .addHelpText('after', `\nTargets:\n${targets.join('\n')}`)
    .action(fuzz);
}

function wholeNumber(text: string): number {
  const value = Number(text);
  if (!Number.isInteger(value) || value < 0 || value > 0xffffffff) {
    throw new InvalidArgumentError('It must be a whole number from 0 to 4294967295.');
  }
  return value;
}

async function fuzz(name: string, options: Options): Promise<void> {
  const target = TARGETS[name];
  if (target === undefined) {
    throw new Failure(`there is no fuzzer "${name}"; there are: ${Object.keys(TARGETS).join(', ')}`);
  }
  const run = await target.load();
  const seed = options.seed ?? randomBytes(4).readUInt32LE();
  const cases = options.forever ? Number.POSITIVE_INFINITY : options.cases;
  process.stdout.write(`fuzz ${name}: seed ${seed}${options.forever ? ', until Ctrl-C' : `, ${cases} cases`}\n`);
  let stopped = false;
  const stop = (): void => {
    stopped = true;
  };
  process.once('SIGINT', stop);
  try {
    const report = await run({ seed, cases, onCase: (done) => showCase(done, cases) && !stopped });
    showProgress('');
    process.stdout.write(`${formatReport(report)}\n`);
  } finally {
    process.removeListener('SIGINT', stop);
  }
}

function showCase(done: number, cases: number): boolean {
  showProgress(Number.isFinite(cases) ? `${done} of ${cases} cases` : `${done} cases`);
  return true;
}

function showProgress(text: string): void {
  if (process.stderr.isTTY) process.stderr.write(`\r\x1b[K${text}`);
}

function formatReport(report: FuzzReport): string {
  return Object.entries(report)
    .map(([name, value]) => `${name}: ${value instanceof Map ? JSON.stringify(Object.fromEntries(value)) : value}`)
    .join('\n');
}
