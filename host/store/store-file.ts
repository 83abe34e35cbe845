// store.json: what makes a folder an image store, and which one.

import crypto from 'node:crypto';
import fs from 'node:fs';
import path from 'node:path';
import { Failure } from '../failure.js';

const FORMAT = 'ribbon-store';
const VERSION = 1;

/** The identity of the store in the folder, made when there is none. */
export function openStoreFile(folder: string): Buffer {
  const file = path.join(folder, 'store.json');
  if (!fs.existsSync(file)) {
    const others = fs.readdirSync(folder).filter((name) => name !== 'lock' && !name.startsWith('store.json'));
    if (others.length > 0) {
      throw new Failure(`${folder} is not an image store and not empty (it has ${others[0]}): name another folder`);
    }
    const id = crypto.randomBytes(16);
    const text = `${JSON.stringify({ format: FORMAT, version: VERSION, id: id.toString('hex') })}\n`;
    const fd = fs.openSync(`${file}.new`, 'w');
    fs.writeSync(fd, text);
    fs.fsyncSync(fd);
    fs.closeSync(fd);
    fs.renameSync(`${file}.new`, file);
    const folderFd = fs.openSync(folder, 'r');
    fs.fsyncSync(folderFd);
    fs.closeSync(folderFd);
    return id;
  }
  let record: { format?: unknown; version?: unknown; id?: unknown };
  try {
    record = JSON.parse(fs.readFileSync(file, 'utf8'));
  } catch {
    throw new Failure(`${file} is damaged: restore it from a backup (it holds the store's identity)`);
  }
  if (record.format !== FORMAT) throw new Failure(`${file} does not describe an image store`);
  if (record.version !== VERSION)
    throw new Failure(`${folder} has version ${record.version}, this program knows ${VERSION}`);
  if (typeof record.id !== 'string' || !/^[0-9a-f]{32}$/.test(record.id)) throw new Failure(`${file} has no valid id`);
  return Buffer.from(record.id, 'hex');
}
