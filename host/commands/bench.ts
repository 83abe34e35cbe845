// `ribbon bench`: every published figure, by name.

import os from 'node:os';
import type { Command } from 'commander';
import { type Benchmark, formatFigures, meetsBar } from '../bench/report.js';
import { Failure } from '../failure.js';

const BENCHMARKS: Record<string, () => Promise<Benchmark>> = {
  cache: async () => (await import('../bench/cache.js')).default,
  'front-end': async () => (await import('../bench/front-end.js')).default,
  ata: async () => (await import('../bench/ata.js')).default,
  nbd: async () => (await import('../bench/nbd.js')).default,
  arm: async () => (await import('../bench/arm.js')).default,
  cards: async () => (await import('../bench/cards.js')).default,
  store: async () => (await import('../bench/store.js')).default,
  bucket: async () => (await import('../bench/bucket.js')).default,
  prefix: async () => (await import('../bench/prefix.js')).default,
  recovery: async () => (await import('../bench/recovery.js')).default,
  write: async () => (await import('../bench/write.js')).default,
  sizing: async () => (await import('../bench/sizing.js')).default,
};

interface Options {
  quick?: boolean;
  json?: boolean;
}

export function register(program: Command): void {
  program
    .command('bench')
    .description('measure the published figures, each as a ratio against the named peer in the same run')
    .argument('[names...]', `any of: ${Object.keys(BENCHMARKS).join(', ')} (all when none is named)`)
    .option('--quick', 'a short run: shows that the benchmark works, its figures are noisy')
    .option('--json', 'print the figures as JSON')
    .action(bench);
}

/** Runs the named benchmarks; the exit status is 1 when a bar is missed. */
async function bench(names: string[], options: Options): Promise<void> {
  for (const name of names) {
    if (!(name in BENCHMARKS)) {
      throw new Failure(`there is no benchmark "${name}"; there are: ${Object.keys(BENCHMARKS).join(', ')}`);
    }
  }
  const quick = options.quick === true;
  const results: Record<string, unknown> = {};
  for (const name of names.length > 0 ? names : Object.keys(BENCHMARKS)) {
    const benchmark = await BENCHMARKS[name]();
    const loadBefore = os.loadavg()[0];
    const figures = await benchmark.run({ quick }, showProgress);
    showProgress('');
    results[name] = figures;
    if (!options.json)
      process.stdout.write(`${name}: ${benchmark.title}\n${formatFigures(figures)}\n${loadText(loadBefore)}\n\n`);
    if (!quick && !figures.every(meetsBar)) process.exitCode = 1;
  }
  if (options.json) process.stdout.write(`${JSON.stringify(results, null, 2)}\n`);
}

/** Figures of a busy machine are worth less: say how busy it was, this benchmark included at the end. */
function loadText(before: number): string {
  return `load average ${before.toFixed(1)} before, ${os.loadavg()[0].toFixed(1)} after, on ${os.cpus().length} processors`;
}

function showProgress(text: string): void {
  if (process.stderr.isTTY) process.stderr.write(`\r\x1b[K${text}`);
}
