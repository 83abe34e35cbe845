// A PC at the cable: writes registers, reads status, checks INTRQ, moves data by PIO or by its DMA engine.
//
// Every transfer checks the protocol on its way: when DRQ, BSY and INTRQ may be set, and how long each DRQ data block is.

import assert from 'node:assert/strict';
import {
  Register,
  STATUS_BSY,
  STATUS_DF,
  STATUS_DRDY,
  STATUS_DRQ,
  STATUS_ERR,
} from '../../host/front-end/front-end.js';
import type { Rig } from './rig.js';

export const SECTOR = 512;
export const ERROR_UNC = 0x40;
export const ERROR_IDNF = 0x10;
export const ERROR_ABRT = 0x04;
const DEVICE_LBA = 0x40;
const DEVICE_OBSOLETE = 0xa0;
const CONTROL_HOB = 0x80;

/** A command's parameters; registers that are not named get 0. 16-bit registers are written twice. */
export interface Taskfile {
  features?: number;
  count?: number;
  lbaLow?: number;
  lbaMid?: number;
  lbaHigh?: number;
  /** LBA bit and bits 3-0; DEV comes from the selected device. */
  device?: number;
  /** The high bytes of a 48-bit command. */
  previous?: { features?: number; count?: number; lbaLow?: number; lbaMid?: number; lbaHigh?: number };
}

export interface Ending {
  status: number;
  error: number;
}

export function lba28(lba: number, count: number): Taskfile {
  return {
    count: count & 0xff,
    lbaLow: lba & 0xff,
    lbaMid: (lba >> 8) & 0xff,
    lbaHigh: (lba >> 16) & 0xff,
    device: DEVICE_LBA | ((lba >> 24) & 0x0f),
  };
}

export function lba48(lba: number, count: number): Taskfile {
  const high = Math.floor(lba / 2 ** 24);
  return {
    count: count & 0xff,
    lbaLow: lba & 0xff,
    lbaMid: (lba >> 8) & 0xff,
    lbaHigh: (lba >> 16) & 0xff,
    device: DEVICE_LBA,
    previous: {
      count: (count >> 8) & 0xff,
      lbaLow: high & 0xff,
      lbaMid: (high >> 8) & 0xff,
      lbaHigh: (high >> 16) & 0xff,
    },
  };
}

export function chs(cylinder: number, head: number, sector: number, count: number): Taskfile {
  return { count: count & 0xff, lbaLow: sector, lbaMid: cylinder & 0xff, lbaHigh: cylinder >> 8, device: head };
}

export class Pc {
  readonly rig: Rig;
  #dev = 0;
  /** nIEN as written last. */
  #control = 0;

  constructor(rig: Rig) {
    this.rig = rig;
  }

  read(register: number): number {
    return this.rig.cable.readRegister(register);
  }

  write(register: number, value: number): void {
    this.rig.cable.writeRegister(register, value);
  }

  /** Status without the side effect of reading Status. */
  get status(): number {
    return this.rig.cable.readAlternateStatus();
  }

  get interrupt(): boolean {
    return this.rig.cable.interrupt;
  }

  setControl(value: number): void {
    this.#control = value;
    this.rig.cable.writeDeviceControl(value);
  }

