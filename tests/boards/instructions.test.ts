// The instruction budget as a regression test: `ribbon bench arm`'s figures for compiled code and for wasm3, which are counted and not timed, within
// a little more than they are; those that nothing else has a part in are the same once more.

import assert from 'node:assert/strict';
import { before, test } from 'node:test';
import arm, { measureAgain } from '../../host/bench/arm.js';
import { buildBenchCards } from './builds.js';

/** Below the bars of issue 5: what is reached on a quiet machine (4,450, 12,400, 14,700, 15,800; 32,200, 85,600, 78,200), and room for a
 * wake-up more, as on a busy one a timer of the network falls into most commands. */
const BOUNDS: Record<string, number> = {
  'aot: 4 KiB read hit from RAM': 6_000,
  'aot: 4 KiB read hit from the SD card': 15_000,
  'aot: 4 KiB write acknowledged at stored': 16_000,
  'aot: that, while connected to the image server': 18_000,
  'wasm3: 4 KiB read hit from RAM': 43_000,
  'wasm3: 4 KiB read hit from the SD card': 112_000,
  'wasm3: 4 KiB write acknowledged at stored': 90_000,
};
/** A wake-up for a timer of the network is a sixth of a read hit. */
const TOLERANCE = 0.25;

before(buildBenchCards);

test('instruction budget', async (t) => {
  const figures = await arm.run({ quick: true }, () => {});
  for (const name of Object.keys(BOUNDS))
    assert.ok(
      figures.some((figure) => figure.name === name),
      `no figure "${name}"`,
    );
  for (const { name, value, bar } of figures) {
    t.diagnostic(`${name}: ${Math.round(value)}`);
    const bound = Math.min(BOUNDS[name] ?? Infinity, bar ?? Infinity);
    assert.ok(value <= bound, `${name}: ${value}, at most ${bound}`);
  }
  for (const { name, value } of await measureAgain()) {
    const first = figures.find((figure) => figure.name === name)?.value ?? 0;
    assert.ok(Math.abs(value - first) <= TOLERANCE * first, `${name}: ${first}, then ${value}`);
  }
});
