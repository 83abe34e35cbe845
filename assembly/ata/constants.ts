// Register bits and command codes, in the standard's words ([ATA-6] clauses 7 and 8).

export const STATUS_BSY: u8 = 0x80;
export const STATUS_DRDY: u8 = 0x40;
/** Device fault. */
export const STATUS_DF: u8 = 0x20;
/** Command dependent since ATA-4; seek complete before, and old hosts wait for it. */
export const STATUS_DSC: u8 = 0x10;
export const STATUS_DRQ: u8 = 0x08;
export const STATUS_ERR: u8 = 0x01;

/** Uncorrectable data. */
export const ERROR_UNC: u8 = 0x40;
/** Address out of range. */
export const ERROR_IDNF: u8 = 0x10;
export const ERROR_ABRT: u8 = 0x04;

/** Diagnostic codes ([ATA-6] 8.11). */
export const DIAGNOSTIC_PASSED: u8 = 0x01;
export const DIAGNOSTIC_DEVICE_1_FAILED: u8 = 0x81;

/** Bits 7 and 5 of the Device register are obsolete and were always one. */
export const DEVICE_OBSOLETE: u8 = 0xa0;
export const DEVICE_LBA: u8 = 0x40;
export const DEVICE_DEV: u8 = 0x10;

export const CMD_NOP: u8 = 0x00;
/** 10h to 1Fh. */
export const CMD_RECALIBRATE: u8 = 0x10;
export const CMD_READ_SECTORS: u8 = 0x20;
export const CMD_READ_SECTORS_WITHOUT_RETRY: u8 = 0x21;
export const CMD_READ_SECTORS_EXT: u8 = 0x24;
export const CMD_READ_DMA_EXT: u8 = 0x25;
export const CMD_READ_MULTIPLE_EXT: u8 = 0x29;
export const CMD_WRITE_SECTORS: u8 = 0x30;
export const CMD_WRITE_SECTORS_WITHOUT_RETRY: u8 = 0x31;
export const CMD_WRITE_SECTORS_EXT: u8 = 0x34;
export const CMD_WRITE_DMA_EXT: u8 = 0x35;
export const CMD_WRITE_MULTIPLE_EXT: u8 = 0x39;
export const CMD_READ_VERIFY_SECTORS: u8 = 0x40;
export const CMD_READ_VERIFY_SECTORS_WITHOUT_RETRY: u8 = 0x41;
export const CMD_READ_VERIFY_SECTORS_EXT: u8 = 0x42;
/** 70h to 7Fh. */
export const CMD_SEEK: u8 = 0x70;
export const CMD_EXECUTE_DEVICE_DIAGNOSTIC: u8 = 0x90;
export const CMD_INITIALIZE_DEVICE_PARAMETERS: u8 = 0x91;
export const CMD_READ_MULTIPLE: u8 = 0xc4;
export const CMD_WRITE_MULTIPLE: u8 = 0xc5;
export const CMD_SET_MULTIPLE_MODE: u8 = 0xc6;
export const CMD_READ_DMA: u8 = 0xc8;
export const CMD_READ_DMA_WITHOUT_RETRY: u8 = 0xc9;
export const CMD_WRITE_DMA: u8 = 0xca;
export const CMD_WRITE_DMA_WITHOUT_RETRY: u8 = 0xcb;
export const CMD_STANDBY_IMMEDIATE: u8 = 0xe0;
export const CMD_IDLE_IMMEDIATE: u8 = 0xe1;
export const CMD_STANDBY: u8 = 0xe2;
export const CMD_IDLE: u8 = 0xe3;
export const CMD_CHECK_POWER_MODE: u8 = 0xe5;
export const CMD_SLEEP: u8 = 0xe6;
export const CMD_FLUSH_CACHE: u8 = 0xe7;
export const CMD_FLUSH_CACHE_EXT: u8 = 0xea;
export const CMD_IDENTIFY_DEVICE: u8 = 0xec;
export const CMD_SET_FEATURES: u8 = 0xef;
/** The power commands as ATA-1 to ATA-3 had them; the codes above replaced these. */
export const CMD_STANDBY_IMMEDIATE_OLD: u8 = 0x94;
export const CMD_IDLE_IMMEDIATE_OLD: u8 = 0x95;
export const CMD_STANDBY_OLD: u8 = 0x96;
export const CMD_IDLE_OLD: u8 = 0x97;
export const CMD_CHECK_POWER_MODE_OLD: u8 = 0x98;
export const CMD_SLEEP_OLD: u8 = 0x99;
