// Builds the settings record that a card reads at power-on (SPEC.md "Settings").

import { Failure } from '../failure.js';
import { crc32c } from './crc32c.js';

export const ACKNOWLEDGEMENT_POINTS = ['received', 'stored', 'sent', 'remote-received', 'remote-stored'] as const;
export type AcknowledgementPoint = (typeof ACKNOWLEDGEMENT_POINTS)[number];

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
  /** After which event the PC is told that a write is done. */
  acknowledgementPoint: AcknowledgementPoint;
  /** As long as less than this share of the log, in percent, is uncommitted and the server can be reached, the card waits for
   * `remote-stored`; 0: never. */
  dirtyThresholdPercent: number;
  /** How long a write waits for room in the log, or for its acknowledgement point; then it is a device fault. */
  writeStallTimeoutMs: number;
  /** Added to every acknowledgement of a write. */
  acknowledgementDelayMs: number;
  /** The local store may be overwritten if it cannot be used. */
  formatStore: boolean;
  /** Bytes a second that the card sends, and that it takes, at most; 0: no limit. */
  linkRateBytes: number;
  /** Offers of the card to an image server that knows cards: compressed payload, and asking which blocks the server has. */
  deflate: boolean;
  ask: boolean;
  /** What becomes of clean blocks at a connection to a server that cannot tell what has changed. */
  plainServer: 'verify' | 'drop' | 'trust';
  /** Segments of 1 MiB that the image gets for itself on a local store that several images share, at least 16: on a blank store, or
   * on one that is shared already and does not have this image yet. 0: the image has a blank store alone. */
  storeShareSegments: number;
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
  acknowledgementPoint: 'stored',
  dirtyThresholdPercent: 0,
  writeStallTimeoutMs: 20_000,
  acknowledgementDelayMs: 0,
  formatStore: false,
  linkRateBytes: 0,
  deflate: true,
  ask: true,
  plainServer: 'verify',
  storeShareSegments: 0,
};

/** Of a local store that several images share. */
export const SHARE_SEGMENTS_MIN = 16;

const MAGIC = 0x54534252; // "RBST"
const VERSION = 2;
const RECORD_SIZE = 512;
const FLAG_TLS = 1;
const FLAG_STORE_FORMAT = 2;
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
  record.writeUInt32LE((settings.tls ? FLAG_TLS : 0) | (settings.formatStore ? FLAG_STORE_FORMAT : 0), 12);
  record.writeUInt32LE(positive('offlineReadTimeoutMs', settings.offlineReadTimeoutMs), 16);
  record.writeUInt32LE(positive('epochAgeMs', settings.epochAgeMs), 20);
  record.writeUInt32LE(positive('epochSizeBytes', settings.epochSizeBytes), 24);
  record.writeUInt8(ACKNOWLEDGEMENT_POINTS.indexOf(settings.acknowledgementPoint), 28);
  record.writeUInt8(percent('dirtyThresholdPercent', settings.dirtyThresholdPercent), 29);
  record.writeUInt32LE(positive('writeStallTimeoutMs', settings.writeStallTimeoutMs), 360);
  record.writeUInt32LE(settings.acknowledgementDelayMs, 364);
  record.writeUInt16LE(exportName.length, 32);
  writeText(record, 'serial', settings.serial, 36, 20);
  writeText(record, 'firmware', settings.firmware, 56, 8);
  writeText(record, 'model', settings.model, 64, 40);
  exportName.copy(record, EXPORT_OFFSET);
  record.writeUInt32LE(settings.linkRateBytes, 368);
  record[372] = (settings.deflate ? WIRE_DEFLATE : 0) | (settings.ask ? WIRE_ASK : 0);
  record[373] = PLAIN_SERVERS.indexOf(settings.plainServer);
  record.writeUInt32LE(share('storeShareSegments', settings.storeShareSegments), 376);
  record.writeUInt32LE(crc32c(record.subarray(12)), 8);
  return record;
}

/** Where the control record lies in the firmware's memory (SPEC.md "Control"). */
export const CONTROL_OFFSET = 0x3400;

/** The control record that switches the acknowledgement point. */
export function encodeControl(point: AcknowledgementPoint): Uint8Array {
  const record = Buffer.alloc(4);
  record.writeUInt32LE(1 + ACKNOWLEDGEMENT_POINTS.indexOf(point), 0);
  return record;
}

function positive(field: string, value: number): number {
  if (!Number.isInteger(value) || value < 1 || value > 0xffffffff) {
    throw new Failure(`${field} must be a whole number from 1 to 4294967295, not ${value}`);
  }
  return value;
}

function percent(field: string, value: number): number {
  if (!Number.isInteger(value) || value < 0 || value > 100) {
    throw new Failure(`${field} must be a whole number from 0 to 100, not ${value}`);
  }
  return value;
}

function share(field: string, value: number): number {
  if (value !== 0 && (!Number.isInteger(value) || value < SHARE_SEGMENTS_MIN || value > 0xffffffff)) {
    throw new Failure(`${field} must be 0 or a whole number from ${SHARE_SEGMENTS_MIN} to 4294967295, not ${value}`);
  }
  return value;
}

function writeText(record: Buffer, field: string, text: string, offset: number, size: number): void {
  if (text.length > size || !/^[ -~]*$/.test(text)) {
    throw new Failure(`${field} must be at most ${size} printable ASCII characters, not "${text}"`);
  }
  record.write(text.padEnd(size), offset, size, 'latin1');
}
