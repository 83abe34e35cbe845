// One IDE channel: the 40-pin cable with no, one or two front ends. This is all that a PC sees of its cards.
//
// Every register write reaches both devices; the one that DEV selects answers, and executes commands. Where Device 1 is
// absent, Device 0 answers for it ([ATA-6] 9.16.1); where Device 0 is absent, nothing drives the bus.

import { CMD_EXECUTE_DEVICE_DIAGNOSTIC, CONTROL_SRST, DEVICE_DEV, type FrontEnd, Register } from './front-end.js';

/** What an undriven bus reads: only DD7 has a pull-down. */
const UNDRIVEN = 0x7f;
const UNDRIVEN_DATA16 = 0xff7f;
const UNDRIVEN_DATA32 = 0xff7fff7f;

export class Cable {
  /** INTRQ of the selected device has changed. */
  onInterrupt: (level: boolean) => void = () => {};
  /** The selected device has asserted DMARQ: `dmaBlock()` may be moved now. */
  onDmaRequest: () => void = () => {};
  /** A card has answered: a device may wait for the PC now. */
  onAnswer: () => void = () => {};
  readonly #devices: readonly [FrontEnd | null, FrontEnd | null];
  readonly #present: readonly FrontEnd[];
  /** The front end that DEV selects. */
  #selected: FrontEnd | null;
  /** The front end that answers: the selected one, or Device 0 in place of an absent Device 1. */
  #answering: FrontEnd | null;
  #interrupt = false;
  /** SRST is set. */
  #resetHeld = false;

