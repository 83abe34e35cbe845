// A whole simulated installation but the PC: an image server with its images, and a card for each disk on one cable.

import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { fileURLToPath } from 'node:url';
import type { Card, LogLevel } from '../card/card.js';
import { FIRMWARE_FILE, loadFirmware } from '../card/firmware.js';
import { InProcessCard } from '../card/in-process.js';
import type { NetworkPath } from '../card/network.js';
import { type AcknowledgementPoint, type CardSettings, DEFAULT_SETTINGS } from '../card/settings.js';
import { Failure } from '../failure.js';
import { Cable } from '../front-end/cable.js';
import { SimulationServer } from './image-server.js';
import { Link, type LinkOptions } from './link.js';
import { localStoreFile } from './local-store-file.js';

export interface Disk {
  /** NBD export name. */
  exportName: string;
  serial?: string;
  firmware?: string;
}

export interface SimulationOptions {
  card: CardKind;
  /** For cards outside of this process. */
  engine?: Engine;
  /** Linear memory of each card, in bytes; a QEMU card has what its board has. */
  cardMemorySize?: number;
  /** Device 0, then Device 1. */
  disks: readonly Disk[];
  /** Where the images are: in our own image server, or on another NBD server. */
  images: ImageSource | NetworkPath['address'];
  /** The folder of the cards' local stores, one file for each image and device, kept for the next start. Without it a card's
   * local store goes with the card. */
  localStores?: string | null;
  /** Segments that the image gets on a local store that the device's images share; 0: each has one alone. */
  shareSegments?: number;
  /** When a write is done; without it `stored` on a local store that is kept, else `remote-received`. */
  acknowledgementPoint?: AcknowledgementPoint | null;
  acknowledgementDelayMs?: number;
  dirtyThresholdPercent?: number;
  /** The line between cards and image server; without it they are one machine. */
  link?: LinkOptions | null;
}

export interface ImageSource {
  /** The store's folder; null when only files are served. */
  store: string | null;
  /** Makes the raw file of an image that is wanted and is not in the store; null when nothing can make it. */
  makeImage: (name: string) => Promise<string> | null;
  /** Raw files by export name. */
  files: Record<string, string>;
}

export interface SimulationEvents {
  onLog: (level: LogLevel, line: string) => void;
  onProgress: (percent: number, what: string) => void;
  /** A card has stopped for good: the PC has lost its disk. */
  onCrash: (error: Error) => void;
}

type CardFactory = (options: CardOptions) => Card | Promise<Card>;

interface CardOptions {
  settings: CardSettings;
  path: NetworkPath;
  deviceNumber: 0 | 1;
  memorySize: number | undefined;
  engine: Engine;
  storeFile?: string;
}

/** What executes the firmware of a card outside of this process; `auto`: compiled code if it fits the firmware, else wasm3. */
export const ENGINES = ['auto', 'wasm3', 'aot'] as const;
export type Engine = (typeof ENGINES)[number];

const BOARDS = new URL('../../boards/', import.meta.url);
const POSIX_CARD = fileURLToPath(new URL('ribbon-card', BOARDS));
/** The QEMU card's program decides the engine: without compiled firmware in it there is only wasm3. */
const QEMU_CARD = fileURLToPath(new URL('ribbon-card-qemu.elf', BOARDS));
const QEMU_CARD_WASM3 = fileURLToPath(new URL('ribbon-card-qemu-wasm3.elf', BOARDS));

/** Where a card runs, by its name on the command line. */
const CARDS = {
  inproc: ({ memorySize, engine: _, ...options }) =>
    new InProcessCard({ ...options, firmware: loadFirmware(), ...(memorySize === undefined ? {} : { memorySize }) }),
  posix: async ({ memorySize, ...options }) => {
    const { PosixCard } = await import('../card/posix.js');
    const firmware = fileURLToPath(FIRMWARE_FILE);
    return new PosixCard({
      ...options,
      firmware,
      program: POSIX_CARD,
      ...(memorySize === undefined ? {} : { memorySize }),
    });
  },
  qemu: async ({ memorySize: _, engine, ...options }) => {
    const { QemuCard } = await import('../card/qemu.js');
    const program = engine === 'wasm3' ? QEMU_CARD_WASM3 : QEMU_CARD;
    return new QemuCard({ ...options, firmware: fileURLToPath(FIRMWARE_FILE), program });
  },
} satisfies Record<string, CardFactory>;

export type CardKind = keyof typeof CARDS;
export const CARD_KINDS = Object.keys(CARDS) as CardKind[];

export class Simulation {
  readonly cable: Cable;
  readonly cards: readonly Card[];
  readonly disks: readonly Disk[];
  /** Null when another server is used. */
  readonly server: SimulationServer | null;
  /** Null when there is none to be slow or to be pulled. */
  readonly link: Link | null;
  readonly #folder: string;

