import {
  beginCard,
  bufferHolds,
  chs,
  command,
  connectServer,
  cutServer,
  fillBuffer,
  flushes,
  happen,
  INTRQ,
  imageHolds,
  LAST,
  lba28,
  lba48,
  PDIAG,
  post,
  powerOn,
  run,
  setRefuseWrites,
  setServerHeld,
  setUnreadable,
  shownLba28,
  shownLba48,
} from '../../tests/as-pect/assembly/ata-bench';
import { advanceClock } from '../../tests/as-pect/assembly/world';
import {
  block,
  FrontEndEvent,
  FrontEndOrder,
  LINE_DEVICE_1,
  LINE_PEER_PASSED,
  LINE_PEER_PRESENT,
} from '../front-end/block';
import { step } from '../index';
import { DATA_BUFFER_HALF_SIZE } from '../memory-map';
import { AcknowledgementPoint } from '../settings';
import { statistics } from '../statistics';
import { setAcknowledgementPoint } from '../write-log/write-log';
import { ataState, ataTimeoutMs, DeviceState } from './device';

const SECTORS: u32 = 8000;
const READY: u8 = 0x50;
const DRQ: u8 = 0x58;
const ERR: u8 = 0x51;
const FAULT: u8 = 0x71;
const ABRT: u8 = 0x04;
const IDNF: u8 = 0x10;
const UNC: u8 = 0x40;

/** The newest order answers the newest event and is this one. */
function expectOrder(order: FrontEndOrder, flags: u32, status: u8): void {
  expect(block.orderEvent).toBe(block.eventSequence);
  expect(block.order).toBe(order);
  expect(block.orderFlags).toBe(flags);
  if (order == FrontEndOrder.COMPLETE || order == FrontEndOrder.DATA_IN || order == FrontEndOrder.DATA_OUT) {
    expect(block.orderStatus).toBe(status);
  }
}

function expectDone(): void {
  expectOrder(FrontEndOrder.COMPLETE, INTRQ, READY);
  expect(block.error).toBe(0);
  expect(ataState()).toBe(DeviceState.IDLE);
}

function expectFailed(status: u8, error: u8): void {
  expectOrder(FrontEndOrder.COMPLETE, INTRQ, status);
  expect(block.error).toBe(error);
  expect(ataState()).toBe(DeviceState.IDLE);
}

/** PIO data-in from its first order on: the PC drains every block. */
function drain(lba: u32, count: u32, blockSectors: u32): void {
  let moved: u32 = 0;
  while (true) {
    const length = min(blockSectors, count - moved) * 512;
    const isLast = moved + length / 512 == count;
    expectOrder(FrontEndOrder.DATA_IN, isLast ? INTRQ | LAST : INTRQ, DRQ);
    expect(block.orderLength).toBe(length);
    expect(bufferHolds(block.orderOffset, length, lba + moved)).toBe(true);
    moved += length / 512;
    if (isLast) break;
    happen(FrontEndEvent.DATA_IN_DRAINED, 0);
  }
  expect(block.orderEndStatus).toBe(READY);
  expect(ataState()).toBe(DeviceState.IDLE);
}

/** PIO data-out from its first order on: the PC fills every block with `value`. */
function fill(count: u32, blockSectors: u32, value: u8): void {
  let moved: u32 = 0;
  while (moved < count) {
    const length = min(blockSectors, count - moved) * 512;
    expectOrder(FrontEndOrder.DATA_OUT, moved == 0 ? 0 : INTRQ, DRQ);
    expect(block.orderLength).toBe(length);
    fillBuffer(block.orderOffset, length, value);
    moved += length / 512;
    happen(FrontEndEvent.DATA_OUT_FILLED, 0);
  }
}

