// `ribbon image push` and `pull`: brings the generations of a line from one store to another over the other's HTTP interface.
//
// Both walk the tree from the root down to what the receiver has, then store from there upwards. What breaks off goes on at the next try:
// what has arrived is not sent again. Every blob is checked against its hash by the receiver.

import fs from 'node:fs';
import http from 'node:http';
import https from 'node:https';
import { Failure } from '../failure.js';
import type { Progress } from '../store/images.js';
import { type GenerationRecord, idOf } from '../store/line.js';
import {
  BATCH_BLOBS_MAX,
  BATCH_SIZE_MAX,
  BLOCK_LEVEL,
  BlobSink,
  blobOf,
  checkCards,
  checkRecord,
  decodeBatch,
  encodeBatch,
} from '../store/replica.js';
import { sha256 } from '../store/sha256.js';
import type { Store } from '../store/store.js';
import { decodeNode, FANOUT, isZeroHash, levelsOf, type Node } from '../store/tree.js';
import { HASHES_MAX } from './http-replication.js';

export interface RemoteOptions {
  /** The file holds the bearer token. */
  tokenFile: string | null;
  /** PEM; the authority that has signed the other server's certificate. */
  caFile: string | null;
}

export interface ReplicaReport {
  generations: number;
  blobs: number;
  bytes: number;
}

const TIMEOUT_MS = 60_000;
const TRIES = 5;
/** A server that limits what may be moved says when to come again; in all, it is listened to for so long for one request. */
const PATIENCE_SEC = 3600;
const ANSWER_MAX = 256 * 1024 * 1024;

/** Sends what the other server has not of a line. `url` ends in the name there. */
export async function push(
  store: Store,
  name: string,
  url: string,
  options: RemoteOptions,
  onProgress: Progress = () => {},
): Promise<ReplicaReport> {
  const remote = new Remote(url, options);
  const line = store.line(name);
  await store.digest(line);
  const mine = store.generations(name);
  const theirs = await remote.replica();
  const last = theirs?.generations.at(-1);
  const noted = theirs === null ? undefined : line.record.replicas?.[theirs.store];
  const common = last === undefined ? 0 : commonOf(mine, last, noted, `${url} has`, name);
  const report: ReplicaReport = { generations: 0, blobs: 0, bytes: 0 };
  const send = mine.filter((it) => it.generation > common);
  let expected = last === undefined ? null : idOf(last);
  for (const [index, record] of send.entries()) {
    const live = { root: Buffer.from(record.root, 'hex'), size: record.size };
    store.liveRoots.add(live);
    try {
      await new Sender(store, remote, report).send(live.root, levelsOf(record.size) - 1);
      const cards = index === send.length - 1 && line.record.head === record.generation ? line.record.cards : undefined;
      await remote.adopt({ ...record, id: idOf(record) }, expected, cards);
    } finally {
      store.liveRoots.delete(live);
    }
    expected = idOf(record);
    report.generations++;
    onProgress(index + 1, send.length);
  }
  const id = theirs?.store ?? (await remote.replica())!.store;
  await note(store, name, id, mine.at(-1)!);
  for (const [tag, generation] of Object.entries(line.record.tags)) {
    if (theirs?.tags[tag] !== generation) await remote.tag(tag, generation);
  }
  return report;
}

/** Fetches what is missing here of the other server's line. */
export async function pull(
  store: Store,
  name: string,
  url: string,
  options: RemoteOptions,
  who: string,
  onProgress: Progress = () => {},
): Promise<ReplicaReport> {
  const remote = new Remote(url, options);
  const theirs = await remote.replica();
  if (theirs === null) throw new Failure(`${url}: there is no such image, or you may not read it`);
  if (theirs.generations.length === 0) throw new Failure(`${url} has no generations`);
  const records = theirs.generations.map((it) => checkRecord(it, store.nowMs()));
  let expected: string | null = null;
  let common = 0;
  if (store.has(name)) {
    const line = store.line(name);
    await store.digest(line);
    const newest = store.generationRecord(line.record.id, line.record.head)!;
    common = commonOf(records, newest, line.record.replicas?.[theirs.store], `${name} has`, url);
    expected = idOf(newest);
  }
  const report: ReplicaReport = { generations: 0, blobs: 0, bytes: 0 };
  const fetch = records.filter((it) => it.generation > common);
  const sink = new BlobSink(store);
  try {
    for (const [index, record] of fetch.entries()) {
      await new Fetcher(sink, remote, record.generation, report).fetch(
        Buffer.from(record.root, 'hex'),
        levelsOf(record.size) - 1,
      );
      const cards = index === fetch.length - 1 ? checkCards(theirs.cards) : undefined;
      await store.images.adopt(name, record, expected, cards, who);
      expected = idOf(record);
      report.generations++;
      onProgress(index + 1, fetch.length);
    }
  } finally {
    sink.close();
  }
  await note(store, name, theirs.store, records.at(-1)!);
  for (const [tag, generation] of Object.entries(theirs.tags)) {
    const line = store.line(name);
    if (line.record.tags[tag] !== generation && store.findGeneration(line, generation) !== null)
      await store.images.tag(name, tag, generation);
  }
  return report;
}

