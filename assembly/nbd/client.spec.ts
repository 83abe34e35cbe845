// The bytes on the wire, as SPEC.md has them: what the card sends, and what it makes of a server's answer that comes byte by
// byte. Everything else is in tests/nbd-client/.

import {
  advanceClock,
  deliverHex,
  netOpens,
  netPath,
  resetWorld,
  setNetPaths,
  setNetState,
  setReceiveChunk,
  takeSentHex,
  tlsStarts,
} from '../../tests/as-pect/assembly/world';
import { NetState } from '../imports';
import { SETTINGS, SETTINGS_SIZE } from '../memory-map';
import { SETTINGS_EXPORT, SETTINGS_TLS, settings } from '../settings';
import { initStatistics, LinkState, statistics } from '../statistics';
import {
  initNbd,
  NbdError,
  NbdState,
  nbdErrno,
  nbdExportFlags,
  nbdExportSize,
  nbdFlush,
  nbdRead,
  nbdRelease,
  nbdSetPiece,
  nbdState,
  nbdStep,
  nbdUp,
  nbdWrite,
} from './client';

const MEMORY: usize = 0x300000;
const GREETING = '4e42444d41474943 49484156454f5054 0003';
const OPTION_REPLY = '0003e889045565a9';

function step(): void {
  while (nbdStep()) {}
}

function begin(tls: bool): void {
  initNbd();
  settings.flags = tls ? SETTINGS_TLS : 0;
  step();
  setNetState(0, NetState.OPEN);
  step();
}

/** Answers the handshake: 1 MiB, flags and structured replies. */
function haggle(): void {
  deliverHex(0, GREETING);
  step();
  deliverHex(0, `${OPTION_REPLY}00000008 00000001 00000000`);
  step();
  deliverHex(0, `${OPTION_REPLY}00000007 00000003 0000000c 0000 0000000000100000 002d`);
  deliverHex(0, `${OPTION_REPLY}00000007 00000001 00000000`);
  step();
}

