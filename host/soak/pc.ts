// The simulated PC: drives the cable's registers as drivers do, one command at a time, and tells the checker what it did and
// what it saw. It knows nothing of the card behind the cable.
//
// The PC's program is a generator: it yields what it waits for, and the world goes on until then.

import { Cable } from '../front-end/cable.js';
import {
  CONTROL_NIEN,
  CONTROL_SRST,
  DEVICE_DEV,
  type FrontEnd,
  Register,
  STATUS_BSY,
  STATUS_DF,
  STATUS_DRQ,
  STATUS_ERR,
} from '../front-end/front-end.js';
import type { Checker } from './checker.js';
import { fillSector, SECTOR_SIZE, WORDS, wordsOf } from './content.js';
import type { Weather } from './faults.js';
import {
  type DataOperation,
  type Operation,
  type OtherOperation,
  PC_TIMEOUT_US,
  type Scenario,
  type Transfer,
} from './scenario.js';
import { MS, SECOND, type Timer, Violation, type World } from './world.js';

const ERROR_ABRT = 0x04;
const ERROR_IDNF = 0x10;
const ERROR_UNC = 0x40;
const STATUS_DRDY = 0x40;
const DEVICE_LBA = 0x40;

/** [transfer][extended]: command codes of reads and writes. */
const READ: Record<Transfer, [number, number]> = { pio: [0x20, 0x24], multiple: [0xc4, 0x29], dma: [0xc8, 0x25] };
const WRITE: Record<Transfer, [number, number]> = { pio: [0x30, 0x34], multiple: [0xc5, 0x39], dma: [0xca, 0x35] };
const VERIFY: [number, number] = [0x40, 0x42];

/** How long after a fault has ended a command may still fail because of it: the card's back-off between connections (15 s)
 * and the server's patience with a writer that is gone (25 s). */
const AFTERMATH_US = 45 * SECOND;
/** After power-on the disk is ready, or the PC goes without it ([ATA-6] 9.2). */
const SPIN_UP_US = 31 * SECOND;
const POLL_MAX_US = 20 * MS;

interface Wait {
  untilUs: number;
  /** An interrupt or a DMA request ends it, too. */
  attention: boolean;
}

type Program<T = void> = Generator<Wait, T, void>;

export interface PcCounters {
  commands: number;
  errors: number;
  resets: number;
  longestUs: number;
}

export class SimulatedPc {
  readonly counters: PcCounters = { commands: 0, errors: 0, resets: 0, longestUs: 0 };
  /** The operation with this number begins. */
  onOperation: (number: number) => void = () => {};
  /** All operations are done. */
  onIdle: () => void = () => {};
  readonly #world: World;
  readonly #weather: Weather;
  readonly #checker: Checker;
  readonly #scenario: Scenario;
  readonly #sectors: number;
  #cable!: Cable;
  #program: Program | null = null;
  #wait: Wait | null = null;
  #timer: Timer | null = null;
  #operations: readonly Operation[];
  #next = 0;

  // What the PC has set up.
  #writeCache = true;
  #multiple = 16;
  #cylinders = 0;
  #heads = 0;
  #sectorsPerTrack = 0;

  // The command that is under way.
  #what = '';
  #startedUs = 0;
  #workAtStartUs = 0;
  #polled = false;
  /** Time for moved bytes that has not passed yet. */
  #owedUs = 0;
  /** Number of the write that is under way, 0 when none is. */
  #writing = 0;
  /** The PC is ending the command early. */
  #ending = false;

  constructor(world: World, weather: Weather, checker: Checker, scenario: Scenario) {
    this.#world = world;
    this.#weather = weather;
    this.#checker = checker;
    this.#scenario = scenario;
    this.#sectors = Math.floor(scenario.imageBytes / SECTOR_SIZE);
    this.#operations = scenario.operations;
  }

