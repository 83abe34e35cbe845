// The options of the NBD handshake: what a client may ask before it opens an export.

import { type CardPlace, type Client, ExportRefused, type Exports, type OpenExport } from './export.js';
import type { NbdOutput } from './nbd-output.js';
import * as nbd from './nbd-protocol.js';
import * as ribbon from './ribbon-protocol.js';

/** The largest request; [NBD] asks for 32 MiB at least. */
export const NBD_REQUEST_MAX = 32 * 1024 * 1024;
const STRING_MAX = 4096;
const CONTEXTS_MAX = 16;

export interface MetaContext {
  id: number;
  name: string;
}

/** The session that negotiates. */
export interface NegotiatingSession {
  readonly exports: Exports;
  readonly transport: {
    readonly client: Client;
    readonly tls: 'none' | 'offered' | 'required';
    log(level: 'info' | 'warn' | 'error', message: string): void;
  };
  readonly output: NbdOutput;
  readonly closed: boolean;
  /** Are there bytes from the client behind the option that is being answered? */
  readonly inputWaits: boolean;
  /** Stops the session until the promise is settled. */
  wait(promise: Promise<void>, then: (error: unknown) => void): void;
  /** The client broke the protocol beyond repair. */
  violation(message: string): false;
  finish(clean: boolean): void;
  startTls(): void;
  /** The handshake is over. */
  transmit(opened: OpenExport, name: string): void;
}

export class NbdNegotiation {
  /** The client wants no padding after NBD_OPT_EXPORT_NAME. */
  noZeroes = false;
  structured = false;
  /** Those selected for the export that was opened. */
  contexts: MetaContext[] = [];
  private contextsFor = '';
  /** What a client that is a card has agreed to and knows; null for all others. */
  card: { features: number; lastRecord: number } | null = null;
  /** Opened by NBD_OPT_RIBBON, for the NBD_OPT_GO that follows. */
  private placed: { name: string; export: OpenExport } | null = null;
  private option = 0;

  constructor(private readonly session: NegotiatingSession) {}

  /** An option whose data was longer than any that is known. */
  answerTooBig(option: number): void {
    this.option = option;
    this.reply(nbd.NBD_REP_ERR_TOO_BIG, 'too much option data');
  }

  /** Answers one option; false: nothing more is to be taken from the input. `data` is the caller's again afterwards. */
  answer(option: number, data: Buffer): boolean {
    this.option = option;
    if (this.session.transport.tls === 'required' && !TLS_FREE_OPTIONS.has(this.option)) {
      if (this.option === nbd.NBD_OPT_EXPORT_NAME) return this.session.violation('export name before TLS');
      this.reply(nbd.NBD_REP_ERR_TLS_REQD, 'this server serves inside TLS only');
      return true;
    }
    switch (this.option) {
      case nbd.NBD_OPT_EXPORT_NAME:
        return this.optionExportName(data);
      case nbd.NBD_OPT_ABORT:
        this.reply(nbd.NBD_REP_ACK);
        this.session.finish(true);
        return false;
      case nbd.NBD_OPT_LIST:
        this.optionList(data);
        return true;
      case nbd.NBD_OPT_STARTTLS:
        return this.optionStartTls(data);
      case nbd.NBD_OPT_INFO:
      case nbd.NBD_OPT_GO:
        this.optionInfo(data, this.option === nbd.NBD_OPT_GO);
        return true;
      case nbd.NBD_OPT_STRUCTURED_REPLY:
        if (data.length > 0) this.reply(nbd.NBD_REP_ERR_INVALID, 'no data expected');
        else {
          this.structured = true;
          this.reply(nbd.NBD_REP_ACK);
        }
        return true;
      case nbd.NBD_OPT_LIST_META_CONTEXT:
      case nbd.NBD_OPT_SET_META_CONTEXT:
        this.optionMetaContext(data, this.option === nbd.NBD_OPT_SET_META_CONTEXT);
        return true;
      case ribbon.NBD_OPT_RIBBON:
        this.optionRibbon(data);
        return true;
      default:
        this.reply(nbd.NBD_REP_ERR_UNSUP);
        return true;
    }
  }

