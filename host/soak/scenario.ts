// A scenario: everything that is decided before a run begins. What the PC does, what goes wrong and when, how large and how
// slow everything is. One seed gives one scenario.
//
// Swarm: every seed first draws which commands and which faults exist at all in its run, then how often. A run with all of
// them at once finds less than many runs with a few each.
//
// Faults begin at an operation of the PC, some time after it has begun, so that a scenario still makes sense when operations
// are taken out of it (shrink.ts).

import type { CardSettings } from '../card/settings.js';
import { ACKNOWLEDGEMENT_POINTS, DEFAULT_SETTINGS } from '../card/settings.js';
import { Random } from '../fuzz/random.js';
import { type BlockDeviceFaults, type BlockDeviceSettings, NO_FAULTS } from './block-device.js';
import { SECTOR_SIZE } from './content.js';
import { EXPORT_NAME, type StoreFaults } from './memory-store.js';
import type { NetworkSettings } from './network.js';
import { MS, SECOND } from './world.js';

export type Transfer = 'pio' | 'multiple' | 'dma';
export type Addressing = 'chs' | 'lba28' | 'lba48';

/** A command that moves data, or reads without moving it. */
export interface DataOperation {
  kind: 'read' | 'write' | 'verify';
  lba: number;
  count: number;
  transfer: Transfer;
  addressing: Addressing;
  /** The PC ends it early, after so many bytes: by a reset, or by stopping its DMA engine. */
  cut?: { how: 'reset' | 'stop-dma'; afterBytes: number };
}

export interface OtherOperation {
  kind:
    | 'flush'
    | 'standby'
    | 'identify'
    | 'set-multiple'
    | 'write-cache'
    | 'look-ahead'
    | 'transfer-mode'
    | 'geometry'
    | 'seek'
    | 'recalibrate'
    | 'check-power'
    | 'idle'
    | 'sleep'
    | 'diagnostic'
    | 'unknown-command'
    | 'beyond-the-end'
    | 'reset';
  /** What it is set to; its meaning is the kind's. */
  value: number;
}

export type Operation = (DataOperation | OtherOperation) & {
  /** Its place in the scenario as drawn. */
  number: number;
  /** The PC does something else for so long before. */
  thinkUs: number;
  /** Without interrupts: the PC polls. */
  polled: boolean;
};

export type FaultKind =
  | 'break'
  | 'block-up'
  | 'block-down'
  | 'block-both'
  | 'slow-line'
  | 'server-killed'
  | 'machine-lost'
  | 'disk-full'
  | 'unreadable'
  | 'power-cut'
  /** The card's clock jumps ahead by up to two hours. */
  | 'clock-jump'
  /** Somebody else changes the image. */
  | 'administrator';

export interface Fault {
  kind: FaultKind;
  number: number;
  /** It begins `delayUs` after the operation with this number has begun. */
  atOperation: number;
  delayUs: number;
  durationUs: number;
  /** Then it waits for the next generation, and comes before the card can hear of it. */
  atCommit?: boolean;
}

export interface Scenario {
  seed: number;
  imageBytes: number;
  memorySize: number;
  settings: CardSettings;
  reactionUs: number;
  clockStartMs: number;
  network: NetworkSettings;
  /** The real image store, or a server with as little as NBD asks for. */
  storeKind: 'merkle' | 'plain';
  store: StoreFaults;
  /** The card's local store. */
  device: BlockDeviceSettings;
  /** From an interrupt to the PC's handler. */
  interruptUs: number;
  pcBytesPerSecond: number;
  operations: Operation[];
  faults: Fault[];
}

/** Operations in a run of default length. */
export const OPERATIONS = 300;
/** The PC gives up a command after this: Linux's libata. */
export const PC_TIMEOUT_US = 30 * SECOND;

export const FAULT_KINDS: FaultKind[] = [
  'break',
  'block-up',
  'block-down',
  'block-both',
  'slow-line',
  'server-killed',
  'machine-lost',
  'disk-full',
  'unreadable',
  'power-cut',
  'clock-jump',
];

const OTHER_KINDS: OtherOperation['kind'][] = [
  'identify',
  'set-multiple',
  'write-cache',
  'look-ahead',
  'transfer-mode',
  'geometry',
  'seek',
  'recalibrate',
  'check-power',
  'idle',
  'sleep',
  'diagnostic',
  'unknown-command',
  'beyond-the-end',
  'reset',
];

