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
import { StoreRig } from './rig.js';
import { WORKLOADS, type Workload } from './workloads.js';

/** The least that the PC may count on: with `received` nothing but what was flushed. */
function trusted(rig: StoreRig): number {
  return rig.settings.acknowledgementPoint === 'received' ? rig.generation : rig.history.acknowledged;
}

function makeRig(workload: Workload): StoreRig {
  return new StoreRig({ sectors: workload.sectors ?? 2048, settings: workload.settings ?? {} });
}

/** Operations of the whole workload, power-on included. */
function countOperations(workload: Workload): number {
  const rig = makeRig(workload);
  rig.powerOn();
  workload.run(rig);
  return rig.store.operations;
}

/** Cuts when operation `at` starts; false when the workload was over before. */
function runAndCut(workload: Workload, at: number): StoreRig {
  const rig = makeRig(workload);
  rig.store.cutAt = at;
  rig.powerOn();
  if (!rig.cut) workload.run(rig);
  rig.powerOff();
  return rig;
}

function recoverAndCheck(rig: StoreRig, how: PowerCut): void {
  rig.store.powerCut(how);
  rig.setReachable(true);
  rig.powerOn();
  const { storeState, storeError } = rig.card.statistics();
  assert.equal(storeState, 'ready', `the store is ${storeState}: ${storeError}`);
  rig.history.acknowledged = trusted(rig);
  rig.history.truncate(rig.checkView());
  rig.drain();
  // The card goes on where it was.
  rig.write(17, 30);
  rig.write(20, 3);
  rig.drain();
  assert.equal(rig.generation, rig.history.issued);
  rig.powerOff();
}

describe('power cuts', () => {
  for (const workload of WORKLOADS) {
    const operations = countOperations(workload);
    it(`${workload.name}: ${operations} operations, the unflushed lost, kept, or left to chance`, () => {
      for (let at = 1; at <= operations; at++) {
        const cuts: PowerCut[] = [
          { kind: 'lose-all' },
          { kind: 'keep-all', sectors: 0 },
          { kind: 'chance', random: new Random(at) },
          { kind: 'chance', random: new Random(at + 10_000) },
        ];
        for (const how of cuts) check(workload, at, how);
      }
    });

    it(`${workload.name}: torn inside a write`, () => {
      for (let at = 1; at <= operations; at++) {
        const { cutSectors } = runAndCut(workload, at).store;
        // Every sector of the header, then every other block.
        for (let sectors = 1; sectors <= cutSectors; sectors += sectors < 8 ? 1 : 16) {
          check(workload, at, { kind: 'keep-all', sectors });
        }
      }
    });
  }

  function check(workload: Workload, at: number, how: PowerCut): void {
    const rig = runAndCut(workload, at);
    try {
      recoverAndCheck(rig, how);
    } catch (error) {
      const what = how.kind === 'keep-all' ? `${how.kind}, ${how.sectors} sectors of the last` : how.kind;
      (error as Error).message +=
        `\nworkload "${workload.name}", cut at operation ${at}, ${what}\n${rig.log.slice(-12).join('\n')}`;
      throw error;
    }
  }
});