function readDma(lba: u32, count: u32): void {
  let moved: u32 = 0;
  while (moved < count) {
    expectOrder(FrontEndOrder.DMA_IN, 0, 0);
    expect(bufferHolds(block.orderOffset, block.orderLength, lba + moved)).toBe(true);
    moved += block.orderLength / 512;
    happen(FrontEndEvent.DMA_DONE, block.orderLength);
  }
}

function writeDma(count: u32, value: u8): void {
  let moved: u32 = 0;
  while (moved < count) {
    expectOrder(FrontEndOrder.DMA_OUT, 0, 0);
    fillBuffer(block.orderOffset, block.orderLength, value);
    moved += block.orderLength / 512;
    happen(FrontEndEvent.DMA_DONE, block.orderLength);
  }
}

describe('ATA device: reset', () => {
  it('is busy until the capacity is known, then shows signature and code', () => {
    beginCard();
    expect(happen(FrontEndEvent.RESET, 0)).toBe(0, 'no order');
    connectServer(SECTORS);
    expectOrder(FrontEndOrder.COMPLETE, 0, READY);
    expect(block.error).toBe(0x01);
    expect(block.sectorCount).toBe(1);
    expect(block.lbaLow).toBe(1);
    expect(block.lbaMid).toBe(0);
    expect(block.lbaHigh).toBe(0);
    expect(block.device).toBe(0xa0);
  });

  it('as Device 1 asserts PDIAG- before the capacity is known', () => {
    beginCard();
    block.lines = LINE_DEVICE_1;
    happen(FrontEndEvent.RESET, 0);
    expectOrder(FrontEndOrder.NONE, PDIAG, 0);
    connectServer(SECTORS);
    expectOrder(FrontEndOrder.COMPLETE, PDIAG, READY);
    expect(block.error).toBe(0x01);
  });

  it('as Device 0 waits for PDIAG-, and says 81h after 6 s without', () => {
    beginCard();
    block.lines = LINE_PEER_PRESENT;
    connectServer(SECTORS);
    expect(happen(FrontEndEvent.RESET, 1)).toBe(0);
    expect(ataTimeoutMs()).toBe(6000);
    advanceClock(5999);
    run();
    expect(ataState()).toBe(DeviceState.SAMPLE_PDIAG);
    expect(ataTimeoutMs()).toBe(1);
    advanceClock(1);
    run();
    expectOrder(FrontEndOrder.COMPLETE, 0, READY);
    expect(block.error).toBe(0x81);
    expect(ataTimeoutMs()).toBe(0xffffffff);
    expect(happen(FrontEndEvent.RESET, 1)).toBe(0);
    block.lines = LINE_PEER_PRESENT | LINE_PEER_PASSED;
    run();
    expectOrder(FrontEndOrder.COMPLETE, 0, READY);
    expect(block.error).toBe(0x01);
  });

  it('drops what was going on as soon as SRST is set', () => {
    powerOn(SECTORS);
    setServerHeld(true);
    lba28(10, 1);
    command(0x20);
    expect(ataState()).toBe(DeviceState.DATA_IN_PREPARE);
    expect(happen(FrontEndEvent.NONE, 0)).toBe(0);
    expect(ataState()).toBe(DeviceState.SRST);
    setServerHeld(false);
    run();
    expect(ataState()).toBe(DeviceState.SRST);
    happen(FrontEndEvent.RESET, 1);
    expectOrder(FrontEndOrder.COMPLETE, 0, READY);
    expect(statistics.resets).toBe(2);
  });
});

