// A PC made of lines: the client's side of the port socket, with what a driver for the IDE function needs.

import assert from 'node:assert/strict';
import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { existsSync, mkdtempSync, rmSync } from 'node:fs';
import net from 'node:net';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { fileURLToPath } from 'node:url';

export const RIBBON = fileURLToPath(new URL('../../host/main.js', import.meta.url));

export const COMMAND_BASE = 0x1f0;
export const REG = {
  data: 0,
  error: 1,
  features: 1,
  sectorCount: 2,
  lbaLow: 3,
  lbaMid: 4,
  lbaHigh: 5,
  device: 6,
  status: 7,
  command: 7,
};
export const BSY = 0x80;
export const DRDY = 0x40;
export const DF = 0x20;
export const DRQ = 0x08;
export const ERR = 0x01;
export const ABRT = 0x04;
export const DEV = 0x10;
export const LBA = 0x40;

/** Bus master registers and their bits, [BMIDE] 2. */
export const BM = { command: 0, status: 2, table: 4 };
export const BM_START = 0x01;
export const BM_TO_MEMORY = 0x08;
export const BM_ACTIVE = 0x01;
export const BM_INTERRUPT = 0x04;
export const END_OF_TABLE = 0x8000_0000;

const IDE_FUNCTION = (1 << 3) | 1;
const BUS_MASTER_BASE = 0xc000;

/** `ribbon sim --pc none` with its client. */
export class PortPc {
  irq14 = false;
  irq15 = false;
  /** Everything that came, for tests of the protocol itself. */
  readonly lines: string[] = [];
  readonly folder: string;
  readonly process: ChildProcess;
  readonly errors: string[] = [];
  #socket!: net.Socket;
  #input = '';
  #waiting: ((line: string) => void)[] = [];

  static async start(options: string[] = []): Promise<PortPc> {
    const pc = new PortPc(options);
    await pc.#connect();
    return pc;
  }

  private constructor(options: string[]) {
    this.folder = mkdtempSync(path.join(tmpdir(), 'ribbon-ports-'));
    const args = [RIBBON, 'sim', '--pc', 'none', '--ports', `unix:${this.socketPath}`, ...options];
    this.process = spawn(process.execPath, args, { stdio: ['ignore', 'ignore', 'pipe'] });
    this.process.stderr?.on('data', (text) => this.errors.push(String(text)));
  }

  get socketPath(): string {
    return path.join(this.folder, 'ports');
  }

  async #connect(): Promise<void> {
    const deadline = Date.now() + 30_000;
    while (!existsSync(this.socketPath)) {
      if (this.process.exitCode !== null || Date.now() > deadline) {
        throw new Error(`the port socket did not appear: ${this.errors.join('')}`);
      }
      await new Promise((resolve) => setTimeout(resolve, 20));
    }
    // What has appeared can be connected to: no second attempt.
    this.#socket = net.connect(this.socketPath);
    this.#socket.setEncoding('latin1');
    this.#socket.on('data', (text: string) => this.#receive(text));
    await once(this.#socket, 'connect');
  }

  #receive(text: string): void {
    const lines = (this.#input + text).split('\n');
    this.#input = lines.pop() as string;
    for (const line of lines) {
      this.lines.push(line);
      const notice = /^IRQ (raise|lower) (14|15)$/.exec(line);
      if (notice === null) this.#waiting.shift()?.(line);
      else this[`irq${notice[2] as '14' | '15'}`] = notice[1] === 'raise';
    }
  }

