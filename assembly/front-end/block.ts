// The front end's register block: dual-ported RAM between the card and the bus interface (SPEC.md "Front end").
//
// The front end answers the PC's register accesses by itself. While the device shows BSY the register file belongs to the
// card, otherwise to the PC. The front end posts an *event* and the card answers with an *order*; a newer event makes the
// answer to an older one void, so an order names the event that it answers. host/front-end/ implements the other side.

import { front_end_ring } from '../imports';
import { DATA_BUFFER, DATA_BUFFER_SIZE, FRONT_END, FRONT_END_SIZE } from '../memory-map';

export const FRONT_END_MAGIC: u32 = 0x45464252; // "RBFE"
export const FRONT_END_VERSION: u16 = 1;

export enum FrontEndEvent {
  NONE = 0,
  /** Power-on, hardware reset, or SRST set and cleared again: run diagnostics and post the signature. */
  RESET = 1,
  /** The Command register was written; the front end has set BSY. */
  COMMAND = 2,
  /** The PC has read a whole DRQ data block that was not the last; BSY is set. */
  DATA_IN_DRAINED = 3,
  /** The PC has written a whole DRQ data block; BSY is set. */
  DATA_OUT_FILLED = 4,
  /** All bytes of a DMA order have been moved. */
  DMA_DONE = 5,
  /** The PC's DMA engine stopped early: `eventLength` bytes of the order were moved. */
  DMA_TERMINATED = 6,
}

export enum FrontEndOrder {
  NONE = 0,
  /** Show `orderStatus`; the command is over. */
  COMPLETE = 1,
  /** Let the PC read a DRQ data block of `orderLength` bytes from `orderOffset`. */
  DATA_IN = 2,
  /** Let the PC write a DRQ data block of `orderLength` bytes to `orderOffset`. */
  DATA_OUT = 3,
  /** Move `orderLength` bytes from `orderOffset` to the PC by DMA. */
  DMA_IN = 4,
  /** Move `orderLength` bytes from the PC to `orderOffset` by DMA. */
  DMA_OUT = 5,
}

/** Set INTRQ as the order takes effect. */
export const ORDER_INTRQ: u32 = 1;
/** The last DRQ data block of a PIO data-in command: once it is read the front end shows `orderEndStatus`, with no event. */
export const ORDER_LAST: u32 = 2;
/** Device 1 asserts PDIAG-: its diagnostics passed. */
export const ORDER_PDIAG: u32 = 4;

/** This card is Device 1 (the jumper). */
export const LINE_DEVICE_1: u32 = 1;
/** DASP-: another device answers on the cable. */
export const LINE_PEER_PRESENT: u32 = 2;
/** PDIAG-: Device 1 has passed its diagnostics. */
export const LINE_PEER_PASSED: u32 = 4;

@unmanaged
export class FrontEndBlock {
  magic: u32; // 0
  version: u16; // 4
  size: u16; // 6
  /** Data buffer, in bytes from the start of this block. Orders give offsets into the data buffer. */
  bufferOffset: u32; // 8
  bufferSize: u32; // 12
  // Written by the front end. The sequence changes last.
  eventSequence: u32; // 16
  event: u32; // 20
  eventLength: u32; // 24
  lines: u32; // 28
  // Written by the card. The sequence changes last.
  orderSequence: u32; // 32
  orderEvent: u32; // 36: the eventSequence that this order answers
  order: u32; // 40
  orderFlags: u32; // 44
  orderOffset: u32; // 48
  orderLength: u32; // 52
  orderStatus: u8; // 56
  orderEndStatus: u8; // 57
  reserved0: u16; // 58
  reserved1: u32; // 60
  // The register file. `…Previous` is what the register held before the last write (48-bit commands, HOB).
  features: u8; // 64
  featuresPrevious: u8; // 65
  sectorCount: u8; // 66
  sectorCountPrevious: u8; // 67
  lbaLow: u8; // 68
  lbaLowPrevious: u8; // 69
  lbaMid: u8; // 70
  lbaMidPrevious: u8; // 71
  lbaHigh: u8; // 72
  lbaHighPrevious: u8; // 73
  device: u8; // 74
  command: u8; // 75
  deviceControl: u8; // 76
  status: u8; // 77
  error: u8; // 78
  interruptPending: u8; // 79
}

export const block: FrontEndBlock = changetype<FrontEndBlock>(FRONT_END);

assert(offsetof<FrontEndBlock>() == 80);
assert(offsetof<FrontEndBlock>('features') == 64);
assert(offsetof<FrontEndBlock>() <= FRONT_END_SIZE);

/** Describes the block to the front end, before it is powered on. */
export function describeBlock(): void {
  block.magic = FRONT_END_MAGIC;
  block.version = FRONT_END_VERSION;
  block.size = <u16>offsetof<FrontEndBlock>();
  block.bufferOffset = <u32>(DATA_BUFFER - FRONT_END);
  block.bufferSize = DATA_BUFFER_SIZE;
}

/** Hands the prepared order to the front end as the answer to event number `eventSequence`. */
export function issueOrder(
  eventSequence: u32,
  order: FrontEndOrder,
  flags: u32,
  offset: u32,
  length: u32,
  status: u8,
  endStatus: u8,
): void {
  block.orderEvent = eventSequence;
  block.order = order;
  block.orderFlags = flags;
  block.orderOffset = offset;
  block.orderLength = length;
  block.orderStatus = status;
  block.orderEndStatus = endStatus;
  block.orderSequence += 1;
  front_end_ring();
}