export function drawScenario(seed: number, length = OPERATIONS): Scenario {
  const random = new Random(seed);
  const storeKind = random.pick(['merkle', 'plain'] as const);
  const imageBytes = drawImageBytes(random);
  const scenario: Scenario = {
    seed,
    imageBytes,
    // Smaller than any real card's, so that its limits are met.
    memorySize: random.pick([8, 8, 8, 16]) << 20,
    settings: {
      ...DEFAULT_SETTINGS,
      acknowledgementPoint: random.pick(['stored', 'stored', 'stored', ...ACKNOWLEDGEMENT_POINTS]),
      acknowledgementDelayMs: random.pick([0, 0, 0, 3]),
      exportName: EXPORT_NAME,
      offlineReadTimeoutMs: random.pick([2_000, 5_000, 20_000, 20_000]),
      epochAgeMs: random.pick([50, 300, 1_000, 1_000, 5_000]),
      epochSizeBytes: random.pick([16 << 10, 128 << 10, 512 << 10, 4 << 20]),
    },
    reactionUs: random.pick([0, 0, 5, 50, 500]),
    clockStartMs: random.pick([0, 0, 1_000_000, 2 ** 32 - 20_000, 2 ** 32 - 100_000]),
    network: drawNetwork(random),
    storeKind,
    store: {
      commitUs: random.pick([0, 200, 5 * MS, 100 * MS]),
      commitJitterUs: random.pick([0, 500, 20 * MS, 1 * SECOND]),
    },
    device: drawDevice(random),
    interruptUs: random.pick([1, 10, 100]),
    pcBytesPerSecond: random.pick([3_300_000, 16_700_000, 100_000_000]),
    operations: [],
    faults: [],
  };
  drawOperations(random, scenario, length);
  drawFaults(random, scenario);
  drawAdministrators(new Random(seed ^ 0xad317), scenario);
  drawWorstMoments(new Random(seed ^ 0x3057), scenario);
  drawPartition(new Random(seed ^ 0x9a27), scenario);
  return scenario;
}

function drawImageBytes(random: Random): number {
  const bytes = random.pick([1, 4, 16, 24]) << 20;
  // An image need not end at a block, nor even at a sector.
  const odd = random.pick([0, 0, 0, 512 * random.between(1, 7), random.between(1, 4095)]);
  return bytes + odd;
}

function drawNetwork(random: Random): NetworkSettings {
  return {
    latencyUs: random.pick([50, 500, 5 * MS, 20 * MS, 100 * MS]),
    jitterUs: random.pick([0, 0, 200, 10 * MS]),
    bytesPerSecond: random.pick([187_500, 1_250_000, 12_500_000, 125_000_000]),
    delivery: random.pick(['whole', 'frames', 'pieces']),
    windowBytes: random.pick([16 << 10, 64 << 10, 1 << 20]),
  };
}

/** From RAM to a bad SD card; so small that the log goes round in a long run. */
function drawDevice(random: Random): BlockDeviceSettings {
  return {
    blocks: random.pick([4_608, 4_608, 10_000]),
    operationUs: random.pick([20, 300, 2 * MS]),
    blockUs: random.pick([2, 50, 250]),
    flushUs: random.pick([100, 2 * MS, 20 * MS]),
    faults: drawDeviceFaults(random),
  };
}

/** In most runs the device damages nothing: then every promise holds without exception. */
function drawDeviceFaults(random: Random): BlockDeviceFaults {
  const faults = { ...NO_FAULTS, slow: random.pick([0, 0, 0.001]) };
  if (random.chance(0.2)) {
    faults.failedWrite = random.pick([0.0001, 0.003, 0.02]);
    faults.failedFlush = random.pick([0, 0.003, 0.02]);
  }
  if (!random.chance(0.25)) return faults;
  const chance = (): number => (random.chance(0.5) ? random.pick([0.0003, 0.002, 0.01]) : 0);
  return { ...faults, lostWrite: chance(), misdirectedWrite: chance(), bitRot: chance(), readError: chance() };
}

/** How this run's PC uses its disk. */
interface Habits {
  writes: number;
  verifies: number;
  flushes: number;
  others: number;
  otherKinds: OtherOperation['kind'][];
  cuts: number;
  polled: number;
  transfers: Transfer[];
  addressings: Addressing[];
  countMax: number;
  /** The sectors that most commands go to. */
  hotFrom: number;
  hotCount: number;
  hot: number;
  sequential: number;
  thinkUs: number;
  pause: number;
}

function subset<T>(random: Random, from: readonly T[], probability: number): T[] {
  return from.filter(() => random.chance(probability));
}

