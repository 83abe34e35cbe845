import { resetWorld, SCRATCH, setSettings } from '../tests/as-pect/assembly/world';
import { crc32c } from './imports';
import { SETTINGS } from './memory-map';
import {
  acknowledgementDelayMs,
  readSettings,
  SETTINGS_EXPORT_SIZE,
  SETTINGS_MAGIC,
  SETTINGS_RECORD_SIZE,
  SETTINGS_TLS,
  SETTINGS_VERSION,
  SettingsError,
  settings,
  writeStallMs,
} from './settings';

// The offsets are those of SPEC.md, not of the class under test.

/** A good record in the spec's memory. */
function buildRecord(): void {
  memory.fill(SCRATCH, 0, SETTINGS_RECORD_SIZE);
  store<u32>(SCRATCH, SETTINGS_MAGIC);
  store<u16>(SCRATCH + 4, SETTINGS_VERSION);
  store<u16>(SCRATCH + 6, <u16>SETTINGS_RECORD_SIZE);
  store<u32>(SCRATCH + 12, SETTINGS_TLS);
  store<u32>(SCRATCH + 16, 20000);
  store<u32>(SCRATCH + 20, 1000);
  store<u32>(SCRATCH + 24, 4194304);
  store<u8>(SCRATCH + 28, 1);
  store<u8>(SCRATCH + 29, 50);
  store<u32>(SCRATCH + 360, 25000);
  store<u32>(SCRATCH + 364, 3);
  store<u16>(SCRATCH + 32, 4);
  store<u32>(SCRATCH + 104, 0x6f6d6564); // "demo"
}

/** Seals the record and lets the firmware read it. */
function read(): SettingsError {
  store<u32>(SCRATCH + 8, crc32c(0, SCRATCH + 12, SETTINGS_RECORD_SIZE - 12));
  setSettings(SCRATCH, SETTINGS_RECORD_SIZE);
  return readSettings();
}

describe('settings record', () => {
  beforeEach(() => {
    resetWorld();
    memory.fill(SETTINGS, 0xff, SETTINGS_RECORD_SIZE);
    buildRecord();
  });

  it('takes a good record', () => {
    expect(read()).toBe(SettingsError.OK);
    expect(settings.flags).toBe(SETTINGS_TLS);
    expect(settings.offlineReadTimeoutMs).toBe(20000);
    expect(settings.epochAgeMs).toBe(1000);
    expect(settings.epochSizeBytes).toBe(4194304);
    expect(settings.exportLength).toBe(4);
    expect<u32>(settings.acknowledgementPoint).toBe(1);
    expect<u32>(settings.dirtyThreshold).toBe(50);
    expect(writeStallMs()).toBe(25000);
    expect(acknowledgementDelayMs()).toBe(3);
  });

  it('refuses a missing record', () => {
    setSettings(SCRATCH, 0);
    expect(readSettings()).toBe(SettingsError.MISSING);
  });

  it('refuses a record that is cut short, at any length', () => {
    for (let length: u32 = 1; length < SETTINGS_RECORD_SIZE; length++) {
      setSettings(SCRATCH, length);
      expect(readSettings()).toBe(SettingsError.BAD_LENGTH);
    }
  });

  it('refuses values that make no sense', () => {
    store<u8>(SCRATCH + 28, 5);
    expect(read()).toBe(SettingsError.BAD_VALUE);
    store<u8>(SCRATCH + 28, 4);
    store<u8>(SCRATCH + 29, 101);
    expect(read()).toBe(SettingsError.BAD_VALUE);
    store<u8>(SCRATCH + 29, 100);
    store<u32>(SCRATCH + 360, 0);
    expect(read()).toBe(SettingsError.BAD_VALUE);
  });

  it('refuses another magic', () => {
    store<u32>(SCRATCH, 0x53534252);
    expect(read()).toBe(SettingsError.BAD_MAGIC);
  });

  it('refuses a version that it does not know', () => {
    store<u16>(SCRATCH + 4, SETTINGS_VERSION + 1);
    expect(read()).toBe(SettingsError.BAD_VERSION);
  });

  it('refuses another length field', () => {
    store<u16>(SCRATCH + 6, <u16>SETTINGS_RECORD_SIZE - 1);
    expect(read()).toBe(SettingsError.BAD_LENGTH);
  });

  it('notices every flipped bit that the checksum covers', () => {
    expect(read()).toBe(SettingsError.OK);
    for (let offset: u32 = 8; offset < SETTINGS_RECORD_SIZE; offset++) {
      const good = load<u8>(SCRATCH + offset);
      store<u8>(SCRATCH + offset, good ^ ((<u8>1) << (<u8>(offset & 7))));
      setSettings(SCRATCH, SETTINGS_RECORD_SIZE);
      expect(readSettings()).toBe(SettingsError.BAD_CHECKSUM);
      store<u8>(SCRATCH + offset, good);
    }
  });

  it('takes the longest export name and refuses a longer one', () => {
    store<u16>(SCRATCH + 32, <u16>SETTINGS_EXPORT_SIZE);
    expect(read()).toBe(SettingsError.OK);
    store<u16>(SCRATCH + 32, <u16>SETTINGS_EXPORT_SIZE + 1);
    expect(read()).toBe(SettingsError.BAD_VALUE);
  });

  it('refuses an epoch that could never close', () => {
    store<u32>(SCRATCH + 20, 0);
    expect(read()).toBe(SettingsError.BAD_VALUE);
    buildRecord();
    store<u32>(SCRATCH + 24, 0);
    expect(read()).toBe(SettingsError.BAD_VALUE);
  });
});
