// Power is cut at operation 1, 2, 3, … of a workload, to its end. After each cut the store opens by itself, every commit that was
// acknowledged is there, none is there in part, every kept generation reads as it was written, and verify finds nothing.

import assert from 'node:assert/strict';
import { test } from 'node:test';
import type { LineExport } from '../../host/store/line-export.js';
import { PowerCut } from '../../host/store/memory-files.js';
import type { Store, StoreOptions } from '../../host/store/store.js';
import { verify } from '../../host/store/verify.js';
import {
  afterPowerCut,
  BLOCK,
  blockOf,
  CLIENT,
  type Content,
  generator,
  type Medium,
  mismatches,
  newMedium,
  openStore,
} from './model.js';

const BLOCKS = 100;
const LINES = ['a', 'b'];
/** More of them: RIBBON_SEEDS=20 node --test build/tests/store/power-cut.test.js */
const SEEDS = Array.from({ length: Number(process.env.RIBBON_SEEDS ?? 1) }, (_, index) => index + 1);

class Model {
  /** line -> generation -> content. */
  generations = new Map<string, Map<number, Content>>();
  acknowledged = new Map<string, number>();
  attempted = new Map<string, number>();

  /** As it is now. What a generation holds does not change any more. */
  copy(): Model {
    const copy = new Model();
    copy.generations = new Map([...this.generations].map(([line, versions]) => [line, new Map(versions)]));
    copy.acknowledged = new Map(this.acknowledged);
    copy.attempted = new Map(this.attempted);
    return copy;
  }
}

/** What a power cut at an operation leaves: taken as the operation begins, so that one run of the workload serves many cuts. */
interface Cut {
  number: number;
  medium: Medium;
  model: Model;
  random: () => number;
}

/** Cuts for each run of the workload: their media are all in memory. */
const CUTS_AT_ONCE = 32;

/** A seeded run of writes, zeroes, commits, digests, broken connections and re-opens. */
async function workload(medium: Medium, model: Model, random: () => number, options: StoreOptions): Promise<void> {
  const pick = (count: number) => Math.floor(random() * count);
  let store = await openStore(medium, options);
  for (const name of LINES) {
    model.generations.set(name, new Map([[1, new Map()]]));
    model.attempted.set(name, 1);
    await store.images.create(name, BLOCKS * BLOCK);
    model.acknowledged.set(name, 1);
  }
  let stamp = 0;
  for (let round = 0; round < 5; round++) {
    for (const name of LINES) {
      const opened = await store.open(name, CLIENT);
      const versions = model.generations.get(name)!;
      let open: Content = new Map(versions.get(model.acknowledged.get(name)!));
      const writes = 2 + pick(14);
      for (let write = 0; write < writes; write++) {
        const first = pick(BLOCKS);
        const count = 1 + pick(Math.min(random() < 0.2 ? 40 : 10, BLOCKS - first));
        if (random() < 0.12) {
          const zeroed = Math.min(BLOCKS - first, 1 + pick(90));
          await opened.zero(first * BLOCK, zeroed * BLOCK);
          for (let block = first; block < first + zeroed; block++) open.delete(block);
        } else {
          const values = Array.from({ length: count }, () => (random() < 0.2 ? 1 + pick(5) : 1000 + ++stamp));
          await opened.write(first * BLOCK, Buffer.concat(values.map(blockOf)));
          for (const [index, value] of values.entries()) open.set(first + index, value);
        }
        if (random() < 0.25) await commit(opened, name, model, open);
      }
      if (random() < 0.7) await commit(opened, name, model, open);
      await opened.close(false);
      open = new Map();
    }
    if (random() < 0.4) await store.digestAll();
    if (random() < 0.25) {
      await store.close();
      store = await openStore(medium, options);
    }
  }
  await store.close();
}

async function commit(opened: LineExport, name: string, model: Model, open: Content): Promise<void> {
  if (opened.epochEmpty && !opened.isSpilling) return;
  const next = model.acknowledged.get(name)! + 1;
  model.generations.get(name)!.set(next, new Map(open));
  model.attempted.set(name, next);
  await opened.commit();
  model.acknowledged.set(name, next);
}

