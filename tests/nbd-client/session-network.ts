// The firmware's NBD client on the real server's session, in one process and without time: bytes pass when the test says so, and
// may be changed on their way.

import { ByteQueue } from '../../host/fuzz/byte-queue.js';
import { type CardKnows, type ClientNetwork, HEAP_OFFSET, NbdClient, NetState } from '../../host/fuzz/nbd-client.js';
import type { Client, Exports } from '../../host/server/export.js';
import { NbdSession } from '../../host/server/nbd-session.js';

const CLIENT: Client = { identity: 'anonymous', address: 'test', tls: false };
const MEMORY_SIZE = 4 << 20;
/** Buffers for requests, 128 KiB and a piece each. */
const BUFFERS = HEAP_OFFSET + 0x10000;
const BUFFER_SIZE = 0x21000;
const SESSIONS_AT = HEAP_OFFSET;

export class SessionNetwork implements ClientNetwork {
  session: NbdSession | null = null;
  opens = 0;
  toServerBytes = 0;
  toCardBytes = 0;
  readonly logs: string[] = [];
  /** Changes bytes on their way. */
  toServer: (bytes: Buffer) => Buffer = (bytes) => bytes;
  toCard: (bytes: Buffer) => Buffer = (bytes) => bytes;
  #state: number = NetState.CLOSED;
  readonly #received = new ByteQueue();
  #left = Buffer.alloc(0);

  constructor(private readonly exports: Exports) {}

  open(): void {
    this.close();
    this.opens += 1;
    this.#state = NetState.OPEN;
    const session: NbdSession = new NbdSession(this.exports, {
      client: CLIENT,
      tls: 'none',
      send: (bytes, sent) => {
        if (this.session === session) {
          this.toCardBytes += bytes.length;
          this.#received.push(this.toCard(Buffer.from(bytes)));
        }
        sent();
        return true;
      },
      startTls: () => {},
      end: () => {
        if (this.session === session) this.session = null;
      },
      log: (level, message) => this.logs.push(`${level} ${message}`),
      wake: () => this.#feed(),
    });
    this.session = session;
    session.open();
  }

  close(): void {
    this.session?.disconnected();
    this.session = null;
    this.#state = NetState.CLOSED;
    this.#left = Buffer.alloc(0);
    this.#received.clear();
  }

  state(): number {
    if (this.#state === NetState.OPEN && this.session === null && this.#received.length === 0) return NetState.CLOSED;
    return this.#state;
  }

  startTls(): void {}

  receive(_stream: number, target: Uint8Array): number {
    const count = Math.min(target.length, this.#received.length);
    target.set(this.#received.take(count));
    return count;
  }

  send(_stream: number, source: Uint8Array): number {
    if (this.#state !== NetState.OPEN || this.session === null) return 0;
    this.toServerBytes += source.length;
    this.#left = Buffer.concat([this.#left, this.toServer(Buffer.from(source))]);
    return source.length;
  }

  /** Gives the server what was sent. */
  #feed(): void {
    if (this.session === null || this.#left.length === 0) return;
    const bytes = this.#left;
    this.#left = Buffer.alloc(0);
    const taken = this.session.receive(bytes);
    this.#left = Buffer.concat([bytes.subarray(taken), this.#left]);
  }

  flush(): void {
    this.#feed();
  }
}

/** A card's NBD client at a store, with a clock that jumps. */
export class CardBench {
  readonly network: SessionNetwork;
  readonly client: NbdClient;
  #nowMs = 0;

  constructor(
    module: WebAssembly.Module,
    exports: Exports,
    settings: { deflate?: boolean; ask?: boolean; linkRateBytes?: number } = {},
  ) {
    this.network = new SessionNetwork(exports);
    this.client = new NbdClient(module, {
      network: this.network,
      memorySize: MEMORY_SIZE,
      settings: { exportName: 'a', ...settings },
      clockMs: () => this.#nowMs,
      random: () => 0,
    });
  }

  get nowMs(): number {
    return this.#nowMs;
  }

  knows(knows: Partial<CardKnows>): void {
    this.client.beCard({
      card: 0xabcdn,
      session: 1,
      sessions: [],
      sessionsAt: SESSIONS_AT,
      generation: 0n,
      id: 0n,
      committed: 0n,
      newest: 1000n,
      dirty: false,
      conflict: false,
      ...knows,
    });
  }

  /** Steps until nothing moves, letting the server's promises come to their end. */
  async settle(): Promise<void> {
    for (let quiet = 0; quiet < 4; ) {
      const before = this.network.toServerBytes + this.network.toCardBytes;
      this.client.step();
      await new Promise<void>((resolve) => setImmediate(resolve));
      quiet = this.network.toServerBytes + this.network.toCardBytes === before ? quiet + 1 : 0;
    }
  }

  async pass(ms: number): Promise<void> {
    this.#nowMs += ms;
    await this.settle();
  }

  async connect(knows: Partial<CardKnows> = {}): Promise<void> {
    this.knows(knows);
    await this.settle();
  }

  #buffer(slot: number): number {
    return BUFFERS + slot * BUFFER_SIZE;
  }

  #pieces(address: number, length: number): number[] {
    return Array.from({ length: Math.ceil(length / 4096) }, (_, i) => address + 4096 * i);
  }

  async write(offset: number, data: Uint8Array, leaveOut = 0): Promise<number> {
    const address = this.#buffer(0);
    this.client.view(address, data.length).set(data);
    const slot = this.client.write(offset, data.length, this.#pieces(address, data.length));
    if (leaveOut !== 0) this.client.leaveOut(slot, leaveOut);
    return this.#end(slot);
  }

  async read(offset: number, length: number): Promise<Buffer | null> {
    const address = this.#buffer(1);
    this.client.view(address, length).fill(0xee);
    const slot = this.client.read(offset, length, this.#pieces(address, length));
    return (await this.#end(slot)) === 2 ? Buffer.from(this.client.view(address, length)) : null;
  }

  /** The generation and its id; null when that failed. */
  async flush(record: number): Promise<{ generation: bigint; id: bigint } | null> {
    const slot = this.client.flush(BigInt(record));
    await this.settle();
    const answer = { generation: this.client.result(slot), id: this.client.result2(slot) };
    return (await this.#end(slot)) === 2 ? answer : null;
  }

  async ask(offset: number, hashes: Buffer): Promise<bigint | null> {
    const address = this.#buffer(2);
    this.client.view(address, hashes.length).set(hashes);
    const slot = this.client.ask(offset, (hashes.length / 32) * 4096, address);
    await this.settle();
    const answer = this.client.result(slot);
    return (await this.#end(slot)) === 2 ? answer & 0xffff_ffffn : null;
  }

  /** The changed blocks among the first `blocks`. */
  async changes(blocks: number): Promise<number[] | null> {
    const found: number[] = [];
    for (let at = 0; at < blocks * 4096; ) {
      const address = this.#buffer(3);
      const slot = this.client.blockStatus(at, blocks * 4096 - at, address);
      await this.settle();
      const bytes = Number(this.client.result(slot));
      if ((await this.#end(slot)) !== 2) return null;
      const view = new DataView(this.client.memory.buffer, address, bytes);
      for (let i = 0; i < bytes; i += 8) {
        const length = view.getUint32(i);
        if (view.getUint32(i + 4) === 1) for (let b = at; b < at + length; b += 4096) found.push(b / 4096);
        at += length;
      }
    }
    return found;
  }

  async #end(slot: number): Promise<number> {
    if (slot < 0) return -1;
    await this.settle();
    const state = this.client.state(slot);
    if (state > 1) this.client.release(slot);
    return state;
  }
}