describe('ATA device: data', () => {
  beforeEach(() => powerOn(SECTORS));

  it('READ SECTORS gives a block for each sector', () => {
    lba28(100, 9);
    command(0x20);
    drain(100, 9, 1);
    expect(shownLba28()).toBe(108);
    expect(block.sectorCount).toBe(0);
    lba28(0, 0);
    command(0x21);
    drain(0, 256, 1);
    chs(1, 1, 1, 3);
    command(0x20);
    drain(1008 + 63, 3, 1);
  });

  it('READ SECTORS EXT, and chunks of half the data buffer', () => {
    lba48(5, 600);
    command(0x24);
    drain(5, 600, 1);
    expect(shownLba48()).toBe(604);
  });

  it('READ MULTIPLE (EXT) gives blocks as SET MULTIPLE MODE says, the last one shorter', () => {
    lba28(7, 40);
    command(0xc4);
    drain(7, 40, 16);
    block.sectorCount = 4;
    command(0xc6);
    expectDone();
    lba48(7, 258);
    command(0x29);
    drain(7, 258, 4);
  });

  it('READ DMA (EXT) interrupts at its end', () => {
    lba28(33, 17);
    command(0xc8);
    readDma(33, 17);
    expectDone();
    lba28(33, 1);
    command(0xc9);
    readDma(33, 1);
    expectDone();
    lba48(1, 1000);
    command(0x25);
    readDma(1, 1000);
    expectDone();
    expect(shownLba48()).toBe(1000);
  });

  it('WRITE SECTORS asks for a block for each sector, the first without an interrupt', () => {
    lba28(50, 5);
    command(0x30);
    fill(5, 1, 0x11);
    expectDone();
    expect(shownLba28()).toBe(54);
    expect(imageHolds(50, 5, 0x11)).toBe(true);
    expect(imageHolds(55, 1, 0x11)).toBe(false);
    lba28(60, 1);
    command(0x31);
    fill(1, 1, 0x12);
    expectDone();
    lba48(300, 513);
    command(0x34);
    fill(513, 1, 0x13);
    expectDone();
    expect(imageHolds(300, 513, 0x13)).toBe(true);
  });

  it('WRITE MULTIPLE (EXT)', () => {
    lba28(50, 33);
    command(0xc5);
    fill(33, 16, 0x21);
    expectDone();
    expect(imageHolds(50, 33, 0x21)).toBe(true);
    lba48(1000, 700);
    command(0x39);
    fill(700, 16, 0x22);
    expectDone();
    expect(imageHolds(1000, 700, 0x22)).toBe(true);
  });

  it('WRITE DMA (EXT), one half of the buffer filled while the other is written', () => {
    lba28(50, 0);
    command(0xca);
    writeDma(256, 0x31);
    expectDone();
    lba28(50, 1);
    command(0xcb);
    writeDma(1, 0x31);
    expectDone();
    lba48(2000, 1000);
    setServerHeld(true);
    command(0x35);
    fillBuffer(block.orderOffset, block.orderLength, 0x32);
    happen(FrontEndEvent.DMA_DONE, block.orderLength);
    // The server answers nothing: the halves go to the local store, and only the end of the command waits.
    expectOrder(FrontEndOrder.DMA_OUT, 0, 0);
    expect(block.orderOffset).toBe(DATA_BUFFER_HALF_SIZE);
    fillBuffer(block.orderOffset, block.orderLength, 0x32);
    happen(FrontEndEvent.DMA_DONE, block.orderLength);
    expectOrder(FrontEndOrder.DMA_OUT, 0, 0);
    expect(block.orderOffset).toBe(0);
    writeDma(1000 - 512, 0x32);
    expect(ataState()).toBe(DeviceState.DATA_OUT_FINISH, 'not committed');
    setServerHeld(false);
    run();
    expectDone();
    expect(imageHolds(2000, 1000, 0x32)).toBe(true);
  });

  it('what was written is what is read, before the server has committed it', () => {
    setAcknowledgementPoint(AcknowledgementPoint.REMOTE_RECEIVED);
    lba28(77, 3);
    command(0x30);
    fill(3, 1, 0x44);
    lba28(76, 5);
    command(0x20);
    drain(76, 5, 1);
    expect(flushes).toBe(0);
  });

  it('READ VERIFY SECTORS (EXT) moves nothing', () => {
    lba28(9, 0);
    command(0x40);
    expectDone();
    expect(shownLba28()).toBe(264);
    lba28(9, 1);
    command(0x41);
    expectDone();
    lba48(9, 2000);
    command(0x42);
    expectDone();
    expect(shownLba48()).toBe(2008);
  });

  it('a command that the PC cuts short by its DMA engine ends without interrupt', () => {
    lba28(9, 4);
    command(0xc8);
    happen(FrontEndEvent.DMA_TERMINATED, 512);
    expectOrder(FrontEndOrder.COMPLETE, 0, READY);
    lba28(9, 4);
    command(0xca);
    happen(FrontEndEvent.DMA_TERMINATED, 0);
    expectOrder(FrontEndOrder.COMPLETE, 0, READY);
    expect(imageHolds(9, 1, 0)).toBe(false);
  });

  it('READ/WRITE MULTIPLE end in ABRT while they are disabled', () => {
    block.sectorCount = 0;
    command(0xc6);
    expectDone();
    const codes: StaticArray<u8> = [0xc4, 0xc5, 0x29, 0x39];
    for (let i = 0; i < codes.length; i++) {
      lba48(0, 1);
      command(codes[i]);
      expectFailed(ERR, ABRT);
    }
  });
});

