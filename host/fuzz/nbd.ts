// The fuzzer of the firmware's NBD client. One case is one card's life: a number of connections to servers that are honest
// (and as odd as the protocol allows), break off, or lie, under a random load; then an honest server.
//
// Invariants:
//   1. The client never traps, and every step ends.
//   2. It writes to the pieces of reads that are PENDING, to its own arena, and nowhere else.
//   3. A read from an honest server that is DONE has brought exactly what was written before it was asked for.
//   4. A write to an honest server that is DONE is in the image.
//   5. Whatever happened before, with an honest server the link comes up again and every request ends;
//      then nothing is left to wait for.

import {
  compileNbdClient,
  HEAP_OFFSET,
  NbdClient,
  type NbdErrorName,
  nbdErrorName,
  PIECE_SIZE,
  RequestState,
} from './nbd-client.js';
import { SimulatedNetwork } from './nbd-network.js';
import { FLAGS_ALL, type MessageKind, NbdPeer, type PeerOptions } from './nbd-peer.js';
import { Random } from './random.js';

export interface NbdFuzzOptions {
  seed: number;
  cases: number;
  /** Stops early when it returns false. */
  onCase?: (done: number) => boolean | undefined;
}

export interface NbdFuzzReport {
  cases: number;
  connections: number;
  /** Reads from honest servers whose every byte was compared. */
  readsChecked: number;
  writesDone: number;
  requestsFailed: number;
  requestsLost: number;
  /** How often a connection was given up for which error. */
  errors: Map<NbdErrorName, number>;
}

/** Throws at the first case that breaks an invariant; the message has the line that replays it. */
export async function runNbdFuzz(options: NbdFuzzOptions): Promise<NbdFuzzReport> {
  const module = await compileNbdClient();
  const report: NbdFuzzReport = {
    cases: 0,
    connections: 0,
    readsChecked: 0,
    writesDone: 0,
    requestsFailed: 0,
    requestsLost: 0,
    errors: new Map(),
  };
  for (let i = 0; i < options.cases; i++) {
    const seed = (options.seed + i) >>> 0;
    const life = new CardLife(module, seed, report);
    try {
      life.run();
    } catch (error) {
      const reason = error instanceof Error ? error.message : String(error);
      throw new Error(`${reason}\n${life.tail()}\nreplay: ribbon fuzz nbd --seed ${seed} --cases 1`, { cause: error });
    }
    report.cases += 1;
    // Ctrl-C is an event too.
    await new Promise((resolve) => setImmediate(resolve));
    if (options.onCase?.(report.cases) === false) break;
    // Signals and progress get their turn.
    await new Promise((resolve) => setImmediate(resolve));
  }
  return report;
}

/** A flush or the like has no bytes. */
interface Job {
  slot: number;
  type: 'read' | 'write' | 'flush' | 'trim';
  offset: number;
  length: number;
  pieces: number[];
  /** What the read must bring, or the write has put. */
  data: Buffer;
  /** The connection that it began on is with a liar: what it brings is worth nothing. */
  doubtful: boolean;
}

const HEAP_PIECES = 256;
const STEPS_MAX = 10_000;
const RECOVERY_STEP = 131_072;
/** The longest silence time-out is 160 s, the longest back-off 15 s. */
const RECOVERY_MS_MAX = 400_000;
/** The client's own memory, and the modules' that it uses; all other memory is watched. */
const ARENA_START = 0x3000;
const ARENA_END = 0x8200;

class CardLife {
  readonly #random: Random;
  readonly #report: NbdFuzzReport;
  readonly #network: SimulatedNetwork;
  readonly #client: NbdClient;
  readonly #image: Buffer;
  /** What the image holds once every request that was made is carried out in the order in which they were made. */
  readonly #expected: Buffer;
  /** What the memory holds, outside of the client's own. */
  readonly #shadow: Buffer;
  readonly #freePieces: number[];
  readonly #peerOptions: PeerOptions;
  readonly #errorRate: number;
  #jobs: Job[] = [];
  #nowMs: number;
  /** The next connections are to liars. */
  #lying = false;
  /** This one is. */
  #peerLies = false;
  #oddPeers = true;
  #lastError = 0;
  /** The first server lied about its size: the client rightly takes no smaller one any more. */
  #sizeLie = false;

