// A card's life from a seed: writes of all sizes, reads that are checked at once, flushes, links that break, power cuts of the
// card at any store operation, switches of the acknowledgement point; long enough for the log to go round several times.

import assert from 'node:assert/strict';
import { ACKNOWLEDGEMENT_POINTS, type CardSettings } from '../../host/card/settings.js';
import type { CardStatistics } from '../../host/card/statistics.js';
import { Random } from '../../host/fuzz/random.js';
import { SECTOR, sectorId } from './history.js';
import { StoreRig } from './rig.js';

export interface Life {
  rig: StoreRig;
  cuts: number;
  failedWrites: number;
  failedReads: number;
  writtenBytes: number;
  /** At its end. */
  statistics: CardStatistics | null;
}

const IMAGE_SECTORS = [2048, 12_288, 65_541];

export function live(seed: number, steps: number, firmware?: WebAssembly.Module): Life {
  const random = new Random(seed);
  const settings: Partial<CardSettings> = {
    epochAgeMs: random.pick([5, 50, 1000]),
    epochSizeBytes: random.pick([64 << 10, 1 << 20, 4 << 20]),
    acknowledgementPoint: random.pick(ACKNOWLEDGEMENT_POINTS.slice(0, 2)),
    offlineReadTimeoutMs: 500,
    writeStallTimeoutMs: random.pick([2000, 20_000]),
  };
  const sectors = random.pick(IMAGE_SECTORS);
  const rig = new StoreRig({
    seed,
    sectors,
    settings,
    latencyMs: random.pick([0, 0, 1, 20]),
    storeMs: random.pick([0, 1, 5]),
    ...(firmware && { firmware }),
  });
  const life: Life = { rig, cuts: 0, failedWrites: 0, failedReads: 0, writtenBytes: 0, statistics: null };
  /** At `received` the PC may count on what it flushed only. */
  let flushed = 0;
  const largest = random.pick([8, 300, 2000]);
  const spread = random.pick([sectors, Math.min(sectors, 600)]);

  rig.powerOn();
  for (let step = 0; step < steps; step++) {
    if (random.chance(0.01)) rig.store.cutAt = rig.store.operations + 1 + random.below(200);
    const what = random.below(100);
    if (what < 70) {
      const lba = random.below(spread);
      const count = Math.min(1 + random.below(random.chance(0.3) ? largest : 16), sectors - lba);
      const outcome = rig.write(lba, count);
      life.writtenBytes += count * SECTOR;
      if (outcome.failed) {
        life.failedWrites += 1;
        rig.history.fail();
      }
    } else if (what < 85) {
      checkRead(rig, life, random);
    } else if (what < 90) {
      const { cut, failed } = rig.flush();
      if (!cut && !failed) flushed = rig.history.issued;
    } else if (what < 95) {
      rig.pass(random.below(random.pick([10, 300, 3000])));
    } else if (what < 98) {
      rig.setReachable(random.chance(0.6));
    }
    if (!rig.cut) continue;
    life.cuts += 1;
    rig.powerOff();
    rig.store.powerCut(
      random.pick([{ kind: 'lose-all' }, { kind: 'keep-all', sectors: random.below(40) }, { kind: 'chance', random }]),
    );
    if (rig.settings.acknowledgementPoint === 'received') rig.history.acknowledged = Math.max(flushed, rig.generation);
    rig.setReachable(true);
    // Sometimes the power goes again while the card comes up.
    if (random.chance(0.3)) rig.store.cutAt = rig.store.operations + 1 + random.below(60);
    rig.powerOn();
    while (rig.cut) {
      rig.powerOff();
      rig.store.powerCut({ kind: 'chance', random });
      rig.powerOn();
    }
    rig.store.cutAt = Number.POSITIVE_INFINITY;
    const { storeState, storeError } = rig.card.statistics();
    assert.equal(storeState, 'ready', `the store is ${storeState}: ${storeError}`);
    rig.history.truncate(rig.checkView());
    flushed = rig.history.issued;
  }
  rig.store.cutAt = Number.POSITIVE_INFINITY;
  rig.setReachable(true);
  rig.pass(20_000);
  rig.checkView();
  rig.drain();
  life.statistics = rig.card.statistics();
  rig.dispose();
  return life;
}

function checkRead(rig: StoreRig, life: Life, random: Random): void {
  const lba = random.below(rig.history.sectors);
  const count = Math.min(1 + random.below(300), rig.history.sectors - lba);
  const { data, failed, cut } = rig.read(lba, count);
  if (cut) return;
  if (failed) {
    life.failedReads += 1;
    return;
  }
  for (let i = 0; i < count; i++) {
    const id = sectorId(data.subarray(i * SECTOR, (i + 1) * SECTOR), lba + i);
    assert.ok(rig.history.isCurrent(lba + i, id), `sector ${lba + i} of a read is of write ${id}`);
  }
}

export const DESCRIBE_LIFE = (life: Life): string => {
  const s = life.statistics!;
  return (
    `${life.rig.history.issued} writes, ${(life.writtenBytes / 2 ** 20).toFixed(0)} MiB, ${life.cuts} cuts, ` +
    `${life.failedWrites} failed writes, ${life.failedReads} failed reads, ${life.rig.disk.commitsDone} generations, ` +
    `${s.merges} merges, ${(s.storeBlocksWritten / 256).toFixed(0)} MiB stored`
  );
};
