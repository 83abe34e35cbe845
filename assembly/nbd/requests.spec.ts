import { NBD_REQUEST_SIZE_MAX, NBD_REQUESTS_MAX } from '../config';
import { RANGES_MAX } from './arena';
import { NBD_CMD_FLUSH, NBD_CMD_READ, NBD_CMD_WRITE, NbdState } from './constants';
import {
  allocate,
  Cover,
  covered,
  coverRange,
  finishPart,
  initRequests,
  loseAll,
  nextToSend,
  pieceAddress,
  pieceRun,
  release,
  request,
  requestsInFlight,
  setPiece,
  slotOfCookie,
  startPart,
} from './requests';

const LENGTH: u32 = 16384;
const MEMORY: usize = 0x300000;

/** A read of LENGTH bytes with pieces one behind the other. */
function read(offset: u64): i32 {
  const slot = allocate(NBD_CMD_READ, 0, offset, LENGTH);
  for (let i: u32 = 0; i < LENGTH / 4096; i++) setPiece(slot, i, MEMORY + i * 4096);
  return slot;
}

function startedRead(): i32 {
  const slot = read(0);
  startPart(slot, NBD_REQUEST_SIZE_MAX);
  return slot;
}

describe('the account of a structured reply', () => {
  beforeEach(() => {
    initRequests();
  });

  it('is complete with one chunk', () => {
    const slot = startedRead();
    expect(covered(slot)).toBe(false);
    expect(coverRange(slot, 0, LENGTH)).toBe(Cover.OK);
    expect(covered(slot)).toBe(true);
  });

  it('joins chunks in order, in reverse order, and from both ends', () => {
    for (let order: u32 = 0; order < 3; order++) {
      initRequests();
      const slot = startedRead();
      for (let i: u32 = 0; i < 16; i++) {
        expect(covered(slot)).toBe(false);
        const backward = 15 - i;
        const inward = (i & 1) == 0 ? i / 2 : 15 - i / 2;
        const at = (order == 0 ? i : order == 1 ? backward : inward) * 1024;
        expect(coverRange(slot, at, at + 1024)).toBe(Cover.OK);
      }
      expect(covered(slot)).toBe(true);
      expect(request(slot).ranges).toBe(1);
    }
  });

  it('finds every kind of overlap with a range in the middle', () => {
    // [from, to) against [4096, 8192)
    const cases: StaticArray<u32> = [
      0, 4097, 4095, 4097, 4096, 8192, 4096, 4097, 5000, 6000, 8191, 8192, 8191, 9000, 0, 16384,
    ];
    for (let i = 0; i < cases.length; i += 2) {
      initRequests();
      const slot = startedRead();
      coverRange(slot, 4096, 8192);
      expect(coverRange(slot, cases[i], cases[i + 1])).toBe(Cover.OVERLAP);
    }
  });

  it('takes neighbours, which do not overlap', () => {
    const slot = startedRead();
    coverRange(slot, 4096, 8192);
    expect(coverRange(slot, 8192, 8193)).toBe(Cover.OK);
    expect(coverRange(slot, 4095, 4096)).toBe(Cover.OK);
    expect(request(slot).ranges).toBe(1);
  });

  it('finds an overlap with the next range when it grows the one before', () => {
    const slot = startedRead();
    coverRange(slot, 0, 1000);
    coverRange(slot, 2000, 3000);
    expect(coverRange(slot, 1000, 2001)).toBe(Cover.OVERLAP);
    expect(coverRange(slot, 1000, 2000)).toBe(Cover.OK);
    expect(request(slot).ranges).toBe(1);
  });

  it('gives up at too many loose parts, and still grows those that it has', () => {
    const slot = startedRead();
    for (let i: u32 = 0; i < RANGES_MAX; i++) expect(coverRange(slot, i * 100, i * 100 + 50)).toBe(Cover.OK);
    expect(coverRange(slot, 10000, 10001)).toBe(Cover.SCATTERED);
    expect(coverRange(slot, 50, 60)).toBe(Cover.OK);
    expect(coverRange(slot, 60, 100)).toBe(Cover.OK);
    expect(coverRange(slot, 10000, 10001)).toBe(Cover.OK);
  });

  it('is not complete with one byte missing, wherever it is', () => {
    for (let missing: u32 = 0; missing < LENGTH; missing += 1023) {
      initRequests();
      const slot = startedRead();
      if (missing > 0) coverRange(slot, 0, missing);
      if (missing + 1 < LENGTH) coverRange(slot, missing + 1, LENGTH);
      expect(covered(slot)).toBe(false);
      coverRange(slot, missing, missing + 1);
      expect(covered(slot)).toBe(true);
    }
  });
});

