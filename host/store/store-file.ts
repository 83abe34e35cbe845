// store.json: what makes a folder an image store, and which one.

import crypto from 'node:crypto';
import fs from 'node:fs';
import path from 'node:path';
import { Failure } from '../failure.js';

const FORMAT = 'ribbon-store';
const VERSION = 1;

/** Makes an empty folder the cache of a store in a bucket; refuses one that is anything else. */
export function openCacheFile(folder: string, url: string): void {
  const file = path.join(folder, 'store.json');
  if (!fs.existsSync(file)) {
    refuseOthers(folder);
    writeDurably(file, folder, { format: FORMAT, version: VERSION, bucket: url });
    return;
  }
  const record = readRecord(file);
  if (record.format !== FORMAT) throw new Failure(`${file} does not describe an image store`);
  if (record.bucket === undefined)
    throw new Failure(
      `${folder} is a store of its own, not the cache of a bucket: name another folder, and bring its images there with \`ribbon image push\``,
    );
  if (record.bucket !== url)
    throw new Failure(`${folder} is the cache of ${record.bucket}, not of ${url}: name another folder, or remove it`);
}

/** The identity of the store in the folder, made when there is none. */
export function openStoreFile(folder: string): Buffer {
  const file = path.join(folder, 'store.json');
  if (!fs.existsSync(file)) {
    refuseOthers(folder);
    const id = crypto.randomBytes(16);
    writeDurably(file, folder, { format: FORMAT, version: VERSION, id: id.toString('hex') });
    return id;
  }
  const record = readRecord(file);
  if (record.bucket !== undefined)
    throw new Failure(
      `${folder} is the cache of ${record.bucket}: \`ribbon serve\` with its configuration serves it, and \`ribbon image\` beside that`,
    );
  if (record.format !== FORMAT) throw new Failure(`${file} does not describe an image store`);
  if (record.version !== VERSION)
    throw new Failure(`${folder} has version ${record.version}, this program knows ${VERSION}`);
  if (typeof record.id !== 'string' || !/^[0-9a-f]{32}$/.test(record.id)) throw new Failure(`${file} has no valid id`);
  return Buffer.from(record.id, 'hex');
}

interface StoreRecord {
  format?: unknown;
  version?: unknown;
  id?: unknown;
  bucket?: unknown;
}

function readRecord(file: string): StoreRecord {
  try {
    return JSON.parse(fs.readFileSync(file, 'utf8'));
  } catch {
    throw new Failure(`${file} is damaged: restore it from a backup (it holds the store's identity)`);
  }
}

function refuseOthers(folder: string): void {
  const others = fs.readdirSync(folder).filter((name) => name !== 'lock' && !name.startsWith('store.json'));
  if (others.length > 0)
    throw new Failure(`${folder} is not an image store and not empty (it has ${others[0]}): name another folder`);
}

function writeDurably(file: string, folder: string, record: StoreRecord): void {
  const fd = fs.openSync(`${file}.new`, 'w');
  fs.writeSync(fd, `${JSON.stringify(record)}\n`);
  fs.fsyncSync(fd);
  fs.closeSync(fd);
  fs.renameSync(`${file}.new`, file);
  const folderFd = fs.openSync(folder, 'r');
  fs.fsyncSync(folderFd);
  fs.closeSync(folderFd);
}
