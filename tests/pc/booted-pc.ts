// A whole installation in the test's process: a store with the demo image, a card, and a PC that has booted from it.

import { execFile, spawn } from 'node:child_process';
import { once } from 'node:events';
import { closeSync, mkdtempSync, openSync, readSync, rmSync, writeSync } from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { promisify } from 'node:util';
import { Cable } from '../../host/front-end/cable.js';
import { GuestShell } from '../../host/pc/shell.js';
import { V86Pc } from '../../host/pc/v86.js';
import { Simulation } from '../../host/sim/simulation.js';
import { buildDemoImage } from '../../tools/demo-image.js';
import { RIBBON } from './port-client.js';

export const run = promisify(execFile);

/** A PC on a machine that is busy with other tests takes its time. */
export const BOOT_TIMEOUT_MS = 600_000;
const SECTOR_SIZE = 512;

export class BootedPc {
  readonly biosLog: string[] = [];
  readonly messages: string[] = [];
  readonly folder: string;
  readonly simulation: Simulation;
  readonly pc: V86Pc;
  readonly shell: GuestShell;

  /** `image` is a raw disk image; the demo image if none is given. `waitForShell` false: nothing is typed. */
  static async start(options: { image?: string; waitForShell?: boolean } = {}): Promise<BootedPc> {
    const image = options.image ?? (await buildDemoImage(() => {}));
    const folder = mkdtempSync(path.join(tmpdir(), 'ribbon-pc-'));
    const messages: string[] = [];
    const simulation = await Simulation.start(
      {
        card: 'inproc',
        disks: [{ exportName: 'disk', serial: 'SERIAL-42', firmware: '7.31' }],
        images: { store: path.join(folder, 'store'), makeImage: async () => image, files: {} },
      },
      {
        onLog: (level, line) => {
          if (level === 'error' || level === 'warning') messages.push(`${level}: ${line}`);
        },
        onProgress: () => {},
        onCrash: (error) => messages.push(`crash: ${error.message}`),
      },
    );
    const pc = await V86Pc.create({ cables: [simulation.cable, new Cable([])] });
    const booted = new BootedPc(folder, simulation, pc, messages);
    await pc.start();
    if (options.waitForShell !== false) await booted.shell.ready(BOOT_TIMEOUT_MS);
    return booted;
  }

  private constructor(folder: string, simulation: Simulation, pc: V86Pc, messages: string[]) {
    this.folder = folder;
    this.simulation = simulation;
    this.pc = pc;
    this.messages = messages;
    this.shell = new GuestShell(pc);
    pc.onBiosLog = (line) => this.biosLog.push(line);
  }

  /** Runs a command in the PC's shell; output and exit status. */
  async guest(command: string): Promise<{ output: string; status: number }> {
    const parts: Buffer[] = [];
    const status = await this.shell.run(command, (bytes) => parts.push(bytes));
    return { output: Buffer.concat(parts).toString('utf8'), status };
  }

  /** Switches the PC and then the card off; resolves to the bytes that did not reach the server. */
  async powerOff(): Promise<number> {
    await this.pc.stop();
    return this.simulation.stop(60_000);
  }

  /** After powerOff(): the master image read through an NBD server, by a stock client, into a raw file. */
  async copyMaster(): Promise<string> {
    const socket = path.join(this.folder, 'nbd');
    const file = path.join(this.folder, 'master.img');
    const server = spawn(process.execPath, [
      RIBBON,
      'serve',
      '--store',
      path.join(this.folder, 'store'),
      '--listen',
      `unix:${socket}`,
    ]);
    try {
      await once(server.stdout, 'data');
      await run('nbdcopy', [`nbd+unix:///disk?socket=${socket}`, file]);
    } finally {
      server.kill('SIGTERM');
      await once(server, 'exit');
    }
    return file;
  }

  remove(): void {
    rmSync(this.folder, { recursive: true, force: true });
  }
}

/** Copies a partition of a raw disk image into a file of its own; `number` counts from 1. */
export function cutPartition(disk: string, number: number, target: string): void {
  const from = openSync(disk, 'r');
  const to = openSync(target, 'w');
  try {
    const entry = Buffer.alloc(16);
    readSync(from, entry, 0, 16, 446 + 16 * (number - 1));
    const start = entry.readUInt32LE(8) * SECTOR_SIZE;
    const size = entry.readUInt32LE(12) * SECTOR_SIZE;
    const piece = Buffer.alloc(1 << 20);
    for (let at = 0; at < size; at += piece.length) {
      const count = readSync(from, piece, 0, Math.min(piece.length, size - at), start + at);
      writeSync(to, piece, 0, count, at);
    }
  } finally {
    closeSync(from);
    closeSync(to);
  }
}
