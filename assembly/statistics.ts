// What the card counts, for the status line and telemetry (SPEC.md "Statistics"). Counters only grow; the runtime may read
// the record between two steps and never writes it.

import { STATISTICS, STATISTICS_SIZE } from './memory-map';

export const STATISTICS_MAGIC: u32 = 0x53534252; // "RBSS"
export const STATISTICS_VERSION: u16 = 1;

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
}

export const statistics: Statistics = changetype<Statistics>(STATISTICS);

assert(offsetof<Statistics>() == 128);
assert(offsetof<Statistics>() <= STATISTICS_SIZE);

export function initStatistics(): void {
  memory.fill(STATISTICS, 0, STATISTICS_SIZE);
  statistics.magic = STATISTICS_MAGIC;
  statistics.version = STATISTICS_VERSION;
  statistics.size = <u16>offsetof<Statistics>();
}
