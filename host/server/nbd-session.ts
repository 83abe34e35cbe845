// One NBD connection as the server speaks it, without any I/O: bytes in by buffer()/advance() or receive(), bytes out by
// Transport.send(). The same class serves sockets, TLS, the deterministic simulator and unit tests.
//
// Bytes are handled in order. Work that must wait either stops the reading of requests until it is done, or lets them go on: a commit,
// as what arrives after NBD_CMD_FLUSH belongs to the next epoch, and a read of what must come from a slow medium, where others follow.
// Memory of a connection is bounded: the input buffer, one staging buffer for a write's payload while one is arriving, and the output
// that the client has not taken, which stops the session at once.

import { type Client, type Done, ExportError, type Exports, type Extent, type OpenExport } from './export.js';
import { type MetaContext, NBD_REQUEST_MAX, NbdNegotiation, type NegotiatingSession } from './nbd-negotiation.js';
import { NbdOutput } from './nbd-output.js';
import * as nbd from './nbd-protocol.js';
import * as ribbon from './ribbon-protocol.js';

const INPUT_SIZE = 256 * 1024;
/** A payload is handed to the export in pieces of this size at most, cut at multiples of it. */
const STAGE_SIZE = 1024 * 1024;
/** Read replies leave in chunks of this size at most. */
const READ_CHUNK = 1024 * 1024;
/** Replies up to this size share an output buffer. */
const SMALL_REPLY = 16 * 1024;
/** Option data beyond this is skipped and answered with NBD_REP_ERR_TOO_BIG; names are at most 4096 bytes in [NBD]. */
const OPTION_DATA_MAX = 16 * 1024;
/** A client that sends more option data than this in one option is not one. */
const OPTION_SKIP_MAX = 1024 * 1024;
const EXTENTS_MAX = 8192;
const OPTIONS_MAX = 1000;
/** Reads that wait for the medium while requests behind them go on. */
const FETCHES_MAX = 64;
/** NBD_CMD_CACHE at work at once. */
const PREFETCHES_MAX = 4;

export interface Transport {
  readonly client: Client;
  /** Is TLS on offer, and is it required before anything is said about exports? */
  readonly tls: 'none' | 'offered' | 'required';
  /**
   * Sends bytes; `sent` is called, perhaps at once, when the buffer may be used again. False: take nothing more from the client until
   * NbdSession.resume() is called.
   */
  send(bytes: Buffer, sent: () => void): boolean;
  /** The client agreed to STARTTLS; all bytes that follow are TLS's. The transport makes a new session inside it. */
  startTls(): void;
  /** The session is over; let pending output leave, then close. */
  end(): void;
  log(level: 'info' | 'warn' | 'error', message: string): void;
  /** More input may be taken again, after buffer() had nothing to offer. */
  wake(): void;
}

/** What a client calls a request, as it stands in the stream. */
interface Cookie {
  readonly high: number;
  readonly low: number;
}

interface FetchedRead {
  cookie: Cookie;
  flags: number;
  offset: number;
  length: number;
}

enum State {
  CLIENT_FLAGS,
  OPTION,
  OPTION_DATA,
  OPTION_SKIP,
  REQUEST,
  PAYLOAD,
  /** A payload of a card's own commands: its head, then the rest. */
  CARD_HEAD,
  CARD_PAYLOAD,
  READING,
  CLOSED,
}

export interface SessionCounters {
  requests: number;
  bytesRead: number;
  bytesWritten: number;
  errors: number;
}

export class NbdSession implements NegotiatingSession {
  readonly counters: SessionCounters = { requests: 0, bytesRead: 0, bytesWritten: 0, errors: 0 };
  /** The name that the client has opened, once it has. */
  exportName: string | null = null;

  private state = State.CLIENT_FLAGS;
  private readonly input = Buffer.allocUnsafeSlow(INPUT_SIZE);
  private start = 0;
  private end = 0;

  private readonly negotiation = new NbdNegotiation(this);
  private options = 0;
  private option = 0;
  private optionLength = 0;
  private skip = 0;

  private export: OpenExport | null = null;
  private structured = false;
  private contexts: MetaContext[] = [];
  /** Set when the client is a card. */
  private card: NbdNegotiation['card'] = null;

  // The request being worked on.
  private flags = 0;
  private command = 0;
  private cookie: Cookie = { high: 0, low: 0 };
  private offset = 0;
  private length = 0;
  private progress = 0;
  private failure: ExportError | null = null;
  private writeHead: ribbon.WriteHead | null = null;

  /** Reads whose data are on their way from the medium, and those for which they have come. */
  private fetches = 0;
  private fetchBytes = 0;
  private readonly fetched: FetchedRead[] = [];

  private stage: Buffer | null = null;
  private stageFill = 0;

  readonly output = new NbdOutput(READ_CHUNK + 4096, (bytes, sent) => this.send(bytes, sent));

  private blocked = false;
  private waiting = false;
  private running = false;
  private inputEnded = false;
  private clean = false;
  private ended = false;

