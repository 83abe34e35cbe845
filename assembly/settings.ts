// The settings record, as it lies in flash (SPEC.md "Settings"). Read once by init(); a bad record is refused, never guessed at.

import { crc32c, settings_read } from './imports';
import { SETTINGS, SETTINGS_SIZE } from './memory-map';

export const SETTINGS_MAGIC: u32 = 0x54534252; // "RBST"
export const SETTINGS_VERSION: u16 = 2;
export const SETTINGS_RECORD_SIZE: u32 = 512;

/** NBD must be inside TLS; a server that offers none is refused. */
export const SETTINGS_TLS: u32 = 1;

/** Whatever is on the local store may be overwritten: format it if it cannot be used. */
export const SETTINGS_STORE_FORMAT: u32 = 2;

/** After which event the PC is told that a write is done (DESIGN.md "Promises"). */
export enum AcknowledgementPoint {
  /** The data is in the card's memory. */
  RECEIVED = 0,
  /** On the local store, flushed. */
  STORED = 1,
  /** Stored, and handed to the link. */
  SENT = 2,
  /** Stored, and the image server has answered. */
  REMOTE_RECEIVED = 3,
  /** Stored, and the image server has committed it. */
  REMOTE_STORED = 4,
}

export enum SettingsError {
  OK = 0,
  MISSING = 1,
  BAD_MAGIC = 2,
  BAD_VERSION = 3,
  BAD_LENGTH = 4,
  BAD_CHECKSUM = 5,
  BAD_VALUE = 6,
}

@unmanaged
export class Settings {
  magic: u32; // 0
  version: u16; // 4
  length: u16; // 6: of the whole record, 512
  checksum: u32; // 8: CRC-32C of bytes 12 to length
  flags: u32; // 12
  /** How long a read that misses keeps BSY while the server is unreachable, in ms; then UNC. Keep it below the PC's own
   * time-out (Linux: 30 s). */
  offlineReadTimeoutMs: u32; // 16
  /** An epoch closes at the latest this long after its first write, in ms. */
  epochAgeMs: u32; // 20
  /** An epoch closes at the latest with this many bytes. */
  epochSizeBytes: u32; // 24
  /** An AcknowledgementPoint. */
  acknowledgementPoint: u8; // 28
  /** Share of the log in percent: as long as less than this is uncommitted and the server can be reached, the card waits for
   * REMOTE_STORED. 0: never. */
  dirtyThreshold: u8; // 29
  reserved: u16; // 30
  // 32: exportLength u16, then 2 bytes of padding
  exportLength: u16; // 32
  reserved1: u16; // 34
  // 36..: text fields, addressed by the offsets below
}

/** u32: how long a write waits for room in the log, or for its acknowledgement point, in ms; then it is a device fault. */
export const SETTINGS_WRITE_STALL: u32 = 360;
/** u32: added to every acknowledgement of a write, in ms. */
export const SETTINGS_ACKNOWLEDGEMENT_DELAY: u32 = 364;

/** Serial number, 20 ASCII characters padded with spaces ([ATA-6] 8.15, words 10-19). */
export const SETTINGS_SERIAL: u32 = 36;
export const SETTINGS_SERIAL_SIZE: u32 = 20;
/** Firmware revision, 8 ASCII characters padded with spaces (words 23-26). */
export const SETTINGS_FIRMWARE: u32 = 56;
export const SETTINGS_FIRMWARE_SIZE: u32 = 8;
/** Model number, 40 ASCII characters padded with spaces (words 27-46). */
export const SETTINGS_MODEL: u32 = 64;
export const SETTINGS_MODEL_SIZE: u32 = 40;
/** NBD export name, `exportLength` bytes of UTF-8. */
export const SETTINGS_EXPORT: u32 = 104;
export const SETTINGS_EXPORT_SIZE: u32 = 256;

/** Bytes a second that the card sends, and that it takes, at most; 0: no limit. */
export const SETTINGS_LINK_RATE: u32 = 368;
/** SETTINGS_WIRE_…: what the card offers an image server that knows cards. */
export const SETTINGS_WIRE: u32 = 372;
export const SETTINGS_WIRE_DEFLATE: u8 = 1;
export const SETTINGS_WIRE_ASK: u8 = 2;
/** A PlainServer. */
export const SETTINGS_PLAIN_SERVER: u32 = 373;

/** u32: segments of the local store that an image gets for itself on a device that several share; 0: it has the device alone. */
export const SETTINGS_STORE_SHARE: u32 = 376;

/** What becomes of clean blocks at a connection to a server that cannot tell what has changed. */
export enum PlainServer {
  /** Each is fetched again when it is used; without a connection it counts. */
  VERIFY = 0,
  /** All are forgotten. */
  DROP = 1,
  /** All count: nobody else changes the image. */
  TRUST = 2,
}

export function linkRateBytes(): u32 {
  return load<u32>(SETTINGS + SETTINGS_LINK_RATE);
}

export function settingsWire(): u8 {
  return load<u8>(SETTINGS + SETTINGS_WIRE);
}

export function storeShareSegments(): u32 {
  return load<u32>(SETTINGS + SETTINGS_STORE_SHARE);
}

export function plainServer(): PlainServer {
  return load<u8>(SETTINGS + SETTINGS_PLAIN_SERVER);
}

export const settings: Settings = changetype<Settings>(SETTINGS);

assert(SETTINGS_EXPORT + SETTINGS_EXPORT_SIZE <= SETTINGS_RECORD_SIZE);
assert(SETTINGS_RECORD_SIZE <= SETTINGS_SIZE);

/** Reads and validates the record. On any error the caller must not go on. */
export function readSettings(): SettingsError {
  const length = settings_read(SETTINGS, SETTINGS_SIZE);
  if (length == 0) return SettingsError.MISSING;
  if (length < SETTINGS_RECORD_SIZE) return SettingsError.BAD_LENGTH;
  if (settings.magic != SETTINGS_MAGIC) return SettingsError.BAD_MAGIC;
  if (settings.version != SETTINGS_VERSION) return SettingsError.BAD_VERSION;
  if (<u32>settings.length != SETTINGS_RECORD_SIZE) return SettingsError.BAD_LENGTH;
  if (settings.checksum != crc32c(0, SETTINGS + 12, SETTINGS_RECORD_SIZE - 12)) return SettingsError.BAD_CHECKSUM;
  if (<u32>settings.exportLength > SETTINGS_EXPORT_SIZE) return SettingsError.BAD_VALUE;
  if (plainServer() > PlainServer.TRUST) return SettingsError.BAD_VALUE;
  if (settings.epochAgeMs == 0 || settings.epochSizeBytes == 0) return SettingsError.BAD_VALUE;
  if (settings.acknowledgementPoint > <u8>AcknowledgementPoint.REMOTE_STORED) return SettingsError.BAD_VALUE;
  if (settings.dirtyThreshold > 100 || writeStallMs() == 0) return SettingsError.BAD_VALUE;
  return SettingsError.OK;
}

export function writeStallMs(): u32 {
  return load<u32>(SETTINGS + SETTINGS_WRITE_STALL);
}

export function acknowledgementDelayMs(): u32 {
  return load<u32>(SETTINGS + SETTINGS_ACKNOWLEDGEMENT_DELAY);
}
