// Firmware packages (SPEC.md "Firmware package"): a wasm module, signed, as it lies in a card's flash and is sent to it; and the keys
// that sign them.

import { createHash, createPrivateKey, createPublicKey, generateKeyPairSync, type KeyObject, sign } from 'node:crypto';
import { mkdirSync, readFileSync, writeFileSync } from 'node:fs';
import { dirname } from 'node:path';
import { Failure } from '../failure.js';

export const FIRMWARE_HEAD_SIZE = 128;
const MAGIC = 0x57464252; // "RBFW"
const VERSION = 2;
const SIGNED_SIZE = 64;

/** Head and module, signed by `privateKey`. Of two packages on a card the one with the higher sequence runs. */
export function encodeFirmwarePackage(sequence: number, module: Uint8Array, privateKey: KeyObject): Buffer {
  const head = Buffer.alloc(FIRMWARE_HEAD_SIZE);
  head.writeUInt32LE(MAGIC, 0);
  head.writeUInt16LE(VERSION, 4);
  head.writeUInt16LE(FIRMWARE_HEAD_SIZE, 6);
  head.writeUInt32LE(module.length, 8);
  head.writeUInt32LE(sequence, 12);
  createHash('sha256').update(module).digest().copy(head, 32);
  const signature = sign('sha256', head.subarray(0, SIGNED_SIZE), { key: privateKey, dsaEncoding: 'ieee-p1363' });
  signature.copy(head, SIGNED_SIZE);
  return Buffer.concat([head, module]);
}

/** A public key as cards keep it: the coordinates of its point, 64 bytes. */
export function encodePublicKey(key: KeyObject): Buffer {
  const { crv, x, y } = key.export({ format: 'jwk' });
  if (crv !== 'P-256' || x === undefined || y === undefined)
    throw new Failure('a firmware key must be of the curve P-256');
  return Buffer.concat([Buffer.from(x, 'base64url'), Buffer.from(y, 'base64url')]);
}

export interface FirmwareKeyPair {
  privateKey: KeyObject;
  publicKey: KeyObject;
}

export function makeFirmwareKey(): FirmwareKeyPair {
  return generateKeyPairSync('ec', { namedCurve: 'P-256' });
}

/** The private key in a PEM file; with `make` a new one is put there when there is none. */
export function readFirmwareKey(file: string, options: { make?: boolean } = {}): FirmwareKeyPair {
  let pem: string;
  try {
    pem = readFileSync(file, 'utf8');
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== 'ENOENT' || !options.make) {
      throw new Failure(`cannot read the firmware key ${file}: ${(error as Error).message}`);
    }
    pem = makeFirmwareKey().privateKey.export({ type: 'pkcs8', format: 'pem' }) as string;
    mkdirSync(dirname(file), { recursive: true });
    writeFileSync(file, pem, { mode: 0o600, flag: 'wx' });
  }
  let privateKey: KeyObject;
  try {
    privateKey = createPrivateKey(pem);
  } catch (error) {
    throw new Failure(`${file} is not a private key in PEM: ${(error as Error).message}`);
  }
  const publicKey = createPublicKey(privateKey);
  encodePublicKey(publicKey); // of the right curve, or a failure
  return { privateKey, publicKey };
}
