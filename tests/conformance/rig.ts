// What a conformance test runs on: one or two cards on a cable, an image server with faulty disks behind them, and time.

import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import type { Card } from '../../host/card/card.js';
import { loadFirmware } from '../../host/card/firmware.js';
import { InProcessCard } from '../../host/card/in-process.js';
import type { NetworkPath } from '../../host/card/network.js';
import { type CardSettings, DEFAULT_SETTINGS } from '../../host/card/settings.js';
import type { World } from '../../host/card/world.js';
import { Cable } from '../../host/front-end/cable.js';
import { ImageServer } from '../../host/server/server.js';
import { FaultyDisk, FaultyDisks } from '../../host/simulation/faulty-disk.js';
import { SimulatedWorld } from '../../host/simulation/simulated-world.js';

export interface DeviceOptions {
  deviceNumber: 0 | 1;
  /** Size of the image in bytes. */
  size: number;
  settings?: Partial<CardSettings>;
  /** The card has no power: it is on the cable and does nothing. */
  dead?: boolean;
}

export interface Rig {
  readonly cable: Cable;
  /** In the order of the options. */
  readonly cards: Card[];
  readonly disks: FaultyDisk[];
  /** Lets time pass until the condition holds; fails after `limitMs` of the rig's time. */
  until(condition: () => boolean, limitMs?: number): Promise<void>;
  /** Lets `ms` pass. */
  pass(ms: number): Promise<void>;
  /** The image server cannot be reached any more, or again. */
  setReachable(reachable: boolean): Promise<void>;
  close(): Promise<void>;
}

/** Makes a rig whose cards have been powered on. */
export type MakeRig = (devices: DeviceOptions[]) => Promise<Rig>;

/** Makes a card of the kind under test, which reaches its image server by `path`. */
export type MakeCard = (settings: CardSettings, path: NetworkPath, deviceNumber: 0 | 1, world?: World) => Card;

const LIMIT_MS = 60_000;
const LOOK_INTERVAL_MS = 2;

function makeDisks(devices: DeviceOptions[]): { disks: FaultyDisk[]; server: FaultyDisks } {
  const disks = devices.map(({ size }) => new FaultyDisk(size));
  return { disks, server: new FaultyDisks(new Map(disks.map((disk, index) => [`disk${index}`, disk]))) };
}

function cardSettings(device: DeviceOptions, index: number): CardSettings {
  // What a command has done is looked at in the master image: a write is there when it ends, for good after a flush.
  return {
    ...DEFAULT_SETTINGS,
    acknowledgementPoint: 'remote-received',
    exportName: `disk${index}`,
    ...device.settings,
  };
}

function watch(cards: Card[]): () => void {
  let crash: Error | null = null;
  for (const card of cards) {
    card.onCrash = (error) => {
      crash ??= error;
    };
  }
  return () => {
    if (crash !== null) throw crash;
  };
}

/** Cards that live in simulated time: waiting costs nothing, and every run is the same. */
export function simulatedRig(makeCard: MakeCard): MakeRig {
  return async (devices) => {
    const { disks, server } = makeDisks(devices);
    const world = new SimulatedWorld({ seed: 1, exports: server, latencyMs: 5 });
    const cards = devices.map((device, index) =>
      makeCard(cardSettings(device, index), { address: { path: 'simulated' } }, device.deviceNumber, world),
    );
    const checkCrash = watch(cards);
    const cable = new Cable(cards.map((card) => card.frontEnd));
    // The server's promises (held reads and commits) are settled by the event loop, outside of simulated time.
    const settle = (): Promise<void> => new Promise((resolve) => setImmediate(resolve));
    const rig: Rig = {
      cable,
      cards,
      disks,
      async until(condition, limitMs = LIMIT_MS) {
        await settle();
        const held = world.run(condition, limitMs);
        checkCrash();
        if (!held) throw new Error(`what was waited for did not happen within ${limitMs} ms: ${condition}`);
      },
      async pass(ms) {
        await settle();
        world.pass(ms);
        checkCrash();
      },
      async setReachable(reachable) {
        world.reachable = reachable;
        if (!reachable) world.breakLinks();
      },
      async close() {
        const stops = cards.map((card) => card.stop(0));
        world.pass(1);
        await Promise.all(stops);
      },
    };
    const starts = cards.filter((_, index) => !devices[index].dead).map((card) => card.start());
    await rig.until(() => cards.every((card, index) => devices[index].dead || card.statistics().sectors > 0));
    await Promise.all(starts);
    return rig;
  };
}

/** Cards that reach a real image server by a socket. */
export function socketRig(makeCard: MakeCard): MakeRig {
  return async (devices) => {
    const folder = mkdtempSync(join(tmpdir(), 'ribbon-rig-'));
    const socket = join(folder, 'server');
    const { disks, server } = makeDisks(devices);
    const listen = async (): Promise<ImageServer> => {
      const imageServer = new ImageServer({ exports: server, listen: [{ kind: 'unix', path: socket }] });
      await imageServer.listen();
      return imageServer;
    };
    let imageServer: ImageServer | null = await listen();
    const cards = devices.map((device, index) =>
      makeCard(cardSettings(device, index), { address: { path: socket } }, device.deviceNumber),
    );
    const checkCrash = watch(cards);
    const cable = new Cable(cards.map((card) => card.frontEnd));
    await Promise.all(cards.filter((_, index) => !devices[index].dead).map((card) => card.start()));
    /** The card answers, or some time passes: what is waited for may be the server's. Asking all the time would take the processor from the card. */
    const answer = (): Promise<void> =>
      new Promise((resolve) => {
        const { onDmaRequest } = cable;
        const done = (): void => {
          clearTimeout(timer);
          cable.onAnswer = () => {};
          cable.onDmaRequest = onDmaRequest;
          resolve();
        };
        const timer = setTimeout(done, LOOK_INTERVAL_MS);
        cable.onAnswer = done;
        cable.onDmaRequest = () => {
          onDmaRequest();
          done();
        };
      });
    return {
      cable,
      cards,
      disks,
      async until(condition, limitMs = LIMIT_MS) {
        const endMs = performance.now() + limitMs;
        while (!condition()) {
          checkCrash();
          if (performance.now() > endMs) {
            throw new Error(`what was waited for did not happen within ${limitMs} ms: ${condition}`);
          }
          await answer();
        }
      },
      pass: (ms) => sleep(ms),
      async setReachable(reachable) {
        await imageServer?.close();
        imageServer = reachable ? await listen() : null;
      },
      async close() {
        for (const card of cards) await card.stop(0);
        await imageServer?.close();
        rmSync(folder, { recursive: true });
      },
    };
  };
}

let firmware: WebAssembly.Module | null = null;

/** The firmware of this build in this process. */
export function makeInProcessCard(
  settings: CardSettings,
  path: NetworkPath,
  deviceNumber: 0 | 1,
  world?: World,
): InProcessCard {
  firmware ??= loadFirmware();
  const options = { firmware, settings, path, deviceNumber, memorySize: 32 << 20 };
  return new InProcessCard(world === undefined ? options : { ...options, world });
}
