// The firmware's entry points. The runtime calls init() once, then step() after every event and at the latest when the
// time that step() returned has passed.

import { ataStep, ataTimeoutMs, initAta } from './ata/device';
import { initCache } from './cache/cache';

import { LogLevel, logEnd, logText, logValue } from './log';
import { initNbd, nbdStep, nbdTimeoutMs } from './nbd/client';
import { readSettings, SettingsError } from './settings';
import { initStatistics } from './statistics';
import { initVolume, volumeStep, volumeTimeoutMs } from './volume/volume';
import { initWriteLog, writeLogStep, writeLogTimeoutMs } from './write-log/write-log';

export enum InitError {
  OK = 0,
  /** The settings record is missing or bad; the low byte is a SettingsError. */
  SETTINGS = 0x100,
  /** The runtime gave less memory than the firmware needs. */
  MEMORY = 0x200,
}

const PAGE_SIZE: u32 = 65536;
/** The write log gets an eighth of the memory, within these bounds; the cache gets the rest. */
const WRITE_LOG_SIZE_LOW: u32 = 1 << 20;
const WRITE_LOG_SIZE_HIGH: u32 = 32 << 20;

export function init(): u32 {
  initStatistics();
  const error = readSettings();
  if (error != SettingsError.OK) return InitError.SETTINGS | error;

  const arena = (__heap_base + 4095) & ~(<usize>4095);
  const end = <usize>memory.size() * PAGE_SIZE;
  const writeLogSize = min(max(<u32>end / 8, WRITE_LOG_SIZE_LOW), WRITE_LOG_SIZE_HIGH);
  if (arena + writeLogSize >= end) return InitError.MEMORY;

  initNbd();
  if (!initWriteLog(arena, writeLogSize)) return InitError.MEMORY;
  const cacheBlocks = initCache(arena + writeLogSize, <u32>(end - arena) - writeLogSize);
  if (cacheBlocks == 0) return InitError.MEMORY;
  initVolume();
  initAta();

  logText('ready');
  logValue('cache_blocks', cacheBlocks);
  logValue('write_log_bytes', writeLogSize);
  logEnd(LogLevel.INFO);
  return InitError.OK;
}

/** Runs until nothing moves. Returns milliseconds until the next call is due, 0xFFFFFFFF when only an event makes it so. */
export function step(): u32 {
  let progressed = true;
  while (progressed) {
    progressed = ataStep();
    progressed = volumeStep() || progressed;
    progressed = writeLogStep() || progressed;
    progressed = nbdStep() || progressed;
  }
  return min(min(ataTimeoutMs(), nbdTimeoutMs()), min(volumeTimeoutMs(), writeLogTimeoutMs()));
}
