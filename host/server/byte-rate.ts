// How many bytes a second a client may move, in both directions together, over all of its connections: a token bucket for each client that
// holds one second's worth and may go into debt. Whoever is in debt waits until it is paid.

import type { Client } from './export.js';

/** Clients that are counted at once; the one that was first seen longest ago is forgotten. */
const BUCKETS_MAX = 10_000;

export class ByteRates {
  readonly statistics = { waits: 0 };
  private readonly buckets = new Map<string, { bytes: number; atMs: number }>();

  /** `perSecondOf`: the client's rate, null for none. */
  constructor(
    private readonly perSecondOf: (client: Client) => number | null,
    private readonly nowMs: () => number = () => performance.now(),
  ) {}

  /** These bytes have been moved; returns for how many milliseconds nothing more may be. */
  spend(client: Client, bytes: number): number {
    const perSecond = this.perSecondOf(client);
    if (perSecond === null) return 0;
    const name = client.tls ? `identity ${client.identity}` : client.address;
    const now = this.nowMs();
    let bucket = this.buckets.get(name);
    if (bucket === undefined) {
      if (this.buckets.size >= BUCKETS_MAX)
        for (const oldest of this.buckets.keys()) if (this.buckets.delete(oldest)) break;
      bucket = { bytes: perSecond, atMs: now };
      this.buckets.set(name, bucket);
    }
    bucket.bytes = Math.min(perSecond, bucket.bytes + ((now - bucket.atMs) / 1000) * perSecond) - bytes;
    bucket.atMs = now;
    if (bucket.bytes >= 0) return 0;
    this.statistics.waits++;
    return (-bucket.bytes / perSecond) * 1000;
  }
}
