// A client on a simulated network with a clock that a test turns: every byte moves when the test says so.

import assert from 'node:assert/strict';
import type { CardSettings } from '../../host/card/settings.js';
import { compileNbdClient, HEAP_OFFSET, NbdClient, PIECE_SIZE, RequestState } from '../../host/fuzz/nbd-client.js';
import { SimulatedNetwork, type SimulatedOptions } from '../../host/fuzz/nbd-network.js';
import { NbdPeer, type PeerOptions } from '../../host/fuzz/nbd-peer.js';

export const NO_TIMER = 0xffffffff;
const module = await compileNbdClient();

/** What `bytes` bytes of a test image hold: no two blocks are alike. */
export function testImage(bytes: number): Buffer {
  const image = Buffer.alloc(bytes);
  for (let i = 0; i < bytes; i++) image[i] = (i * 7 + (i >> 9) * 13 + 1) & 0xff;
  return image;
}

export interface BenchOptions {
  /** The server for each connection in turn, the last for all further ones; null: out of reach. */
  peers: (PeerOptions | null)[];
  settings?: Partial<CardSettings>;
  limit?: SimulatedOptions['limit'];
}

export class Bench {
  readonly client: NbdClient;
  readonly network: SimulatedNetwork;
  nowMs = 0xfffffff0; // wraps soon: time-outs must not mind
  random = 0;
  #connections = 0;
  #nextPiece = HEAP_OFFSET;

  constructor(options: BenchOptions) {
    const { peers } = options;
    this.network = new SimulatedNetwork({
      connect: () => {
        const peer = peers[Math.min(this.#connections, peers.length - 1)];
        this.#connections += 1;
        return peer === null ? null : new NbdPeer(peer);
      },
      ...(options.limit && { limit: options.limit }),
    });
    this.client = new NbdClient(module, {
      network: this.network,
      clockMs: () => this.nowMs,
      random: () => this.random,
      ...(options.settings && { settings: options.settings }),
    });
    this.client.memory.fill(0xa5, HEAP_OFFSET);
  }

  /** Until no byte moves any more. */
  run(): void {
    do this.client.step();
    while (this.network.deliver());
  }

  /** Lets time pass, from one timer to the next. */
  pass(ms: number): void {
    let left = ms;
    for (;;) {
      const due = Math.min(this.client.timeoutMs(), left);
      this.nowMs = (this.nowMs + due) >>> 0;
      left -= due;
      this.run();
      if (left === 0) return;
      if (due === 0 && this.client.timeoutMs() === 0) throw new Error('a timer that is due does nothing');
    }
  }

  /** Fresh pieces for `length` bytes, with a canary page behind each. */
  pieces(length: number): number[] {
    return Array.from({ length: Math.ceil(length / PIECE_SIZE) }, () => {
      const address = this.#nextPiece;
      this.#nextPiece += 2 * PIECE_SIZE;
      return address;
    });
  }

  bytes(pieces: number[], length: number): Buffer {
    return Buffer.concat(
      pieces.map((address, i) => this.client.view(address, Math.min(PIECE_SIZE, length - i * PIECE_SIZE))),
    );
  }

  put(pieces: number[], data: Uint8Array): void {
    pieces.forEach((address, i) => {
      this.client.memory.set(data.subarray(i * PIECE_SIZE, (i + 1) * PIECE_SIZE), address);
    });
  }

  /** Reads and checks, canaries included. */
  assertReads(image: Uint8Array, offset: number, length: number): void {
    const pieces = this.pieces(length);
    const slot = this.client.read(offset, length, pieces);
    assert.ok(slot >= 0, 'no slot for a read');
    this.run();
    assert.equal(this.client.state(slot), RequestState.DONE);
    this.client.release(slot);
    assert.ok(this.bytes(pieces, length).equals(image.subarray(offset, offset + length)), `wrong bytes at ${offset}`);
    this.assertCanaries(pieces);
  }

  assertCanaries(pieces: number[]): void {
    for (const address of pieces) {
      const canary = this.client.view(address + PIECE_SIZE, PIECE_SIZE);
      assert.ok(
        canary.every((byte) => byte === 0xa5),
        `memory behind 0x${address.toString(16)} has changed`,
      );
    }
  }
}
