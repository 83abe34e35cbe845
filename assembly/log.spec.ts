import { logCount, logLevel, logLine, resetWorld, SCRATCH } from '../tests/as-pect/assembly/world';
import { LogLevel, logBytes, logEnd, logText, logValue } from './log';
import { LOG_LINE, LOG_LINE_SIZE } from './memory-map';

describe('log', () => {
  beforeEach(() => resetWorld());

  it('sends text and values as one line', () => {
    logText('nbd up');
    logValue('size', 0);
    logValue('flags', 18446744073709551615);
    logEnd(LogLevel.WARNING);
    expect(logCount()).toBe(1);
    expect(logLine(0)).toBe('nbd up size=0 flags=18446744073709551615');
    expect(logLevel(0)).toBe(LogLevel.WARNING);
  });

  it('starts every line afresh', () => {
    logText('one');
    logEnd(LogLevel.INFO);
    logText('2');
    logEnd(LogLevel.DEBUG);
    expect(logLine(0)).toBe('one');
    expect(logLine(1)).toBe('2');
  });

  it('appends bytes as they are', () => {
    store<u8>(SCRATCH, 0xc3);
    store<u8>(SCRATCH + 1, 0xa9);
    logText('export ');
    logBytes(SCRATCH, 2);
    logEnd(LogLevel.INFO);
    expect(logLine(0)).toBe('export é');
  });

  it('cuts off what does not fit, and touches nothing behind its buffer', () => {
    store<u64>(LOG_LINE + LOG_LINE_SIZE, 0x5a5a5a5a5a5a5a5a);
    for (let i: u32 = 0; i < LOG_LINE_SIZE; i++) logText('xyz');
    logValue('late', 1);
    logEnd(LogLevel.ERROR);
    expect(logLine(0).length).toBe(LOG_LINE_SIZE);
    expect(load<u64>(LOG_LINE + LOG_LINE_SIZE)).toBe(0x5a5a5a5a5a5a5a5a);
    logText('next');
    logEnd(LogLevel.ERROR);
    expect(logLine(1)).toBe('next');
  });
});
