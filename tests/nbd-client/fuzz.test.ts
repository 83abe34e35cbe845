// A bounded run of the fuzzer; `ribbon fuzz nbd` goes on without end.

import assert from 'node:assert/strict';
import { test } from 'node:test';
import { runNbdFuzz } from '../../host/fuzz/nbd.js';

test('150 lives of a card', async () => {
  const report = await runNbdFuzz({ seed: 1, cases: 150 });
  assert.equal(report.cases, 150);
  // The load and the lies reach what they are for: a fuzzer that never connects finds nothing.
  assert.ok(report.readsChecked > 500, `${report.readsChecked} reads checked`);
  assert.ok(report.writesDone > 500, `${report.writesDone} writes done`);
  assert.ok(report.requestsFailed > 50, `${report.requestsFailed} requests failed`);
  assert.ok(report.requestsLost > 500, `${report.requestsLost} requests lost`);
  for (const error of ['BAD_MAGIC', 'UNKNOWN_COOKIE', 'OVERSIZE', 'CHUNK_OVERLAP', 'TRUNCATED', 'SILENCE'] as const) {
    assert.ok(report.errors.has(error), `no connection was given up for ${error}`);
  }
});
