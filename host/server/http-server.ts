// The HTTP interface: who asks, may they, is the request sane; then the route's handler. Everything has a limit: headers, bodies, time,
// connections, requests a second, and how long a client may take for an answer.

import http from 'node:http';
import https from 'node:https';
import type net from 'node:net';
import type tls from 'node:tls';
import { Failure, failureText } from '../failure.js';
import { DamagedError } from '../store/pack.js';
import type { Store } from '../store/store.js';
import type { ByteRates } from './byte-rate.js';
import type { ServerConfig } from './config.js';
import { type Client, ExportError } from './export.js';
import {
  checkFields,
  describe,
  type HttpAnswer,
  HttpError,
  type HttpRequest,
  matchPath,
  type Route,
} from './http-route.js';
import type { ListenAddress } from './listen.js';
import { printable } from './nbd-negotiation.js';
import { RateLimit } from './rate.js';
import type { Log } from './server.js';

const JSON_MAX = 64 * 1024;
const URL_MAX = 2048;
const HEADERS_MAX = 16 * 1024;
const HEADERS_TIMEOUT_MS = 10_000;
/** A whole request, body included. */
const REQUEST_TIMEOUT_MS = 300_000;
const KEEP_ALIVE_MS = 15_000;
/** Tokens that an address may try. */
const TOKENS_PER_SECOND = 10;
/** Who has moved more than he may is made to wait for so long; who would have to wait longer is told to come again. */
const DEBT_WAIT_MS = 20_000;

export interface HttpServerOptions {
  store: Store;
  config: ServerConfig;
  /** Without it everybody may do everything, and the server must not be reachable from web pages. */
  configured: boolean;
  routes: Route[];
  log: Log;
  /** What each client may move in a second; missing: as much as it can. */
  byteRates?: ByteRates;
  debtWaitMs?: number;
}

export class HttpServer {
  readonly statistics = { requests: new Map<number, number>(), refused: 0 };
  address: ListenAddress | null = null;
  private readonly server: http.Server | https.Server;
  private readonly rate: RateLimit;
  private readonly guesses = new RateLimit(TOKENS_PER_SECOND);
  private readonly routes: Route[];

  constructor(private readonly options: HttpServerOptions) {
    const { config } = options;
    this.rate = new RateLimit(config.requestsPerSecond);
    const limits = {
      maxHeaderSize: HEADERS_MAX,
      headersTimeout: HEADERS_TIMEOUT_MS,
      requestTimeout: REQUEST_TIMEOUT_MS,
      keepAliveTimeout: KEEP_ALIVE_MS,
      connectionsCheckingInterval: 5000,
    };
    const listener = (request: http.IncomingMessage, response: http.ServerResponse) => this.answer(request, response);
    this.server =
      config.tls?.options.cert === undefined
        ? http.createServer(limits, listener)
        : https.createServer(
            { ...limits, ...config.tls.options, requestCert: config.tls.certificates, rejectUnauthorized: false },
            listener,
          );
    this.server.maxConnections = config.connectionsMax;
    this.server.on('clientError', (error: NodeJS.ErrnoException, socket) =>
      this.refuseNonsense(error, socket as net.Socket),
    );
    this.server.on('tlsClientError', (error: Error, socket: tls.TLSSocket) => {
      options.log('warn', `http: TLS with ${socket.remoteAddress ?? 'local'}: ${error.message.trim()}`);
    });
    this.routes = [...options.routes, this.description()];
  }

  private get encrypted(): boolean {
    return this.options.config.tls?.options.cert !== undefined;
  }

  async listen(address: ListenAddress): Promise<void> {
    const local = address.kind === 'unix' || ['127.0.0.1', '::1', 'localhost'].includes(address.host);
    if (!local && !this.encrypted)
      throw new Failure(
        'the HTTP interface outside this machine needs TLS: give tls.certificate and tls.key in --config',
      );
    await new Promise<void>((resolve, reject) => {
      this.server.once('error', (error) => reject(new Failure(`cannot listen for HTTP: ${error.message}`)));
      if (address.kind === 'unix') this.server.listen(address.path, resolve);
      else this.server.listen(address.port, address.host, resolve);
    });
    this.address =
      address.kind === 'unix' ? address : { ...address, port: (this.server.address() as net.AddressInfo).port };
  }

