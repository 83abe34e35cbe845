// A device that several images share: in place of the superblock of a device for one image it begins with a partition table, and
// each image has a local store of its own in a partition, superblock and all. A card has one image at a time; the others'
// partitions, with what is uncommitted in them, are not touched.
//
//   block 0..3      table copies; the one with sequence number n lies at n mod 4
//   block 4..15     0
//   block 16..      partitions, one behind the other
//
// Invariant: partitions are only added, so the newest valid table describes every image that was ever there.

import { BLOCK_SIZE } from '../config';
import { crc32c } from '../imports';
import { SETTINGS, STORE_SUPERBLOCK } from '../memory-map';
import { SETTINGS_EXPORT, settings } from '../settings';
import { deviceBlocks } from './device';
import { LOG_START_BLOCK, SEGMENT_BLOCKS, STORE_VERSION, SUPERBLOCK_COPIES } from './format';

const PARTITION_TABLE_MAGIC: u32 = 0x504c4252; // "RBLP"
const CHECKSUM_FROM: u32 = 12;
const PARTITIONS_AT: u32 = 64;
const PARTITION_SIZE: u32 = 272;
/** (4096 - 64) / 272 */
export const PARTITIONS_MAX: u32 = 14;

@unmanaged
class PartitionTable {
  magic: u32; // 0
  version: u16; // 4
  length: u16; // 6: 4096
  checksum: u32; // 8: CRC-32C of bytes 12 to 4095
  count: u32; // 12
  sequence: u64; // 16
  /** Size of the device. */
  blocks: u32; // 24
}

@unmanaged
class Partition {
  first: u32; // 0
  blocks: u32; // 4
  nameLength: u16; // 8
  // 16: the image's export name, UTF-8, 256 bytes
}

const PARTITION_NAME: usize = 16;

assert(PARTITIONS_AT + PARTITIONS_MAX * PARTITION_SIZE <= BLOCK_SIZE);

/** The table lies where the superblock of the image's own partition comes later. */
const table: PartitionTable = changetype<PartitionTable>(STORE_SUPERBLOCK);

/** No such partition. */
export const NO_PARTITION: u32 = 0xffffffff;

/** Looks at the four copies at `copies` for a table; false when there is none. */
export function choosePartitionTable(copies: usize): bool {
  let best: usize = 0;
  for (let i: u32 = 0; i < SUPERBLOCK_COPIES; i++) {
    const address = copies + i * BLOCK_SIZE;
    if (!isTable(address)) continue;
    if (best == 0 || changetype<PartitionTable>(address).sequence > changetype<PartitionTable>(best).sequence)
      best = address;
  }
  if (best == 0) return false;
  memory.copy(STORE_SUPERBLOCK, best, BLOCK_SIZE);
  return true;
}

function isTable(address: usize): bool {
  const copy = changetype<PartitionTable>(address);
  return (
    copy.magic == PARTITION_TABLE_MAGIC &&
    copy.version == STORE_VERSION &&
    copy.count <= PARTITIONS_MAX &&
    copy.checksum == crc32c(0, address + CHECKSUM_FROM, BLOCK_SIZE - CHECKSUM_FROM)
  );
}

/** A table without partitions, on a device that is blank. */
export function makePartitionTable(): void {
  memory.fill(STORE_SUPERBLOCK, 0, BLOCK_SIZE);
  table.magic = PARTITION_TABLE_MAGIC;
  table.version = STORE_VERSION;
  table.length = <u16>BLOCK_SIZE;
  table.blocks = deviceBlocks();
}

function partitionAt(i: u32): Partition {
  return changetype<Partition>(STORE_SUPERBLOCK + PARTITIONS_AT + i * PARTITION_SIZE);
}

/** The partition of the image that the settings name. */
export function partitionFind(): u32 {
  for (let i: u32 = 0; i < table.count; i++) {
    const name = changetype<usize>(partitionAt(i)) + PARTITION_NAME;
    if (partitionAt(i).nameLength != settings.exportLength) continue;
    if (memory.compare(name, SETTINGS + SETTINGS_EXPORT, settings.exportLength) == 0) return i;
  }
  return NO_PARTITION;
}

/** Gives the image of the settings `segments` segments; NO_PARTITION when they are not there any more. */
export function partitionAdd(segments: u32): u32 {
  const i = table.count;
  if (i == PARTITIONS_MAX) return NO_PARTITION;
  const first = i == 0 ? LOG_START_BLOCK : partitionFirst(i - 1) + partitionBlocks(i - 1);
  const blocks = <u64>LOG_START_BLOCK + <u64>segments * SEGMENT_BLOCKS;
  if (<u64>first + blocks > <u64>deviceBlocks()) return NO_PARTITION;
  const partition = partitionAt(i);
  partition.first = first;
  partition.blocks = <u32>blocks;
  partition.nameLength = settings.exportLength;
  memory.copy(changetype<usize>(partition) + PARTITION_NAME, SETTINGS + SETTINGS_EXPORT, settings.exportLength);
  table.count = i + 1;
  return i;
}

export function partitionFirst(i: u32): u32 {
  return partitionAt(i).first;
}

export function partitionBlocks(i: u32): u32 {
  return partitionAt(i).blocks;
}

/** Gives the table its next sequence number and checksum; returns the block where it belongs. */
export function nextPartitionTable(): u32 {
  table.sequence += 1;
  table.checksum = crc32c(0, STORE_SUPERBLOCK + CHECKSUM_FROM, BLOCK_SIZE - CHECKSUM_FROM);
  return <u32>(table.sequence % SUPERBLOCK_COPIES);
}