  /** Switches the PC on with a card on its cable; it goes on with its operations where it was. */
  powerOn(frontEnd: FrontEnd): void {
    const cable = new Cable([frontEnd]);
    this.#cable = cable;
    cable.onInterrupt = (level) => {
      if (level) this.#attention();
    };
    cable.onDmaRequest = () => this.#attention();
    this.#writeCache = true;
    this.#multiple = 16;
    this.#program = this.#main();
    this.#resumeAt(this.#world.nowUs);
  }

  powerOff(): void {
    this.#program = null;
    this.#wait = null;
    this.#world.cancel(this.#timer);
    this.#timer = null;
    if (this.#writing !== 0) {
      const failed = (this.#cable.readAlternateStatus() & (STATUS_ERR | STATUS_DF)) !== 0;
      if (failed || this.#ending) this.#checker.abandoned(this.#writing);
      else this.#checker.cutOff(this.#writing);
    }
    this.#writing = 0;
  }

  /** More to do, after onIdle(). */
  go(operations: readonly Operation[]): void {
    this.#operations = operations;
    this.#next = 0;
    this.#program = this.#work();
    this.#resumeAt(this.#world.nowUs);
  }

  // The generator's engine

  #attention(): void {
    if (this.#wait?.attention) this.#resumeAt(this.#world.nowUs + this.#scenario.interruptUs);
  }

  #resumeAt(atUs: number): void {
    if (this.#timer !== null && this.#timer.run !== null && this.#timer.atUs <= atUs) return;
    this.#world.cancel(this.#timer);
    this.#timer = this.#world.scheduleAt(atUs, () => this.#resume());
  }

  #resume(): void {
    this.#timer = null;
    this.#wait = null;
    if (this.#program === null) return;
    const { done, value } = this.#program.next();
    if (done) {
      this.#program = null;
      this.onIdle();
      return;
    }
    // The program may have been cut off by what it did.
    if (this.#program === null) return;
    this.#wait = value;
    this.#resumeAt(value.untilUs);
  }

  *#sleep(us: number): Program {
    yield { untilUs: this.#world.nowUs + Math.round(us), attention: false };
  }

  /** Waits until `condition` holds: woken by interrupts and DMA requests, or by polling. */
  *#until(condition: () => boolean, polled = this.#polled): Program {
    let pollUs = Math.max(2, this.#scenario.reactionUs);
    while (!condition()) {
      const overdueUs = this.#overdueUs();
      if (overdueUs <= this.#world.nowUs) this.#failOverdue();
      if (polled) {
        yield { untilUs: this.#world.nowUs + pollUs, attention: false };
        pollUs = Math.min(pollUs * 2, POLL_MAX_US);
      } else {
        yield { untilUs: overdueUs, attention: true };
      }
    }
  }

  /** When the PC would give the command up, but for the time that line and server took all along: that they are slow is the
   * world's fault. */
  #overdueUs(): number {
    return this.#startedUs + PC_TIMEOUT_US + (this.#weather.workUs - this.#workAtStartUs);
  }

  #failOverdue(): never {
    const seconds = (this.#world.nowUs - this.#startedUs) / SECOND;
    const status = this.#cable.readAlternateStatus();
    throw new Violation(
      'O5',
      `${this.#what} has taken ${seconds.toFixed(1)} s, longer than the PC waits (status ${status.toString(16)}h)`,
    );
  }

  // The program

  *#main(): Program {
    yield* this.#boot();
    yield* this.#work();
  }

  *#work(): Program {
    while (this.#next < this.#operations.length) {
      const operation = this.#operations[this.#next++];
      yield* this.#sleep(operation.thinkUs);
      this.onOperation(operation.number);
      this.#polled = operation.polled;
      this.#cable.writeDeviceControl(operation.polled ? CONTROL_NIEN : 0);
      if (operation.kind === 'read' || operation.kind === 'write' || operation.kind === 'verify') {
        yield* this.#data(operation as DataOperation);
      } else {
        yield* this.#other(operation as OtherOperation);
      }
    }
  }

  /** Waits for the disk as a BIOS does, and learns its geometry. */
  *#boot(): Program {
    let waitingSinceUs = this.#world.nowUs;
    while ((this.#cable.readAlternateStatus() & STATUS_BSY) !== 0) {
      if (this.#weather.disturbedSince(waitingSinceUs)) waitingSinceUs = this.#world.nowUs;
      else if (this.#world.nowUs - waitingSinceUs > SPIN_UP_US + AFTERMATH_US) {
        throw new Violation('O5', 'the disk is not ready, and nothing keeps it');
      }
      yield* this.#sleep(10 * MS);
    }
    this.#polled = false;
    this.#cable.writeDeviceControl(0);
    yield* this.#identify();
    this.#checker.cardReady();
  }

  #begin(what: string): void {
    this.#what = what;
    this.#startedUs = this.#world.nowUs;
    this.#workAtStartUs = this.#weather.workUs;
    this.counters.commands += 1;
    if (this.#world.tracing) this.#world.trace('pc', what);
  }

  #command(code: number): void {
    this.#cable.writeRegister(Register.COMMAND, code);
  }

  /** Waits for the end of a command without data, or of a phase: INTRQ, then status. */
  *#ready(): Program<number> {
    if (this.#polled) yield* this.#until(() => (this.#cable.readAlternateStatus() & STATUS_BSY) === 0);
    else yield* this.#until(() => this.#cable.interrupt);
    return this.#cable.readRegister(Register.STATUS);
  }

  /** A command has ended with `status`. Returns its error bits, 0 for none. */
  #ended(status: number): number {
    const tookUs = this.#world.nowUs - this.#startedUs;
    this.counters.longestUs = Math.max(this.counters.longestUs, tookUs);
    const failed = (status & (STATUS_ERR | STATUS_DF)) !== 0;
    const error = failed ? this.#cable.readRegister(Register.ERROR) : 0;
    if (this.#world.tracing) {
      const took = tookUs >= MS ? ` after ${(tookUs / MS).toFixed(0)} ms` : '';
      if (failed)
        this.#world.trace('pc', `failed: status ${status.toString(16)}h, error ${error.toString(16)}h${took}`);
      else if (took !== '') this.#world.trace('pc', `done${took}`);
    }
    if (failed && error === 0) throw new Violation('O5', `${this.#what} ended with ERR and no error bit`);
    if (failed) this.counters.errors += 1;
    if (!failed && (status & STATUS_DRQ) !== 0) throw new Violation('O5', `${this.#what} ended with DRQ set`);
    return error;
  }

  /** An error that the world must have forced. `read`: the sectors that were to be read, by a read or a verify. */
  #checkForced(error: number, read: { lba: number; count: number } | null = null): void {
    const { store } = this.#weather;
    if (read === null ? store.holdsUp : store.isLost(read.lba, read.count)) return;
    if (error === 0 || this.#weather.disturbedSince(this.#startedUs - AFTERMATH_US)) return;
    // A server that is busy for so long (with a commit, say) is out of reach. What it was at when the command began is not in the
    // difference, nor is the way there and back.
    const { store: disk, network, settings } = this.#scenario;
    const underWayUs = disk.commitUs + disk.commitJitterUs + 2 * (network.latencyUs + network.jitterUs);
    const workUs = this.#weather.workUs - this.#workAtStartUs + underWayUs;
    if (workUs >= settings.offlineReadTimeoutMs * MS) return;
    // A log that has filled up while the server was away takes its time to drain.
    if (this.#weather.backlogUs > 2 * SECOND) return;
    throw new Violation('O5', `${this.#what} failed with error ${error.toString(16)}h although nothing was wrong`);
  }

  #expect(error: number, expected: number, read: { lba: number; count: number } | null = null): void {
    if (error === expected) return;
    if (expected === 0) this.#checkForced(error, read);
    else
      throw new Violation('O5', `${this.#what} gave error ${error.toString(16)}h, right is ${expected.toString(16)}h`);
  }

  // Data commands

  #addressing(operation: DataOperation): 'chs' | 'lba28' | 'lba48' {
    const reach = this.#cylinders * this.#heads * this.#sectorsPerTrack;
    // The wider forms are for what the narrow ones cannot say.
    if (operation.count > 256) return 'lba48';
    if (operation.addressing === 'chs' && operation.lba + operation.count > reach) return 'lba28';
    return operation.addressing;
  }

