// What `ribbon sim` has been asked for, checked.

import type { NetworkPath } from '../card/network.js';
import type { AcknowledgementPoint } from '../card/settings.js';
import type { ListenAddress } from '../server/listen.js';
import type { LinkOptions } from './link.js';
import type { CardKind, Engine } from './simulation.js';

export { CARD_KINDS, ENGINES } from './simulation.js';

export const PC_KINDS = ['v86', 'nbd', 'none'] as const;

export interface SimOptions {
  pc: (typeof PC_KINDS)[number];
  card: CardKind;
  engine: Engine;
  cardMemorySize: number;
  pcMemorySize: number;
  store: string;
  /** Where the cards' local stores are kept; null: nowhere. */
  localStores: string | null;
  /** What each image gets of a local store that the device's images share, in segments of 1 MiB; 0: it has one alone. */
  shareSegments: number;
  acknowledgementPoint: AcknowledgementPoint | null;
  acknowledgementDelayMs: number;
  dirtyThresholdPercent: number;
  link: LinkOptions | null;
  /** Another NBD server instead of the store. */
  server: NetworkPath['address'] | null;
  /** Path of the port socket. */
  ports: string | null;
  /** Where --pc nbd listens. */
  listen: ListenAddress | null;
  /** A command for the PC's shell. */
  run: string | null;
  biosLog: boolean;
  /** Device 0, then Device 1. `image` is a name in the store, with --pc none also a raw file. */
  disks: { image: string; serial?: string; firmware?: string }[];
}
