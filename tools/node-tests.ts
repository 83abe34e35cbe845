// Runs one file of node:test tests in a process of its own and says what came of it.

import { existsSync, mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join, resolve } from 'node:path';
import { runNode } from './run-node.js';
import type { EndRecord, TestRecord } from './test-reporter.js';

const REPORTER = resolve(import.meta.dirname, 'test-reporter.js');

export interface Result {
  passed: number;
  failed: number;
  /** Names and reasons. */
  skipped: string[];
  /** What a person needs to see of the failures. */
  output: string;
}

/** Runs a compiled test file; `file` is relative to `cwd`. */
export async function runTestFile(file: string, cwd: string, timeoutMs: number): Promise<Result> {
  if (!existsSync(join(cwd, file))) {
    return { passed: 0, failed: 1, skipped: [], output: `${file} is missing: it does not compile` };
  }
  const folder = mkdtempSync(join(tmpdir(), 'ribbon-test-'));
  try {
    const report = join(folder, 'report');
    const reporter = ['--test-reporter', REPORTER, '--test-reporter-destination', report];
    const { code, output } = await runNode(['--enable-source-maps', ...reporter, file], cwd, timeoutMs);
    return fileResult(readReport(report), code, output);
  } finally {
    rmSync(folder, { recursive: true, force: true });
  }
}

interface Report {
  records: TestRecord[];
  /** Null when the file was cut short. */
  end: EndRecord | null;
}

/** A line is whole when it has its end: the process may have been stopped while it wrote. */
function readReport(file: string): Report {
  const lines = existsSync(file) ? readFileSync(file, 'utf8').split('\n').slice(0, -1) : [];
  const all = lines.map((line) => JSON.parse(line) as TestRecord | EndRecord);
  const last = all.at(-1);
  if (last === undefined || !('diagnostics' in last)) return { records: all as TestRecord[], end: null };
  return { records: all.slice(0, -1) as TestRecord[], end: last };
}

/** Adds up the records. A file that ran nothing, did not come to its end or ended badly without saying which test failed is a
 * failure too. */
function fileResult({ records, end }: Report, code: number, printed: string): Result {
  const failures = records.filter(({ outcome }) => outcome === 'failed');
  const texts = failures.map(({ name, text }) => `not ok: ${name}\n${indent(text)}`);
  if (records.length === 0) texts.push('not ok: no test ran');
  else if (end === null) texts.push('not ok: the file ended before its tests did');
  else if (failures.length === 0 && code !== 0) {
    texts.push(`not ok: the file ended with status ${code}\n${indent(end.diagnostics.join('\n'))}`);
  }
  if (texts.length > 0 && printed !== '') texts.push(`printed:\n${indent(printed)}`);
  return {
    passed: records.filter(({ outcome }) => outcome === 'passed').length,
    failed: Math.max(failures.length, texts.length > 0 ? 1 : 0),
    skipped: records.filter(({ outcome }) => outcome === 'skipped').map(({ name, text }) => `${name}: ${text}`),
    output: texts.join('\n'),
  };
}

export function indent(text: string): string {
  return text.trimEnd().replace(/^/gm, '    ');
}
