// What an NBD session needs from whatever stores the bytes: the seam between the protocol and the store.
//
// Operations answer at once (undefined) when they can and with a promise when they must wait: the hot path of a server is a
// read from memory or the page cache, and a promise for each would cost more than the read.

import type { NbdErrorName } from './nbd-protocol.js';

/** A request failed in a way that the client is told about by an NBD error number. */
export class ExportError extends Error {
  override name = 'ExportError';
  constructor(
    readonly errno: NbdErrorName,
    message: string,
  ) {
    super(message);
  }
}

/** The client may not have this export: `unknown` and `policy` become NBD_REP_ERR_UNKNOWN and NBD_REP_ERR_POLICY. A card that gets
 * `plain` (NBD_REP_ERR_UNSUP) may have it as any client does. */
export class ExportRefused extends Error {
  override name = 'ExportRefused';
  constructor(
    readonly reason: 'unknown' | 'policy' | 'plain',
    message: string,
  ) {
    super(message);
  }
}

/** A run of bytes with one status word; in base:allocation NBD_STATE_HOLE and NBD_STATE_ZERO. */
export interface Extent {
  length: number;
  flags: number;
}

export type Done = undefined | Promise<void>;

/** What a card says in NBD_OPT_RIBBON (SPEC.md). */
export interface CardHello {
  /** 16 hexadecimal digits. */
  card: string;
  session: number;
  /** Earlier ones, the newest first, with the number of the last record that the card has found of each. */
  sessions: { session: number; last: number }[];
  /** Nothing of the card is right for any generation: 0. */
  generation: number;
  id: string;
  committed: number;
  /** Number of the card's newest record. */
  newest: number;
  dirty: boolean;
  conflict: boolean;
  /** Its PC is told of writes before they are committed, and counts on what the server has received. */
  early: boolean;
}

/** Where a card belongs. */
export interface CardPlace {
  /** 'lost': as 'reset', for the end of the card's log is missing, which is committed here. */
  verdict: 'ok' | 'reset' | 'lost' | 'older' | 'copied';
  /** The line's name, which may be a branch of the one that was asked for. */
  line: string;
  base: number;
  generation: number;
  id: string;
  committed: number;
  /** For 'ok', 'reset' and 'lost'. */
  export: OpenExport | null;
}

/** One opening of one export by one connection. Offsets and lengths have been checked against `size`. */
export interface OpenExport {
  readonly size: number;
  readonly readOnly: boolean;
  /** May a client spread its requests over several connections? */
  readonly multiConnection: boolean;
  readonly description: string;
  /** Fills `target`, which the export must not touch after it has answered. */
  read(offset: number, target: Buffer): Done;
  /** `data` is the caller's again after the call, even when a promise is returned: copy what must outlive it. */
  write(offset: number, data: Buffer): Done;
  /** These bytes read as zeroes from now on. */
  zero(offset: number, length: number): Done;
  /** Makes everything written so far on this connection the next generation, durably. */
  commit(): Done;
  /** A card's commit: everything in its records up to `upTo`. Only on an export that placeCard() has opened. */
  commitCard?(upTo: number): Promise<{ generation: number; id: string }>;
  /** Content that the store has, by its hash, becomes the block at `offset`; false when the store does not have it. */
  writeKnown?(offset: number, hash: Buffer): boolean | Promise<boolean>;
  /** Why the export takes nothing more, when it was lost before onLost was set. */
  readonly lostReason?: string | null;
  /** The meta contexts that a query of NBD_OPT_LIST/SET_META_CONTEXT matches. */
  metaContexts(query: string): string[];
  /** Brings a range to where reading it is quick, as far as that makes sense. Missing: there is no such place. */
  prefetch?(offset: number, length: number): Done;
  /** Brings what has to come from a slow medium for a read of this range to where reading it is quick; undefined: nothing has to. */
  fetch?(offset: number, length: number): Done;
  /** At least one extent, from `offset` on, covering at most `length`; at most `limit` of them. */
  status(context: string, offset: number, length: number, limit: number): Extent[];
  /** Set by the session: called when the export takes nothing more from this connection, which must end. */
  onLost?: (reason: string) => void;
  /** Called once, last. Not clean: the connection broke, and what it has not committed is discarded. */
  close(clean: boolean): Done;
}

export interface ExportListing {
  name: string;
  description: string;
}

/** Who is at the other end, as far as the transport knows. */
export interface Client {
  /** `anonymous` without TLS, else the PSK name or the certificate's subject. */
  identity: string;
  /** For the log and for telling anonymous clients apart. */
  address: string;
  tls: boolean;
  /** Nothing that is still on its way over an older connection can come behind what a newer one says: several may write together. */
  writesTogether?: boolean;
}

export interface Exports {
  list(client: Client): ExportListing[];
  /** Throws or rejects with ExportRefused. */
  open(name: string, client: Client): OpenExport | Promise<OpenExport>;
  /** May cards write blocks that the store has by their hash? Missing: yes. */
  readonly mayAsk?: boolean;
  /** Finds out where a card belongs and opens it; rejects with ExportRefused. Missing: cards are clients like all others. */
  placeCard?(name: string, client: Client, hello: CardHello): Promise<CardPlace>;
}
