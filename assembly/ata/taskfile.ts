// The taskfile: a command's address and count out of the registers, and where it ended or failed back into them.

import { block } from '../front-end/block';
import { volumeSectors } from '../volume/volume';
import { DEVICE_LBA } from './constants';
import { CHS_INVALID, chsToLba, geometrySectors, lbaToChs } from './geometry';

/** What words 60-61 can say: sector FFFFFFFh is for 48-bit commands alone. */
export const LBA28_SECTORS_MAX: u32 = 0x0fffffff;

enum Addressing {
  CHS = 0,
  LBA28 = 1,
  LBA48 = 2,
}

let addressing: Addressing = Addressing.LBA28;
let lba: u64 = 0;
let count: u32 = 0;

/** First sector of the command. */
export function taskfileLba(): u64 {
  return lba;
}

/** Sectors that the command asks for, 1 to 65,536. */
export function taskfileCount(): u32 {
  return count;
}

/** Reads address and count. False when not every sector exists: the registers then show the first that does not
 * (IDNF; nothing of such a command is done). */
export function decodeTaskfile(extended: bool): bool {
  decodeCount(extended);
  // A 48-bit command has no CHS form, so its LBA bit says nothing.
  if (extended) return decodeLba48();
  return (block.device & DEVICE_LBA) != 0 ? decodeLba28() : decodeChs();
}

/** As decodeTaskfile, for a command that names one sector (SEEK). */
export function decodeTaskfileAddress(): bool {
  count = 1;
  return (block.device & DEVICE_LBA) != 0 ? decodeLba28() : decodeChs();
}

function decodeCount(extended: bool): void {
  if (extended) {
    const value = ((<u32>block.sectorCountPrevious) << 8) | block.sectorCount;
    count = value == 0 ? 65536 : value;
  } else {
    count = block.sectorCount == 0 ? 256 : <u32>block.sectorCount;
  }
}

function decodeLba48(): bool {
  addressing = Addressing.LBA48;
  const high = ((<u64>block.lbaHighPrevious) << 8) | block.lbaMidPrevious;
  const low =
    ((<u32>block.lbaLowPrevious) << 24) | ((<u32>block.lbaHigh) << 16) | ((<u32>block.lbaMid) << 8) | block.lbaLow;
  lba = (high << 32) | low;
  return checkEnd(volumeSectors());
}

function decodeLba28(): bool {
  addressing = Addressing.LBA28;
  const head = <u32>(block.device & 0x0f);
  lba = (head << 24) | ((<u32>block.lbaHigh) << 16) | ((<u32>block.lbaMid) << 8) | block.lbaLow;
  return checkEnd(min<u64>(volumeSectors(), LBA28_SECTORS_MAX));
}

function decodeChs(): bool {
  addressing = Addressing.CHS;
  const cylinder = ((<u32>block.lbaHigh) << 8) | block.lbaMid;
  const first = chsToLba(cylinder, block.device & 0x0f, block.lbaLow);
  // The address as the PC gave it stays in the registers: it is the first bad one.
  if (first == CHS_INVALID) return false;
  lba = first;
  return checkEnd(geometrySectors());
}

function checkEnd(end: u64): bool {
  if (lba + count <= end) return true;
  showAddress(max(lba, end));
  return false;
}

/** Puts the address of a sector into the registers, in the form that the command used. */
export function showAddress(sector: u64): void {
  if (addressing == Addressing.CHS) {
    showChs(lbaToChs(<u32>sector));
    return;
  }
  block.lbaLow = <u8>sector;
  block.lbaMid = <u8>(sector >> 8);
  block.lbaHigh = <u8>(sector >> 16);
  if (addressing == Addressing.LBA28) {
    block.device = (block.device & 0xf0) | (<u8>(sector >> 24) & 0x0f);
    return;
  }
  block.lbaLowPrevious = <u8>(sector >> 24);
  block.lbaMidPrevious = <u8>(sector >> 32);
  block.lbaHighPrevious = <u8>(sector >> 40);
}

function showChs(chs: u32): void {
  block.lbaLow = <u8>chs;
  block.lbaMid = <u8>(chs >> 16);
  block.lbaHigh = <u8>(chs >> 24);
  block.device = (block.device & 0xf0) | (<u8>(chs >> 8) & 0x0f);
}

/** Puts the number of sectors that were not transferred into Sector Count. */
export function showCount(sectors: u32): void {
  block.sectorCount = <u8>sectors;
  if (addressing == Addressing.LBA48) block.sectorCountPrevious = <u8>(sectors >> 8);
}
