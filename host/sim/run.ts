// What `ribbon sim` does: sets the installation up, runs the PC until it is switched off, and shuts everything down.

import { statSync } from 'node:fs';
import path from 'node:path';
import { buildDemoImage } from '../../tools/demo-image.js';
import { ACKNOWLEDGEMENT_POINTS } from '../card/settings.js';
import { DEMO_IMAGE } from '../commands/sim.js';
import { Failure, failureText } from '../failure.js';
import { Cable } from '../front-end/cable.js';
import { AtaDriver } from '../pc/ata-driver.js';
import { CardExports } from '../pc/card-export.js';
import { PortSocket } from '../pc/port-socket.js';
import { GuestShell } from '../pc/shell.js';
import { V86Pc } from '../pc/v86.js';
import type { ListenAddress } from '../server/listen.js';
import { ImageServer } from '../server/server.js';
import { Console, type ConsoleEvents } from './console.js';
import { FREE_LINK } from './link.js';
import type { SimOptions } from './options.js';
import { type Disk, type ImageSource, Simulation } from './simulation.js';
import { formatBytes, formatStatus } from './status-line.js';

const SHELL_TIMEOUT_MS = 180_000;
/** After an emergency sync the disk must have been quiet for this long. */
const QUIET_MS = 400;
const SYNC_TIMEOUT_MS = 5_000;
/** What a shell reports for a program that Ctrl-C has ended. */
const SIGINT_STATUS = 130;

/** Scan codes of Alt+SysRq+KEY: Linux writes its buffers (S) and makes its file systems read-only (U). */
const KEY_S = 0x1f;
const KEY_U = 0x16;

/** Returns the exit status. */
export async function runSimulation(options: SimOptions): Promise<number> {
  const run = new Run(options);
  try {
    return await run.run();
  } finally {
    run.end();
  }
}

class Run {
  readonly #options: SimOptions;
  /** Resolves when someone or something wants the simulation to end. */
  readonly #ended: Promise<void>;
  #end!: (status: number) => void;
  #status = 0;
  #console: Console | null = null;
  #endWanted = false;
  /** The first Ctrl-C asks for a clean end, the second insists. */
  readonly #onSignal = (): void => {
    if (this.#endWanted) process.exit(SIGINT_STATUS);
    this.#endWanted = true;
    this.#end(0);
  };

