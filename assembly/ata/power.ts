// Power modes ([ATA-6] clause 6, Power Management feature set). There is no spindle to stop; the PC sees the modes that it asked for, and its standby timer.

import { nowMs } from '../clock';

export enum PowerMode {
  ACTIVE = 0,
  IDLE = 1,
  STANDBY = 2,
}

/** What CHECK POWER MODE answers in Sector Count ([ATA-6] 8.7). */
const ANSWER_STANDBY: u8 = 0x00;
const ANSWER_IDLE: u8 = 0x80;
const ANSWER_ACTIVE: u8 = 0xff;

const SECOND_MS: u32 = 1000;
const MINUTE_MS: u32 = 60 * SECOND_MS;
const HOUR_MS: u32 = 60 * MINUTE_MS;

let mode: PowerMode = PowerMode.ACTIVE;
/** 0: the standby timer is off. */
let standbyTimerMs: u32 = 0;
let lastAccessMs: u32 = 0;

export function initPower(): void {
  standbyTimerMs = 0;
  mode = PowerMode.ACTIVE;
}

/** The medium is used. */
export function powerAccess(): void {
  mode = PowerMode.ACTIVE;
  if (standbyTimerMs != 0) lastAccessMs = nowMs;
}

export function powerEnter(newMode: PowerMode): void {
  mode = newMode;
  lastAccessMs = nowMs;
}

/** Sets the standby timer to the period that Sector Count asks for. */
export function setStandbyTimer(value: u32): void {
  standbyTimerMs = standbyPeriodMs(value);
}

export function checkPowerMode(): u8 {
  if (standbyTimerMs != 0 && nowMs - lastAccessMs >= standbyTimerMs) mode = PowerMode.STANDBY;
  if (mode == PowerMode.STANDBY) return ANSWER_STANDBY;
  return mode == PowerMode.IDLE ? ANSWER_IDLE : ANSWER_ACTIVE;
}

/** [ATA-6] 8.17, automatic standby timer periods. 253 is the vendor's choice of 8 to 12 hours; 254 is reserved and taken as that. */
export function standbyPeriodMs(value: u32): u32 {
  if (value <= 240) return value * 5 * SECOND_MS;
  if (value <= 251) return (value - 240) * 30 * MINUTE_MS;
  if (value == 252) return 21 * MINUTE_MS;
  if (value == 255) return 21 * MINUTE_MS + 15 * SECOND_MS;
  return 8 * HOUR_MS;
}