  private reply(type: number, data: Buffer | string = ''): void {
    const bytes = typeof data === 'string' ? Buffer.from(data) : data;
    const at = this.session.output.reserve(20 + bytes.length);
    const { buffer } = this.session.output;
    buffer.writeBigUInt64BE(nbd.NBD_REP_MAGIC, at);
    buffer.writeUInt32BE(this.option, at + 8);
    buffer.writeUInt32BE(type >>> 0, at + 12);
    buffer.writeUInt32BE(bytes.length, at + 16);
    bytes.copy(buffer, at + 20);
  }

  private optionStartTls(data: Buffer): boolean {
    if (data.length > 0) this.reply(nbd.NBD_REP_ERR_INVALID, 'no data expected');
    else if (this.session.transport.client.tls) this.reply(nbd.NBD_REP_ERR_INVALID, 'TLS is on already');
    else if (this.session.transport.tls === 'none') this.reply(nbd.NBD_REP_ERR_POLICY, 'this server has no TLS');
    else {
      // Bytes that follow in clear text could be an injection: nothing may follow before the handshake.
      if (this.session.inputWaits) return this.session.violation('bytes between STARTTLS and the TLS handshake');
      this.reply(nbd.NBD_REP_ACK);
      this.session.startTls();
      return false;
    }
    return true;
  }

  private optionList(data: Buffer): void {
    if (data.length > 0) {
      this.reply(nbd.NBD_REP_ERR_INVALID, 'no data expected');
      return;
    }
    for (const listing of this.session.exports.list(this.session.transport.client)) {
      const name = Buffer.from(listing.name);
      const description = Buffer.from(listing.description);
      const reply = Buffer.alloc(4 + name.length + description.length);
      reply.writeUInt32BE(name.length);
      name.copy(reply, 4);
      description.copy(reply, 4 + name.length);
      this.reply(nbd.NBD_REP_SERVER, reply);
    }
    this.reply(nbd.NBD_REP_ACK);
  }

  /** A card says what it knows; the answer says where it belongs, and what that opens is kept for NBD_OPT_GO. */
  private optionRibbon(data: Buffer): void {
    const { exports, transport } = this.session;
    if (exports.placeCard === undefined) {
      this.reply(nbd.NBD_REP_ERR_UNSUP);
      return;
    }
    const request = ribbon.parseHello(data);
    const name = request === null ? null : parseName(request.name);
    if (request === null || name === null || !this.structured || this.placed !== null) {
      this.reply(nbd.NBD_REP_ERR_INVALID, 'malformed NBD_OPT_RIBBON, or out of order');
      return;
    }
    const features = request.features & (exports.mayAsk === false ? ~ribbon.FLAG_ASK : -1);
    let place: CardPlace | null = null;
    const placing = exports.placeCard(name, transport.client, request.hello).then((it) => {
      place = it;
      return this.session.closed ? (it.export?.close(false) ?? undefined) : undefined;
    });
    this.session.wait(placing, (error) => {
      if (error !== undefined) this.refusedExport(name, error, (refused) => this.replyRefused(refused));
      else this.replyPlaced(name, place!, request.hello.committed, features);
    });
  }

  private replyPlaced(name: string, place: CardPlace, committed: number, features: number): void {
    const { export: opened, base, generation } = place;
    if (opened !== null) {
      this.placed = { name, export: opened };
      this.card = { features, lastRecord: Math.max(place.committed, committed) };
      const found = base === generation ? [] : opened.metaContexts(`x-ribbon:changed-since=${base}`);
      this.contexts = found.map((context) => ({ id: 1, name: context }));
      this.contextsFor = name;
    }
    this.reply(ribbon.NBD_REP_RIBBON, ribbon.encodePlace(place, name, features));
    this.reply(nbd.NBD_REP_ACK);
  }

  /** The handshake ends without an export: what was opened for the card is let go. */
  close(): Promise<void> | undefined {
    const opened = this.placed?.export;
    this.placed = null;
    return opened?.close(false);
  }

  private refusedExport(name: string, error: unknown, refused: (error: ExportRefused) => void): void {
    if (!(error instanceof ExportRefused)) throw error;
    this.session.transport.log('warn', `refused export "${printable(name)}": ${error.message}`);
    refused(error);
  }

