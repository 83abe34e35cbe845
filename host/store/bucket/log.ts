// The log of a bucket: one sequence of transactions that all servers agree on, each an object that exactly one of them has made.

import { DamagedError } from '../pack.js';
import { type Change, type Entry, logObject, newNonce, parseCheckpointName, parseEntry, sealJson } from './format.js';
import type { Reach } from './reach.js';

export interface NewEntry {
  server: number;
  timeMs: number;
  records: Change[];
  changes: [key: string, list: string | null][];
}

/** The log has gone on for long without this server, and its place in it has been deleted: what it sees there, or makes, is not the log. */
export class LeftBehindError extends Error {
  override name = 'LeftBehindError';
}

/** Entries are deleted when a checkpoint is so many entries further on, and they are a day old. */
export const ENTRIES_KEPT = 100;
/** Much less than a day; a clock that is more than 15 minutes wrong signs nothing that the object store accepts. */
const FRESH_MS = 3_600_000;

export class BucketLog {
  /** Of the newest entry that is known here, and the SHA-256 in it. */
  sequence = 0;
  digits = '';

  /**
   * When what is known here was the whole log for certain. What is read or made behind it within an hour cannot lie where something
   * has been deleted.
   */
  private endMs = 0;
  /** The checkpoint that the log must lead to, while that is not certain. */
  private ahead: { sequence: number; digits: string } | null = null;

  constructor(
    private readonly reach: Reach,
    readonly storeId: string,
  ) {}

  private get isFresh(): boolean {
    const age = Date.now() - this.endMs;
    return age >= 0 && age < FRESH_MS;
  }

  private async newestCheckpoint(): Promise<{ sequence: number; digits: string } | null> {
    const newest = (await this.reach.request((bucket) => bucket.list('checkpoint/'))).at(-1);
    return newest === undefined ? null : parseCheckpointName(newest.name);
  }

  private leftBehind(): LeftBehindError {
    return new LeftBehindError(
      `the log of the bucket has gone on for long without this server, and what it does after entry ${this.sequence} counts for nothing: start it again`,
    );
  }

  /** The next entry, which becomes the newest that is known; null when there is none yet. */
  async next(): Promise<Entry | null> {
    const beginMs = Date.now();
    if (!this.isFresh && this.ahead === null) {
      this.ahead = (await this.newestCheckpoint()) ?? { sequence: 0, digits: '' };
      this.checkAhead();
    }
    const name = logObject(this.sequence + 1);
    const sealed = await this.reach.request((bucket) => bucket.get(name));
    if (sealed === null) {
      if (this.ahead !== null && this.ahead.sequence > this.sequence) throw this.leftBehind();
      this.ahead = null;
      this.endMs = beginMs;
      return null;
    }
    const { entry, digits } = parseEntry(name, sealed);
    if (entry.sequence !== this.sequence + 1 || entry.store !== this.storeId || entry.previous !== this.digits)
      throw new DamagedError(`the object ${name} of the bucket does not follow the entry before it`);
    this.sequence = entry.sequence;
    this.digits = digits;
    this.checkAhead();
    return entry;
  }

  /** At the checkpoint it shows whether what led there is the log. */
  private checkAhead(): void {
    if (this.ahead?.sequence === this.sequence && !this.digits.startsWith(this.ahead.digits)) throw this.leftBehind();
  }

  /**
   * Makes the next entry. False: somebody else has made it, or the end of the log is not known; call next() until it has no more. Does not
   * end before the outcome is known, for what was sent may still arrive; throws an UnreachableError only when the process is going to end.
   */
  async append({ server, timeMs, records, changes }: NewEntry): Promise<boolean> {
    if (!this.isFresh) return false;
    const sequence = this.sequence + 1;
    const previous = this.digits;
    const entry: Entry = {
      version: 1,
      store: this.storeId,
      sequence,
      previous,
      server,
      nonce: newNonce(),
      timeMs,
      records,
      changes,
    };
    const sealed = sealJson(entry);
    const name = logObject(sequence);
    let sentMs = 0;
    const made = await this.reach.request(async (bucket) => {
      sentMs = Date.now();
      if (await bucket.create(name, sealed)) return true;
      // There is one: ours, if an earlier attempt had arrived whose answer was lost.
      const there = await bucket.get(name);
      return there?.equals(sealed) === true;
    });
    if (!made) return false;
    // It took so long that others may have made this entry and deleted it since: then there is a checkpoint behind it.
    if (!this.isFresh && ((await this.newestCheckpoint())?.sequence ?? 0) >= sequence) throw this.leftBehind();
    this.endMs = sentMs;
    this.sequence = sequence;
    this.digits = sealed.toString('latin1', 0, 64);
    return true;
  }
}
