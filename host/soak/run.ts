// One run: builds the world that a scenario describes, lets the PC work while things go wrong, then lets everything heal and
// looks whether all is as it must be.

import type { StoreError } from '../card/statistics.js';
import { SimulatedBlockDevice } from './block-device.js';
import { SimulatedCard } from './card.js';
import { Checker } from './checker.js';
import { fillSector, SECTOR_SIZE, setBase, WORDS } from './content.js';
import { type CardFaults, Faults, type StoreWeather } from './faults.js';
import { guarded } from './guard.js';
import { BLOCK, type Blocks, type ImageBackend, MemoryStore } from './memory-store.js';
import { MerkleStore } from './merkle-store.js';
import { rateOf, SimulatedNetwork } from './network.js';
import { SimulatedPc } from './pc.js';
import type { Operation, Scenario } from './scenario.js';
import { SimulatedServer } from './server.js';
import { StoreDamage } from './store-damage.js';
import { MS, replacementsOf, SECOND, Violation, World } from './world.js';

const BLOCK_SECTORS = BLOCK / SECTOR_SIZE;

/** What draining may take besides moving the bytes: the card's back-off (15 s), a silence that it must notice (10 s), the
 * server's patience with a writer that is gone (25 s), commits. */
const DRAIN_US = 60 * SECOND;
/** From the smallest epoch of 16 KiB, doubled each time, to as much as any local store of a run holds: 40 MiB. */
const COMMITS = 12;
/** A run that has not ended after so much simulated time runs in circles. */
const RUN_MAX_US = 6 * 3600 * SECOND;
/** Events of a run: far more than any needs. */
const READ_BACK_SECTORS = 4096;
/** StoreState of the firmware. */
const STORE_REFUSED = 2;
const STORE_FAILED = 3;

export interface RunOptions {
  firmware: WebAssembly.Module;
  /** Gets the timeline, line by line. */
  trace?: (line: string) => void;
}

export interface RunResult {
  scenario: Scenario;
  /** Null: all is well. */
  violation: Violation | null;
  /** Number of the operation that the PC began last. */
  lastOperation: number;
  simulatedUs: number;
  events: number;
  /** Two runs of one scenario have the same. */
  digest: number;
  commands: number;
  errors: number;
  longestUs: number;
  generations: number;
  sectorsChecked: number;
  powerCuts: number;
  writesAtRisk: number;
  connections: number;
  faults: Map<string, number>;
}

export async function run(scenario: Scenario, options: RunOptions): Promise<RunResult> {
  const world = new World(scenario.seed ^ 0x5eed, options.trace ?? null);
  const simulation = new Simulation(world, scenario, options.firmware);
  let violation: Violation | null = null;
  try {
    await guarded(replacementsOf(world), () => simulation.run());
  } catch (error) {
    if (error instanceof Violation) violation = error;
    else violation = new Violation('crash', error instanceof Error ? (error.stack ?? error.message) : String(error));
    world.trace('checker', `${violation.oracle}: ${violation.message}`);
  }
  return simulation.result(violation);
}

class Simulation {
  readonly #world: World;
  readonly #scenario: Scenario;
  readonly #network: SimulatedNetwork;
  readonly #checker: Checker;
  readonly #store: ImageBackend;
  readonly #server: SimulatedServer;
  readonly #card: SimulatedCard;
  readonly #device: SimulatedBlockDevice;
  /** Null: this run's local store damages nothing, and nobody else changes the image. */
  readonly #damage: StoreDamage | null;
  readonly #faults: Faults;
  readonly #pc: SimulatedPc;
  #lastOperation = -1;
  #storeRefused = false;
  /** Merges of power-ons that are over. */
  #merges = 0;
  /** Power is off until then. */
  #powerOnUs = 0;

