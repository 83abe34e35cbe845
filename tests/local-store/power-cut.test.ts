// Power cuts after store operation 1, 2, 3, … of scripted workloads, and inside the operation, with whatever a device may make
// of writes that were not flushed. After each the card must come back, and
//   O1  every write that the PC was told is done is there;
//   O2  what the PC sees, and every generation on the server, is its writes up to some command and nothing else;
//   O3  generations never go back;
//   O8  with nothing in the way everything reaches the server.

import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import { Random } from '../../host/fuzz/random.js';
import type { PowerCut } from '../../host/simulation/simulated-store.js';
import { checkCut, countOperations, runAndCut } from './cuts.js';
import { isSummary, MERGES, WORKLOADS } from './workloads.js';

describe('power cuts', () => {
  for (const workload of WORKLOADS) {
    const operations = countOperations(workload);
    it(`${workload.name}: ${operations} operations, the unflushed lost, kept, or left to chance`, () => {
      for (let at = 1; at <= operations; at++) {
        const cuts: PowerCut[] = [
          { kind: 'lose-all' },
          { kind: 'keep-all', sectors: 0 },
          { kind: 'chance', random: new Random(at) },
        ];
        for (const how of cuts) checkCut(workload, at, how);
      }
    });

    it(`${workload.name}: torn inside a write`, () => {
      for (let at = 1; at <= operations; at++) {
        const rig = runAndCut(workload, at);
        const { cutSectors } = rig.store;
        rig.dispose();
        // Some sectors of the header, then of every fifth block.
        for (let sectors = 1; sectors <= cutSectors; sectors += sectors < 8 ? 3 : 40) {
          checkCut(workload, at, { kind: 'keep-all', sectors });
        }
      }
    });
  }

  it('a summary is on the store, and what was logged after its segment is not', () => {
    const random = new Random(5);
    const summaries: number[] = [];
    let operation = 0;
    const total = countOperations(MERGES, ({ kind, block }) => {
      operation += 1;
      if (kind === 'write' && isSummary(block)) summaries.push(operation);
    });
    assert.ok(summaries.length > 17, `${summaries.length} summaries: the log does not go round`);
    for (const at of summaries) {
      for (let later = 1; later <= 4 && at + later <= total; later++)
        checkCut(MERGES, at + later, { kind: 'keep-some', blocks: isSummary });
      checkCut(MERGES, at + 1, { kind: 'chance', random });
    }
  });
});
