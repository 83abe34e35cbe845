import { powerOn } from '../../tests/as-pect/assembly/ata-bench';
import { SCRATCH } from '../../tests/as-pect/assembly/world';
import { block, LINE_DEVICE_1, LINE_PEER_PASSED, LINE_PEER_PRESENT } from '../front-end/block';
import { SETTINGS } from '../memory-map';
import { SETTINGS_MODEL } from '../settings';
import { setFeatures, setMultipleMode } from './features';
import { setGeometry } from './geometry';
import { identifyDevice } from './identify';

const TARGET: usize = SCRATCH + 0xf00000;

function word(index: u32): u32 {
  identifyDevice(TARGET);
  return load<u16>(TARGET + 2 * index);
}

function text(first: u32, last: u32): string {
  identifyDevice(TARGET);
  let result = '';
  for (let index = first; index <= last; index++) {
    const value = load<u16>(TARGET + 2 * index);
    result += String.fromCharCode(value >> 8) + String.fromCharCode(value & 0xff);
  }
  return result;
}

describe('IDENTIFY DEVICE data', () => {
  beforeEach(() => powerOn(20000));

  it('sums up to zero, whatever it says', () => {
    for (let round: u8 = 0; round < 20; round++) {
      store<u8>(SETTINGS + SETTINGS_MODEL, 0x41 + round);
      identifyDevice(TARGET);
      let sum: u8 = 0;
      for (let i: usize = 0; i < 512; i++) sum += load<u8>(TARGET + i);
      expect(sum).toBe(0);
      expect(load<u8>(TARGET + 510)).toBe(0xa5);
    }
  });

  it('has the texts with the first character in the high byte', () => {
    expect(text(10, 19)).toBe('SERIAL-1            ');
    expect(text(23, 26)).toBe('1.0     ');
    expect(text(27, 46)).toBe('MODEL                                   ');
  });

  it('has default and current translation apart', () => {
    expect(setGeometry(8, 32)).toBe(true);
    expect(word(1)).toBe(19);
    expect(word(3)).toBe(16);
    expect(word(6)).toBe(63);
    expect(word(54)).toBe(78);
    expect(word(55)).toBe(8);
    expect(word(56)).toBe(32);
    expect(word(57) | (word(58) << 16)).toBe(78 * 8 * 32);
  });

  it('has the capacity twice', () => {
    expect(word(60) | (word(61) << 16)).toBe(20000);
    expect(word(100) | (word(101) << 16)).toBe(20000);
    expect(word(102) | word(103)).toBe(0);
  });

  it('shows what was set', () => {
    expect(word(59)).toBe(0x0110);
    setMultipleMode(4);
    expect(word(59)).toBe(0x0104);
    setMultipleMode(0);
    expect(word(59)).toBe(0);
    expect(word(63)).toBe(0x0407);
    expect(word(88)).toBe(0x003f);
    block.features = 0x03;
    block.sectorCount = 0x44;
    expect(setFeatures()).toBe(true);
    expect(word(63)).toBe(0x0007);
    expect(word(88)).toBe(0x103f);
    block.features = 0x82;
    expect(setFeatures()).toBe(true);
    expect(word(85)).toBe(0x4048);
    expect(word(82)).toBe(0x4068);
  });

  it('has in word 93 what this device saw at reset', () => {
    block.lines = 0;
    expect(word(93)).toBe(0x604b);
    block.lines = LINE_PEER_PRESENT;
    expect(word(93)).toBe(0x602b);
    block.lines = LINE_PEER_PRESENT | LINE_PEER_PASSED;
    expect(word(93)).toBe(0x603b);
    block.lines = LINE_DEVICE_1 | LINE_PEER_PRESENT;
    expect(word(93)).toBe(0x6b00);
  });
});
