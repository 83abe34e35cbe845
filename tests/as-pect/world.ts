// The world that a firmware spec runs in: every import of assembly/imports.ts, played by what the spec has set up through
// tests/as-pect/assembly/world.ts. Time stands still and chance is a counter until the spec says otherwise.

import { acceleratorImports } from '../../host/card/accelerators.js';
import { crc32c } from '../../host/card/crc32c.js';
import { storeDevice, storeImports } from '../../host/card/store.js';
import { MemoryStore } from '../../host/card/store-memory.js';

type Imports = Record<string, (...args: number[]) => number | undefined>;

/** NetState of assembly/imports.ts. */
const NET_CLOSED = 0;
const NET_CONNECTING = 1;
const NET_OPEN = 2;

/** The smallest that the firmware takes, and a little. */
const STORE_SIZE = 17 << 20;

class Stream {
  state = NET_CLOSED;
  path = 0;
  opens = 0;
  closes = 0;
  tlsStarts = 0;
  /** What the peer has sent and the firmware has not taken. */
  incoming = Buffer.alloc(0);
  /** What the firmware has sent and the spec has not taken. */
  outgoing = Buffer.alloc(0);
  /** How much more the firmware may send before net_send() takes nothing. */
  sendWindow = Number.POSITIVE_INFINITY;
  /** The most that one net_receive() gives: 1 shows that a parser takes a stream byte by byte. */
  receiveChunk = Number.POSITIVE_INFINITY;
}

export class World {
  readonly #memory: WebAssembly.Memory;
  #clockMs = 0;
  #random = 0;
  #log: { level: number; text: Buffer }[] = [];
  #settings = Buffer.alloc(0);
  #rings = 0;
  #netPaths = 1;
  #streams = new Map<number, Stream>();
  #store = this.#blankStore();

  constructor(memory: WebAssembly.Memory) {
    this.#memory = memory;
  }