describe('NBD on the wire', () => {
  beforeEach(() => {
    resetWorld();
    initStatistics();
    memory.fill(SETTINGS, 0, SETTINGS_SIZE);
    settings.exportLength = 4;
    store<u32>(SETTINGS + SETTINGS_EXPORT, 0x6f6d6564); // "demo"
  });

  it('haggles in this order', () => {
    begin(false);
    expect(takeSentHex(0)).toBe('');
    deliverHex(0, GREETING);
    step();
    expect(takeSentHex(0)).toBe('00000003' + '49484156454f5054' + '00000008' + '00000000');
    deliverHex(0, `${OPTION_REPLY}00000008 00000001 00000000`);
    step();
    expect(takeSentHex(0)).toBe(
      '49484156454f5054' + '00000007' + '0000000c' + '00000004' + '64656d6f' + '0001' + '0003',
    );
    deliverHex(0, `${OPTION_REPLY}00000007 00000003 0000000c 0000 0000000000100000 002d`);
    step();
    expect(nbdUp()).toBe(false);
    deliverHex(0, `${OPTION_REPLY}00000007 00000001 00000000`);
    step();
    expect(nbdUp()).toBe(true);
    expect(nbdExportSize()).toBe(0x100000);
    expect(nbdExportFlags()).toBe(0x2d);
    expect(statistics.linkState).toBe(LinkState.UP);
  });

  it('asks for TLS first, and for nothing else before it', () => {
    begin(true);
    deliverHex(0, GREETING);
    step();
    expect(takeSentHex(0)).toBe('00000003' + '49484156454f5054' + '00000005' + '00000000');
    deliverHex(0, `${OPTION_REPLY}00000005 00000001 00000000`);
    setNetState(0, NetState.OPEN);
    step();
    expect(tlsStarts(0)).toBe(1);
  });

  it('sends waiting requests together, and reads an answer byte by byte', () => {
    begin(false);
    haggle();
    takeSentHex(0);
    setReceiveChunk(0, 1);
    const read = nbdRead(0x1000, 8);
    nbdSetPiece(read, 0, MEMORY);
    const write = nbdWrite(0x2000, 4, 0);
    nbdSetPiece(write, 0, MEMORY + 4096);
    store<u32>(MEMORY + 4096, 0x44332211);
    const flush = nbdFlush(0);
    step();
    const first = takeSentHex(0);
    // magic, flags, type, cookie (8 bytes, ours to choose), offset, length
    expect(first.length).toBe(2 * (28 + 28 + 4 + 28));
    expect(first.substr(0, 16)).toBe('2560951300000000');
    expect(first.substr(32, 24)).toBe('0000000000001000' + '00000008');
    expect(first.substr(56, 16)).toBe('2560951300000001');
    expect(first.substr(88, 24)).toBe('0000000000002000' + '00000004');
    expect(first.substr(112, 8)).toBe('11223344');
    expect(first.substr(120, 16)).toBe('2560951300000003');
    const readCookie = first.substr(16, 16);
    const writeCookie = first.substr(72, 16);
    const flushCookie = first.substr(136, 16);

    // The flush is refused, the read comes in two chunks, the write is done.
    deliverHex(0, `67446698 0000001c${flushCookie}`);
    deliverHex(0, `668e33ef 0000 0002${readCookie}0000000c 0000000000001004 00000004`);
    deliverHex(0, `67446698 00000000${writeCookie}`);
    deliverHex(0, `668e33ef 0001 0001${readCookie}0000000c 0000000000001000 aabbccdd`);
    store<u64>(MEMORY, 0xffffffffffffffff);
    step();
    expect(nbdState(flush)).toBe(NbdState.FAILED);
    expect(nbdErrno(flush)).toBe(28);
    expect(nbdState(write)).toBe(NbdState.DONE);
    expect(nbdState(read)).toBe(NbdState.DONE);
    expect(load<u64>(MEMORY)).toBe(0x00000000ddccbbaa);
    expect(statistics.protocolErrors).toBe(0);
  });

  it('comes back after a violation, with nothing left of it', () => {
    begin(false);
    haggle();
    const slot = nbdFlush(0);
    step();
    deliverHex(0, '67446698 00000000 0123456789abcdef');
    step();
    expect(nbdState(slot)).toBe(NbdState.LOST);
    expect(statistics.linkError).toBe(NbdError.UNKNOWN_COOKIE);
    expect(statistics.protocolErrors).toBe(1);
    expect(statistics.linkState).toBe(LinkState.DOWN);
    expect(nbdFlush(0)).toBe(-1);
    nbdRelease(slot);
    advanceClock(150);
    step();
    expect(netOpens(0)).toBe(2);
    setNetState(0, NetState.OPEN);
    step();
    haggle();
    expect(nbdUp()).toBe(true);
  });

  it('notices a stream that ends behind what it receives', () => {
    begin(false);
    haggle();
    nbdSetPiece(nbdRead(0x1000, 8), 0, MEMORY);
    step();
    deliverHex(0, '668e33ef'); // a reply that is cut off
    setNetState(0, NetState.CLOSED);
    expect(nbdStep()).toBe(true);
    expect(nbdUp()).toBe(false);
    expect(statistics.linkError).toBe(NbdError.TRUNCATED);
  });

  it('takes the next network path when one fails, and stays on the one that works', () => {
    setNetPaths(2);
    begin(false);
    expect(netPath(0)).toBe(0);
    setNetState(0, NetState.CLOSED); // in the middle of the handshake
    step();
    advanceClock(150);
    step();
    expect(netPath(0)).toBe(1);
    setNetState(0, NetState.OPEN);
    step();
    haggle();
    expect(nbdUp()).toBe(true);
    setNetState(0, NetState.CLOSED); // it was good: there again
    step();
    advanceClock(1000);
    step();
    expect(netPath(0)).toBe(1);
    setNetState(0, NetState.CLOSED); // now it is not; of 2 and 3 there are none
    step();
    advanceClock(1000);
    step();
    expect(netPath(0)).toBe(0);
  });

  it('skips a network path that nothing leads to', () => {
    setNetPaths(0);
    initNbd();
    step();
    expect(netOpens(0)).toBe(4);
    setNetPaths(4);
    advanceClock(150);
    step();
    expect(netOpens(0)).toBe(5);
  });
});
