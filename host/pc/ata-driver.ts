// A PC's ATA driver in TypeScript: a correct host at the cable, which reads, writes and flushes the disk of one card.
//
// It does what the standard asks of a host: selects the device, waits for BSY to clear before it looks at anything else, writes a
// command only then, moves DRQ data blocks or serves DMARQ, and reads Status at the end. One command at a time.

import type { Cable } from '../front-end/cable.js';
import {
  CONTROL_SRST,
  DEVICE_DEV,
  Register,
  STATUS_BSY,
  STATUS_DF,
  STATUS_DRDY,
  STATUS_DRQ,
  STATUS_ERR,
} from '../front-end/front-end.js';

export type TransferMode = 'dma' | 'pio';

export const SECTOR_SIZE = 512;
/** The most sectors that one command moves here: 1 MiB keeps a card busy and a queue of requests short. */
const COMMAND_SECTORS_MAX = 2048;
const MULTIPLE_SECTORS = 16;
const DEVICE_LBA = 0x40;
const CMD_IDENTIFY = 0xec;
const CMD_SET_MULTIPLE = 0xc6;
const CMD_FLUSH = 0xe7;
const CMD_FLUSH_EXT = 0xea;
const COMMANDS = {
  dma: { read: { short: 0xc8, ext: 0x25 }, write: { short: 0xca, ext: 0x35 } },
  pio: { read: { short: 0xc4, ext: 0x29 }, write: { short: 0xc5, ext: 0x39 } },
} as const;
const LBA28_SECTORS = 2 ** 28;
const SHORT_SECTORS_MAX = 256;

/** The device ended a command with ERR or DF, or is not there. */
export class AtaError extends Error {
  override name = 'AtaError';
}

export class AtaDriver {
  readonly #cable: Cable;
  readonly #device: number;
  #mode: TransferMode;
  #sectors = 0;
  #hasExt = false;
  #answered: () => void = () => {};
  /** The end of the last command that was begun. */
  #last: Promise<unknown> = Promise.resolve();

  constructor(cable: Cable, options: { device?: 0 | 1; mode?: TransferMode } = {}) {
    this.#cable = cable;
    this.#device = (options.device ?? 0) * DEVICE_DEV;
    this.#mode = options.mode ?? 'dma';
    cable.onAnswer = () => this.#answered();
    cable.onDmaRequest = () => this.#answered();
  }

  /** Resets the channel and asks the device who it is. */
  async open(): Promise<void> {
    this.#cable.writeDeviceControl(CONTROL_SRST);
    this.#cable.writeDeviceControl(0);
    const words = new Uint16Array(256);
    await this.#command(CMD_IDENTIFY, 0, 0, 'short', { in: new Uint8Array(words.buffer) });
    this.#hasExt = (words[83] & (1 << 10)) !== 0;
    this.#sectors = this.#hasExt
      ? words[100] + words[101] * 2 ** 16 + words[102] * 2 ** 32
      : words[60] + words[61] * 2 ** 16;
    if (this.#mode === 'pio') await this.#command(CMD_SET_MULTIPLE, 0, MULTIPLE_SECTORS, 'short', {});
  }

  /** Capacity in sectors; valid after open(). */
  get sectors(): number {
    return this.#sectors;
  }

  /** Reads whole sectors from `lba` into `target`. */
  read(lba: number, target: Uint8Array): Promise<void> {
    return this.#transfer('read', lba, target);
  }

  /** Writes whole sectors. */
  write(lba: number, source: Uint8Array): Promise<void> {
    return this.#transfer('write', lba, source);
  }

  flush(): Promise<void> {
    const command = this.#hasExt ? CMD_FLUSH_EXT : CMD_FLUSH;
    return this.#queue(() => this.#command(command, 0, 0, this.#hasExt ? 'ext' : 'short', {}));
  }

  async #transfer(way: 'read' | 'write', lba: number, data: Uint8Array): Promise<void> {
    const limit = this.#hasExt ? COMMAND_SECTORS_MAX : SHORT_SECTORS_MAX;
    for (let at = 0; at < data.length; at += limit * SECTOR_SIZE) {
      const part = data.subarray(at, at + limit * SECTOR_SIZE);
      const first = lba + at / SECTOR_SIZE;
      const count = part.length / SECTOR_SIZE;
      const form = first + count > LBA28_SECTORS || count > SHORT_SECTORS_MAX ? 'ext' : 'short';
      const command = COMMANDS[this.#mode][way][form];
      await this.#queue(() =>
        this.#command(command, first, count, form, way === 'read' ? { in: part } : { out: part }),
      );
    }
  }

