import { ACTION_DMA, ACTION_EXT, ACTION_MASK, ACTION_MULTIPLE, Action, commandAction, initCommands } from './commands';

// Codes as in [ATA-6] clause 8 and annex E, not from constants.ts: a second source.

function expectAction(code: u32, action: u32): void {
  expect(commandAction(<u8>code)).toBe(action);
}

describe('command table', () => {
  beforeAll(() => initCommands());

  it('has the data commands', () => {
    expectAction(0x20, Action.READ);
    expectAction(0x21, Action.READ);
    expectAction(0x24, Action.READ | ACTION_EXT);
    expectAction(0xc4, Action.READ | ACTION_MULTIPLE);
    expectAction(0x29, Action.READ | ACTION_MULTIPLE | ACTION_EXT);
    expectAction(0xc8, Action.READ | ACTION_DMA);
    expectAction(0xc9, Action.READ | ACTION_DMA);
    expectAction(0x25, Action.READ | ACTION_DMA | ACTION_EXT);
    expectAction(0x30, Action.WRITE);
    expectAction(0x31, Action.WRITE);
    expectAction(0x34, Action.WRITE | ACTION_EXT);
    expectAction(0xc5, Action.WRITE | ACTION_MULTIPLE);
    expectAction(0x39, Action.WRITE | ACTION_MULTIPLE | ACTION_EXT);
    expectAction(0xca, Action.WRITE | ACTION_DMA);
    expectAction(0xcb, Action.WRITE | ACTION_DMA);
    expectAction(0x35, Action.WRITE | ACTION_DMA | ACTION_EXT);
    expectAction(0x40, Action.VERIFY);
    expectAction(0x41, Action.VERIFY);
    expectAction(0x42, Action.VERIFY | ACTION_EXT);
    expectAction(0xec, Action.IDENTIFY);
  });

  it('has the others, old codes included', () => {
    for (let low: u32 = 0; low < 16; low++) {
      expectAction(0x10 | low, Action.RECALIBRATE);
      expectAction(0x70 | low, Action.SEEK);
    }
    expectAction(0x90, Action.DIAGNOSTIC);
    expectAction(0x91, Action.INITIALIZE_PARAMETERS);
    expectAction(0xc6, Action.SET_MULTIPLE);
    expectAction(0xef, Action.SET_FEATURES);
    expectAction(0xe7, Action.FLUSH);
    expectAction(0xea, Action.FLUSH | ACTION_EXT);
    expectAction(0xe0, Action.STANDBY_IMMEDIATE);
    expectAction(0x94, Action.STANDBY_IMMEDIATE);
    expectAction(0xe1, Action.IDLE_IMMEDIATE);
    expectAction(0x95, Action.IDLE_IMMEDIATE);
    expectAction(0xe2, Action.STANDBY);
    expectAction(0x96, Action.STANDBY);
    expectAction(0xe3, Action.IDLE);
    expectAction(0x97, Action.IDLE);
    expectAction(0xe5, Action.CHECK_POWER);
    expectAction(0x98, Action.CHECK_POWER);
    expectAction(0xe6, Action.SLEEP);
    expectAction(0x99, Action.SLEEP);
  });

  it('has 70 codes and nothing else', () => {
    let supported = 0;
    for (let code: u32 = 0; code < 256; code++) {
      if ((commandAction(<u8>code) & ACTION_MASK) != Action.ABORT) supported += 1;
    }
    expect(supported).toBe(70);
  });
});
