import { chs, lba28, lba48, powerOn, shownLba28, shownLba48 } from '../../tests/as-pect/assembly/ata-bench';
import { block } from '../front-end/block';
import { setGeometry } from './geometry';
import { decodeTaskfile, decodeTaskfileAddress, showAddress, showCount, taskfileCount, taskfileLba } from './taskfile';

const SECTORS: u32 = 10000;

describe('taskfile', () => {
  beforeEach(() => powerOn(SECTORS));

  it('gives a 28-bit address and count; 0 is 256', () => {
    lba28(0x1234, 5);
    expect(decodeTaskfile(false)).toBe(true);
    expect(taskfileLba()).toBe(0x1234);
    expect(taskfileCount()).toBe(5);
    lba28(0, 0);
    expect(decodeTaskfile(false)).toBe(true);
    expect(taskfileCount()).toBe(256);
  });

  it('gives a 48-bit address and count; 0 is 65,536', () => {
    lba48(0x1234, 0x201);
    expect(decodeTaskfile(true)).toBe(true);
    expect(taskfileLba()).toBe(0x1234);
    expect(taskfileCount()).toBe(0x201);
    lba48(0x123456789abc, 0);
    expect(decodeTaskfile(true)).toBe(false);
    expect(taskfileLba()).toBe(0x123456789abc);
    expect(taskfileCount()).toBe(65536);
  });

  it('takes the two-deep registers for 48-bit commands alone', () => {
    lba48(100 + ((<u64>1) << 40), 0x101);
    expect(decodeTaskfile(false)).toBe(true);
    expect(taskfileLba()).toBe(100);
    expect(taskfileCount()).toBe(1);
  });

  it('gives the LBA of a CHS address in the current translation', () => {
    chs(1, 2, 3, 4);
    expect(decodeTaskfile(false)).toBe(true);
    expect(taskfileLba()).toBe((16 + 2) * 63 + 2);
    expect(setGeometry(4, 10)).toBe(true);
    expect(decodeTaskfile(false)).toBe(true);
    expect(taskfileLba()).toBe((4 + 2) * 10 + 2);
  });

  it('refuses what is not on the disk and shows the first bad sector', () => {
    lba28(SECTORS - 3, 3);
    expect(decodeTaskfile(false)).toBe(true);
    lba28(SECTORS - 3, 4);
    expect(decodeTaskfile(false)).toBe(false);
    expect(shownLba28()).toBe(SECTORS);
    lba28(0x0fffffff, 256);
    expect(decodeTaskfile(false)).toBe(false);
    expect(shownLba28()).toBe(0x0fffffff);
    lba48(0xffffffffffff, 65536);
    expect(decodeTaskfile(true)).toBe(false);
    expect(shownLba48()).toBe(0xffffffffffff);
    lba48(SECTORS - 1, 2);
    expect(decodeTaskfile(true)).toBe(false);
    expect(shownLba48()).toBe(SECTORS);
  });

  it('leaves an impossible CHS address, and shows the end for a range over it', () => {
    // 10,000 sectors are 9 cylinders of 1008.
    chs(9, 0, 1, 1);
    expect(decodeTaskfile(false)).toBe(false);
    expect(block.lbaMid).toBe(9);
    chs(8, 15, 63, 2);
    expect(decodeTaskfile(false)).toBe(false);
    expect(block.lbaMid).toBe(9);
    expect(block.device & 0x0f).toBe(0);
    expect(block.lbaLow).toBe(1);
  });

  it('gives one sector for SEEK, whatever the count', () => {
    lba28(SECTORS - 1, 0);
    expect(decodeTaskfileAddress()).toBe(true);
    lba28(SECTORS, 0);
    expect(decodeTaskfileAddress()).toBe(false);
  });

  it('shows addresses in the form of the command, and keeps the other bits of Device', () => {
    lba28(1, 1);
    block.device |= 0x10;
    expect(decodeTaskfile(false)).toBe(true);
    showAddress(0x0a234567);
    expect(shownLba28()).toBe(0x0a234567);
    expect(block.device & 0xf0).toBe(0xf0);
    chs(0, 0, 1, 1);
    expect(decodeTaskfile(false)).toBe(true);
    showAddress(1008 + 63 + 5);
    expect(block.lbaMid).toBe(1);
    expect(block.device).toBe(0xa1);
    expect(block.lbaLow).toBe(6);
    lba48(1, 0x333);
    expect(decodeTaskfile(true)).toBe(true);
    showAddress(0x123456789abc);
    expect(shownLba48()).toBe(0x123456789abc);
    showCount(0x155);
    expect(block.sectorCount).toBe(0x55);
    expect(block.sectorCountPrevious).toBe(1);
  });
});
