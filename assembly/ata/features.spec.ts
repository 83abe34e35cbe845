import { block } from '../front-end/block';
import {
  featuresLookAhead,
  featuresMultipleSectors,
  featuresMultiwordDmaSelected,
  featuresRevertOnReset,
  featuresUltraDmaSelected,
  featuresWriteCache,
  initFeatures,
  setFeatures,
  setMultipleMode,
} from './features';

function set(subcommand: u8, count: u8 = 0): bool {
  block.features = subcommand;
  block.sectorCount = count;
  return setFeatures();
}

/** Whether SET FEATURES 03h takes this value, by [ATA-6] 8.46 and what the card claims in words 63, 64 and 88. */
function transferModeExists(value: u32): bool {
  const mode = value & 7;
  if (value >> 3 == 0) return mode < 2;
  if (value >> 3 == 1) return mode <= 4;
  if (value >> 3 == 4) return mode <= 2;
  return value >> 3 == 8 && mode <= 5;
}

describe('SET FEATURES', () => {
  beforeEach(() => initFeatures());

  it('begins with write cache, look-ahead, MWDMA 2 and 16 sectors a block', () => {
    expect(featuresWriteCache()).toBe(true);
    expect(featuresLookAhead()).toBe(true);
    expect(featuresRevertOnReset()).toBe(false);
    expect(featuresMultiwordDmaSelected()).toBe(4);
    expect(featuresUltraDmaSelected()).toBe(0);
    expect(featuresMultipleSectors()).toBe(16);
  });

  it('switches', () => {
    expect(set(0x82)).toBe(true);
    expect(featuresWriteCache()).toBe(false);
    expect(set(0x02)).toBe(true);
    expect(featuresWriteCache()).toBe(true);
    expect(set(0x55)).toBe(true);
    expect(featuresLookAhead()).toBe(false);
    expect(set(0xaa)).toBe(true);
    expect(featuresLookAhead()).toBe(true);
    expect(set(0xcc)).toBe(true);
    expect(featuresRevertOnReset()).toBe(true);
    expect(set(0x66)).toBe(true);
    expect(featuresRevertOnReset()).toBe(false);
  });

  it('selects one DMA mode at a time', () => {
    expect(set(0x03, 0x45)).toBe(true);
    expect(featuresUltraDmaSelected()).toBe(32);
    expect(featuresMultiwordDmaSelected()).toBe(0);
    expect(set(0x03, 0x21)).toBe(true);
    expect(featuresUltraDmaSelected()).toBe(0);
    expect(featuresMultiwordDmaSelected()).toBe(2);
    expect(set(0x03, 0x0c)).toBe(true);
    expect(featuresMultiwordDmaSelected()).toBe(2, 'a PIO mode leaves the DMA mode');
  });

  it('takes exactly the transfer modes that the card has', () => {
    for (let value: u32 = 0; value < 256; value++) {
      expect(set(0x03, <u8>value)).toBe(transferModeExists(value));
    }
  });

  it('refuses every other subcommand and changes nothing', () => {
    for (let subcommand: u32 = 0; subcommand < 256; subcommand++) {
      const known =
        subcommand == 0x02 ||
        subcommand == 0x03 ||
        subcommand == 0x55 ||
        subcommand == 0x66 ||
        subcommand == 0x82 ||
        subcommand == 0xaa ||
        subcommand == 0xcc;
      if (!known) expect(set(<u8>subcommand)).toBe(false);
    }
    expect(featuresWriteCache()).toBe(true);
    expect(featuresLookAhead()).toBe(true);
    expect(featuresMultiwordDmaSelected()).toBe(4);
  });
});

describe('SET MULTIPLE MODE', () => {
  beforeEach(() => initFeatures());

  it('takes powers of two up to 16; 0 and what it does not take disable', () => {
    for (let count: u32 = 0; count < 256; count++) {
      setMultipleMode(4);
      const supported = count == 0 || count == 1 || count == 2 || count == 4 || count == 8 || count == 16;
      expect(setMultipleMode(count)).toBe(supported);
      expect(featuresMultipleSectors()).toBe(supported ? count : 0);
    }
  });
});
