// A reporter for node:test: one JSON object a line for tools/test.ts, written to the file that
// --test-reporter-destination names, so that nothing a test prints gets between.

import type { TestEvent } from 'node:test/reporters';

/** A test that has ended. Groups are left out: they say nothing that their tests do not. */
export interface TestRecord {
  name: string;
  outcome: 'passed' | 'failed' | 'skipped';
  /** Why it failed, in full, or why it was skipped. */
  text: string;
  durationMs: number;
}

/** The last line: without it the file was cut short. */
export interface EndRecord {
  /** What node:test says beside its counts, such as errors outside every test. */
  diagnostics: string[];
}

interface Ended {
  name: string;
  nesting: number;
  skip?: string | boolean;
  todo?: string | boolean;
  details: { duration_ms: number; type?: string; error?: Error & { failureType?: string } };
}

/** node:test's own summary. */
const COUNT = /^(tests|suites|pass|fail|cancelled|skipped|todo|duration_ms) [\d.]+$/;

export default async function* report(events: AsyncIterable<TestEvent>): AsyncGenerator<string> {
  /** Names of the groups around, by nesting; and whether something ended one level further in. */
  const around: string[] = [];
  let nestingBefore = 0;
  const diagnostics: string[] = [];
  for await (const { type, data } of events) {
    if (type === 'test:start') around[(data as Ended).nesting] = (data as Ended).name;
    if (type === 'test:diagnostic' && !COUNT.test(data.message)) diagnostics.push(data.message);
    if (type !== 'test:pass' && type !== 'test:fail') continue;
    const ended = data as Ended;
    const isGroup = ended.details.type === 'suite' || nestingBefore > ended.nesting;
    nestingBefore = ended.nesting;
    // A group fails with its tests; it counts only when it broke by itself.
    if (isGroup && (type === 'test:pass' || ended.details.error?.failureType === 'subtestsFailed')) continue;
    const name = [...around.slice(0, ended.nesting), ended.name].join(' > ');
    yield `${JSON.stringify(record(name, type === 'test:pass', ended))}\n`;
  }
  yield `${JSON.stringify({ diagnostics } satisfies EndRecord)}\n`;
}

function record(name: string, passed: boolean, { skip, todo, details }: Ended): TestRecord {
  const durationMs = details.duration_ms;
  if (todo !== undefined && todo !== false) return { name, outcome: 'failed', text: 'marked as todo', durationMs };
  if (skip !== undefined && skip !== false) {
    if (typeof skip === 'string' && skip !== '') return { name, outcome: 'skipped', text: skip, durationMs };
    return { name, outcome: 'failed', text: 'skipped without a reason', durationMs };
  }
  if (passed) return { name, outcome: 'passed', text: '', durationMs };
  return { name, outcome: 'failed', text: errorText(details.error), durationMs };
}

/** node:test wraps what was thrown; the inside says more. */
function errorText(error: Error | undefined): string {
  if (error === undefined) return 'failed';
  const inner = error.cause instanceof Error ? error.cause : error;
  return inner.stack ?? inner.message;
}
