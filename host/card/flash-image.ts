// Builds the content of a card's QSPI flash (SPEC.md "Flash layout"): what a card is before it is switched on.

import { createHash, randomBytes } from 'node:crypto';
import { Failure } from '../failure.js';
import { crc32c } from './crc32c.js';

export const FLASH_SIZE = 16 << 20;
const SETTINGS = 0x800000;
const NETWORK = 0x810000;
const NETWORK_TEXT_MAX = 4096;
const IDENTITY = 0x820000;
const FIRMWARE = 0x900000;
const FIRMWARE_SLOT_SIZE = 0x200000;
const FIRMWARE_HEAD_SIZE = 64;
const FIRMWARE_SLOTS = 2;
const MAGIC_NETWORK = 0x544e4252; // "RBNT"
const MAGIC_IDENTITY = 0x44494252; // "RBID"
const MAGIC_FIRMWARE = 0x57464252; // "RBFW"
const VERSION = 1;

export interface FlashContent {
  /** The settings record (encodeSettings). */
  settings: Uint8Array;
  /** SPEC.md "Network paths". */
  network: string;
  /** Ethernet address of the first interface, 6 bytes; the next interface has the next one. */
  ethernetAddress: Uint8Array;
  /** wasm modules, the one to run first first; at most two. */
  firmwares: Uint8Array[];
}

export function buildFlashImage(content: FlashContent): Buffer {
  const flash = Buffer.alloc(FLASH_SIZE, 0xff);
  flash.set(content.settings, SETTINGS);
  const network = Buffer.from(content.network, 'utf8');
  if (network.length > NETWORK_TEXT_MAX) {
    throw new Failure(`the network paths are ${network.length} bytes long, the most is ${NETWORK_TEXT_MAX}`);
  }
  writeRecord(flash, NETWORK, MAGIC_NETWORK, network);
  const identity = Buffer.alloc(40);
  identity.set(content.ethernetAddress.subarray(0, 6), 0);
  randomBytes(32).copy(identity, 8);
  writeRecord(flash, IDENTITY, MAGIC_IDENTITY, identity);
  if (content.firmwares.length > FIRMWARE_SLOTS) {
    throw new Failure(`a card holds ${FIRMWARE_SLOTS} firmware images, not ${content.firmwares.length}`);
  }
  content.firmwares.forEach((firmware, slot) => {
    flash.set(encodeFirmwareSlot(FIRMWARE_SLOTS - slot, firmware), FIRMWARE + slot * FIRMWARE_SLOT_SIZE);
  });
  return flash;
}

function writeRecord(flash: Buffer, offset: number, magic: number, content: Buffer): void {
  flash.writeUInt32LE(magic, offset);
  flash.writeUInt16LE(VERSION, offset + 4);
  flash.writeUInt16LE(0, offset + 6);
  flash.writeUInt32LE(content.length, offset + 8);
  flash.writeUInt32LE(crc32c(content), offset + 12);
  content.copy(flash, offset + 16);
}

/** Where the first firmware slot begins. */
export const FLASH_FIRMWARE_OFFSET = FIRMWARE;

/** A firmware slot's content: head and module. The image with the higher sequence runs first. */
export function encodeFirmwareSlot(sequence: number, firmware: Uint8Array): Buffer {
  if (firmware.length > FIRMWARE_SLOT_SIZE - FIRMWARE_HEAD_SIZE) {
    throw new Failure(`a firmware of ${firmware.length} bytes does not fit a slot of ${FIRMWARE_SLOT_SIZE} bytes`);
  }
  const head = Buffer.alloc(FIRMWARE_HEAD_SIZE);
  head.writeUInt32LE(MAGIC_FIRMWARE, 0);
  head.writeUInt16LE(VERSION, 4);
  head.writeUInt16LE(FIRMWARE_HEAD_SIZE, 6);
  head.writeUInt32LE(firmware.length, 8);
  head.writeUInt32LE(sequence, 12);
  createHash('sha256').update(firmware).digest().copy(head, 32);
  return Buffer.concat([head, firmware]);
}