  /** Commands run one after the other; one that fails does not stop the next. */
  #queue(work: () => Promise<void>): Promise<void> {
    const done = this.#last.then(work);
    this.#last = done.catch(() => {});
    return done;
  }

  async #command(
    command: number,
    lba: number,
    count: number,
    form: 'short' | 'ext',
    data: { in?: Uint8Array; out?: Uint8Array },
  ): Promise<void> {
    const cable = this.#cable;
    await this.#notBusy();
    cable.writeRegister(
      Register.DEVICE,
      DEVICE_LBA | this.#device | (form === 'short' ? Math.floor(lba / 2 ** 24) & 0x0f : 0),
    );
    const ready = await this.#notBusy();
    if ((ready & (STATUS_DRDY | STATUS_DRQ)) !== STATUS_DRDY)
      throw new AtaError(`no device answers: status 0x${ready.toString(16)}`);
    if (form === 'ext') {
      cable.writeAddress(Math.floor(lba / 2 ** 24), count >> 8);
    }
    cable.writeAddress(lba, count);
    cable.writeRegister(Register.COMMAND, command);
    await this.#move(data.in ?? data.out ?? null, data.in === undefined ? 'out' : 'in');
    await this.#notBusy();
    // Status, not Alternate Status: this takes the interrupt away.
    const status = cable.readRegister(Register.STATUS);
    if ((status & (STATUS_ERR | STATUS_DF)) !== 0) throw this.#error(command, status);
    if ((status & STATUS_DRQ) !== 0) {
      throw new AtaError(`command 0x${command.toString(16)} has more data than it should: the device needs a reset`);
    }
  }

  /** Moves data until all is moved or the device ends the command. */
  async #move(data: Uint8Array | null, direction: 'in' | 'out'): Promise<void> {
    for (let at = 0; data !== null && at < data.length; ) {
      await this.#until(
        () => this.#cable.dmaDirection() !== null || (this.#cable.readAlternateStatus() & STATUS_BSY) === 0,
      );
      const isDma = this.#cable.dmaDirection() === direction;
      const block = isDma ? this.#cable.dmaBlock() : this.#cable.dataBlock();
      if (block === null) return;
      const part = data.subarray(at, at + block.length);
      if (direction === 'in') part.set(block.subarray(0, part.length));
      else block.set(part);
      if (isDma) this.#cable.advanceDma(part.length);
      else this.#cable.advanceData(part.length);
      at += part.length;
    }
  }

  async #notBusy(): Promise<number> {
    await this.#until(() => (this.#cable.readAlternateStatus() & STATUS_BSY) === 0);
    return this.#cable.readAlternateStatus();
  }

  async #until(condition: () => boolean): Promise<void> {
    while (!condition()) {
      await new Promise<void>((resolve) => {
        this.#answered = () => {
          this.#answered = () => {};
          // The card is in the middle of its step.
          setImmediate(resolve);
        };
      });
    }
  }

  #error(command: number, status: number): AtaError {
    const error = this.#cable.readRegister(Register.ERROR);
    return new AtaError(
      `command 0x${command.toString(16)} ended with status 0x${status.toString(16)}, error 0x${error.toString(16)}`,
    );
  }
}