describe('ATA device: errors', () => {
  beforeEach(() => powerOn(SECTORS));

  it('every command with an address ends in IDNF outside of the disk', () => {
    const codes: StaticArray<u8> = [0x20, 0x21, 0x30, 0x31, 0x40, 0x41, 0xc4, 0xc5, 0xc8, 0xc9, 0xca, 0xcb];
    for (let i = 0; i < codes.length; i++) {
      lba28(SECTORS - 1, 2);
      expect(command(codes[i])).toBe(1, 'one order');
      expectFailed(ERR, IDNF);
      expect(shownLba28()).toBe(SECTORS);
      chs(7, 16, 1, 1);
      command(codes[i]);
      expectFailed(ERR, IDNF);
    }
    const extended: StaticArray<u8> = [0x24, 0x25, 0x29, 0x34, 0x35, 0x39, 0x42];
    for (let i = 0; i < extended.length; i++) {
      lba48(0x123456789abc, 1);
      command(extended[i]);
      expectFailed(ERR, IDNF);
      expect(shownLba48()).toBe(0x123456789abc);
    }
    lba28(SECTORS, 0);
    command(0x70);
    expectFailed(ERR, IDNF);
  });

  it('an unreadable sector is UNC, after everything before it', () => {
    setUnreadable(165);
    lba28(100, 100);
    command(0xc8);
    expectOrder(FrontEndOrder.DMA_IN, 0, 0);
    expect(block.orderLength).toBe(60 * 512, 'up to sector 160, where its 4 KiB block begins');
    expect(bufferHolds(block.orderOffset, block.orderLength, 100)).toBe(true);
    happen(FrontEndEvent.DMA_DONE, block.orderLength);
    expectFailed(ERR, UNC);
    expect(shownLba28()).toBe(160);
    expect(block.sectorCount).toBe(40);
    lba28(160, 1);
    command(0x20);
    expectFailed(ERR, UNC);
    command(0x40);
    expectFailed(ERR, UNC);
    chs(0, 2, 35, 1); // LBA 160
    command(0x20);
    expectFailed(ERR, UNC);
    expect(block.device & 0x0f).toBe(2);
    expect(block.lbaLow).toBe(35);
    expect(statistics.commandsFailed).toBe(4);
  });

  it('a read that waits too long for the server is UNC', () => {
    cutServer();
    lba28(1000, 1);
    expect(command(0x20)).toBe(0);
    advanceClock(19999);
    run();
    expect(ataState()).toBe(DeviceState.DATA_IN_PREPARE);
    advanceClock(1);
    run();
    expectFailed(ERR, UNC);
    expect(shownLba28()).toBe(1000);
  });

  it('a write or a flush that waits too long is a device fault', () => {
    cutServer();
    lba28(1000, 1);
    command(0x30);
    fillBuffer(block.orderOffset, 512, 1);
    expect(happen(FrontEndEvent.DATA_OUT_FILLED, 0)).toBe(0);
    advanceClock(20000);
    run();
    expectFailed(FAULT, ABRT);
    expect(command(0xe7)).toBe(0);
    advanceClock(20000);
    run();
    expectFailed(FAULT, ABRT);
  });

  it('a write that the server refuses is a device fault in the end, not a success', () => {
    setRefuseWrites(true);
    lba28(1000, 1);
    command(0x30);
    fillBuffer(block.orderOffset, 512, 1);
    expect(happen(FrontEndEvent.DATA_OUT_FILLED, 0)).toBe(0);
    advanceClock(20000);
    run();
    expectFailed(FAULT, ABRT);
  });

  it('codes that are not supported end in ABRT and leave the registers', () => {
    const codes: StaticArray<u8> = [
      0x00, 0x08, 0x22, 0x32, 0x3c, 0x50, 0x92, 0xa0, 0xa1, 0xb0, 0xe4, 0xe8, 0xf5, 0xf8, 0xff,
    ];
    for (let i = 0; i < codes.length; i++) {
      lba28(0x0234567, 0x89);
      command(codes[i]);
      expectFailed(ERR, ABRT);
      expect(shownLba28()).toBe(0x0234567);
      expect(block.sectorCount).toBe(0x89);
    }
  });

  it('events that no state expects are counted and change nothing', () => {
    const before = statistics.eventsIgnored;
    expect(happen(FrontEndEvent.DATA_IN_DRAINED, 0)).toBe(0);
    expect(happen(FrontEndEvent.DATA_OUT_FILLED, 0)).toBe(0);
    expect(happen(FrontEndEvent.DMA_DONE, 512)).toBe(0);
    expect(happen(FrontEndEvent.DMA_TERMINATED, 0)).toBe(0);
    expect(happen(<FrontEndEvent>99, 0)).toBe(0);
    lba28(9, 2);
    command(0x20);
    expect(happen(FrontEndEvent.DMA_DONE, 512)).toBe(0);
    expect(happen(FrontEndEvent.DATA_OUT_FILLED, 0)).toBe(0);
    happen(FrontEndEvent.DATA_IN_DRAINED, 0);
    expectOrder(FrontEndOrder.DATA_IN, INTRQ | LAST, DRQ);
    expect(statistics.eventsIgnored - before).toBe(7);
  });

  it('orders answer the newest event', () => {
    setServerHeld(true);
    lba28(9, 1);
    command(0xc8);
    post(FrontEndEvent.NONE, 0);
    step();
    post(FrontEndEvent.RESET, 1);
    setServerHeld(false);
    run();
    expectOrder(FrontEndOrder.COMPLETE, 0, READY);
  });
});

