// `ribbon serve`: the image server.

import type { Command } from 'commander';
import { failureText } from '../failure.js';
import { discardAttached } from '../server/attach.js';
import { bucketOptions } from '../server/bucket-config.js';
import { ByteRates } from '../server/byte-rate.js';
import { OPEN_CONFIG, readConfig } from '../server/config.js';
import { ControlServer } from '../server/control.js';
import { apiRoutes } from '../server/http-api.js';
import { metricsRoute } from '../server/http-metrics.js';
import { replicationRoutes } from '../server/http-replication.js';
import { HttpServer } from '../server/http-server.js';
import { type ListenAddress, parseListen } from '../server/listen.js';
import { SecondWriters } from '../server/second-writer.js';
import { ImageServer, type Log } from '../server/server.js';
import { collectGarbage } from '../store/garbage.js';
import type { Retention } from '../store/retention.js';
import { Store } from '../store/store.js';

export const DEFAULT_STORE = '.ribbon/store';
const DEFAULT_LISTEN = 'tcp:127.0.0.1:10809';
const UPKEEP_MS = 3_600_000;
/** A server that is to end waits so long for a bucket that does not answer. */
const BUCKET_LAST_MS = 5000;

interface Options {
  store: string;
  listen?: string[];
  config?: string;
  http?: string;
}

export function register(program: Command): void {
  program
    .command('serve')
    .description('serve the images of a store to any NBD client')
    .option('--store <folder>', 'the image store; with a bucket, a cache of it that may be lost', DEFAULT_STORE)
    .option('--listen <address...>', `tcp:HOST:PORT or unix:PATH; several are allowed (default: ${DEFAULT_LISTEN})`)
    .option('--http <address>', 'the HTTP interface: tcp:HOST:PORT or unix:PATH')
    .option(
      '--config <file>',
      'identities, rights, TLS, limits, retention, a bucket of an S3-compatible object store for the images: docs/server.md',
    )
    .action(serve);
}

async function serve(options: Options): Promise<void> {
  const listen = (options.listen ?? [DEFAULT_LISTEN]).map(parseListen);
  const httpAddress = options.http === undefined ? null : parseListen(options.http);
  const config = options.config === undefined ? OPEN_CONFIG : readConfig(options.config);
  const log: Log = (level, message) => process.stderr.write(`${new Date().toISOString()} ${level} ${message}\n`);
  const { bucket } = config;
  const store = await Store.open(options.store, {
    log,
    access: config.access,
    ...(bucket === null ? {} : { bucket: bucketOptions(bucket) }),
  });
  const { tls, connectionsMax, connectionsPerClientMax, connectionsPerSecond } = config;
  const exports = config.branchSecondWriter ? new SecondWriters(store) : store;
  // One for both: a client may move so much, by whatever protocol.
  const byteRates = new ByteRates(config.bytesPerSecondOf);
  const server = new ImageServer({
    exports,
    listen,
    log,
    tls,
    connectionsMax,
    connectionsPerClientMax,
    connectionsPerSecond,
    byteRates,
    writesTogether: config.writesTogether,
  });
  const control = new ControlServer(store, log);
  const routes = [
    ...apiRoutes(store, config),
    ...replicationRoutes(store, config),
    metricsRoute({ store, server, http: () => http }),
  ];
  const configured = options.config !== undefined;
  const http: HttpServer = new HttpServer({ store, config, configured, routes, log, byteRates });
  try {
    await server.listen();
    await control.listen(options.store);
    if (httpAddress !== null) await http.listen(httpAddress);
    warnIfOpen(server.addresses, options.config, log);
    for (const address of server.addresses) {
      process.stdout.write(
        `listening on ${address.kind === 'unix' ? address.path : `${address.host}:${address.port}`}\n`,
      );
    }
    if (httpAddress !== null) process.stdout.write(`HTTP on ${http.url}\n`);
    const upkeep = setInterval(() => {
      tidy(store, config.retention, log).catch((error: unknown) => log('error', `upkeep: ${failureText(error)}`));
    }, UPKEEP_MS);
    await new Promise<void>((resolve) => {
      process.once('SIGINT', () => resolve());
      process.once('SIGTERM', () => resolve());
    });
    clearInterval(upkeep);
  } finally {
    store.shared?.giveUpSoon(BUCKET_LAST_MS);
    await control.close();
    if (http.address !== null) await http.close();
    await discardAttached(store);
    await server.close();
    await store.close();
  }
}

async function tidy(store: Store, retention: Retention, log: Log): Promise<void> {
  const forgotten = await store.images.applyRetention(retention);
  if (forgotten === 0 && store.shared?.hasRetired !== true) return;
  const { bytesBefore, bytesAfter } = await collectGarbage(store);
  log('info', `upkeep: ${forgotten} generations forgotten, ${bytesBefore - bytesAfter} bytes freed`);
}

function warnIfOpen(addresses: ListenAddress[], config: string | undefined, log: Log): void {
  if (config !== undefined) return;
  for (const address of addresses) {
    if (address.kind === 'tcp' && !['127.0.0.1', '::1', 'localhost'].includes(address.host)) {
      log(
        'warn',
        `${address.host}:${address.port} is open to everybody who can reach it: give --config FILE with identities`,
      );
    }
  }
}
