// Builds the settings record that a card reads at power-on (SPEC.md "Settings").

import { Failure } from '../failure.js';
import { crc32c } from './crc32c.js';

export interface CardSettings {
  /** NBD export name: `image`, `image/branch` or `image@generation`. */
  exportName: string;
  serial: string;
  firmware: string;
  model: string;
  /** NBD inside TLS, or not at all. */
  tls: boolean;
  offlineReadTimeoutMs: number;
  epochAgeMs: number;
  epochSizeBytes: number;
  /** Bytes a second that the card sends, and that it takes, at most; 0: no limit. */
  linkRateBytes: number;
  /** Offers of the card to an image server that knows cards: compressed payload, and asking which blocks the server has. */
  deflate: boolean;
  ask: boolean;
  /** What becomes of clean blocks at a connection to a server that cannot tell what has changed. */
  plainServer: 'verify' | 'drop' | 'trust';
}

export const DEFAULT_SETTINGS: CardSettings = {
  exportName: '',
  serial: 'RIBBON-0001',
  firmware: '0.1',
  model: 'RIBBON VIRTUAL DISK',
  tls: false,
  offlineReadTimeoutMs: 20_000,
  epochAgeMs: 1_000,
  epochSizeBytes: 4 << 20,
  linkRateBytes: 0,
  deflate: true,
  ask: true,
  plainServer: 'verify',
};

const MAGIC = 0x54534252; // "RBST"
const VERSION = 1;
const RECORD_SIZE = 512;
const FLAG_TLS = 1;
const WIRE_DEFLATE = 1;
const WIRE_ASK = 2;
const PLAIN_SERVERS = ['verify', 'drop', 'trust'] as const;
const EXPORT_OFFSET = 104;
const EXPORT_SIZE = 256;

/** The 512-byte record. Throws a Failure that names the field when a value does not fit. */
export function encodeSettings(settings: CardSettings): Uint8Array {
  const record = Buffer.alloc(RECORD_SIZE);
  const exportName = Buffer.from(settings.exportName, 'utf8');
  if (exportName.length > EXPORT_SIZE) {
    throw new Failure(
      `image name is ${exportName.length} bytes long, the most is ${EXPORT_SIZE}: "${settings.exportName}"`,
    );
  }
  record.writeUInt32LE(MAGIC, 0);
  record.writeUInt16LE(VERSION, 4);
  record.writeUInt16LE(RECORD_SIZE, 6);
  record.writeUInt32LE(settings.tls ? FLAG_TLS : 0, 12);
  record.writeUInt32LE(positive('offlineReadTimeoutMs', settings.offlineReadTimeoutMs), 16);
  record.writeUInt32LE(positive('epochAgeMs', settings.epochAgeMs), 20);
  record.writeUInt32LE(positive('epochSizeBytes', settings.epochSizeBytes), 24);
  record.writeUInt16LE(exportName.length, 32);
  writeText(record, 'serial', settings.serial, 36, 20);
  writeText(record, 'firmware', settings.firmware, 56, 8);
  writeText(record, 'model', settings.model, 64, 40);
  exportName.copy(record, EXPORT_OFFSET);
  record.writeUInt32LE(settings.linkRateBytes, 368);
  record[372] = (settings.deflate ? WIRE_DEFLATE : 0) | (settings.ask ? WIRE_ASK : 0);
  record[373] = PLAIN_SERVERS.indexOf(settings.plainServer);
  record.writeUInt32LE(crc32c(record.subarray(12)), 8);
  return record;
}

function positive(field: string, value: number): number {
  if (!Number.isInteger(value) || value < 1 || value > 0xffffffff) {
    throw new Failure(`${field} must be a whole number from 1 to 4294967295, not ${value}`);
  }
  return value;
}

function writeText(record: Buffer, field: string, text: string, offset: number, size: number): void {
  if (text.length > size || !/^[ -~]*$/.test(text)) {
    throw new Failure(`${field} must be at most ${size} printable ASCII characters, not "${text}"`);
  }
  record.write(text.padEnd(size), offset, size, 'latin1');
}
