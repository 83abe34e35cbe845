import {
  CHS_INVALID,
  CHS_SECTORS_MAX,
  chsToLba,
  geometryCylinders,
  geometryDefaultCylinders,
  geometryDefaultHeads,
  geometryDefaultSectorsPerTrack,
  geometryHeads,
  geometrySectors,
  geometrySectorsPerTrack,
  initGeometry,
  lbaToChs,
  resetGeometry,
  setGeometry,
} from './geometry';

function expectDefault(capacity: u64, cylinders: u32, heads: u32, sectorsPerTrack: u32): void {
  initGeometry(capacity);
  expect(geometryDefaultCylinders()).toBe(cylinders);
  expect(geometryDefaultHeads()).toBe(heads);
  expect(geometryDefaultSectorsPerTrack()).toBe(sectorsPerTrack);
  expect(geometryCylinders()).toBe(cylinders);
  expect(geometryHeads()).toBe(heads);
  expect(geometrySectorsPerTrack()).toBe(sectorsPerTrack);
  expect(<u64>geometrySectors()).toBeLessThanOrEqual(capacity);
}

describe('CHS translation', () => {
  it('has 16 heads of 63 sectors, and at most 16,383 cylinders', () => {
    expectDefault(1008, 1, 16, 63);
    expectDefault(2015, 1, 16, 63);
    expectDefault(2016, 2, 16, 63);
    expectDefault(1 << 21, 2080, 16, 63);
    expectDefault(CHS_SECTORS_MAX - 1, 16382, 16, 63);
    expectDefault(CHS_SECTORS_MAX, 16383, 16, 63);
    expectDefault(1 << 32, 16383, 16, 63);
  });

  it('has fewer heads or sectors where the disk is smaller than that', () => {
    expectDefault(1, 1, 1, 1);
    expectDefault(62, 1, 1, 62);
    expectDefault(63, 1, 1, 63);
    expectDefault(125, 1, 1, 63);
    expectDefault(126, 1, 2, 63);
    expectDefault(1007, 1, 15, 63);
  });

  it('converts every address there and back', () => {
    initGeometry(5000);
    expect(setGeometry(3, 7)).toBe(true);
    let lba: u32 = 0;
    for (let cylinder: u32 = 0; cylinder < geometryCylinders(); cylinder++) {
      for (let head: u32 = 0; head < 3; head++) {
        for (let sector: u32 = 1; sector <= 7; sector++) {
          assert(chsToLba(cylinder, head, sector) == lba, 'to LBA');
          assert(lbaToChs(lba) == ((cylinder << 16) | (head << 8) | sector), 'to CHS');
          lba += 1;
        }
      }
    }
    expect(lba).toBe(geometrySectors());
    expect(lbaToChs(lba)).toBe((geometryCylinders() << 16) | 1, 'the first address past the end');
  });

  it('knows no address outside', () => {
    initGeometry(5000);
    expect(chsToLba(0, 0, 0)).toBe(CHS_INVALID);
    expect(chsToLba(0, 0, 64)).toBe(CHS_INVALID);
    expect(chsToLba(0, 16, 1)).toBe(CHS_INVALID);
    expect(chsToLba(4, 0, 1)).toBe(CHS_INVALID);
    expect(chsToLba(65535, 15, 63)).toBe(CHS_INVALID);
    expect(chsToLba(3, 15, 63)).toBe(4031);
  });

  it('is changed by INITIALIZE DEVICE PARAMETERS and reset to the default', () => {
    initGeometry(100000);
    expect(setGeometry(8, 32)).toBe(true);
    expect(geometryCylinders()).toBe(390);
    expect(geometryDefaultCylinders()).toBe(99);
    resetGeometry();
    expect(geometryCylinders()).toBe(99);
    expect(geometryHeads()).toBe(16);
  });

  it('takes a cylinder as large as the disk and none that is larger', () => {
    initGeometry(100);
    expect(setGeometry(2, 50)).toBe(true);
    expect(geometryCylinders()).toBe(1);
    expect(setGeometry(1, 101)).toBe(false);
    expect(setGeometry(1, 0)).toBe(false);
    expect(geometrySectors()).toBe(100, 'nothing has changed');
  });

  it('never has more than 65,535 cylinders', () => {
    initGeometry(CHS_SECTORS_MAX);
    expect(setGeometry(1, 1)).toBe(true);
    expect(geometryCylinders()).toBe(65535);
  });
});
