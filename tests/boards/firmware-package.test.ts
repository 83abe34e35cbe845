// Which firmware packages a card runs: whole ones that a key of its own has signed. On the sanitized posix runtime, which reads
// packages with the code that the Zynq card has.

import assert from 'node:assert/strict';
import { createHash } from 'node:crypto';
import { readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { before, test } from 'node:test';
import {
  encodeFirmwarePackage,
  encodePublicKey,
  FIRMWARE_HEAD_SIZE,
  makeFirmwareKey,
} from '../../host/card/firmware-package.js';
import { assemble, GOOD } from './modules.js';
import { buildTestCard, MODULES, TestCard } from './posix-card.js';

const trusted = makeFirmwareKey();
const second = makeFirmwareKey();
const stranger = makeFirmwareKey();
const KEYS = Buffer.concat([encodePublicKey(trusted.publicKey), encodePublicKey(second.publicKey)]);
/** The order of P-256 [SEC 2] 2.4.2: r and s lie below it. */
const ORDER = Buffer.from('ffffffff00000000ffffffffffffffffbce6faada7179e84f3b9cac2fc632551', 'hex');

let binary: string;
let module: Buffer;

before(async () => {
  binary = await buildTestCard(true);
  module = readFileSync(assemble(GOOD, MODULES));
});

/** Starts a card with one package; resolves with what it says. */
async function run(content: Buffer, keys: Buffer = KEYS): Promise<string> {
  const card = new TestCard();
  try {
    const file = join(card.folder, 'package');
    const keyFile = join(card.folder, 'keys');
    writeFileSync(file, content);
    writeFileSync(keyFile, keys);
    card.start(binary, [file], 'wasm3', { more: ['--keys', keyFile] });
    await card.line(/^info: good firmware$|^error: halted: there is no firmware/);
    await card.stop();
  } finally {
    await card.stop();
    card.remove();
  }
  return card.lines.join('\n');
}

function good(): Buffer {
  return encodeFirmwarePackage(7, module, trusted.privateKey);
}

function changed(change: (content: Buffer) => void): Buffer {
  const content = good();
  change(content);
  return content;
}

test('a package signed with either of two keys runs', async () => {
  assert.match(await run(good()), /good firmware/);
  assert.match(await run(encodeFirmwarePackage(7, module, second.privateKey)), /good firmware/);
});

const damaged = /damaged: its hash is wrong/;
const untrusted = /not signed with a key that this card trusts/;
const REFUSED: { name: string; make: () => Buffer; says: RegExp }[] = [
  {
    name: "a stranger's signature",
    make: () => encodeFirmwarePackage(7, module, stranger.privateKey),
    says: untrusted,
  },
  { name: 'no signature', make: () => changed((it) => it.fill(0, 64, 128)), says: /package: not signed$/m },
  { name: 'one bit of the signature', make: () => changed((it) => (it[100] ^= 1)), says: untrusted },
  // A signature covers the sequence: nobody can bring an old firmware back as the newest one.
  { name: 'another sequence', make: () => changed((it) => it.writeUInt32LE(8, 12)), says: untrusted },
  { name: 'one bit of the module', make: () => changed((it) => (it[FIRMWARE_HEAD_SIZE + 20] ^= 1)), says: damaged },
  {
    name: 'another module with the hash put right',
    make: () =>
      changed((it) => {
        it[it.length - 1] ^= 1;
        createHash('sha256').update(it.subarray(FIRMWARE_HEAD_SIZE)).digest().copy(it, 32);
      }),
    says: untrusted,
  },
  {
    name: 'r = s = the order of the curve',
    make: () => changed((it) => it.set(Buffer.concat([ORDER, ORDER]), 64)),
    says: untrusted,
  },
  { name: 'r and s of ones', make: () => changed((it) => it.fill(0xff, 64, 128)), says: untrusted },
  { name: 'a module that is cut off', make: () => good().subarray(0, -1), says: /cut off/ },
  { name: 'a head that is cut off', make: () => good().subarray(0, 100), says: /not a firmware package/ },
  { name: 'a length of 4 GiB', make: () => changed((it) => it.writeUInt32LE(0xffffffff, 8)), says: /cut off/ },
  { name: 'a bare module', make: () => module, says: /not a firmware package/ },
  {
    name: 'version 1, which had no signature',
    make: () => changed((it) => it.writeUInt16LE(1, 4)),
    says: /not signed \(a package of version 1\)/,
  },
  { name: 'a version to come', make: () => changed((it) => it.writeUInt16LE(3, 4)), says: /of an unknown version/ },
  {
    name: 'another size of the head',
    make: () => changed((it) => it.writeUInt16LE(64, 6)),
    says: /of an unknown version/,
  },
];

for (const { name, make, says } of REFUSED) {
  test(`refused, and said why: ${name}`, async () => {
    const log = await run(make());
    assert.match(log, says);
    assert.match(log, /halted: there is no firmware/);
  });
}

test('a key that is no point of the curve trusts nothing', async () => {
  const key = encodePublicKey(trusted.publicKey);
  key[63] ^= 1;
  assert.match(await run(good(), key), untrusted);
  assert.match(await run(good(), Buffer.alloc(64)), untrusted);
});
