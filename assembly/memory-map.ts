// Linear memory: every arena, its offset, size and owner. The runtime provides the memory and chooses its size before the
// firmware starts; it never grows. What lies behind the static data (from __heap_base up) is the cache's and the write
// log's, shared out by init().
//
//   0x000000  never used, so that a null pointer traps the reader's eye
//   0x001000  front end's register block            front-end/block.ts
//   0x002000  settings record                       settings.ts
//   0x003000  statistics record                     statistics.ts
//   0x003400  control record                        write-log/write-log.ts
//   0x004000  NBD requests and protocol staging      nbd/
//   0x008000  log line staging                      log.ts
//   0x009000  IDENTIFY DEVICE data                  ata/identify.ts
//   0x00A000  superblock in memory                  local-store/superblock.ts
//   0x00B000  summary on its way to the store       local-store/record-log.ts
//   0x00C000  store operations                      local-store/device.ts
//   0x00C100  rows on their way to the log's head    local-store/relocate.ts
//   0x00D000  blocks to fill the store with          local-store/fills.ts
//   0x00F000  extents that the image server has told  changes/changes.ts
//   0x010000  data buffer                           ata/, front end
//   0x050000  payload as it is on the wire           nbd/pieces.ts
//   0x100000  static data (asconfig.json, memoryBase), then __heap_base

export const FRONT_END: usize = 0x1000;
export const FRONT_END_SIZE: u32 = 0x100;

export const SETTINGS: usize = 0x2000;
export const SETTINGS_SIZE: u32 = 0x400;

export const STATISTICS: usize = 0x3000;
export const STATISTICS_SIZE: u32 = 0x400;

/** Written by the card's runtime or who runs it, read by the firmware (SPEC.md "Control"). */
export const CONTROL: usize = 0x3400;

export const NBD: usize = 0x4000;
export const NBD_SIZE: u32 = 0x4000;

export const LOG_LINE: usize = 0x8000;
export const LOG_LINE_SIZE: u32 = 0x200;

export const IDENTIFY: usize = 0x9000;
export const IDENTIFY_SIZE: u32 = 0x200;

export const STORE_SUPERBLOCK: usize = 0xa000;
export const STORE_SUMMARY: usize = 0xb000;
export const STORE_OPERATIONS: usize = 0xc000;
export const STORE_OPERATIONS_SIZE: u32 = 0x40;
export const STORE_RELOCATION: usize = 0xc100;
export const STORE_RELOCATION_SIZE: u32 = 0x800;
export const STORE_FILLS: usize = 0xd000;
export const STORE_FILLS_SIZE: u32 = 0x2000;

export const CHANGES_EXTENTS: usize = 0xf000;

/** Two halves of 128 KiB: one is with the front end while the firmware fills or empties the other.
 * 256 sectors (the most that a 28-bit command moves) * 512 = 128 KiB. */
export const DATA_BUFFER: usize = 0x10000;
export const DATA_BUFFER_SIZE: u32 = 0x40000;
export const DATA_BUFFER_HALF_SIZE: u32 = 0x20000;

export const NBD_WIRE: usize = 0x50000;
export const NBD_WIRE_SIZE: u32 = 0x81000;

export const STATIC_DATA: usize = 0x100000;
