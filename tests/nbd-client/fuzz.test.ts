// A bounded run of the fuzzer; `ribbon fuzz nbd` goes on without end.

import assert from 'node:assert/strict';
import { test } from 'node:test';
import { runNbdFuzz } from '../../host/fuzz/nbd.js';
import { NbdError } from '../../host/fuzz/nbd-client.js';

test('300 lives of a card', async () => {
  const report = await runNbdFuzz({ seed: 1, cases: 300 });
  assert.equal(report.cases, 300);
  // The load and the lies reach what they are for: a fuzzer that never connects finds nothing.
  assert.ok(report.readsChecked > 1000, `${report.readsChecked} reads checked`);
  assert.ok(report.writesDone > 1000, `${report.writesDone} writes done`);
  assert.ok(report.requestsFailed > 100, `${report.requestsFailed} requests failed`);
  assert.ok(report.requestsLost > 1000, `${report.requestsLost} requests lost`);
  const { BAD_MAGIC, UNKNOWN_COOKIE, OVERSIZE, CHUNK_MISSING, CHUNK_OVERLAP, TRUNCATED, SILENCE } = NbdError;
  for (const error of [BAD_MAGIC, UNKNOWN_COOKIE, OVERSIZE, CHUNK_MISSING, CHUNK_OVERLAP, TRUNCATED, SILENCE]) {
    assert.ok(report.errors.has(error), `no connection was given up for error ${error}`);
  }
});
