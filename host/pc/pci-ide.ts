// The PC's IDE controller: a PCI function (8086:7010, the IDE function of a PIIX3) over up to two cables, with the bus
// master DMA engine of [BMIDE]. The PC reaches its cards through nothing else.
//
// Ports: 1F0-1F7 and 3F6 for the primary channel, 170-177 and 376 for the secondary, and the 16 bus master registers where
// BAR4 puts them. Interrupts are the legacy ones, IRQ 14 and 15: the cable's INTRQ itself.
//
// Invariant: nothing here waits. An access runs to its end before it returns, and a DMA transfer moves as far as the device
// and the region table allow whenever either of them changes.

import type { Cable } from '../front-end/cable.js';

/** The PC's memory as a bus master sees it. An address where there is no memory reads as ones, writes to it are lost. */
export interface GuestMemory {
  read(address: number, target: Uint8Array): void;
  write(address: number, source: Uint8Array): void;
}

/** Bytes of an access: a port or configuration access is 8, 16 or 32 bits wide. */
export type AccessSize = 1 | 2 | 4;

export const PRIMARY_IRQ = 14;
export const SECONDARY_IRQ = 15;

const CONFIG_SIZE = 256;
const CONFIG_COMMAND = 0x04;
const CONFIG_BAR4 = 0x20;
const COMMAND_IO = 1;
const COMMAND_MEMORY = 2;
const COMMAND_BUS_MASTER = 4;
const CONFIG_TIMING = 0x40;
const PORT_MAX = 0xffff;

/** Which bits of each configuration byte can be written: command (I/O, memory, bus master), latency timer, BAR4 (from
 * bit 4 up: a 16-byte range of I/O ports), interrupt line, and the two IDE timing registers with the slave timing. */
const CONFIG_WRITABLE: readonly (readonly [number, number])[] = [
  [CONFIG_COMMAND, COMMAND_IO | COMMAND_MEMORY | COMMAND_BUS_MASTER],
  [0x0d, 0xf0],
  [CONFIG_BAR4, 0xf0],
  [CONFIG_BAR4 + 1, 0xff],
  [CONFIG_BAR4 + 2, 0xff],
  [CONFIG_BAR4 + 3, 0xff],
  [0x3c, 0xff],
  [CONFIG_TIMING, 0xff],
  [CONFIG_TIMING + 1, 0xff],
  [CONFIG_TIMING + 2, 0xff],
  [CONFIG_TIMING + 3, 0xff],
  [CONFIG_TIMING + 4, 0xff],
];

const CHANNEL_PORTS = [
  { command: 0x1f0, control: 0x3f6, irq: PRIMARY_IRQ },
  { command: 0x170, control: 0x376, irq: SECONDARY_IRQ },
] as const;

const COMMAND_REGISTERS = 8;

// Bus master registers of a channel, [BMIDE] 2.
const BUS_MASTER_REGISTERS = 8;
const BM_COMMAND = 0;
const BM_STATUS = 2;
const BM_TABLE = 4;
const BM_COMMAND_START = 0x01;
/** The engine writes memory: the device is read. */
const BM_COMMAND_TO_MEMORY = 0x08;
const BM_STATUS_ACTIVE = 0x01;
const BM_STATUS_ERROR = 0x02;
const BM_STATUS_INTERRUPT = 0x04;
/** "Drive 0/1 DMA capable": software's own notes. */
const BM_STATUS_CAPABLE = 0x60;

/** A physical region descriptor: address, byte count (bit 0 ignored, 0 means 64 KiB), bit 31 of the second word ends the
 * table. [BMIDE] 1.2 */
const REGION_SIZE = 8;
const REGION_COUNT_MASK = 0xfffe;
const REGION_COUNT_MAX = 0x10000;
const REGION_END_OF_TABLE = 0x8000_0000;

export class PciIde {
  /** The legacy interrupt line `irq` has changed. */
  onInterrupt: (irq: number, level: boolean) => void = () => {};
  /** `ports` has changed: the PC has enabled, disabled or moved something. */
  onDecode: () => void = () => {};
  readonly #config = Buffer.alloc(CONFIG_SIZE);
  readonly #writable = new Uint8Array(CONFIG_SIZE);
  readonly #channels: readonly Channel[];
  readonly #ports = new Map<number, PortTarget>();

