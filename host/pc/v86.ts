// The PC: v86, a 32-bit PC in JavaScript and WebAssembly, with SeaBIOS, its serial console, and our IDE controller in the
// place of its own. Every hook into v86's internals is in this file: they are not its interface, so the version is pinned.
//
// v86 runs in slices of about a millisecond in which no event of this process is handled. The cards answer inside a port
// access where they can; what needs the network comes between two slices, and an idle PC has none.

import { access, readFile } from 'node:fs/promises';
import { fileURLToPath } from 'node:url';
import { V86, type V86Options } from 'v86';
import { Failure } from '../failure.js';
import type { Cable } from '../front-end/cable.js';
import { type AccessSize, type GuestMemory, PciIde, type PortTarget } from './pci-ide.js';

export interface V86PcOptions {
  /** Primary and secondary cable. Without any, the PC has v86's own IDE controller. */
  cables?: readonly Cable[];
  /** A disk on v86's own IDE controller, for comparison: in memory, or whatever answers as v86 asks it. */
  builtInDisk?: ArrayBuffer | V86Disk;
  memorySizeBytes?: number;
}

/** v86 calls load(), and begins when that has called onload(). Offsets and lengths are in bytes. */
export interface V86Disk {
  readonly byteLength: number;
  onload: ((event: object) => void) | undefined;
  load(): void;
  get(start: number, length: number, done: (data: Uint8Array) => void): void;
  /** For v86's own look at the first sector, before the PC is on. */
  get_and_cache(start: number, length: number, done: (data: Uint8Array) => void): void;
  get_from_cache(start: number, length: number): Uint8Array;
  set(start: number, data: Uint8Array, done: () => void): void;
}

/** What runs in the PC's place where there is no SeaBIOS is nothing: it comes from a Debian package, unmodified. */
const BIOS_FILES = { bios: '/usr/share/seabios/bios-256k.bin', vgaBios: '/usr/share/seabios/vgabios-stdvga.bin' };
const BIOS_PACKAGE = 'seabios';
const DEFAULT_MEMORY_SIZE = 128 << 20;
const VGA_MEMORY_SIZE = 4 << 20;

/** PCI function 00:01.1: beside the ISA bridge, as in a PIIX3. */
const IDE_FUNCTION = (1 << 3) | 1;
/** v86's own IDE function, 00:1e.0, with its ports. */
const BUILT_IN_FUNCTION = 0x1e << 3;
const BUILT_IN_PORTS: readonly (readonly [number, number])[] = [
  [0x1f0, 8],
  [0x3f6, 1],
  [0x170, 8],
  [0x376, 1],
  [0xb400, 16],
];

const PCI_ADDRESS_PORT = 0xcf8;
const PCI_DATA_PORT = 0xcfc;
const PCI_ENABLE = 0x8000_0000;
/** SeaBIOS asks here whether anybody listens, and writes its log there. */
const BIOS_LOG_PORT = 0x402;
const BIOS_LOG_READY = 0xe9;

// Scan codes of the keyboard, set 1.
const KEY_ALT = 0x38;
const KEY_SYSRQ = 0x54;
const KEY_RELEASED = 0x80;

/** What is used of v86's inner objects; the names survive its minification. */
interface PortEntry {
  read8(this: unknown, port: number): number;
  read16(this: unknown, port: number): number;
  read32(this: unknown, port: number): number;
  write8(this: unknown, value: number): void;
  write16(this: unknown, value: number): void;
  write32(this: unknown, value: number): void;
  device: unknown;
}

interface V86Cpu {
  mem8: Uint8Array;
  memory_size: Int32Array;
  write_blob(data: Uint8Array, address: number): void;
  device_raise_irq(irq: number): void;
  device_lower_irq(irq: number): void;
  reboot_internal(): void;
  devices: { pci: { devices: unknown[]; device_spaces: unknown[] } };
  io: { ports: PortEntry[]; create_empty_entry(): PortEntry };
}

interface V86Internals {
  v86: { cpu: V86Cpu };
}

export class V86Pc {
  onSerial: (bytes: Uint8Array) => void = () => {};
  /** One line of SeaBIOS's log. */
  onBiosLog: (line: string) => void = () => {};
  /** The processor has halted for good, with interrupts off: the operating system has shut down. */
  onHalt: () => void = () => {};
  /** The reset line: whoever owns the cards resets them. */
  onReset: () => void = () => {};
  readonly ide: PciIde | null;
  halted = false;
  readonly #emulator: V86;
  readonly #cpu: V86Cpu;
  #serial: number[] = [];
  #biosLine = '';

