// The firmware's entry points. The runtime calls init() once, then step() after every event and at the latest when the
// time that step() returned has passed.

import { ataStep, ataTimeoutMs, initAta } from './ata/device';
import { initCache } from './cache/cache';
import { changesStep, initChanges } from './changes/changes';
import { readClock } from './clock';
import { fillTimeoutMs } from './local-store/fills';
import { countLocalStore, initLocalStore, localStoreMemory, localStoreStep } from './local-store/local-store';
import { LogLevel, logEnd, logText, logValue } from './log';
import { initNbd, nbdStep, nbdTimeoutMs } from './nbd/client';
import { readSettings, SettingsError } from './settings';
import { initStatistics } from './statistics';
import { initVolume, volumeGiveUp, volumeStep, volumeTimeoutMs } from './volume/volume';
import { initWriteLog, WRITE_LOG_SIZE, writeLogStep, writeLogTimeoutMs } from './write-log/write-log';

export enum InitError {
  OK = 0,
  /** The settings record is missing or bad; the low byte is a SettingsError. */
  SETTINGS = 0x100,
  /** The runtime gave less memory than the firmware needs. */
  MEMORY = 0x200,
}

const PAGE_SIZE: u32 = 65536;

export function init(): u32 {
  readClock();
  initStatistics();
  const error = readSettings();
  if (error != SettingsError.OK) return InitError.SETTINGS | error;

  const arena = (__heap_base + 4095) & ~(<usize>4095);
  const end = <usize>memory.size() * PAGE_SIZE;
  if (arena + WRITE_LOG_SIZE >= end) return InitError.MEMORY;
  const store = arena + WRITE_LOG_SIZE;
  const available = <u32>(end - store);
  const storeSize = localStoreMemory(available);
  if (storeSize == 0) return InitError.MEMORY;

  initNbd();
  initChanges();
  initLocalStore(store, available);
  initWriteLog(arena);
  const cacheBlocks = initCache(store + storeSize, available - storeSize);
  if (cacheBlocks == 0) return InitError.MEMORY;
  initVolume();
  initAta();

  logText('ready');
  logValue('cache_blocks', cacheBlocks);
  logValue('store_bytes', storeSize);
  logEnd(LogLevel.INFO);
  return InitError.OK;
}

/** What step() asks, and how many of them in a row have had nothing to do. */
const PARTS: u32 = 6;
let quiet: u32 = 0;

function note(moved: bool): void {
  quiet = moved ? 0 : quiet + 1;
}

/** Runs until nothing moves. Returns milliseconds until the next call is due, 0xFFFFFFFF when only an event makes it so.
 *
 * The order of a round is part of how things are put together: what a part asks of one that comes later in the round need not count
 * as a move, so a round ends where it began. Unless it has only given the PC its answer, the usual case: an answer changes
 * nothing for those below the volume, and the volume has done all it could when it was asked for the answer. A command is given up
 * only when all that has arrived is looked at: its end may be among it. */
export function step(): u32 {
  do {
    run();
  } while (volumeGiveUp());
  countLocalStore();
  const above = min(ataTimeoutMs(), volumeTimeoutMs());
  const below = min(writeLogTimeoutMs(), fillTimeoutMs());
  return min(min(above, below), nbdTimeoutMs());
}

function run(): void {
  quiet = 0;
  do {
    readClock();
    note(volumeStep());
    note(ataStep());
    if (quiet >= PARTS) break;
    note(changesStep());
    note(writeLogStep());
    note(localStoreStep());
    note(nbdStep());
  } while (quiet < PARTS);
}
