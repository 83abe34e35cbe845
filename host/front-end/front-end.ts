// The bus interface of one card: taskfile, data buffer and control unit (SPEC.md "Front end").
//
// It answers the PC's register accesses by itself, sets BSY at once on a command, and talks to the card through the register
// block in the card's memory: it posts events and takes orders. On a board the same block stands in programmable logic.
//
// Invariants: while BSY is set the register file belongs to the card, otherwise to the PC; at most one event is unanswered;
// an order that answers an older event has no effect.

/** Events, as in assembly/front-end/block.ts. */
export const FrontEndEvent = {
  NONE: 0,
  RESET: 1,
  COMMAND: 2,
  DATA_IN_DRAINED: 3,
  DATA_OUT_FILLED: 4,
  DMA_DONE: 5,
  DMA_TERMINATED: 6,
} as const;

/** Orders, as in assembly/front-end/block.ts. */
export const FrontEndOrder = { NONE: 0, COMPLETE: 1, DATA_IN: 2, DATA_OUT: 3, DMA_IN: 4, DMA_OUT: 5 } as const;

export const ORDER_INTRQ = 1;
export const ORDER_LAST = 2;
export const ORDER_PDIAG = 4;

export const LINE_DEVICE_1 = 1;
export const LINE_PEER_PRESENT = 2;
export const LINE_PEER_PASSED = 4;

/** Command block registers by number, as the PC addresses them. */
export const Register = {
  DATA: 0,
  /** Read. */
  ERROR: 1,
  /** Write. */
  FEATURES: 1,
  SECTOR_COUNT: 2,
  LBA_LOW: 3,
  LBA_MID: 4,
  LBA_HIGH: 5,
  DEVICE: 6,
  /** Read. */
  STATUS: 7,
  /** Write. */
  COMMAND: 7,
} as const;

export const STATUS_BSY = 0x80;
export const STATUS_DRDY = 0x40;
export const STATUS_DF = 0x20;
export const STATUS_DSC = 0x10;
export const STATUS_DRQ = 0x08;
export const STATUS_ERR = 0x01;
export const DEVICE_DEV = 0x10;
export const CONTROL_NIEN = 0x02;
export const CONTROL_SRST = 0x04;
export const CONTROL_HOB = 0x80;
export const CMD_EXECUTE_DEVICE_DIAGNOSTIC = 0x90;

const MAGIC = 0x45464252; // "RBFE"
const VERSION = 1;
const BLOCK_SIZE = 80;

// 32-bit words of the block.
const WORD_MAGIC = 0;
const WORD_VERSION_SIZE = 1;
const WORD_BUFFER_OFFSET = 2;
const WORD_BUFFER_SIZE = 3;
const WORD_EVENT_SEQUENCE = 4;
const WORD_EVENT = 5;
const WORD_EVENT_LENGTH = 6;
const WORD_LINES = 7;
const WORD_ORDER_SEQUENCE = 8;
const WORD_ORDER_EVENT = 9;
const WORD_ORDER = 10;
const WORD_ORDER_FLAGS = 11;
const WORD_ORDER_OFFSET = 12;
const WORD_ORDER_LENGTH = 13;

// Bytes of the block.
const BYTE_ORDER_STATUS = 56;
const BYTE_ORDER_END_STATUS = 57;
/** Features, Sector Count, LBA Low, Mid, High: two bytes each, the newest write first. */
const BYTE_REGISTERS = 64;
const BYTE_DEVICE = 74;
const BYTE_COMMAND = 75;
const BYTE_DEVICE_CONTROL = 76;
const BYTE_STATUS = 77;
const BYTE_ERROR = 78;
const BYTE_INTERRUPT_PENDING = 79;

/** Who moves next. */
enum Phase {
  /** The PC: it may write registers and a command. */
  IDLE,
  /** The card: BSY is set. */
  BUSY,
  /** The PC reads, or writes, the DRQ data block. */
  DATA_IN,
  DATA_OUT,
  /** The PC's DMA engine: DMARQ is asserted; BSY is set. */
  DMA_IN,
  DMA_OUT,
}