  constructor(world: World, scenario: Scenario, firmware: WebAssembly.Module) {
    this.#world = world;
    this.#scenario = scenario;
    this.#network = new SimulatedNetwork(world, { ...scenario.network });
    this.#checker = new Checker(
      world,
      Math.floor(scenario.imageBytes / SECTOR_SIZE),
      scenario.settings.acknowledgementPoint,
      scenario.storeKind === 'merkle',
    );
    setBase(scenario.storeKind === 'merkle' ? 'zeroes' : 'pattern');
    const Backend = scenario.storeKind === 'merkle' ? MerkleStore : MemoryStore;
    this.#store = new Backend(world, scenario.imageBytes, scenario.store, this.#checker);
    this.#server = new SimulatedServer(world, this.#network, this.#store);
    const { settings, memorySize, reactionUs, clockStartMs } = scenario;
    this.#device = new SimulatedBlockDevice(world, scenario.device);
    const store = this.#device;
    this.#card = new SimulatedCard(world, this.#network, {
      firmware,
      settings,
      memorySize,
      reactionUs,
      clockStartMs,
      store,
    });
    this.#damage = this.#watchDamage();
    const power: CardFaults = {
      powerCut: (offUs) => this.#powerCut(offUs),
      clockJump: (ms) => this.#card.jumpClock(ms),
    };
    const holdsUp = (): boolean => this.#holdsUp();
    const localStore: StoreWeather = {
      isLost: (lba, count) => this.#damage?.isLost(lba, count) ?? false,
      get holdsUp() {
        return holdsUp();
      },
    };
    const administrators = { change: () => this.#administrate() };
    this.#faults = new Faults(
      world,
      this.#network,
      this.#server,
      this.#store,
      power,
      localStore,
      administrators,
      scenario.faults,
    );
    this.#checker.onCommitted = () => this.#faults.committed();
    this.#faults.lagBytes = () => this.#card.lagBytes;
    this.#pc = new SimulatedPc(world, this.#faults, this.#checker, scenario);
    this.#pc.onOperation = (number) => {
      this.#lastOperation = number;
      this.#checker.commandBegins();
      this.#faults.operation(number);
    };
    this.#card.onStep = () => {
      this.#checker.connected(this.#card.linkUp);
      this.#checker.learnt(this.#card.generation);
      this.#checker.lag(this.#card.lagBytes, this.#card.lagEpochs, this.#card.lagMs);
      if (this.#card.storeState === STORE_REFUSED) this.#refused();
    };
  }

  #watchDamage(): StoreDamage | null {
    const { lostWrite, misdirectedWrite, bitRot, readError } = this.#scenario.device.faults;
    const isChanged = this.#scenario.faults.some(({ kind }) => kind === 'administrator');
    if (lostWrite + misdirectedWrite + bitRot + readError === 0 && !isChanged) return null;
    const damage = new StoreDamage(this.#device.damaged, this.#scenario.settings.storeShareSegments > 0);
    this.#device.watcher = damage;
    damage.onLogged = (command, generation) => this.#checker.logged(command, generation);
    damage.onTruncated = (lost, generation) => this.#checker.truncated(lost, generation);
    this.#checker.mayBeRefused = () => damage.superblockDamaged;
    return damage;
  }

  /** The local store has lost what must be sent before anything later, or takes no more writes. */
  #holdsUp(): boolean {
    return this.#failsWrites() || (this.#damage?.holdsUp ?? false);
  }

  #failsWrites(): boolean {
    const { failedWrite, failedFlush } = this.#device.faultCounts;
    return failedWrite + failedFlush >= 3 && this.#card.powered && this.#card.storeState === STORE_FAILED;
  }

  /** The card does not use its store any more. That is right for one that has lost what it had stored; the run ends. */
  #refused(): void {
    const { storeError } = this.#card.statistics();
    this.#world.trace('run', `local store refused: ${storeError}`);
    if (!this.#mayRefuse(storeError)) {
      throw new Violation(
        'O1',
        `the local store is refused (${storeError}) although it has lost nothing that is worth it`,
      );
    }
    this.#storeRefused = true;
    this.#world.stop();
  }

  #mayRefuse(error: StoreError | null): boolean {
    const { failedWrite, failedFlush } = this.#device.faultCounts;
    if (error === 'device') return failedWrite + failedFlush > 0 || this.#damage?.superblockDamaged === true;
    if (error === 'log-damaged') return this.#damage?.logDamaged === true;
    return (error === 'damaged' || error === 'foreign') && this.#damage?.superblockDamaged === true;
  }

  async run(): Promise<void> {
    const { network, settings } = this.#scenario;
    if (this.#world.tracing) {
      this.#world.trace(
        'run',
        `seed ${this.#scenario.seed}: image ${this.#scenario.imageBytes} bytes, line ${network.bytesPerSecond} B/s ` +
          `${network.latencyUs / MS} ms ${network.delivery}, epochs ${settings.epochAgeMs} ms ${settings.epochSizeBytes} bytes`,
      );
    }
    this.#world.scheduleAt(RUN_MAX_US, () => {
      throw new Violation('stuck', `the run has not ended after ${RUN_MAX_US / SECOND} s`);
    });
    this.#pc.onIdle = () => this.#calm();
    this.#server.state = 'down';
    this.#server.start();
    this.#world.schedule(0, () => this.#powerOn());
    await this.#world.run();
  }

  /** Somebody else writes blocks of the image: some that the PC has written, some anywhere. */
  #administrate(): void {
    const { random } = this.#world;
    const store = this.#store;
    if (!(store instanceof MerkleStore)) return;
    const sectors = Math.floor(this.#scenario.imageBytes / SECTOR_SIZE);
    const blocks = Math.floor(sectors / BLOCK_SECTORS);
    const recent = this.#checker.writtenRanges(20);
    const chosen: Blocks = new Map();
    const number = this.#checker.administrate();
    const change = (block: number): void => {
      const words = new Uint32Array(BLOCK_SECTORS * WORDS);
      for (let i = 0; i < BLOCK_SECTORS; i++) fillSector(words, i * WORDS, number, block * BLOCK_SECTORS + i);
      chosen.set(block, Buffer.from(words.buffer));
    };
    for (let count = random.between(1, 20); count > 0; count--) {
      const near = recent.length > 0 && random.chance(0.5) ? random.pick(recent) : null;
      const lba = near === null ? random.below(sectors) : near.lba + random.below(near.count);
      change(Math.min(Math.floor(lba / BLOCK_SECTORS), blocks - 1));
    }
    if (random.chance(0.2)) {
      const first = random.below(blocks);
      const end = Math.min(blocks, first + random.below(Math.ceil(blocks / 3)));
      for (let block = first; block < end; block++) change(block);
    }
    store.administrate(chosen, number).catch((error: unknown) => this.#world.fail(error));
  }

  // Power

  #powerOn(): void {
    this.#card.powerOn();
    this.#pc.powerOn(this.#card.frontEnd);
    this.#card.start();
  }

  /** Card and PC lose their power together. */
  #powerCut(offUs: number): void {
    this.#powerOnUs = Math.max(this.#powerOnUs, this.#world.nowUs + Math.max(offUs, 100 * MS));
    if (!this.#card.powered) return;
    this.#merges += this.#card.statistics().merges;
    this.#pc.powerOff();
    this.#card.powerOff();
    this.#device.powerCut();
    this.#awaitPower();
  }

  /** Power returns when the time has come and nothing of the old card is on its way any more. */
  #awaitPower(): void {
    const world = this.#world;
    world.scheduleAt(this.#powerOnUs, () => {
      if (world.nowUs < this.#powerOnUs || this.#network.carriesRemains || this.#store.busy) {
        this.#powerOnUs = Math.max(this.#powerOnUs, world.nowUs + 100 * MS);
        this.#awaitPower();
        return;
      }
      this.#checker.cardRestarted();
      this.#powerOn();
    });
  }

  // The end of a run

  /** The PC rests and nothing goes wrong any more: the card must get rid of its lag. */
  #calm(): void {
    const world = this.#world;
    this.#faults.stop();
    const { settings, store, network } = this.#scenario;
    const lag = this.#card.lagBytes;
    const moveUs = (2 * lag * SECOND) / rateOf(network);
    // Epochs grow, so a backlog takes few of them.
    const commitUs = COMMITS * (store.commitUs + store.commitJitterUs) + 2 * settings.epochAgeMs * MS;
    const limitUs = DRAIN_US + moveUs + commitUs + 20 * (network.latencyUs + network.jitterUs);
    world.trace('run', `calm: lag ${lag} bytes, to be gone within ${(limitUs / SECOND).toFixed(1)} s`);
    const startedUs = world.nowUs;
    const look = (): void => {
      if (this.#card.lagBytes === 0) {
        world.trace('run', `drained after ${((world.nowUs - startedUs) / MS).toFixed(0)} ms`);
        this.#drained();
      } else if (world.nowUs - startedUs > limitUs && this.#holdsUp()) {
        // What was lost cannot be sent, nor what was written after it.
        world.trace('run', `not drained: the local store has lost what it had stored`);
        this.#readBack();
      } else if (world.nowUs - startedUs > limitUs) {
        const { linkState, linkError } = this.#card.statistics();
        throw new Violation(
          'O8',
          `${(limitUs / SECOND).toFixed(0)} s after the last fault the lag is still ${this.#card.lagBytes} bytes ` +
            `(link ${linkState}, error ${linkError})`,
        );
      } else {
        world.schedule(100 * MS, look);
      }
    };
    look();
  }

  #drained(): void {
    const world = this.#world;
    world.promises = true;
    this.#store.newest().then(
      (blocks) => world.watch(() => this.#checker.drained(blocks)),
      (error: unknown) => world.fail(error),
    );
    this.#readBack();
  }

  /** The PC reads what it has written. */
  #readBack(): void {
    const operations: Operation[] = [];
    let left = READ_BACK_SECTORS;
    for (const { lba, count } of this.#checker.writtenRanges(300)) {
      if (left <= 0) break;
      const some = Math.min(count, 256);
      operations.push({
        kind: 'read',
        number: Number.MAX_SAFE_INTEGER,
        lba,
        count: some,
        transfer: 'dma',
        addressing: 'lba28',
        thinkUs: 0,
        polled: false,
      });
      left -= some;
    }
    this.#pc.onIdle = () => this.#world.stop();
    this.#pc.go(operations);
  }

  /** By name: the world's faults, the local store's with `store-` before, and what came of them. */
  #faultCounts(): Map<string, number> {
    const counts = new Map<string, number>(this.#faults.counts);
    for (const [fault, count] of Object.entries(this.#device.faultCounts)) {
      if (count > 0) counts.set(`store-${fault.replace(/[A-Z]/g, (letter) => `-${letter.toLowerCase()}`)}`, count);
    }
    const merges = this.#merges + (this.#card.powered ? this.#card.statistics().merges : 0);
    if (merges > 0) counts.set('log-merged', merges);
    if (this.#storeRefused) counts.set('store-refused', 1);
    return counts;
  }

  result(violation: Violation | null): RunResult {
    const { counters } = this.#pc;
    return {
      scenario: this.#scenario,
      violation,
      lastOperation: this.#lastOperation,
      simulatedUs: this.#world.nowUs,
      events: this.#world.events,
      digest: this.#world.digest,
      commands: counters.commands,
      errors: counters.errors,
      longestUs: counters.longestUs,
      generations: this.#checker.generations,
      sectorsChecked: this.#checker.sectorsChecked,
      powerCuts: this.#checker.powerCuts,
      writesAtRisk: this.#checker.writesAtRisk,
      connections: this.#network.opens,
      faults: this.#faultCounts(),
    };
  }
}
