// Raw files as images: an epoch lands in the file whole or not at all.

import assert from 'node:assert/strict';
import { createHash } from 'node:crypto';
import { existsSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { after, before, test } from 'node:test';
import type { Client } from '../../host/server/export.js';
import { RawFiles } from '../../host/store/raw-file.js';

const CLIENT: Client = { identity: 'anonymous', address: 'test', tls: false };
/** Not a multiple of the block size. */
const SIZE = 5 * 4096 + 1536;

let folder: string;

before(() => {
  folder = mkdtempSync(path.join(tmpdir(), 'ribbon-raw-'));
});
after(() => rmSync(folder, { recursive: true, force: true }));

function newFile(name: string): { file: string; journal: string } {
  const file = path.join(folder, name);
  writeFileSync(file, Buffer.alloc(SIZE, 0x11));
  return { file, journal: `${file}.ribbon-journal` };
}

test('what is written is read back at once by its writer, by others and in the file after the commit', async () => {
  const { file, journal } = newFile('plain');
  const files = new RawFiles({ disk: file });
  const commits: number[] = [];
  files.onCommit = (_name, generation) => commits.push(generation);
  const [writer, reader] = [await files.open('disk', CLIENT), await files.open('disk', CLIENT)];
  // Across blocks, and up to the odd end of the file.
  writer.write(4000, Buffer.alloc(200, 0x22));
  writer.write(SIZE - 100, Buffer.alloc(100, 0x33));
  const own = Buffer.alloc(SIZE);
  writer.read(0, own);
  const others = Buffer.alloc(SIZE);
  reader.read(0, others);
  const before = Buffer.alloc(SIZE, 0x11);
  const changed = Buffer.from(before)
    .fill(0x22, 4000, 4200)
    .fill(0x33, SIZE - 100);
  assert.deepEqual(own, changed);
  assert.deepEqual(others, before);
  assert.deepEqual(readFileSync(file), before);
  assert.throws(() => reader.write(0, Buffer.alloc(1)), /another client is writing/);
  writer.commit();
  writer.commit();
  assert.deepEqual(commits, [1]);
  assert.deepEqual(readFileSync(file), changed);
  assert.equal(existsSync(journal), false);
  files.close();
});

test('a connection that breaks leaves nothing behind', async () => {
  const { file } = newFile('broken');
  const files = new RawFiles({ disk: file });
  const writer = await files.open('disk', CLIENT);
  writer.write(0, Buffer.alloc(4096, 0x44));
  writer.close(false);
  (await files.open('disk', CLIENT)).close(true);
  assert.deepEqual(readFileSync(file), Buffer.alloc(SIZE, 0x11));
  files.close();
});

/** A journal as raw-file.ts describes it, written by a second hand. */
function journalOf(blocks: [number, Buffer][]): Buffer {
  const head = Buffer.alloc(8 + 8 * blocks.length);
  head.write('RBJ1', 0, 'latin1');
  head.writeUInt32LE(blocks.length, 4);
  for (const [index, [number]] of blocks.entries()) head.writeBigUInt64LE(BigInt(number), 8 + 8 * index);
  const body = Buffer.concat([head, ...blocks.map(([, block]) => block)]);
  return Buffer.concat([body, createHash('sha256').update(body).digest()]);
}

test('a crash after the journal was written completes the commit, a crash within it undoes it', () => {
  const { file, journal } = newFile('cut');
  const before = readFileSync(file);
  const committed = Buffer.from(before)
    .fill(0x55, 0, 4096)
    .fill(0x66, 5 * 4096);
  const whole = journalOf([
    [0, Buffer.alloc(4096, 0x55)],
    [5, Buffer.alloc(4096, 0x66)],
  ]);
  for (let length = 0; length <= whole.length; length += length < 64 || length > whole.length - 64 ? 1 : 509) {
    writeFileSync(file, before);
    writeFileSync(journal, whole.subarray(0, length));
    new RawFiles({ disk: file }).close();
    assert.deepEqual(readFileSync(file), length === whole.length ? committed : before, `journal of ${length} bytes`);
    assert.equal(existsSync(journal), false);
  }
});

test('a journal with a wrong byte is not applied', () => {
  const { file, journal } = newFile('wrong');
  const before = readFileSync(file);
  const whole = journalOf([[1, Buffer.alloc(4096, 0x77)]]);
  for (const at of [0, 4, 8, 16, 4000, whole.length - 1]) {
    const damaged = Buffer.from(whole);
    damaged[at] ^= 1;
    writeFileSync(journal, damaged);
    new RawFiles({ disk: file }).close();
    assert.deepEqual(readFileSync(file), before, `byte ${at}`);
  }
});