  constructor(
    readonly exports: Exports,
    readonly transport: Transport,
  ) {}

  /** Goes on inside TLS where the session outside has stopped: no second greeting, and nothing else of it counts. */
  static insideTls(exports: Exports, transport: Transport, outside: NbdSession): NbdSession {
    const session = new NbdSession(exports, transport);
    session.negotiation.noZeroes = outside.negotiation.noZeroes;
    session.state = State.OPTION;
    return session;
  }

  /** Sends the greeting. */
  open(): void {
    const at = this.output.reserve(18);
    const { buffer } = this.output;
    buffer.writeBigUInt64BE(nbd.NBD_MAGIC, at);
    buffer.writeBigUInt64BE(nbd.IHAVEOPT, at + 8);
    buffer.writeUInt16BE(nbd.NBD_FLAG_FIXED_NEWSTYLE | nbd.NBD_FLAG_NO_ZEROES, at + 16);
    this.output.flush();
  }

  /** True once a client has opened an export: the handshake's time limit is over. */
  get transmitting(): boolean {
    return this.export !== null;
  }

  get closed(): boolean {
    return this.state === State.CLOSED;
  }

  /** Where the next bytes from the client go; null while the session takes none. */
  buffer(): Buffer | null {
    if (this.state === State.CLOSED || this.blocked || this.waiting) return null;
    const direct = this.directLength();
    if (direct > 0) return this.stage!.subarray(this.stageFill, this.stageFill + direct);
    if (this.start === this.end) {
      this.start = 0;
      this.end = 0;
    } else if (this.start > INPUT_SIZE / 2) {
      this.input.copy(this.input, 0, this.start, this.end);
      this.end -= this.start;
      this.start = 0;
    }
    if (this.end === INPUT_SIZE) return null;
    return this.input.subarray(this.end);
  }

  /** The first `count` bytes of the last buffer() are filled. */
  advance(count: number): void {
    if (this.directLength() > 0) this.stageFill += count;
    else this.end += count;
    this.run();
  }

  /** How many bytes of a large payload may go straight to where they are collected; 0: use the input buffer. */
  private directLength(): number {
    if (this.state !== State.PAYLOAD || this.stage === null || this.failure !== null || this.start !== this.end)
      return 0;
    const rest = this.stageLength() - this.stageFill;
    return rest >= SMALL_REPLY ? rest : 0;
  }

  /** For transports that bring their own buffers; returns how many bytes were taken. Call again after wake(). */
  receive(bytes: Uint8Array): number {
    let taken = 0;
    while (taken < bytes.length) {
      const target = this.buffer();
      if (target === null) break;
      const count = Math.min(target.length, bytes.length - taken);
      target.set(bytes.subarray(taken, taken + count));
      taken += count;
      this.advance(count);
    }
    return taken;
  }

  /** The transport can take output again. */
  resume(): void {
    if (!this.blocked) return;
    this.blocked = false;
    this.run();
    if (!this.blocked && !this.waiting) this.transport.wake();
  }

  /** The connection has ended: no more bytes will come. What was received is still worked on. */
  disconnected(): void {
    this.inputEnded = true;
    this.blocked = false;
    this.run();
    this.finishIfEnded();
  }

  /** The server wants this session gone (shutdown, a time limit, the writer was fenced). */
  abort(reason: string): void {
    if (this.state === State.CLOSED) return;
    this.transport.log('info', reason);
    this.finish(false);
  }

  // --- the loop

  private run(): void {
    if (this.running) return;
    this.running = true;
    try {
      while (!this.waiting && !this.blocked && this.step());
    } catch (error) {
      this.crashed(error);
    } finally {
      this.running = false;
    }
    this.output.flush();
    this.finishIfEnded();
  }

  private finishIfEnded(): void {
    if (this.inputEnded && !this.waiting && this.fetches === 0 && this.state !== State.CLOSED) this.finish(false);
  }

  /** One step of the protocol; false when more bytes are needed. */
  private step(): boolean {
    switch (this.state) {
      case State.CLIENT_FLAGS:
        return this.stepClientFlags();
      case State.OPTION:
        return this.stepOption();
      case State.OPTION_DATA:
        return this.stepOptionData();
      case State.OPTION_SKIP:
        return this.stepOptionSkip();
      case State.REQUEST:
        return this.stepRequest();
      case State.PAYLOAD:
        return this.stepPayload();
      case State.CARD_HEAD:
        return this.stepCardHead();
      case State.CARD_PAYLOAD:
        return this.stepCardPayload();
      case State.READING:
        return this.card === null ? this.stepReading() : this.stepCardRead();
      case State.CLOSED:
        this.start = this.end;
        return false;
    }
  }