  /** A local store that is done when the call returns. */
  #blankStore(): Imports {
    const device = storeDevice(new MemoryStore(STORE_SIZE), () => {});
    return storeImports(
      device,
      (address, length) => this.#view(address, length),
      () => {},
    );
  }

  /** What the firmware sees. */
  firmwareImports(): Imports {
    return {
      clock_ms: () => this.#clockMs,
      random_u32: () => this.#nextRandom(),
      log_write: (level, text, length) => {
        this.#log.push({ level, text: Buffer.from(this.#view(text, length)) });
        return undefined;
      },
      settings_read: (target, capacity) => {
        const length = Math.min(this.#settings.length, capacity >>> 0);
        this.#view(target, length).set(this.#settings.subarray(0, length));
        return length;
      },
      front_end_ring: () => {
        this.#rings += 1;
        return undefined;
      },
      net_open: (stream, path) => {
        const { opens, closes } = this.#stream(stream);
        const fresh = new Stream();
        this.#streams.set(
          stream,
          Object.assign(fresh, {
            state: path < this.#netPaths ? NET_CONNECTING : NET_CLOSED,
            path,
            opens: opens + 1,
            closes,
          }),
        );
        return undefined;
      },
      net_close: (stream) => {
        const it = this.#stream(stream);
        it.state = NET_CLOSED;
        it.closes += 1;
        it.incoming = Buffer.alloc(0);
        return undefined;
      },
      // As the firmware's imports have it: what the peer sent before it closed can still be received.
      net_state: (stream) => {
        const { state, incoming } = this.#stream(stream);
        return state === NET_CLOSED && incoming.length > 0 ? NET_OPEN : state;
      },
      net_start_tls: (stream) => {
        const it = this.#stream(stream);
        it.state = NET_CONNECTING;
        it.tlsStarts += 1;
        return undefined;
      },
      net_receive: (stream, target, capacity) => {
        const it = this.#stream(stream);
        const length = Math.min(it.incoming.length, capacity >>> 0, it.receiveChunk);
        this.#view(target, length).set(it.incoming.subarray(0, length));
        it.incoming = it.incoming.subarray(length);
        return length;
      },
      net_send: (stream, source, length) => {
        const it = this.#stream(stream);
        const taken = Math.min(length >>> 0, it.sendWindow);
        it.outgoing = Buffer.concat([it.outgoing, this.#view(source, taken)]);
        it.sendWindow -= taken;
        return taken;
      },
      store_size: () => this.#store.store_size(),
      store_read: (...args) => this.#store.store_read(...args),
      store_write: (...args) => this.#store.store_write(...args),
      store_flush: (...args) => this.#store.store_flush(...args),
      store_trim: (...args) => this.#store.store_trim(...args),
      store_completed: () => this.#store.store_completed(),
      crc32c: (seed, source, length) => crc32c(this.#view(source, length), seed >>> 0),
      ...(acceleratorImports((address, length) => this.#view(address, length)) as unknown as Imports),
    };
  }

  /** What the spec sees: tests/as-pect/assembly/world.ts declares and documents these. */
  specImports(): Imports {
    return {
      resetHostWorld: () => {
        this.#clockMs = 0;
        this.#random = 0;
        this.#log = [];
        this.#settings = Buffer.alloc(0);
        this.#store = this.#blankStore();
        this.#rings = 0;
        this.#netPaths = 1;
        this.#streams.clear();
        return undefined;
      },
      advanceHostClock: (ms) => {
        this.#clockMs = (this.#clockMs + ms) >>> 0;
        return undefined;
      },
      setRandom: (value) => {
        this.#random = value >>> 0;
        return undefined;
      },
      logCount: () => this.#log.length,
      logLevel: (index) => this.#line(index).level,
      logLength: (index) => this.#line(index).text.length,
      logCopy: (index, target) => {
        const { text } = this.#line(index);
        this.#view(target, text.length).set(text);
        return undefined;
      },
      setSettings: (source, length) => {
        this.#settings = Buffer.from(this.#view(source, length));
        return undefined;
      },
      frontEndRings: () => this.#rings,
      setNetPaths: (count) => {
        this.#netPaths = count >>> 0;
        return undefined;
      },
      setNetState: (stream, state) => {
        this.#stream(stream).state = state;
        return undefined;
      },
      deliver: (stream, source, length) => {
        const it = this.#stream(stream);
        it.incoming = Buffer.concat([it.incoming, this.#view(source, length)]);
        return undefined;
      },
      undelivered: (stream) => this.#stream(stream).incoming.length,
      setReceiveChunk: (stream, bytes) => {
        this.#stream(stream).receiveChunk = bytes >>> 0;
        return undefined;
      },
      setSendWindow: (stream, bytes) => {
        this.#stream(stream).sendWindow = bytes >>> 0;
        return undefined;
      },
      sent: (stream) => this.#stream(stream).outgoing.length,
      takeSent: (stream, target, capacity) => {
        const it = this.#stream(stream);
        const length = Math.min(it.outgoing.length, capacity >>> 0);
        this.#view(target, length).set(it.outgoing.subarray(0, length));
        it.outgoing = it.outgoing.subarray(length);
        return length;
      },
      netPath: (stream) => this.#stream(stream).path,
      netOpens: (stream) => this.#stream(stream).opens,
      netCloses: (stream) => this.#stream(stream).closes,
      tlsStarts: (stream) => this.#stream(stream).tlsStarts,
    };
  }

  #stream(number: number): Stream {
    const stream = this.#streams.get(number) ?? new Stream();
    this.#streams.set(number, stream);
    return stream;
  }

  #line(index: number): { level: number; text: Buffer } {
    if (index >>> 0 >= this.#log.length) throw new RangeError(`there are ${this.#log.length} log lines, no ${index}`);
    return this.#log[index];
  }

  /** Weyl sequence: different every time, the same every run. */
  #nextRandom(): number {
    const value = this.#random;
    this.#random = (this.#random + 0x9e3779b9) >>> 0;
    return value;
  }

  /** wasm hands u32 values over as signed numbers. */
  #view(address: number, length: number): Uint8Array {
    const start = address >>> 0;
    const bytes = length >>> 0;
    if (start + bytes > this.#memory.buffer.byteLength) {
      throw new RangeError(`import argument out of memory: address=${start} length=${bytes}`);
    }
    return new Uint8Array(this.#memory.buffer, start, bytes);
  }
}
