// A simulated network for one stream, with an NbdPeer at its other end: no time, no chance but its own, and bytes in pieces
// of any size, one at a time if wanted.

import { ByteQueue } from './byte-queue.js';
import { type ClientNetwork, NetState } from './nbd-client.js';
import type { NbdPeer } from './nbd-peer.js';

export interface SimulatedOptions {
  /** The server for a new connection; null: it cannot be reached. */
  connect: () => NbdPeer | null;
  /** How many of the bytes that are there a call moves; all of them without. */
  limit?: (bytes: number) => number;
}

export class SimulatedNetwork implements ClientNetwork {
  peer: NbdPeer | null = null;
  opens = 0;
  tlsStarts = 0;
  /** Both ways: nothing arrives any more, nothing is closed. */
  cut = false;
  readonly #options: SimulatedOptions;
  #state: number = NetState.CLOSED;
  readonly #received = new ByteQueue();
  #blocked = false;

  constructor(options: SimulatedOptions) {
    this.#options = options;
  }

  /** There is one path. */
  open(_stream: number, path: number): void {
    this.close();
    if (path > 0) return;
    this.opens += 1;
    this.cut = false;
    this.peer = this.#options.connect();
    this.#state = this.peer === null ? NetState.CLOSED : NetState.OPEN;
  }

  close(): void {
    this.#state = NetState.CLOSED;
    this.peer = null;
    this.#received.clear();
  }

  /** The server side goes away; what it has sent can still be received. */
  breakOff(): void {
    this.peer = null;
    if (this.#received.length === 0) this.#state = NetState.CLOSED;
  }

  state(): number {
    if (this.#state === NetState.OPEN && this.peer === null && this.#received.length === 0) return NetState.CLOSED;
    return this.#state;
  }

  startTls(): void {
    this.tlsStarts += 1;
  }

  receive(_stream: number, target: Uint8Array): number {
    const here = Math.min(target.length, this.#received.length);
    const count = here === 0 ? 0 : this.#limited(here);
    target.set(this.#received.take(count));
    return count;
  }

  send(_stream: number, source: Uint8Array): number {
    if (this.#state !== NetState.OPEN || this.peer === null) return 0;
    const count = this.#limited(source.length);
    this.#blocked = count === 0;
    if (!this.cut) this.peer.take(source.subarray(0, count));
    return count;
  }

  /** Bytes for the client that the server did not send. */
  inject(bytes: Uint8Array): void {
    this.#received.push(bytes);
  }

  /** Moves the server's next message on its way; false when it has none. */
  deliver(): boolean {
    if (this.peer === null || this.cut) return false;
    const message = this.peer.next();
    if (message !== null) {
      this.#received.push(message);
      return true;
    }
    if (!this.peer.closing) return false;
    this.peer = null;
    return true;
  }

  /** Bytes are there, or can be sent, that the limit held back: a real network would say so soon. */
  get ready(): boolean {
    return this.#received.length > 0 || this.#blocked;
  }

  #limited(bytes: number): number {
    return this.#options.limit === undefined ? bytes : Math.min(bytes, this.#options.limit(bytes));
  }
}
