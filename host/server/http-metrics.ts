// GET /metrics in Prometheus' text format.

import type { Store } from '../store/store.js';
import type { Route } from './http-route.js';
import type { HttpServer } from './http-server.js';
import type { ImageServer } from './server.js';

type Kind = 'counter' | 'gauge';
type Sample = [labels: Record<string, string>, value: number];

export interface Measured {
  store: Store;
  server: ImageServer;
  http: () => HttpServer;
}

export function metricsRoute(measured: Measured): Route {
  return {
    method: 'GET',
    path: '/metrics',
    about: 'figures for Prometheus',
    right: 'read',
    scope: 'store',
    answers: 'the figures',
    handle: async () => ({ type: 'text/plain; version=0.0.4; charset=utf-8', bytes: metricsText(measured) }),
  };
}

export function metricsText({ store, server, http }: Measured): string {
  const lines: string[] = [];
  const metric = (name: string, kind: Kind, help: string, ...samples: Sample[]) => {
    lines.push(`# HELP ${name} ${help}`, `# TYPE ${name} ${kind}`);
    for (const [labels, value] of samples) {
      const text = Object.entries(labels).map(([key, it]) => `${key}="${it.replace(/[\\"\n]/g, '\\$&')}"`);
      lines.push(`${name}${text.length === 0 ? '' : `{${text.join(',')}}`} ${value}`);
    }
  };
  const images = store.info();
  const byImage = (value: (it: (typeof images)[number]) => number): Sample[] =>
    images.map((it) => [{ image: it.name }, value(it)]);
  metric('ribbon_images', 'gauge', 'Images and branches.', [{}, images.length]);
  metric('ribbon_image_generation', 'counter', 'Newest generation.', ...byImage((it) => it.generation));
  metric('ribbon_image_size_bytes', 'gauge', 'Size of the disk.', ...byImage((it) => it.size));
  metric('ribbon_image_writers', 'gauge', 'Connections with the role of the writer.', ...byImage((it) => it.writers));
  metric('ribbon_image_readers', 'gauge', 'Other connections.', ...byImage((it) => it.readers));
  metric('ribbon_commits_total', 'counter', 'Commits since the start.', [{}, store.statistics.commits]);
  metric('ribbon_digests_total', 'counter', 'Digests of the journal since the start.', [{}, store.statistics.digests]);
  metric('ribbon_journal_bytes', 'gauge', 'Committed or being written, not digested yet.', [{}, store.journal.bytes]);
  const { blocks, newBlobs, newBytes } = store.builder.statistics;
  metric('ribbon_blocks_digested_total', 'counter', 'Blocks hashed since the start.', [{}, blocks]);
  metric('ribbon_blobs_stored_total', 'counter', 'Of these and the tree nodes: new ones.', [{}, newBlobs]);
  metric('ribbon_blob_bytes_stored_total', 'counter', 'Their bytes before compression.', [{}, newBytes]);
  metric('ribbon_blobs', 'gauge', 'Blocks and tree nodes in the store.', [{}, store.index.blobCount()]);
  metric('ribbon_packs', 'gauge', 'Pack files.', [{}, store.packs.numbers().length]);
  const free = store.freeBytes();
  if (free !== null) metric('ribbon_store_free_bytes', 'gauge', 'Free space of the file system.', [{}, free]);
  const { shared } = store;
  if (shared !== null) {
    const { requests, failures, bytesUp, bytesDown } = shared.reach.bucket.statistics;
    metric('ribbon_bucket_requests_total', 'counter', 'Requests to the object store.', [{}, requests]);
    metric('ribbon_bucket_failures_total', 'counter', 'Of these: no answer, or an error of the server.', [
      {},
      failures,
    ]);
    metric(
      'ribbon_bucket_bytes_total',
      'counter',
      'Bytes to and from it.',
      [{ direction: 'up' }, bytesUp],
      [{ direction: 'down' }, bytesDown],
    );
    metric('ribbon_bucket_unreachable_seconds', 'gauge', 'How long it has not answered.', [
      {},
      shared.reach.unreachableForMs / 1000,
    ]);
    metric('ribbon_bucket_log_entries', 'counter', 'Entries of its log that are applied here.', [
      {},
      shared.appliedSequence,
    ]);
    metric('ribbon_bucket_conflicts_total', 'counter', 'Transactions that another server forestalled.', [
      {},
      shared.statistics.conflicts,
    ]);
    metric('ribbon_bucket_damaged_total', 'counter', 'Answers that did not verify.', [
      {},
      shared.cache.statistics.damaged,
    ]);
    metric('ribbon_cache_bytes', 'gauge', 'Blocks of the bucket on this disk.', [{}, shared.cache.bytes]);
    metric('ribbon_cache_evictions_total', 'counter', 'Packs that left the cache.', [
      {},
      shared.cache.statistics.evictions,
    ]);
  }
  metric('ribbon_nbd_connections', 'gauge', 'NBD connections.', [{}, server.connections.size]);
  metric('ribbon_nbd_connections_total', 'counter', 'NBD connections since the start.', [{}, server.connectionsTotal]);
  const { requests, refused } = http().statistics;
  const byStatus = [...requests].map(([status, count]): Sample => [{ status: String(status) }, count]);
  metric('ribbon_http_requests_total', 'counter', 'HTTP requests answered.', ...byStatus);
  metric('ribbon_http_refused_total', 'counter', 'HTTP requests refused: rights, rate, nonsense.', [{}, refused]);
  const { rss } = process.memoryUsage();
  const { user, system } = process.cpuUsage();
  metric('process_resident_memory_bytes', 'gauge', 'Memory of the server.', [{}, rss]);
  metric('process_cpu_seconds_total', 'counter', 'Processor time.', [{}, (user + system) / 1e6]);
  metric('process_start_time_seconds', 'gauge', 'When it started.', [
    {},
    Math.round(Date.now() / 1000 - process.uptime()),
  ]);
  return `${lines.join('\n')}\n`;
}
