// CHS translation ([ATA-6] 6.2): what the PC's cylinders, heads and sectors mean as LBAs.
//
// Invariant: cylinders * heads * sectorsPerTrack is at most the capacity, and at most 16,514,064.

/** 16,383 * 16 * 63: CHS reaches no further. */
export const CHS_SECTORS_MAX: u32 = 16514064;
export const CHS_INVALID: u32 = 0xffffffff;

const CYLINDERS_DEFAULT_MAX: u32 = 16383;
const CYLINDERS_MAX: u32 = 65535;
const HEADS_DEFAULT: u32 = 16;
const SECTORS_PER_TRACK_DEFAULT: u32 = 63;

/** What CHS can reach of this disk. */
let reach: u32 = 0;
let defaultCylinders: u32 = 0;
let defaultHeads: u32 = 0;
let defaultSectorsPerTrack: u32 = 0;
let cylinders: u32 = 0;
let heads: u32 = 0;
let sectorsPerTrack: u32 = 0;

export function geometryDefaultCylinders(): u32 {
  return defaultCylinders;
}
export function geometryDefaultHeads(): u32 {
  return defaultHeads;
}
export function geometryDefaultSectorsPerTrack(): u32 {
  return defaultSectorsPerTrack;
}
export function geometryCylinders(): u32 {
  return cylinders;
}
export function geometryHeads(): u32 {
  return heads;
}
export function geometrySectorsPerTrack(): u32 {
  return sectorsPerTrack;
}
/** Sectors that the current translation reaches. */
export function geometrySectors(): u32 {
  return cylinders * heads * sectorsPerTrack;
}

/** Chooses the default translation for `capacity` sectors, at least 1, and makes it the current one: 16 heads of 63 sectors
 * as every BIOS expects; fewer of them where the disk does not fill one such cylinder. */
export function initGeometry(capacity: u64): void {
  assert(capacity > 0);
  reach = <u32>min<u64>(capacity, CHS_SECTORS_MAX);
  defaultSectorsPerTrack = min(reach, SECTORS_PER_TRACK_DEFAULT);
  defaultHeads = min(reach / defaultSectorsPerTrack, HEADS_DEFAULT);
  defaultCylinders = min(reach / (defaultHeads * defaultSectorsPerTrack), CYLINDERS_DEFAULT_MAX);
  resetGeometry();
}

export function resetGeometry(): void {
  cylinders = defaultCylinders;
  heads = defaultHeads;
  sectorsPerTrack = defaultSectorsPerTrack;
}

/** INITIALIZE DEVICE PARAMETERS. False, and nothing changes, when the disk does not have one such cylinder. */
export function setGeometry(newHeads: u32, newSectorsPerTrack: u32): bool {
  const cylinderSectors = newHeads * newSectorsPerTrack;
  if (cylinderSectors == 0 || cylinderSectors > reach) return false;
  cylinders = min(reach / cylinderSectors, CYLINDERS_MAX);
  heads = newHeads;
  sectorsPerTrack = newSectorsPerTrack;
  return true;
}

/** The LBA of a CHS address, CHS_INVALID when there is no such sector. Sectors count from 1. */
export function chsToLba(cylinder: u32, head: u32, sector: u32): u32 {
  if (cylinder >= cylinders || head >= heads || sector == 0 || sector > sectorsPerTrack) return CHS_INVALID;
  return (cylinder * heads + head) * sectorsPerTrack + sector - 1;
}

/** Cylinder << 16 | head << 8 | sector of an LBA; also of the first one past the end. */
export function lbaToChs(lba: u32): u32 {
  const track = lba / sectorsPerTrack;
  return ((track / heads) << 16) | ((track % heads) << 8) | ((lba % sectorsPerTrack) + 1);
}
