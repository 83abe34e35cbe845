// A PC for board tests: drives a card through its registers, as a driver does, and gives the event loop its turn while BSY.

import type { Cable } from '../../host/front-end/cable.js';
import { Register, STATUS_BSY, STATUS_DF, STATUS_DRQ, STATUS_ERR } from '../../host/front-end/front-end.js';

const SECTOR = 512;
const LOOK_INTERVAL_MS = 5;
const TIMEOUT_MS = 30_000;

export const Command = {
  IDENTIFY_DEVICE: 0xec,
  READ_SECTORS: 0x20,
  READ_SECTORS_EXT: 0x24,
  READ_DMA_EXT: 0x25,
  WRITE_SECTORS: 0x30,
  WRITE_SECTORS_EXT: 0x34,
  WRITE_DMA_EXT: 0x35,
  FLUSH_CACHE: 0xe7,
} as const;

export class AtaError extends Error {
  constructor(
    readonly command: number,
    readonly status: number,
    readonly error: number,
  ) {
    super(`command ${command.toString(16)}h ended with status ${status.toString(16)}h, error ${error.toString(16)}h`);
  }
}

export class Pc {
  #isOff = false;

  constructor(readonly cable: Cable) {}

  /** What it is about to do it does no more: the command under way rejects. */
  switchOff(): void {
    this.#isOff = true;
  }

  /** Resolves with the status once BSY is clear. */
  async ready(): Promise<number> {
    const deadline = Date.now() + TIMEOUT_MS;
    for (;;) {
      const status = this.cable.readAlternateStatus();
      if ((status & STATUS_BSY) === 0) return status;
      if (this.#isOff) throw new Error('this PC is off');
      if (Date.now() > deadline) throw new Error('the card shows BSY for 30 s');
      await this.#answer();
    }
  }

  /** The card answers, or some time passes: the PC may be switched off meanwhile. */
  #answer(): Promise<void> {
    return new Promise((resolve) => {
      const timer = setTimeout(resolve, LOOK_INTERVAL_MS);
      this.cable.onAnswer = this.cable.onDmaRequest = () => {
        clearTimeout(timer);
        resolve();
      };
    });
  }

  async identify(): Promise<Uint16Array> {
    this.#write(Command.IDENTIFY_DEVICE);
    const data = await this.#dataIn(Command.IDENTIFY_DEVICE, SECTOR);
    return new Uint16Array(data.buffer, data.byteOffset, SECTOR / 2);
  }

  async read(lba: number, sectors: number, command: number = Command.READ_SECTORS_EXT): Promise<Buffer> {
    this.#address(lba, sectors, command);
    this.#write(command);
    if (command !== Command.READ_DMA_EXT) return this.#dataIn(command, sectors * SECTOR);
    const target = Buffer.alloc(sectors * SECTOR);
    await this.#dma(command, target, (block, at) => target.set(block, at));
    return target;
  }

  async write(lba: number, data: Uint8Array, command: number = Command.WRITE_SECTORS_EXT): Promise<void> {
    this.#address(lba, data.length / SECTOR, command);
    this.#write(command);
    if (command === Command.WRITE_DMA_EXT) {
      await this.#dma(command, data, (block, at) => block.set(data.subarray(at, at + block.length)));
      return;
    }
    for (let at = 0; at < data.length; ) {
      const status = await this.#checked(command);
      const block = (status & STATUS_DRQ) !== 0 ? this.cable.dataBlock() : null;
      if (block === null) throw new Error('the card wants no data');
      block.set(data.subarray(at, at + block.length));
      at += block.length;
      this.cable.advanceData(block.length);
    }
    await this.#checked(command);
  }

  async flush(): Promise<void> {
    this.#write(Command.FLUSH_CACHE);
    await this.#checked(Command.FLUSH_CACHE);
  }

  #address(lba: number, sectors: number, command: number): void {
    const cable = this.cable;
    if (command === Command.READ_SECTORS || command === Command.WRITE_SECTORS) {
      cable.writeRegister(Register.DEVICE, 0xe0 | (lba >>> 24));
    } else {
      cable.writeRegister(Register.DEVICE, 0x40);
      cable.writeAddress(Math.floor(lba / 2 ** 24), sectors >> 8);
    }
    cable.writeAddress(lba, sectors);
  }

  #write(command: number): void {
    this.cable.writeRegister(Register.COMMAND, command);
  }

  async #checked(command: number): Promise<number> {
    const status = await this.ready();
    this.cable.readRegister(Register.STATUS);
    if ((status & (STATUS_ERR | STATUS_DF)) !== 0) {
      throw new AtaError(command, status, this.cable.readRegister(Register.ERROR));
    }
    return status;
  }

  async #dataIn(command: number, length: number): Promise<Buffer> {
    const target = Buffer.alloc(length);
    for (let at = 0; at < length; ) {
      const status = await this.#checked(command);
      const block = (status & STATUS_DRQ) !== 0 ? this.cable.dataBlock() : null;
      if (block === null) throw new Error(`the card gave ${at} of ${length} bytes`);
      target.set(block, at);
      at += block.length;
      this.cable.advanceData(block.length);
    }
    return target;
  }

  async #dma(command: number, data: Uint8Array, move: (block: Uint8Array, at: number) => void): Promise<void> {
    const deadline = Date.now() + TIMEOUT_MS;
    for (let at = 0; at < data.length; ) {
      const block = this.cable.dmaBlock();
      if (block === null) {
        if ((this.cable.readAlternateStatus() & STATUS_BSY) === 0) break;
        if (this.#isOff) throw new Error('this PC is off');
        if (Date.now() > deadline) throw new Error('the card asks for no DMA for 30 s');
        await this.#answer();
        continue;
      }
      move(block, at);
      at += block.length;
      this.cable.advanceDma(block.length);
    }
    await this.#checked(command);
  }
}