  get url(): string {
    const address = this.address!;
    if (address.kind === 'unix') return `http+unix:${address.path}`;
    return `http${this.encrypted ? 's' : ''}://${address.host.includes(':') ? `[${address.host}]` : address.host}:${address.port}`;
  }

  async close(): Promise<void> {
    const closed = new Promise<void>((resolve) => this.server.close(() => resolve()));
    this.server.closeAllConnections();
    await closed;
  }

  // --- one request

  private async answer(request: http.IncomingMessage, response: http.ServerResponse): Promise<void> {
    const address = request.socket.remoteAddress ?? 'local';
    let who = address;
    try {
      const client = this.clientOf(request, address);
      who = client.tls ? `${client.identity} at ${address}` : address;
      const answer = await this.dispatch(request, response, client);
      if (answer !== 'written') this.move(client, this.send(response, answer, request.method === 'HEAD'));
    } catch (error) {
      this.sendError(request, response, error, who);
    }
    const status = response.statusCode;
    this.statistics.requests.set(status, (this.statistics.requests.get(status) ?? 0) + 1);
    // A body that nobody has read would be taken for the next request.
    if (!request.complete) response.once('finish', () => request.destroy());
  }

  private clientOf(request: http.IncomingMessage, address: string): Client {
    const header = request.headers.authorization;
    if (header !== undefined) {
      this.spend(this.guesses, address);
      const token = /^Bearer ([A-Za-z0-9._~+/=-]{1,512})$/i.exec(header)?.[1];
      const identity = token === undefined ? null : this.options.config.identityOfToken(token);
      if (identity === null) {
        throw new HttpError(401, 'unauthorized', 'the Authorization header is no bearer token that is known', {
          'WWW-Authenticate': 'Bearer',
        });
      }
      this.guesses.forget(address);
      return { identity, address, tls: true };
    }
    const socket = request.socket as tls.TLSSocket;
    if (this.encrypted && socket.authorized) {
      const name = socket.getPeerCertificate().subject?.CN;
      if (typeof name === 'string' && name !== '') return { identity: name, address, tls: true };
    }
    return { identity: 'anonymous', address, tls: false };
  }

  private spend(limit: RateLimit, name: string): void {
    if (limit.take(name)) return;
    const message = `at most ${limit.perSecond} requests a second`;
    throw new HttpError(429, 'too_many_requests', message, { 'Retry-After': '1' });
  }

  /** Counts bytes that the client sends or gets. */
  private move(client: Client, bytes: number): number {
    return this.options.byteRates?.spend(client, bytes) ?? 0;
  }

  /** What the client has moved is paid for first, while nothing of the request but its head takes room here. */
  private async payDebt(client: Client): Promise<void> {
    const mostMs = this.options.debtWaitMs ?? DEBT_WAIT_MS;
    const deadline = performance.now() + mostMs;
    for (let waitMs = this.move(client, 0); waitMs > 0; waitMs = this.move(client, 0)) {
      if (performance.now() + waitMs > deadline) {
        const message = 'more bytes than this client may move in a second: come again later';
        throw new HttpError(429, 'too_many_bytes', message, { 'Retry-After': String(Math.ceil(waitMs / 1000)) });
      }
      await new Promise<void>((resolve) => setTimeout(resolve, waitMs));
    }
  }

