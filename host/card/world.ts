// Where a card in this process gets time, chance and network from: the firmware itself knows none of them.

import { randomBytes } from 'node:crypto';
import { Network, type NetworkPath } from './network.js';

/** The network group of the firmware's imports (assembly/imports.ts). */
export interface CardNetwork {
  /** A stream's state has changed, or there is something to receive or room to send. */
  onChange: () => void;
  onError: (message: string) => void;
  open(stream: number, path: number): void;
  close(stream: number): void;
  closeAll(): void;
  state(stream: number): number;
  startTls(stream: number): void;
  receive(stream: number, target: Uint8Array): number;
  send(stream: number, source: Uint8Array): number;
  /** The firmware's step is over: what it sent may leave. */
  flush(): void;
}

export interface World {
  /** Milliseconds, a whole number of 32 bits that wraps. */
  clockMs(): number;
  randomU32(): number;
  /** Calls `callback` once, `ms` from now; the result cancels that. */
  after(ms: number, callback: () => void): () => void;
  network(paths: NetworkPath[]): CardNetwork;
}

export const REAL_WORLD: World = {
  clockMs: () => Math.floor(performance.now()) >>> 0,
  randomU32: () => randomBytes(4).readUInt32LE(),
  after: (ms, callback) => {
    const timer = setTimeout(callback, ms);
    return () => clearTimeout(timer);
  },
  network: (paths) => new Network(paths),
};
