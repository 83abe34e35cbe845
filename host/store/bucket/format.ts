// What lies in a bucket, as bytes (SPEC.md "A store in a bucket").

import crypto from 'node:crypto';
import { promisify } from 'node:util';
import zlib from 'node:zlib';
import { crc32 } from '@node-rs/crc32';
import { Failure } from '../../failure.js';
import { CODEC_NONE, type Codec } from '../codec.js';
import type { Location } from '../index.js';
import { DamagedError, GROUP_HEADER, PACK_ENTRY, PACK_HEADER, parseGroupHeader } from '../pack.js';
import { sha256 } from '../sha256.js';
import { BLOCK_SIZE } from '../tree.js';

export const STORE_OBJECT = 'store.json';
export const FORMAT = 'ribbon-bucket';
const VERSION = 1;
const gzip = promisify<Buffer, Buffer>(zlib.gzip);
const gunzip = promisify<Buffer, Buffer>(zlib.gunzip);

export const logObject = (sequence: number) => `log/${hex14(sequence)}`;
/** `digits`: those of the entry. */
export const checkpointObject = (sequence: number, digits: string) =>
  `checkpoint/${hex14(sequence)}.${digits.slice(0, 16)}`;
export const packObject = (pack: number) => `packs/${String(pack).padStart(8, '0')}`;
export const directoryObject = (pack: number) => `${packObject(pack)}.directory`;
export const signObject = (server: number) => `servers/${String(server).padStart(8, '0')}`;

/** Of the name of a checkpoint: its entry, and the first 16 digits of that. */
export function parseCheckpointName(name: string): { sequence: number; digits: string } {
  const match = /^checkpoint\/([0-9a-f]{14})\.([0-9a-f]{16})$/.exec(name);
  if (match === null) throw new DamagedError(`the bucket has an object ${name}, which is none of this store's`);
  return { sequence: Number.parseInt(match[1], 16), digits: match[2] };
}

function hex14(sequence: number): string {
  return sequence.toString(16).padStart(14, '0');
}

export const BUCKET_KEY = 'bucket';
export const COLLECTOR_KEY = 'collector';
export const serverKey = (server: number) => `server/${String(server).padStart(8, '0')}`;
export const ownerKey = (line: number) => `owner/${line.toString(16).padStart(8, '0')}`;
export const packKey = (pack: number) => `pack/${String(pack).padStart(10, '0')}`;
export const retiredKey = (pack: number) => `retired/${String(pack).padStart(10, '0')}`;
/** Of a key that ends in a decimal number. */
export const numberOf = (key: string) => Number(key.slice(key.lastIndexOf('/') + 1));

export interface NumbersRecord {
  version: 1;
  nextServer: number;
  nextPack: number;
}

export interface ServerRecord {
  version: 1;
  name: string;
  timeMs: number;
  packs: [from: number, to: number][];
}

export interface OwnerRecord {
  version: 1;
  server: number;
}

export interface PackRecord {
  version: 1;
  kind: 'blocks' | 'nodes';
  bytes: number;
  sha256: string;
  blobs: number;
}

export interface CollectorRecord {
  version: 1;
  server: number;
  timeMs: number;
}

/** What a server says of itself. */
export interface SignOfLife {
  version: 1;
  server: number;
  name: string;
  /** Counts up, so that every sign is another object. */
  count: number;
  /** The log up to this entry has been applied. */
  applied: number;
  /** While somebody collects garbage: the roots that open exports need, as [root in hex, size]. */
  roots: [root: string, size: number][] | null;
}

const DIGITS = 64;

/** The SHA-256 of the bytes in front of them. */
export function seal(bytes: Buffer): Buffer {
  return Buffer.concat([Buffer.from(`${sha256(bytes).toString('hex')}\n`), bytes]);
}

/** The digits and what is behind them; throws when they do not fit. */
export function unseal(name: string, sealed: Buffer): { digits: string; bytes: Buffer } {
  const digits = sealed.toString('latin1', 0, DIGITS);
  const bytes = sealed.subarray(DIGITS + 1);
  if (sealed.length <= DIGITS || sealed[DIGITS] !== 0x0a || sha256(bytes).toString('hex') !== digits)
    throw new DamagedError(`the object ${name} of the bucket is damaged: its SHA-256 is not the one in it`);
  return { digits, bytes };
}

export function sealJson(value: unknown): Buffer {
  return seal(Buffer.from(JSON.stringify(value)));
}

export type Change = [key: string, value: unknown];

export interface Entry {
  version: 1;
  store: string;
  sequence: number;
  previous: string;
  server: number;
  nonce: string;
  timeMs: number;
  /** Null removes. */
  records: Change[];
  /** Base64. */
  changes: [key: string, list: string | null][];
}

export function parseEntry(name: string, sealed: Buffer): { entry: Entry; digits: string } {
  const { digits, bytes } = unseal(name, sealed);
  const entry = JSON.parse(bytes.toString()) as Entry;
  if (entry.version !== VERSION)
    throw new Failure(`${name} has version ${entry.version}, this program knows ${VERSION}`);
  return { entry, digits };
}

export function newNonce(): string {
  return crypto.randomBytes(8).toString('hex');
}

export interface Checkpoint {
  version: 1;
  store: string;
  sequence: number;
  /** The digits of that entry. */
  entry: string;
}

