// A workload, a power cut, and what must hold afterwards.

import assert from 'node:assert/strict';
import type { StoreOperation } from '../../host/card/store.js';
import type { PowerCut } from '../../host/simulation/simulated-store.js';
import { StoreRig } from './rig.js';
import type { Workload } from './workloads.js';

/** The least that the PC may count on: with `received` nothing but what was flushed. */
function trusted(rig: StoreRig): number {
  return rig.settings.acknowledgementPoint === 'received'
    ? Math.max(rig.generation, rig.flushed)
    : rig.history.acknowledged;
}

function makeRig(workload: Workload, firmware?: WebAssembly.Module): StoreRig {
  const settings = workload.settings ?? {};
  return new StoreRig({
    sectors: workload.sectors ?? 2048,
    settings,
    storeMs: workload.storeMs ?? 0,
    ...(firmware && { firmware }),
  });
}

/** Operations of the whole workload, power-on included. */
export function countOperations(workload: Workload, onStart: (operation: StoreOperation) => void = () => {}): number {
  const rig = makeRig(workload);
  rig.store.onStart = onStart;
  rig.powerOn();
  workload.run(rig);
  const { operations } = rig.store;
  rig.dispose();
  return operations;
}

/** Cuts when operation `at` starts; false when the workload was over before. */
export function runAndCut(workload: Workload, at: number, firmware?: WebAssembly.Module): StoreRig {
  const rig = makeRig(workload, firmware);
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
}

/** Fails, saying how to do it again, when the card does not come back as it must. */
export function checkCut(workload: Workload, at: number, how: PowerCut, firmware?: WebAssembly.Module): void {
  const rig = runAndCut(workload, at, firmware);
  try {
    recoverAndCheck(rig, how);
  } catch (error) {
    const what = how.kind === 'keep-all' ? `${how.kind}, ${how.sectors} sectors of the last` : how.kind;
    (error as Error).message +=
      `\nworkload "${workload.name}", cut at operation ${at}, ${what}\n${rig.log.slice(-12).join('\n')}`;
    throw error;
  } finally {
    rig.dispose();
  }
}
