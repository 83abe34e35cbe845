// A front end whose card runs in another process or machine: the register block and the data buffer lie in memory that both
// can reach (SPEC.md "Doorbells"), and each side rings the other.
//
// The FrontEnd itself is the one of the in-process card, on a copy of that memory in this process. The block's ownership rules
// make the copy exact with two transfers: an event carries what the PC changed to the card, an order brings back what the card
// changed. Nothing else may differ in between.
//
//   PC writes Command ──> FrontEnd (copy) ──event──> registers, data of the PC ──> shared memory, doorbell
//   PC reads status   <── FrontEnd (copy) <──order── registers, data of the card <── shared memory, doorbell

import { fstatSync, readSync, writeSync } from 'node:fs';
import { DEVICE_DEV, FrontEnd, FrontEndEvent, FrontEndOrder, STATUS_BSY } from '../front-end/front-end.js';

const HEAD_MAGIC = 0x4d534252; // "RBSM"
const HEAD_VERSION = 1;
const HEAD_SIZE = 48;
const HEAD_RUNNING = 28;

const BLOCK_SIZE = 80;
/** Where the copy has its block; the data buffer lies behind it as far as in the card's memory. */
const COPY_BASE = 0;
/** The data buffer ends at most this far behind the block (assembly/memory-map.ts: 50000h - 1000h). */
const COPY_SIZE = 0x80000;

const EVENT_SEQUENCE = 16;
const EVENT = 20;
const ORDER_SEQUENCE = 32;
const ORDER_EVENT = 36;
const ORDER = 40;
const ORDER_OFFSET = 48;
const ORDER_LENGTH = 52;
const REGISTERS = 64;
const REGISTER_DEVICE = 74;
const REGISTER_DEVICE_CONTROL = 76;
const REGISTER_STATUS = 77;
const REGISTER_ERROR = 78;

/** How long a PC that reads BSY waits for the card before it sees BSY: once for each event, so that a card that waits for the
 * network does not stop the PC's clock. A card in RAM answers in 10 to 100 us. */
const BUSY_WAIT_MS = 0.3;

export interface SharedMemoryHead {
  linearOffset: number;
  linearLength: number;
  frontEndOffset: number;
  starts: number;
  /** The firmware takes events. */
  running: boolean;
  clockMs: number;
  /** Time that the card's processor has not slept, modulo 2^32. */
  busyTicks: number;
  /** 0 when the board does not count it. */
  ticksPerMs: number;
}

/** The head of a card's shared memory at `offset` of the file, null when the card has not written it yet. */
export function readSharedMemoryHead(file: number, offset: number): SharedMemoryHead | null {
  const head = Buffer.alloc(HEAD_SIZE);
  if (readSync(file, head, 0, HEAD_SIZE, offset) < HEAD_SIZE || head.readUInt32LE(0) !== HEAD_MAGIC) return null;
  if (head.readUInt16LE(4) !== HEAD_VERSION) {
    throw new Error(`shared memory of version ${head.readUInt16LE(4)}, this program knows ${HEAD_VERSION}`);
  }
  const linearOffset = offset + head.readUInt32LE(8);
  const linearLength = head.readUInt32LE(12);
  const frontEndOffset = head.readUInt32LE(16);
  if (linearOffset + linearLength > fstatSync(file).size || frontEndOffset + COPY_SIZE > linearLength) {
    throw new Error('the head of the shared memory names places outside of it');
  }
  return {
    linearOffset,
    linearLength,
    frontEndOffset,
    starts: head.readUInt32LE(20),
    running: head.readUInt32LE(HEAD_RUNNING) !== 0,
    clockMs: head.readUInt32LE(24),
    busyTicks: head.readUInt32LE(32),
    ticksPerMs: head.readUInt32LE(36),
  };
}

export class FrontEndLink {
  readonly frontEnd: FrontEnd;
  /** Rings the card's doorbell. */
  onRing: () => void = () => {};
  /** The card gave an order that makes no sense. */
  onNonsense: (error: Error) => void = () => {};
  readonly #copy = Buffer.from(new ArrayBuffer(COPY_SIZE));
  readonly #incoming = Buffer.alloc(BLOCK_SIZE);
  #file = -1;
  /** Of the block in the file. */
  #offset = 0;
  #headOffset = 0;
  #postedSequence = 0;
  /** There is something to post, and the card's firmware is being started again. */
  #waiting = false;
  readonly #running = Buffer.alloc(4);
  #waitedFor = -1;

