// `ribbon bench recovery`: from power-on to the first answered command, on local stores of 1 to 64 GB of which 25 % is uncommitted.
//
// The stores are made here from SPEC.md "Local store", full but for the segments that a card keeps free: superblock, the summary of every
// segment, and one segment behind them that has none and must be replayed. The data of older segments are holes in a sparse
// file: a power-on does not read them. There is no image server; the command is a read that the store can answer.

import { closeSync, fsyncSync, ftruncateSync, mkdtempSync, openSync, rmSync, writeSync } from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import { crc32c } from '../card/crc32c.js';
import { loadFirmware } from '../card/firmware.js';
import { InProcessCard } from '../card/in-process.js';
import { DEFAULT_SETTINGS } from '../card/settings.js';
import { Cable } from '../front-end/cable.js';
import { BLOCK_SIZE, LOG_START_BLOCK, RecordFlag, RecordKind, RowFlag, SEGMENT_BLOCKS } from '../local-store/format.js';
import { AtaDriver } from '../pc/ata-driver.js';
import type { Benchmark, BenchOptions, Figure } from './report.js';

const GB = 1_000_000_000;
const MIB = 1 << 20;
const STORE_ID = 0x5249_4242_4f4e_0001n;
const EXPORT_NAME = 'disk';
/** 15 records of a header and 16 blocks fill a segment's 255 blocks. */
const RECORDS_A_SEGMENT = 15;
const BLOCKS_A_RECORD = 16;
const SEGMENTS_FREE = 16;
const DIRTY_SHARE = 0.25;

const benchmark: Benchmark = {
  title: 'from power-on to the first answered command, local store full, 25 % uncommitted, no image server',
  async run(options: BenchOptions, onProgress): Promise<Figure[]> {
    const folder = mkdtempSync(path.join(os.tmpdir(), 'ribbon-bench-'));
    const figures: Figure[] = [];
    try {
      for (const size of options.quick ? [1] : [1, 4, 16, 64]) {
        onProgress(`${size} GB`);
        const file = path.join(folder, 'store');
        const { segments, dirtyBlocks } = writeStore(file, size * GB);
        const { seconds, found } = await recover(file, segments);
        if (found !== dirtyBlocks) throw new Error(`${dirtyBlocks} blocks are uncommitted, the card says ${found}`);
        const bar = size === 4 ? { bar: 1, atMost: true } : {};
        figures.push({
          name: `${size} GB, ${dirtyBlocks.toLocaleString('en-US')} blocks uncommitted`,
          value: seconds,
          unit: 's',
          ...bar,
        });
        rmSync(file);
      }
      return figures;
    } finally {
      rmSync(folder, { recursive: true, force: true });
    }
  },
};

export default benchmark;

async function recover(file: string, segments: number): Promise<{ seconds: number; found: number }> {
  const rows = segments * SEGMENT_BLOCKS;
  const firmware = loadFirmware();
  // The table takes 16 bytes a block and at most half of the card's memory.
  const memorySize = Math.max(64 * MIB, Math.ceil((2 * 16 * rows) / MIB + 32) * MIB);
  const started = performance.now();
  const card = new InProcessCard({
    firmware,
    settings: { ...DEFAULT_SETTINGS, exportName: EXPORT_NAME },
    path: { address: { path: path.join(path.dirname(file), 'nobody') } },
    memorySize,
    storeFile: file,
  });
  try {
    await card.start();
    const driver = new AtaDriver(new Cable([card.frontEnd]));
    await driver.open();
    const data = new Uint8Array(BLOCK_SIZE);
    await driver.read(0, data);
    const seconds = (performance.now() - started) / 1000;
    if (!data.every((byte) => byte === 0x52)) throw new Error('the first command was answered with wrong bytes');
    return { seconds, found: card.statistics().storeBlocksDirty };
  } finally {
    card.cut();
  }
}

