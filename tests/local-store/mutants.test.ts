// Does the checking find anything? Each bug of assembly/mutant.ts that concerns the local store is planted into a firmware, and
// the power cuts and lives must notice it.

import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import { Random } from '../../host/fuzz/random.js';
import { compileMutant, listMutants } from '../../host/soak/mutants.js';
import { checkCut } from './cuts.js';
import { live } from './life.js';
import { WORKLOADS } from './workloads.js';

/** What these power cuts and lives must notice. The others need faults that this harness does not make (late answers, damage,
 * changes by others), or more luck: `ribbon soak --mutants` tries them all. */
const FOUND_HERE = [
  ...['acknowledge-early', 'forget-flush', 'stored-without-flush', 'never-commit', 'resend-nothing', 'tear-commands'],
  ...['keep-cut-commands', 'skip-replay-checksum', 'reuse-dirty-segment', 'partial-block-valid', 'cache-not-updated'],
  'oldest-copy-wins',
];
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
  const mutants = listMutants();
  for (const name of FOUND_HERE) {
    it(name, async (test) => {
      const mutant = mutants.find((it) => it.name === name);
      assert.ok(mutant);
      const found = findBug(await compileMutant(mutant.number));
      assert.ok(found !== null, `nothing noticed it: ${mutant.bug}`);
      test.diagnostic(found);
    });
  }
});
