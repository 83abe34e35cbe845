// The routes by which stores exchange generations (SPEC.md "Replication"): a tree is walked from its root, and only what the other side
// has not is sent. What is read is named by its place in a generation that may be read, so a right to one image opens no other. Who
// pushes learns whether the store has a block, so that needs the right to read every image.

import { isLineName } from '../store/names.js';
import {
  BATCH_BLOBS_MAX,
  BATCH_SIZE_MAX,
  BlobSink,
  blobOf,
  checkCards,
  checkRecord,
  decodeBatch,
  encodeBatch,
  hashAt,
} from '../store/replica.js';
import type { Store } from '../store/store.js';
import { isZeroHash } from '../store/tree.js';
import type { ServerConfig } from './config.js';
import { HttpError, type HttpRequest, type Route } from './http-route.js';

/** A push that nobody goes on with lets go of what it has stored. */
const IDLE_MS = 300_000;
export const HASHES_MAX = 4096;
const BINARY = 'application/octet-stream';

interface Push {
  sink: BlobSink;
  timer: NodeJS.Timeout;
}

export function replicationRoutes(store: Store, config: ServerConfig): Route[] {
  const pushes = new Map<string, Push>();
  const sinkOf = (request: HttpRequest): BlobSink => {
    if (!config.access.allows(request.client, '*', 'read'))
      throw new HttpError(403, 'forbidden', `to push, ${request.client.identity} must be allowed to read every image`);
    const { image } = request.path;
    if (!isLineName(image)) throw new HttpError(400, 'bad_request', 'that is no name of an image or branch');
    const key = `${request.client.identity} ${image}`;
    let push = pushes.get(key);
    if (push === undefined) {
      const sink = new BlobSink(store);
      const end = () => {
        sink.close();
        pushes.delete(key);
      };
      push = { sink, timer: setTimeout(end, IDLE_MS).unref() };
      pushes.set(key, push);
    }
    push.timer.refresh();
    return push.sink;
  };
  return [
    {
      method: 'GET',
      path: '/v1/images/{image}/replica',
      about: 'all generations that are kept, with their roots, oldest first: for pull',
      right: 'read',
      answers: '{"store","generations","tags","cards"}',
      handle: async ({ path }) => {
        const line = store.line(path.image);
        await store.digest(line);
        const { tags, cards } = line.record;
        const generations = store.generations(path.image);
        return { json: { store: store.storeId.toString('hex'), generations, tags, cards: cards ?? {} } };
      },
    },
    {
      method: 'POST',
      path: '/v1/images/{image}/blobs/read',
      about: 'blocks or tree nodes of a generation, by their places (6 bytes each, least significant first)',
      right: 'read',
      query: {
        generation: { type: 'integer', required: true, about: 'the generation' },
        level: { type: 'integer', required: true, about: '0 for blocks, 1 for the nodes above them, …' },
      },
      bytesMax: BATCH_BLOBS_MAX * 6,
      answers: 'a batch; an empty blob where there are zeroes',
      handle: async ({ path, query, bytes }) => {
        const record = await store.needGeneration(path.image, Number(query.generation));
        if (bytes.length % 6 !== 0) throw new HttpError(400, 'bad_request', 'places are 6 bytes each');
        const root = Buffer.from(record.root, 'hex');
        const blobs: Buffer[] = [];
        for (let at = 0; at < bytes.length; at += 6) {
          const hash = hashAt(store, root, record.size, Number(query.level) - 1, bytes.readUIntLE(at, 6));
          if (hash === null) throw new HttpError(400, 'bad_request', 'there is no such place in the tree');
          blobs.push(isZeroHash(hash) ? Buffer.alloc(0) : await blobOf(store, hash));
        }
        return { type: BINARY, bytes: await encodeBatch(blobs) };
      },
    },
    {
      method: 'POST',
      path: '/v1/images/{image}/blobs/have',
      about: 'which of these blocks or nodes (32 bytes each) need not be sent',
      right: 'write',
      scope: 'new image',
      bytesMax: HASHES_MAX * 32,
      answers: 'a byte for each: 1 when it is there',
      handle: async (request) => {
        const { bytes } = request;
        if (bytes.length % 32 !== 0) throw new HttpError(400, 'bad_request', 'hashes are 32 bytes each');
        const hashes = Array.from({ length: bytes.length / 32 }, (_, index) =>
          bytes.subarray(index * 32, index * 32 + 32),
        );
        const have = await sinkOf(request).have(hashes);
        return { type: BINARY, bytes: Buffer.from(have.map((it) => (it ? 1 : 0))) };
      },
    },
    {
      method: 'POST',
      path: '/v1/images/{image}/blobs',
      about: 'store a batch of blocks or nodes; children before their parents',
      right: 'write',
      scope: 'new image',
      query: { level: { type: 'integer', required: true, about: '0 for blocks, 1 for the nodes above them, …' } },
      bytesMax: BATCH_SIZE_MAX,
      answers: 'nothing; it is durable',
      handle: async (request) => {
        const sink = sinkOf(request);
        store.checkWritable();
        await sink.put(Number(request.query.level) - 1, await decodeBatch(request.bytes));
        return { status: 204 };
      },
    },
    {
      method: 'POST',
      path: '/v1/images/{image}/generations',
      about: 'take over a generation whose tree has been sent',
      right: 'write',
      scope: 'new image',
      body: {
        generation: { type: 'object', required: true, about: 'its record, as /replica has it' },
        expected: { type: 'string', about: 'id of the newest generation here; missing: a new image' },
        cards: { type: 'object', about: 'what is known of the cards that write to it' },
      },
      answers: 'nothing; it is durable',
      handle: async (request) => {
        sinkOf(request);
        const { generation, expected, cards } = request.body;
        const { image } = request.path;
        if (expected == null && !config.access.allows(request.client, image.split('/')[0], 'administer'))
          throw new HttpError(403, 'forbidden', `${request.client.identity} may not make "${image}"`);
        const record = checkRecord(generation, store.nowMs());
        const known = cards == null ? undefined : checkCards(cards);
        await store.images.adopt(image, record, (expected as string | null) ?? null, known, request.client.identity);
        return { status: 204 };
      },
    },
  ];
}
