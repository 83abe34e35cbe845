// `ribbon bench cache`: what the card's cache is worth. Warm hits at the front end, against the firmware of the first slice, which had
// nothing but a RAM cache; and hit rates of recorded PCs, against the caches of models.ts, in simulated time.

import fs from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import { loadFirmware } from '../card/firmware.js';
import { InProcessCard } from '../card/in-process.js';
import { DEFAULT_SETTINGS } from '../card/settings.js';
import { Cable } from '../front-end/cable.js';
import { ImageServer } from '../server/server.js';
import { Store } from '../store/store.js';
import { firstSlice, type Parts } from './cache/first-slice.js';
import { lruMisses, optimumMisses, references } from './cache/models.js';
import { replay } from './cache/replay.js';
import { recordedTraces, severalBoots, severalDays, type Workload } from './cache/workloads.js';
import { CMD_READ_MULTIPLE, IMAGE_SIZE, rate, setMultiple, warm } from './front-end.js';
import type { Benchmark, BenchOptions, Figure } from './report.js';

const BLOCK_SIZE = 4096;
const IMAGE_BLOCKS = IMAGE_SIZE / BLOCK_SIZE;
const PAIRS = 25;
const WARM_TIMEOUT_MS = 60_000;
const FILL_TRIES = 20;
const SETTLE_MS = 200;
/** Of the blocks that a trace touches, in percent. */
const STORE_SIZES = [10, 20, 40, 80];

const benchmark: Benchmark = {
  title:
    'the cache: warm 4 KiB read hits at the front end, and hit rates of recorded PCs by the size of the local store',
  async run(options: BenchOptions, onProgress): Promise<Figure[]> {
    const figures = await warmHits(options.quick, onProgress);
    const recorded = await recordedTraces(options.quick, onProgress);
    for (const workload of [severalBoots(recorded, options.quick), severalDays(recorded, options.quick)]) {
      figures.push(...hitRates(workload, onProgress));
    }
    return figures;
  },
};

export default benchmark;

// Warm hits

const TODAY: Parts = { loadFirmware, InProcessCard, DEFAULT_SETTINGS, Cable, ImageServer, Store };

/** Both cards are there and take turns, so that whatever else the machine does hits both; what counts is processor time. */
async function warmHits(quick: boolean, onProgress: (text: string) => void): Promise<Figure[]> {
  const parts = await firstSlice(onProgress);
  onProgress('warm hits');
  const count = quick ? 10_000 : 100_000;
  const card = await WarmCard.start(TODAY);
  const peer = parts === null ? null : await WarmCard.start(parts);
  try {
    const ofStore = await card.powerCycle();
    const pairs: { ram: number; peer: number }[] = [];
    // The first pair is not counted: the compilers of both are at work in it.
    for (let i = 0; i <= (quick ? 1 : PAIRS); i++) {
      const pair = { ram: card.hits(count), peer: peer?.hits(count) ?? Number.NaN };
      if (i > 0) pairs.push(pair);
    }
    const name = '4K read hit, RAM cache before a local store, processor time';
    const ram = median(pairs.map((pair) => pair.ram));
    const ratios = pairs.map((pair) => pair.ram / pair.peer).sort((a, b) => a - b);
    return [
      peer === null
        ? { name: `${name} (no peer: this checkout has no history)`, value: ram, unit: '/s' }
        : {
            name,
            value: ram,
            unit: '/s',
            peer: { name: 'first slice', value: median(pairs.map((pair) => pair.peer)) },
            ratio: { median: median(ratios), least: ratios[0], most: ratios[ratios.length - 1] },
            bar: 0.9,
          },
      { name: '4K read hit that only the local store has', value: ofStore, unit: '/s' },
    ];
  } finally {
    await card.stop();
    await peer?.stop();
  }
}

function median(values: number[]): number {
  return [...values].sort((a, b) => a - b)[values.length >> 1];
}

/** A card, of today or of then, whose RAM cache holds the whole image; today's has it in its store, a file, too. */
class WarmCard {
  #card!: InProcessCard;
  #cable!: Cable;

  private constructor(
    readonly parts: Parts,
    readonly folder: string,
    readonly store: Store,
    readonly server: ImageServer,
  ) {}

