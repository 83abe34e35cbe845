// The server's configuration file: who may do what, TLS, limits, retention. One JSON object; unknown keys are refused, so that a
// misspelt right is not silently no right at all (docs/server.md shows one).

import { constants, createHash } from 'node:crypto';
import fs from 'node:fs';
import path from 'node:path';
import tls from 'node:tls';
import { Failure } from '../failure.js';
import { DEFAULT_RETENTION, parseRetention, type Retention } from '../store/retention.js';
import type { Access, Right } from '../store/store.js';
import { BUCKET_FIELDS, type BucketConfig, bucketConfigOf } from './bucket-config.js';
import type { Client } from './export.js';

export interface TlsSettings {
  /** Certificate, ciphers and the like, as Node takes them. */
  options: tls.SecureContextOptions;
  /** Nothing is said about exports outside TLS. */
  required: boolean;
  /** Certificates are asked for, and must be signed by the authority in `ca`. */
  certificates: boolean;
  /** The key of a PSK identity; null when there is none. */
  key(identity: string): Buffer | null;
}

export interface ServerConfig {
  access: Access;
  /** Who a bearer token of the HTTP interface stands for; null when nobody's. */
  identityOfToken(token: string): string | null;
  tls: TlsSettings | null;
  retention: Retention;
  connectionsMax: number;
  connectionsPerClientMax: number;
  /** New NBD connections from one network address in a second. */
  connectionsPerSecond: number;
  /** A second writer goes on in a branch; else it is refused. */
  branchSecondWriter: boolean;
  /** HTTP requests of one client (by identity, else address) that are answered in a second. */
  requestsPerSecond: number;
  /** What a client may move in a second, by NBD; null: as much as it can. */
  bytesPerSecondOf(client: Client): number | null;
  /** Does the client write over several connections at once, from another machine? */
  writesTogether(client: Client): boolean;
  /** Where the store is; null: in the folder alone. */
  bucket: BucketConfig | null;
}

/** Without a file: everybody may do everything, as is right for a socket that only this machine can reach. */
export const OPEN_CONFIG: ServerConfig = {
  access: { allows: () => true },
  identityOfToken: () => null,
  tls: null,
  retention: parseRetention(DEFAULT_RETENTION),
  connectionsMax: 10_000,
  connectionsPerClientMax: 10_000,
  connectionsPerSecond: 200,
  branchSecondWriter: false,
  requestsPerSecond: 1000,
  bytesPerSecondOf: () => null,
  writesTogether: () => false,
  bucket: null,
};

interface Identity {
  key: Buffer | null;
  rights: Rights;
  bytesPerSecond: number | null;
  multiConnection: boolean;
}

const TOP_FIELDS = ['identities', 'anonymous', 'tls', 'limits', 'retention', 'secondWriter', 'ask', 'bucket'];

const RANK: Record<Right, number> = { read: 1, write: 2, administer: 3 };

type Rights = Record<string, Right>;

export function readConfig(file: string): ServerConfig {
  let text: string;
  try {
    text = fs.readFileSync(file, 'utf8');
  } catch (error) {
    throw new Failure(`cannot read the configuration ${file}: ${(error as Error).message}`);
  }
  return parseConfig(text, path.dirname(path.resolve(file)), file);
}

