// The fuzzer of the ATA registers. One case is one cable's life: one or two cards, a PC that writes what it likes into the
// registers, moves any amount of data, resets, stops its DMA engine, and an image server that comes and goes; then everything
// is mended and the disks are read from end to end.
//
// A model of the disks follows the PC's side of the bus alone. Invariants:
//   1. No card traps, and no device shows BSY for longer than its time-outs explain.
//   2. DRQ means a DRQ data block, DMARQ means BSY, ERR means an error bit, INTRQ is never asserted with nIEN.
//   3. A command moves data, or ends in IDNF or ABRT, exactly when the standard says so.
//   4. A sector that is read holds what was written to it last; after a write that was cut short or failed, either that or
//      what was there before. Never anything else.
//   5. After FLUSH CACHE the image server has what the PC reads.

import { loadFirmware } from '../card/firmware.js';
import { InProcessCard } from '../card/in-process.js';
import type { CardSettings } from '../card/settings.js';
import { DEFAULT_SETTINGS } from '../card/settings.js';
import { Cable } from '../front-end/cable.js';
import { type FrontEnd, Register, STATUS_BSY, STATUS_DF, STATUS_DRQ, STATUS_ERR } from '../front-end/front-end.js';
import { FaultyDisk, FaultyDisks } from '../simulation/faulty-disk.js';
import { SimulatedWorld } from '../simulation/simulated-world.js';
import { DiskModel, decodeCommand, SECTOR } from './disk-model.js';
import { Random } from './random.js';

export interface RegisterFuzzOptions {
  seed: number;
  cases: number;
  firmware?: WebAssembly.Module;
  /** Stops early when it returns false. */
  onCase?: (done: number) => boolean | undefined;
}

export interface RegisterFuzzReport {
  cases: number;
  commands: number;
  sectorsChecked: number;
  sectorsWritten: number;
  failures: number;
  resets: number;
}

const MEMORY_SIZE = 16 << 20;
const SETTINGS: Partial<CardSettings> = { offlineReadTimeoutMs: 2_000, epochAgeMs: 500, epochSizeBytes: 256 << 10 };
/** Above the offline time-out, the longest back-off (15 s) and a server's round trips together. */
const BUSY_MS_MAX = 60_000;
const SIZES = [1, 3, 62, 100, 1007, 1009, 2048, 5000];
const TRACE_LINES = 60;

const SUPPORTED = [
  0x10, 0x20, 0x21, 0x24, 0x25, 0x29, 0x30, 0x31, 0x34, 0x35, 0x39, 0x40, 0x41, 0x42, 0x70, 0x90, 0x91, 0x94, 0x95,
  0x96, 0x97, 0x98, 0x99, 0xc4, 0xc5, 0xc6, 0xc8, 0xc9, 0xca, 0xcb, 0xe0, 0xe1, 0xe2, 0xe3, 0xe5, 0xe6, 0xe7, 0xea,
  0xec, 0xef,
];
const DATA_COMMANDS = [0x20, 0x24, 0x25, 0x29, 0x30, 0x34, 0x35, 0x39, 0xc4, 0xc5, 0xc8, 0xca];
const EXTENDED_COMMANDS = [0x24, 0x25, 0x29, 0x34, 0x35, 0x39];
const INTERESTING = [0, 1, 2, 3, 4, 8, 15, 16, 17, 63, 64, 127, 128, 255];

/** Throws at the first case that breaks an invariant; the message has the line that replays it. */
export async function runRegisterFuzz(options: RegisterFuzzOptions): Promise<RegisterFuzzReport> {
  const firmware = options.firmware ?? loadFirmware();
  const report = { cases: 0, commands: 0, sectorsChecked: 0, sectorsWritten: 0, failures: 0, resets: 0 };
  for (let i = 0; i < options.cases; i++) {
    const seed = (options.seed + i) >>> 0;
    const life = new CableLife(firmware, seed, report);
    try {
      await life.run();
    } catch (error) {
      const reason = error instanceof Error ? (error.stack ?? error.message) : String(error);
      throw new Error(`${reason}\n${life.tail()}\nreplay: ribbon fuzz registers --seed ${seed} --cases 1`, {
        cause: error,
      });
    }
    report.cases += 1;
    if (options.onCase?.(report.cases) === false) break;
    // Signals and progress get their turn.
    await new Promise((resolve) => setImmediate(resolve));
  }
  return report;
}

