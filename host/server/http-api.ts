// The routes of the HTTP interface for reading and administering images.

import type http from 'node:http';
import { adminOperations } from '../store/admin.js';
import { parseExportName } from '../store/names.js';
import type { LineInfo, Store } from '../store/store.js';
import { TreeView } from '../store/tree.js';
import type { ServerConfig } from './config.js';
import { type Field, HttpError, type HttpRequest, type Route } from './http-route.js';

const COPY_SIZE = 256 * 1024;
/** A client that takes nothing for this long loses the answer. */
const STUCK_MS = 60_000;
const RANGES_MAX = 100_000;

const AT: Field = { type: 'string', about: 'generation or tag; default: the newest' };
const NAME: Field = { type: 'string', required: true, about: 'the new name' };
const FROM_AT: Field = { type: 'generation', about: 'generation or tag; default: the newest' };

export function apiRoutes(store: Store, config: ServerConfig): Route[] {
  const admin = ({ client }: HttpRequest) => adminOperations(store, client.identity);
  const named = (line: string, at: unknown) => (at === undefined || at === null ? line : `${line}@${at}`);
  const mayRead = (request: HttpRequest, name: string): void => {
    const line = parseExportName(name)?.line;
    if (line === undefined || !store.has(line) || !config.access.allows(request.client, line.split('/')[0], 'read'))
      throw new HttpError(404, 'not_found', 'there is no such image, or you may not read it');
  };
  const mayAdminister = (request: HttpRequest, name: unknown): string => {
    if (!config.access.allows(request.client, String(name).split('/')[0], 'administer'))
      throw new HttpError(403, 'forbidden', `${request.client.identity} may not make "${String(name).slice(0, 64)}"`);
    return String(name);
  };
  return [
    {
      method: 'GET',
      path: '/v1/health',
      about: 'does the server answer?',
      right: null,
      answers: '{"status":"ok"}',
      handle: async () => ({ json: { status: 'ok' } }),
    },
    {
      method: 'GET',
      path: '/v1/images',
      about: 'images and branches that you may read',
      right: null,
      answers: 'a list of images',
      handle: async ({ client }) => ({
        json: store
          .info()
          .filter((it) => config.access.allows(client, it.name.split('/')[0], 'read'))
          .map(infoJson),
      }),
    },
    {
      method: 'POST',
      path: '/v1/images',
      about: 'make an image of zeroes',
      right: null,
      body: { name: NAME, size: { type: 'integer', required: true, about: 'bytes' } },
      answers: 'the image',
      handle: async (request) => {
        const name = mayAdminister(request, request.body.name);
        await admin(request).create(name, request.body.size as number);
        return { status: 201, json: infoJson(store.infoOf(name)) };
      },
    },
    {
      method: 'GET',
      path: '/v1/images/{image}',
      about: 'one image or branch',
      right: 'read',
      answers: 'the image',
      handle: async ({ path }) => ({ json: infoJson(store.infoOf(path.image)) }),
    },
    {
      method: 'PATCH',
      path: '/v1/images/{image}',
      about: 'rename',
      right: 'administer',
      body: { name: NAME },
      answers: 'the image',
      handle: async (request) => {
        const name = mayAdminister(request, request.body.name);
        await admin(request).rename(request.path.image, name);
        return { json: infoJson(store.infoOf(name)) };
      },
    },
    {
      method: 'DELETE',
      path: '/v1/images/{image}',
      about: 'remove an image or branch',
      right: 'administer',
      query: { force: { type: 'boolean', about: 'true: also with tagged generations' } },
      answers: 'nothing',
      handle: async (request) => {
        await admin(request).rm(request.path.image, request.query.force === 'true');
        return { status: 204 };
      },
    },
    {
      method: 'GET',
      path: '/v1/images/{image}/generations',
      about: 'the generations that are kept, newest first',
      right: 'read',
      query: {
        before: { type: 'integer', about: 'only generations before this one' },
        limit: { type: 'integer', about: 'at most so many; default and maximum 1000' },
      },
      answers: 'a list of generations',
      handle: async (request) => {
        const limit = Math.min(Number(request.query.limit ?? 1000), 1000);
        const before = Number(request.query.before ?? Number.POSITIVE_INFINITY);
        const all = (await admin(request).log(request.path.image)).reverse();
        return { json: all.filter((it) => it.generation < before).slice(0, limit) };
      },
    },
    {
      method: 'GET',
      path: '/v1/images/{image}/diff',
      about: 'byte ranges in which two generations differ',
      right: 'read',
      query: { from: { type: 'string', required: true, about: 'generation or tag' }, to: AT },
      answers: '{"ranges":[{"offset","length"}],"complete"}',
      handle: async (request) => {
        const { image } = request.path;
        const { from, to } = request.query;
        const ranges = await admin(request).diff(named(image, from), named(image, to));
        return { json: { ranges: ranges.slice(0, RANGES_MAX), complete: ranges.length <= RANGES_MAX } };
      },
    },
    {
      method: 'GET',
      path: '/v1/images/{image}/content',
      about: 'the bytes of a generation; one Range is understood',
      right: 'read',
      query: { at: AT },
      answers: 'the bytes',
      handle: async (request, response) => {
        await sendContent(store, request, response);
        return 'written';
      },
    },
    {
      method: 'GET',
      path: '/v1/merge-base',
      about: 'the newest generation that two come from',
      right: null,
      query: {
        a: { type: 'string', required: true, about: 'IMAGE[/BRANCH][@GENERATION]' },
        b: { type: 'string', required: true, about: 'the same' },
      },
      answers: '{"line","generation","kept"} or null',
      handle: async (request) => {
        const { a, b } = request.query;
        mayRead(request, a);
        mayRead(request, b);
        const base = await admin(request).mergeBase(a, b);
        const readable = base?.line != null && config.access.allows(request.client, base.line.split('/')[0], 'read');
        return { json: base === null ? null : { ...base, line: readable ? base.line : null } };
      },
    },
    {
      method: 'POST',
      path: '/v1/images/{image}/clone',
      about: 'a new image that begins as a generation of this one',
      right: 'read',
      body: { name: NAME, at: FROM_AT },
      answers: 'the new image',
      handle: async (request) => {
        const name = mayAdminister(request, request.body.name);
        await admin(request).clone(named(request.path.image, request.body.at), name);
        return { status: 201, json: infoJson(store.infoOf(name)) };
      },
    },
    {
      method: 'POST',
      path: '/v1/images/{image}/branches',
      about: 'a branch that begins as a generation of this image',
      right: 'administer',
      body: { name: NAME, at: FROM_AT },
      answers: 'the branch',
      handle: async (request) => {
        const { image } = request.path;
        await admin(request).branch(named(image, request.body.at), request.body.name as string);
        return { status: 201, json: infoJson(store.infoOf(`${image}/${request.body.name}`)) };
      },
    },
    {
      method: 'PUT',
      path: '/v1/images/{image}/tags/{tag}',
      about: 'give a generation a name; it is kept for ever',
      right: 'administer',
      body: { at: FROM_AT },
      answers: 'the image',
      handle: async (request) => {
        const { image, tag } = request.path;
        await admin(request).snapshot(named(image, request.body.at), tag);
        return { json: infoJson(store.infoOf(image)) };
      },
    },
    {
      method: 'DELETE',
      path: '/v1/images/{image}/tags/{tag}',
      about: 'take the name away again',
      right: 'administer',
      answers: 'nothing',
      handle: async (request) => {
        await admin(request).untag(request.path.image, request.path.tag);
        return { status: 204 };
      },
    },
    {
      method: 'POST',
      path: '/v1/images/{image}/rollback',
      about: 'make the content of an old generation the next one',
      right: 'administer',
      body: { to: { type: 'generation', required: true, about: 'generation or tag' } },
      answers: '{"generation"}',
      handle: async (request) => {
        const generation = await admin(request).rollback(named(request.path.image, request.body.to));
        return { json: { generation } };
      },
    },
    {
      method: 'POST',
      path: '/v1/verify',
      about: 'read and hash everything again; answers when it is done',
      right: 'administer',
      scope: 'store',
      body: { images: { type: 'strings', about: 'only these' } },
      answers: 'what was found',
      handle: async (request) => ({ json: await admin(request).verify((request.body.images as string[]) ?? []) }),
    },
    {
      method: 'POST',
      path: '/v1/gc',
      about: 'forget generations by the retention rules and give unused space back',
      right: 'administer',
      scope: 'store',
      body: { retention: { type: 'string', about: 'SPACING:AGE,…' } },
      answers: 'what was freed',
      handle: async (request) => ({ json: await admin(request).gc((request.body.retention as string) ?? null) }),
    },
  ];
}