function nonEmpty<T>(random: Random, from: readonly T[]): T[] {
  const some = subset(random, from, 0.6);
  return some.length > 0 ? some : [random.pick(from)];
}

function drawHabits(random: Random, sectors: number): Habits {
  const hotCount = Math.min(sectors, random.pick([16, 256, 2048]));
  return {
    writes: random.pick([0.2, 0.5, 0.8]),
    verifies: random.pick([0, 0.05]),
    flushes: random.pick([0, 0, 0.02, 0.2]),
    others: random.pick([0, 0.03, 0.15]),
    otherKinds: subset(random, OTHER_KINDS, 0.5),
    cuts: random.pick([0, 0, 0.03]),
    polled: random.pick([0, 0, 0.5, 1]),
    transfers: nonEmpty(random, ['pio', 'multiple', 'dma']),
    addressings: nonEmpty(random, ['chs', 'lba28', 'lba48']),
    countMax: random.pick([8, 64, 256, 256, 4096]),
    hotFrom: random.below(sectors - hotCount + 1),
    hotCount,
    hot: random.pick([0, 0.5, 0.95]),
    sequential: random.pick([0, 0.3, 0.9]),
    thinkUs: random.pick([0, 2 * MS, 50 * MS, 400 * MS]),
    pause: random.pick([0, 0.02, 0.05]),
  };
}

function drawOperations(random: Random, scenario: Scenario, length: number): void {
  const sectors = Math.floor(scenario.imageBytes / SECTOR_SIZE);
  const habits = drawHabits(random, sectors);
  let next = 0;
  for (let number = 0; number < length; number++) {
    const base = { number, thinkUs: drawThink(random, habits), polled: random.chance(habits.polled) };
    const what = random.u32() / 2 ** 32;
    if (what < habits.flushes) {
      scenario.operations.push({ ...base, kind: random.chance(0.9) ? 'flush' : 'standby', value: random.below(4) });
    } else if (what < habits.flushes + habits.others && habits.otherKinds.length > 0) {
      scenario.operations.push({ ...base, kind: random.pick(habits.otherKinds), value: random.u32() });
    } else {
      const operation = drawData(random, habits, sectors, next);
      next = operation.lba + operation.count;
      scenario.operations.push({ ...base, ...operation });
    }
  }
}

/** Mostly short, with a long pause now and then. */
function drawThink(random: Random, habits: Habits): number {
  if (random.chance(habits.pause)) return random.below(20 * SECOND);
  return habits.thinkUs === 0 ? 0 : random.below(2 * habits.thinkUs);
}

function drawData(random: Random, habits: Habits, sectors: number, next: number): DataOperation {
  const kind = random.chance(habits.verifies) ? 'verify' : random.chance(habits.writes) ? 'write' : 'read';
  const addressing = random.pick(habits.addressings);
  const limit = Math.min(sectors, addressing === 'lba48' ? habits.countMax : Math.min(256, habits.countMax));
  // Small commands are the most frequent ones, whatever the largest is.
  const count = random.chance(0.5) ? random.between(1, Math.min(8, limit)) : random.between(1, limit);
  let lba = random.below(sectors - count + 1);
  if (random.chance(habits.hot)) lba = Math.min(habits.hotFrom + random.below(habits.hotCount), sectors - count);
  if (random.chance(habits.sequential) && next + count <= sectors) lba = next;
  const operation: DataOperation = { kind, lba, count, transfer: random.pick(habits.transfers), addressing };
  if (kind !== 'verify' && random.chance(habits.cuts)) {
    const how = operation.transfer === 'dma' && random.chance(0.5) ? 'stop-dma' : 'reset';
    operation.cut = { how, afterBytes: 2 * random.below(count * (SECTOR_SIZE / 2)) };
  }
  return operation;
}

/** A PC in a place with bad power: it goes again and again, while something is on its way to the store. */
function drawPowerCuts(random: Random, scenario: Scenario): void {
  const count = random.between(2, 12);
  const withinUs = random.pick([300, 3 * MS, 30 * MS, 300 * MS]);
  const near = scenario.operations.filter(({ kind }) => kind === 'flush' || kind === 'write' || kind === 'standby');
  for (let number = 0; number < count && near.length > 0; number++) {
    // Often the next one comes before much has happened.
    const at = random.below(near.length);
    for (const again of random.chance(0.5) ? [0, random.between(1, 3)] : [0]) {
      scenario.faults.push({
        kind: 'power-cut',
        number: 1000 + 2 * number + Math.min(again, 1),
        atOperation: near[Math.min(at + again, near.length - 1)].number,
        delayUs: random.below(withinUs),
        durationUs: random.below(200 * MS),
      });
    }
  }
}

