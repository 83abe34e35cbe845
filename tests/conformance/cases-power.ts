import assert from 'node:assert/strict';
import { STATUS_DRQ } from '../../host/front-end/front-end.js';
import type { ConformanceCase } from './case.js';
import { assertSuccess, lba28, type Pc } from './pc.js';

const CHECK_POWER_MODE = 0xe5;
const [STANDBY, IDLE, ACTIVE] = [0x00, 0x80, 0xff];

async function powerMode(pc: Pc, code = CHECK_POWER_MODE): Promise<number> {
  await pc.succeed(code, { count: 0x55 });
  return pc.read(2);
}

/** Standby timer periods of [ATA-6] 8.17, in seconds. */
const PERIODS: [number, number][] = [
  [1, 5],
  [12, 60],
  [240, 1200],
  [241, 1800],
  [251, 19800],
  [252, 1260],
  [253, 28800],
  [255, 1275],
];

export const POWER_CASES: ConformanceCase[] = [
  {
    name: 'modes follow the commands, by new and by old codes',
    run: async (pc) => {
      await pc.ready();
      assert.equal(await powerMode(pc), ACTIVE);
      for (const [standbyImmediate, idleImmediate, standby, idle, check] of [
        [0xe0, 0xe1, 0xe2, 0xe3, 0xe5],
        [0x94, 0x95, 0x96, 0x97, 0x98],
      ]) {
        await pc.succeed(standbyImmediate);
        assert.equal(await powerMode(pc, check), STANDBY);
        await pc.succeed(idleImmediate);
        assert.equal(await powerMode(pc, check), IDLE);
        await pc.succeed(standby, { count: 0 });
        assert.equal(await powerMode(pc, check), STANDBY);
        await pc.succeed(idle, { count: 0 });
        assert.equal(await powerMode(pc, check), IDLE);
        assertSuccess(await pc.readPio(0x20, lba28(0, 1), 1));
        assert.equal(await powerMode(pc, check), ACTIVE, 'an access to the medium ends it');
      }
    },
  },
  {
    name: 'the standby timer',
    simulatedTime: true,
    run: async (pc, rig) => {
      await pc.ready();
      for (const [value, seconds] of PERIODS) {
        for (const code of [0xe3, 0xe2]) {
          await pc.succeed(code, { count: value });
          await pc.readPio(0x20, lba28(0, 1), 1);
          await rig.pass(seconds * 1000 - 100);
          assert.equal(await powerMode(pc), ACTIVE, `${value}: before ${seconds} s`);
          await rig.pass(200);
          assert.equal(await powerMode(pc), STANDBY, `${value}: after ${seconds} s`);
        }
      }
      await pc.succeed(0xe3, { count: 0 });
      await rig.pass(48 * 3600 * 1000);
      assert.equal(await powerMode(pc), IDLE, '0 switches it off');
    },
  },
  ...[0xe6, 0x99].map((code) => ({
    name: `SLEEP (${code.toString(16)}h) ends with a reset and nothing else`,
    run: async (pc: Pc) => {
      await pc.ready();
      await pc.succeed(code);
      for (const command of [0xec, 0x20, 0xe7]) {
        pc.start(command, lba28(0, 1));
        assert.equal((await pc.ready()) & STATUS_DRQ, 0, 'no command is taken');
        assert.equal(pc.interrupt, false);
      }
      assert.equal((await pc.softwareReset()).error, 0x01);
      assertSuccess(await pc.readPio(0x20, lba28(0, 1), 1));
      assert.equal(await powerMode(pc), ACTIVE);
    },
  })),
];