  constructor(cables: readonly Cable[], memory: GuestMemory) {
    if (cables.length > CHANNEL_PORTS.length)
      throw new RangeError(`an IDE function has 2 channels, not ${cables.length}`);
    for (const [offset, mask] of CONFIG_WRITABLE) this.#writable[offset] = mask;
    this.#channels = cables.map((cable, index) => {
      const channel = new Channel(cable, memory, () => this.#busMasterEnabled());
      channel.onInterrupt = (level) => this.onInterrupt(CHANNEL_PORTS[index].irq, level);
      return channel;
    });
    this.reset();
  }

  /** The PC's reset line: configuration and bus master registers as at power-on. The cards are reset by their own line. */
  reset(): void {
    this.#config.fill(0);
    this.#writeIdentity();
    for (const channel of this.#channels) channel.reset();
    this.#decode();
  }

  /** Every port that is decoded now. */
  get ports(): ReadonlyMap<number, PortTarget> {
    return this.#ports;
  }

  /** Where the bus master registers are; null while they are not mapped. */
  get busMasterBase(): number | null {
    const base = this.#config.readUInt32LE(CONFIG_BAR4) - 1;
    // A PC has 64 Ki ports; the size is found by writing ones.
    return base > 0 && base <= PORT_MAX && this.#ioEnabled() ? base : null;
  }

  /** Reads configuration space; `offset` and `size` lie inside one 32-bit register. */
  readConfig(offset: number, size: AccessSize): number {
    return this.#config.readUIntLE(offset, size);
  }

  writeConfig(offset: number, size: AccessSize, value: number): void {
    for (let i = 0; i < size; i++) {
      const mask = this.#writable[offset + i];
      this.#config[offset + i] = (this.#config[offset + i] & ~mask) | ((value >>> (8 * i)) & mask);
    }
    this.#decode();
  }

  /** Reads a port; what is not decoded here reads as ones. */
  readPort(port: number, size: AccessSize): number {
    return this.#ports.get(port)?.read(size) ?? allOnes(size);
  }

  writePort(port: number, size: AccessSize, value: number): void {
    this.#ports.get(port)?.write(size, value);
  }

  #writeIdentity(): void {
    const config = this.#config;
    config.writeUInt16LE(0x8086, 0x00);
    config.writeUInt16LE(0x7010, 0x02);
    // As the PC's firmware leaves it: I/O enabled, so that a PC without any PCI code finds its disk.
    config.writeUInt16LE(COMMAND_IO, CONFIG_COMMAND);
    // Fast back-to-back capable, medium DEVSEL# timing.
    config.writeUInt16LE(0x0280, 0x06);
    // Mass storage, IDE; bus master capable, both channels in compatibility mode.
    config.writeUInt8(0x80, 0x09);
    config.writeUInt16LE(0x0101, 0x0a);
    // BAR4 is in I/O space.
    config.writeUInt32LE(1, CONFIG_BAR4);
    // IDE timing: both channels are decoded.
    config.writeUInt16LE(0x8000, CONFIG_TIMING);
    config.writeUInt16LE(0x8000, CONFIG_TIMING + 2);
  }

  #ioEnabled(): boolean {
    return (this.#config[CONFIG_COMMAND] & COMMAND_IO) !== 0;
  }

  #busMasterEnabled(): boolean {
    return (this.#config[CONFIG_COMMAND] & COMMAND_BUS_MASTER) !== 0;
  }

  #decode(): void {
    this.#ports.clear();
    if (this.#ioEnabled()) this.#mapChannels(this.busMasterBase);
    this.onDecode();
  }

  #mapChannels(base: number | null): void {
    for (const [index, channel] of this.#channels.entries()) {
      if (base !== null) this.#map(base + 8 * index, channel.busMasterTargets);
      // Bit 15 of the timing register enables the decoding of the channel's ports.
      if ((this.#config[CONFIG_TIMING + 2 * index + 1] & 0x80) === 0) continue;
      this.#map(CHANNEL_PORTS[index].command, channel.commandTargets);
      this.#map(CHANNEL_PORTS[index].control, [channel.controlTarget]);
    }
  }

  #map(base: number, targets: readonly PortTarget[]): void {
    for (const [index, target] of targets.entries()) this.#ports.set(base + index, target);
  }
}

