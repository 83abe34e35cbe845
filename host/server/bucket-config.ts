// The part of the configuration file that says where the store is, when that is a bucket; the keys to it are in a file of their own.

import fs from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import { Failure } from '../failure.js';
import { Bucket, type BucketSettings } from '../store/bucket/s3.js';
import type { BucketOptions } from '../store/store.js';

export interface BucketConfig {
  settings: BucketSettings;
  /** What people call this server. */
  name: string;
  /** Blocks that are kept on this disk. */
  cacheBytes: number;
  /** A server that is silent for so long loses its images to the others. */
  takeoverMs: number;
}

export const BUCKET_FIELDS = ['url', 'region', 'credentials', 'ca', 'name', 'cacheBytes', 'takeoverSeconds'];

const CACHE_BYTES = 16 * 1024 ** 3;
/** Less than some large reads at once would throw out what they wait for. */
const CACHE_BYTES_MIN = 256 * 1024 ** 2;

export function bucketConfigOf(given: Record<string, unknown>, folder: string, where: string): BucketConfig {
  const { region = 'us-east-1', name = os.hostname(), cacheBytes = CACHE_BYTES, takeoverSeconds = 15, ca } = given;
  if (typeof region !== 'string' || typeof name !== 'string' || !/^[\w.-]{1,64}$/.test(name))
    throw new Failure(`${where}: region and name are text; a name has letters, digits, ".", "_" and "-", 64 at most`);
  if (!Number.isSafeInteger(cacheBytes) || (cacheBytes as number) < CACHE_BYTES_MIN)
    throw new Failure(`${where}: cacheBytes is a number from ${CACHE_BYTES_MIN} on`);
  if (!Number.isSafeInteger(takeoverSeconds) || (takeoverSeconds as number) < 2 || (takeoverSeconds as number) > 3600)
    throw new Failure(`${where}: takeoverSeconds is a number from 2 to 3600`);
  if (typeof given.credentials !== 'string')
    throw new Failure(`${where}: credentials names the file with the keys, which is readable for its owner only`);
  const settings: BucketSettings = {
    url: urlOf(given.url, where),
    region,
    ...credentialsOf(path.resolve(folder, given.credentials)),
  };
  if (ca !== undefined) {
    try {
      settings.ca = fs.readFileSync(path.resolve(folder, String(ca)));
    } catch (error) {
      throw new Failure(`${where}.ca: ${(error as Error).message}`);
    }
  }
  return { settings, name, cacheBytes: cacheBytes as number, takeoverMs: 1000 * (takeoverSeconds as number) };
}

/** As a store takes it. */
export function bucketOptions({ settings, name, cacheBytes, takeoverMs }: BucketConfig): BucketOptions {
  // Some signs of life may be late without any harm.
  return { bucket: new Bucket(settings), name, cacheBytes, deadMs: takeoverMs, signMs: takeoverMs / 8 };
}

/** Nothing that has to be escaped: then all object stores sign it alike. */
function urlOf(value: unknown, where: string): string {
  const text = typeof value === 'string' ? value : '';
  if (!/^https?:\/\/[A-Za-z0-9.:[\]-]+\/[a-z0-9.-]{3,63}(\/[A-Za-z0-9._-]+)*\/?$/.test(text) || !URL.canParse(text))
    throw new Failure(`${where}: url is http(s)://HOST[:PORT]/BUCKET[/PREFIX], without keys`);
  return text;
}

/** {"accessKeyId": …, "secretAccessKey": …}; what is in it is never part of a message. */
function credentialsOf(file: string): { accessKeyId: string; secretAccessKey: string } {
  let text: string;
  try {
    const fd = fs.openSync(file, 'r');
    try {
      // Of the file that is read, not of one that has its name a moment later.
      if ((fs.fstatSync(fd).mode & 0o077) !== 0)
        throw new Failure(`${file} can be read by others than its owner: chmod 600 ${file}`);
      text = fs.readFileSync(fd, 'utf8');
    } finally {
      fs.closeSync(fd);
    }
  } catch (error) {
    if (error instanceof Failure) throw error;
    throw new Failure(`cannot read the keys to the bucket: ${(error as Error).message}`);
  }
  let keys: { accessKeyId?: unknown; secretAccessKey?: unknown } | null;
  try {
    keys = JSON.parse(text);
  } catch {
    keys = null;
  }
  const { accessKeyId, secretAccessKey } = keys ?? {};
  if (typeof accessKeyId !== 'string' || typeof secretAccessKey !== 'string')
    throw new Failure(`${file} is not {"accessKeyId": "…", "secretAccessKey": "…"}`);
  return { accessKeyId, secretAccessKey };
}