  private replyRefused(error: ExportRefused): void {
    const types = {
      unknown: nbd.NBD_REP_ERR_UNKNOWN,
      policy: nbd.NBD_REP_ERR_POLICY,
      plain: nbd.NBD_REP_ERR_UNSUP,
    };
    this.reply(types[error.reason], error.message);
  }

  /** Opens an export and goes on, at once or later; refusals are answered by `refused`. */
  private openExport(
    name: string,
    opened: (opened: OpenExport) => void,
    refused: (error: ExportRefused) => void,
  ): void {
    const failed = (error: unknown) => this.refusedExport(name, error, refused);
    let result: OpenExport | Promise<OpenExport>;
    try {
      const { placed } = this;
      if (placed !== null && placed.name !== name)
        throw new ExportRefused('policy', `the card has asked for "${printable(placed.name)}"`);
      result = placed?.export ?? this.session.exports.open(name, this.session.transport.client);
    } catch (error) {
      failed(error);
      return;
    }
    if (!(result instanceof Promise)) {
      opened(result);
      return;
    }
    let value: OpenExport | null = null;
    this.session.wait(
      result.then((it) => {
        value = it;
        if (this.session.closed) return it.close(false);
        return undefined;
      }),
      (error) => {
        if (error !== undefined) failed(error);
        else opened(value!);
      },
    );
  }

  private optionExportName(data: Buffer): boolean {
    const name = parseName(data);
    if (name === null) return this.session.violation('export name is not UTF-8 without NUL, or too long');
    this.openExport(
      name,
      (opened) => {
        const at = this.session.output.reserve(this.noZeroes ? 10 : 134);
        const { buffer } = this.session.output;
        buffer.writeBigUInt64BE(BigInt(opened.size), at);
        buffer.writeUInt16BE(this.transmissionFlags(opened), at + 8);
        if (!this.noZeroes) buffer.fill(0, at + 10, at + 134);
        this.transmit(opened, name);
      },
      () => this.session.finish(false),
    );
    return true;
  }

  private optionInfo(data: Buffer, go: boolean): void {
    const request = parseInfoRequest(data);
    if (request === null) {
      this.reply(nbd.NBD_REP_ERR_INVALID, 'malformed NBD_OPT_INFO or NBD_OPT_GO');
      return;
    }
    this.openExport(
      request.name,
      (opened) => {
        const info = Buffer.alloc(12);
        info.writeUInt16BE(nbd.NBD_INFO_EXPORT);
        info.writeBigUInt64BE(BigInt(opened.size), 2);
        info.writeUInt16BE(this.transmissionFlags(opened), 10);
        this.reply(nbd.NBD_REP_INFO, info);
        const blockSize = Buffer.alloc(14);
        blockSize.writeUInt16BE(nbd.NBD_INFO_BLOCK_SIZE);
        blockSize.writeUInt32BE(1, 2);
        blockSize.writeUInt32BE(4096, 6);
        blockSize.writeUInt32BE(NBD_REQUEST_MAX, 10);
        this.reply(nbd.NBD_REP_INFO, blockSize);
        for (const type of request.types) {
          if (type === nbd.NBD_INFO_NAME) this.infoText(type, request.name);
          if (type === nbd.NBD_INFO_DESCRIPTION) this.infoText(type, opened.description);
        }
        this.reply(nbd.NBD_REP_ACK);
        if (go) this.transmit(opened, request.name);
        else this.closeUnused(opened);
      },
      (error) => this.replyRefused(error),
    );
  }

  private infoText(type: number, text: string): void {
    const bytes = Buffer.from(text);
    const reply = Buffer.alloc(2 + bytes.length);
    reply.writeUInt16BE(type);
    bytes.copy(reply, 2);
    this.reply(nbd.NBD_REP_INFO, reply);
  }

  private closeUnused(opened: OpenExport): void {
    if (opened === this.placed?.export) return;
    const done = opened.close(true);
    if (done !== undefined) this.session.wait(done, () => {});
  }