class CableLife {
  readonly #random: Random;
  readonly #report: RegisterFuzzReport;
  readonly #world: SimulatedWorld;
  readonly #disks: FaultyDisk[];
  readonly #cards: InProcessCard[];
  readonly #cable: Cable;
  /** By device number. */
  readonly #models: (DiskModel | null)[] = [null, null];
  readonly #trace: string[] = [];
  #selected = 0;
  #control = 0;
  #features = 0;
  #crash: Error | null = null;

  constructor(firmware: WebAssembly.Module, seed: number, report: RegisterFuzzReport) {
    const random = new Random(seed);
    this.#random = random;
    this.#report = report;
    const numbers = random.pick<(0 | 1)[]>([[0], [0], [0, 1], [0, 1], [1]]);
    this.#disks = numbers.map(() => makeDisk(random));
    const server = new FaultyDisks(new Map(this.#disks.map((disk, index) => [`disk${index}`, disk])));
    this.#world = new SimulatedWorld({ seed, exports: server, latencyMs: random.pick([0, 0, 1, 20]) });
    this.#cards = numbers.map((deviceNumber, index) => {
      const settings = {
        ...DEFAULT_SETTINGS,
        acknowledgementPoint: 'remote-received' as const,
        ...SETTINGS,
        exportName: `disk${index}`,
      };
      const path = { address: { path: 'simulated' } };
      const card = new InProcessCard({
        firmware,
        settings,
        path,
        deviceNumber,
        memorySize: MEMORY_SIZE,
        world: this.#world,
      });
      card.onCrash = (error) => {
        this.#crash ??= error;
      };
      return card;
    });
    this.#cable = new Cable(this.#cards.map((card) => card.frontEnd));
    numbers.forEach((deviceNumber, index) => {
      this.#models[deviceNumber] = new DiskModel(this.#disks[index].image);
    });
  }

  async run(): Promise<void> {
    const starts = this.#cards.map((card) => card.start());
    this.#wait(() => this.#cards.every((card) => card.statistics().sectors > 0), 'power-on');
    await Promise.all(starts);
    const steps = this.#random.between(50, 400);
    for (let i = 0; i < steps; i++) {
      this.#step();
      this.#check();
    }
    this.#mend();
    for (const [deviceNumber, model] of this.#models.entries()) {
      if (model !== null) this.#verify(deviceNumber, model);
    }
    const stops = this.#cards.map((card) => card.stop(0));
    this.#world.pass(1);
    await Promise.all(stops);
  }

  /** What happened last. */
  tail(): string {
    return this.#trace.join('\n');
  }

  #note(text: string): void {
    this.#trace.push(`${this.#world.nowMs} ${text}`);
    if (this.#trace.length > TRACE_LINES) this.#trace.shift();
  }

  // One step of the PC, or of the world.

  #step(): void {
    const random = this.#random;
    if ((this.#control & 0x04) !== 0 && random.chance(0.4)) this.#writeControl(this.#control & ~0x04);
    if (random.chance(0.3)) this.#settle();
    const choice = random.below(100);
    if (choice < 30) this.#goodCommand();
    else if (choice < 45) this.#transferToEnd();
    else if (choice < 55) this.#transferSome();
    else if (choice < 65) this.#writeRegister(random.between(1, 6), this.#value());
    else if (choice < 72) this.#anyCommand();
    else if (choice < 76) this.#readAnything();
    else if (choice < 80) this.#select(random.below(2));
    else if (choice < 84) this.#writeControl(random.pick([0, 0, 0x02, 0x08, 0x80, 0x82]) | (this.#control & 0x04));
    else if (choice < 86) this.#reset();
    else if (choice < 87) this.#writeControl(this.#control ^ 0x04);
    else if (choice < 89) this.#terminate();
    else if (choice < 96) this.#world.pass(random.pick([0, 0, 1, 5, 30, 200, 1000]));
    else this.#changeServer();
  }

  #value(): number {
    return this.#random.chance(0.6) ? this.#random.pick(INTERESTING) : this.#random.below(256);
  }

