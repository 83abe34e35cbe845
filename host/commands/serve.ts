// `ribbon serve`: the image server.

import type { Command } from 'commander';
import { parseListen } from '../server/listen.js';
import { ImageServer } from '../server/server.js';
import { Store } from '../store/store.js';

export const DEFAULT_STORE = '.ribbon/store';
const DEFAULT_LISTEN = 'tcp:127.0.0.1:10809';

interface Options {
  store: string;
  listen?: string[];
}

export function register(program: Command): void {
  program
    .command('serve')
    .description('serve the images of a store to any NBD client')
    .option('--store <folder>', 'the image store', DEFAULT_STORE)
    .option('--listen <address...>', `tcp:HOST:PORT or unix:PATH; several are allowed (default: ${DEFAULT_LISTEN})`)
    .action(serve);
}

async function serve(options: Options): Promise<void> {
  const listen = (options.listen ?? [DEFAULT_LISTEN]).map(parseListen);
  const store = await Store.open(options.store);
  const server = new ImageServer({
    exports: store,
    listen,
    log: (level, message) => process.stderr.write(`${new Date().toISOString()} ${level} ${message}\n`),
  });
  await server.listen();
  for (const address of server.addresses) {
    process.stdout.write(
      `listening on ${address.kind === 'unix' ? address.path : `${address.host}:${address.port}`}\n`,
    );
  }
  await new Promise<void>((resolve) => {
    process.once('SIGINT', () => resolve());
    process.once('SIGTERM', () => resolve());
  });
  await server.close();
  await store.close();
}
