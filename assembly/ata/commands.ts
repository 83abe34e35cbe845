// What each command code asks for: one byte a code, looked up once a command.

import * as ATA from './constants';

export enum Action {
  /** Not supported: ABRT. */
  ABORT = 0,
  READ = 1,
  WRITE = 2,
  VERIFY = 3,
  SEEK = 4,
  RECALIBRATE = 5,
  IDENTIFY = 6,
  DIAGNOSTIC = 7,
  INITIALIZE_PARAMETERS = 8,
  SET_MULTIPLE = 9,
  SET_FEATURES = 10,
  FLUSH = 11,
  STANDBY_IMMEDIATE = 12,
  IDLE_IMMEDIATE = 13,
  STANDBY = 14,
  IDLE = 15,
  CHECK_POWER = 16,
  SLEEP = 17,
}

// A table entry is an Action with these bits.
export const ACTION_MASK: u32 = 0x1f;
/** 48-bit form: two-byte registers. */
export const ACTION_EXT: u32 = 0x20;
/** DRQ data blocks of several sectors. */
export const ACTION_MULTIPLE: u32 = 0x40;
export const ACTION_DMA: u32 = 0x80;

const CODES: u32 = 256;
const table: usize = memory.data(256);

/** The table entry of a command code. NOP is defined to end in ABRT ([ATA-6] 8.22). */
export function commandAction(code: u8): u32 {
  return load<u8>(table + code);
}

function define(code: u8, action: u32): void {
  store<u8>(table + code, <u8>action);
}

export function initCommands(): void {
  memory.fill(table, <u8>Action.ABORT, CODES);
  for (let code: u8 = 0; code < 16; code++) {
    define(ATA.CMD_RECALIBRATE + code, Action.RECALIBRATE);
    define(ATA.CMD_SEEK + code, Action.SEEK);
  }
  define(ATA.CMD_READ_SECTORS, Action.READ);
  define(ATA.CMD_READ_SECTORS_WITHOUT_RETRY, Action.READ);
  define(ATA.CMD_READ_SECTORS_EXT, Action.READ | ACTION_EXT);
  define(ATA.CMD_READ_MULTIPLE, Action.READ | ACTION_MULTIPLE);
  define(ATA.CMD_READ_MULTIPLE_EXT, Action.READ | ACTION_MULTIPLE | ACTION_EXT);
  define(ATA.CMD_READ_DMA, Action.READ | ACTION_DMA);
  define(ATA.CMD_READ_DMA_WITHOUT_RETRY, Action.READ | ACTION_DMA);
  define(ATA.CMD_READ_DMA_EXT, Action.READ | ACTION_DMA | ACTION_EXT);
  define(ATA.CMD_WRITE_SECTORS, Action.WRITE);
  define(ATA.CMD_WRITE_SECTORS_WITHOUT_RETRY, Action.WRITE);
  define(ATA.CMD_WRITE_SECTORS_EXT, Action.WRITE | ACTION_EXT);
  define(ATA.CMD_WRITE_MULTIPLE, Action.WRITE | ACTION_MULTIPLE);
  define(ATA.CMD_WRITE_MULTIPLE_EXT, Action.WRITE | ACTION_MULTIPLE | ACTION_EXT);
  define(ATA.CMD_WRITE_DMA, Action.WRITE | ACTION_DMA);
  define(ATA.CMD_WRITE_DMA_WITHOUT_RETRY, Action.WRITE | ACTION_DMA);
  define(ATA.CMD_WRITE_DMA_EXT, Action.WRITE | ACTION_DMA | ACTION_EXT);
  define(ATA.CMD_READ_VERIFY_SECTORS, Action.VERIFY);
  define(ATA.CMD_READ_VERIFY_SECTORS_WITHOUT_RETRY, Action.VERIFY);
  define(ATA.CMD_READ_VERIFY_SECTORS_EXT, Action.VERIFY | ACTION_EXT);
  define(ATA.CMD_EXECUTE_DEVICE_DIAGNOSTIC, Action.DIAGNOSTIC);
  define(ATA.CMD_INITIALIZE_DEVICE_PARAMETERS, Action.INITIALIZE_PARAMETERS);
  define(ATA.CMD_IDENTIFY_DEVICE, Action.IDENTIFY);
  define(ATA.CMD_SET_MULTIPLE_MODE, Action.SET_MULTIPLE);
  define(ATA.CMD_SET_FEATURES, Action.SET_FEATURES);
  define(ATA.CMD_FLUSH_CACHE, Action.FLUSH);
  define(ATA.CMD_FLUSH_CACHE_EXT, Action.FLUSH | ACTION_EXT);
  define(ATA.CMD_STANDBY_IMMEDIATE, Action.STANDBY_IMMEDIATE);
  define(ATA.CMD_STANDBY_IMMEDIATE_OLD, Action.STANDBY_IMMEDIATE);
  define(ATA.CMD_IDLE_IMMEDIATE, Action.IDLE_IMMEDIATE);
  define(ATA.CMD_IDLE_IMMEDIATE_OLD, Action.IDLE_IMMEDIATE);
  define(ATA.CMD_STANDBY, Action.STANDBY);
  define(ATA.CMD_STANDBY_OLD, Action.STANDBY);
  define(ATA.CMD_IDLE, Action.IDLE);
  define(ATA.CMD_IDLE_OLD, Action.IDLE);
  define(ATA.CMD_CHECK_POWER_MODE, Action.CHECK_POWER);
  define(ATA.CMD_CHECK_POWER_MODE_OLD, Action.CHECK_POWER);
  define(ATA.CMD_SLEEP, Action.SLEEP);
  define(ATA.CMD_SLEEP_OLD, Action.SLEEP);
}