  /** The front end that answers, null when the bus is undriven. */
  get #answering(): FrontEnd | null {
    const find = (number: number): FrontEnd | undefined =>
      this.#cards.find((card) => card.frontEnd.deviceNumber === number)?.frontEnd;
    return find(this.#selected) ?? (this.#selected === 1 ? (find(0) ?? null) : null);
  }

  /** With Device 0 absent nobody answers, and Device 1 takes what it hears. */
  get #takesWrites(): boolean {
    return (this.#control & 0x04) === 0 && this.#answering?.busy !== true;
  }

  get #model(): DiskModel | null {
    return this.#models[this.#selected];
  }

  #writeRegister(register: number, value: number): void {
    if (this.#takesWrites) {
      // Selecting the other device takes the ending of this one's command out of sight.
      if (register === Register.DEVICE) this.#ended();
      if (register === Register.DEVICE) this.#selected = (value >> 4) & 1;
      if (register === Register.FEATURES) this.#features = value;
    }
    this.#note(`write ${register} ${value.toString(16)}`);
    this.#cable.writeRegister(register, value);
  }

  #select(device: number): void {
    this.#writeRegister(Register.DEVICE, 0xa0 | (device << 4) | (this.#random.chance(0.8) ? 0x40 : 0));
  }

  #writeControl(value: number): void {
    this.#note(`control ${value.toString(16)}`);
    if ((value & 0x04) !== 0 && (this.#control & 0x04) === 0) this.#cut();
    if ((value & 0x04) === 0 && (this.#control & 0x04) !== 0) for (const model of this.#models) model?.reset();
    this.#control = value;
    this.#cable.writeDeviceControl(value);
  }

  /** SRST ends everything. */
  #cut(): void {
    this.#report.resets += 1;
    this.#selected = 0;
    for (const model of this.#models) model?.abandon();
  }

  #reset(): void {
    this.#writeControl(this.#control | 0x04);
    this.#writeControl(this.#control & ~0x04);
    if (this.#random.chance(0.8)) this.#settle();
  }

  /** A command as it should be given, most of the time within the disk, with its registers written in order. */
  #goodCommand(): void {
    const random = this.#random;
    if (this.#model === null) {
      this.#select(random.below(2));
      return;
    }
    if (random.chance(0.3)) {
      this.#command(random.pick(SUPPORTED));
      return;
    }
    const code = random.pick(DATA_COMMANDS);
    const { sectors } = this.#model;
    const count = random.pick([1, 1, 2, 7, 8, 9, 16, 17, 64, 256, 300, random.between(1, 1200)]);
    const lba = random.chance(0.95) ? random.below(Math.max(1, sectors - count + 1)) : random.below(2 * sectors);
    if (EXTENDED_COMMANDS.includes(code)) {
      this.#writeRegister(Register.SECTOR_COUNT, count >> 8);
      this.#writeRegister(Register.LBA_LOW, Math.floor(lba / 2 ** 24) & 0xff);
      this.#writeRegister(Register.LBA_MID, 0);
      this.#writeRegister(Register.LBA_HIGH, 0);
    }
    this.#writeRegister(Register.SECTOR_COUNT, count & 0xff);
    this.#writeRegister(Register.LBA_LOW, lba & 0xff);
    this.#writeRegister(Register.LBA_MID, (lba >> 8) & 0xff);
    this.#writeRegister(Register.LBA_HIGH, (lba >> 16) & 0xff);
    this.#writeRegister(Register.DEVICE, 0xe0 | (this.#selected << 4) | ((lba >> 24) & 0x0f));
    this.#command(code);
    if (random.chance(0.7)) this.#transferToEnd();
  }

  #anyCommand(): void {
    this.#command(this.#random.chance(0.5) ? this.#random.pick(SUPPORTED) : this.#random.below(256));
  }

  #command(code: number): void {
    const answering = this.#answering;
    const taken = this.#takesWrites && (answering !== null || code === 0x90);
    if (taken) this.#ended();
    this.#note(`command ${code.toString(16)} ${taken ? '' : '(while busy)'}`);
    if (taken) {
      this.#report.commands += 1;
      if (code === 0x90) {
        for (const model of this.#models) model?.abandon();
      } else if (this.#model !== null) {
        this.#model.begin(decodeCommand(code, this.#registers(), this.#features), this.#trace);
      }
    }
    this.#cable.writeRegister(Register.COMMAND, code);
    if (taken && code === 0x90) this.#selected = 0;
  }

  /** The registers as the command will find them. */
  #registers(): { now: number[]; previous: number[] } {
    const read = (): number[] => [2, 3, 4, 5, 6].map((register) => this.#cable.readRegister(register));
    this.#cable.writeDeviceControl(this.#control | 0x80);
    const previous = read();
    this.#cable.writeDeviceControl(this.#control & ~0x80);
    const now = read();
    this.#cable.writeDeviceControl(this.#control);
    return { now, previous };
  }

  #readAnything(): void {
    const random = this.#random;
    for (let i = random.below(4); i >= 0; i--) this.#cable.readRegister(random.between(1, 7));
    if (random.chance(0.2) && (this.#status & STATUS_DRQ) === 0) {
      this.#cable.readData16();
      this.#cable.writeData16(random.below(65536));
    }
  }

  /** Without the side effect of reading Status. */
  get #status(): number {
    return this.#cable.readAlternateStatus();
  }

  // Data

  /** Goes on with whatever the device wants, until it wants nothing more. */
  #transferToEnd(): void {
    if ((this.#control & 0x04) !== 0) return;
    for (let blocks = 0; blocks < 200_000; blocks++) {
      this.#settle();
      if (!this.#moveBlock(Number.POSITIVE_INFINITY)) {
        this.#ended();
        return;
      }
    }
    throw new Error('a command wants data without end');
  }

  /** Moves some bytes of the current block. */
  #transferSome(): void {
    for (let i = this.#random.below(5); i >= 0; i--) {
      if (!this.#moveBlock(2 * this.#random.between(1, 3000))) {
        this.#ended();
        return;
      }
    }
  }

  /** Moves at most `limit` bytes; false when the device wants none now. */
  #moveBlock(limit: number): boolean {
    const cable = this.#cable;
    const direction = cable.dmaDirection();
    const block = direction === null ? cable.dataBlock() : cable.dmaBlock();
    if (block === null) return false;
    const model = this.#model;
    if (model === null) throw new Error('a device that does not exist wants data');
    const count = Math.min(block.length, limit);
    const part = block.subarray(0, count);
    if (model.moves('out', direction !== null)) {
      this.#random.fill(part.subarray(0, Math.min(count, 8)));
      for (let at = 0; at < count; at += SECTOR) {
        part.fill(this.#random.below(256), at, Math.min(at + SECTOR, count));
        part[at] = this.#random.below(256);
      }
      model.wrote(part);
    } else {
      this.#report.sectorsChecked += model.read(part, direction !== null);
    }
    if (direction === null) cable.advanceData(count);
    else cable.advanceDma(count);
    return true;
  }

  #terminate(): void {
    if (this.#model === null || (this.#control & 0x04) !== 0) return;
    this.#note('terminate');
    this.#model.terminated();
    this.#cable.terminateDma();
  }

  /** The command is over when the device is idle: the model learns how. */
  #ended(): void {
    const model = this.#model;
    if (model === null || !model.busy || this.#answering?.busy !== false) return;
    const status = this.#status;
    const error = this.#cable.readRegister(Register.ERROR);
    if ((status & (STATUS_ERR | STATUS_DF)) !== 0) this.#report.failures += 1;
    this.#report.sectorsWritten += model.end(status, error);
  }

  // The world

  #changeServer(): void {
    const random = this.#random;
    const what = random.below(5);
    this.#note(`server ${what}`);
    if (what === 0) this.#world.breakLinks();
    if (what === 1) {
      this.#world.reachable = !this.#world.reachable;
      if (!this.#world.reachable) this.#world.breakLinks();
    }
    const disk = random.pick(this.#disks);
    if (what === 2) disk.unreadable.add(random.below(Math.max(1, disk.image.length / SECTOR)));
    if (what === 3) disk.unreadable.clear();
    if (what === 4) disk.refuseWrites = !disk.refuseWrites && random.chance(0.3);
  }

  /** Waits until the selected device is not busy on its own account. */
  #settle(): void {
    if ((this.#control & 0x04) !== 0) return;
    this.#wait(() => (this.#status & STATUS_BSY) === 0 || this.#cable.dmaDirection() !== null, 'BSY');
  }

  #wait(condition: () => boolean, what: string): void {
    const done = this.#world.run(() => this.#crash !== null || condition(), BUSY_MS_MAX);
    this.#check();
    if (!done) throw new Error(`${what} for more than ${BUSY_MS_MAX} ms, status ${this.#status.toString(16)}`);
  }

  #check(): void {
    if (this.#crash !== null) throw this.#crash;
    const cable = this.#cable;
    if (cable.interrupt && (this.#control & 0x02) !== 0) throw new Error('INTRQ with nIEN');
    if (this.#answering === null || this.#model === null) return;
    const status = this.#status;
    if ((status & STATUS_BSY) === 0) {
      if (((status & STATUS_DRQ) !== 0) !== (cable.dataBlock() !== null))
        throw new Error('DRQ without a block, or the reverse');
      if (cable.dmaDirection() !== null) throw new Error('DMARQ without BSY');
      if ((status & STATUS_ERR) !== 0 && cable.readRegister(Register.ERROR) === 0)
        throw new Error('ERR without an error bit');
    } else if (cable.dataBlock() !== null) {
      throw new Error('a DRQ data block while BSY');
    }
  }

  /** Faults end, and the devices are reset. */
  #mend(): void {
    this.#note('mend');
    this.#world.reachable = true;
    for (const disk of this.#disks) {
      disk.unreadable.clear();
      disk.refuseWrites = false;
    }
    this.#writeControl(0x04);
    this.#writeControl(0x00);
    this.#settle();
  }

  /** Reads a disk from end to end, and compares it with the image server's after a flush. */
  #verify(deviceNumber: number, model: DiskModel): void {
    this.#select(deviceNumber);
    this.#settle();
    for (let lba = 0; lba < model.sectors; lba += 256) {
      const count = Math.min(256, model.sectors - lba);
      this.#succeed(deviceNumber, 0xc8, lba, count);
    }
    this.#succeed(deviceNumber, 0xe7, 0, 0);
    const disk = this.#disks[this.#cards.findIndex((card) => card.frontEnd.deviceNumber === deviceNumber)];
    model.compare(disk.image);
  }

  /** A command that must succeed now; a link that has just come back may need its time. */
  #succeed(deviceNumber: number, code: number, lba: number, count: number): void {
    for (let attempt = 0; ; attempt++) {
      this.#writeRegister(Register.SECTOR_COUNT, count & 0xff);
      this.#writeRegister(Register.LBA_LOW, lba & 0xff);
      this.#writeRegister(Register.LBA_MID, (lba >> 8) & 0xff);
      this.#writeRegister(Register.LBA_HIGH, (lba >> 16) & 0xff);
      this.#writeRegister(Register.DEVICE, 0xe0 | (deviceNumber << 4));
      this.#command(code);
      this.#transferToEnd();
      if ((this.#status & (STATUS_ERR | STATUS_DF)) === 0) return;
      if (attempt === 10) throw new Error(`command ${code.toString(16)} still fails although everything is mended`);
      this.#world.pass(5_000);
    }
  }
}

function makeDisk(random: Random): FaultyDisk {
  const sectors = random.chance(0.7) ? random.pick(SIZES) : random.between(1, 6000);
  const disk = new FaultyDisk(sectors * SECTOR + random.pick([0, 0, 0, 1, 511]));
  for (let lba = 0; lba < sectors; lba++) {
    disk.image.fill(random.below(256), lba * SECTOR, (lba + 1) * SECTOR);
    disk.image.writeUInt32LE(lba, lba * SECTOR);
  }
  return disk;
}