  select(device: 0 | 1): void {
    this.#dev = device << 4;
    this.write(Register.DEVICE, DEVICE_OBSOLETE | this.#dev);
  }

  /** Waits until BSY is clear; returns Alternate Status. */
  async ready(limitMs?: number): Promise<number> {
    await this.rig.until(() => (this.status & STATUS_BSY) === 0, limitMs);
    return this.status;
  }

  /** SRST, at least 5 us, and what comes of it. */
  async softwareReset(): Promise<Ending> {
    this.setControl(this.#control | 0x04);
    assert.equal(this.status & STATUS_BSY, STATUS_BSY, 'SRST sets BSY');
    assert.equal(this.interrupt, false, 'SRST clears INTRQ');
    this.setControl(this.#control & ~0x04);
    this.#dev = 0;
    await this.ready();
    assert.equal(this.interrupt, false, 'a reset does not interrupt');
    return this.ending();
  }

  writeTaskfile(taskfile: Taskfile): void {
    const { previous } = taskfile;
    if (previous !== undefined) {
      this.write(Register.FEATURES, previous.features ?? 0);
      this.write(Register.SECTOR_COUNT, previous.count ?? 0);
      this.write(Register.LBA_LOW, previous.lbaLow ?? 0);
      this.write(Register.LBA_MID, previous.lbaMid ?? 0);
      this.write(Register.LBA_HIGH, previous.lbaHigh ?? 0);
    }
    this.write(Register.DEVICE, DEVICE_OBSOLETE | this.#dev | (taskfile.device ?? 0));
    this.write(Register.FEATURES, taskfile.features ?? 0);
    this.write(Register.SECTOR_COUNT, taskfile.count ?? 0);
    this.write(Register.LBA_LOW, taskfile.lbaLow ?? 0);
    this.write(Register.LBA_MID, taskfile.lbaMid ?? 0);
    this.write(Register.LBA_HIGH, taskfile.lbaHigh ?? 0);
  }

  /** Writes the registers and then the command; does not wait. */
  start(command: number, taskfile: Taskfile = {}): void {
    this.writeTaskfile(taskfile);
    this.write(Register.COMMAND, command);
  }

  /** Reads Status, which clears INTRQ, and Error. */
  ending(): Ending {
    const status = this.read(Register.STATUS);
    assert.equal(this.interrupt, false, 'reading Status clears INTRQ');
    return { status, error: this.read(Register.ERROR) };
  }

  /** A non-data command to its end. */
  async command(command: number, taskfile: Taskfile = {}): Promise<Ending> {
    this.start(command, taskfile);
    const status = await this.ready();
    assert.equal(status & STATUS_DRQ, 0, `command ${hex(command)} wants no data`);
    assert.equal(this.interrupt, this.#interrupts, `command ${hex(command)} interrupts at its end`);
    return this.ending();
  }

  /** A non-data command that must succeed. */
  async succeed(command: number, taskfile: Taskfile = {}): Promise<void> {
    assertSuccess(await this.command(command, taskfile));
  }

  /** PIO data-in. Stops at an error; `data` is what came before it. */
  async readPio(
    command: number,
    taskfile: Taskfile,
    sectors: number,
    blockSectors = 1,
  ): Promise<Ending & { data: Buffer }> {
    this.start(command, taskfile);
    const data = Buffer.alloc(sectors * SECTOR);
    let moved = 0;
    for (;;) {
      const status = await this.ready();
      if ((status & STATUS_DRQ) === 0) break;
      assert.equal(status & (STATUS_DF | STATUS_ERR), 0, 'a DRQ data block comes without error');
      assert.equal(this.interrupt, this.#interrupts, 'each DRQ data block interrupts');
      this.read(Register.STATUS);
      moved += this.#readBlock(data, moved, Math.min(blockSectors * SECTOR, data.length - moved));
    }
    if (moved < data.length) assert.equal(this.interrupt, this.#interrupts, 'an error interrupts');
    else assert.equal(this.interrupt, false, 'the last DRQ data block read ends the command without an interrupt');
    return { ...this.ending(), data: data.subarray(0, moved) };
  }

  /** Every other block by 16-bit reads, the rest in bulk. */
  #readBlock(data: Buffer, at: number, expected: number): number {
    const { cable } = this.rig;
    const block = cable.dataBlock();
    assert.ok(block !== null);
    assert.equal(block.length, expected, 'length of the DRQ data block');
    if ((at / SECTOR) % 2 === 0) {
      for (let i = 0; i < expected; i += 2) {
        assert.equal(this.status & (STATUS_DRQ | STATUS_BSY), STATUS_DRQ, 'DRQ stays set inside a block');
        data.writeUInt16LE(cable.readData16(), at + i);
      }
    } else {
      data.set(block, at);
      cable.advanceData(expected);
    }
    return expected;
  }

  /** PIO data-out; `moved` is how much the device asked for. */
  async writePio(
    command: number,
    taskfile: Taskfile,
    data: Uint8Array,
    blockSectors = 1,
  ): Promise<Ending & { moved: number }> {
    this.start(command, taskfile);
    let moved = 0;
    for (;;) {
      const status = await this.ready();
      if ((status & STATUS_DRQ) === 0) break;
      assert.equal(status & (STATUS_DF | STATUS_ERR), 0, 'a DRQ data block comes without error');
      assert.equal(this.interrupt, moved > 0 && this.#interrupts, 'each DRQ data block but the first interrupts');
      this.read(Register.STATUS);
      moved += this.#writeBlock(data, moved, Math.min(blockSectors * SECTOR, data.length - moved));
    }
    assert.equal(this.interrupt, this.#interrupts, 'the end of a data-out command interrupts');
    return { ...this.ending(), moved };
  }

  #writeBlock(data: Uint8Array, at: number, expected: number): number {
    const { cable } = this.rig;
    const block = cable.dataBlock();
    assert.ok(block !== null);
    assert.equal(block.length, expected, 'length of the DRQ data block');
    if ((at / SECTOR) % 2 === 0) {
      for (let i = 0; i < expected; i += 4) {
        cable.writeData32(
          (data[at + i] | (data[at + i + 1] << 8) | (data[at + i + 2] << 16) | (data[at + i + 3] << 24)) >>> 0,
        );
      }
    } else {
      block.set(data.subarray(at, at + expected));
      cable.advanceData(expected);
    }
    return expected;
  }

  /** A DMA command. The engine moves at most `limit` bytes, in pieces of `piece`, and then stops. */
  async dma(
    command: number,
    taskfile: Taskfile,
    data: Uint8Array,
    { limit = data.length, piece = 65536 } = {},
  ): Promise<Ending & { moved: number; interrupted: boolean }> {
    const { cable } = this.rig;
    let moved = 0;
    let requested = false;
    cable.onDmaRequest = () => {
      requested = true;
    };
    this.start(command, taskfile);
    for (;;) {
      await this.rig.until(() => requested || (this.status & STATUS_BSY) === 0);
      if (!requested) break;
      assert.equal(this.interrupt, false, 'no interrupt while DMARQ is asserted');
      assert.notEqual(this.status & (STATUS_BSY | STATUS_DRQ), 0, 'BSY or DRQ is set during a DMA transfer');
      moved += this.#dmaBlock(data, moved, limit, piece);
      // What was asked for meanwhile has been moved too.
      requested = cable.dmaDirection() !== null;
    }
    cable.onDmaRequest = () => {};
    const interrupted = this.interrupt;
    return { ...this.ending(), moved, interrupted };
  }

  #dmaBlock(data: Uint8Array, at: number, limit: number, piece: number): number {
    const { cable } = this.rig;
    let moved = 0;
    for (;;) {
      const block = cable.dmaBlock();
      if (block === null) return moved;
      const count = Math.min(block.length, piece, limit - at - moved);
      if (count === 0) {
        cable.terminateDma();
        return moved;
      }
      const part = data.subarray(at + moved, at + moved + count);
      if (cable.dmaDirection() === 'in') part.set(block.subarray(0, count));
      else block.set(part);
      moved += count;
      cable.advanceDma(count);
    }
  }

  get #interrupts(): boolean {
    return (this.#control & 0x02) === 0;
  }

  /** IDENTIFY DEVICE as 256 words. */
  async identify(): Promise<Uint16Array> {
    const { status, data } = await this.readPio(0xec, {}, 1);
    assertSuccess({ status, error: 0 });
    return new Uint16Array(data.buffer, data.byteOffset, 256).slice();
  }

  /** Sector Count and the address in the registers, in each form. */
  result(): { count: number; lba28: number; lba48: number; cylinder: number; head: number; sector: number } {
    const [count, low, mid, high, device] = [2, 3, 4, 5, 6].map((register) => this.read(register));
    this.rig.cable.writeDeviceControl(this.#control | CONTROL_HOB);
    const [, lowPrevious, midPrevious, highPrevious] = [2, 3, 4, 5].map((register) => this.read(register));
    this.rig.cable.writeDeviceControl(this.#control);
    const head = device & 0x0f;
    const low24 = low | (mid << 8) | (high << 16);
    return {
      count,
      lba28: low24 | (head << 24),
      lba48: low24 + (lowPrevious + midPrevious * 256 + highPrevious * 65536) * 2 ** 24,
      cylinder: mid | (high << 8),
      head,
      sector: low,
    };
  }
}

export function hex(value: number): string {
  return `${value.toString(16).toUpperCase().padStart(2, '0')}h`;
}

export function assertSuccess({ status }: Ending): void {
  assert.equal(
    status & (STATUS_BSY | STATUS_DRDY | STATUS_DF | STATUS_DRQ | STATUS_ERR),
    STATUS_DRDY,
    `status ${hex(status)}`,
  );
}

export function assertError({ status, error }: Ending, expected: number): void {
  assert.equal(
    status & (STATUS_BSY | STATUS_DRDY | STATUS_DF | STATUS_DRQ | STATUS_ERR),
    STATUS_DRDY | STATUS_ERR,
    `status ${hex(status)}`,
  );
  assert.equal(error, expected, `error ${hex(error)}`);
}

/** Sectors that say which they are. */
export function pattern(lba: number, sectors: number, salt = 0): Buffer {
  const data = Buffer.alloc(sectors * SECTOR);
  for (let i = 0; i < data.length; i += 4)
    data.writeUInt32LE(((lba * SECTOR + i) ^ Math.imul(salt, 0x9e3779b1)) >>> 0, i);
  return data;
}