/** Makes the store; the newest block of the log is image block 0, all 52h. */
function writeStore(file: string, sizeBytes: number): { segments: number; dirtyBlocks: number } {
  const blocks = Math.floor(sizeBytes / BLOCK_SIZE);
  const segments = Math.floor((blocks - LOG_START_BLOCK) / SEGMENT_BLOCKS);
  const full = segments - SEGMENTS_FREE;
  const perSegment = RECORDS_A_SEGMENT * BLOCKS_A_RECORD;
  const committedSegments = Math.floor(full * (1 - DIRTY_SHARE));
  const committed = committedSegments * RECORDS_A_SEGMENT;
  const handle = openSync(file, 'w');
  try {
    ftruncateSync(handle, blocks * BLOCK_SIZE);
    const write = (block: number, data: Buffer) => writeSync(handle, data, 0, data.length, block * BLOCK_SIZE);
    write(1, superblock(blocks, segments, (1 + full * perSegment) * 8));
    const place = (segment: number) => LOG_START_BLOCK + (segment % segments) * SEGMENT_BLOCKS;
    for (let segment = 1; segment <= full; segment++) {
      write(place(segment) + SEGMENT_BLOCKS - 1, summary(segment, committed, segment > committedSegments));
    }
    const data = Buffer.alloc(BLOCK_SIZE, 0x52);
    write(place(full + 1), Buffer.concat([record(full + 1, full * RECORDS_A_SEGMENT + 1, committed, data), data]));
    // Or the card's flush at power-on would write all of this.
    fsyncSync(handle);
  } finally {
    closeSync(handle);
  }
  return { segments, dirtyBlocks: (full - committedSegments) * perSegment + 1 };
}

function seal(block: Buffer, magic: string, end: number): Buffer {
  block.write(magic, 0, 'latin1');
  block.writeUInt16LE(1, 4);
  block.writeUInt32LE(crc32c(block.subarray(12, end)), 8);
  return block;
}

function superblock(blocks: number, segments: number, imageSectors: number): Buffer {
  const block = Buffer.alloc(BLOCK_SIZE);
  block.writeUInt16LE(512, 6);
  block.writeUInt32LE(1, 12);
  block.writeBigUInt64LE(1n, 16);
  block.writeBigUInt64LE(STORE_ID, 24);
  block.writeUInt32LE(blocks, 32);
  block.writeUInt32LE(segments, 36);
  block.writeBigUInt64LE(BigInt(imageSectors), 40);
  block.writeUInt32LE(LOG_START_BLOCK, 48);
  block.writeUInt32LE(SEGMENT_BLOCKS, 52);
  block.writeUInt16LE(EXPORT_NAME.length, 56);
  block.write(EXPORT_NAME, 64, 'latin1');
  return seal(block, 'RBLS', 512);
}

function summary(segment: number, committed: number, isDirty: boolean): Buffer {
  const block = Buffer.alloc(BLOCK_SIZE);
  block.writeUInt32LE(1, 12);
  block.writeBigUInt64LE(STORE_ID, 16);
  block.writeBigUInt64LE(BigInt(segment), 24);
  block.writeBigUInt64LE(BigInt((segment - 1) * RECORDS_A_SEGMENT + 1), 32);
  block.writeBigUInt64LE(BigInt(committed), 40);
  block.writeUInt32LE(RECORDS_A_SEGMENT, 48);
  block.writeBigUInt64LE(BigInt(committed + 1), 56);
  let at = 64;
  let image = 1 + (segment - 1) * RECORDS_A_SEGMENT * BLOCKS_A_RECORD;
  for (let header = 0; header < RECORDS_A_SEGMENT; header++) {
    block.writeUInt32LE(BLOCKS_A_RECORD * 8, at);
    block.set([RecordKind.WRITE, RecordFlag.BEGINS | RecordFlag.ENDS, RowFlag.HEADER], at + 8);
    at += 12;
    for (let i = 0; i < BLOCKS_A_RECORD; i++, at += 12) {
      block.writeUInt32LE(image++, at);
      block.set([0xff, isDirty ? 0xff : 0, RowFlag.WRITE], at + 8);
    }
  }
  block.writeBigUInt64LE(1n, 4072);
  return seal(block, 'RBLG', BLOCK_SIZE);
}

function record(segment: number, number: number, committed: number, data: Buffer): Buffer {
  const block = Buffer.alloc(BLOCK_SIZE);
  block.set([RecordKind.WRITE, RecordFlag.BEGINS | RecordFlag.ENDS], 6);
  block.writeUInt16LE(1, 12);
  block.writeBigUInt64LE(STORE_ID, 16);
  block.writeBigUInt64LE(BigInt(segment), 24);
  block.writeBigUInt64LE(BigInt(number), 32);
  block.writeBigUInt64LE(BigInt(committed), 40);
  block.writeBigUInt64LE(BigInt(number - 1), 48);
  block.writeUInt32LE(1, 56);
  block.writeUInt32LE(8, 60);
  block.writeBigUInt64LE(BigInt(committed + 1), 64);
  block.writeUInt32LE(0, 80);
  block.writeUInt32LE(crc32c(data), 84);
  block.set([0xff, 0xff], 88);
  block.writeBigUInt64LE(1n, 4072);
  return seal(block, 'RBLR', BLOCK_SIZE);
}