async function check(store: Store, model: Model, where: string): Promise<void> {
  for (const name of LINES) {
    const acknowledged = model.acknowledged.get(name);
    if (acknowledged === undefined) continue;
    const head = store.generation(name);
    assert.ok(head >= acknowledged, `${where}: ${name} is at ${head}, ${acknowledged} was acknowledged`);
    assert.ok(head <= model.attempted.get(name)!, `${where}: ${name} is at ${head}, beyond anything attempted`);
    for (const { generation } of store.generations(name)) {
      const opened = await store.open(`${name}@${generation}`, CLIENT);
      const wrong = await mismatches(opened, model.generations.get(name)!.get(generation)!, BLOCKS);
      assert.deepEqual(wrong, [], `${where}: ${name}@${generation}`);
      await opened.close(true);
    }
    assert.equal(store.generations(name).at(-1)!.generation, head);
  }
  assert.deepEqual((await verify(store)).damages, [], where);
}

/** The power cuts at operations `from` on, up to CUTS_AT_ONCE of them, or to the end of the workload and one after it. */
async function cutsFrom(seed: number, from: number, options: StoreOptions): Promise<{ cuts: Cut[]; ended: boolean }> {
  const medium = newMedium();
  const model = new Model();
  const cuts: Cut[] = [];
  medium.files.cutAt = from + CUTS_AT_ONCE;
  const cut = (number: number): void => {
    if (number < from || number >= medium.files.cutAt) return;
    const random = generator(seed * 7919 + number);
    cuts.push({ number, medium: afterPowerCut(medium, random), model: model.copy(), random });
  };
  medium.files.onOperation = cut;
  try {
    await workload(medium, model, generator(seed), options);
  } catch (error) {
    if (!(error instanceof PowerCut) && !/power cut/.test(String(error))) throw error;
    return { cuts, ended: false };
  }
  medium.files.cutAt = Number.POSITIVE_INFINITY;
  cut(medium.files.operations + 1);
  return { cuts, ended: true };
}

async function cutEverywhere(seed: number, options: StoreOptions): Promise<number> {
  for (let from = 1; ; from += CUTS_AT_ONCE) {
    const { cuts, ended } = await cutsFrom(seed, from, options);
    for (const { number, medium, model, random } of cuts) {
      // All of the work is microtasks: let the test runner breathe.
      await new Promise<void>((resolve) => setImmediate(resolve));
      // The power may fail again while the store recovers.
      if (random() < 0.5) {
        medium.files.cutAt = 1 + Math.floor(random() * 12);
        try {
          await (await openStore(medium, options)).close();
        } catch (error) {
          if (!/power cut/.test(String(error))) throw error;
        }
      }
      const store = await openStore(afterPowerCut(medium, random), options);
      await check(store, model, `seed ${seed}, cut ${number}`);
      await store.close();
    }
    if (ended) return from + cuts.length - 2;
  }
}

const VARIANTS: { name: string; options: StoreOptions }[] = [
  { name: 'every generation kept', options: {} },
  { name: 'generations close in time kept as one', options: { coalesceMs: 30 } },
  { name: 'small epochs leave memory', options: { spillBlocks: 6 } },
];

// Outside of test(): the runner follows every promise, which doubles the time.
const operations: (number | Error)[] = [];
for (const [index, { options }] of VARIANTS.entries()) {
  let count = 0;
  try {
    for (const seed of SEEDS) count += await cutEverywhere(index * 100 + seed, options);
    operations.push(count);
  } catch (error) {
    operations.push(error as Error);
  }
}

for (const [index, { name }] of VARIANTS.entries()) {
  test(`power cut after every operation: ${name}`, () => {
    const result = operations[index];
    if (result instanceof Error) throw result;
    assert.ok(result > 100, `only ${result} operations were cut`);
  });
}
