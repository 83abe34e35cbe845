// The image server of a simulation, as a process of its own: it must not compete with the PC for one thread. The parent
// tells it over the IPC channel what to do (image-server.ts); when the channel closes, everything ends.

import { failureText } from '../failure.js';
import {
  type CardHello,
  type CardPlace,
  type Client,
  type ExportListing,
  ExportRefused,
  type Exports,
  type OpenExport,
} from '../server/export.js';
import { ImageServer } from '../server/server.js';
import { RawFiles } from '../store/raw-file.js';
import { Store } from '../store/store.js';
import type { ServerReport, ServerRequest } from './image-server.js';

let store: Store | null = null;
let files: RawFiles | null = null;
let server: ImageServer | null = null;

/** Raw files by their export names, then the images of the store. */
const EXPORTS: Exports = {
  list(client: Client): ExportListing[] {
    return [...(files?.list() ?? []), ...(store?.list(client) ?? [])];
  },
  open(name: string, client: Client): OpenExport | Promise<OpenExport> {
    if (files?.has(name) || store === null) return (files ?? new RawFiles({})).open(name, client);
    return store.open(name, client);
  },
  async placeCard(name: string, client: Client, hello: CardHello): Promise<CardPlace> {
    if (files?.has(name) || store === null) throw new ExportRefused('plain', 'a raw file knows nothing of cards');
    return store.placeCard(name, client, hello);
  },
};

const REQUESTS: {
  [Kind in ServerRequest['kind']]: (request: Extract<ServerRequest, { kind: Kind }>) => Promise<unknown>;
} = {
  async openStore({ folder }) {
    store = await Store.open(folder);
    store.on('commit', (image, generation) => report({ kind: 'commit', image, generation }));
    for (const { name, generation } of store.info()) report({ kind: 'commit', image: name, generation });
    return store.info().map(({ name }) => name);
  },
  async openFiles(request) {
    files = new RawFiles(request.files);
    files.onCommit = (image, generation) => report({ kind: 'commit', image, generation });
  },
  async importRaw({ name, file }) {
    await store?.images.importRaw(name, file, (done, total) =>
      report({ kind: 'progress', percent: (100 * done) / total }),
    );
  },
  async listen({ socket }) {
    server = new ImageServer({
      exports: EXPORTS,
      listen: [{ kind: 'unix', path: socket }],
      log: (level, message) => {
        if (level !== 'info') report({ kind: 'log', message });
      },
    });
    await server.listen();
  },
  async stop() {
    await server?.close();
    files?.close();
    await store?.close();
    process.disconnect();
  },
};

process.on('message', (request: ServerRequest) => {
  const carryOut = REQUESTS[request.kind] as (request: ServerRequest) => Promise<unknown>;
  carryOut(request).then(
    (result) => report({ kind: 'done', result }),
    (error: unknown) => report({ kind: 'failed', message: failureText(error) }),
  );
});
process.on('disconnect', () => process.exit(0));
// Ctrl-C reaches every process of the terminal: the parent decides when this one ends.
process.on('SIGINT', () => {});
process.on('SIGTERM', () => {});

function report(message: ServerReport): void {
  if (process.connected) process.send?.(message);
}