  /** Stops the session until the promise is settled. */
  wait(promise: Promise<void>, then: (error: unknown) => void): void {
    this.waiting = true;
    const settled = (error: unknown) => {
      this.waiting = false;
      if (this.state === State.CLOSED) return;
      try {
        then(error);
      } catch (failure) {
        this.crashed(failure);
      }
      this.run();
      if (!this.waiting && !this.blocked) this.transport.wake();
    };
    promise.then(
      () => settled(undefined),
      (error: unknown) => settled(error ?? new Error('rejected without a reason')),
    );
  }

  /** The client broke the protocol beyond repair. */
  violation(message: string): false {
    this.transport.log('warn', `protocol violation: ${message}`);
    this.finish(false);
    return false;
  }

  /** A bug, here or in the export: this connection ends, the server goes on. */
  private crashed(error: unknown): void {
    this.transport.log('error', `session failed: ${error instanceof Error ? (error.stack ?? error.message) : error}`);
    this.finish(false);
  }

  finish(clean: boolean): void {
    if (this.state === State.CLOSED) return;
    this.state = State.CLOSED;
    this.clean = clean;
    this.stage = null;
    const opened = this.export;
    const done = opened === null ? this.negotiation.close() : opened.close(clean);
    const end = () => {
      this.output.flush();
      this.ended = true;
      this.transport.end();
    };
    if (done === undefined) end();
    else
      done.then(end, (error: unknown) => {
        this.transport.log('error', `closing ${this.exportName}: ${error instanceof Error ? error.message : error}`);
        end();
      });
  }

  /** True when the client said goodbye by NBD_CMD_DISC or NBD_OPT_ABORT. */
  get endedCleanly(): boolean {
    return this.clean;
  }

  // --- negotiation

  private stepClientFlags(): boolean {
    if (this.end - this.start < 4) return false;
    const flags = this.input.readUInt32BE(this.start);
    this.start += 4;
    if ((flags & ~(nbd.NBD_FLAG_FIXED_NEWSTYLE | nbd.NBD_FLAG_NO_ZEROES)) !== 0) {
      return this.violation(`unknown client flags ${hex(flags)}`);
    }
    this.negotiation.noZeroes = (flags & nbd.NBD_FLAG_NO_ZEROES) !== 0;
    this.state = State.OPTION;
    return true;
  }

  private stepOption(): boolean {
    if (this.end - this.start < 16) return false;
    const magic = this.input.readBigUInt64BE(this.start);
    this.option = this.input.readUInt32BE(this.start + 8);
    this.optionLength = this.input.readUInt32BE(this.start + 12);
    this.start += 16;
    if (magic !== nbd.IHAVEOPT) return this.violation(`bad option magic ${magic.toString(16)}`);
    if (++this.options > OPTIONS_MAX) return this.violation(`more than ${OPTIONS_MAX} options`);
    if (this.optionLength > OPTION_SKIP_MAX) return this.violation(`option data of ${this.optionLength} bytes`);
    if (this.optionLength > OPTION_DATA_MAX) {
      this.skip = this.optionLength;
      this.state = State.OPTION_SKIP;
    } else {
      this.state = State.OPTION_DATA;
    }
    return true;
  }

  private stepOptionSkip(): boolean {
    const count = Math.min(this.skip, this.end - this.start);
    this.start += count;
    this.skip -= count;
    if (this.skip > 0) return false;
    if (this.option === nbd.NBD_OPT_EXPORT_NAME) return this.violation('export name too long');
    this.state = State.OPTION;
    this.negotiation.answerTooBig(this.option);
    return true;
  }

  private stepOptionData(): boolean {
    if (this.end - this.start < this.optionLength) return false;
    const data = this.input.subarray(this.start, this.start + this.optionLength);
    this.start += this.optionLength;
    this.state = State.OPTION;
    return this.negotiation.answer(this.option, data);
  }

  get inputWaits(): boolean {
    return this.end > this.start;
  }

  /** All bytes that follow are TLS's. */
  startTls(): void {
    this.state = State.CLOSED;
    this.output.flush();
    this.transport.startTls();
  }

  transmit(opened: OpenExport, name: string): void {
    this.export = opened;
    opened.onLost = (reason) => this.abort(reason);
    this.exportName = name;
    this.structured = this.negotiation.structured;
    this.contexts = this.negotiation.contexts;
    this.card = this.negotiation.card;
    this.state = State.REQUEST;
    // It may have been lost between being opened and now.
    if (typeof opened.lostReason === 'string') this.abort(opened.lostReason);
  }

  // --- transmission

