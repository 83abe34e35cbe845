// Does the checking find anything? Each bug of assembly/mutant.ts that concerns the local store is planted into a firmware, and
// the power cuts and lives must notice it.

import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import { Random } from '../../host/fuzz/random.js';
import { compileMutant, listMutants } from '../../host/soak/mutants.js';
import { checkCut } from './cuts.js';
import { live } from './life.js';
import { WORKLOADS } from './workloads.js';

/** Bugs that only a fault shows which this harness does not make: a late answer, a stalled command, media rot. */
const ELSEWHERE = new Set([
  'flush-time-out-succeeds',
  'standby-unflushed',
  'write-cache-stays-on',
  'stale-fill',
  'lost-fill',
  'no-time-out',
  'skip-read-checksum',
  'lag-too-small',
]);
/** Not found within this budget: they need longer lives, and a server that commits as the power goes. */
const UNFOUND = new Set(['send-unstored', 'short-first-epoch', 'forget-merge-rule', 'no-mark']);
const LIVES = 10;
const STEPS = 300;

/** What notices the bug; null when nothing does. */
function findBug(firmware: WebAssembly.Module): string | null {
  for (const workload of WORKLOADS) {
    for (let at = 5; at < 60; at += 5) {
      try {
        checkCut(workload, at, { kind: 'lose-all' }, firmware);
        checkCut(workload, at, { kind: 'keep-all', sectors: 9 }, firmware);
        checkCut(workload, at, { kind: 'chance', random: new Random(at) }, firmware);
      } catch (error) {
        return `power cut at operation ${at} of "${workload.name}": ${(error as Error).message.split('\n')[0]}`;
      }
    }
  }
  for (let seed = 1; seed <= LIVES; seed++) {
    try {
      live(seed, STEPS, firmware);
    } catch (error) {
      return `life ${seed}: ${(error as Error).message.split('\n')[0]}`;
    }
  }
  return null;
}

describe('planted bugs', () => {
  for (const mutant of listMutants()) {
    if (ELSEWHERE.has(mutant.name)) continue;
    const skip = UNFOUND.has(mutant.name) ? 'not found within the budget of this test' : false;
    it(`${mutant.name}: ${mutant.bug}`, { skip }, async (test) => {
      const found = findBug(await compileMutant(mutant.number));
      assert.ok(found !== null, 'nothing noticed it');
      test.diagnostic(found);
    });
  }
});
