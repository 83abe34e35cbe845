// Builds the content of a card's QSPI flash (SPEC.md "Flash layout"): what a card is before it is switched on.

import { type KeyObject, randomBytes } from 'node:crypto';
import { Failure } from '../failure.js';
import { crc32c } from './crc32c.js';
import { encodePublicKey, FIRMWARE_HEAD_SIZE } from './firmware-package.js';

export const FLASH_SIZE = 16 << 20;
/** What lies before this is the board's boot loader's. */
export const FLASH_OWN_OFFSET = 0x800000;
const SETTINGS = 0x800000;
const NETWORK = 0x810000;
const NETWORK_TEXT_MAX = 4096;
const IDENTITY = 0x820000;
const KEYS = 0x830000;
const KEYS_MAX = 4;
/** Where the first firmware slot begins. */
export const FLASH_FIRMWARE_OFFSET = 0x900000;
export const FLASH_FIRMWARE_SLOT_SIZE = 0x200000;
const FIRMWARE_SLOTS = 2;
const MAGIC_NETWORK = 0x544e4252; // "RBNT"
const MAGIC_IDENTITY = 0x44494252; // "RBID"
const MAGIC_KEYS = 0x4b464252; // "RBFK"
const VERSION = 1;

/** What is left out stays erased. */
export interface FlashContent {
  /** The settings record (encodeSettings). */
  settings?: Uint8Array;
  /** SPEC.md "Network paths". */
  network?: string;
  /** Ethernet address of the first interface, 6 bytes; the next interface has the next one. A secret seed for random numbers goes with it. */
  ethernetAddress?: Uint8Array;
  /** Public keys, at most four: what they have signed runs. */
  firmwareKeys: KeyObject[];
  /** Firmware packages (encodeFirmwarePackage), one a slot. */
  firmwares: Uint8Array[];
}

export function buildFlashImage(content: FlashContent): Buffer {
  const flash = Buffer.alloc(FLASH_SIZE, 0xff);
  if (content.settings !== undefined) flash.set(content.settings, SETTINGS);
  if (content.network !== undefined) {
    const network = Buffer.from(content.network, 'utf8');
    if (network.length > NETWORK_TEXT_MAX) {
      throw new Failure(`the network paths are ${network.length} bytes long, the most is ${NETWORK_TEXT_MAX}`);
    }
    writeRecord(flash, NETWORK, MAGIC_NETWORK, network);
  }
  if (content.ethernetAddress !== undefined) {
    const identity = Buffer.alloc(40);
    identity.set(content.ethernetAddress.subarray(0, 6), 0);
    randomBytes(32).copy(identity, 8);
    writeRecord(flash, IDENTITY, MAGIC_IDENTITY, identity);
  }
  if (content.firmwareKeys.length > KEYS_MAX) {
    throw new Failure(`a card trusts ${KEYS_MAX} firmware keys, not ${content.firmwareKeys.length}`);
  }
  writeRecord(flash, KEYS, MAGIC_KEYS, Buffer.concat(content.firmwareKeys.map(encodePublicKey)));
  if (content.firmwares.length > FIRMWARE_SLOTS) {
    throw new Failure(`a card holds ${FIRMWARE_SLOTS} firmware images, not ${content.firmwares.length}`);
  }
  content.firmwares.forEach((firmware, slot) => {
    if (firmware.length > FLASH_FIRMWARE_SLOT_SIZE) {
      const most = FLASH_FIRMWARE_SLOT_SIZE - FIRMWARE_HEAD_SIZE;
      throw new Failure(
        `a firmware of ${firmware.length - FIRMWARE_HEAD_SIZE} bytes does not fit a slot: at most ${most}`,
      );
    }
    flash.set(firmware, FLASH_FIRMWARE_OFFSET + slot * FLASH_FIRMWARE_SLOT_SIZE);
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