export async function encodeCheckpoint(head: Checkpoint, lines: Iterable<unknown[]>): Promise<Buffer> {
  const text: string[] = [JSON.stringify(head)];
  for (const line of lines) text.push(JSON.stringify(line));
  return seal(await gzip(Buffer.from(text.join('\n'))));
}

export async function decodeCheckpoint(
  name: string,
  sealed: Buffer,
): Promise<{ head: Checkpoint; records: Change[]; changes: [key: string, list: Buffer][] }> {
  const plain = await gunzip(unseal(name, sealed).bytes);
  const [first, ...lines] = plain.toString().split('\n');
  const head = JSON.parse(first) as Checkpoint;
  if (head.version !== VERSION) throw new Failure(`${name} has version ${head.version}, this program knows ${VERSION}`);
  const records: Change[] = [];
  const changes: [string, Buffer][] = [];
  for (const line of lines) {
    const parts = JSON.parse(line);
    if (parts.length === 3) changes.push([parts[1], Buffer.from(parts[2], 'base64')]);
    else records.push(parts);
  }
  return { head, records, changes };
}

/** A group of a pack as its directory has it. */
export interface GroupHead {
  offset: number;
  /** Of the whole group. */
  length: number;
  codec: number;
  blobs: { hash: Buffer; length: number }[];
}

/** Packs of blocks of at most this size have no directory: they are read whole. */
export const DIRECTORY_PACK_MIN = 256 * 1024;

/** The groups of a whole pack, up to the first place that is none. */
export function groupsOfPack(bytes: Buffer): GroupHead[] {
  const groups: GroupHead[] = [];
  for (let at = PACK_HEADER; at + GROUP_HEADER <= bytes.length; ) {
    const group = parseGroupHeader(bytes.subarray(at, at + GROUP_HEADER));
    if (group === null || at + group.length > bytes.length) break;
    groups.push(headAt(bytes, at, at, group));
    at += group.length;
  }
  return groups;
}

function headAt(
  bytes: Buffer,
  at: number,
  offset: number,
  group: { codec: number; count: number; length: number },
): GroupHead {
  const blobs = Array.from({ length: group.count }, (_, ordinal) => {
    const entry = at + GROUP_HEADER + ordinal * PACK_ENTRY;
    return { hash: Buffer.from(bytes.subarray(entry, entry + 32)), length: bytes.readUInt16LE(entry + 32) };
  });
  return { offset, length: group.length, codec: group.codec, blobs };
}

export function encodeDirectory(pack: Buffer): Buffer {
  const pieces: Buffer[] = [];
  for (const { offset, blobs } of groupsOfPack(pack)) {
    const at = Buffer.alloc(4);
    at.writeUInt32LE(offset);
    pieces.push(at, pack.subarray(offset, offset + GROUP_HEADER + blobs.length * PACK_ENTRY));
  }
  return seal(Buffer.concat(pieces));
}

export function decodeDirectory(name: string, sealed: Buffer): GroupHead[] {
  const { bytes } = unseal(name, sealed);
  const groups: GroupHead[] = [];
  for (let at = 0; at < bytes.length; ) {
    const group = parseGroupHeader(bytes.subarray(at + 4, at + 4 + GROUP_HEADER));
    if (group === null) throw new DamagedError(`the object ${name} of the bucket is damaged at ${at}`);
    groups.push(headAt(bytes, at + 4, bytes.readUInt32LE(at), group));
    at += 4 + GROUP_HEADER + group.count * PACK_ENTRY;
  }
  return groups;
}

/** Where the blobs of these groups lie. */
export function* locationsOf(pack: number, groups: GroupHead[]): Generator<[hash: Buffer, location: Location]> {
  for (const { offset, length, codec, blobs } of groups) {
    let inner = 0;
    for (const [ordinal, blob] of blobs.entries()) {
      yield [
        blob.hash,
        {
          pack,
          groupOffset: offset,
          groupLength: length,
          inner,
          length: blob.length,
          count: blobs.length,
          ordinal,
          codec,
        },
      ];
      inner += blob.length;
    }
  }
}

/** Checks one whole group: checksums, and every blob by its hash. False: it is damaged. */
export async function isGroupWhole(bytes: Buffer, codec: Codec): Promise<boolean> {
  const group = parseGroupHeader(bytes);
  if (group === null || group.length !== bytes.length) return false;
  if (crc32(bytes.subarray(GROUP_HEADER)) !== bytes.readUInt32LE(12)) return false;
  const { blobs } = headAt(bytes, 0, 0, group);
  const stored = bytes.subarray(group.payload);
  let payload: Buffer;
  try {
    payload = group.codec === CODEC_NONE ? stored : await codec.decompress(stored, group.rawLength);
  } catch {
    return false;
  }
  let at = 0;
  for (const { hash, length } of blobs) {
    if (!sha256(payload.subarray(at, at + length)).equals(hash)) return false;
    at += length;
  }
  return at === payload.length;
}

/** Blocks are 4096 bytes; tree nodes are shorter. */
export function kindOf(groups: GroupHead[]): PackRecord['kind'] {
  return groups.some(({ blobs }) => blobs.some(({ length }) => length === BLOCK_SIZE)) ? 'blocks' : 'nodes';
}
