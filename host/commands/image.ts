// `ribbon image`: the master images of a store.

import type { Command } from 'commander';
import { Failure } from '../failure.js';
import { Store } from '../store/store.js';
import { DEFAULT_STORE } from './serve.js';

interface Options {
  store: string;
}

export function register(program: Command): void {
  const image = program.command('image').description('create, import, export and list master images');
  const verb = (name: string, description: string) =>
    image.command(name).description(description).option('--store <folder>', 'the image store', DEFAULT_STORE);
  verb('ls', 'list the images').action(async (options: Options) =>
    withStore(options, async (store) => {
      for (const { name, size, generation } of store.info()) process.stdout.write(`${name}\t${size}\t@${generation}\n`);
    }),
  );
  verb('create', 'make an empty image')
    .argument('<name>')
    .argument('<size>', 'bytes, or with K, M, G, T')
    .action(async (name: string, size: string, options: Options) =>
      withStore(options, async (store) => store.create(name, parseSize(size))),
    );
  verb('import', 'make a raw disk image file an image')
    .argument('<name>')
    .argument('<file>')
    .action(async (name: string, file: string, options: Options) =>
      withStore(options, async (store) => store.importRaw(name, file)),
    );
  verb('export', 'write an image to a raw file')
    .argument('<name>')
    .argument('<file>')
    .action(async (name: string, file: string, options: Options) =>
      withStore(options, async (store) => store.exportRaw(name, null, file)),
    );
}

async function withStore(options: Options, work: (store: Store) => Promise<unknown> | unknown): Promise<void> {
  const store = await Store.open(options.store);
  try {
    await work(store);
  } finally {
    await store.close();
  }
}

/** `512`, `64K`, `10M`, `2G`, `1T` as bytes. */
export function parseSize(text: string): number {
  const match = /^(\d{1,15})([KMGT]?)$/i.exec(text);
  const size = match === null ? Number.NaN : Number(match[1]) * 1024 ** ' KMGT'.indexOf(match[2].toUpperCase() || ' ');
  if (!Number.isSafeInteger(size) || size === 0)
    throw new Failure(`"${text}" is not a size: write bytes, or 64K, 10M, 2G, 1T`);
  return size;
}