  /** Builds the PC, powered off. Throws a Failure when the BIOS files are not there. */
  static async create(options: V86PcOptions): Promise<V86Pc> {
    const [bios, vgaBios] = await Promise.all([readBios(BIOS_FILES.bios), readBios(BIOS_FILES.vgaBios)]);
    const settings: V86Options = {
      wasm_path: fileURLToPath(new URL('v86.wasm', import.meta.resolve('v86'))),
      memory_size: options.memorySizeBytes ?? DEFAULT_MEMORY_SIZE,
      vga_memory_size: VGA_MEMORY_SIZE,
      bios: { buffer: bios },
      vga_bios: { buffer: vgaBios },
      autostart: false,
      disable_mouse: true,
      disable_speaker: true,
    };
    const disk = options.builtInDisk;
    // Its declarations leave out that it takes any object with these functions.
    if (disk !== undefined)
      settings.hda = (disk instanceof ArrayBuffer ? { buffer: disk } : disk) as V86Options['hda'] & {};
    const emulator = new V86(settings);
    await new Promise<void>((resolve) => emulator.add_listener('emulator-ready', () => resolve()));
    return new V86Pc(emulator, options);
  }

  private constructor(emulator: V86, options: V86PcOptions) {
    this.#emulator = emulator;
    this.#cpu = (emulator as unknown as V86Internals).v86.cpu;
    this.ide = options.cables === undefined ? null : this.#installIde(options.cables);
    this.#installBiosLog();
    this.#installReset();
    emulator.add_listener('serial0-output-byte', (byte) => this.#collectSerial(byte));
    // Not in the list of v86's events.
    (emulator as unknown as { add_listener(name: string, listener: () => void): void }).add_listener(
      'cpu-event-halt',
      () => {
        this.halted = true;
        this.onHalt();
      },
    );
  }

  /** Powers the PC on. */
  async start(): Promise<void> {
    await this.#emulator.run();
  }

  /** Stops the processor where it is; its clock goes on. */
  async pause(): Promise<void> {
    await this.#emulator.stop();
  }

  async resume(): Promise<void> {
    await this.#emulator.run();
  }

  /** Powers the PC off. */
  async stop(): Promise<void> {
    await this.#emulator.destroy();
  }

  /** What is typed on the serial console. The caller leaves the guest time to take it: the line has no flow control. */
  sendSerial(bytes: Uint8Array): void {
    this.#emulator.serial_send_bytes(0, bytes);
  }

  /** Alt+SysRq+KEY on the PC's keyboard, KEY as a scan code of set 1: a Linux does something even when no program can. */
  sendMagicSysRq(key: number): void {
    const pressed = [KEY_ALT, KEY_SYSRQ, key];
    const released = pressed.map((code) => code | KEY_RELEASED).reverse();
    void this.#emulator.keyboard_send_scancodes([...pressed, ...released]);
  }

  /** The lines of the text screen. */
  screenText(): string[] {
    const { screen_adapter } = this.#emulator as unknown as { screen_adapter?: { get_text_screen(): string[] } };
    return screen_adapter?.get_text_screen() ?? [];
  }

  #installIde(cables: readonly Cable[]): PciIde {
    this.#removeBuiltInIde();
    const cpu = this.#cpu;
    const ide = new PciIde(cables, guestMemory(cpu));
    ide.onInterrupt = (irq, level) => (level ? cpu.device_raise_irq(irq) : cpu.device_lower_irq(irq));
    let routed: number[] = [];
    ide.onDecode = () => {
      for (const port of routed) cpu.io.ports[port] = cpu.io.create_empty_entry();
      routed = [...ide.ports.keys()];
      for (const [port, target] of ide.ports) cpu.io.ports[port] = portEntry(target);
    };
    ide.onDecode();
    this.#installConfigSpace(ide);
    return ide;
  }