  private stepRequest(): boolean {
    if (this.fetched.length > 0) return this.startFetched(this.fetched.shift()!);
    const input = this.input;
    const at = this.start;
    if (this.end - at < 28) return false;
    if (input.readUInt32BE(at) !== nbd.NBD_REQUEST_MAGIC) {
      return this.violation(`bad request magic ${hex(input.readUInt32BE(at))}`);
    }
    this.flags = input.readUInt16BE(at + 4);
    this.command = input.readUInt16BE(at + 6);
    this.cookie = { high: input.readUInt32BE(at + 8), low: input.readUInt32BE(at + 12) };
    this.offset = input.readUInt32BE(at + 16) * 0x1_0000_0000 + input.readUInt32BE(at + 20);
    this.length = input.readUInt32BE(at + 24);
    this.start = at + 28;
    this.progress = 0;
    this.counters.requests++;
    this.failure = this.checkRequest();
    switch (this.command) {
      case nbd.NBD_CMD_WRITE:
        // A payload that cannot be stored is still taken off the stream, within reason.
        if (this.length > 2 * NBD_REQUEST_MAX) return this.violation(`a write of ${this.length} bytes`);
        this.state = State.PAYLOAD;
        return true;
      case nbd.NBD_CMD_DISC:
        this.finish(true);
        return false;
      case ribbon.NBD_CMD_WRITE_PIECES:
      case ribbon.NBD_CMD_ASK:
        if (this.card === null) break;
        if (this.length > ribbon.RANGE_MAX) return this.violation(`a card's write of ${this.length} bytes`);
        this.state = this.command === ribbon.NBD_CMD_ASK ? State.CARD_PAYLOAD : State.CARD_HEAD;
        return true;
    }
    if (this.failure !== null) {
      this.replyError(this.cookie, this.failure);
      return true;
    }
    switch (this.command) {
      case nbd.NBD_CMD_READ:
        if (!this.fetchFirst()) this.state = State.READING;
        return true;
      case nbd.NBD_CMD_FLUSH:
        this.startCommit();
        return true;
      case nbd.NBD_CMD_TRIM:
      case nbd.NBD_CMD_WRITE_ZEROES:
        this.startZero();
        return true;
      case nbd.NBD_CMD_CACHE:
        this.startPrefetch();
        return true;
      case nbd.NBD_CMD_BLOCK_STATUS:
        this.replyStatus();
        return true;
    }
    return true;
  }

  /** What is wrong with the request, if anything. */
  private checkRequest(): ExportError | null {
    const isCards = this.command === ribbon.NBD_CMD_WRITE_PIECES || this.command === ribbon.NBD_CMD_ASK;
    const known = isCards && this.card !== null ? 0 : COMMAND_FLAGS[this.command];
    if (known === undefined) return new ExportError('EINVAL', `unknown command ${this.command}`);
    if (this.command === nbd.NBD_CMD_DISC) return null;
    if ((this.flags & ~known) !== 0) return new ExportError('EINVAL', `unknown flags ${hex(this.flags)}`);
    if ((this.flags & nbd.NBD_CMD_FLAG_DF) !== 0 && !this.structured) {
      return new ExportError('EINVAL', 'DF without structured replies');
    }
    const { card } = this;
    if (card !== null && (this.flags & nbd.NBD_CMD_FLAG_FUA) !== 0)
      return new ExportError('EINVAL', 'FUA of a card: a commit needs its record number');
    if (this.command === nbd.NBD_CMD_FLUSH) {
      if (card === null || (this.offset > card.lastRecord && Number.isSafeInteger(this.offset))) return null;
      return new ExportError('EINVAL', `record ${this.offset} after ${card.lastRecord}`);
    }
    const opened = this.export!;
    const writes =
      isCards ||
      this.command === nbd.NBD_CMD_WRITE ||
      this.command === nbd.NBD_CMD_TRIM ||
      this.command === nbd.NBD_CMD_WRITE_ZEROES;
    if (writes && opened.readOnly) return new ExportError('EPERM', 'the export is read-only');
    if (this.length === 0) return new ExportError('EINVAL', 'length 0');
    if (this.offset + this.length > opened.size) {
      return new ExportError(writes ? 'ENOSPC' : 'EINVAL', 'beyond the end of the export');
    }
    const moves = this.command === nbd.NBD_CMD_READ || this.command === nbd.NBD_CMD_WRITE;
    if (moves && this.length > NBD_REQUEST_MAX) return new ExportError('EOVERFLOW', 'more than 32 MiB');
    if (card !== null && this.command === nbd.NBD_CMD_READ && this.length > ribbon.RANGE_MAX)
      return new ExportError('EINVAL', 'a card reads at most 128 KiB');
    if (this.command === ribbon.NBD_CMD_ASK) {
      if ((card!.features & ribbon.FLAG_ASK) === 0 || opened.writeKnown === undefined)
        return new ExportError('EINVAL', 'ASK was not agreed');
      if (this.offset % ribbon.PIECE !== 0 || this.length % ribbon.PIECE !== 0)
        return new ExportError('EINVAL', 'ASK about parts of blocks');
    }
    if (this.command === nbd.NBD_CMD_BLOCK_STATUS && this.contexts.length === 0) {
      return new ExportError('EINVAL', 'no meta context was selected');
    }
    return null;
  }

  private flushing = false;

  /** Sends the output when everything else that is settled at this moment has been answered too. */
  private flushSoon(): void {
    if (this.flushing || this.running) return;
    this.flushing = true;
    queueMicrotask(() => {
      this.flushing = false;
      this.output.flush();
    });
  }

  // A write's payload. Pieces that lie whole in the input buffer go straight to the export; others are collected in the stage.

