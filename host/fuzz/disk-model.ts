// What a disk must hold and answer, by the standard alone: decodes commands from the registers and follows their data. An
// independent second implementation of what the firmware does, for the register fuzzer to compare with.

import { STATUS_DF, STATUS_ERR } from '../front-end/front-end.js';

export const SECTOR = 512;
const ERROR_UNC = 0x40;
const ERROR_IDNF = 0x10;
const ERROR_ABRT = 0x04;
const LBA28_SECTORS = 0x0fffffff;
const CHS_SECTORS = 16383 * 16 * 63;

type Kind =
  | 'read'
  | 'write'
  | 'verify'
  | 'seek'
  | 'identify'
  | 'multiple'
  | 'geometry'
  | 'features'
  | 'other'
  | 'unknown';

export interface Command {
  code: number;
  kind: Kind;
  extended: boolean;
  multiple: boolean;
  dma: boolean;
  features: number;
  count: number;
  lba: number;
  /** Null for LBA. */
  chs: { cylinder: number; head: number; sector: number } | null;
  head: number;
}

/** Code, kind, and letters: x 48-bit, m multiple, d DMA. */
const TABLE: [codes: number[], kind: Kind, letters: string][] = [
  [[0x20, 0x21], 'read', ''],
  [[0x24], 'read', 'x'],
  [[0x25], 'read', 'xd'],
  [[0x29], 'read', 'xm'],
  [[0xc4], 'read', 'm'],
  [[0xc8, 0xc9], 'read', 'd'],
  [[0x30, 0x31], 'write', ''],
  [[0x34], 'write', 'x'],
  [[0x35], 'write', 'xd'],
  [[0x39], 'write', 'xm'],
  [[0xc5], 'write', 'm'],
  [[0xca, 0xcb], 'write', 'd'],
  [[0x40, 0x41], 'verify', ''],
  [[0x42], 'verify', 'x'],
  [[0x70, 0x71, 0x72, 0x73, 0x74, 0x75, 0x76, 0x77, 0x78, 0x79, 0x7a, 0x7b, 0x7c, 0x7d, 0x7e, 0x7f], 'seek', ''],
  [[0x10, 0x11, 0x12, 0x13, 0x14, 0x15, 0x16, 0x17, 0x18, 0x19, 0x1a, 0x1b, 0x1c, 0x1d, 0x1e, 0x1f], 'other', ''],
  [[0x90, 0x94, 0x95, 0x96, 0x97, 0x98, 0x99, 0xe0, 0xe1, 0xe2, 0xe3, 0xe5, 0xe6, 0xe7, 0xea], 'other', ''],
  [[0xec], 'identify', ''],
  [[0xc6], 'multiple', ''],
  [[0x91], 'geometry', ''],
  [[0xef], 'features', ''],
];
const SLEEP = [0x99, 0xe6];
const FLUSHES = [0x94, 0x96, 0x99, 0xe0, 0xe2, 0xe6, 0xe7, 0xea];

/** `now` and `previous` are Sector Count, LBA Low, Mid, High and Device, as HOB shows them. */
export function decodeCommand(
  code: number,
  { now, previous }: { now: number[]; previous: number[] },
  features: number,
): Command {
  const row = TABLE.find(([codes]) => codes.includes(code));
  const letters = row?.[2] ?? '';
  const extended = letters.includes('x');
  const [count, low, mid, high, device] = now;
  const isChs = !extended && (device & 0x40) === 0;
  let lba = low + mid * 2 ** 8 + high * 2 ** 16;
  lba += extended ? previous[1] * 2 ** 24 + previous[2] * 2 ** 32 + previous[3] * 2 ** 40 : (device & 0x0f) * 2 ** 24;
  return {
    code,
    kind: row?.[1] ?? 'unknown',
    extended,
    multiple: letters.includes('m'),
    dma: letters.includes('d'),
    features,
    count: extended ? count + previous[0] * 256 || 65536 : count || 256,
    lba,
    chs: isChs ? { cylinder: mid + high * 256, head: device & 0x0f, sector: low } : null,
    head: device & 0x0f,
  };
}

export class DiskModel {
  readonly sectors: number;
  /** What each sector may hold: one content, more after writes whose end is not known. */
  readonly #contents: Buffer[][];
  #command: Command | null = null;
  /** First LBA of the command; -1 when it must end in IDNF. */
  #lba = 0;
  #refused = false;
  /** Bytes moved by the command. */
  #moved = 0;
  #sector = Buffer.alloc(SECTOR);
  #terminated = false;
  #asleep = false;
  #heads = 0;
  #track = 0;
  #multiple = 16;
  #revert = false;