  /** Powers everything on; resolves when the disks are ready. Rejects with a Failure, and nothing is left running. */
  static async start(options: SimulationOptions, events: SimulationEvents): Promise<Simulation> {
    const folder = await mkdtemp(path.join(tmpdir(), 'ribbon-'));
    const cards: Card[] = [];
    let server: SimulationServer | null = null;
    let link: Link | null = null;
    try {
      let address: NetworkPath['address'];
      if ('store' in options.images) {
        server = new SimulationServer();
        address = { path: path.join(folder, 'nbd') };
        await startServer(server, options.images, options.disks, address.path, events);
      } else {
        address = options.images;
      }
      if (options.link !== undefined && options.link !== null) {
        link = new Link(address, options.link);
        address = { path: path.join(folder, 'line') };
        await link.listen(address.path);
      }
      for (const disk of options.disks)
        cards.push(await startCard(options, disk, cards.length as 0 | 1, address, events));
      return new Simulation(options.disks, cards, server, link, folder);
    } catch (error) {
      await stopAll(cards, server, link, folder, 0);
      throw error;
    }
  }

  private constructor(
    disks: readonly Disk[],
    cards: readonly Card[],
    server: SimulationServer | null,
    link: Link | null,
    folder: string,
  ) {
    this.disks = disks;
    this.cards = cards;
    this.server = server;
    this.link = link;
    this.#folder = folder;
    this.cable = new Cable(cards.map((card) => card.frontEnd));
  }

  /** Waits until the image server has committed what the PC wrote, at most `timeoutMs`, then powers everything off. Resolves
   * to the number of bytes that were not committed. */
  stop(timeoutMs = 10_000): Promise<number> {
    return stopAll(this.cards, this.server, this.link, this.#folder, timeoutMs);
  }
}

async function startServer(
  server: SimulationServer,
  images: ImageSource,
  disks: readonly Disk[],
  socket: string,
  events: SimulationEvents,
): Promise<void> {
  server.onLog = (message) => events.onLog('warning', `image server: ${message}`);
  server.onCrash = events.onCrash;
  if (Object.keys(images.files).length > 0) await server.openFiles(images.files);
  if (images.store !== null) {
    const present = new Set([...(await server.openStore(images.store)), ...Object.keys(images.files)]);
    for (const name of new Set(disks.map((disk) => disk.exportName))) {
      if (present.has(name)) continue;
      const file = images.makeImage(name);
      if (file === null) {
        throw new Failure(
          `there is no image "${name}" in ${images.store}; it has: ${[...present].join(', ') || 'none'}\n` +
            '("ribbon image create" or "ribbon image import" makes one)',
        );
      }
      server.onProgress = (percent) => events.onProgress(percent, `importing "${name}"`);
      await server.importRaw(name, await file);
    }
  }
  await server.listen(socket);
}

async function startCard(
  options: SimulationOptions,
  disk: Disk,
  deviceNumber: 0 | 1,
  address: NetworkPath['address'],
  events: SimulationEvents,
): Promise<Card> {
  const storeFile = keptStoreFile(options, disk, deviceNumber);
  const settings: CardSettings = {
    ...DEFAULT_SETTINGS,
    // What a local store has that goes with the card is not kept: then a write is done when the image server has it, and a
    // flush when it has committed it.
    acknowledgementPoint: options.acknowledgementPoint ?? (storeFile === null ? 'remote-received' : 'stored'),
    acknowledgementDelayMs: options.acknowledgementDelayMs ?? 0,
    dirtyThresholdPercent: options.dirtyThresholdPercent ?? 0,
    storeShareSegments: options.shareSegments ?? 0,
    // On one machine there is no line that would be worth the processor's time.
    ...('store' in options.images && options.link == null ? { deflate: false, ask: false } : {}),
    exportName: disk.exportName,
    serial: disk.serial ?? `RIBBON-000${deviceNumber + 1}`,
    firmware: disk.firmware ?? DEFAULT_SETTINGS.firmware,
  };
  const factory: CardFactory = CARDS[options.card];
  const card = await factory({
    settings,
    path: { address },
    deviceNumber,
    memorySize: options.cardMemorySize,
    engine: options.engine ?? 'auto',
    ...(storeFile === null ? {} : { storeFile }),
  });
  card.onLog = (level, line) => events.onLog(level, `card ${deviceNumber}: ${line}`);
  card.onCrash = (error) =>
    events.onCrash(new Failure(`card ${deviceNumber} has stopped: ${error.stack ?? error.message}`));
  await card.start();
  return card;
}

/** Null when it is not to be kept: a raw file has no generations that would tell whether it is still what the card knows. */
function keptStoreFile(options: SimulationOptions, disk: Disk, deviceNumber: 0 | 1): string | null {
  const { localStores, images, shareSegments = 0 } = options;
  if (localStores === undefined || localStores === null) return null;
  if (!('files' in images && disk.exportName in images.files))
    return localStoreFile(localStores, deviceNumber, disk.exportName, shareSegments);
  if (shareSegments === 0) return null;
  throw new Failure(`--local-share needs images of the store: the local store of "${disk.exportName}" is not kept`);
}

async function stopAll(
  cards: readonly Card[],
  server: SimulationServer | null,
  link: Link | null,
  folder: string,
  timeoutMs: number,
): Promise<number> {
  // Whatever fails here, the rest is stopped too.
  const results = await Promise.allSettled(cards.map((card) => card.stop(timeoutMs)));
  link?.close();
  await server?.stop();
  await rm(folder, { recursive: true, force: true });
  const left = results.map((result) => {
    if (result.status === 'rejected') throw result.reason;
    return result.value;
  });
  return left.reduce((sum, bytes) => sum + bytes, 0);
}
