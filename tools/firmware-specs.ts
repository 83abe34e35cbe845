// Runs firmware specs, assembly/**/*.spec.ts, with as-pect.

import { readdirSync } from 'node:fs';
import { join, resolve } from 'node:path';
import { fileURLToPath } from 'node:url';
import { stripVTControlCharacters } from 'node:util';
import { runNode } from './run-node.js';

const ROOT = resolve(fileURLToPath(import.meta.url), '../../..');

export interface SpecResult {
  spec: string;
  passed: number;
  failed: number;
  /** What as-pect and the compiler had to say, without the summary. */
  output: string;
}

/** Every spec of the firmware, relative to the top of the checkout. */
export function findSpecs(): string[] {
  const files = readdirSync(join(ROOT, 'assembly'), { recursive: true, encoding: 'utf8' });
  return files
    .filter((file) => file.endsWith('.spec.ts'))
    .map((file) => join('assembly', file))
    .sort();
}

/** Compiles and runs one spec in a process of its own: a trap or an endless loop of one does not take the others along. */
export async function runSpec(spec: string, timeoutMs: number): Promise<SpecResult> {
  const asp = 'node_modules/@as-pect/cli/bin/asp.js';
  const options = ['--config', 'build/tests/as-pect/config.js', '--as-config', 'tests/as-pect/asconfig.json'];
  const { code, output } = await runNode([asp, ...options, spec], ROOT, timeoutMs);
  return specResult(spec, stripVTControlCharacters(output), code);
}

/** Reads the line of tests/as-pect/reporter.ts. Without it the spec did not compile or did not end. */
function specResult(spec: string, output: string, code: number): SpecResult {
  const summary = /^# .*: (\d+) passed, (\d+) failed$/m.exec(output);
  if (summary === null) return { spec, passed: 0, failed: 1, output: withoutBanner(output) };
  const passed = Number(summary[1]);
  const failed = Math.max(Number(summary[2]), code === 0 ? 0 : 1);
  return { spec, passed, failed, output: withoutBanner(output.slice(0, summary.index)) };
}

/** as-pect prints its logo and versions first, whatever the options say. */
function withoutBanner(output: string): string {
  const end = /^ASC Version: .*\n/m.exec(output);
  return end === null ? output : output.slice(end.index + end[0].length);
}
