// What the card counts, for the status line and telemetry (SPEC.md "Statistics"). Counters only grow; the runtime may read
// the record between two steps and never writes it.

import { STATISTICS, STATISTICS_SIZE } from './memory-map';

export const STATISTICS_MAGIC: u32 = 0x53534252; // "RBSS"
export const STATISTICS_VERSION: u16 = 3;

export enum LinkState {
  /** Waiting before the next attempt, or never started. */
  DOWN = 0,
  CONNECTING = 1,
  NEGOTIATING = 2,
  UP = 3,
  /** The server refused for good (no such export, bad policy): see `linkError`. */
  REFUSED = 4,
}

@unmanaged
export class Statistics {
  magic: u32; // 0
  version: u16; // 4
  size: u16; // 6
  /** LinkState of the NBD connection. */
  linkState: u32; // 8
  /** The last NbdError, 0 when there was none. */
  linkError: u32; // 12
  /** Capacity in sectors, 0 until the server has told it. */
  sectors: u64; // 16
  commands: u64; // 24
  commandsFailed: u64; // 32
  sectorsRead: u64; // 40
  sectorsWritten: u64; // 48
  /** 4 KiB blocks found, or not found, in the cache when the PC asked for them. */
  blockHits: u64; // 56
  blockMisses: u64; // 64
  bytesFromServer: u64; // 72
  bytesToServer: u64; // 80
  /** Epochs that the server has committed over this card's life since power-on. */
  epochsCommitted: u64; // 88
  /** Written by the PC and not yet committed by the server. */
  lagBytes: u64; // 96
  lagEpochs: u32; // 104
  /** clock_ms() at which the oldest of them was written; valid while lagBytes is not 0. */
  lagSinceMs: u32; // 108
  connects: u32; // 112
  /** Events that the state machines ignored, writes while busy and the like. */
  eventsIgnored: u32; // 116
  /** Violations of the NBD protocol by the server. */
  protocolErrors: u32; // 120
  resets: u32; // 124
  /** StoreState. */
  storeState: u32; // 128
  /** StoreError: why the local store is refused. */
  storeError: u32; // 132
  /** Blocks of the log, and how many image blocks it holds, and how many of those are not committed. */
  storeBlocks: u32; // 136
  storeBlocksUsed: u32; // 140
  storeBlocksDirty: u32; // 144
  storeSegmentsFree: u32; // 148
  storeBlocksRead: u64; // 152
  storeBlocksWritten: u64; // 160
  storeFlushes: u64; // 168
  /** Blocks read from the store that were not what had been written. */
  storeBlocksBad: u64; // 176
  /** Writes that found the log full, and writes that were given up. */
  writesStalled: u32; // 184
  writesFailed: u32; // 188
  /** AcknowledgementPoint in force. */
  acknowledgementPoint: u32; // 192
  /** Times that uncommitted blocks were merged because the log was full. */
  merges: u32; // 196
  /** Commands of the PC that are in the log and stored, since power-on. */
  commandsStored: u64; // 200
  /** The image server's generation that the clean blocks are right for; 0: none, or a plain NBD server's. */
  generation: u64; // 208
  /** Clean blocks forgotten because others had changed them. */
  blocksForgotten: u64; // 216
  /** Conflicts that were settled on a branch since power-on. */
  conflicts: u32; // 224
  /** 1: the card works on a branch of its image. */
  onBranch: u32; // 228
}

export enum StoreState {
  STARTING = 0,
  READY = 1,
  /** See `storeError`. */
  REFUSED = 2,
  /** It does not take writes any more. */
  FAILED = 3,
}

export const statistics: Statistics = changetype<Statistics>(STATISTICS);

assert(offsetof<Statistics>() == 232);
assert(offsetof<Statistics>() <= STATISTICS_SIZE);

export function initStatistics(): void {
  memory.fill(STATISTICS, 0, STATISTICS_SIZE);
  statistics.magic = STATISTICS_MAGIC;
  statistics.version = STATISTICS_VERSION;
  statistics.size = <u16>offsetof<Statistics>();
}