/** The newest generation of the receiver, when the sender's history goes on from it. */
function commonOf(
  sender: GenerationRecord[],
  newest: GenerationRecord,
  noted: { generation: number; id: string } | undefined,
  receiver: string,
  from: string,
): number {
  const same = sender.find((it) => it.generation === newest.generation);
  if (same !== undefined && idOf(same) === idOf(newest)) return newest.generation;
  // The sender may have forgotten it since; it was the newest of both when they last met.
  if (same === undefined && noted?.id === idOf(newest)) return newest.generation;
  if (newest.generation > sender.at(-1)!.generation)
    throw new Failure(
      `${receiver} generation ${newest.generation}, ${from} only ${sender.at(-1)!.generation}: the other direction?`,
    );
  throw new Failure(
    `${receiver} another generation ${newest.generation} than ${from}: both have been changed; nothing was done. ` +
      'Take another name for one of them (a branch, or rename), then compare with diff',
  );
}

async function note(store: Store, name: string, other: string, record: GenerationRecord): Promise<void> {
  await store.images.changeLine(store.line(name), (it) => {
    it.replicas = { ...it.replicas, [other]: { generation: record.generation, id: idOf(record) } };
  });
}

class Sender {
  constructor(
    private readonly store: Store,
    private readonly remote: Remote,
    private readonly report: ReplicaReport,
  ) {}

  async send(root: Buffer, level: number): Promise<void> {
    if ((await this.missing([root])).length === 0) return;
    await this.below([root], level);
    await this.put(level, [root]);
  }

  /** Sends what is missing below nodes that are missing. */
  private async below(hashes: Buffer[], level: number): Promise<void> {
    const nodes = hashes.map((hash) => this.store.nodes.get(hash));
    if (level === 0) {
      await this.put(BLOCK_LEVEL, await this.missing(nodes.flatMap(childrenOf)));
      return;
    }
    for (const node of nodes) {
      const missing = await this.missing(childrenOf(node));
      // All leaves of a node at once (16 MiB of image); above that one after the other, so that little is held.
      if (level === 1) await this.below(missing, 0);
      else for (const child of missing) await this.below([child], level - 1);
      await this.put(level - 1, missing);
    }
  }

  private async missing(hashes: Buffer[]): Promise<Buffer[]> {
    const asked = distinct(hashes);
    const missing: Buffer[] = [];
    for (let at = 0; at < asked.length; at += HASHES_MAX) {
      const part = asked.slice(at, at + HASHES_MAX);
      const have = await this.remote.have(part);
      missing.push(...part.filter((_, index) => have[index] !== 1));
    }
    return missing;
  }

  private async put(level: number, hashes: Buffer[]): Promise<void> {
    for (let at = 0; at < hashes.length; at += BATCH_BLOBS_MAX) {
      const blobs: Buffer[] = [];
      for (const hash of hashes.slice(at, at + BATCH_BLOBS_MAX)) blobs.push(await blobOf(this.store, hash));
      this.report.blobs += blobs.length;
      this.report.bytes += await this.remote.put(level, blobs);
    }
  }
}

/** A blob of the other side, by its place. */
interface Wanted {
  index: number;
  hash: Buffer;
}

class Fetcher {
  constructor(
    private readonly sink: BlobSink,
    private readonly remote: Remote,
    private readonly generation: number,
    private readonly report: ReplicaReport,
  ) {}

  async fetch(root: Buffer, level: number): Promise<void> {
    const wanted = await this.missing([{ index: 0, hash: root }]);
    if (wanted.length === 0) return;
    const [bytes] = await this.read(level, wanted);
    await this.below([{ index: 0, node: decodeNode(bytes) }], level);
    await this.sink.put(level, [bytes]);
  }

