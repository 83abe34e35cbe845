// One bucket of an S3-compatible object store: the six requests that a store needs, signed (AWS Signature Version 4, by aws4fetch), sent
// over connections that are kept, and with a time after which no answer is an answer.
//
// Nothing is tried again in here. Who asks knows what a request that may or may not have been carried out means to him. But a GET, which changes
// nothing, is asked a second time, over a connection of its own, when nothing has been heard for a moment; the first answer counts. A connection
// or a thread of the object store that has got stuck costs that moment then, and not the time after which a request is given up.

import { createHash } from 'node:crypto';
import http from 'node:http';
import https from 'node:https';
import { AwsV4Signer } from 'aws4fetch';
import { SaxesParser } from 'saxes';

export interface BucketSettings {
  /** http(s)://HOST:PORT/BUCKET, and perhaps /PREFIX: path style, which every S3-compatible store has. */
  url: string;
  region: string;
  accessKeyId: string;
  secretAccessKey: string;
  /** Who has signed the certificate of the object store (PEM); undefined: the authorities that Node knows. */
  ca?: Buffer;
  /** A connection that says nothing for so long is given up. */
  timeoutMs?: number;
  /** A GET of which nothing is heard for so long is sent again meanwhile. */
  secondMs?: number;
}

/** The object store has refused a request, or given no answer (status 0): it may have been carried out. */
export class BucketError extends Error {
  override name = 'BucketError';
  constructor(
    readonly status: number,
    readonly code: string,
    what: string,
  ) {
    super(status === 0 ? `${what}: ${code}` : `${what}: ${status} ${code}`);
  }
}

export interface ObjectInfo {
  name: string;
  size: number;
  etag: string;
  /** By the object store's clock. */
  modifiedMs: number;
}

/** A request on its way. */
interface Sent {
  answer: Promise<Answer>;
  /** The answer has begun to come. */
  hasBegun: boolean;
  abort(): void;
}

interface Answer {
  status: number;
  headers: http.IncomingHttpHeaders;
  bytes: Buffer;
}

const TIMEOUT_MS = 15_000;
const SOCKETS_MAX = 16;
/** Far longer than an object store takes that is well (some 100 ms under load), far shorter than people notice. */
const SECOND_MS = 2000;

export class Bucket {
  readonly statistics = { requests: 0, seconds: 0, failures: 0, bytesUp: 0, bytesDown: 0 };
  /** Where it is, for people: without what is secret. */
  readonly url: string;
  private readonly base: URL;
  private readonly prefix: string;
  private readonly bucketPath: string;
  private readonly agent: http.Agent;
  /** Keeps no connection: each request gets a new one. */
  private readonly freshAgent: http.Agent;
  private readonly keyCache = new Map<string, ArrayBuffer>();

  constructor(private readonly settings: BucketSettings) {
    this.base = new URL(settings.url);
    const [bucket, ...rest] = this.base.pathname.split('/').filter((part) => part !== '');
    this.bucketPath = `/${bucket}`;
    this.prefix = rest.map((part) => `${part}/`).join('');
    this.url = `${this.base.origin}${this.bucketPath}/${this.prefix}`;
    const options = { keepAlive: true, maxSockets: SOCKETS_MAX };
    const agent = (own: http.AgentOptions) =>
      this.base.protocol === 'https:' ? new https.Agent({ ...own, ca: settings.ca }) : new http.Agent(own);
    this.agent = agent(options);
    this.freshAgent = agent({ ...options, keepAlive: false });
  }

  close(): void {
    this.agent.destroy();
    this.freshAgent.destroy();
  }

