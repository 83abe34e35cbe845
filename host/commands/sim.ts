// `ribbon sim`: a PC on a card on an image server, in one command.

import { dirname, join } from 'node:path';
import { type Command, InvalidArgumentError, Option } from 'commander';
import { ACKNOWLEDGEMENT_POINTS, type AcknowledgementPoint, SHARE_SEGMENTS_MIN } from '../card/settings.js';
import { Failure } from '../failure.js';
import { parseListen } from '../server/listen.js';
import { type LinkOptions, parseLink } from '../sim/link.js';
import { SHARE_SEGMENTS_MAX } from '../sim/local-store-file.js';
import type { SimOptions } from '../sim/options.js';
import { CARD_KINDS, ENGINES, PC_KINDS } from '../sim/options.js';
import { parseSize } from './image.js';
import { DEFAULT_STORE } from './serve.js';

const DEFAULT_PC_MEMORY = '128M';
const DEFAULT_CARD_MEMORY = '128M';
export const DEMO_IMAGE = 'demo';

interface Options {
  card: SimOptions['card'];
  cardMemory: string;
  engine: SimOptions['engine'];
  pc: SimOptions['pc'];
  memory: string;
  image?: string;
  store: string;
  server?: string;
  localStores?: string;
  localShare?: string;
  ack?: AcknowledgementPoint;
  ackDelay?: number;
  dirtyThreshold?: number;
  link?: LinkOptions;
  ports?: string;
  listen?: string;
  run?: string;
  biosLog?: boolean;
  image0?: string;
  serial0?: string;
  firmware0?: string;
  image1?: string;
  serial1?: string;
  firmware1?: string;
}

export function register(program: Command): void {
  const sim = program
    .command('sim')
    .description('a PC on a card on an image server')
    .addOption(
      new Option('--pc <kind>', 'v86: a whole PC; nbd: an ATA driver, offered as an NBD server; none: --ports')
        .choices(PC_KINDS)
        .default('v86'),
    )
    .addOption(
      new Option('--card <kind>', 'inproc: the firmware in this process; posix: boards/posix; qemu: boards/zynq')
        .choices(CARD_KINDS)
        .default('inproc'),
    )
    .addOption(
      new Option(
        '--engine <name>',
        'what runs the firmware on --card posix or qemu: auto takes compiled code if there is some',
      )
        .choices(ENGINES)
        .default('auto'),
    )
    .option('--image <name>', `the master image in the store (default: "${DEMO_IMAGE}", built at first)`)
    .option('--store <folder>', 'the image store', DEFAULT_STORE)
    .option('--server <address>', 'another NBD server instead of a store: tcp:HOST:PORT or unix:PATH')
    .option(
      '--local-stores <folder>',
      "where the cards' local stores are kept (default: beside the store; not with --server)",
    )
    .option(
      '--local-share <size>',
      `the images of a device share one local store, and this one gets so much of it (${SHARE_SEGMENTS_MIN}M to ${SHARE_SEGMENTS_MAX}M), for good; ` +
        'default: each has a local store alone',
    )
    .addOption(
      new Option(
        '--ack <point>',
        'when a write is done (default: stored; without a local store remote-received)',
      ).choices(ACKNOWLEDGEMENT_POINTS),
    )
    .option('--ack-delay <ms>', 'tell the PC so much later that a write is done', wholeNumber(60_000))
    .option(
      '--dirty-threshold <percent>',
      'while less of the local store is uncommitted, writes wait for remote-stored',
      wholeNumber(100),
    )
    .option(
      '--link <list>',
      'the line to the image server: 1.5Mbit,40ms (each way), down@20s,up@60s (after the start); may be repeated',
      (text: string, before?: LinkOptions) => parseLink(text, before),
    )
    .option('--run <command>', "run a command in the PC's shell, print what it prints, exit with its status")
    .option('--memory <size>', "the PC's memory", DEFAULT_PC_MEMORY)
    .option('--card-memory <size>', "the card's memory: its cache is most of it", DEFAULT_CARD_MEMORY)
    .option('--ports <address>', 'unix:PATH: any program is the PC, by the line protocol of SPEC.md (with --pc none)')
    .option('--listen <address>', "where --pc nbd offers the card's disk: tcp:HOST:PORT or unix:PATH")
    .option('--bios-log', "show SeaBIOS's log on standard error");
  for (const number of [0, 1]) {
    sim
      .option(
        `--image${number} <file|name>`,
        `with --pc none: Device ${number}'s disk, a raw file or an image of the store`,
      )
      .option(`--serial${number} <text>`, `Device ${number}'s serial number`)
      .option(`--firmware${number} <text>`, `Device ${number}'s firmware revision`);
  }
  sim.action(simulate);
}

async function simulate(options: Options): Promise<void> {
  const { runSimulation } = await import('../sim/run.js');
  process.exitCode = await runSimulation(checkOptions(options));
}