/** What answers at a port. */
export interface PortTarget {
  read(size: AccessSize): number;
  write(size: AccessSize, value: number): void;
  /** The port is the data register of this cable: whoever moves much data goes there directly. */
  readonly data?: Cable;
}

/** One cable with its bus master registers. */
class Channel {
  onInterrupt: (level: boolean) => void = () => {};
  readonly cable: Cable;
  readonly #memory: GuestMemory;
  readonly #enabled: () => boolean;
  readonly #descriptor = Buffer.alloc(REGION_SIZE);
  #command = 0;
  #status = 0;
  /** The table's address as the PC wrote it. */
  #table = 0;
  // The engine: the next descriptor, and the rest of the current region.
  #next = 0;
  #address = 0;
  #left = 0;
  #endOfTable = false;
  #moving = false;

  constructor(cable: Cable, memory: GuestMemory, enabled: () => boolean) {
    this.cable = cable;
    this.#memory = memory;
    this.#enabled = enabled;
    cable.onInterrupt = (level) => {
      // [BMIDE] 2.2: set by the rising edge of the interrupt line. Data is in memory by then: moves are synchronous.
      if (level) this.#status |= BM_STATUS_INTERRUPT;
      this.onInterrupt(level);
    };
    cable.onDmaRequest = () => this.moveData();
  }

  reset(): void {
    this.#command = this.#status = this.#table = 0;
  }

  /** Ports of the command block, the data register first. */
  get commandTargets(): PortTarget[] {
    const { cable } = this;
    const targets: PortTarget[] = [
      {
        data: cable,
        // The data register is 16 bits wide: a byte access moves a whole word and uses its low half.
        read: (size) => (size === 4 ? cable.readData32() : cable.readData16() & (size === 1 ? 0xff : 0xffff)),
        write: (size, value) => (size === 4 ? cable.writeData32(value) : cable.writeData16(value & 0xffff)),
      },
    ];
    for (let register = 1; register < COMMAND_REGISTERS; register++) {
      targets.push({
        read: (size) =>
          composeBytes(size, (i) => (register + i < COMMAND_REGISTERS ? cable.readRegister(register + i) : 0xff)),
        write: (size, value) => {
          for (let i = 0; i < size && register + i < COMMAND_REGISTERS; i++) {
            cable.writeRegister(register + i, (value >>> (8 * i)) & 0xff);
          }
        },
      });
    }
    return targets;
  }

  get controlTarget(): PortTarget {
    return {
      read: (size) => composeBytes(size, (i) => (i === 0 ? this.cable.readAlternateStatus() : 0xff)),
      write: (_size, value) => this.cable.writeDeviceControl(value & 0xff),
    };
  }