export class FrontEnd {
  readonly deviceNumber: 0 | 1;
  /** Wakes the card: there is an event, or a line changed. */
  onEvent: () => void = () => {};
  /** The PC reads BSY: a card in another process gets the chance to answer before the PC sees it. */
  onBusyRead: () => void = () => {};
  /** For the cable: the interrupt state or PDIAG- may have changed. */
  onOutput: () => void = () => {};
  /** For the cable: DMARQ has been asserted. */
  onDmaRequest: () => void = () => {};
  /** Device 1 asserts PDIAG-: its diagnostics have passed. */
  passed = false;
  /** Writes of the PC that came while BSY or DRQ was set and had no effect. */
  writesIgnored = 0;

  readonly #bytes: Uint8Array;
  readonly #halfwords: Uint16Array;
  /** The register block. */
  readonly #words: Uint32Array;
  readonly #allWords: Uint32Array;
  readonly #base: number;
  /** Data buffer: byte offset in the memory. */
  #buffer = 0;
  #bufferSize = 0;
  #phase = Phase.BUSY;
  #orderSequence = 0;
  /** The rest of what the current order moves: byte offsets in the memory. */
  #position = 0;
  #end = 0;
  #start = 0;
  #last = false;
  #endStatus = 0;
  #heldCommands: readonly number[] = [];
  /** The PC stopped its DMA engine before the card asked for a transfer. */
  #dmaStopped = false;

  /** `base`: the register block's offset in `memory`, a multiple of 4. */
  constructor(memory: ArrayBufferLike, base: number, deviceNumber: 0 | 1) {
    this.deviceNumber = deviceNumber;
    this.#base = base;
    this.#bytes = new Uint8Array(memory);
    this.#halfwords = new Uint16Array(memory);
    this.#words = new Uint32Array(memory, base, BLOCK_SIZE / 4);
    this.#allWords = new Uint32Array(memory, 0, memory.byteLength >> 2);
    this.#bytes[base + BYTE_STATUS] = STATUS_BSY;
    this.#words[WORD_LINES] = deviceNumber === 1 ? LINE_DEVICE_1 : 0;
  }

  /** Power-on or hardware reset; the firmware has described the block by then. */
  powerOn(): void {
    const words = this.#words;
    if (words[WORD_MAGIC] !== MAGIC) throw new Error('the firmware has not set up the front end register block');
    if (words[WORD_VERSION_SIZE] !== (VERSION | (BLOCK_SIZE << 16))) {
      throw new Error(`front end register block version 0x${words[WORD_VERSION_SIZE].toString(16)} is not known`);
    }
    this.#buffer = this.#base + words[WORD_BUFFER_OFFSET];
    this.#bufferSize = words[WORD_BUFFER_SIZE];
    if (this.#buffer % 4 !== 0 || this.#buffer + this.#bufferSize > this.#bytes.length) {
      throw new Error(`front end data buffer at ${this.#buffer}, ${this.#bufferSize} bytes, is not in the memory`);
    }
    this.#orderSequence = words[WORD_ORDER_SEQUENCE];
    this.#bytes.fill(0, this.#base + BYTE_REGISTERS, this.#base + BLOCK_SIZE);
    this.beginReset();
    this.#post(FrontEndEvent.RESET, 0);
  }