function drawFaults(random: Random, scenario: Scenario): void {
  const kinds = random.chance(0.1) ? [] : subset(random, FAULT_KINDS, 0.4);
  if (random.chance(0.2)) drawPowerCuts(random, scenario);
  if (kinds.length === 0) return;
  const operations = scenario.operations.length;
  const count = random.between(1, Math.max(1, Math.round(operations / random.pick([20, 50, 100]))));
  for (let number = 0; number < count; number++) {
    scenario.faults.push({
      kind: random.pick(kinds),
      number,
      atOperation: random.below(operations),
      delayUs: random.below(random.pick([100, 5 * MS, 500 * MS, 3 * SECOND])),
      durationUs: random.below(random.pick([10 * MS, 1 * SECOND, 15 * SECOND, 60 * SECOND])),
    });
  }
}

/** Faults at the moments that a card must have an answer for, and that chance seldom meets: a generation is made and the card is not
 * told of it; the power goes inside a long write; it comes back, and the server does not. */
function drawWorstMoments(random: Random, scenario: Scenario): void {
  const { operations, faults } = scenario;
  let number = 2000;
  const add = (kind: FaultKind, atOperation: number, delayUs: number, durationUs: number, atCommit = false): void => {
    faults.push({ kind, number: number++, atOperation, delayUs, durationUs, ...(atCommit && { atCommit }) });
  };
  if (random.chance(0.3)) {
    const kinds = nonEmpty(random, ['break', 'power-cut', 'server-killed', 'machine-lost'] as const);
    for (let left = random.between(1, 6); left > 0; left--) {
      add(
        random.pick(kinds),
        random.below(operations.length),
        0,
        random.below(random.pick([10 * MS, 3 * SECOND])),
        true,
      );
    }
  }
  if (random.chance(0.2)) drawCutWrites(random, scenario, add);
  if (random.chance(0.2)) {
    for (const { kind, atOperation } of [...faults]) {
      if (kind === 'power-cut') add('block-both', atOperation, 0, random.below(random.pick([2 * SECOND, 30 * SECOND])));
    }
  }
}

/** Some writes become as long as one that is done as a whole or not at all may be, and the power goes while they are under way; then again
 * soon, when the store has been written by two power-ons. */
function drawCutWrites(
  random: Random,
  { operations, imageBytes, pcBytesPerSecond, device }: Scenario,
  add: (kind: FaultKind, atOperation: number, delayUs: number, durationUs: number) => void,
): void {
  const writes = operations.filter((it): it is typeof it & DataOperation => it.kind === 'write');
  for (let left = random.between(1, 4); left > 0 && writes.length > 0; left--) {
    const write = random.pick(writes);
    write.count = random.between(300, 1024);
    write.lba = Math.min(write.lba, Math.floor(imageBytes / SECTOR_SIZE) - write.count);
    write.addressing = 'lba48';
    delete write.cut;
    const moveUs = (write.count * SECTOR_SIZE * SECOND) / pcBytesPerSecond;
    const storeUs = 4 * device.operationUs + (write.count / 8) * device.blockUs;
    add('power-cut', write.number, random.below(moveUs + storeUs), random.below(200 * MS));
    add('power-cut', write.number + random.between(1, 8), random.below(50 * MS), random.below(200 * MS));
  }
}

/** In some runs the image has a partition of its own on the local store. */
function drawPartition(random: Random, scenario: Scenario): void {
  if (random.chance(0.15)) scenario.settings.storeShareSegments = random.pick([16, 17]);
}

/** Somebody else changes the image while the PC works; a chance of its own, so that the rest of a scenario does not depend on it. */
function drawAdministrators(random: Random, scenario: Scenario): void {
  if (scenario.storeKind !== 'merkle' || random.chance(0.5)) return;
  scenario.settings.deflate = random.chance(0.7);
  scenario.settings.ask = random.chance(0.7);
  const operations = scenario.operations.length;
  const first = scenario.faults.length;
  const count = random.between(1, Math.max(1, Math.round(operations / random.pick([15, 40, 100]))));
  for (let number = first; number < first + count; number++) {
    scenario.faults.push({
      kind: 'administrator',
      number,
      atOperation: random.below(operations),
      delayUs: random.below(random.pick([100, 5 * MS, 500 * MS, 3 * SECOND])),
      durationUs: 3 * SECOND,
    });
  }
}