  constructor(options: SimOptions) {
    this.#options = options;
    this.#ended = new Promise((resolve) => {
      this.#end = (status) => {
        this.#status ||= status;
        resolve();
      };
    });
    process.on('SIGINT', this.#onSignal);
    process.on('SIGTERM', this.#onSignal);
  }

  end(): void {
    process.off('SIGINT', this.#onSignal);
    process.off('SIGTERM', this.#onSignal);
  }

  async run(): Promise<number> {
    const { images, disks } = this.#images();
    const simulation = await Simulation.start(
      {
        card: this.#options.card,
        engine: this.#options.engine,
        cardMemorySize: this.#options.cardMemorySize,
        localStores: this.#options.localStores,
        shareSegments: this.#options.shareSegments,
        acknowledgementPoint: this.#options.acknowledgementPoint,
        acknowledgementDelayMs: this.#options.acknowledgementDelayMs,
        dirtyThresholdPercent: this.#options.dirtyThresholdPercent,
        // Someone at a terminal may want to pull the cable.
        link: this.#options.link ?? (this.#isInteractive() ? FREE_LINK : null),
        disks,
        images,
      },
      {
        onLog: (level, line) => {
          if (level === 'error' || level === 'warning') this.#message(`${level}: ${line}`);
        },
        onProgress: (percent, what) => showProgress(percent, what),
        onCrash: (error) => {
          this.#message(failureText(error));
          this.#end(1);
        },
      },
    );
    const { link } = simulation;
    if (link !== null)
      link.onChange = (up) => this.#message(`the network cable is ${up ? 'plugged in' : 'pulled out'}`);
    try {
      if (this.#options.pc === 'none') await this.#runPorts(simulation, this.#options.ports as string);
      else if (this.#options.pc === 'nbd') await this.#runNbd(simulation, this.#options.listen as ListenAddress);
      else await this.#runPc(simulation);
      return this.#status;
    } finally {
      this.#console?.stop();
      const left = await simulation.stop();
      if (left > 0) this.#message(`${formatBytes(left)} that the PC wrote did not reach the image server`);
    }
  }

  /** A foreign program is the PC. */
  async #runPorts(simulation: Simulation, socket: string): Promise<void> {
    const ports = new PortSocket(
      [simulation.cable, new Cable([])],
      simulation.cards.map((card) => card.frontEnd),
    );
    await ports.listen(socket);
    await Promise.race([ports.closed, this.#ended]);
    ports.close();
  }

  /** An ATA driver is the PC, and any NBD client its user. */
  async #runNbd(simulation: Simulation, listen: ListenAddress): Promise<void> {
    const driver = new AtaDriver(simulation.cable);
    await driver.open();
    const { exportName } = simulation.disks[0];
    const server = new ImageServer({
      exports: new CardExports(driver, exportName),
      listen: [listen],
      log: (level, message) => {
        if (level !== 'info') this.#message(message);
      },
    });
    await server.listen();
    process.stdout.write(`${server.uri(exportName)}\n`);
    await this.#ended;
    await server.close();
  }

  async #runPc(simulation: Simulation): Promise<void> {
    const pc = await V86Pc.create({
      cables: [simulation.cable, new Cable([])],
      memorySizeBytes: this.#options.pcMemorySize,
    });
    pc.onHalt = () => this.#end(0);
    pc.onReset = () => {
      for (const card of simulation.cards) card.frontEnd.powerOn();
    };
    if (this.#options.biosLog) pc.onBiosLog = (line) => this.#message(line);
    try {
      if (this.#options.run === null) await this.#runConsole(simulation, pc);
      else await this.#runCommand(pc, this.#options.run);
      await syncPc(simulation, pc);
    } finally {
      await pc.stop();
    }
  }

  async #runConsole(simulation: Simulation, pc: V86Pc): Promise<void> {
    const { disks, server, cards } = simulation;
    this.#console = new Console(pc, {
      status: () => formatStatus(cards[0].statistics(), server?.generation(disks[0].exportName) ?? null),
      onPowerOff: this.#onSignal,
      keys: this.#keys(simulation),
    });
    this.#console.start();
    await pc.start();
    await this.#ended;
  }

  #isInteractive(): boolean {
    return this.#options.pc === 'v86' && this.#options.run === null && process.stdin.isTTY === true;
  }

  #keys({ link, cards }: Simulation): ConsoleEvents['keys'] {
    const keys: ConsoleEvents['keys'] = {};
    if (link !== null) keys.n = { help: 'pulls the network cable, or plugs it in', press: () => link.set(!link.up) };
    keys.a = {
      help: 'switches the acknowledgement point',
      press: () => {
        const now = ACKNOWLEDGEMENT_POINTS.indexOf(cards[0].statistics().acknowledgementPoint);
        const next = ACKNOWLEDGEMENT_POINTS[(now + 1) % ACKNOWLEDGEMENT_POINTS.length];
        for (const card of cards) card.setAcknowledgementPoint(next);
        this.#message(`writes are done when they are ${next}`);
      },
    };
    return keys;
  }

  async #runCommand(pc: V86Pc, command: string): Promise<void> {
    const shell = new GuestShell(pc);
    await pc.start();
    const work = async (): Promise<number> => {
      await shell.ready(SHELL_TIMEOUT_MS);
      return shell.run(command, (output) => process.stdout.write(output));
    };
    // A signal or a halt of the PC ends the command too, and then it has not succeeded.
    const status = await Promise.race([work(), this.#ended.then(() => null)]);
    if (status === null) this.#status ||= 1;
    else this.#end(status);
  }

  #images(): { images: ImageSource | Exclude<SimOptions['server'], null>; disks: Disk[] } {
    const { server, store } = this.#options;
    const files: Record<string, string> = {};
    let usesStore = false;
    const disks = this.#options.disks.map(({ image, ...identity }, number) => {
      if (server === null && this.#options.pc === 'none' && isFile(image)) {
        files[`image${number}`] = path.resolve(image);
        return { ...identity, exportName: `image${number}` };
      }
      usesStore = true;
      return { ...identity, exportName: image };
    });
    if (server !== null) return { images: server, disks };
    const makeImage = (name: string): Promise<string> | null =>
      name === DEMO_IMAGE ? buildDemoImage((percent, what) => showProgress(percent, `demo image: ${what}`)) : null;
    return { images: { store: usesStore ? store : null, makeImage, files }, disks };
  }

  #message(text: string): void {
    if (this.#console !== null) this.#console.message(text);
    else process.stderr.write(`ribbon: ${text}\n`);
  }
}

/** Lets Linux in the PC write what it has in its buffers: nothing that a program has written is lost by switching the PC
 * off. Other systems take no notice. */
async function syncPc(simulation: Simulation, pc: V86Pc): Promise<void> {
  if (pc.halted) return;
  for (const key of [KEY_S, KEY_U]) pc.sendMagicSysRq(key);
  const commands = (): number => simulation.cards.reduce((sum, card) => sum + card.statistics().commands, 0);
  const deadline = Date.now() + SYNC_TIMEOUT_MS;
  let last = -1;
  for (let now = commands(); now !== last && Date.now() < deadline; now = commands()) {
    last = now;
    await new Promise((resolve) => setTimeout(resolve, QUIET_MS));
  }
}

/** An image that is named like a path or is there is a file; else it is a name in the store. */
function isFile(image: string): boolean {
  const stat = statSync(image, { throwIfNoEntry: false });
  if (stat?.isFile()) return true;
  if (image.includes('/')) throw new Failure(`there is no disk image file "${image}"`);
  return false;
}

function showProgress(percent: number, what: string): void {
  if (!process.stderr.isTTY) return;
  const done = percent >= 100;
  process.stderr.write(`\r\x1b[K${done ? '' : `${what} ${Math.floor(percent)} %`}`);
}