function infoJson({ name, size, generation, createdMs, origin, tags, writer, readers }: LineInfo): object {
  return { name, size, generation, created_ms: createdMs, origin, tags, writer, readers };
}

async function sendContent(store: Store, request: HttpRequest, response: http.ServerResponse): Promise<void> {
  const at = request.query.at;
  const generation = at === undefined ? null : /^\d{1,15}$/.test(at) ? Number(at) : at;
  const record = await store.needGeneration(request.path.image, generation);
  const { first, end, partial } = rangeOf(request.raw.headers.range, record.size);
  response.statusCode = partial ? 206 : 200;
  response.setHeader('Content-Type', 'application/octet-stream');
  response.setHeader('Content-Length', end - first);
  response.setHeader('Accept-Ranges', 'bytes');
  response.setHeader('Cache-Control', 'no-store');
  response.setHeader('ETag', `"${record.root}"`);
  response.setHeader('X-Ribbon-Generation', record.generation);
  if (partial) response.setHeader('Content-Range', `bytes ${first}-${end - 1}/${record.size}`);
  if (request.raw.method === 'HEAD') {
    response.end();
    return;
  }
  const view = new TreeView(store.nodes, Buffer.from(record.root, 'hex'), record.size);
  const stuck = setTimeout(() => response.destroy(), STUCK_MS);
  try {
    for (let position = first; position < end && !response.destroyed; ) {
      const buffer = Buffer.allocUnsafe(Math.min(COPY_SIZE, end - position));
      await view.fetch(position, buffer.length);
      await view.read(position, buffer, 0, buffer.length);
      position += buffer.length;
      for (let waitMs = request.spend(buffer.length); waitMs > 0 && !response.destroyed; waitMs = request.spend(0)) {
        stuck.refresh();
        await new Promise<void>((resolve) => setTimeout(resolve, Math.min(waitMs, STUCK_MS / 2)));
      }
      stuck.refresh();
      // The client's pace: nothing more is read before it has taken this.
      if (!response.write(buffer)) await drained(response);
      else await new Promise<void>((resolve) => setImmediate(resolve));
    }
    response.end();
  } finally {
    clearTimeout(stuck);
    view.close();
  }
}

/** Resolved when the client has taken what was written, or is gone. */
function drained(response: http.ServerResponse): Promise<void> {
  return new Promise((resolve) => {
    const done = () => {
      response.off('drain', done);
      response.off('close', done);
      resolve();
    };
    response.on('drain', done);
    response.on('close', done);
  });
}

/** `bytes=A-B`, `bytes=A-` or `bytes=-N`. What is no such range is ignored, as HTTP wants it. */
function rangeOf(header: string | undefined, size: number): { first: number; end: number; partial: boolean } {
  const match = /^bytes=(\d{0,15})-(\d{0,15})$/.exec(header ?? '');
  if (match === null || (match[1] === '' && match[2] === '')) return { first: 0, end: size, partial: false };
  const first = match[1] === '' ? Math.max(0, size - Number(match[2])) : Number(match[1]);
  const end = match[1] === '' || match[2] === '' ? size : Math.min(size, Number(match[2]) + 1);
  if (first >= end)
    throw new HttpError(416, 'bad_range', `the image has ${size} bytes`, { 'Content-Range': `bytes */${size}` });
  return { first, end, partial: true };
}
