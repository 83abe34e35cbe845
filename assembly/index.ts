// The firmware's entry points. The runtime calls init() once, then step() after every event and at the latest when the
// time that step() returned has passed.

import { ataStep, ataTimeoutMs, initAta } from './ata/device';
import { initCache } from './cache/cache';
import { changesStep, initChanges } from './changes/changes';
import { fillTimeoutMs } from './local-store/fills';
import { initLocalStore, localStoreMemory, localStoreStep } from './local-store/local-store';
import { LogLevel, logEnd, logText, logValue } from './log';
import { initNbd, nbdStep, nbdTimeoutMs } from './nbd/client';
import { readSettings, SettingsError } from './settings';
import { initStatistics } from './statistics';
import { initVolume, volumeStep, volumeTimeoutMs } from './volume/volume';
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

/** Runs until nothing moves. Returns milliseconds until the next call is due, 0xFFFFFFFF when only an event makes it so. */
export function step(): u32 {
  let progressed = true;
  while (progressed) {
    progressed = ataStep();
    progressed = volumeStep() || progressed;
    progressed = changesStep() || progressed;
    progressed = writeLogStep() || progressed;
    progressed = localStoreStep() || progressed;
    progressed = nbdStep() || progressed;
  }
  const above = min(ataTimeoutMs(), volumeTimeoutMs());
  const below = min(writeLogTimeoutMs(), fillTimeoutMs());
  return min(min(above, below), nbdTimeoutMs());
}