  private optionMetaContext(data: Buffer, set: boolean): void {
    const request = parseMetaContextRequest(data);
    if (set) this.contexts = [];
    if (request === null) {
      this.reply(nbd.NBD_REP_ERR_INVALID, 'malformed meta context request');
      return;
    }
    if (!this.structured) {
      this.reply(nbd.NBD_REP_ERR_INVALID, 'structured replies come first');
      return;
    }
    this.openExport(
      request.name,
      (opened) => {
        const names = new Set<string>();
        const queries = request.queries.length === 0 && !set ? [''] : request.queries;
        for (const query of queries) for (const name of opened.metaContexts(query)) names.add(name);
        const found = [...names].slice(0, CONTEXTS_MAX).map((name, index) => ({ id: set ? index + 1 : 0, name }));
        for (const context of found) {
          const text = Buffer.from(context.name);
          const reply = Buffer.alloc(4 + text.length);
          reply.writeUInt32BE(context.id);
          text.copy(reply, 4);
          this.reply(nbd.NBD_REP_META_CONTEXT, reply);
        }
        if (set) {
          this.contexts = found;
          this.contextsFor = request.name;
        }
        this.reply(nbd.NBD_REP_ACK);
        this.closeUnused(opened);
      },
      (error) => this.replyRefused(error),
    );
  }

  private transmit(opened: OpenExport, name: string): void {
    // [NBD]: contexts selected for another export name do not count.
    if (this.contextsFor !== name) this.contexts = [];
    this.placed = null;
    this.session.transmit(opened, name);
  }

  private transmissionFlags(opened: OpenExport): number {
    let flags = nbd.NBD_FLAG_HAS_FLAGS | nbd.NBD_FLAG_SEND_FLUSH | nbd.NBD_FLAG_SEND_FUA | nbd.NBD_FLAG_SEND_CACHE;
    if (opened.readOnly) flags |= nbd.NBD_FLAG_READ_ONLY;
    else flags |= nbd.NBD_FLAG_SEND_TRIM | nbd.NBD_FLAG_SEND_WRITE_ZEROES | nbd.NBD_FLAG_SEND_FAST_ZERO;
    if (opened.multiConnection) flags |= nbd.NBD_FLAG_CAN_MULTI_CONN;
    if (this.structured) flags |= nbd.NBD_FLAG_SEND_DF;
    return flags;
  }
}

const TLS_FREE_OPTIONS = new Set([nbd.NBD_OPT_ABORT, nbd.NBD_OPT_STARTTLS]);

const utf8 = new TextDecoder('utf-8', { fatal: true });

/** A name or query as [NBD] allows it, or null. */
export function parseName(bytes: Uint8Array): string | null {
  if (bytes.length > STRING_MAX || bytes.includes(0)) return null;
  try {
    return utf8.decode(bytes);
  } catch {
    return null;
  }
}

function parseInfoRequest(data: Buffer): { name: string; types: number[] } | null {
  if (data.length < 6) return null;
  const nameLength = data.readUInt32BE();
  if (nameLength > data.length - 6) return null;
  const name = parseName(data.subarray(4, 4 + nameLength));
  const count = data.readUInt16BE(4 + nameLength);
  if (name === null || data.length !== 6 + nameLength + 2 * count) return null;
  const types = Array.from({ length: count }, (_, index) => data.readUInt16BE(6 + nameLength + 2 * index));
  return { name, types };
}

function parseMetaContextRequest(data: Buffer): { name: string; queries: string[] } | null {
  if (data.length < 8) return null;
  const nameLength = data.readUInt32BE();
  if (nameLength > data.length - 8) return null;
  const name = parseName(data.subarray(4, 4 + nameLength));
  if (name === null) return null;
  let at = 4 + nameLength;
  const count = data.readUInt32BE(at);
  at += 4;
  const queries: string[] = [];
  for (let index = 0; index < count; index++) {
    if (data.length - at < 4) return null;
    const length = data.readUInt32BE(at);
    at += 4;
    if (length > data.length - at) return null;
    const query = parseName(data.subarray(at, at + length));
    if (query === null) return null;
    queries.push(query);
    at += length;
  }
  return at === data.length ? { name, queries } : null;
}

/** A client's text for the log: no control characters, not endless. */
export function printable(text: string): string {
  const short = text.length > 80 ? `${text.slice(0, 80)}…` : text;
  return JSON.stringify(short).slice(1, -1);
}