  private async dispatch(
    request: http.IncomingMessage,
    response: http.ServerResponse,
    client: Client,
  ): Promise<HttpAnswer> {
    const { store, configured } = this.options;
    this.spend(this.rate, client.tls ? `identity ${client.identity}` : client.address);
    // A name that leads here from a web page (DNS rebinding) would give that page the rights of this machine.
    if (!configured && !isLocalName(request.headers.host)) {
      throw new HttpError(403, 'forbidden', 'without --config only requests to localhost are answered');
    }
    const { segments, query } = parseUrl(request.url ?? '');
    const method = request.method === 'HEAD' ? 'GET' : request.method;
    const matching = this.routes
      .map((route) => ({ route, path: matchPath(route, segments) }))
      .filter((it): it is { route: Route; path: Record<string, string> } => it.path !== null);
    if (matching.length === 0) throw new HttpError(404, 'not_found', 'there is no such address; see /v1/openapi.json');
    const found = matching.find(({ route }) => route.method === method);
    if (found === undefined) {
      const allow = matching.map(({ route }) => route.method).join(', ');
      throw new HttpError(405, 'method_not_allowed', `use ${allow}`, { Allow: allow });
    }
    const { route, path } = found;
    for (const name of Object.keys(query)) {
      if (!Object.hasOwn(route.query ?? {}, name))
        throw new HttpError(400, 'bad_request', `there is no parameter "${printable(name.slice(0, 64))}"`);
    }
    for (const [name, field] of Object.entries(route.query ?? {})) {
      if (field.required && query[name] === undefined)
        throw new HttpError(400, 'bad_request', `the parameter "${name}" is missing: ${field.about}`);
      if (field.type === 'integer' && query[name] !== undefined && !/^\d{1,15}$/.test(query[name]))
        throw new HttpError(400, 'bad_request', `the parameter "${name}" is not a number`);
    }
    this.authorize(route, path, client, store);
    await this.payDebt(client);
    const spend = (bytes: number) => this.move(client, bytes);
    const asked: HttpRequest = { client, path, query, body: {}, bytes: Buffer.alloc(0), raw: request, spend };
    if (route.bytesMax !== undefined) {
      asked.bytes = await readBody(request, route.bytesMax);
      spend(asked.bytes.length);
    } else if (route.body !== undefined) asked.body = checkFields(await readJson(request), route.body);
    if (method !== 'GET') {
      const what = Object.keys(asked.body).length > 0 ? ` ${JSON.stringify(asked.body).slice(0, 200)}` : '';
      this.options.log('info', `http: ${client.identity} at ${client.address}: ${method} ${request.url}${what}`);
    }
    return route.handle(asked, response);
  }

  private authorize(route: Route, path: Record<string, string>, client: Client, store: Store): void {
    if (route.right === null) return;
    const { access } = this.options.config;
    if (path.image === undefined || route.scope === 'store') {
      if (!access.allows(client, '*', route.right)) throw this.forbidden(client);
      return;
    }
    const image = path.image.split('/')[0];
    const mayRead = access.allows(client, image, 'read');
    // The same words for what is not there and what is not allowed.
    if (!mayRead || (!store.has(path.image) && route.scope !== 'new image')) {
      if (!client.tls && !mayRead) throw this.forbidden(client);
      throw new HttpError(404, 'not_found', 'there is no such image, or you may not read it');
    }
    if (!access.allows(client, image, route.right)) throw this.forbidden(client);
  }

  private forbidden(client: Client): HttpError {
    if (client.tls) return new HttpError(403, 'forbidden', `${client.identity} has no right to do this`);
    return new HttpError(401, 'unauthorized', 'give a bearer token', { 'WWW-Authenticate': 'Bearer' });
  }

  /** Returns how many bytes the answer has. */
  private send(response: http.ServerResponse, answer: Exclude<HttpAnswer, 'written'>, headOnly: boolean): number {
    response.statusCode = answer.status ?? 200;
    response.setHeader('Cache-Control', 'no-store');
    response.setHeader('X-Content-Type-Options', 'nosniff');
    if (!('json' in answer) && !('bytes' in answer)) {
      response.end();
      return 0;
    }
    const bytes = 'json' in answer ? Buffer.from(`${JSON.stringify(answer.json)}\n`) : Buffer.from(answer.bytes);
    response.setHeader('Content-Type', 'json' in answer ? 'application/json' : answer.type);
    response.setHeader('Content-Length', bytes.length);
    response.end(headOnly ? undefined : bytes);
    return headOnly ? 0 : bytes.length;
  }

  private sendError(request: http.IncomingMessage, response: http.ServerResponse, error: unknown, who: string): void {
    const known = toHttpError(error);
    const about = `http: ${who}: ${request.method} ${printable((request.url ?? '').slice(0, 200))}`;
    if (known.status >= 500) this.options.log('error', `${about}: ${failureText(error)}`);
    else if (known.status === 401 || known.status === 403 || known.status === 429) {
      this.statistics.refused++;
      this.options.log('warn', `${about}: ${known.message}`);
    }
    if (response.headersSent) {
      response.destroy();
      return;
    }
    for (const [name, value] of Object.entries(known.headers)) response.setHeader(name, value);
    const json = { error: { code: known.code, message: known.message } };
    this.send(response, { status: known.status, json }, request.method === 'HEAD');
  }