  private async below(nodes: { index: number; node: Node }[], level: number): Promise<void> {
    const wanted = nodes.map(({ index, node }) =>
      Array.from({ length: FANOUT }, (_, child) => ({ index: index * FANOUT + child, hash: node.child(child) })),
    );
    if (level === 0) {
      const missing = await this.missing(wanted.flat());
      for (let at = 0; at < missing.length; at += BATCH_BLOBS_MAX)
        await this.sink.put(BLOCK_LEVEL, await this.read(BLOCK_LEVEL, missing.slice(at, at + BATCH_BLOBS_MAX)));
      return;
    }
    for (const children of wanted) {
      const missing = await this.missing(children);
      if (missing.length === 0) continue;
      const blobs = await this.read(level - 1, missing);
      const below = blobs.map((bytes, at) => ({ index: missing[at].index, node: decodeNode(bytes) }));
      if (level === 1) await this.below(below, 0);
      else for (const child of below) await this.below([child], level - 1);
      await this.sink.put(level - 1, blobs);
    }
  }

  private async missing(wanted: Wanted[]): Promise<Wanted[]> {
    const asked = distinctBy(wanted, ({ hash }) => hash);
    const have = await this.sink.have(asked.map(({ hash }) => hash));
    return asked.filter((_, index) => !have[index]);
  }

  private async read(level: number, wanted: Wanted[]): Promise<Buffer[]> {
    const { blobs, bytes } = await this.remote.read(
      this.generation,
      level,
      wanted.map(({ index }) => index),
    );
    this.report.blobs += blobs.length;
    this.report.bytes += bytes;
    for (const [at, blob] of blobs.entries()) {
      if (!sha256(blob).equals(wanted[at].hash))
        throw new Failure(
          `what the other server sent for ${wanted[at].hash.toString('hex')} has another hash: it is damaged there or on the way`,
        );
    }
    return blobs;
  }
}

function childrenOf(node: Node): Buffer[] {
  return Array.from({ length: FANOUT }, (_, child) => node.child(child));
}

function distinct(hashes: Buffer[]): Buffer[] {
  return distinctBy(hashes, (hash) => hash);
}

function distinctBy<T>(all: T[], hashOf: (it: T) => Buffer): T[] {
  const found = new Map<string, T>();
  for (const it of all) if (!isZeroHash(hashOf(it))) found.set(hashOf(it).toString('latin1'), it);
  return [...found.values()];
}

interface RemoteLine {
  store: string;
  generations: GenerationRecord[];
  tags: Record<string, number>;
  cards: unknown;
}

/** The other server's HTTP interface. What failed on the way is tried again. */
class Remote {
  private readonly base: URL;
  private readonly image: string;
  private readonly agent: http.Agent;
  private readonly headers: Record<string, string> = {};
  private readonly secure: boolean;

  constructor(
    private readonly url: string,
    { tokenFile, caFile }: RemoteOptions,
  ) {
    const parsed = URL.canParse(url) ? new URL(url) : null;
    if (parsed === null || !/^https?:$/.test(parsed.protocol) || !/^\/[^/]+(\/[^/]+)?$/.test(parsed.pathname))
      throw new Failure(`"${url}" is not http(s)://HOST:PORT/IMAGE[/BRANCH]`);
    this.base = parsed;
    this.image = encodeURIComponent(decodeURIComponent(parsed.pathname.slice(1)));
    this.secure = parsed.protocol === 'https:';
    if (tokenFile !== null) {
      if (!this.secure && !['127.0.0.1', '[::1]', 'localhost'].includes(parsed.hostname))
        throw new Failure(`a token is not sent to ${parsed.host} in clear text: use https`);
      this.headers.Authorization = `Bearer ${readText(tokenFile).trim()}`;
    }
    const agentOptions = { keepAlive: true, maxSockets: 4 };
    this.agent = this.secure
      ? new https.Agent({ ...agentOptions, ...(caFile === null ? {} : { ca: readText(caFile) }) })
      : new http.Agent(agentOptions);
  }

  async replica(): Promise<RemoteLine | null> {
    const answer = await this.ask('GET', 'replica', null, null, [404]);
    if (answer.status === 404) return null;
    const line = JSON.parse(answer.body.toString()) as RemoteLine;
    if (!Array.isArray(line.generations) || !/^[0-9a-f]{32}$/.test(line.store))
      throw new Failure(`${this.url} is no image server`);
    return line;
  }

  async have(hashes: Buffer[]): Promise<Buffer> {
    const { body } = await this.ask('POST', 'blobs/have', Buffer.concat(hashes));
    if (body.length !== hashes.length) throw new Failure(`${this.url} has answered nonsense`);
    return body;
  }

