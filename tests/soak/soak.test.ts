// The bounded soak of `npm test`, and what makes a soak worth anything: it repeats itself exactly, it lets nothing of the real
// world in, and it finds bugs that are there.

import assert from 'node:assert/strict';
import crypto from 'node:crypto';
import os from 'node:os';
import { test } from 'node:test';
import { loadFirmware } from '../../host/card/firmware.js';
import { guarded } from '../../host/soak/guard.js';
import { compileMutant, listMutants } from '../../host/soak/mutants.js';
import { runSeeds } from '../../host/soak/pool.js';
import { run } from '../../host/soak/run.js';
import { drawScenario, FAULT_KINDS, OPERATIONS } from '../../host/soak/scenario.js';
import { applyKeep, formatKeep, shrink } from '../../host/soak/shrink.js';
import type { RunSummary } from '../../host/soak/summary.js';

const SEEDS = 300;
const STORE_FAULTS = [
  ...['store-lost-write', 'store-misdirected-write', 'store-bit-rot', 'store-read-error', 'store-slow'],
  ...['store-failed-write', 'store-failed-flush', 'store-refused'],
];

test(`${SEEDS} seeds keep every promise`, async () => {
  const failed: string[] = [];
  const kinds = new Set<string>();
  let generations = 0;
  await runSeeds({
    firmware: loadFirmware(),
    first: 1,
    count: SEEDS,
    length: OPERATIONS,
    jobs: Math.min(4, os.availableParallelism()),
    onResult: (summary: RunSummary) => {
      generations += summary.generations;
      for (const [kind] of summary.faults) kinds.add(kind);
      if (summary.violation !== null) {
        failed.push(
          `npx ribbon soak --seed ${summary.seed} --trace  # ${summary.violation.oracle}: ${summary.violation.message}`,
        );
      }
      return failed.length < 5;
    },
  });
  assert.deepEqual(failed, []);
  // A soak in which nothing happens proves nothing.
  const missing = [...FAULT_KINDS, ...STORE_FAULTS].filter((kind) => !kinds.has(kind));
  assert.deepEqual(missing, []);
  assert.ok(generations > SEEDS * 20, `${generations} generations`);
});

/** Each has broken a promise once: a log that had lost its end; a flush after a power-on; checker's own mistakes (eight of them); a long
 * read from a server that came and went; a card that came back while its branch was being made, or had not heard of it; a torn record that
 * came to light again; a full log that was moved round and round, whose merge a power-on forgot, was ahead of its records in a summary, or
 * counted twice in the lag; a card that had been without its server for 17 power-ons; a flush that failed and took a superblock or a summary
 * with it; a summary that waited for a flush that nobody made; an epoch that was closed before the copies for which older ones had not
 * been sent; a read that was never answered when the local store had failed and others had changed the image. */
test('seeds that have failed before', async () => {
  const firmware = loadFirmware();
  const seeds = [
    5042, 5086, 5117, 5227, 5426, 654, 1031, 1254, 1277, 1334, 2588, 6019, 7153, 20806, 21198, 21716, 22661, 22756,
    22768, 23449, 24980, 25154, 25300, 30273, 30317, 31944, 33139, 61000, 70207, 700095, 702241,
  ];
  for (const seed of seeds) {
    const { violation } = await run(drawScenario(seed), { firmware });
    assert.equal(violation, null, `npx ribbon soak --seed ${seed} --trace`);
  }
});

test('a seed is one run: the same again, event by event', async () => {
  const firmware = loadFirmware();
  for (const seed of [2, 9, 21, 42]) {
    const lines: string[][] = [[], []];
    const results = [];
    for (const trace of lines)
      results.push(await run(drawScenario(seed), { firmware, trace: (line) => trace.push(line) }));
    assert.deepEqual(lines[0], lines[1]);
    assert.equal(results[0].digest, results[1].digest);
    assert.ok(lines[0].length > 100);
  }
  const digests = new Set<number>();
  for (let seed = 1; seed <= 5; seed++) digests.add((await run(drawScenario(seed), { firmware })).digest);
  assert.equal(digests.size, 5);
});

test('the guard keeps real clocks and real chance out', async () => {
  const uses: (() => unknown)[] = [
    () => Date.now(),
    () => new Date(),
    () => Math.random(),
    () => performance.now(),
    () => crypto.randomBytes(1),
    () => setTimeout(() => {}, 1),
    () => setInterval(() => {}, 1),
  ];
  for (const use of uses)
    await assert.rejects(
      guarded({}, async () => use()),
      /not for simulated runs/,
    );
  assert.equal(await guarded({ randomBytes: () => 'the world' }, async () => crypto.randomBytes(1)), 'the world');
  assert.ok(Date.now() > 0 && crypto.randomBytes(1).length === 1);
});

test('mutants that the whole list stands for are found', async (context) => {
  const mutants = listMutants();
  assert.ok(mutants.length >= 20, `${mutants.length} mutants`);
  assert.equal(new Set(mutants.map(({ number }) => number)).size, mutants.length);
  // Order, lag and cache; `ribbon soak --mutants` tries them all, and more seeds.
  for (const name of ['void-returns', 'lag-too-small', 'stale-fill', 'cache-not-updated']) {
    await context.test(name, async () => {
      const mutant = mutants.find((it) => it.name === name);
      assert.ok(mutant);
      const firmware = await compileMutant(mutant.number);
      let found = false;
      for (let seed = 1; seed <= 60 && !found; seed++) {
        found = (await run(drawScenario(seed), { firmware })).violation !== null;
      }
      assert.ok(found, mutant.bug);
    });
  }
});

test('a build without a mutant is the firmware', async () => {
  const firmware = await compileMutant(0);
  for (const seed of [2, 9]) {
    const [ours, built] = [
      await run(drawScenario(seed), { firmware }),
      await run(drawScenario(seed), { firmware: loadFirmware() }),
    ];
    assert.equal(ours.violation, null);
    assert.equal(ours.digest, built.digest);
  }
});

test('a failing run is shrunk to one that fails the same way and is named in one line', async () => {
  const firmware = await compileMutant(listMutants().find(({ name }) => name === 'lag-too-small')!.number);
  let seed = 1;
  let failed = await run(drawScenario(seed), { firmware });
  while (failed.violation === null) failed = await run(drawScenario(++seed), { firmware });
  const shrunk = await shrink(failed, { firmware });
  assert.equal(shrunk.result.violation?.oracle, failed.violation.oracle);
  assert.ok(shrunk.scenario.operations.length < 20, `${shrunk.scenario.operations.length} operations`);
  const again = applyKeep(drawScenario(seed), formatKeep(shrunk.scenario));
  assert.ok(again);
  const replayed = await run(again, { firmware });
  assert.equal(replayed.violation?.message, shrunk.result.violation?.message);
});

test('--keep lists', () => {
  const scenario = drawScenario(1);
  assert.equal(applyKeep(scenario, '0-2,5')?.operations, undefined);
  assert.equal(applyKeep(scenario, 'x/1'), null);
  assert.equal(applyKeep(scenario, '1-/'), null);
  const kept = applyKeep(scenario, '0-2,5/');
  assert.deepEqual(
    kept?.operations.map(({ number }) => number),
    [0, 1, 2, 5],
  );
  assert.deepEqual(kept?.faults, []);
  assert.equal(formatKeep(kept!), '0-2,5/');
});
