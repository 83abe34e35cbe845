// The conformance tests: what any card must do as an ATA device, each on a rig of its own.

import { describe, it } from 'node:test';
import { type ConformanceCase, SIZE } from './case.js';
import { ABORT_CASES } from './cases-abort.js';
import { ADDRESS_CASES } from './cases-address.js';
import { DATA_CASES } from './cases-data.js';
import { FAULT_CASES } from './cases-fault.js';
import { FEATURE_CASES } from './cases-features.js';
import { FLUSH_CASES } from './cases-flush.js';
import { IDENTIFY_CASES } from './cases-identify.js';
import { POWER_CASES } from './cases-power.js';
import { REGISTER_CASES } from './cases-registers.js';
import { RESET_CASES } from './cases-reset.js';
import { Pc } from './pc.js';
import type { MakeRig } from './rig.js';

const GROUPS: Record<string, ConformanceCase[]> = {
  reset: RESET_CASES,
  registers: REGISTER_CASES,
  'data commands': DATA_CASES,
  addresses: ADDRESS_CASES,
  'commands that are not supported': ABORT_CASES,
  'SET FEATURES, SET MULTIPLE MODE, INITIALIZE DEVICE PARAMETERS': FEATURE_CASES,
  'IDENTIFY DEVICE': IDENTIFY_CASES,
  'FLUSH CACHE': FLUSH_CASES,
  'power management': POWER_CASES,
  faults: FAULT_CASES,
};

/** So that one that hangs is named: all of them together take less. */
const CASE_TIMEOUT_MS = 180_000;

/** Declares all tests for one kind of card. */
export function conformance(kind: string, makeRig: MakeRig, options: { simulatedTime: boolean }): void {
  describe(`ATA conformance of ${kind}`, () => {
    for (const [group, cases] of Object.entries(GROUPS)) {
      describe(group, () => {
        for (const test of cases) {
          if (test.simulatedTime && !options.simulatedTime) continue;
          it(test.name, { timeout: CASE_TIMEOUT_MS }, async () => {
            const rig = await makeRig(test.devices ?? [{ deviceNumber: 0, size: SIZE }]);
            try {
              await test.run(new Pc(rig), rig);
            } finally {
              await rig.close();
            }
          });
        }
      });
    }
  });
}