  #removeBuiltInIde(): void {
    const { pci } = this.#cpu.devices;
    pci.devices[BUILT_IN_FUNCTION] = undefined;
    pci.device_spaces[BUILT_IN_FUNCTION] = undefined;
    const { io } = this.#cpu;
    for (const [base, count] of BUILT_IN_PORTS) {
      for (let port = base; port < base + count; port++) io.ports[port] = io.create_empty_entry();
    }
  }

  /** Stands before v86's configuration ports: our function answers there by itself, all others as before. */
  #installConfigSpace(ide: PciIde): void {
    const { ports } = this.#cpu.io;
    const address = Buffer.alloc(4);
    const selected = (): boolean => {
      const value = address.readUInt32LE(0);
      return value >= PCI_ENABLE && ((value >>> 8) & 0xffff) === IDE_FUNCTION;
    };
    for (let i = 0; i < 4; i++) {
      const port = PCI_ADDRESS_PORT + i;
      const before = ports[port];
      ports[port] = {
        read8: () => (selected() ? address[i] : before.read8.call(before.device, port)),
        read16: () => (selected() ? address.readUIntLE(i, 2) : before.read16.call(before.device, port)),
        read32: () => (selected() ? address.readInt32LE(0) : before.read32.call(before.device, port)),
        write8: (value) => {
          address[i] = value;
          before.write8.call(before.device, value);
        },
        write16: (value) => {
          address.writeUInt16LE(value & 0xffff, i);
          before.write16.call(before.device, value);
        },
        write32: (value) => {
          address.writeUInt32LE(value >>> 0, 0);
          before.write32.call(before.device, value);
        },
        device: undefined,
      };
    }
    for (let i = 0; i < 4; i++) {
      const port = PCI_DATA_PORT + i;
      const before = ports[port];
      const read = (size: AccessSize): number => ide.readConfig((address[0] & 0xfc) + i, size);
      const write = (size: AccessSize, value: number): void => ide.writeConfig((address[0] & 0xfc) + i, size, value);
      ports[port] = {
        read8: () => (selected() ? read(1) : before.read8.call(before.device, port)),
        read16: () => (selected() ? read(2) : before.read16.call(before.device, port)),
        read32: () => (selected() ? read(4) | 0 : before.read32.call(before.device, port)),
        write8: (value) => (selected() ? write(1, value) : before.write8.call(before.device, value)),
        write16: (value) => (selected() ? write(2, value) : before.write16.call(before.device, value)),
        write32: (value) => (selected() ? write(4, value >>> 0) : before.write32.call(before.device, value)),
        device: undefined,
      };
    }
  }

  #installBiosLog(): void {
    const { io } = this.#cpu;
    const entry = io.create_empty_entry();
    entry.read8 = () => BIOS_LOG_READY;
    entry.write8 = (value) => {
      if (value !== 0x0a) {
        this.#biosLine += String.fromCharCode(value);
        return;
      }
      this.onBiosLog(this.#biosLine);
      this.#biosLine = '';
    };
    io.ports[BIOS_LOG_PORT] = entry;
  }

  #installReset(): void {
    const cpu = this.#cpu;
    const reboot = cpu.reboot_internal;
    cpu.reboot_internal = () => {
      reboot.call(cpu);
      this.ide?.reset();
      this.onReset();
    };
  }

  /** Bytes come one by one from inside a slice; they are handed on together between two slices. */
  #collectSerial(byte: number): void {
    if (this.#serial.length === 0) {
      setImmediate(() => {
        const bytes = Uint8Array.from(this.#serial);
        this.#serial = [];
        this.onSerial(bytes);
      });
    }
    this.#serial.push(byte);
  }
}

/** v86 takes 32-bit values as signed numbers. */
function portEntry(target: PortTarget): PortEntry {
  const entry: PortEntry = {
    read8: () => target.read(1),
    read16: () => target.read(2),
    read32: () => target.read(4) | 0,
    write8: (value) => target.write(1, value),
    write16: (value) => target.write(2, value),
    write32: (value) => target.write(4, value >>> 0),
    device: undefined,
  };
  const { data } = target;
  if (data !== undefined) {
    // By PIO a PC moves every word of its data through here.
    entry.read16 = () => data.readData16();
    entry.read32 = () => data.readData32() | 0;
    entry.write16 = (value) => data.writeData16(value);
    entry.write32 = (value) => data.writeData32(value);
  }
  return entry;
}

/** v86's memory. Writes go through the emulator: it may have compiled the code that was there. */
function guestMemory(cpu: V86Cpu): GuestMemory {
  const present = (address: number, length: number): number =>
    Math.max(0, Math.min(length, cpu.memory_size[0] - address));
  return {
    read(address, target) {
      const count = present(address, target.length);
      target.set(cpu.mem8.subarray(address, address + count));
      target.fill(0xff, count);
    },
    write(address, source) {
      const count = present(address, source.length);
      if (count > 0) cpu.write_blob(source.subarray(0, count), address);
    },
  };
}

async function readBios(file: string): Promise<ArrayBuffer> {
  try {
    await access(file);
  } catch {
    throw new Failure(`the simulated PC needs ${file}: install the Debian package ${BIOS_PACKAGE}`);
  }
  const content = await readFile(file);
  return content.buffer.slice(content.byteOffset, content.byteOffset + content.byteLength) as ArrayBuffer;
}