  async get(name: string, range: { from: number; to: number } | null = null): Promise<Buffer | null> {
    const headers: Record<string, string> = range === null ? {} : { range: `bytes=${range.from}-${range.to - 1}` };
    const answer = await this.request('GET', name, { headers });
    if (answer.status === 404 && codeOf(answer) !== 'NoSuchBucket') return null;
    // A range behind the end of an object: nothing of what was wanted is there.
    if (answer.status === 416) return Buffer.alloc(0);
    if (answer.status !== 200 && answer.status !== 206) throw refused(answer, `GET ${name}`);
    // A server that knows no ranges answers with everything.
    return range !== null && answer.status === 200 ? answer.bytes.subarray(range.from, range.to) : answer.bytes;
  }

  async put(name: string, bytes: Buffer): Promise<void> {
    const answer = await this.request('PUT', name, { body: bytes });
    if (answer.status !== 200) throw refused(answer, `PUT ${name}`);
  }

  /** Makes an object that must not be there yet: exactly one of those who try gets true. After an error it may be there. */
  async create(name: string, bytes: Buffer): Promise<boolean> {
    const answer = await this.request('PUT', name, { body: bytes, headers: { 'if-none-match': '*' } });
    if (answer.status === 412) return false;
    if (answer.status !== 200) throw refused(answer, `PUT ${name}`);
    return true;
  }

  async remove(name: string): Promise<void> {
    const answer = await this.request('DELETE', name, {});
    if (answer.status !== 204 && answer.status !== 200 && answer.status !== 404)
      throw refused(answer, `DELETE ${name}`);
  }

  /** The objects whose names begin with `prefix`, in the order of their names; `after`: only those behind it. */
  async list(prefix: string, after = '', most = Number.POSITIVE_INFINITY): Promise<ObjectInfo[]> {
    const found: ObjectInfo[] = [];
    for (let token: string | null = null; ; ) {
      const query: Record<string, string> = { 'list-type': '2', prefix: this.prefix + prefix };
      if (after !== '') query['start-after'] = this.prefix + after;
      if (token !== null) query['continuation-token'] = token;
      const answer = await this.request('GET', null, { query });
      if (answer.status !== 200) throw refused(answer, `LIST ${prefix}`);
      const page = parseListing(answer.bytes.toString());
      for (const object of page.objects) found.push({ ...object, name: object.name.slice(this.prefix.length) });
      token = page.next;
      if (token === null || found.length >= most) return found;
    }
  }

  /** Makes the bucket unless it is there: for tests and first steps. */
  async make(): Promise<void> {
    const answer = await this.request('PUT', null, {});
    if (answer.status !== 200 && answer.status !== 409) throw refused(answer, 'PUT bucket');
  }

  private async request(
    method: string,
    name: string | null,
    {
      headers = {},
      query = {},
      body = null,
    }: { headers?: Record<string, string>; query?: Record<string, string>; body?: Buffer | null },
  ): Promise<Answer> {
    const path = name === null ? this.bucketPath : `${this.bucketPath}/${this.prefix}${name}`;
    const url = new URL(path, this.base.origin);
    for (const [key, value] of Object.entries(query)) url.searchParams.set(key, value);
    const { accessKeyId, secretAccessKey, region } = this.settings;
    const signer = new AwsV4Signer({
      method,
      url: url.toString(),
      headers: {
        ...headers,
        'x-amz-content-sha256': createHash('sha256')
          .update(body ?? '')
          .digest('hex'),
        ...(body === null ? {} : { 'content-md5': createHash('md5').update(body).digest('base64') }),
      },
      accessKeyId,
      secretAccessKey,
      region,
      service: 's3',
      cache: this.keyCache,
    });
    const signed = await signer.sign();
    this.statistics.requests++;
    this.statistics.bytesUp += body?.length ?? 0;
    try {
      const send = (agent: http.Agent) =>
        this.send(agent, method, signed.url, Object.fromEntries(signed.headers), body);
      const answer = await (method === 'GET' ? this.firstOfTwo(send) : send(this.agent).answer);
      this.statistics.bytesDown += answer.bytes.length;
      if (answer.status >= 500) this.statistics.failures++;
      return answer;
    } catch (error) {
      this.statistics.failures++;
      const { code, message } = error as NodeJS.ErrnoException;
      throw new BucketError(0, code ?? message, `${method} ${name ?? 'bucket'}`);
    }
  }