  static async start(parts: Parts): Promise<WarmCard> {
    const folder = fs.mkdtempSync(path.join(os.tmpdir(), 'ribbon-bench-'));
    const store = await parts.Store.open(path.join(folder, 'store'));
    await store.images.create('bench', IMAGE_SIZE);
    const server = new parts.ImageServer({
      exports: store,
      listen: [{ kind: 'unix', path: path.join(folder, 'nbd') }],
    });
    await server.listen();
    const warmCard = new WarmCard(parts, folder, store, server);
    await warmCard.#powerOn();
    await warm(warmCard.#cable, CMD_READ_MULTIPLE);
    return warmCard;
  }

  async #powerOn(): Promise<void> {
    const { parts, folder } = this;
    this.#card = new parts.InProcessCard({
      firmware: parts.loadFirmware(),
      settings: { ...parts.DEFAULT_SETTINGS, exportName: 'bench' },
      path: { address: { path: path.join(folder, 'nbd') } },
      storeFile: path.join(folder, 'card'),
    });
    this.#cable = new parts.Cable([this.#card.frontEnd]);
    await this.#card.start();
    setMultiple(this.#cable);
  }

  /** The power goes and comes back. Hits a second of the blocks that only the store has now; afterwards the RAM cache has them. */
  async powerCycle(): Promise<number> {
    for (let tries = 0; (await this.#settled()) < IMAGE_BLOCKS; tries++) {
      if (tries === FILL_TRIES) throw new Error('the local store does not take the whole image');
      // What comes faster than it can be stored is left out: it comes again to a card that does not have it.
      await this.#restart();
      await warm(this.#cable, CMD_READ_MULTIPLE);
    }
    await this.#restart();
    const before = this.#card.statistics().storeBlocksRead;
    const hits = rate(this.#cable, CMD_READ_MULTIPLE, IMAGE_BLOCKS);
    const fromStore = this.#card.statistics().storeBlocksRead - before;
    if (fromStore < IMAGE_BLOCKS) throw new Error(`${fromStore} of ${IMAGE_BLOCKS} blocks came from the local store`);
    return hits;
  }

  async #restart(): Promise<void> {
    this.#card.cut();
    await this.#powerOn();
    await until(() => this.#card.statistics().linkState === 'up');
  }

  /** Blocks that the store has when it takes no more. */
  async #settled(): Promise<number> {
    for (let blocks = -1; ; ) {
      const { storeBlocksUsed } = this.#card.statistics();
      if (storeBlocksUsed === blocks) return blocks;
      blocks = storeBlocksUsed;
      await new Promise((resolve) => setTimeout(resolve, SETTLE_MS));
    }
  }

  /** Read hits for each second of processor time. */
  hits(count: number): number {
    const misses = this.#card.statistics().blockMisses;
    const before = process.cpuUsage();
    rate(this.#cable, CMD_READ_MULTIPLE, count);
    const { user, system } = process.cpuUsage(before);
    if (this.#card.statistics().blockMisses !== misses) throw new Error('the RAM cache does not hold the image');
    return (count * 1e6) / (user + system);
  }

  async stop(): Promise<void> {
    await this.#card.stop();
    await this.server.close();
    await this.store.close();
    fs.rmSync(this.folder, { recursive: true });
  }
}

async function until(condition: () => boolean): Promise<void> {
  const end = Date.now() + WARM_TIMEOUT_MS;
  while (!condition()) {
    if (Date.now() > end) throw new Error(`did not happen within ${WARM_TIMEOUT_MS} ms: ${condition}`);
    await new Promise((resolve) => setTimeout(resolve, 10));
  }
}

// Hit rates

/** Of all blocks that the PC reads, how many the image server is not asked for. Read-ahead that nobody needs counts as a miss. The
 * peers have as many blocks as the card's store has held. */
function hitRates(workload: Workload, onProgress: (text: string) => void): Figure[] {
  const figures: Figure[] = [];
  const wanted = references(workload.accesses);
  for (const percent of STORE_SIZES) {
    onProgress(`${workload.name}, ${percent} %`);
    const storeBlocks = (wanted.distinct * percent) / 100;
    const ours = replay(workload.accesses, { sectors: workload.sectors, storeBlocks });
    const hits = (misses: number): number => 100 * (1 - misses / wanted.reads);
    const name = `${workload.name}, ${percent} % (${ours.heldBlocks} blocks)`;
    const figure = { value: hits(ours.fetched), unit: '%' };
    figures.push(
      {
        name,
        ...figure,
        peer: { name: 'LRU', value: hits(lruMisses(wanted, ours.heldBlocks)) },
        bar: workload.barLru,
      },
      {
        name: '',
        ...figure,
        peer: { name: 'optimum', value: hits(optimumMisses(wanted, ours.heldBlocks)) },
        bar: workload.barOptimum,
      },
    );
  }
  return figures;
}
