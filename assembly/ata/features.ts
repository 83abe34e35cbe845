// What the PC can set: SET FEATURES ([ATA-6] 8.46) and SET MULTIPLE MODE (8.49), and their power-on defaults.

import { MULTIPLE_SECTORS_MAX } from '../config';
import { block } from '../front-end/block';

const SUBCOMMAND_ENABLE_WRITE_CACHE: u8 = 0x02;
const SUBCOMMAND_SET_TRANSFER_MODE: u8 = 0x03;
const SUBCOMMAND_DISABLE_LOOK_AHEAD: u8 = 0x55;
const SUBCOMMAND_KEEP_ON_RESET: u8 = 0x66;
const SUBCOMMAND_DISABLE_WRITE_CACHE: u8 = 0x82;
const SUBCOMMAND_ENABLE_LOOK_AHEAD: u8 = 0xaa;
const SUBCOMMAND_REVERT_ON_RESET: u8 = 0xcc;

// Transfer mode: type in bits 7-3, mode number in bits 2-0 ([ATA-6] 8.46).
const TRANSFER_PIO_DEFAULT: u32 = 0;
const TRANSFER_PIO: u32 = 1;
const TRANSFER_MULTIWORD_DMA: u32 = 4;
const TRANSFER_ULTRA_DMA: u32 = 8;

export const PIO_MODE_MAX: u32 = 4;
export const MULTIWORD_DMA_MODE_MAX: u32 = 2;
export const ULTRA_DMA_MODE_MAX: u32 = 5;

const NO_MODE: u32 = 0xff;

let writeCache: bool = true;
let lookAhead: bool = true;
let revertOnReset: bool = false;
/** Sectors in a DRQ data block of READ/WRITE MULTIPLE, a power of two; 0: these commands are disabled. */
let multipleSectors: u32 = MULTIPLE_SECTORS_MAX;
let multiwordDmaMode: u32 = MULTIWORD_DMA_MODE_MAX;
let ultraDmaMode: u32 = NO_MODE;

/** Off: a write command ends when the server has committed it. */
export function featuresWriteCache(): bool {
  return writeCache;
}
export function featuresLookAhead(): bool {
  return lookAhead;
}
export function featuresMultipleSectors(): u32 {
  return multipleSectors;
}
/** The selected mode as a bit, as IDENTIFY words 63 and 88 have it; 0 when none of that kind is selected. */
export function featuresMultiwordDmaSelected(): u32 {
  return multiwordDmaMode == NO_MODE ? 0 : 1 << multiwordDmaMode;
}
export function featuresUltraDmaSelected(): u32 {
  return ultraDmaMode == NO_MODE ? 0 : 1 << ultraDmaMode;
}

/** Power-on defaults. libata uses READ MULTIPLE by what IDENTIFY word 59 says, without SET MULTIPLE MODE, so it is on. */
export function initFeatures(): void {
  writeCache = true;
  lookAhead = true;
  revertOnReset = false;
  multipleSectors = MULTIPLE_SECTORS_MAX;
  multiwordDmaMode = MULTIWORD_DMA_MODE_MAX;
  ultraDmaMode = NO_MODE;
}

/** True when SRST brings the defaults back (SET FEATURES CCh). Otherwise what a BIOS has set up stays. */
export function featuresRevertOnReset(): bool {
  return revertOnReset;
}

/** A count that is not supported disables READ/WRITE MULTIPLE, as does 0. False: ABRT. */
export function setMultipleMode(sectors: u32): bool {
  const supported = sectors <= MULTIPLE_SECTORS_MAX && (sectors & (sectors - 1)) == 0;
  multipleSectors = supported ? sectors : 0;
  return supported;
}

/** SET FEATURES with what the registers hold. False: ABRT. */
export function setFeatures(): bool {
  switch (block.features) {
    case SUBCOMMAND_SET_TRANSFER_MODE:
      return setTransferMode(block.sectorCount);
    case SUBCOMMAND_ENABLE_WRITE_CACHE:
      writeCache = true;
      return true;
    case SUBCOMMAND_DISABLE_WRITE_CACHE:
      writeCache = false;
      return true;
    case SUBCOMMAND_ENABLE_LOOK_AHEAD:
      lookAhead = true;
      return true;
    case SUBCOMMAND_DISABLE_LOOK_AHEAD:
      lookAhead = false;
      return true;
    case SUBCOMMAND_KEEP_ON_RESET:
      revertOnReset = false;
      return true;
    case SUBCOMMAND_REVERT_ON_RESET:
      revertOnReset = true;
      return true;
    default:
      return false;
  }
}

/** One DMA mode is selected at a time; the PIO mode is between the PC and the front end, which follows the PC's strobes. */
function setTransferMode(value: u32): bool {
  const mode = value & 7;
  switch (value >> 3) {
    case TRANSFER_PIO_DEFAULT:
      // 00h, and 01h: with IORDY disabled.
      return mode <= 1;
    case TRANSFER_PIO:
      return mode <= PIO_MODE_MAX;
    case TRANSFER_MULTIWORD_DMA:
      if (mode > MULTIWORD_DMA_MODE_MAX) return false;
      multiwordDmaMode = mode;
      ultraDmaMode = NO_MODE;
      return true;
    case TRANSFER_ULTRA_DMA:
      if (mode > ULTRA_DMA_MODE_MAX) return false;
      ultraDmaMode = mode;
      multiwordDmaMode = NO_MODE;
      return true;
    default:
      return false;
  }
}