  private stageLength(): number {
    const position = this.offset + this.progress;
    const cut = STAGE_SIZE - (position % STAGE_SIZE);
    return Math.min(this.length - this.progress, cut);
  }

  private stepPayload(): boolean {
    if (this.failure !== null) return this.stepPayloadSkip();
    const want = this.stageLength();
    const have = this.end - this.start;
    if (this.stageFill === 0 && have >= want && want > 0) {
      const piece = this.input.subarray(this.start, this.start + want);
      this.start += want;
      return this.writePiece(piece);
    }
    if (this.stage === null) {
      if (have === 0 && want < SMALL_REPLY) return false;
      if (want < SMALL_REPLY && have < want && this.start + want <= INPUT_SIZE) return false;
      this.stage = Buffer.allocUnsafeSlow(STAGE_SIZE);
    }
    const count = Math.min(have, want - this.stageFill);
    this.input.copy(this.stage, this.stageFill, this.start, this.start + count);
    this.start += count;
    this.stageFill += count;
    if (this.stageFill < want) return false;
    this.stageFill = 0;
    return this.writePiece(this.stage.subarray(0, want));
  }

  private stepPayloadSkip(): boolean {
    // The stage may hold some of it when the failure came in the middle.
    const count = Math.min(this.end - this.start, this.length - this.progress);
    this.start += count;
    this.progress += count;
    if (this.progress < this.length) return false;
    this.state = State.REQUEST;
    this.replyError(this.cookie, this.failure!);
    return true;
  }

  private writePiece(piece: Buffer): boolean {
    const at = this.offset + this.progress;
    this.progress += piece.length;
    let done: Done;
    try {
      done = this.export!.write(at, piece);
    } catch (error) {
      this.failure = asExportError(error);
    }
    if (done !== undefined) {
      this.wait(done, (error) => {
        if (error !== undefined) this.failure = asExportError(error);
        this.writePieceDone();
      });
      return false;
    }
    this.writePieceDone();
    return true;
  }

  private writePieceDone(): void {
    if (this.progress < this.length) return;
    this.state = State.REQUEST;
    this.counters.bytesWritten += this.length;
    if (this.failure !== null) this.replyError(this.cookie, this.failure);
    else if ((this.flags & nbd.NBD_CMD_FLAG_FUA) !== 0) this.startCommit();
    else this.replySuccess(this.cookie);
  }

  private startZero(): void {
    const done = () => {
      if ((this.flags & nbd.NBD_CMD_FLAG_FUA) !== 0) this.startCommit();
      else this.replySuccess(this.cookie);
    };
    let result: Done;
    try {
      result = this.export!.zero(this.offset, this.length);
    } catch (error) {
      this.replyError(this.cookie, asExportError(error));
      return;
    }
    if (result === undefined) done();
    else
      this.wait(result, (error) => {
        if (error === undefined) done();
        else this.replyError(this.cookie, asExportError(error));
      });
  }

  // --- a card's own commands

  /** The next `length` bytes of input in one piece, null when they have not all come; at most half of the input buffer. */
  private gather(length: number): Buffer | null {
    if (this.start + length > INPUT_SIZE) {
      this.input.copy(this.input, 0, this.start, this.end);
      this.end -= this.start;
      this.start = 0;
    }
    if (this.end - this.start < length) return null;
    const bytes = this.input.subarray(this.start, this.start + length);
    this.start += length;
    return bytes;
  }

  private stepCardHead(): boolean {
    const head = this.gather(ribbon.WRITE_HEAD);
    if (head === null) return false;
    this.writeHead = ribbon.parseWriteHead(head, this.offset, this.length);
    if (this.writeHead === null) return this.violation('a malformed WRITE_PIECES');
    this.state = State.CARD_PAYLOAD;
    return true;
  }

  private stepCardPayload(): boolean {
    const asks = this.command === ribbon.NBD_CMD_ASK;
    const blocks = Math.ceil(this.length / ribbon.PIECE);
    const payload = this.gather(asks ? blocks * ribbon.HASH : this.writeHead!.rest);
    if (payload === null) return false;
    this.state = State.REQUEST;
    if (this.failure !== null) {
      this.replyError(this.cookie, this.failure);
      return true;
    }
    const { cookie } = this;
    const work = asks ? this.ask(Buffer.from(payload), blocks, cookie) : this.writePieces(payload, cookie);
    if (work === undefined) return true;
    this.wait(work, (error) => {
      if (error !== undefined) this.replyError(cookie, asExportError(error));
    });
    return false;
  }