/** `folder`: what file names in the configuration are relative to. */
export function parseConfig(text: string, folder: string, name: string): ServerConfig {
  let root: unknown;
  try {
    root = JSON.parse(text);
  } catch (error) {
    throw new Failure(`${name}: ${(error as Error).message}`);
  }
  const top = fields(root, name, TOP_FIELDS);
  const tokens = new Map<string, string>();
  const identities = new Map<string, Identity>();
  for (const [identity, value] of Object.entries((top.identities ?? {}) as object)) {
    const where = `${name}: identities.${identity}`;
    const entry = fields(value, where, ['psk', 'tokens', 'rights', 'bytesPerSecond', 'multiConnection']);
    for (const hash of tokensOf(entry.tokens, where)) tokens.set(hash, identity);
    identities.set(identity, {
      key: entry.psk === undefined ? null : pskOf(entry.psk, where),
      rights: rightsOf(entry.rights, where),
      bytesPerSecond: rateOf(entry.bytesPerSecond, `${where}.bytesPerSecond`),
      multiConnection: flag(entry.multiConnection, false, `${where}.multiConnection`),
    });
  }
  const anonymous = top.anonymous === undefined ? {} : rightsOf(top.anonymous, `${name}: anonymous`);
  const limits = fields(top.limits ?? {}, `${name}: limits`, [
    'connections',
    'connectionsPerClient',
    'connectionsPerSecond',
    'requestsPerSecond',
    'bytesPerSecond',
  ]);
  const bytesPerSecond = rateOf(limits.bytesPerSecond, `${name}: limits.bytesPerSecond`);
  const mayAsk = flag(top.ask, true, `${name}: ask`);
  return {
    access: {
      mayAsk,
      allows(client: Client, image: string, right: Right): boolean {
        const rights = client.tls ? identities.get(client.identity)?.rights : anonymous;
        if (rights === undefined) return false;
        const given = Object.hasOwn(rights, image)
          ? rights[image]
          : Object.hasOwn(rights, '*')
            ? rights['*']
            : undefined;
        return given !== undefined && RANK[given] >= RANK[right];
      },
    },
    // By the hash: how long the look-up takes says nothing about the token.
    identityOfToken: (token) => tokens.get(createHash('sha256').update(token).digest('hex')) ?? null,
    tls:
      top.tls === undefined
        ? null
        : tlsOf(top.tls, folder, `${name}: tls`, (identity) => identities.get(identity)?.key ?? null),
    retention: parseRetention(top.retention === undefined ? DEFAULT_RETENTION : String(top.retention)),
    connectionsMax: count(limits.connections, 10_000, `${name}: limits.connections`),
    connectionsPerClientMax: count(limits.connectionsPerClient, 10_000, `${name}: limits.connectionsPerClient`),
    connectionsPerSecond: count(limits.connectionsPerSecond, 200, `${name}: limits.connectionsPerSecond`),
    branchSecondWriter: secondWriterOf(top.secondWriter, name),
    requestsPerSecond: count(limits.requestsPerSecond, 1000, `${name}: limits.requestsPerSecond`),
    bytesPerSecondOf: (client) =>
      (client.tls ? identities.get(client.identity)?.bytesPerSecond : null) ?? bytesPerSecond,
    writesTogether: (client) => client.tls && identities.get(client.identity)?.multiConnection === true,
    bucket:
      top.bucket === undefined
        ? null
        : bucketConfigOf(fields(top.bucket, `${name}: bucket`, BUCKET_FIELDS), folder, `${name}: bucket`),
  };
}

function flag(value: unknown, missing: boolean, where: string): boolean {
  if (value !== undefined && typeof value !== 'boolean') throw new Failure(`${where} is not true or false`);
  return value ?? missing;
}

function fields(value: unknown, where: string, known: string[]): Record<string, unknown> {
  if (typeof value !== 'object' || value === null || Array.isArray(value))
    throw new Failure(`${where} is not an object`);
  for (const key of Object.keys(value)) {
    if (!known.includes(key)) throw new Failure(`${where} has no "${key}"; it has ${known.join(', ')}`);
  }
  return value as Record<string, unknown>;
}

function rightsOf(value: unknown, where: string): Rights {
  if (typeof value !== 'object' || value === null) throw new Failure(`${where}: rights are an object of image: right`);
  for (const [image, right] of Object.entries(value)) {
    if (!(String(right) in RANK))
      throw new Failure(`${where}: "${right}" on ${image} is not read, write or administer`);
  }
  return value as Rights;
}