  #writeAddress(addressing: 'chs' | 'lba28' | 'lba48', lba: number, count: number): void {
    const cable = this.#cable;
    if (addressing === 'lba48') {
      const high = Math.floor(lba / 2 ** 24);
      cable.writeRegister(Register.SECTOR_COUNT, (count >> 8) & 0xff);
      cable.writeRegister(Register.LBA_LOW, high & 0xff);
      cable.writeRegister(Register.LBA_MID, (high >> 8) & 0xff);
      cable.writeRegister(Register.LBA_HIGH, (high >> 16) & 0xff);
    }
    cable.writeRegister(Register.SECTOR_COUNT, count & 0xff);
    if (addressing === 'chs') {
      const track = Math.floor(lba / this.#sectorsPerTrack);
      const cylinder = Math.floor(track / this.#heads);
      cable.writeRegister(Register.LBA_LOW, (lba % this.#sectorsPerTrack) + 1);
      cable.writeRegister(Register.LBA_MID, cylinder & 0xff);
      cable.writeRegister(Register.LBA_HIGH, cylinder >> 8);
      cable.writeRegister(Register.DEVICE, 0xa0 | (track % this.#heads));
      return;
    }
    cable.writeRegister(Register.LBA_LOW, lba & 0xff);
    cable.writeRegister(Register.LBA_MID, (lba >> 8) & 0xff);
    cable.writeRegister(Register.LBA_HIGH, (lba >> 16) & 0xff);
    const head = addressing === 'lba28' ? (lba >> 24) & 0x0f : 0;
    cable.writeRegister(Register.DEVICE, 0xa0 | DEVICE_LBA | head);
  }

  *#data(operation: DataOperation): Program {
    const { kind, lba, count, transfer } = operation;
    const addressing = this.#addressing(operation);
    const extended = addressing === 'lba48' ? 1 : 0;
    const write = kind === 'write' ? this.#checker.begin(lba, count) : 0;
    this.#begin(
      `${kind} ${lba}+${count} ${kind === 'verify' ? '' : `${transfer} `}${addressing}${write > 0 ? ` #${write}` : ''}` +
        `${operation.cut === undefined ? '' : ` (${operation.cut.how} after ${operation.cut.afterBytes} bytes)`}`,
    );
    this.#writing = write;
    this.#ending = false;
    this.#writeAddress(addressing, lba, count);
    if (kind === 'verify') {
      this.#command(VERIFY[extended]);
      const error = this.#ended(yield* this.#ready());
      this.#expect(error, 0, operation);
      return;
    }
    const disabled = transfer === 'multiple' && this.#multiple === 0;
    this.#command((kind === 'read' ? READ : WRITE)[transfer][extended]);
    const end = yield* transfer === 'dma' ? this.#dma(operation, write) : this.#pio(operation, write);
    this.#writing = 0;
    if (end === 'cut') {
      if (write > 0) this.#checker.abandoned(write);
      return;
    }
    if (end === 0) {
      if (disabled) throw new Violation('O5', `${this.#what} was done although SET MULTIPLE MODE has disabled it`);
      if (write > 0) this.#checker.acknowledged(write);
      if (write > 0 && !this.#writeCache) this.#checker.flushed();
      return;
    }
    if (write > 0) this.#checker.abandoned(write);
    if (disabled) this.#expect(end, ERROR_ABRT);
    else this.#checkError(kind, lba, count, addressing, end);
  }

  /** UNC for reads, and its sector; a fault for writes. */
  #checkError(kind: string, lba: number, count: number, addressing: string, error: number): void {
    this.#checkForced(error, kind === 'write' ? null : { lba, count });
    const expected = kind === 'write' ? ERROR_ABRT : ERROR_UNC;
    if (error !== expected) this.#expect(error, expected);
    if (kind === 'write' || addressing === 'chs') return;
    const failed = this.#readLba(addressing);
    if (failed < lba || failed >= lba + count) {
      throw new Violation('O7', `${this.#what} failed, and the registers name sector ${failed}`);
    }
  }

  #readLba(addressing: string): number {
    const cable = this.#cable;
    let lba =
      cable.readRegister(Register.LBA_LOW) |
      (cable.readRegister(Register.LBA_MID) << 8) |
      (cable.readRegister(Register.LBA_HIGH) << 16);
    if (addressing === 'lba28') lba |= (cable.readRegister(Register.DEVICE) & 0x0f) << 24;
    return lba;
  }

  /** Moves DRQ data blocks. Returns the error bits, or 'cut'. */
  *#pio(operation: DataOperation, write: number): Program<number | 'cut'> {
    const { cut } = operation;
    const total = operation.count * SECTOR_SIZE;
    let moved = 0;
    // Data-out: the first DRQ comes without an interrupt.
    let status: number;
    if (write > 0) {
      yield* this.#until(() => (this.#cable.readAlternateStatus() & STATUS_BSY) === 0, true);
      status = this.#cable.readAlternateStatus();
    } else {
      status = yield* this.#ready();
    }
    for (;;) {
      if ((status & STATUS_DRQ) === 0) {
        status = this.#cable.readRegister(Register.STATUS);
        break;
      }
      if ((status & STATUS_ERR) !== 0) throw new Violation('O5', `${this.#what} shows DRQ together with ERR`);
      const block = this.#cable.dataBlock();
      if (block === null || moved + block.length > total || block.length % SECTOR_SIZE !== 0) {
        throw new Violation('O5', `${this.#what} offers a data block of ${block?.length ?? 0} bytes after ${moved}`);
      }
      const bytes = cut === undefined ? block.length : Math.min(block.length, Math.max(0, cut.afterBytes - moved));
      if (write > 0) fill(block, write, operation.lba + moved / SECTOR_SIZE);
      else if (bytes === block.length) this.#checker.read(operation.lba + moved / SECTOR_SIZE, block);
      yield* this.#move(bytes);
      this.#cable.advanceData(bytes);
      moved += bytes;
      if (bytes < block.length || (cut !== undefined && moved >= cut.afterBytes)) {
        this.#ending = true;
        yield* this.#reset();
        return 'cut';
      }
      if (write === 0 && moved === total) {
        // After the last block of data-in there is no interrupt.
        yield* this.#until(() => (this.#cable.readAlternateStatus() & STATUS_BSY) === 0, true);
        status = this.#cable.readRegister(Register.STATUS);
        break;
      }
      status = yield* this.#ready();
    }
    const error = this.#ended(status);
    if (error === 0 && moved < total) throw new Violation('O5', `${this.#what} ended after ${moved} of ${total} bytes`);
    return error;
  }

  /** The PC's processor moves bytes; the time for small blocks is added up. */
  *#move(bytes: number): Program {
    this.#owedUs += (bytes * SECOND) / this.#scenario.pcBytesPerSecond;
    if (this.#owedUs < 200) return;
    const us = this.#owedUs;
    this.#owedUs = 0;
    yield* this.#sleep(us);
  }

  /** Lets the DMA engine move what the card asks for. Returns the error bits, or 'cut'. */
  *#dma(operation: DataOperation, write: number): Program<number | 'cut'> {
    const { cut } = operation;
    const total = operation.count * SECTOR_SIZE;
    const isOver = (): boolean =>
      this.#polled ? (this.#cable.readAlternateStatus() & STATUS_BSY) === 0 : this.#cable.interrupt;
    let moved = 0;
    for (;;) {
      // The engine hears DMARQ by itself, whether or not the driver polls.
      yield* this.#until(() => this.#cable.dmaDirection() !== null || isOver());
      const direction = this.#cable.dmaDirection();
      if (direction === null) break;
      if (direction !== (write > 0 ? 'out' : 'in')) throw new Violation('O5', `${this.#what} moves data the wrong way`);
      const block = this.#cable.dmaBlock()!;
      if (moved + block.length > total) throw new Violation('O5', `${this.#what} moves more than ${total} bytes`);
      const bytes = cut === undefined ? block.length : Math.min(block.length, Math.max(0, cut.afterBytes - moved));
      if (write > 0) fill(block, write, operation.lba + moved / SECTOR_SIZE);
      else if (bytes === block.length) this.#checker.read(operation.lba + moved / SECTOR_SIZE, block);
      yield* this.#sleep((bytes * SECOND) / this.#scenario.pcBytesPerSecond);
      // In two pieces: an engine follows its table.
      const first = bytes > 4096 ? 2048 : 0;
      this.#cable.advanceDma(first);
      this.#cable.advanceDma(bytes - first);
      moved += bytes;
      if (cut !== undefined && moved >= cut.afterBytes) {
        this.#ending = true;
        if (cut.how === 'reset') yield* this.#reset();
        else yield* this.#stopDma();
        return 'cut';
      }
    }
    const status = this.#cable.readRegister(Register.STATUS);
    const error = this.#ended(status);
    if (error === 0 && moved < total) throw new Violation('O5', `${this.#what} ended after ${moved} of ${total} bytes`);
    return error;
  }

