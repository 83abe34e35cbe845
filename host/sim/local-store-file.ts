// Where the local store of a simulated card is kept: in a file for each device and image, or in one for each device that all its
// images share, as they would share a board's SD card (SPEC.md "Partition table").

import { mkdirSync } from 'node:fs';
import path from 'node:path';
import { SHARE_SEGMENTS_MIN } from '../card/settings.js';
import { makeStoreFile } from '../card/store-file.js';
import { Failure } from '../failure.js';
import {
  decodePartitionTable,
  LOG_START_BLOCK,
  PARTITIONS_MAX,
  type Partition,
  SEGMENT_BLOCKS,
  SUPERBLOCK_COPIES,
} from '../local-store/format.js';
import { openStoreFile } from '../local-store/read-store.js';

/** Sparse: several times what a PC writes before the image server has it. A power of two, as QEMU's SD cards are. */
const STORE_SIZE = 1 << 30;
/** A segment is 1 MiB: the image has the whole store but for the table's blocks and its superblocks'. */
export const SHARE_SEGMENTS_MAX = segmentsIn(STORE_SIZE / 4096 - LOG_START_BLOCK);

/** The file of device `deviceNumber` with image `exportName`; it is made if it does not exist. `shareSegments`: what the image gets of
 * a store that the device's images share; 0: it has one alone. */
export function localStoreFile(folder: string, deviceNumber: 0 | 1, exportName: string, shareSegments: number): string {
  mkdirSync(folder, { recursive: true });
  const alone = `device${deviceNumber}-${encodeURIComponent(exportName)}`;
  const file = path.join(folder, shareSegments === 0 ? alone : `device${deviceNumber}`);
  makeStoreFile(file, STORE_SIZE);
  if (shareSegments !== 0) checkShare(file, exportName, shareSegments);
  return file;
}

/** The card refuses a share that is not there any more, and keeps what an image has got before: said here with what to do about it. */
function checkShare(file: string, exportName: string, segments: number): void {
  const source = openStoreFile(file);
  let partitions: Partition[];
  try {
    partitions = decodePartitionTable(source.read(0, SUPERBLOCK_COPIES)) ?? [];
  } finally {
    source.close();
  }
  const own = partitions.find(({ imageName }) => imageName === exportName);
  if (own !== undefined) {
    const has = segmentsIn(own.blocks);
    if (has === segments) return;
    throw new Failure(
      `"${exportName}" has ${has}M of the local store ${file}, and keeps that: say --local-share ${has}M, not ${segments}M`,
    );
  }
  const last = partitions.at(-1);
  const end = last === undefined ? LOG_START_BLOCK : last.first + last.blocks;
  const left = partitions.length === PARTITIONS_MAX ? 0 : Math.max(0, segmentsIn(source.blocks - end));
  if (segments <= left) return;
  const others = partitions.map(({ imageName, blocks }) => `"${imageName}" ${segmentsIn(blocks)}M`).join(', ');
  throw new Failure(
    `"${exportName}" cannot have ${segments}M of the local store ${file}: ${others} are taken (of at most ${PARTITIONS_MAX} images), ` +
      (left < SHARE_SEGMENTS_MIN
        ? 'there is no place for another one. --local-stores names another folder'
        : `${left}M are left. Ask for less, at least ${SHARE_SEGMENTS_MIN}M, or name another folder with --local-stores`),
  );
}

function segmentsIn(blocks: number): number {
  return Math.floor((blocks - LOG_START_BLOCK) / SEGMENT_BLOCKS);
}
