// IDENTIFY DEVICE data ([ATA-6] 8.15): 256 words that say what this disk is and can do.

import { MULTIPLE_SECTORS_MAX, SECTOR_SIZE } from '../config';
import { block, LINE_DEVICE_1, LINE_PEER_PASSED, LINE_PEER_PRESENT } from '../front-end/block';
import { DATA_BUFFER_SIZE, IDENTIFY, IDENTIFY_SIZE, SETTINGS } from '../memory-map';
import {
  SETTINGS_FIRMWARE,
  SETTINGS_FIRMWARE_SIZE,
  SETTINGS_MODEL,
  SETTINGS_MODEL_SIZE,
  SETTINGS_SERIAL,
  SETTINGS_SERIAL_SIZE,
} from '../settings';
import { volumeSectors } from '../volume/volume';
import {
  featuresLookAhead,
  featuresMultipleSectors,
  featuresMultiwordDmaSelected,
  featuresUltraDmaSelected,
  featuresWriteCache,
  MULTIWORD_DMA_MODE_MAX,
  ULTRA_DMA_MODE_MAX,
} from './features';
import {
  geometryCylinders,
  geometryDefaultCylinders,
  geometryDefaultHeads,
  geometryDefaultSectorsPerTrack,
  geometryHeads,
  geometrySectors,
  geometrySectorsPerTrack,
} from './geometry';
import { LBA28_SECTORS_MAX } from './taskfile';

/** Words 82 and 85: NOP, look-ahead, write cache, power management. */
const SET_NOP: u32 = 0x4000;
const SET_LOOK_AHEAD: u32 = 0x0040;
const SET_WRITE_CACHE: u32 = 0x0020;
const SET_POWER_MANAGEMENT: u32 = 0x0008;
/** Words 83 and 86: FLUSH CACHE EXT, FLUSH CACHE, 48-bit addresses. */
const SET_FLUSH_AND_48_BIT: u32 = 0x3400;
/** Bit 14 one and bit 15 zero: this word is valid. */
const VALID: u32 = 0x4000;

function word(index: u32, value: u32): void {
  store<u16>(IDENTIFY + 2 * index, <u16>value);
}

function doubleWord(index: u32, value: u32): void {
  word(index, value);
  word(index + 1, value >> 16);
}

/** ASCII fields have the first character in the high byte of each word. */
function text(index: u32, source: usize, size: u32): void {
  for (let i: u32 = 0; i < size; i += 2) {
    word(index + i / 2, ((<u32>load<u8>(SETTINGS + source + i)) << 8) | load<u8>(SETTINGS + source + i + 1));
  }
}

/** Builds the data as it stands now and copies it to `target`. */
export function identifyDevice(target: usize): void {
  memory.fill(IDENTIFY, 0, IDENTIFY_SIZE);
  identity();
  capabilities();
  addressing();
  transferModes();
  commandSets();
  word(93, hardwareReset());
  checksum();
  memory.copy(target, IDENTIFY, IDENTIFY_SIZE);
}

function identity(): void {
  word(0, 0x0040); // an ATA device that is not removable
  word(2, 0xc837); // no SET FEATURES to spin up, and this data is complete
  text(10, SETTINGS_SERIAL, SETTINGS_SERIAL_SIZE);
  text(23, SETTINGS_FIRMWARE, SETTINGS_FIRMWARE_SIZE);
  text(27, SETTINGS_MODEL, SETTINGS_MODEL_SIZE);
  // Obsolete since ATA-4 and still shown by tools: dual-ported buffer with read cache, and its size in sectors.
  word(20, 3);
  word(21, DATA_BUFFER_SIZE / SECTOR_SIZE);
  word(80, 0x0078); // ATA-3 to ATA/ATAPI-6
  word(81, 0x0022); // ANSI INCITS 361-2002
}

function capabilities(): void {
  word(47, 0x8000 | MULTIPLE_SECTORS_MAX);
  word(49, 0x2f00); // standard standby timer, IORDY (may be disabled), LBA, DMA
  word(50, VALID);
  const multiple = featuresMultipleSectors();
  word(59, multiple == 0 ? 0 : 0x0100 | multiple);
}

function addressing(): void {
  word(1, geometryDefaultCylinders());
  word(3, geometryDefaultHeads());
  word(6, geometryDefaultSectorsPerTrack());
  word(53, 0x0007); // words 54-58, 64-70 and 88 are valid
  word(54, geometryCylinders());
  word(55, geometryHeads());
  word(56, geometrySectorsPerTrack());
  doubleWord(57, geometrySectors());
  const sectors = volumeSectors();
  doubleWord(60, <u32>min<u64>(sectors, LBA28_SECTORS_MAX));
  doubleWord(100, <u32>sectors);
  doubleWord(102, <u32>(sectors >> 32));
}

function transferModes(): void {
  word(51, 0x0200); // PIO and single word DMA timing mode 2, for hosts older than words 64-68
  word(52, 0x0200);
  word(63, (featuresMultiwordDmaSelected() << 8) | ((2 << MULTIWORD_DMA_MODE_MAX) - 1));
  word(64, 0x0003); // PIO 3 and 4
  for (let index: u32 = 65; index <= 68; index++) word(index, 120); // ns a word: MWDMA 2 and PIO 4
  word(88, (featuresUltraDmaSelected() << 8) | ((2 << ULTRA_DMA_MODE_MAX) - 1));
}

function commandSets(): void {
  const always = SET_NOP | SET_POWER_MANAGEMENT;
  word(82, always | SET_LOOK_AHEAD | SET_WRITE_CACHE);
  word(83, VALID | SET_FLUSH_AND_48_BIT);
  word(84, VALID);
  word(85, always | (featuresLookAhead() ? SET_LOOK_AHEAD : 0) | (featuresWriteCache() ? SET_WRITE_CACHE : 0));
  word(86, SET_FLUSH_AND_48_BIT);
  word(87, VALID);
}

/** Word 93: an 80-conductor cable (bit 13), and what this device found out at reset. The device number comes from a jumper
 * (01b in bits 2-1, or 10-9). */
function hardwareReset(): u32 {
  const lines = block.lines;
  const common = VALID | 0x2000;
  if ((lines & LINE_DEVICE_1) != 0) return common | 0x0b00; // PDIAG- asserted, jumper
  const peer = (lines & LINE_PEER_PRESENT) != 0 ? 0x0020 : 0x0040; // DASP- seen, or: answers for Device 1
  const passed = (lines & LINE_PEER_PASSED) != 0 ? 0x0010 : 0;
  return common | peer | passed | 0x000b; // diagnostics passed, jumper
}

/** Word 255: A5h, and what makes the sum of all 512 bytes zero. */
function checksum(): void {
  store<u8>(IDENTIFY + 510, 0xa5);
  let sum: u32 = 0;
  for (let i: u32 = 0; i < IDENTIFY_SIZE - 1; i++) sum += load<u8>(IDENTIFY + i);
  store<u8>(IDENTIFY + 511, <u8>(0 - sum));
}