describe('ATA device: non-data', () => {
  beforeEach(() => powerOn(SECTORS));

  it('IDENTIFY DEVICE is one DRQ data block', () => {
    command(0xec);
    expectOrder(FrontEndOrder.DATA_IN, INTRQ | LAST, DRQ);
    expect(block.orderLength).toBe(512);
    expect(block.orderEndStatus).toBe(READY);
  });

  it('SEEK and RECALIBRATE, all codes', () => {
    for (let low: u8 = 0; low < 16; low++) {
      lba28(SECTORS - 1, 0);
      command(0x70 | low);
      expectDone();
      command(0x10 | low);
      expectDone();
    }
  });

  it('EXECUTE DEVICE DIAGNOSTIC interrupts on Device 0 alone', () => {
    command(0x90);
    expectOrder(FrontEndOrder.COMPLETE, INTRQ, READY);
    expect(block.error).toBe(0x01);
    expect(block.sectorCount).toBe(1);
    block.lines = LINE_DEVICE_1 | LINE_PEER_PRESENT;
    command(0x90);
    expectOrder(FrontEndOrder.COMPLETE, PDIAG, READY);
    expect(block.error).toBe(0x01);
  });

  it('INITIALIZE DEVICE PARAMETERS', () => {
    block.sectorCount = 17;
    block.device = 0xa3;
    command(0x91);
    expectDone();
    chs(1, 3, 17, 1);
    command(0x20);
    drain(2 * 4 * 17 - 1, 1, 1);
    block.sectorCount = 0;
    command(0x91);
    expectFailed(ERR, ABRT);
  });

  it('SET MULTIPLE MODE and SET FEATURES', () => {
    block.sectorCount = 8;
    command(0xc6);
    expectDone();
    block.sectorCount = 9;
    command(0xc6);
    expectFailed(ERR, ABRT);
    block.features = 0x03;
    block.sectorCount = 0x22;
    command(0xef);
    expectDone();
    block.sectorCount = 0x23;
    command(0xef);
    expectFailed(ERR, ABRT);
  });

  it('FLUSH CACHE (EXT), STANDBY (IMMEDIATE) and SLEEP have what was written committed', () => {
    setAcknowledgementPoint(AcknowledgementPoint.STORED);
    const codes: StaticArray<u8> = [0xe7, 0xea, 0xe0, 0x94, 0xe2, 0x96, 0xe6];
    for (let i = 0; i < codes.length; i++) {
      lba28(5, 1);
      command(0x30);
      fill(1, 1, <u8>i);
      expectDone();
      const before = flushes;
      block.sectorCount = 0;
      command(codes[i]);
      expectOrder(FrontEndOrder.COMPLETE, INTRQ, READY);
      expect(flushes).toBe(before + 1);
      expect(statistics.lagBytes).toBe(0);
    }
    expect(ataState()).toBe(DeviceState.SLEEP);
  });

  it('with the write cache off every write is committed before it ends', () => {
    block.features = 0x82;
    command(0xef);
    expectDone();
    lba48(0, 600);
    command(0x35);
    writeDma(600, 0x66);
    expectDone();
    expect(flushes).toBe(1);
    expect(statistics.lagBytes).toBe(0);
  });

  it('IDLE (IMMEDIATE) and CHECK POWER MODE', () => {
    command(0xe1);
    expectDone();
    command(0xe5);
    expectDone();
    expect(block.sectorCount).toBe(0x80);
    command(0x94);
    command(0x98);
    expect(block.sectorCount).toBe(0x00);
    block.sectorCount = 0;
    command(0x97);
    command(0xe5);
    expect(block.sectorCount).toBe(0x80);
    lba28(0, 1);
    command(0x40);
    command(0xe5);
    expect(block.sectorCount).toBe(0xff);
  });

  it('SLEEP hears nothing but a reset or EXECUTE DEVICE DIAGNOSTIC', () => {
    command(0xe6);
    expectOrder(FrontEndOrder.COMPLETE, INTRQ, READY);
    command(0xec);
    expectOrder(FrontEndOrder.COMPLETE, 0, READY);
    expect(ataState()).toBe(DeviceState.SLEEP);
    command(0x90);
    expect(ataState()).toBe(DeviceState.IDLE);
    command(0x99);
    happen(FrontEndEvent.RESET, 1);
    expect(ataState()).toBe(DeviceState.IDLE);
  });

  it('SRST keeps settings; CCh and power-on bring the defaults back', () => {
    block.sectorCount = 2;
    command(0xc6);
    happen(FrontEndEvent.RESET, 1);
    lba28(0, 4);
    command(0xc4);
    drain(0, 4, 2);
    block.features = 0xcc;
    command(0xef);
    happen(FrontEndEvent.RESET, 1);
    lba28(0, 4);
    command(0xc4);
    drain(0, 4, 16);
    block.sectorCount = 2;
    command(0xc6);
    happen(FrontEndEvent.RESET, 0);
    lba28(0, 4);
    command(0xc4);
    drain(0, 4, 16);
  });
});
