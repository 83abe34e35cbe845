// Requests to a bucket that may not answer: tried again, less and less often, with one line in the log when it begins and when it ends.

import { Failure } from '../../failure.js';
import type { StoreLog } from '../store.js';
import { type Bucket, BucketError } from './s3.js';

const WAIT_FIRST_MS = 100;
const WAIT_MAX_MS = 10_000;
/** An outage is worth a line in the log when it has lasted so long; and another one after each of the second. */
const NOTICE_MS = 1000;
const REMIND_MS = 60_000;

/** The store is closing, or whoever asked does not want to wait any longer. */
export class UnreachableError extends Error {
  override name = 'UnreachableError';
}

export class Reach {
  /** Since when the bucket has not answered; null: it does. */
  private since: number | null = null;
  private saidAt: number | null = null;
  private stopping = false;
  private readonly sleepers = new Set<() => void>();

  constructor(
    readonly bucket: Bucket,
    private readonly log: StoreLog,
    private readonly waitMaxMs = WAIT_MAX_MS,
  ) {}

  get unreachableForMs(): number {
    return this.since === null ? 0 : performance.now() - this.since;
  }

  /** From now on a request that fails is not tried again. */
  stop(): void {
    this.stopping = true;
    for (const wake of this.sleepers) wake();
  }

  /** Until it has an answer; `budgetMs`: or for so long. What the object store refuses for good is an error at once. */
  async request<T>(ask: (bucket: Bucket) => Promise<T>, budgetMs = Number.POSITIVE_INFINITY): Promise<T> {
    const begin = performance.now();
    for (let waitMs = Math.min(WAIT_FIRST_MS, this.waitMaxMs); ; waitMs = Math.min(2 * waitMs, this.waitMaxMs)) {
      try {
        const answer = await within(ask(this.bucket), budgetMs - (performance.now() - begin));
        this.reached();
        return answer;
      } catch (error) {
        if (!(error instanceof BucketError)) throw error;
        this.failed(error);
        if (this.stopping) throw new UnreachableError(`the bucket cannot be reached: ${error.message}`);
        if (performance.now() - begin + waitMs > budgetMs)
          throw new UnreachableError(`the bucket did not answer in ${budgetMs} ms: ${error.message}`);
        await this.sleep(waitMs * (0.75 + Math.random() / 2));
      }
    }
  }

  private sleep(ms: number): Promise<void> {
    return new Promise((resolve) => {
      const done = () => {
        clearTimeout(timer);
        this.sleepers.delete(done);
        resolve();
      };
      const timer = setTimeout(done, ms);
      this.sleepers.add(done);
    });
  }

  private reached(): void {
    if (this.saidAt !== null) {
      const seconds = Math.round(this.unreachableForMs / 1000);
      this.log('info', `the bucket ${this.bucket.url} answers again, after ${seconds} s`);
    }
    this.since = null;
    this.saidAt = null;
  }

  private failed(error: BucketError): void {
    const now = performance.now();
    this.since ??= now;
    if (this.saidAt === null ? now - this.since < NOTICE_MS : now - this.saidAt < REMIND_MS) return;
    this.saidAt = now;
    this.log(
      'error',
      `the bucket ${this.bucket.url}: ${error.message}; what is on this disk is served, commits wait until it answers`,
    );
  }
}

/** The answer, or a BucketError when it takes longer. */
async function within<T>(answer: Promise<T>, ms: number): Promise<T> {
  if (ms === Number.POSITIVE_INFINITY) return answer;
  let timer: NodeJS.Timeout | undefined;
  const late = new Promise<never>((_resolve, reject) => {
    timer = setTimeout(() => reject(new BucketError(0, 'no answer in time', 'GET')), Math.max(ms, 0));
  });
  try {
    return await Promise.race([answer, late]);
  } finally {
    clearTimeout(timer);
  }
}

/** At a start: an answer now, or a failure that says what is wrong. */
export async function firstAnswer<T>(bucket: Bucket, ask: () => Promise<T>): Promise<T> {
  try {
    return await ask();
  } catch (error) {
    if (!(error instanceof BucketError)) throw error;
    const hint =
      error.code === 'NoSuchBucket'
        ? ' (make the bucket first)'
        : error.status === 403
          ? ' (the credentials, or their rights)'
          : error.status === 0
            ? ' (the address, or the network)'
            : '';
    throw new Failure(`cannot open the store in ${bucket.url}: ${error.message}${hint}`);
  }
}