/** Options that contradict each other are refused: none is silently without effect. */
function checkOptions(options: Options): SimOptions {
  const only = (name: keyof Options, pc: SimOptions['pc']): void => {
    if (options[name] !== undefined && options.pc !== pc) {
      throw new Failure(`--${name.replace(/[A-Z]/g, (letter) => `-${letter.toLowerCase()}`)} needs --pc ${pc}`);
    }
  };
  only('run', 'v86');
  only('biosLog', 'v86');
  only('listen', 'nbd');
  for (const name of ['ports', 'image0', 'image1', 'serial1', 'firmware1'] as const) only(name, 'none');
  if (options.engine !== 'auto' && options.card === 'inproc') throw new Failure('--engine needs --card posix or qemu');
  if (options.cardMemory !== DEFAULT_CARD_MEMORY && options.card === 'qemu') {
    throw new Failure('--card-memory cannot be set for --card qemu: its board decides');
  }
  const localStores =
    options.localStores ?? (options.server === undefined ? join(dirname(options.store), 'cards') : null);
  if (options.localShare !== undefined && localStores === null) {
    throw new Failure('--local-share with --server needs --local-stores: a local store that is not kept is not shared');
  }
  if (options.pc === 'none' && options.ports === undefined) throw new Failure('--pc none needs --ports unix:PATH');
  if (options.pc === 'nbd' && options.listen === undefined)
    throw new Failure('--pc nbd needs --listen unix:PATH or tcp:HOST:PORT');
  if (options.pc === 'none' && options.image !== undefined)
    throw new Failure('with --pc none the disk is --image0, not --image');
  if (options.image1 !== undefined && options.image0 === undefined) {
    throw new Failure('--image1 needs --image0: Device 1 is the second disk on the cable');
  }
  return {
    pc: options.pc,
    card: options.card,
    engine: options.engine,
    cardMemorySize: parseMemory('--card-memory', options.cardMemory, 64 << 10),
    pcMemorySize: parseMemory('--memory', options.memory, 1 << 20),
    store: options.store,
    server: options.server === undefined ? null : parseServer(options.server),
    localStores,
    shareSegments: options.localShare === undefined ? 0 : parseShare(options.localShare),
    acknowledgementPoint: options.ack ?? null,
    acknowledgementDelayMs: options.ackDelay ?? 0,
    dirtyThresholdPercent: options.dirtyThreshold ?? 0,
    link: options.link ?? null,
    ports: options.ports === undefined ? null : parsePorts(options.ports),
    listen: options.listen === undefined ? null : parseListen(options.listen),
    run: options.run ?? null,
    biosLog: options.biosLog === true,
    disks: [
      disk(options.pc === 'none' ? options.image0 : (options.image ?? DEMO_IMAGE), options.serial0, options.firmware0),
      disk(options.image1, options.serial1, options.firmware1),
    ].filter((wanted) => wanted !== null),
  };
}

function disk(
  image: string | undefined,
  serial: string | undefined,
  firmware: string | undefined,
): SimOptions['disks'][0] | null {
  if (image === undefined) {
    if (serial !== undefined || firmware !== undefined)
      throw new Failure('--serial and --firmware need a disk: --image0, --image1');
    return null;
  }
  return { image, ...(serial === undefined ? {} : { serial }), ...(firmware === undefined ? {} : { firmware }) };
}

function wholeNumber(most: number): (text: string) => number {
  return (text) => {
    const value = Number(text);
    if (!/^\d+$/.test(text) || value > most) throw new InvalidArgumentError(`It must be a whole number up to ${most}.`);
    return value;
  };
}

function parseMemory(option: string, text: string, unit: number): number {
  const size = parseSize(text);
  if (size < 16 << 20 || size > 1 << 30 || size % unit !== 0) {
    throw new Failure(`${option} must be from 16M to 1G and a multiple of ${unit >> 10}K, not ${text}`);
  }
  return size;
}

function parseShare(text: string): number {
  const segments = parseSize(text) / (1 << 20);
  if (!Number.isInteger(segments) || segments < SHARE_SEGMENTS_MIN || segments > SHARE_SEGMENTS_MAX) {
    throw new Failure(
      `--local-share must be from ${SHARE_SEGMENTS_MIN}M to ${SHARE_SEGMENTS_MAX}M and a multiple of 1M, not ${text}`,
    );
  }
  return segments;
}

function parseServer(text: string): { host: string; port: number } | { path: string } {
  const address = parseListen(text);
  return address.kind === 'unix' ? { path: address.path } : { host: address.host, port: address.port };
}

function parsePorts(text: string): string {
  const address = parseListen(text);
  if (address.kind !== 'unix') throw new Failure(`--ports takes unix:PATH, not "${text}"`);
  return address.path;
}