  /** What is not HTTP, too large or too slow. */
  private refuseNonsense(error: NodeJS.ErrnoException, socket: net.Socket): void {
    this.statistics.refused++;
    this.options.log('warn', `http: ${socket.remoteAddress ?? 'local'}: ${error.code ?? error.message}`);
    if (!socket.writable) return;
    const [status, code] =
      error.code === 'HPE_HEADER_OVERFLOW'
        ? ['431 Request Header Fields Too Large', 'too_large']
        : error.code === 'ERR_HTTP_REQUEST_TIMEOUT'
          ? ['408 Request Timeout', 'timeout']
          : ['400 Bad Request', 'bad_request'];
    const body = `${JSON.stringify({ error: { code, message: status.slice(4) } })}\n`;
    socket.end(
      `HTTP/1.1 ${status}\r\nContent-Type: application/json\r\nContent-Length: ${body.length}\r\nConnection: close\r\n\r\n${body}`,
    );
  }

  private description(): Route {
    const route: Route = {
      method: 'GET',
      path: '/v1/openapi.json',
      about: 'this description',
      right: null,
      answers: 'OpenAPI 3.1',
      handle: async () => ({ json: describe(this.routes) }),
    };
    return route;
  }
}

function toHttpError(error: unknown): HttpError {
  if (error instanceof HttpError) return error;
  if (error instanceof Failure) return new HttpError(409, 'refused', error.message);
  if (error instanceof ExportError && error.errno === 'ENOSPC') return new HttpError(507, 'full', error.message);
  if (error instanceof DamagedError) return new HttpError(500, 'damaged', error.message);
  return new HttpError(500, 'internal', 'the server failed: see its log');
}

/** Path segments, decoded one by one: an encoded slash stays inside its segment. */
function parseUrl(url: string): { segments: string[]; query: Record<string, string> } {
  if (url.length > URL_MAX) throw new HttpError(414, 'too_large', `the address is longer than ${URL_MAX} characters`);
  const [path, rest] = url.split('?', 2);
  if (!path.startsWith('/')) throw new HttpError(400, 'bad_request', 'the address does not begin with /');
  try {
    const segments = path.slice(1).split('/').map(decodeURIComponent);
    const query: Record<string, string> = Object.create(null);
    for (const [name, value] of new URLSearchParams(rest ?? '')) {
      if (name in query) throw new HttpError(400, 'bad_request', 'a parameter is given twice');
      query[name] = value;
    }
    return { segments, query };
  } catch (error) {
    if (error instanceof HttpError) throw error;
    throw new HttpError(400, 'bad_request', 'the address is not valid percent-encoded UTF-8');
  }
}

async function readJson(request: http.IncomingMessage): Promise<unknown> {
  // Also keeps web pages of other sites out: they cannot send this type without being asked about it first.
  if (!/^application\/json\s*(;|$)/i.test(request.headers['content-type'] ?? ''))
    throw new HttpError(415, 'bad_type', 'send Content-Type: application/json');
  const bytes = await readBody(request, JSON_MAX);
  if (bytes.length === 0) return {};
  try {
    return JSON.parse(bytes.toString('utf8'));
  } catch {
    throw new HttpError(400, 'bad_request', 'the body is not JSON');
  }
}

async function readBody(request: http.IncomingMessage, most: number): Promise<Buffer> {
  const tooLarge = () =>
    new HttpError(413, 'too_large', `the body is longer than ${most} bytes`, { Connection: 'close' });
  if (Number(request.headers['content-length'] ?? 0) > most) throw tooLarge();
  const chunks: Buffer[] = [];
  let length = 0;
  for await (const chunk of request) {
    length += (chunk as Buffer).length;
    if (length > most) throw tooLarge();
    chunks.push(chunk as Buffer);
  }
  return Buffer.concat(chunks);
}

function isLocalName(host: string | undefined): boolean {
  if (host === undefined) return true;
  const name = host.replace(/:\d+$/, '');
  return ['localhost', '127.0.0.1', '[::1]', ''].includes(name);
}