  /** Sends requests together and returns their replies. */
  ask(...requests: string[]): Promise<string[]> {
    const replies = requests.map(() => new Promise<string>((resolve) => this.#waiting.push(resolve)));
    this.#socket.write(requests.map((request) => `${request}\n`).join(''), 'latin1');
    return Promise.all(replies);
  }

  async value(request: string): Promise<number> {
    const [reply] = await this.ask(request);
    const match = /^OK (0x[0-9a-f]+)$/.exec(reply);
    assert.ok(match, `${request}: ${reply}`);
    return Number(match[1]);
  }

  async do(...requests: string[]): Promise<void> {
    const replies = await this.ask(...requests);
    for (const [index, reply] of replies.entries()) assert.equal(reply, 'OK', requests[index]);
  }

  inb(port: number): Promise<number> {
    return this.value(`inb ${port}`);
  }

  inw(port: number): Promise<number> {
    return this.value(`inw ${port}`);
  }

  outb(port: number, value: number): Promise<void> {
    return this.do(`outb ${port} ${value}`);
  }

  status(): Promise<number> {
    return this.inb(COMMAND_BASE + REG.status);
  }

  async readMemory(address: number, length: number): Promise<Buffer> {
    const [reply] = await this.ask(`read ${address} ${length}`);
    assert.match(reply, /^OK 0x/);
    return Buffer.from(reply.slice(5), 'hex');
  }

  /** Lines have at most 16 KiB: longer data goes in pieces. */
  async writeMemory(address: number, data: Buffer): Promise<void> {
    const requests: string[] = [];
    for (let at = 0; at < data.length; at += 4096) {
      const piece = data.subarray(at, at + 4096);
      requests.push(`write ${address + at} ${piece.length} 0x${piece.toString('hex')}`);
    }
    await this.do(...requests);
  }

  async readConfig(offset: number, verb = 'inl'): Promise<number> {
    const address = (0x8000_0000 + (IDE_FUNCTION << 8) + (offset & 0xfc)).toString();
    const replies = await this.ask(`outl 0xcf8 ${address}`, `${verb} ${0xcfc + (offset & 3)}`);
    return Number(replies[1].slice(3));
  }

  async writeConfig(offset: number, value: number, verb = 'outl'): Promise<void> {
    const address = (0x8000_0000 + (IDE_FUNCTION << 8) + (offset & 0xfc)).toString();
    await this.do(`outl 0xcf8 ${address}`, `${verb} ${0xcfc + (offset & 3)} ${value}`);
  }

  /** Maps the bus master registers and enables the function, as a PC's firmware does. */
  async enableIde(): Promise<number> {
    await this.writeConfig(0x20, BUS_MASTER_BASE);
    await this.writeConfig(0x04, 7, 'outw');
    return BUS_MASTER_BASE;
  }

  /** Runs a DMA command with a region table at `table`; returns the bus master status at its end. */
  async dma(request: DmaRequest): Promise<number> {
    const base = BUS_MASTER_BASE;
    const { command, lba, sectors, regions, table = 0x10_0000, abort = false, busMaster = true } = request;
    if (!busMaster) await this.writeConfig(0x04, 3, 'outw');
    const bytes = Buffer.alloc(8 * regions.length);
    for (const [index, [address, size]] of regions.entries()) {
      bytes.writeUInt32LE(address, 8 * index);
      bytes.writeUInt32LE(size >>> 0, 8 * index + 4);
    }
    await this.do(`outb 0x1f6 ${LBA}`, `outb ${base + BM.command} 0`, `outb ${base + BM.status} ${BM_INTERRUPT}`);
    await this.writeMemory(table, bytes);
    const direction = command === 0xc8 ? BM_TO_MEMORY : 0;
    const requests = [
      `outl ${base + BM.table} ${table}`,
      `outb 0x1f2 ${sectors & 0xff}`,
      `outb 0x1f3 ${lba & 0xff}`,
      `outb 0x1f4 ${(lba >> 8) & 0xff}`,
      `outb 0x1f5 ${(lba >> 16) & 0xff}`,
      `outb 0x1f7 ${command}`,
      `outb ${base + BM.command} ${BM_START | direction}`,
    ];
    if (abort) requests.push(`outb ${base + BM.command} 0`);
    await this.do(...requests);
    const status = await this.inb(base + BM.status);
    assert.equal(this.irq14, (status & BM_INTERRUPT) !== 0, 'INTRQ and the interrupt bit agree');
    const device = await this.status();
    assert.equal(device & (BSY | DRDY | DRQ), DRDY, `status 0x${device.toString(16)} at the end`);
    assert.equal(device & (DF | ERR), 0, 'no error');
    assert.equal(this.irq14, false, 'reading Status clears INTRQ');
    if ((status & BM_ACTIVE) !== 0) await this.outb(base + BM.command, 0);
    return status;
  }

  /** The program has gone: waits for the end of the process. */
  async stop(): Promise<number | null> {
    this.#socket?.destroy();
    if (this.process.exitCode === null && this.process.signalCode === null) await once(this.process, 'exit');
    rmSync(this.folder, { recursive: true, force: true });
    return this.process.exitCode;
  }
}

export interface DmaRequest {
  command: number;
  lba: number;
  sectors: number;
  /** Address, and size with END_OF_TABLE. */
  regions: [number, number][];
  /** Where the table is put. */
  table?: number;
  /** Stop the engine right after starting it. */
  abort?: boolean;
  /** False: the PCI function may not be bus master. */
  busMaster?: boolean;
}
