// The image server of a simulation, as a process of its own: it must not compete with the PC for one thread. The parent
// says over the IPC channel what to serve (image-server.ts); when the channel closes, everything ends.

import { failureText } from '../failure.js';
import { ImageServer } from '../server/server.js';
import { RawFiles } from '../store/raw-file.js';
import { Store } from '../store/store.js';
import type { ImageServerOptions, ImageServerReport } from './image-server.js';

let server: ImageServer | null = null;
let close: () => Promise<void> | void = () => {};

process.on('message', (message: ImageServerOptions | 'stop') => {
  if (message === 'stop') void stop();
  else void serve(message);
});
process.on('disconnect', () => void stop());
// Ctrl-C reaches every process of the terminal: the parent decides when this one ends.
process.on('SIGINT', () => {});
process.on('SIGTERM', () => {});

async function serve(options: ImageServerOptions): Promise<void> {
  try {
    const exports = 'files' in options.source ? openFiles(options.source.files) : await openStore(options.source);
    server = new ImageServer({
      exports,
      listen: [{ kind: 'unix', path: options.socket }],
      log: (level, message) => {
        if (level !== 'info') report({ kind: 'log', message });
      },
    });
    await server.listen();
    report({ kind: 'ready' });
  } catch (error) {
    report({ kind: 'failed', message: failureText(error) });
  }
}

function openFiles(files: Record<string, string>): RawFiles {
  const exports = new RawFiles(files);
  exports.onCommit = (image, generation) => report({ kind: 'commit', image, generation });
  close = () => exports.close();
  return exports;
}

async function openStore(source: { store: string; importMissing: Record<string, string> }): Promise<Store> {
  const store = await Store.open(source.store);
  close = () => store.close();
  for (const [name, file] of Object.entries(source.importMissing)) {
    if (!store.has(name)) {
      await store.importRaw(name, file, (done, total) =>
        report({ kind: 'progress', percent: (100 * done) / total, what: `image "${name}"` }),
      );
    }
  }
  for (const { name, generation } of store.info()) report({ kind: 'commit', image: name, generation });
  store.on('commit', (image, generation) => report({ kind: 'commit', image, generation }));
  return store;
}

function report(message: ImageServerReport): void {
  if (process.connected) process.send?.(message);
}

async function stop(): Promise<void> {
  await server?.close();
  await close();
  process.exit(0);
}