  constructor(frontEnds: FrontEnd[]) {
    const devices: [FrontEnd | null, FrontEnd | null] = [null, null];
    for (const frontEnd of frontEnds) {
      if (devices[frontEnd.deviceNumber] !== null) {
        throw new Error(`two cards on one cable are both Device ${frontEnd.deviceNumber}`);
      }
      devices[frontEnd.deviceNumber] = frontEnd;
    }
    this.#devices = devices;
    this.#present = devices.filter((device) => device !== null);
    this.#selected = this.#answering = devices[0];
    for (const frontEnd of this.#present) {
      frontEnd.onOutput = () => this.#outputsChanged();
      frontEnd.onDmaRequest = () => {
        if (frontEnd === this.#selected) this.onDmaRequest();
      };
    }
    this.#updateLines();
  }

  /** INTRQ. */
  get interrupt(): boolean {
    return this.#interrupt;
  }

  /** Reads a command block register, 1 to 7. */
  readRegister(register: number): number {
    if (this.#answering === null) return UNDRIVEN;
    if (register !== Register.STATUS) return this.#answering.readRegister(register);
    if (this.#selected === null) return 0;
    const status = this.#selected.readStatus();
    this.#updateInterrupt();
    return status;
  }

  /** Writes a command block register, 1 to 7. While the device shows BSY or DRQ, or SRST is set, the write
   * has no effect. */
  writeRegister(register: number, value: number): void {
    if (this.#answering?.busy || this.#resetHeld) {
      if (this.#answering !== null) this.#answering.writesIgnored += 1;
      return;
    }
    if (register === Register.COMMAND) {
      this.#writeCommand(value);
      return;
    }
    for (const frontEnd of this.#present) {
      if (!frontEnd.busy) frontEnd.writeRegister(register, value);
      else if (register === Register.DEVICE) frontEnd.writeSelection(value);
    }
    if (register === Register.DEVICE) this.#select((value & DEVICE_DEV) === 0 ? 0 : 1);
  }

  /** The low bytes of a command's address and its Sector Count: all of them for LBA28, but for the four bits in the Device register;
   * the second half of an LBA48 one. */
  writeAddress(lba: number, count: number): void {
    this.writeRegister(Register.SECTOR_COUNT, count & 0xff);
    this.writeRegister(Register.LBA_LOW, lba % 256);
    this.writeRegister(Register.LBA_MID, Math.floor(lba / 2 ** 8) % 256);
    this.writeRegister(Register.LBA_HIGH, Math.floor(lba / 2 ** 16) % 256);
  }

  readAlternateStatus(): number {
    if (this.#answering === null) return UNDRIVEN;
    return this.#selected === null ? 0 : this.#selected.status;
  }

  writeDeviceControl(value: number): void {
    const changed = this.#present.filter((frontEnd) => ((frontEnd.deviceControl ^ value) & CONTROL_SRST) !== 0);
    for (const frontEnd of this.#present) frontEnd.deviceControl = value;
    this.#resetHeld = (value & CONTROL_SRST) !== 0;
    if (changed.length > 0) this.#changeReset(changed, (value & CONTROL_SRST) !== 0);
    this.#updateInterrupt();
  }

  readData16(): number {
    return this.#selected === null ? UNDRIVEN_DATA16 : this.#selected.readData16();
  }

  /** Two data words, the first in the low half. */
  readData32(): number {
    return this.#selected === null ? UNDRIVEN_DATA32 : this.#selected.readData32();
  }

  writeData16(value: number): void {
    this.#selected?.writeData16(value);
  }

  writeData32(value: number): void {
    this.#selected?.writeData32(value);
  }

  /** The rest of the current DRQ data block, for bulk moves; null when DRQ is not set. Valid until the next call. */
  dataBlock(): Uint8Array | null {
    return this.#selected === null ? null : this.#selected.dataBlock();
  }

  /** The PC has moved `bytes` of `dataBlock()`, an even number. */
  advanceData(bytes: number): void {
    this.#selected?.advanceData(bytes);
  }

  /** DMARQ and which way: 'in' is to the PC. */
  dmaDirection(): 'in' | 'out' | null {
    return this.#selected === null ? null : this.#selected.dmaDirection;
  }

  /** What the DMA engine may move now. */
  dmaBlock(): Uint8Array | null {
    return this.#selected === null ? null : this.#selected.dmaBlock();
  }

  /** The DMA engine has moved `bytes` of `dmaBlock()`, an even number. */
  advanceDma(bytes: number): void {
    this.#selected?.advanceDma(bytes);
  }

  /** The DMA engine moves nothing more for this command: its table has ended, or it was stopped. A device that has not
   * asked for data yet ends the command when it does. */
  terminateDma(): void {
    this.#selected?.terminateDma();
  }

  /** Both devices see SRST before either card runs. */
  #changeReset(frontEnds: FrontEnd[], isSet: boolean): void {
    if (!isSet) {
      for (const frontEnd of frontEnds) frontEnd.postReset();
      return;
    }
    for (const frontEnd of frontEnds) frontEnd.beginReset();
    this.#updateLines();
    this.#select(0);
    for (const frontEnd of frontEnds) frontEnd.postAbort();
  }

  #writeCommand(command: number): void {
    if (command === CMD_EXECUTE_DEVICE_DIAGNOSTIC) {
      // Both devices take it, whichever is selected ([ATA-6] 8.11).
      for (const frontEnd of this.#present) frontEnd.beginCommand(command);
      this.#updateLines();
      this.#select(0);
      for (const frontEnd of this.#present) frontEnd.postCommand();
      return;
    }
    if (this.#selected === null) return;
    this.#selected.beginCommand(command);
    this.#updateInterrupt();
    this.#selected.postCommand();
  }

  #select(number: 0 | 1): void {
    this.#selected = this.#devices[number];
    this.#answering = this.#selected ?? (number === 1 ? this.#devices[0] : null);
    this.#updateInterrupt();
  }

  #outputsChanged(): void {
    this.#updateLines();
    this.#updateInterrupt();
    this.onAnswer();
  }

  /** DASP- and PDIAG- run from device to device. */
  #updateLines(): void {
    const [device0, device1] = this.#devices;
    device0?.setPeer(device1 !== null, device1?.passed ?? false);
    device1?.setPeer(device0 !== null, false);
  }

  #updateInterrupt(): void {
    const level = this.#selected?.interrupt ?? false;
    if (level === this.#interrupt) return;
    this.#interrupt = level;
    this.onInterrupt(level);
  }
}