  private writePieces(rest: Buffer, cookie: Cookie): Done {
    const pieces = ribbon.decodePieces(this.writeHead!, rest, this.offset, this.length);
    if (pieces === null) {
      this.replyError(cookie, new ExportError('EIO', 'damaged on its way: send it again'));
      return undefined;
    }
    const waits: Promise<void>[] = [];
    try {
      for (let first = 0; first < pieces.length; ) {
        // Pieces that follow each other are one write.
        let last = first;
        while (last + 1 < pieces.length && pieces[last + 1].at === pieces[last].at + pieces[last].bytes.length) last++;
        const run = pieces.slice(first, last + 1).map((it) => it.bytes);
        const done = this.export!.write(this.offset + pieces[first].at, run.length === 1 ? run[0] : Buffer.concat(run));
        if (done !== undefined) waits.push(done);
        first = last + 1;
      }
    } catch (error) {
      this.replyError(cookie, asExportError(error));
      return undefined;
    }
    this.counters.bytesWritten += this.length;
    if (waits.length === 0) {
      this.replySuccess(cookie);
      return undefined;
    }
    return Promise.all(waits).then(() => this.replySuccess(cookie));
  }

  private async ask(hashes: Buffer, blocks: number, cookie: Cookie): Promise<void> {
    const offset = this.offset;
    let mask = 0;
    for (let i = 0; i < blocks; i++) {
      const hash = hashes.subarray(i * ribbon.HASH, (i + 1) * ribbon.HASH);
      if (await this.export!.writeKnown!(offset + i * ribbon.PIECE, hash)) mask |= 1 << i;
    }
    const at = this.output.reserve(24);
    const { buffer } = this.output;
    this.writeChunkHeader(buffer, at, cookie, ribbon.NBD_REPLY_TYPE_KNOWN, 4, true);
    buffer.writeUInt32BE(mask >>> 0, at + 20);
  }

  private stepCardRead(): boolean {
    const { cookie } = this;
    const { offset, length } = this;
    const data = Buffer.allocUnsafe(length);
    this.state = State.REQUEST;
    const reply = () => {
      this.counters.bytesRead += length;
      const payload = ribbon.encodeRead(offset, data, (this.card!.features & ribbon.FLAG_DEFLATE) !== 0);
      const at = this.output.reserve(20 + payload.length);
      const { buffer } = this.output;
      this.writeChunkHeader(buffer, at, cookie, ribbon.NBD_REPLY_TYPE_PIECES, payload.length, true);
      payload.copy(buffer, at + 20);
    };
    let done: Done;
    try {
      done = this.export!.read(offset, data);
    } catch (error) {
      this.replyError(cookie, asExportError(error));
      return true;
    }
    if (done === undefined) {
      reply();
      return true;
    }
    this.wait(done, (error) => {
      if (error === undefined) reply();
      else this.replyError(cookie, asExportError(error));
    });
    return false;
  }

  private startCardCommit(): void {
    const { cookie } = this;
    this.card!.lastRecord = this.offset;
    this.export!.commitCard!(this.offset)
      .then(
        ({ generation, id }) => {
          if (this.state === State.CLOSED) return;
          const at = this.output.reserve(36);
          const { buffer } = this.output;
          this.writeChunkHeader(buffer, at, cookie, ribbon.NBD_REPLY_TYPE_COMMITTED, 16, true);
          buffer.writeBigUInt64BE(BigInt(generation), at + 20);
          buffer.write(id, at + 28, 'hex');
        },
        (error: unknown) => {
          if (this.state !== State.CLOSED) this.replyError(cookie, asExportError(error));
        },
      )
      .then(() => {
        if (this.state !== State.CLOSED) this.flushSoon();
      });
  }

  private prefetches = 0;

  /** Requests that follow do not wait for it. More than a few at once are answered with nothing done, as [NBD] allows. */
  private startPrefetch(): void {
    const { cookie } = this;
    let done: Done;
    try {
      if (this.prefetches < PREFETCHES_MAX) done = this.export!.prefetch?.(this.offset, this.length);
    } catch (error) {
      this.replyError(cookie, asExportError(error));
      return;
    }
    if (done === undefined) {
      this.replySuccess(cookie);
      return;
    }
    this.prefetches++;
    const ended = () => void this.prefetches--;
    done.then(ended, ended);
    this.replyWhen(cookie, done);
  }

  private startCommit(): void {
    if (this.card !== null) {
      this.startCardCommit();
      return;
    }
    const { cookie } = this;
    let done: Done;
    try {
      done = this.export!.commit();
    } catch (error) {
      this.replyError(cookie, asExportError(error));
      return;
    }
    if (done === undefined) {
      this.replySuccess(cookie);
      return;
    }
    this.replyWhen(cookie, done);
  }

  /** Requests that follow are answered meanwhile. */
  private replyWhen(cookie: Cookie, done: Promise<unknown>): void {
    const settled = (error: unknown) => {
      if (this.state === State.CLOSED) return;
      if (error === undefined) this.replySuccess(cookie);
      else this.replyError(cookie, asExportError(error));
      this.flushSoon();
    };
    done.then(
      () => settled(undefined),
      (error: unknown) => settled(error ?? new Error('rejected without a reason')),
    );
  }