  constructor(image: Buffer) {
    this.sectors = Math.floor(image.length / SECTOR);
    this.#contents = Array.from({ length: this.sectors }, (_, lba) => [
      Buffer.from(image.subarray(lba * SECTOR, (lba + 1) * SECTOR)),
    ]);
    this.#defaultGeometry();
  }

  #defaultGeometry(): void {
    this.#track = Math.min(63, this.sectors);
    this.#heads = Math.min(16, Math.floor(this.sectors / this.#track));
  }

  /** A command's ending has not been told yet. */
  get busy(): boolean {
    return this.#command !== null;
  }

  /** The device has taken a command. */
  begin(command: Command, trace: string[]): void {
    this.#finishUnknown();
    this.#command = command;
    this.#moved = 0;
    this.#terminated = false;
    this.#lba = this.#first(command);
    this.#refused = this.#isRefused(command);
    trace.push(`  ${command.kind} ${command.count} at ${this.#lba}${this.#asleep ? ' (asleep)' : ''}`);
  }

  /** EXECUTE DEVICE DIAGNOSTIC or SRST: what was going on may have been done or not. */
  abandon(): void {
    this.#finishUnknown();
    this.#command = null;
    this.#asleep = false;
  }

  /** SRST has been cleared. */
  reset(): void {
    if (!this.#revert) return;
    this.#revert = false;
    this.#multiple = 16;
    this.#defaultGeometry();
  }

  terminated(): void {
    if (this.#command?.dma) this.#terminated = true;
  }

  /** Whether the data that the device asks for goes that way; throws when it may not ask for any. */
  moves(way: 'in' | 'out', dma: boolean): boolean {
    const command = this.#command;
    if (command === null) throw new Error('data is asked for without a command');
    if (this.#asleep) throw new Error('a sleeping device asks for data');
    if (command.dma !== dma) throw new Error(`command ${command.code.toString(16)} by the wrong kind of transfer`);
    if (this.#refused || this.#lba < 0)
      throw new Error(`command ${command.code.toString(16)} must fail and asks for data`);
    const isOut = command.kind === 'write';
    if (!isOut && command.kind !== 'read' && command.kind !== 'identify') {
      throw new Error(`command ${command.code.toString(16)} has no data`);
    }
    return (way === 'out') === isOut;
  }

  /** The PC has read these bytes; returns how many sectors were compared. */
  read(bytes: Uint8Array, dma: boolean): number {
    if (!this.moves('in', dma)) throw new Error('read of a write command');
    let sectors = 0;
    for (let at = 0; at < bytes.length; ) {
      const within = this.#moved % SECTOR;
      const count = Math.min(SECTOR - within, bytes.length - at);
      this.#sector.set(bytes.subarray(at, at + count), within);
      at += count;
      this.#moved += count;
      if (this.#moved % SECTOR !== 0) continue;
      this.#compareSector(this.#moved / SECTOR - 1);
      sectors += 1;
    }
    return sectors;
  }

  #compareSector(index: number): void {
    const command = this.#command!;
    if (command.kind === 'identify') {
      this.#compareIdentify(index);
      return;
    }
    if (index >= command.count) throw new Error('more data than the command asked for');
    const lba = this.#lba + index;
    const content = this.#contents[lba].find((candidate) => candidate.equals(this.#sector));
    if (content === undefined) throw new Error(`wrong bytes in sector ${lba}: ${this.#sector.toString('hex', 0, 16)}…`);
    this.#contents[lba] = [content];
  }

  #compareIdentify(index: number): void {
    if (index > 0) throw new Error('IDENTIFY DEVICE gives more than 512 bytes');
    const word = (number: number): number => this.#sector.readUInt16LE(2 * number);
    if (this.#sector.reduce((sum, byte) => sum + byte, 0) % 256 !== 0) throw new Error('IDENTIFY DEVICE checksum');
    if (this.#sector.readUInt32LE(200) !== this.sectors) throw new Error('IDENTIFY DEVICE capacity');
    if (word(55) !== this.#heads || word(56) !== this.#track) {
      throw new Error(`translation is ${word(55)} x ${word(56)}, not ${this.#heads} x ${this.#track}`);
    }
    if ((word(59) & 0xff) !== this.#multiple)
      throw new Error(`multiple mode is ${word(59) & 0xff}, not ${this.#multiple}`);
  }

  /** The PC has given the device these bytes. */
  wrote(bytes: Uint8Array): void {
    for (let at = 0; at < bytes.length; ) {
      const within = this.#moved % SECTOR;
      const count = Math.min(SECTOR - within, bytes.length - at);
      this.#sector.set(bytes.subarray(at, at + count), within);
      at += count;
      this.#moved += count;
      if (this.#moved % SECTOR === 0)
        this.#contents[this.#lba + this.#moved / SECTOR - 1].push(Buffer.from(this.#sector));
    }
  }

  /** The device is idle again; returns how many sectors have certainly been written. */
  end(status: number, error: number): number {
    const command = this.#command;
    if (command === null) return 0;
    this.#command = null;
    if (this.#asleep) return this.#endAsleep(status, command);
    if ((status & (STATUS_ERR | STATUS_DF)) !== 0) return this.#endFailed(command, status, error);
    return this.#endDone(command);
  }

  #endAsleep(status: number, command: Command): number {
    if (this.#moved > 0 || (status & (STATUS_ERR | STATUS_DF)) !== 0) {
      throw new Error(`a sleeping device has taken command ${command.code.toString(16)}`);
    }
    return 0;
  }

  #endFailed(command: Command, status: number, error: number): number {
    const what = `command ${command.code.toString(16)} ended with status ${status.toString(16)}, error ${error.toString(16)}`;
    if (this.#refused) {
      if (error !== ERROR_ABRT || (status & STATUS_DF) !== 0) throw new Error(`${what}, not ABRT`);
      if (command.kind === 'multiple') this.#multiple = 0;
      return 0;
    }
    if (this.#lba < 0) {
      if (error !== ERROR_IDNF) throw new Error(`${what}, not IDNF`);
      return 0;
    }
    const reads = command.kind === 'read' || command.kind === 'verify';
    const faults = command.kind === 'write' || FLUSHES.includes(command.code);
    if (reads && error === ERROR_UNC && (status & STATUS_DF) === 0) return 0;
    if (faults && (status & STATUS_DF) !== 0) return 0;
    throw new Error(`${what}, for no reason`);
  }

  #endDone(command: Command): number {
    const { kind } = command;
    if (this.#refused || this.#lba < 0) throw new Error(`command ${command.code.toString(16)} must fail and did not`);
    if (SLEEP.includes(command.code)) this.#asleep = true;
    if (kind === 'multiple') this.#multiple = command.count % 256;
    if (kind === 'geometry') {
      this.#heads = command.head + 1;
      this.#track = command.count % 256;
    }
    if (kind === 'features' && command.features === 0xcc) this.#revert = true;
    if (kind === 'features' && command.features === 0x66) this.#revert = false;
    const expected = kind === 'identify' ? SECTOR : kind === 'read' || kind === 'write' ? command.count * SECTOR : 0;
    if (this.#moved !== expected) {
      if (this.#terminated) return 0;
      throw new Error(`command ${command.code.toString(16)} is done after ${this.#moved} of ${expected} bytes`);
    }
    if (kind !== 'write') return 0;
    for (let i = 0; i < command.count; i++)
      this.#contents[this.#lba + i].splice(0, this.#contents[this.#lba + i].length - 1);
    return command.count;
  }

  /** A command whose end nobody saw: a write leaves old or new contents, settings are as they were asked for. */
  #finishUnknown(): void {
    const command = this.#command;
    this.#command = null;
    if (command === null || this.#asleep) return;
    if (this.#refused) {
      if (command.kind === 'multiple') this.#multiple = 0;
      return;
    }
    if (command.kind === 'geometry' || command.kind === 'multiple' || command.kind === 'features')
      this.#endDone(command);
  }

  /** The image server's copy after a flush, when every sector has been read. */
  compare(image: Buffer): void {
    for (let lba = 0; lba < this.sectors; lba++) {
      if (this.#contents[lba].length !== 1) throw new Error(`sector ${lba} was not read`);
      if (!this.#contents[lba][0].equals(image.subarray(lba * SECTOR, (lba + 1) * SECTOR))) {
        throw new Error(`the image server's sector ${lba} is not what the PC reads after FLUSH CACHE`);
      }
    }
  }

  /** The first LBA, -1 when not every sector of the command exists. */
  #first(command: Command): number {
    const { kind, chs } = command;
    if (kind !== 'read' && kind !== 'write' && kind !== 'verify' && kind !== 'seek') return 0;
    const count = kind === 'seek' ? 1 : command.count;
    if (chs === null) {
      const end = command.extended ? this.sectors : Math.min(this.sectors, LBA28_SECTORS);
      return command.lba + count <= end ? command.lba : -1;
    }
    const { cylinder, head, sector } = chs;
    const cylinders = Math.min(65535, Math.floor(Math.min(this.sectors, CHS_SECTORS) / (this.#heads * this.#track)));
    if (cylinder >= cylinders || head >= this.#heads || sector < 1 || sector > this.#track) return -1;
    const lba = (cylinder * this.#heads + head) * this.#track + sector - 1;
    return lba + count <= cylinders * this.#heads * this.#track ? lba : -1;
  }

  /** Whether the command must end in ABRT. */
  #isRefused(command: Command): boolean {
    const { kind, features } = command;
    const count = command.count % 256;
    if (kind === 'unknown') return true;
    if (kind === 'multiple') return count > 16 || (count & (count - 1)) !== 0;
    if (kind === 'geometry') return count === 0 || (command.head + 1) * count > Math.min(this.sectors, CHS_SECTORS);
    if (kind === 'features') return !acceptsFeature(features, count);
    return command.multiple && this.#multiple === 0;
  }
}

function acceptsFeature(features: number, count: number): boolean {
  if (features !== 0x03) return [0x02, 0x55, 0x66, 0x82, 0xaa, 0xcc].includes(features);
  const [type, mode] = [count >> 3, count & 7];
  return (
    (type === 0 && mode <= 1) || (type === 1 && mode <= 4) || (type === 4 && mode <= 2) || (type === 8 && mode <= 5)
  );
}