  get busMasterTargets(): PortTarget[] {
    return Array.from({ length: BUS_MASTER_REGISTERS }, (_, register) => ({
      read: (size) => composeBytes(size, (i) => this.#readByte(register + i)),
      write: (size, value) => {
        for (let i = 0; i < size; i++) this.#writeByte(register + i, (value >>> (8 * i)) & 0xff);
      },
    }));
  }

  /** Moves what the device offers or asks for, as far as the region table goes. */
  moveData(): void {
    // A move can end a part of the command and bring the next request: that is seen by the loop here, not by a call inside.
    if (this.#moving) return;
    this.#moving = true;
    while (this.#moveRegion());
    this.#moving = false;
  }

  #readByte(register: number): number {
    if (register === BM_COMMAND) return this.#command;
    if (register === BM_STATUS) return this.#status;
    return register >= BM_TABLE && register < BM_TABLE + 4 ? (this.#table >>> (8 * (register - BM_TABLE))) & 0xff : 0;
  }

  #writeByte(register: number, value: number): void {
    if (register === BM_COMMAND) this.#writeCommand(value);
    else if (register === BM_STATUS) {
      const cleared = value & (BM_STATUS_ERROR | BM_STATUS_INTERRUPT);
      this.#status = (this.#status & ~cleared & ~BM_STATUS_CAPABLE) | (value & BM_STATUS_CAPABLE);
    } else if (register >= BM_TABLE && register < BM_TABLE + 4) {
      const shift = 8 * (register - BM_TABLE);
      // The table is aligned to 32 bits.
      this.#table = ((this.#table & ~(0xff << shift)) | (value << shift)) & ~3;
    }
  }

  #writeCommand(value: number): void {
    const wasStarted = (this.#command & BM_COMMAND_START) !== 0;
    this.#command = value & (BM_COMMAND_START | BM_COMMAND_TO_MEMORY);
    const started = (this.#command & BM_COMMAND_START) !== 0;
    if (started && !wasStarted) {
      this.#next = this.#table >>> 0;
      this.#left = 0;
      this.#endOfTable = false;
      this.#status |= BM_STATUS_ACTIVE;
      this.moveData();
    } else if (!started && (this.#status & BM_STATUS_ACTIVE) !== 0) {
      // Stopping in the middle of a transfer discards the rest of it, [BMIDE] 2.1.
      this.#status &= ~BM_STATUS_ACTIVE;
      this.cable.terminateDma();
    }
  }

  /** Moves to the end of the region or of what the device has; returns whether anything was moved. */
  #moveRegion(): boolean {
    if ((this.#status & BM_STATUS_ACTIVE) === 0) return false;
    const direction = this.cable.dmaDirection();
    if (direction === null) return false;
    // Set the wrong way round the engine never answers the device's request.
    if ((direction === 'in') !== ((this.#command & BM_COMMAND_TO_MEMORY) !== 0)) return false;
    if (this.#left === 0) this.#loadRegion();
    const block = this.cable.dmaBlock() as Uint8Array;
    const count = Math.min(this.#left, block.length);
    const part = block.subarray(0, count);
    if (direction === 'in') this.#writeMemory(part);
    else this.#readMemory(part);
    this.#address += count;
    this.#left -= count;
    const ended = this.#left === 0 && this.#endOfTable;
    if (ended) this.#status &= ~BM_STATUS_ACTIVE;
    this.cable.advanceDma(count);
    // What the device still wants finds no memory.
    if (ended) this.cable.terminateDma();
    return true;
  }

  #loadRegion(): void {
    this.#readMemoryAt(this.#next, this.#descriptor);
    this.#next += REGION_SIZE;
    this.#address = (this.#descriptor.readUInt32LE(0) & ~1) >>> 0;
    const word = this.#descriptor.readUInt32LE(4);
    this.#left = word & REGION_COUNT_MASK || REGION_COUNT_MAX;
    this.#endOfTable = (word & REGION_END_OF_TABLE) !== 0;
  }

  #writeMemory(part: Uint8Array): void {
    if (this.#enabled()) this.#memory.write(this.#address, part);
  }

  #readMemory(part: Uint8Array): void {
    this.#readMemoryAt(this.#address, part);
  }

  /** While the PCI function must not be bus master its reads bring zeros and its writes are lost, and the transfer goes on:
   * what a PC then sees is what QEMU's model shows it. */
  #readMemoryAt(address: number, target: Uint8Array): void {
    if (this.#enabled()) this.#memory.read(address, target);
    else target.fill(0);
  }
}

/** Guest memory that is a plain byte array, from address 0. */
export class ArrayMemory implements GuestMemory {
  readonly bytes: Uint8Array;

  constructor(size: number) {
    this.bytes = new Uint8Array(size);
  }

  get size(): number {
    return this.bytes.length;
  }

  read(address: number, target: Uint8Array): void {
    const present = Math.max(0, Math.min(target.length, this.bytes.length - address));
    if (present > 0) target.set(this.bytes.subarray(address, address + present));
    target.fill(0xff, present);
  }

  write(address: number, source: Uint8Array): void {
    const present = Math.max(0, Math.min(source.length, this.bytes.length - address));
    if (present > 0) this.bytes.set(source.subarray(0, present), address);
  }
}

function allOnes(size: AccessSize): number {
  return size === 4 ? 0xffffffff : size === 2 ? 0xffff : 0xff;
}

function composeBytes(size: AccessSize, read: (index: number) => number): number {
  let value = 0;
  for (let i = 0; i < size; i++) value += read(i) * 2 ** (8 * i);
  return value;
}