  /** Lets the requests behind a read go on while its data come from the medium. False: they are here, or there is nothing behind it. */
  private fetchFirst(): boolean {
    const { cookie, flags, offset, length } = this;
    const alone = this.start === this.end && this.fetches === 0 && length < SMALL_REPLY;
    if (alone || this.card !== null) return false;
    let done: Done;
    try {
      done = this.export!.fetch?.(offset, length);
    } catch {
      // The read will say what is wrong.
      return false;
    }
    if (done === undefined) return false;
    if (this.fetches === FETCHES_MAX || (this.fetches > 0 && this.fetchBytes + length > NBD_REQUEST_MAX)) {
      this.wait(done, () => {});
      return false;
    }
    this.fetches++;
    this.fetchBytes += length;
    const settled = () => {
      this.fetches--;
      this.fetchBytes -= length;
      this.fetched.push({ cookie, flags, offset, length });
      // Those that come together are answered together.
      if (this.fetched.length === 1) setImmediate(() => this.runFetched());
    };
    done.then(settled, settled);
    return true;
  }

  private runFetched(): void {
    if (this.state === State.CLOSED) return;
    this.run();
    if (!this.waiting && !this.blocked) this.transport.wake();
  }

  private startFetched({ cookie, flags, offset, length }: FetchedRead): boolean {
    this.command = nbd.NBD_CMD_READ;
    this.cookie = cookie;
    this.flags = flags;
    this.offset = offset;
    this.length = length;
    this.progress = 0;
    this.failure = null;
    this.state = State.READING;
    return true;
  }

  private stepReading(): boolean {
    const opened = this.export!;
    while (this.progress < this.length) {
      if (this.blocked) return false;
      const count = Math.min(this.length - this.progress, READ_CHUNK);
      const last = this.progress + count === this.length;
      const header = this.structured ? 28 : this.progress === 0 ? 16 : 0;
      const at = this.output.reserve(header + count);
      const { buffer } = this.output;
      const data = buffer.subarray(at + header, at + header + count);
      const position = this.offset + this.progress;
      this.writeReadHeader(buffer, at, position, count, last);
      let done: Done;
      try {
        done = opened.read(position, data);
      } catch (error) {
        this.readFailed(asExportError(error), header + count);
        return this.state === State.REQUEST;
      }
      this.progress += count;
      if (done !== undefined) {
        this.awaitRead(done, header + count, count);
        return false;
      }
      if (this.output.length > SMALL_REPLY * 4) this.output.flush();
    }
    this.readDone();
    return true;
  }

  /** Keeps the output back until the chunk at its end is filled; replies to commits may overtake it in another buffer. */
  private awaitRead(done: Promise<void>, reserved: number, count: number): void {
    const release = this.output.hold();
    this.wait(done, (error) => {
      release();
      if (error === undefined) {
        this.readDone();
        return;
      }
      this.progress -= count;
      this.readFailed(asExportError(error), reserved);
    });
  }

  private readDone(): void {
    if (this.progress < this.length) return;
    this.counters.bytesRead += this.length;
    this.state = State.REQUEST;
  }

  /** Takes back the chunk whose data could not be read and says so instead. */
  private readFailed(error: ExportError, reserved: number): void {
    this.output.takeBack(reserved);
    if (!this.structured && this.progress > 0) {
      // A simple reply has promised the data already: [NBD] leaves only a disconnect.
      this.transport.log('error', `read failed in the middle of a simple reply: ${error.message}`);
      this.finish(false);
      return;
    }
    this.state = State.REQUEST;
    this.replyError(this.cookie, error);
  }

  private writeReadHeader(buffer: Buffer, at: number, position: number, count: number, last: boolean): void {
    if (!this.structured) {
      if (this.progress > 0) return;
      buffer.writeUInt32BE(nbd.NBD_SIMPLE_REPLY_MAGIC, at);
      buffer.writeUInt32BE(0, at + 4);
      buffer.writeUInt32BE(this.cookie.high, at + 8);
      buffer.writeUInt32BE(this.cookie.low, at + 12);
      return;
    }
    buffer.writeUInt32BE(nbd.NBD_STRUCTURED_REPLY_MAGIC, at);
    buffer.writeUInt16BE(last ? nbd.NBD_REPLY_FLAG_DONE : 0, at + 4);
    buffer.writeUInt16BE(nbd.NBD_REPLY_TYPE_OFFSET_DATA, at + 6);
    buffer.writeUInt32BE(this.cookie.high, at + 8);
    buffer.writeUInt32BE(this.cookie.low, at + 12);
    buffer.writeUInt32BE(8 + count, at + 16);
    buffer.writeUInt32BE(Math.floor(position / 0x1_0000_0000), at + 20);
    buffer.writeUInt32BE(position % 0x1_0000_0000, at + 24);
  }

  private replySuccess(cookie: Cookie): void {
    // A simple reply is allowed for every command but READ, and BLOCK_STATUS; it is 4 bytes shorter than a structured one.
    const at = this.output.reserve(16);
    const { buffer } = this.output;
    buffer.writeUInt32BE(nbd.NBD_SIMPLE_REPLY_MAGIC, at);
    buffer.writeUInt32BE(0, at + 4);
    buffer.writeUInt32BE(cookie.high, at + 8);
    buffer.writeUInt32BE(cookie.low, at + 12);
  }

