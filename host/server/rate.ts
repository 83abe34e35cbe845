// How often somebody may do something: a token bucket for each name, filled at a rate and never above one second's worth.

/** Names that are counted at once; the one that was first seen longest ago is forgotten. */
const BUCKETS_MAX = 10_000;

export class RateLimit {
  private readonly buckets = new Map<string, { tokens: number; atMs: number }>();

  constructor(
    readonly perSecond: number,
    private readonly nowMs: () => number = () => performance.now(),
  ) {}

  /** False: too fast. */
  take(name: string): boolean {
    const now = this.nowMs();
    let bucket = this.buckets.get(name);
    if (bucket === undefined) {
      if (this.buckets.size >= BUCKETS_MAX)
        for (const oldest of this.buckets.keys()) if (this.buckets.delete(oldest)) break;
      bucket = { tokens: this.perSecond, atMs: now };
      this.buckets.set(name, bucket);
    }
    bucket.tokens = Math.min(this.perSecond, bucket.tokens + ((now - bucket.atMs) / 1000) * this.perSecond);
    bucket.atMs = now;
    if (bucket.tokens < 1) return false;
    bucket.tokens--;
    return true;
  }

  forget(name: string): void {
    this.buckets.delete(name);
  }
}