describe('requests', () => {
  beforeEach(() => {
    initRequests();
  });

  it('fill all slots and no more', () => {
    for (let i: u32 = 0; i < NBD_REQUESTS_MAX; i++) expect(allocate(NBD_CMD_FLUSH, 0, 0, 0)).toBe(<i32>i);
    expect(allocate(NBD_CMD_FLUSH, 0, 0, 0)).toBe(-1);
    release(5);
    expect(allocate(NBD_CMD_FLUSH, 0, 0, 0)).toBe(5);
  });

  it('go out in the order in which they came, without those that were released', () => {
    for (let i = 0; i < 4; i++) allocate(NBD_CMD_FLUSH, 0, 0, 0);
    release(1);
    const order: StaticArray<i32> = [0, 2, 3];
    for (let i = 0; i < order.length; i++) {
      expect(nextToSend()).toBe(order[i]);
      startPart(order[i], 4096);
    }
    expect(nextToSend()).toBe(-1);
    expect(requestsInFlight()).toBe(3);
  });

  it('answer to their own cookie only, and only while in flight', () => {
    const slot = startedRead();
    const cookie = request(slot).cookie;
    expect(slotOfCookie(cookie)).toBe(slot);
    expect(slotOfCookie(cookie + 1)).toBe(-1);
    expect(slotOfCookie(cookie | 0xffffffff)).toBe(-1);
    expect(slotOfCookie(cookie - ((<u64>1) << 32))).toBe(-1);
    expect(slotOfCookie(0)).toBe(-1);
    finishPart(slot);
    expect(slotOfCookie(cookie)).toBe(-1);
    release(slot);
    const next = startedRead();
    expect(next).toBe(slot);
    expect(slotOfCookie(cookie)).toBe(-1);
  });

  it('go in parts, the next before all others', () => {
    const slot = read(0);
    allocate(NBD_CMD_FLUSH, 0, 0, 0);
    startPart(slot, 8192);
    expect(request(slot).partLength).toBe(8192);
    finishPart(slot);
    expect(request(slot).state).toBe(NbdState.PENDING);
    expect(nextToSend()).toBe(slot);
    startPart(slot, 8192);
    expect(request(slot).partStart).toBe(8192);
    finishPart(slot);
    expect(request(slot).state).toBe(NbdState.DONE);
  });

  it('fail with the part that fails', () => {
    const slot = read(0);
    startPart(slot, 4096);
    request(slot).errno = 5;
    finishPart(slot);
    expect(request(slot).state).toBe(NbdState.FAILED);
    expect(nextToSend()).toBe(-1);
  });

  it('wait for a write that they touch, and only for that', () => {
    const write = allocate(NBD_CMD_WRITE, 0, 8192, 4096);
    setPiece(write, 0, MEMORY);
    startPart(write, 4096);
    // 16 KiB from 0 on touch it; from 12,288 on they do not.
    const touching = read(0);
    expect(nextToSend()).toBe(-1);
    release(touching);
    expect(nextToSend()).toBe(-1);
    const beside = read(12288);
    expect(nextToSend()).toBe(beside);
    finishPart(write);
    const behind = read(0);
    startPart(beside, LENGTH);
    expect(nextToSend()).toBe(behind);
  });

  it('are lost together; one that was abandoned is free', () => {
    const slot = startedRead();
    const abandoned = startedRead();
    release(abandoned);
    const queued = read(0);
    loseAll();
    expect(request(slot).state).toBe(NbdState.LOST);
    expect(request(queued).state).toBe(NbdState.LOST);
    expect(request(abandoned).state).toBe(NbdState.FREE);
    expect(requestsInFlight()).toBe(0);
    expect(nextToSend()).toBe(-1);
    expect(slotOfCookie(request(slot).cookie)).toBe(-1);
  });
});

describe('pieces', () => {
  beforeEach(() => {
    initRequests();
  });

  it('that are neighbours move as one', () => {
    const slot = read(0);
    expect(pieceRun(slot, 0, LENGTH)).toBe(LENGTH);
    expect(pieceRun(slot, 100, LENGTH - 100)).toBe(LENGTH - 100);
    expect(pieceRun(slot, 100, 50)).toBe(50);
    expect(pieceAddress(slot, 5000)).toBe(MEMORY + 5000);
  });

  it('that are not move one by one', () => {
    const slot = read(0);
    setPiece(slot, 2, MEMORY + 0x10000);
    expect(pieceRun(slot, 0, LENGTH)).toBe(8192);
    expect(pieceRun(slot, 8192, LENGTH - 8192)).toBe(4096);
    expect(pieceRun(slot, 8191, LENGTH - 8191)).toBe(1);
    expect(pieceAddress(slot, 8192 + 7)).toBe(MEMORY + 0x10000 + 7);
  });

  itThrows('that are missing stop the firmware, not memory 0', () => {
    startPart(allocate(NBD_CMD_READ, 0, 0, 4096), 4096);
  });

  itThrows('of a write cannot be taken back while it is pending', () => {
    const slot = allocate(NBD_CMD_WRITE, 0, 0, 4096);
    setPiece(slot, 0, MEMORY);
    startPart(slot, 4096);
    release(slot);
  });
});