  private replyError(cookie: Cookie, error: ExportError): void {
    this.counters.errors++;
    const errno = nbd.NBD_ERRNO[error.errno];
    if (!this.structured) {
      const at = this.output.reserve(16);
      const { buffer } = this.output;
      buffer.writeUInt32BE(nbd.NBD_SIMPLE_REPLY_MAGIC, at);
      buffer.writeUInt32BE(errno, at + 4);
      buffer.writeUInt32BE(cookie.high, at + 8);
      buffer.writeUInt32BE(cookie.low, at + 12);
      return;
    }
    const text = Buffer.from(error.message).subarray(0, 200);
    const at = this.output.reserve(20 + 6 + text.length);
    const { buffer } = this.output;
    this.writeChunkHeader(buffer, at, cookie, nbd.NBD_REPLY_TYPE_ERROR, 6 + text.length, true);
    buffer.writeUInt32BE(errno, at + 20);
    buffer.writeUInt16BE(text.length, at + 24);
    text.copy(buffer, at + 26);
  }

  private replyStatus(): void {
    const most = this.card === null ? EXTENTS_MAX : ribbon.EXTENTS_MAX;
    const limit = (this.flags & nbd.NBD_CMD_FLAG_REQ_ONE) !== 0 ? 1 : most;
    const found: Extent[][] = [];
    try {
      for (const context of this.contexts) {
        found.push(this.export!.status(context.name, this.offset, this.length, limit));
      }
    } catch (error) {
      this.replyError(this.cookie, asExportError(error));
      return;
    }
    for (const [index, context] of this.contexts.entries()) {
      const extents = found[index];
      const length = 4 + 8 * extents.length;
      const at = this.output.reserve(20 + length);
      const { buffer } = this.output;
      const last = index === this.contexts.length - 1;
      this.writeChunkHeader(buffer, at, this.cookie, nbd.NBD_REPLY_TYPE_BLOCK_STATUS, length, last);
      buffer.writeUInt32BE(context.id, at + 20);
      for (const [ordinal, extent] of extents.entries()) {
        buffer.writeUInt32BE(extent.length, at + 24 + 8 * ordinal);
        buffer.writeUInt32BE(extent.flags, at + 28 + 8 * ordinal);
      }
    }
  }

  private writeChunkHeader(
    buffer: Buffer,
    at: number,
    cookie: Cookie,
    type: number,
    length: number,
    last: boolean,
  ): void {
    buffer.writeUInt32BE(nbd.NBD_STRUCTURED_REPLY_MAGIC, at);
    buffer.writeUInt16BE(last ? nbd.NBD_REPLY_FLAG_DONE : 0, at + 4);
    buffer.writeUInt16BE(type, at + 6);
    buffer.writeUInt32BE(cookie.high, at + 8);
    buffer.writeUInt32BE(cookie.low, at + 12);
    buffer.writeUInt32BE(length, at + 16);
  }

  private send(bytes: Buffer, sent: () => void): void {
    if (this.inputEnded || this.ended) return;
    if (!this.transport.send(bytes, sent)) this.blocked = true;
  }
}

/** The flags that each command may carry. FUA is allowed on every one: [NBD] "valid for all commands", meaningless on most. */
const COMMAND_FLAGS: Record<number, number> = {
  [nbd.NBD_CMD_READ]: nbd.NBD_CMD_FLAG_FUA | nbd.NBD_CMD_FLAG_DF,
  [nbd.NBD_CMD_WRITE]: nbd.NBD_CMD_FLAG_FUA,
  [nbd.NBD_CMD_DISC]: 0xffff,
  [nbd.NBD_CMD_FLUSH]: nbd.NBD_CMD_FLAG_FUA,
  [nbd.NBD_CMD_TRIM]: nbd.NBD_CMD_FLAG_FUA,
  [nbd.NBD_CMD_CACHE]: nbd.NBD_CMD_FLAG_FUA,
  [nbd.NBD_CMD_WRITE_ZEROES]: nbd.NBD_CMD_FLAG_FUA | nbd.NBD_CMD_FLAG_NO_HOLE | nbd.NBD_CMD_FLAG_FAST_ZERO,
  [nbd.NBD_CMD_BLOCK_STATUS]: nbd.NBD_CMD_FLAG_FUA | nbd.NBD_CMD_FLAG_REQ_ONE,
};

function asExportError(error: unknown): ExportError {
  if (error instanceof ExportError) return error;
  const code = (error as { code?: unknown } | null)?.code;
  const message = error instanceof Error ? error.message : String(error);
  if (code === 'ENOSPC' || code === 'EDQUOT') return new ExportError('ENOSPC', message);
  return new ExportError('EIO', message);
}

function hex(value: number): string {
  return `0x${(value >>> 0).toString(16)}`;
}
