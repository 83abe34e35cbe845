import assert from 'node:assert/strict';
import { STATUS_DRQ } from '../../host/front-end/front-end.js';
import type { ConformanceCase } from './case.js';
import { assertError, ERROR_ABRT, hex } from './pc.js';

/** Every command code that the card supports; all others must end in ABRT. */
const SUPPORTED = new Set([
  ...range(0x10, 0x1f),
  ...[0x20, 0x21, 0x24, 0x25, 0x29, 0x30, 0x31, 0x34, 0x35, 0x39, 0x40, 0x41, 0x42],
  ...range(0x70, 0x7f),
  ...[0x90, 0x91, ...range(0x94, 0x99)],
  ...[0xc4, 0xc5, 0xc6, 0xc8, 0xc9, 0xca, 0xcb],
  ...[0xe0, 0xe1, 0xe2, 0xe3, 0xe5, 0xe6, 0xe7, 0xea, 0xec, 0xef],
]);

function range(first: number, last: number): number[] {
  return Array.from({ length: last - first + 1 }, (_, index) => first + index);
}

export const ABORT_CASES: ConformanceCase[] = [
  {
    name: 'every other code ends in ABRT and leaves the registers',
    run: async (pc) => {
      await pc.ready();
      const registers = { features: 0x11, count: 0x22, lbaLow: 0x33, lbaMid: 0x44, lbaHigh: 0x55, device: 0x46 };
      for (let code = 0; code < 256; code++) {
        if (SUPPORTED.has(code)) continue;
        const ending = await pc.command(code, registers);
        assert.equal(ending.status & STATUS_DRQ, 0);
        assertError(ending, ERROR_ABRT);
        assert.deepEqual(
          [2, 3, 4, 5, 6].map((register) => pc.read(register)),
          [0x22, 0x33, 0x44, 0x55, 0xe6],
          `after command ${hex(code)}`,
        );
      }
    },
  },
  {
    name: "what BIOSes try first: IDENTIFY PACKET DEVICE, DEVICE RESET and PACKET; the signature stays a disk's",
    run: async (pc) => {
      await pc.ready();
      for (const code of [0xa1, 0x08, 0xa0]) {
        assertError(await pc.command(code), ERROR_ABRT);
        assert.notDeepEqual([pc.read(4), pc.read(5)], [0x14, 0xeb]);
      }
      assert.equal((await pc.identify())[0] & 0x8000, 0);
    },
  },
];