  /** The engine's table is too short: the command ends without more data. */
  *#stopDma(): Program {
    this.#cable.terminateDma();
    yield* this.#until(() => (this.#cable.readAlternateStatus() & STATUS_BSY) === 0, true);
    this.#cable.readRegister(Register.STATUS);
  }

  *#reset(): Program {
    this.counters.resets += 1;
    if (this.#world.tracing) this.#world.trace('pc', 'SRST');
    this.#startedUs = this.#world.nowUs;
    this.#workAtStartUs = this.#weather.workUs;
    this.#what = 'reset';
    this.#cable.writeDeviceControl(CONTROL_SRST);
    yield* this.#sleep(5);
    this.#cable.writeDeviceControl(this.#polled ? CONTROL_NIEN : 0);
    yield* this.#sleep(2 * MS);
    yield* this.#until(() => (this.#cable.readAlternateStatus() & STATUS_BSY) === 0, true);
    const signature = [
      Register.ERROR,
      Register.SECTOR_COUNT,
      Register.LBA_LOW,
      Register.LBA_MID,
      Register.LBA_HIGH,
    ].map((register) => this.#cable.readRegister(register));
    if (signature.join() !== '1,1,1,0,0')
      throw new Violation('O5', `after a reset the registers hold ${signature.join(' ')}`);
  }

  // Other commands

  /** A command without data that is expected to end with `expected`. */
  *#nonData(what: string, code: number, expected = 0): Program<number> {
    this.#begin(what);
    this.#command(code);
    const error = this.#ended(yield* this.#ready());
    this.#expect(error, expected);
    return error;
  }

  #set(register: number, value: number): void {
    this.#cable.writeRegister(register, value);
  }

  *#setFeatures(what: string, subcommand: number, value = 0): Program {
    this.#set(Register.FEATURES, subcommand);
    this.#set(Register.SECTOR_COUNT, value);
    yield* this.#nonData(`set features: ${what}`, 0xef);
  }

  *#other({ kind, value }: OtherOperation): Program {
    this.#set(Register.DEVICE, 0xa0);
    switch (kind) {
      case 'flush':
        if ((yield* this.#nonData('flush cache', value % 2 === 0 ? 0xe7 : 0xea)) === 0) this.#checker.flushed();
        break;
      case 'standby':
        if ((yield* this.#nonData('standby immediate', value % 2 === 0 ? 0xe0 : 0x94)) === 0) {
          this.#checker.flushed();
        }
        break;
      case 'identify':
        yield* this.#identify();
        break;
      case 'set-multiple': {
        const count = [1, 2, 4, 8, 16, 0, 3, 32][value % 8];
        const valid = value % 8 < 6;
        this.#set(Register.SECTOR_COUNT, count);
        yield* this.#nonData(`set multiple mode ${count}`, 0xc6, valid ? 0 : ERROR_ABRT);
        this.#multiple = valid ? count : 0;
        break;
      }
      case 'write-cache':
        yield* this.#setFeatures(value % 2 === 0 ? 'write cache on' : 'write cache off', value % 2 === 0 ? 0x02 : 0x82);
        this.#writeCache = value % 2 === 0;
        break;
      case 'look-ahead':
        yield* this.#setFeatures('look-ahead', value % 2 === 0 ? 0xaa : 0x55);
        break;
      case 'transfer-mode':
        yield* this.#setFeatures('transfer mode', 0x03, [0x00, 0x08, 0x0c, 0x20, 0x22, 0x40, 0x45][value % 7]);
        break;
      case 'geometry':
        yield* this.#setGeometry(1 + (value % 16), 1 + ((value >>> 4) % 63));
        break;
      case 'seek':
        this.#writeAddress('lba28', value % this.#sectors, 0);
        yield* this.#nonData('seek', 0x70);
        break;
      case 'recalibrate':
        yield* this.#nonData('recalibrate', 0x10);
        break;
      case 'check-power':
        yield* this.#nonData('check power mode', 0xe5);
        break;
      case 'idle':
        this.#set(Register.SECTOR_COUNT, value & 0xff);
        yield* this.#nonData('idle', 0xe3);
        break;
      case 'sleep':
        if ((yield* this.#nonData('sleep', 0xe6)) === 0) this.#checker.flushed();
        yield* this.#reset();
        break;
      case 'diagnostic':
        yield* this.#diagnostic();
        break;
      case 'unknown-command':
        yield* this.#nonData('unknown command', [0x00, 0xa0, 0xa1][value % 3], ERROR_ABRT);
        break;
      case 'beyond-the-end':
        this.#writeAddress('lba48', this.#sectors - (value % 8), 8);
        yield* this.#nonData('verify beyond the end', VERIFY[1], ERROR_IDNF);
        break;
      case 'reset':
        yield* this.#reset();
        break;
    }
  }

  *#diagnostic(): Program {
    this.#begin('execute device diagnostic');
    this.#command(0x90);
    yield* this.#ready();
    const code = this.#cable.readRegister(Register.ERROR);
    if (code !== 1) throw new Violation('O5', `execute device diagnostic gave code ${code}`);
  }

  *#setGeometry(heads: number, sectorsPerTrack: number): Program {
    const valid = heads * sectorsPerTrack <= this.#sectors;
    this.#set(Register.SECTOR_COUNT, sectorsPerTrack);
    this.#set(Register.DEVICE, 0xa0 | (heads - 1));
    yield* this.#nonData(`initialize device parameters ${heads} ${sectorsPerTrack}`, 0x91, valid ? 0 : ERROR_ABRT);
    if (!valid) return;
    this.#heads = heads;
    this.#sectorsPerTrack = sectorsPerTrack;
    this.#cylinders = Math.min(65_535, Math.floor(this.#sectors / (heads * sectorsPerTrack)));
  }

  *#identify(): Program {
    this.#begin('identify device');
    this.#set(Register.DEVICE, 0xa0 & ~DEVICE_DEV);
    this.#command(0xec);
    const status = yield* this.#ready();
    if ((status & (STATUS_DRQ | STATUS_DRDY | STATUS_ERR)) !== (STATUS_DRQ | STATUS_DRDY)) {
      throw new Violation('O5', `identify device gave status ${status.toString(16)}h`);
    }
    const block = this.#cable.dataBlock()!;
    const words = new Uint16Array(block.slice().buffer);
    const sum = block.reduce((total, byte) => total + byte, 0);
    this.#cable.advanceData(SECTOR_SIZE);
    const capacity = words[100] + words[101] * 65_536;
    if (capacity !== this.#sectors || (sum & 0xff) !== 0) {
      throw new Violation(
        'O7',
        `identify device says ${capacity} sectors (checksum ${sum & 0xff}), right is ${this.#sectors}`,
      );
    }
    [this.#cylinders, this.#heads, this.#sectorsPerTrack] = [words[54], words[55], words[56]];
  }
}

function fill(block: Uint8Array, write: number, lba: number): void {
  const words = wordsOf(block);
  for (let at = 0; at < words.length; at += WORDS, lba++) fillSector(words, at, write, lba);
}