  /** The card's doorbell: takes the order that the block holds. */
  ring(): void {
    const words = this.#words;
    const sequence = words[WORD_ORDER_SEQUENCE];
    if (sequence === this.#orderSequence) return;
    if (this.#isHeld()) {
      this.onOutput();
      return;
    }
    this.#orderSequence = sequence;
    if (words[WORD_ORDER_EVENT] !== words[WORD_EVENT_SEQUENCE] || this.#phase !== Phase.BUSY) return;
    this.#take(words[WORD_ORDER], words[WORD_ORDER_FLAGS]);
    this.onOutput();
    if (this.dmaDirection !== null) this.#requestDma();
  }

  /** For tests of a PC's patience: the end of these commands is kept from the bus until release(); a reset breaks it. */
  hold(commands: readonly number[]): void {
    this.#heldCommands = commands;
  }

  release(): void {
    this.#heldCommands = [];
    this.ring();
  }

  /** The card has nothing to do: it waits for the PC, or what it has done is held. */
  get waiting(): boolean {
    if (this.#phase !== Phase.BUSY || (this.deviceControl & CONTROL_SRST) !== 0) return true;
    return this.#isHeld() && this.#words[WORD_ORDER_SEQUENCE] !== this.#orderSequence;
  }

  #isHeld(): boolean {
    if (this.#heldCommands.length === 0 || this.#words[WORD_EVENT] !== FrontEndEvent.COMMAND) return false;
    return this.#heldCommands.includes(this.#bytes[this.#base + BYTE_COMMAND]);
  }

  // The bus side, for the cable.

  get busy(): boolean {
    return this.#phase !== Phase.IDLE;
  }

  /** Status as Alternate Status gives it. */
  get status(): number {
    if (this.#phase === Phase.BUSY) this.onBusyRead();
    return this.#bytes[this.#base + BYTE_STATUS];
  }

  /** INTRQ as far as it depends on this device alone, selected or not. */
  get interrupt(): boolean {
    const base = this.#base;
    return (
      this.#bytes[base + BYTE_INTERRUPT_PENDING] !== 0 && (this.#bytes[base + BYTE_DEVICE_CONTROL] & CONTROL_NIEN) === 0
    );
  }

  /** Reads Status: a pending interrupt is cleared. */
  readStatus(): number {
    const { status } = this;
    this.#bytes[this.#base + BYTE_INTERRUPT_PENDING] = 0;
    return status;
  }

  /** Reads Error to Device. */
  readRegister(register: number): number {
    const base = this.#base;
    if (register === Register.ERROR) return this.#bytes[base + BYTE_ERROR];
    if (register === Register.DEVICE) return this.#bytes[base + BYTE_DEVICE];
    const previous = this.#bytes[base + BYTE_DEVICE_CONTROL] >> 7;
    return this.#bytes[base + BYTE_REGISTERS + 2 * (register - Register.FEATURES) + previous];
  }

  /** Writes Features to Device; the device is not busy. */
  writeRegister(register: number, value: number): void {
    const base = this.#base;
    this.#bytes[base + BYTE_DEVICE_CONTROL] &= ~CONTROL_HOB;
    if (register === Register.DEVICE) {
      this.#bytes[base + BYTE_DEVICE] = value;
      return;
    }
    const at = base + BYTE_REGISTERS + 2 * (register - Register.FEATURES);
    this.#bytes[at + 1] = this.#bytes[at];
    this.#bytes[at] = value;
  }

  /** A device that is busy sees which device is selected, and nothing else of a Device register write. */
  writeSelection(value: number): void {
    const at = this.#base + BYTE_DEVICE;
    this.#bytes[at] = (this.#bytes[at] & ~DEVICE_DEV) | (value & DEVICE_DEV);
  }

  /** First half of a Command register write: what the PC sees at once. */
  beginCommand(command: number): void {
    const base = this.#base;
    this.#bytes[base + BYTE_COMMAND] = command;
    this.#bytes[base + BYTE_DEVICE_CONTROL] &= ~CONTROL_HOB;
    this.#bytes[base + BYTE_INTERRUPT_PENDING] = 0;
    this.#dmaStopped = false;
    if (command === CMD_EXECUTE_DEVICE_DIAGNOSTIC) {
      this.#bytes[base + BYTE_DEVICE] &= ~DEVICE_DEV;
      this.passed = false;
    }
    this.#setBusy();
  }

  /** Second half: the card is told. With two devices both see BSY before either card runs. */
  postCommand(): void {
    this.#post(FrontEndEvent.COMMAND, 0);
  }

  /** The Device Control register as written last. */
  get deviceControl(): number {
    return this.#bytes[this.#base + BYTE_DEVICE_CONTROL];
  }

  set deviceControl(value: number) {
    this.#bytes[this.#base + BYTE_DEVICE_CONTROL] = value;
  }

  /** Reset begins: BSY, everything is aborted, Device 0 is selected. */
  beginReset(): void {
    const base = this.#base;
    this.#bytes[base + BYTE_STATUS] = STATUS_BSY;
    this.#bytes[base + BYTE_DEVICE] = 0;
    this.#bytes[base + BYTE_INTERRUPT_PENDING] = 0;
    this.passed = false;
    this.#dmaStopped = false;
    this.#phase = Phase.BUSY;
  }

  /** SRST has been set: the card drops what it does. */
  postAbort(): void {
    this.#post(FrontEndEvent.NONE, 0);
  }

  /** SRST has been cleared. */
  postReset(): void {
    this.#post(FrontEndEvent.RESET, 1);
  }

  /** DASP- and PDIAG- of the other device. */
  setPeer(present: boolean, passed: boolean): void {
    const own = this.deviceNumber === 1 ? LINE_DEVICE_1 : 0;
    const lines = own | (present ? LINE_PEER_PRESENT : 0) | (passed ? LINE_PEER_PASSED : 0);
    if (this.#words[WORD_LINES] === lines) return;
    this.#words[WORD_LINES] = lines;
    this.onEvent();
  }

  readData16(): number {
    if (this.#phase !== Phase.DATA_IN) return 0xffff;
    const value = this.#halfwords[this.#position >> 1];
    this.#advance(2);
    return value;
  }

  writeData16(value: number): void {
    if (this.#phase !== Phase.DATA_OUT) {
      this.writesIgnored += 1;
      return;
    }
    this.#halfwords[this.#position >> 1] = value;
    this.#advance(2);
  }

  /** Two data words, the first in the low half. */
  readData32(): number {
    const position = this.#position;
    if (this.#phase !== Phase.DATA_IN || this.#end - position < 4 || (position & 3) !== 0) {
      const low = this.readData16();
      return (low | (this.readData16() << 16)) >>> 0;
    }
    const value = this.#allWords[position >> 2];
    this.#advance(4);
    return value;
  }

  writeData32(value: number): void {
    const position = this.#position;
    if (this.#phase !== Phase.DATA_OUT || this.#end - position < 4 || (position & 3) !== 0) {
      this.writeData16(value & 0xffff);
      this.writeData16(value >>> 16);
      return;
    }
    this.#allWords[position >> 2] = value;
    this.#advance(4);
  }

  /** The rest of the DRQ data block, in the card's memory; null when DRQ is not set. */
  dataBlock(): Uint8Array | null {
    if (this.#phase !== Phase.DATA_IN && this.#phase !== Phase.DATA_OUT) return null;
    return this.#bytes.subarray(this.#position, this.#end);
  }

  /** `bytes` of the DRQ data block have been moved: an even number, at most what is left. */
  advanceData(bytes: number): void {
    if (this.#phase !== Phase.DATA_IN && this.#phase !== Phase.DATA_OUT) return;
    this.#advance(bytes);
  }

  get dmaDirection(): 'in' | 'out' | null {
    if (this.#phase === Phase.DMA_IN) return 'in';
    return this.#phase === Phase.DMA_OUT ? 'out' : null;
  }

  dmaBlock(): Uint8Array | null {
    if (this.#phase !== Phase.DMA_IN && this.#phase !== Phase.DMA_OUT) return null;
    return this.#bytes.subarray(this.#position, this.#end);
  }

  advanceDma(bytes: number): void {
    if (this.#phase !== Phase.DMA_IN && this.#phase !== Phase.DMA_OUT) return;
    this.#move(bytes);
    if (this.#position < this.#end) return;
    this.#phase = Phase.BUSY;
    this.#post(FrontEndEvent.DMA_DONE, this.#end - this.#start);
  }

  /** The PC's DMA engine moves nothing more for this command. */
  terminateDma(): void {
    if (this.#phase === Phase.DMA_IN || this.#phase === Phase.DMA_OUT) {
      this.#phase = Phase.BUSY;
      this.#post(FrontEndEvent.DMA_TERMINATED, this.#position - this.#start);
    } else if (this.#phase === Phase.BUSY) {
      this.#dmaStopped = true;
    }
  }

  #take(order: number, flags: number): void {
    const base = this.#base;
    if ((flags & ORDER_PDIAG) !== 0) this.passed = true;
    if (order === FrontEndOrder.NONE) return;
    if (order !== FrontEndOrder.COMPLETE) this.#setExtent();
    switch (order) {
      case FrontEndOrder.COMPLETE:
        this.#phase = Phase.IDLE;
        break;
      case FrontEndOrder.DATA_IN:
        this.#phase = Phase.DATA_IN;
        this.#last = (flags & ORDER_LAST) !== 0;
        this.#endStatus = this.#bytes[base + BYTE_ORDER_END_STATUS];
        break;
      case FrontEndOrder.DATA_OUT:
        this.#phase = Phase.DATA_OUT;
        break;
      case FrontEndOrder.DMA_IN:
        this.#phase = Phase.DMA_IN;
        return;
      case FrontEndOrder.DMA_OUT:
        this.#phase = Phase.DMA_OUT;
        return;
      default:
        throw new RangeError(`front end order ${order} does not exist`);
    }
    this.#bytes[base + BYTE_STATUS] = this.#bytes[base + BYTE_ORDER_STATUS];
    if ((flags & ORDER_INTRQ) !== 0) this.#bytes[base + BYTE_INTERRUPT_PENDING] = 1;
  }

  /** The bytes of the data buffer that the order names. */
  #setExtent(): void {
    const offset = this.#words[WORD_ORDER_OFFSET];
    const length = this.#words[WORD_ORDER_LENGTH];
    if (offset % 4 !== 0 || length === 0 || length % 2 !== 0 || offset + length > this.#bufferSize) {
      throw new RangeError(`front end order for ${length} bytes at ${offset} of a ${this.#bufferSize} byte buffer`);
    }
    this.#start = this.#position = this.#buffer + offset;
    this.#end = this.#start + length;
  }

  #requestDma(): void {
    if (this.#dmaStopped) this.terminateDma();
    else this.onDmaRequest();
  }

  #move(bytes: number): void {
    if (bytes < 0 || bytes % 2 !== 0 || bytes > this.#end - this.#position) {
      throw new RangeError(`${bytes} bytes moved, ${this.#end - this.#position} were left`);
    }
    this.#position += bytes;
  }

  #advance(bytes: number): void {
    this.#move(bytes);
    if (this.#position < this.#end) return;
    if (this.#phase === Phase.DATA_OUT) {
      this.#setBusy();
      this.#post(FrontEndEvent.DATA_OUT_FILLED, 0);
    } else if (this.#last) {
      this.#phase = Phase.IDLE;
      this.#bytes[this.#base + BYTE_STATUS] = this.#endStatus;
    } else {
      this.#setBusy();
      this.#post(FrontEndEvent.DATA_IN_DRAINED, 0);
    }
  }

  #setBusy(): void {
    const at = this.#base + BYTE_STATUS;
    this.#bytes[at] = (this.#bytes[at] & ~(STATUS_DF | STATUS_DRQ | STATUS_ERR)) | STATUS_BSY;
    this.#phase = Phase.BUSY;
  }

  #post(event: number, length: number): void {
    const words = this.#words;
    words[WORD_EVENT] = event;
    words[WORD_EVENT_LENGTH] = length;
    words[WORD_EVENT_SEQUENCE] += 1;
    this.onEvent();
  }
}
