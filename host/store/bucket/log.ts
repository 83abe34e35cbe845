// The log of a bucket: one sequence of transactions that all servers agree on, each an object that exactly one of them has made.

import { DamagedError } from '../pack.js';
import { type Change, type Entry, logObject, newNonce, parseEntry, sealJson } from './format.js';
import type { Reach } from './reach.js';

export interface NewEntry {
  server: number;
  timeMs: number;
  records: Change[];
  changes: [key: string, list: string | null][];
}

/** The entry was made, but in a part of the log that had been deleted: this server has slept too long. */
export class LeftBehindError extends Error {
  override name = 'LeftBehindError';
}

export class BucketLog {
  /** Of the newest entry that is known here, and the SHA-256 in it. */
  sequence = 0;
  digits = '';

  constructor(
    private readonly reach: Reach,
    readonly storeId: string,
  ) {}

  /** The next entry, which becomes the newest that is known; null when there is none yet. */
  async next(): Promise<Entry | null> {
    const name = logObject(this.sequence + 1);
    const sealed = await this.reach.request((bucket) => bucket.get(name));
    if (sealed === null) return null;
    const { entry, digits } = parseEntry(name, sealed);
    if (entry.sequence !== this.sequence + 1 || entry.store !== this.storeId || entry.previous !== this.digits)
      throw new DamagedError(`the object ${name} of the bucket does not follow the entry before it`);
    this.sequence = entry.sequence;
    this.digits = digits;
    return entry;
  }

  /**
   * Makes the next entry. False: somebody else has made it, next() has it. Does not end before the outcome is known, for what was
   * sent may still arrive; throws an UnreachableError only when the process is going to end.
   */
  async append({ server, timeMs, records, changes }: NewEntry): Promise<boolean> {
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
    const made = await this.reach.request(async (bucket) => {
      if (await bucket.create(name, sealed)) return true;
      // There is one: ours, if an earlier attempt had arrived whose answer was lost.
      const there = await bucket.get(name);
      return there?.equals(sealed) === true;
    });
    if (!made) return false;
    if (sequence > 1) {
      const before = await this.reach.request((bucket) => bucket.get(logObject(sequence - 1), { from: 0, to: 64 }));
      if (before?.toString('latin1') !== previous)
        throw new LeftBehindError(
          `the log has gone on without this server and its entry ${sequence} counts for nothing`,
        );
    }
    this.sequence = sequence;
    this.digits = sealed.toString('latin1', 0, 64);
    return true;
  }
}