  constructor(deviceNumber: 0 | 1) {
    this.frontEnd = new FrontEnd(this.#copy.buffer as ArrayBuffer, COPY_BASE, deviceNumber);
    this.frontEnd.onEvent = () => this.#post();
    this.frontEnd.onBusyRead = () => this.#waitForOrder();
  }

  /** The card whose head is at `headOffset` of `file` has set up the block at `offset`. Follow with `frontEnd.powerOn()` when it has been off. */
  attach(file: number, headOffset: number, offset: number): void {
    this.#file = file;
    this.#headOffset = headOffset;
    this.#offset = offset;
    // The block's description is the card's, the sequences and registers go on from what this side has.
    readSync(file, this.#copy, COPY_BASE, EVENT_SEQUENCE, offset);
    if (this.#waiting) this.#post();
  }

  detach(): void {
    this.#file = -1;
  }

  /** The card has rung: takes its order. False when there is no new one. */
  ring(): boolean {
    if (this.#file < 0) return false;
    const incoming = this.#incoming;
    const copy = this.#copy;
    // The card writes the sequence last, so it is read first and alone: what is read after it belongs to it.
    readSync(this.#file, incoming, 0, 4, this.#offset + ORDER_SEQUENCE);
    if (incoming.readUInt32LE(0) === copy.readUInt32LE(ORDER_SEQUENCE)) return false;
    readSync(this.#file, incoming, 0, BLOCK_SIZE, this.#offset);
    const current = incoming.readUInt32LE(ORDER_EVENT) === copy.readUInt32LE(EVENT_SEQUENCE);
    if (current && (copy[REGISTER_STATUS] & STATUS_BSY) !== 0) {
      this.#takeRegisters();
      if (!this.#takeData()) return false;
    }
    incoming.copy(copy, COPY_BASE + ORDER_SEQUENCE, ORDER_SEQUENCE, REGISTERS);
    try {
      this.frontEnd.ring();
    } catch (error) {
      this.onNonsense(error as Error);
    }
    return true;
  }

  /** While BSY the register file is the card's, but for what the PC may change at any time: Device Control and DEV. */
  #takeRegisters(): void {
    const incoming = this.#incoming;
    const copy = this.#copy;
    const selected = copy[REGISTER_DEVICE] & DEVICE_DEV;
    incoming.copy(copy, REGISTERS, REGISTERS, REGISTER_DEVICE_CONTROL);
    copy[REGISTER_DEVICE] = (incoming[REGISTER_DEVICE] & ~DEVICE_DEV) | selected;
    copy[REGISTER_ERROR] = incoming[REGISTER_ERROR];
  }

  #takeData(): boolean {
    const incoming = this.#incoming;
    const order = incoming.readUInt32LE(ORDER);
    if (order !== FrontEndOrder.DATA_IN && order !== FrontEndOrder.DMA_IN) return true;
    const extent = this.#extent(incoming);
    if (extent === null) return false;
    readSync(this.#file, this.#copy, extent.at, extent.length, this.#offset + extent.at);
    return true;
  }

  /** The bytes of the data buffer that an order names, as an offset from the block; null when it names others. */
  #extent(block: Buffer): { at: number; length: number } | null {
    const bufferOffset = this.#copy.readUInt32LE(8);
    const bufferSize = this.#copy.readUInt32LE(12);
    const offset = block.readUInt32LE(ORDER_OFFSET);
    const length = block.readUInt32LE(ORDER_LENGTH);
    if (offset + length <= bufferSize && bufferOffset + bufferSize <= COPY_SIZE)
      return { at: bufferOffset + offset, length };
    this.onNonsense(new RangeError(`front end order for ${length} bytes at ${offset} of a ${bufferSize} byte buffer`));
    return null;
  }

  /** Gives the card what the PC has changed since the last event. */
  #post(): void {
    if (this.#file < 0) return;
    readSync(this.#file, this.#running, 0, 4, this.#headOffset + HEAD_RUNNING);
    this.#waiting = this.#running[0] === 0;
    if (this.#waiting) return;
    const copy = this.#copy;
    const sequence = copy.readUInt32LE(EVENT_SEQUENCE);
    if (sequence === this.#postedSequence) {
      // Only a line has changed.
      writeSync(this.#file, copy, 28, 4, this.#offset + 28);
      this.onRing();
      return;
    }
    this.#postedSequence = sequence;
    const event = copy.readUInt32LE(EVENT);
    const order = copy.readUInt32LE(ORDER);
    const fromPc = order === FrontEndOrder.DATA_OUT || order === FrontEndOrder.DMA_OUT;
    if (fromPc && event >= FrontEndEvent.DATA_OUT_FILLED) this.#giveData();
    writeSync(this.#file, copy, REGISTERS, BLOCK_SIZE - REGISTERS, this.#offset + REGISTERS);
    writeSync(this.#file, copy, EVENT, ORDER_SEQUENCE - EVENT, this.#offset + EVENT);
    writeSync(this.#file, copy, EVENT_SEQUENCE, 4, this.#offset + EVENT_SEQUENCE);
    this.onRing();
  }

  #giveData(): void {
    const extent = this.#extent(this.#copy);
    if (extent !== null) writeSync(this.#file, this.#copy, extent.at, extent.length, this.#offset + extent.at);
  }

  /** The PC reads BSY. A PC in this process keeps the event loop from running, so the order is looked for here. */
  #waitForOrder(): void {
    if (this.#file < 0) return;
    const sequence = this.#postedSequence;
    if (this.#waitedFor === sequence) {
      this.ring();
      return;
    }
    this.#waitedFor = sequence;
    const deadline = performance.now() + BUSY_WAIT_MS;
    while (!this.ring() && performance.now() < deadline);
  }
}