  /** Returns how many bytes went over the line. */
  async put(level: number, blobs: Buffer[]): Promise<number> {
    const bytes = await encodeBatch(blobs);
    await this.ask('POST', `blobs?level=${level + 1}`, bytes);
    return bytes.length;
  }

  async read(generation: number, level: number, places: number[]): Promise<{ blobs: Buffer[]; bytes: number }> {
    const asked = Buffer.alloc(places.length * 6);
    for (const [index, place] of places.entries()) asked.writeUIntLE(place, index * 6, 6);
    const { body } = await this.ask('POST', `blobs/read?generation=${generation}&level=${level + 1}`, asked);
    const blobs = await decodeBatch(body);
    if (blobs.length !== places.length) throw new Failure(`${this.url} has answered nonsense`);
    return { blobs, bytes: body.length };
  }

  async adopt(generation: GenerationRecord, expected: string | null, cards: unknown): Promise<void> {
    await this.ask('POST', 'generations', null, {
      generation,
      ...(expected === null ? {} : { expected }),
      ...(cards === undefined ? {} : { cards }),
    });
  }

  async tag(tag: string, at: number): Promise<void> {
    await this.ask('PUT', `tags/${encodeURIComponent(tag)}`, null, { at }, [403]);
  }

  private async ask(
    method: string,
    what: string,
    bytes: Buffer | null,
    json: unknown = null,
    fine: number[] = [],
  ): Promise<{ status: number; body: Buffer }> {
    let patienceSec = PATIENCE_SEC;
    for (let attempt = 1; ; attempt++) {
      let problem: string;
      try {
        const answer = await this.once(
          method,
          what,
          bytes ?? (json === null ? null : Buffer.from(JSON.stringify(json))),
          json !== null,
        );
        if (answer.status < 300 || fine.includes(answer.status)) return answer;
        problem = `${answer.status} ${messageOf(answer.body)}`;
        if (answer.status === 429 && answer.laterSec > 0 && answer.laterSec <= patienceSec) {
          patienceSec -= answer.laterSec;
          attempt--;
          await new Promise<void>((resolve) => setTimeout(resolve, 1000 * answer.laterSec));
          continue;
        }
        if (answer.status !== 429 && answer.status !== 503) throw new Failure(`${this.url}: ${problem}`);
      } catch (error) {
        if (error instanceof Failure) throw error;
        problem = (error as Error).message;
      }
      if (attempt >= TRIES)
        throw new Failure(`${this.url}: ${problem}; the same command goes on where this one stopped`);
      await new Promise<void>((resolve) => setTimeout(resolve, 250 * 2 ** attempt));
    }
  }

  /** `laterSec`: the server wants the same again after so long. */
  private once(
    method: string,
    what: string,
    body: Buffer | null,
    isJson: boolean,
  ): Promise<{ status: number; body: Buffer; laterSec: number }> {
    const most = what === 'replica' ? ANSWER_MAX : BATCH_SIZE_MAX;
    return new Promise((resolve, reject) => {
      const headers = {
        ...this.headers,
        ...(body === null
          ? {}
          : {
              'Content-Type': isJson ? 'application/json' : 'application/octet-stream',
              'Content-Length': body.length,
            }),
      };
      const options = { method, agent: this.agent, headers, timeout: TIMEOUT_MS };
      const request = (this.secure ? https : http).request(
        new URL(`/v1/images/${this.image}/${what}`, this.base),
        options,
        (response) => {
          const chunks: Buffer[] = [];
          let length = 0;
          response.on('data', (chunk: Buffer) => {
            length += chunk.length;
            if (length > most) request.destroy(new Error('the answer is too large'));
            chunks.push(chunk);
          });
          response.on('error', reject);
          response.on('aborted', () => reject(new Error('the connection broke')));
          response.on('end', () => {
            const laterSec = Number(response.headers['retry-after'] ?? 0);
            resolve({ status: response.statusCode!, body: Buffer.concat(chunks), laterSec });
          });
        },
      );
      request.on('timeout', () => request.destroy(new Error('no answer in time')));
      request.on('error', reject);
      request.end(body ?? undefined);
    });
  }
}

function messageOf(body: Buffer): string {
  try {
    return (JSON.parse(body.toString()) as { error: { message: string } }).error.message;
  } catch {
    return '';
  }
}

function readText(file: string): string {
  try {
    return fs.readFileSync(file, 'utf8');
  } catch (error) {
    throw new Failure(`cannot read ${file}: ${(error as Error).message}`);
  }
}
