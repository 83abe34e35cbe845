import { advanceClock, resetWorld } from '../../tests/as-pect/assembly/world';
import {
  checkPowerMode,
  initPower,
  PowerMode,
  powerAccess,
  powerEnter,
  setStandbyTimer,
  standbyPeriodMs,
} from './power';

const ACTIVE: u8 = 0xff;
const IDLE: u8 = 0x80;
const STANDBY: u8 = 0x00;

describe('power modes', () => {
  beforeEach(() => {
    resetWorld();
    initPower();
  });

  it('begin active, and are what was entered last', () => {
    expect(checkPowerMode()).toBe(ACTIVE);
    powerEnter(PowerMode.IDLE);
    expect(checkPowerMode()).toBe(IDLE);
    powerEnter(PowerMode.STANDBY);
    expect(checkPowerMode()).toBe(STANDBY);
    powerAccess();
    expect(checkPowerMode()).toBe(ACTIVE);
  });

  it('fall to standby when the timer has run out since the last access', () => {
    setStandbyTimer(1);
    powerAccess();
    advanceClock(4999);
    powerAccess();
    advanceClock(4999);
    expect(checkPowerMode()).toBe(ACTIVE);
    advanceClock(1);
    expect(checkPowerMode()).toBe(STANDBY);
    expect(checkPowerMode()).toBe(STANDBY);
  });

  it('count from idle, too', () => {
    powerEnter(PowerMode.IDLE);
    setStandbyTimer(2);
    advanceClock(9999);
    expect(checkPowerMode()).toBe(IDLE);
    advanceClock(1);
    expect(checkPowerMode()).toBe(STANDBY);
  });

  it('do not change by themselves without a timer', () => {
    setStandbyTimer(1);
    setStandbyTimer(0);
    powerAccess();
    advanceClock(0x7fffffff);
    expect(checkPowerMode()).toBe(ACTIVE);
  });

  it('take the periods of the standard', () => {
    expect(standbyPeriodMs(0)).toBe(0);
    expect(standbyPeriodMs(1)).toBe(5000);
    expect(standbyPeriodMs(240)).toBe(20 * 60 * 1000);
    expect(standbyPeriodMs(241)).toBe(30 * 60 * 1000);
    expect(standbyPeriodMs(251)).toBe(330 * 60 * 1000);
    expect(standbyPeriodMs(252)).toBe(21 * 60 * 1000);
    expect(standbyPeriodMs(253)).toBe(8 * 3600 * 1000);
    expect(standbyPeriodMs(254)).toBe(8 * 3600 * 1000);
    expect(standbyPeriodMs(255)).toBe((21 * 60 + 15) * 1000);
  });
});