  private firstOfTwo(send: (agent: http.Agent) => Sent): Promise<Answer> {
    return new Promise((resolve, reject) => {
      const sent: Sent[] = [];
      let open = 0;
      const start = (agent: http.Agent) => {
        const mine = send(agent);
        sent.push(mine);
        open++;
        mine.answer.then(
          (answer) => {
            clearTimeout(timer);
            for (const other of sent) if (other !== mine) other.abort();
            resolve(answer);
          },
          (error: unknown) => {
            // What fails before the second is sent is tried again by who asks.
            if (--open > 0) return;
            clearTimeout(timer);
            reject(error);
          },
        );
      };
      const timer = setTimeout(() => {
        if (sent[0].hasBegun) return;
        this.statistics.seconds++;
        start(this.freshAgent);
      }, this.settings.secondMs ?? SECOND_MS);
      start(this.agent);
    });
  }

  private send(
    agent: http.Agent,
    method: string,
    url: URL,
    headers: Record<string, string>,
    body: Buffer | null,
  ): Sent {
    const timeoutMs = this.settings.timeoutMs ?? TIMEOUT_MS;
    const options = {
      method,
      agent,
      timeout: timeoutMs,
      headers: { ...headers, 'content-length': String(body?.length ?? 0) },
    };
    const request = (url.protocol === 'https:' ? https : http).request(url, options);
    const answer = new Promise<Answer>((resolve, reject) => {
      request.on('response', (response) => {
        sent.hasBegun = true;
        const pieces: Buffer[] = [];
        response.on('data', (piece: Buffer) => pieces.push(piece));
        response.on('error', reject);
        response.on('aborted', () => reject(new Error('the answer was cut off')));
        response.on('end', () => {
          if (!response.complete) reject(new Error('the answer was cut off'));
          else resolve({ status: response.statusCode!, headers: response.headers, bytes: Buffer.concat(pieces) });
        });
      });
      request.on('timeout', () => request.destroy(new Error(`no answer for ${timeoutMs} ms`)));
      request.on('error', reject);
      request.end(body ?? undefined);
    });
    const sent: Sent = { answer, hasBegun: false, abort: () => request.destroy() };
    return sent;
  }
}

function refused(answer: Answer, what: string): BucketError {
  return new BucketError(answer.status, codeOf(answer), what);
}

/** <Error><Code>…</Code></Error>, as far as there is one. */
function codeOf(answer: Answer): string {
  return /<Code>([A-Za-z0-9]{1,64})<\/Code>/.exec(answer.bytes.toString('latin1', 0, 4096))?.[1] ?? '';
}

function parseListing(text: string): { objects: ObjectInfo[]; next: string | null } {
  const objects: ObjectInfo[] = [];
  const path: string[] = [];
  let next: string | null = null;
  let object: ObjectInfo = { name: '', size: 0, etag: '', modifiedMs: 0 };
  let value = '';
  const parser = new SaxesParser();
  parser.on('opentag', ({ name }) => {
    path.push(name);
    value = '';
    if (name === 'Contents') object = { name: '', size: 0, etag: '', modifiedMs: 0 };
  });
  parser.on('text', (part) => {
    value += part;
  });
  parser.on('closetag', ({ name }) => {
    path.pop();
    if (name === 'Contents') objects.push(object);
    else if (name === 'NextContinuationToken') next = value;
    else if (path.at(-1) !== 'Contents') return;
    else if (name === 'Key') object.name = value;
    else if (name === 'Size') object.size = Number(value);
    else if (name === 'ETag') object.etag = value.replaceAll('"', '');
    else if (name === 'LastModified') object.modifiedMs = Date.parse(value);
  });
  parser.write(text).close();
  return { objects, next };
}
