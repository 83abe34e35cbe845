// Lives from seeds: random work, faults and power cuts on a log that goes round (life.ts).

import { describe, it } from 'node:test';
import { DESCRIBE_LIFE, live } from './life.js';

const SEEDS = 16;
const STEPS = 300;

describe("a card's life", () => {
  for (let seed = 1; seed <= SEEDS; seed++) {
    it(`seed ${seed}`, (test) => test.diagnostic(DESCRIBE_LIFE(live(seed, STEPS))));
  }
});