function pskOf(value: unknown, where: string): Buffer {
  if (typeof value !== 'string' || !/^([0-9a-fA-F]{2}){16,64}$/.test(value)) {
    throw new Failure(`${where}: psk is 16 to 64 bytes in hexadecimal (openssl rand -hex 32)`);
  }
  return Buffer.from(value, 'hex');
}

function tokensOf(value: unknown, where: string): string[] {
  if (value === undefined) return [];
  if (!Array.isArray(value) || !value.every((it) => typeof it === 'string' && /^sha256:[0-9a-f]{64}$/.test(it))) {
    throw new Failure(
      `${where}: tokens is a list of "sha256:" and the hash in hexadecimal (printf %s TOKEN | sha256sum), never the token itself`,
    );
  }
  return value.map((it: string) => it.slice(7));
}

function secondWriterOf(value: unknown, name: string): boolean {
  if (value !== undefined && value !== 'refuse' && value !== 'branch')
    throw new Failure(`${name}: secondWriter is "refuse" or "branch"`);
  return value === 'branch';
}

function count(value: unknown, otherwise: number, where: string): number {
  if (value === undefined) return otherwise;
  if (!Number.isSafeInteger(value) || (value as number) < 1) throw new Failure(`${where} is a number from 1 on`);
  return value as number;
}

/** Below this a card's largest message would take minutes. */
const BYTES_PER_SECOND_MIN = 4096;

function rateOf(value: unknown, where: string): number | null {
  if (value === undefined) return null;
  if (!Number.isSafeInteger(value) || (value as number) < BYTES_PER_SECOND_MIN)
    throw new Failure(`${where} is a number from ${BYTES_PER_SECOND_MIN} on`);
  return value as number;
}

/** Strong ones for PSK besides OpenSSL's defaults; GnuTLS clients (libnbd, QEMU) take ECDHE-PSK or TLS 1.3. */
const PSK_CIPHERS =
  'ECDHE-PSK-CHACHA20-POLY1305:ECDHE-PSK-AES256-CBC-SHA384:ECDHE-PSK-AES128-CBC-SHA256:PSK-AES256-GCM-SHA384:PSK-AES128-GCM-SHA256';

function tlsOf(value: unknown, folder: string, where: string, key: TlsSettings['key']): TlsSettings {
  const settings = fields(value, where, ['required', 'certificate', 'key', 'ca']);
  const read = (name: string): Buffer | undefined => {
    const file = settings[name];
    if (file === undefined) return undefined;
    try {
      return fs.readFileSync(path.resolve(folder, String(file)));
    } catch (error) {
      throw new Failure(`${where}.${name}: ${(error as Error).message}`);
    }
  };
  const certificate = read('certificate');
  const privateKey = read('key');
  const ca = read('ca');
  if ((certificate === undefined) !== (privateKey === undefined))
    throw new Failure(`${where}: certificate and key go together`);
  const options: tls.SecureContextOptions = {
    ...(certificate === undefined ? {} : { cert: certificate }),
    ...(privateKey === undefined ? {} : { key: privateKey }),
    ...(ca === undefined ? {} : { ca }),
    minVersion: 'TLSv1.2',
    // Keys of TLS 1.3 go with SHA-256: with a SHA-384 suite first OpenSSL passes over the key and asks for a certificate.
    // Node's list ends in !PSK, which would keep every key of TLS 1.2 out for good; -PSK lets ours come behind it.
    ciphers: `TLS_AES_128_GCM_SHA256:${tls.DEFAULT_CIPHERS.replace('!PSK', '-PSK')}:${PSK_CIPHERS}`,
    honorCipherOrder: true,
    // OpenSSL refuses a key of TLS 1.3 without one when certificates are asked for too.
    sessionIdContext: 'ribbon',
    // Nothing is resumed: every connection proves who it is.
    secureOptions: constants.SSL_OP_NO_TICKET,
  };
  try {
    tls.createSecureContext(options);
  } catch (error) {
    throw new Failure(`${where}: ${(error as Error).message}`);
  }
  return { options, required: settings.required !== false, certificates: ca !== undefined, key };
}