  constructor(module: WebAssembly.Module, seed: number, report: NbdFuzzReport) {
    const random = new Random(seed);
    this.#random = random;
    this.#report = report;
    // Near the wrap of the clock, now and then.
    this.#nowMs = random.chance(0.2) ? 0xffffffff - random.below(20_000) : random.u32();
    this.#image = Buffer.alloc(random.pick([0, 1, 511, 512, 4096, 5000, 65_536, 300_000, 524_288]));
    if (random.chance(0.7)) random.fill(this.#image.subarray(0, random.below(this.#image.length + 1)));
    this.#expected = Buffer.from(this.#image);
    this.#errorRate = random.pick([0, 0, 0.05, 0.5]);
    this.#peerOptions = {
      image: this.#image,
      exportName: random.pick(['', 'disk', 'x'.repeat(256)]),
      flags: random.pick([FLAGS_ALL, FLAGS_ALL, 1, 1 | 4]),
      structured: random.chance(0.7),
      go: random.chance(0.8),
      noZeroes: random.chance(0.8),
    };
    if (random.chance(0.4)) this.#peerOptions.blockSizes = { minimum: 1, preferred: 4096, maximum: blockMax(random) };
    const limit = random.pick([undefined, () => 1, (bytes: number) => random.between(0, bytes), () => 7, () => 4096]);
    this.#network = new SimulatedNetwork({ connect: () => this.#connect(), ...(limit && { limit }) });
    this.#client = new NbdClient(module, {
      network: this.#network,
      settings: { exportName: this.#peerOptions.exportName! },
      clockMs: () => this.#nowMs,
      random: () => random.u32(),
    });
    const heap = this.#client.view(HEAP_OFFSET, HEAP_PIECES * PIECE_SIZE);
    // Canaries everywhere: cheap to make, unlikely to be written by chance.
    for (let i = 0; i < heap.length; i++) heap[i] = (i * 31) ^ (i >> 7);
    this.#shadow = Buffer.from(this.#client.memory);
    this.#freePieces = Array.from({ length: HEAP_PIECES }, (_, i) => HEAP_OFFSET + i * PIECE_SIZE);
  }

  run(): void {
    const connections = this.#random.between(1, 6);
    this.#lying = this.#random.chance(0.6);
    for (let i = 0; i < connections && !this.#sizeLie; i++) {
      this.#live(this.#random.between(5, 60));
      this.#endConnection();
      this.#lying = this.#random.chance(0.6);
    }
    this.#lying = false;
    if (!this.#sizeLie) this.#recover();
    this.#checkMemory();
  }

  /** The last lines of the client's log. */
  tail(): string {
    return this.#client.log.slice(-8).join('\n');
  }

  // Servers

  #connect(): NbdPeer | null {
    this.#report.connections += 1;
    if (this.#jobs.length > 0) throw new Error('requests outlived their connection');
    if (this.#peerLies) this.#image.copy(this.#expected);
    this.#peerLies = this.#lying;
    const random = this.#random;
    if (!this.#lying) {
      if (this.#oddPeers && random.chance(0.1)) return null;
      const odd = this.#oddPeers ? { odd: random, errorRate: this.#errorRate } : {};
      return new NbdPeer({ ...this.#peerOptions, ...odd });
    }
    const rate = random.pick([0.02, 0.1, 0.5]);
    return new NbdPeer({ ...this.#peerOptions, odd: random, mangle: liar(random, rate) });
  }

  /** The end of a connection, one way or another. */
  #endConnection(): void {
    // Nobody says that the cable is out: the client must notice.
    if (this.#network.cut && this.#random.chance(0.5)) return;
    const how = this.#random.below(3);
    if (how === 0) this.#network.breakOff();
    if (how === 1) this.#client.restart(5);
    this.#step();
    this.#network.close();
    this.#step();
  }

  // Load

  /** Some random steps: requests, bytes, time. */
  #live(steps: number): void {
    for (let i = 0; i < steps && !this.#sizeLie; i++) {
      if (this.#client.up && this.#random.chance(0.8)) this.#ask();
      if (this.#random.chance(0.03)) this.#network.cut = true;
      if (this.#random.chance(0.05)) this.#abandon();
      this.#step();
      let moved = false;
      for (let n = this.#random.below(6); n >= 0; n--) moved = this.#network.deliver() || moved;
      this.#step();
      if (!moved) this.#wait();
      if (i % 16 === 0) this.#checkMemory();
    }
  }

  /** An honest, plain server: everything that is outstanding ends, and the whole image can be written and read. */
  #recover(): void {
    this.#oddPeers = false;
    this.#settle();
    if (!this.#client.up) throw new Error('the link does not come up again');
    const { length } = this.#image;
    for (let offset = 0; offset < length; offset += RECOVERY_STEP) {
      this.#insist(() => this.#write(offset, Math.min(RECOVERY_STEP, length - offset)));
    }
    for (let offset = 0; offset < length; offset += RECOVERY_STEP) {
      this.#insist(() => this.#read(offset, Math.min(RECOVERY_STEP, length - offset)));
    }
    this.#insist(() => this.#flush());
    if (!this.#expected.equals(this.#image)) throw new Error('what was written is not in the image');
    if (this.#client.timeoutMs() !== 0xffffffff) throw new Error('a timer runs although nothing is outstanding');
  }

  /** Asks again what was lost with the last connection that nobody had noticed to be cut. */
  #insist(ask: () => void): void {
    for (let tries = 0; tries < 3; tries++) {
      const lost = this.#report.requestsLost;
      ask();
      this.#settle();
      if (this.#report.requestsLost === lost) return;
    }
    throw new Error('requests are lost again and again');
  }

  /** Until the link is up and nothing is outstanding. */
  #settle(): void {
    const startMs = this.#nowMs;
    while (!this.#client.up || this.#jobs.length > 0) {
      this.#step();
      if (this.#network.deliver()) continue;
      this.#step();
      // Limits that move no byte now move some later.
      if (this.#network.deliver()) continue;
      if (this.#client.up && this.#jobs.length === 0) return;
      this.#wait();
      if ((this.#nowMs - startMs) >>> 0 > RECOVERY_MS_MAX) {
        throw new Error(`after ${RECOVERY_MS_MAX} ms: up=${this.#client.up} outstanding=${this.#jobs.length}`);
      }
    }
  }

  /** A little time, or until the client's next timer. */
  #wait(): void {
    const dueMs = this.#client.timeoutMs();
    const waitMs = dueMs === 0xffffffff || this.#network.ready || this.#random.chance(0.3) ? 1 : dueMs;
    this.#nowMs = (this.#nowMs + waitMs) >>> 0;
  }

  #ask(): void {
    const random = this.#random;
    const size = Math.min(this.#image.length, Number(this.#client.exportSize));
    const offset = random.below(size + 1);
    const length = Math.min(
      size - offset,
      random.pick([1, 511, 512, 4096, 4097, 65_536, 131_072, random.below(20_000)]),
    );
    const kind = random.below(12);
    if (kind === 0) this.#flush();
    else if (length === 0) return;
    else if (kind === 1) this.#trim(offset, length);
    else if (kind < 7) this.#write(offset, length);
    else this.#read(offset, length);
  }

  #flush(): void {
    this.#add({ slot: this.#client.flush(), type: 'flush', offset: 0, length: 0, pieces: [], data: Buffer.alloc(0) });
  }

  #trim(offset: number, length: number): void {
    const slot = this.#client.trim(offset, length);
    // Where it is not offered it changes nothing.
    const data = Buffer.alloc((this.#client.exportFlags & 32) !== 0 ? length : 0);
    if (slot >= 0) data.copy(this.#expected, offset);
    this.#add({ slot, type: 'trim', offset, length: data.length, pieces: [], data });
  }

  #read(offset: number, length: number): void {
    const pieces = this.#takePieces(length);
    if (pieces === null) return;
    const data = Buffer.from(this.#expected.subarray(offset, offset + length));
    const slot = this.#client.read(offset, length, pieces);
    this.#add({ slot, type: 'read', offset, length, pieces, data });
  }

  #write(offset: number, length: number): void {
    const pieces = this.#takePieces(length);
    if (pieces === null) return;
    const data = Buffer.alloc(length);
    if (this.#random.chance(0.8)) this.#random.fill(data);
    const slot = this.#client.write(offset, length, pieces);
    if (slot >= 0) {
      data.copy(this.#expected, offset);
      pieces.forEach((address, i) => {
        const part = data.subarray(i * PIECE_SIZE, (i + 1) * PIECE_SIZE);
        this.#client.memory.set(part, address);
        this.#shadow.set(part, address);
      });
    }
    this.#add({ slot, type: 'write', offset, length, pieces, data });
  }

  #add(job: Omit<Job, 'doubtful'>): void {
    if (job.slot < 0) this.#freePieces.push(...job.pieces);
    else this.#jobs.push({ ...job, doubtful: this.#peerLies });
  }

  /** Pieces for `length` bytes: neighbours, or scattered. */
  #takePieces(length: number): number[] | null {
    const count = Math.ceil(length / PIECE_SIZE);
    if (count > this.#freePieces.length) return null;
    if (this.#random.chance(0.5)) this.#freePieces.sort((a, b) => a - b);
    else this.#random.shuffle(this.#freePieces);
    return this.#freePieces.splice(0, count);
  }

  /** Gives back a read that is not done: its memory must not change any more. */
  #abandon(): void {
    const job = this.#jobs.find(({ type }) => type === 'read');
    if (job === undefined) return;
    this.#syncShadow(job);
    this.#client.release(job.slot);
    this.#jobs = this.#jobs.filter((other) => other !== job);
    this.#freePieces.push(...job.pieces);
  }

  // Checks

  #step(): void {
    let steps = 0;
    while (this.#client.stepOnce()) {
      steps += 1;
      if (steps > STEPS_MAX) throw new Error('step does not end');
      this.#reap();
    }
    this.#reap();
    const { linkError, protocolErrors } = this.#client.statistics;
    const errors = linkError * 1_000_000 + protocolErrors;
    if (linkError !== 0 && errors !== this.#lastError) {
      const name = nbdErrorName(linkError);
      this.#report.errors.set(name, (this.#report.errors.get(name) ?? 0) + 1);
    }
    this.#lastError = errors;
    if (this.#client.up && this.#client.connection === 1 && Number(this.#client.exportSize) > this.#image.length) {
      this.#sizeLie = true;
    }
  }

  /** Takes back what has ended. */
  #reap(): void {
    const ended = this.#jobs.filter(({ slot }) => this.#client.state(slot) !== RequestState.PENDING);
    if (ended.length === 0) return;
    this.#jobs = this.#jobs.filter((job) => !ended.includes(job));
    for (const job of ended) {
      const state = this.#client.state(job.slot);
      if (job.type === 'read') this.#reapRead(job, state);
      else this.#reapWrite(job, state);
      if (state === RequestState.FAILED) {
        this.#report.requestsFailed += 1;
        if (this.#client.errno(job.slot) === 0) throw new Error('FAILED without an error number');
      }
      if (state === RequestState.LOST) this.#report.requestsLost += 1;
      this.#client.release(job.slot);
      if (this.#random.chance(0.5)) this.#freePieces.push(...job.pieces);
      else this.#freePieces.unshift(...job.pieces);
    }
  }

  #reapRead(job: Job, state: number): void {
    if (state === RequestState.DONE && !job.doubtful) this.#checkRead(job);
    this.#syncShadow(job);
  }

  #reapWrite(job: Job, state: number): void {
    const written = this.#image.subarray(job.offset, job.offset + job.length);
    if (state === RequestState.DONE && !job.doubtful) {
      // Later ones that touch it were not sent before this was answered.
      if (!written.equals(job.data))
        throw new Error(`${job.type} of ${job.length} at ${job.offset} is not in the image`);
      this.#report.writesDone += 1;
      return;
    }
    // The image tells what became of it; what waits behind it is still to come.
    written.copy(this.#expected, job.offset);
    for (const later of this.#jobs) {
      if (!overlaps(later, job)) continue;
      if (later.type === 'read') later.doubtful = true;
      else later.data.copy(this.#expected, later.offset);
    }
  }

  #checkRead(job: Job): void {
    const got = Buffer.concat(
      job.pieces.map((address, i) => this.#client.view(address, Math.min(PIECE_SIZE, job.length - i * PIECE_SIZE))),
    );
    const wrong = got.findIndex((byte, i) => byte !== job.data[i]);
    if (wrong >= 0) throw new Error(`wrong byte ${wrong} of a read of ${job.length} at ${job.offset}`);
    this.#report.readsChecked += 1;
  }

  #syncShadow(job: Job): void {
    job.pieces.forEach((address, i) => {
      this.#shadow.set(this.#client.view(address, Math.min(PIECE_SIZE, job.length - i * PIECE_SIZE)), address);
    });
  }

  #checkMemory(): void {
    for (const job of this.#jobs) if (job.type === 'read') this.#syncShadow(job);
    for (const [from, to] of [
      [0, ARENA_START],
      [ARENA_END, this.#shadow.length],
    ]) {
      const memory = Buffer.from(this.#client.memory.buffer, from, to - from);
      const shadow = this.#shadow.subarray(from, to);
      if (memory.equals(shadow)) continue;
      const at = memory.findIndex((byte, i) => byte !== shadow[i]) + from;
      throw new Error(`memory changed at 0x${at.toString(16)}`);
    }
  }
}

function overlaps(a: Job, b: Job): boolean {
  return a.offset < b.offset + b.length && b.offset < a.offset + a.length;
}

function blockMax(random: Random): number {
  return random.pick([4096, 8192, 65_536, 1 << 20, 0xffffffff]);
}

const INTERESTING = [0, 1, 8, 9, 12, 0x1000, 0x20000, 0x20001, 0x7fffffff, 0x80000000, 0xffffffff];

/** A server's messages, some of them not as they should be. */
function liar(random: Random, rate: number): (message: Buffer, kind: MessageKind, peer: NbdPeer) => Buffer[] {
  const earlier: Buffer[] = [];
  let dead = false;
  return (message, _kind, peer) => {
    if (dead) return [];
    earlier.push(message);
    if (!random.chance(rate)) return [message];
    const lie = Buffer.from(message);
    switch (random.below(9)) {
      case 0:
        for (let n = random.between(1, 4); n > 0; n--) lie[random.below(lie.length)] ^= 1 << random.below(8);
        return [lie];
      case 1:
        for (let n = random.between(1, 2); n > 0; n--) {
          const at = random.below(Math.max(1, Math.min(40, lie.length - 3)));
          if (at + 4 <= lie.length) lie.writeUInt32BE(random.pick(INTERESTING), at);
        }
        return [lie];
      case 2:
        dead = peer.closing = true;
        return [lie.subarray(0, random.below(lie.length))];
      case 3:
        dead = true;
        return [lie.subarray(0, random.below(lie.length))];
      case 4:
        return [message, lie];
      case 5:
        return [];
      case 6:
        random.fill(lie);
        return [lie.subarray(0, random.between(1, lie.length))];
      case 7:
        return [random.pick(earlier), message];
      default:
        return [lie.subarray(0, random.below(lie.length)), message];
    }
  };
}
