// The port socket: a foreign program is the PC. Registers, PCI, bus master DMA, holds, and the protocol's own edges.

import assert from 'node:assert/strict';
import { once } from 'node:events';
import { existsSync, mkdtempSync, readFileSync, rmSync, truncateSync, writeFileSync } from 'node:fs';
import net from 'node:net';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { after, before, describe, test } from 'node:test';
import {
  ABRT,
  BM_ACTIVE,
  BM_INTERRUPT,
  BSY,
  COMMAND_BASE,
  DEV,
  DF,
  DRDY,
  DRQ,
  END_OF_TABLE,
  ERR,
  LBA,
  PortPc,
  REG,
} from './port-client.js';

const IMAGE_SIZE = 64 << 20;
const CMD_READ_DMA = 0xc8;
const CMD_WRITE_DMA = 0xca;
const CMD_IDENTIFY = 0xec;
const CMD_FLUSH = 0xe7;
const CMD_DIAGNOSTIC = 0x90;

let folder: string;

before(() => {
  folder = mkdtempSync(path.join(tmpdir(), 'ribbon-test-'));
});
after(() => rmSync(folder, { recursive: true, force: true }));

function image(name: string, size = IMAGE_SIZE): string {
  const file = path.join(folder, name);
  writeFileSync(file, '');
  truncateSync(file, size);
  return file;
}

/** One PC for the tests of a group. */
function withPc(options: () => string[]): { pc: PortPc } {
  const holder = {} as { pc: PortPc };
  before(async () => {
    holder.pc = await PortPc.start(options());
  });
  after(async () => {
    assert.equal(await holder.pc.stop(), 0, holder.pc.errors.join(''));
  });
  return holder;
}

describe('one disk', () => {
  const holder = withPc(() => ['--image0', image('one'), '--serial0', 'testdisk', '--firmware0', 'version']);

  test('PCI function 00:01.1: identity, command register, a re-mappable 16-byte I/O range', async () => {
    const { pc } = holder;
    assert.equal(await pc.readConfig(0x00), 0x70108086);
    assert.equal((await pc.readConfig(0x08)) >>> 8, 0x010180);
    await pc.writeConfig(0x20, 0xffffffff);
    assert.equal(await pc.readConfig(0x20), 0xfffffff1);
    await pc.writeConfig(0x20, 0xd000);
    await pc.writeConfig(0x04, 7, 'outw');
    assert.equal(await pc.readConfig(0x04, 'inw'), 7);
    await pc.do('outl 0xd004 0x12345678');
    assert.equal(await pc.value('inl 0xd004'), 0x12345678);
    await pc.writeConfig(0x20, 0xd100);
    assert.equal(await pc.value('inl 0xd004'), 0xffffffff);
    assert.equal(await pc.value('inl 0xd104'), 0x12345678);
    await pc.writeConfig(0x04, 0, 'outw');
    assert.equal(await pc.value('inl 0xd104'), 0xffffffff);
    assert.equal(await pc.inb(0x1f7), 0xff);
    await pc.enableIde();
    assert.equal((await pc.status()) & (BSY | DRDY), DRDY);
  });

  test('other PCI functions and other ports read all ones', async () => {
    const { pc } = holder;
    await pc.do('outl 0xcf8 0x80000800');
    assert.equal(await pc.value('inl 0xcfc'), 0xffffffff);
    await pc.do('outl 0xcf8 0x00000900');
    assert.equal(await pc.value('inl 0xcfc'), 0xffffffff);
    assert.equal(await pc.value('inb 0x60'), 0xff);
    assert.equal(await pc.value('inw 0x3f8'), 0xffff);
    assert.equal(await pc.value('inl 0xffff'), 0xffffffff);
    await pc.do('outb 0x80 1', 'outw 0x80 1', 'outl 0x80 1');
  });

  test('IDENTIFY DEVICE, word by word with Status before each', async () => {
    const { pc } = holder;
    await pc.outb(COMMAND_BASE + REG.device, 0);
    await pc.outb(COMMAND_BASE + REG.command, CMD_IDENTIFY);
    assert.equal((await pc.inb(COMMAND_BASE + REG.device)) & DEV, 0);
    const words: number[] = [];
    for (let i = 0; i < 256; i++) {
      const status = await pc.status();
      assert.equal(status & (BSY | DRDY | DF | DRQ | ERR), DRDY | DRQ);
      words.push(await pc.inw(COMMAND_BASE));
    }
    assert.equal((await pc.status()) & (BSY | DRDY | DF | DRQ | ERR), DRDY);
    const text = (from: number, count: number): string =>
      String.fromCharCode(...words.slice(from, from + count).flatMap((word) => [word >> 8, word & 0xff]));
    assert.equal(text(10, 10), 'testdisk'.padEnd(20));
    assert.equal(text(23, 4), 'version'.padEnd(8));
    assert.ok(words[85] & 0x20, 'write cache enabled');
  });

  test('the data register is a word: inl takes two', async () => {
    const { pc } = holder;
    await pc.outb(COMMAND_BASE + REG.command, CMD_IDENTIFY);
    const first = await pc.inw(COMMAND_BASE);
    for (let i = 0; i < 127; i++) await pc.value(`inl ${COMMAND_BASE}`);
    assert.equal((await pc.status()) & DRQ, DRQ);
    await pc.inw(COMMAND_BASE);
    assert.equal((await pc.status()) & DRQ, 0);
    await pc.outb(COMMAND_BASE + REG.command, CMD_IDENTIFY);
    assert.equal((await pc.value(`inl ${COMMAND_BASE}`)) & 0xffff, first);
    for (let i = 0; i < 127; i++) await pc.value(`inl ${COMMAND_BASE}`);
    assert.equal((await pc.status()) & DRQ, 0);
  });

  test('an absent Device 1 reads Status 00h', async () => {
    const { pc } = holder;
    await pc.outb(COMMAND_BASE + REG.device, DEV);
    assert.equal(await pc.status(), 0);
    assert.equal(await pc.inb(0x3f6), 0);
    await pc.outb(COMMAND_BASE + REG.device, 0);
  });

  test('the interrupt line is told before the reply that shows its cause; nIEN hides it, and shows it again', async () => {
    const { pc } = holder;
    pc.lines.length = 0;
    await pc.outb(COMMAND_BASE + REG.command, CMD_FLUSH);
    assert.deepEqual(pc.lines, ['IRQ raise 14', 'OK']);
    await pc.outb(0x3f6, 2);
    await pc.outb(0x3f6, 0);
    await pc.inb(0x3f6);
    assert.deepEqual(pc.lines.slice(2, 7), ['IRQ lower 14', 'OK', 'IRQ raise 14', 'OK', pc.lines[6]]);
    assert.equal(pc.irq14, true);
    await pc.status();
    assert.equal(pc.irq14, false);
  });

  test('DMA writes and reads back two sectors', async () => {
    const { pc } = holder;
    await pc.enableIde();
    const regions: [number, number][] = [[0x20_0000, (512 | END_OF_TABLE) >>> 0]];
    for (const [lba, fill] of [
      [0, 0x55],
      [1, 0xaa],
    ]) {
      await pc.writeMemory(0x20_0000, Buffer.alloc(512, fill));
      assert.equal(await pc.dma({ command: CMD_WRITE_DMA, lba, sectors: 1, regions }), BM_INTERRUPT);
    }
    for (const [lba, fill] of [
      [0, 0x55],
      [1, 0xaa],
    ]) {
      assert.equal(await pc.dma({ command: CMD_READ_DMA, lba, sectors: 1, regions }), BM_INTERRUPT);
      assert.deepEqual(await pc.readMemory(0x20_0000, 512), Buffer.alloc(512, fill));
    }
  });

  test('DMA scatters over regions of odd places and sizes', async () => {
    const { pc } = holder;
    await pc.enableIde();
    const data = Buffer.from(Array.from({ length: 1024 }, (_, i) => (i * 7) & 0xff));
    await pc.writeMemory(0x30_0000, data);
    const whole: [number, number][] = [[0x30_0000, (1024 | END_OF_TABLE) >>> 0]];
    assert.equal(await pc.dma({ command: CMD_WRITE_DMA, lba: 100, sectors: 2, regions: whole }), BM_INTERRUPT);
    const pieces: [number, number][] = [
      [0x40_0002, 6],
      [0x40_1000, 1000],
      [0x40_2004, (18 | END_OF_TABLE) >>> 0],
    ];
    assert.equal(await pc.dma({ command: CMD_READ_DMA, lba: 100, sectors: 2, regions: pieces }), BM_INTERRUPT);
    const parts = await Promise.all([
      pc.readMemory(0x40_0002, 6),
      pc.readMemory(0x40_1000, 1000),
      pc.readMemory(0x40_2004, 18),
    ]);
    assert.deepEqual(Buffer.concat(parts), data);
  });

  test('region tables shorter, equal and longer than the transfer, run through and stopped', async () => {
    const { pc } = holder;
    await pc.enableIde();
    for (let sectors = 1; sectors <= 256; sectors *= 2) {
      for (let size = 0; size < 65536; size += 256) {
        const transfer = sectors * 512;
        const region = size === 0 ? 65536 : size;
        const regions: [number, number][] = [[0, (size | END_OF_TABLE) >>> 0]];
        const [expected, stopped] =
          region < transfer
            ? [0, 0]
            : region === transfer
              ? [BM_INTERRUPT, BM_INTERRUPT]
              : [BM_ACTIVE | BM_INTERRUPT, BM_INTERRUPT];
        const what = `${transfer} bytes, region of ${region}`;
        assert.equal(await pc.dma({ command: CMD_READ_DMA, lba: 0, sectors, regions }), expected, what);
        assert.equal(
          await pc.dma({ command: CMD_READ_DMA, lba: 0, sectors, regions, abort: true }),
          stopped,
          `${what}, stopped`,
        );
      }
    }
  });

  test('a function that may not be bus master ends the command and touches no memory', async () => {
    const { pc } = holder;
    await pc.enableIde();
    await pc.writeMemory(0, Buffer.alloc(4096, 0x77));
    const regions = Array.from({ length: 4096 }, (): [number, number] => [0, 0]);
    const status = await pc.dma({ command: CMD_READ_DMA, lba: 0, sectors: 512, regions, busMaster: false });
    assert.equal(status, BM_ACTIVE | BM_INTERRUPT);
    assert.deepEqual(await pc.readMemory(0, 4096), Buffer.alloc(4096, 0x77));
    await pc.enableIde();
  });

  test('a region table without an end, and one outside the memory, move what the device has and no more', async () => {
    const { pc } = holder;
    await pc.enableIde();
    const regions = Array.from({ length: 64 }, (): [number, number] => [0x50_0000, 2]);
    assert.equal(
      await pc.dma({ command: CMD_READ_DMA, lba: 0, sectors: 1, regions: [...regions, [0x50_0000, 0]] }),
      BM_ACTIVE | BM_INTERRUPT,
    );
    const outside: [number, number][] = [[0xfff0_0000, (512 | END_OF_TABLE) >>> 0]];
    assert.equal(await pc.dma({ command: CMD_READ_DMA, lba: 0, sectors: 1, regions: outside }), BM_INTERRUPT);
  });

  test('a held FLUSH CACHE shows BSY and ends at the release', async () => {
    const { pc } = holder;
    await pc.enableIde();
    await pc.writeMemory(0x20_0000, Buffer.alloc(512, 0x3c));
    const regions: [number, number][] = [[0x20_0000, (512 | END_OF_TABLE) >>> 0]];
    assert.equal(await pc.dma({ command: CMD_WRITE_DMA, lba: 1, sectors: 1, regions }), BM_INTERRUPT);
    await pc.do('hold flush');
    await pc.outb(COMMAND_BASE + REG.device, 0);
    await pc.outb(COMMAND_BASE + REG.command, CMD_FLUSH);
    assert.equal((await pc.status()) & (BSY | DRDY | DF | ERR | DRQ), BSY | DRDY);
    assert.equal(pc.irq14, false);
    await pc.do('release');
    assert.equal((await pc.inb(COMMAND_BASE + REG.device)) & DEV, 0);
    assert.equal((await pc.status()) & (BSY | DRDY | DF | ERR | DRQ), DRDY);
    // The flush did what it promises: the sector is in the file.
    assert.deepEqual(readFileSync(path.join(folder, 'one')).subarray(512, 1024), Buffer.alloc(512, 0x3c));
  });

  test('a software reset breaks a held FLUSH CACHE', async () => {
    const { pc } = holder;
    await pc.do('hold flush');
    await pc.outb(COMMAND_BASE + REG.command, CMD_FLUSH);
    assert.equal((await pc.status()) & BSY, BSY);
    await pc.do('outb 0x3f6 4', 'outb 0x3f6 0');
    assert.equal((await pc.status()) & (BSY | DRDY), DRDY);
    assert.equal(await pc.inb(COMMAND_BASE + REG.sectorCount), 1);
    await pc.do('release');
    assert.equal((await pc.status()) & (BSY | DRDY), DRDY);
  });

  test('an unknown command aborts', async () => {
    const { pc } = holder;
    await pc.outb(COMMAND_BASE + REG.command, 0xff);
    assert.equal((await pc.status()) & (BSY | ERR), ERR);
    assert.equal((await pc.inb(COMMAND_BASE + REG.error)) & ABRT, ABRT);
  });

  test('requests may be sent ahead: PIO write and read of a sector in two bursts', async () => {
    const { pc } = holder;
    const words = Array.from({ length: 256 }, (_, i) => (i * 257) & 0xffff);
    const registers = [`outb 0x1f6 ${LBA}`, 'outb 0x1f2 1', 'outb 0x1f3 9', 'outb 0x1f4 0', 'outb 0x1f5 0'];
    await pc.do(...registers, 'outb 0x1f7 0x30', ...words.map((word) => `outw 0x1f0 ${word}`));
    const replies = await pc.ask(...registers, 'outb 0x1f7 0x20', ...words.map(() => 'inw 0x1f0'), 'inb 0x1f7');
    const read = replies.slice(6, 262).map((reply) => Number(reply.slice(3)));
    assert.deepEqual(read, words);
    assert.equal(Number(replies[262].slice(3)) & (BSY | DRQ | ERR), 0);
  });

  test('wrong requests get ERR with a reason, and the next one works', async () => {
    const { pc } = holder;
    const wrong = [
      'foo',
      '',
      'inb',
      'inb 0x1f7 1',
      'inb zzz',
      'inb 0x10000',
      'outb 0x80',
      'outb 0x80 256',
      'outw 0x80 0x10000',
      'outl 0x80 0x100000000',
      'read 0 0',
      'read 0xffffff 2',
      'write 0 2 0x00',
      'write 0 1 00',
      'write 0xffffff 2 0x0000',
      'hold',
      'hold read',
      'release flush',
      `write 0 9000 0x${'00'.repeat(9000)}`,
    ];
    const replies = await pc.ask(...wrong);
    for (const [index, reply] of replies.entries()) assert.match(reply, /^ERR \S/, wrong[index].slice(0, 40));
    assert.equal(await pc.value('inb 0x60'), 0xff);
  });

  test('a line of 16 KiB is taken', async () => {
    const { pc } = holder;
    const head = 'write 0x600000 8100 0x';
    const line = `${head}${'5a'.repeat(8100)}`;
    assert.ok(line.length <= 16 << 10 && line.length > 15 << 10);
    await pc.do(line);
    assert.deepEqual(await pc.readMemory(0x60_0000, 8100), Buffer.alloc(8100, 0x5a));
  });

  test('a second client is refused, the first goes on', async () => {
    const { pc } = holder;
    const second = net.connect(pc.socketPath).setEncoding('latin1');
    let text = '';
    second.on('data', (part: string) => {
      text += part;
    });
    await once(second, 'close');
    assert.match(text, /^ERR /);
    assert.equal(await pc.value('inb 0x60'), 0xff);
  });
});

describe('two disks', () => {
  const holder = withPc(() => [
    ...['--image0', image('first'), '--serial0', 'disk zero'],
    ...['--image1', image('second'), '--serial1', 'disk one'],
  ]);

  test('EXECUTE DEVICE DIAGNOSTIC written to Device 1 selects Device 0 and both pass', async () => {
    const { pc } = holder;
    await pc.outb(COMMAND_BASE + REG.device, DEV);
    assert.equal((await pc.inb(COMMAND_BASE + REG.device)) & DEV, DEV);
    await pc.outb(COMMAND_BASE + REG.command, CMD_DIAGNOSTIC);
    assert.equal((await pc.inb(COMMAND_BASE + REG.device)) & DEV, 0);
    assert.equal(await pc.inb(COMMAND_BASE + REG.error), 0x01);
  });

  test('each device has its own disk', async () => {
    const { pc } = holder;
    for (const [device, serial] of [
      [0, 'disk zero'],
      [DEV, 'disk one'],
    ] as const) {
      await pc.outb(COMMAND_BASE + REG.device, device);
      await pc.outb(COMMAND_BASE + REG.command, CMD_IDENTIFY);
      const words = await pc.ask(...Array.from({ length: 256 }, () => 'inw 0x1f0'));
      const text = words
        .slice(10, 20)
        .map((reply) => Buffer.from([Number(reply.slice(3)) >> 8, Number(reply.slice(3)) & 0xff]));
      assert.equal(Buffer.concat(text).toString(), serial.padEnd(20));
    }
  });
});

describe('no disk', () => {
  const holder = withPc(() => []);

  test('an empty channel takes every access and shows no device', async () => {
    const { pc } = holder;
    await pc.enableIde();
    await pc.outb(COMMAND_BASE + REG.device, 0);
    await pc.outb(COMMAND_BASE + REG.command, CMD_FLUSH);
    // An undriven bus: only DD7 is pulled, low.
    assert.equal(await pc.status(), 0x7f);
    await pc.do('outb 0x1f2 0x55', 'outb 0x1f3 0xaa');
    const [count, low] = [await pc.inb(0x1f2), await pc.inb(0x1f3)];
    assert.ok(count !== 0x55 || low !== 0xaa, 'nothing answers');
    assert.equal(pc.irq14, false);
  });
});

describe('the process', () => {
  test('ends when its client has gone, with everything written in the file', async () => {
    const file = image('left');
    const pc = await PortPc.start(['--image0', file]);
    const registers = [
      `outb 0x1f6 ${LBA}`,
      'outb 0x1f2 1',
      'outb 0x1f3 3',
      'outb 0x1f4 0',
      'outb 0x1f5 0',
      'outb 0x1f7 0x30',
    ];
    await pc.do(...registers, ...Array.from({ length: 256 }, () => 'outw 0x1f0 0x4242'));
    assert.equal(await pc.stop(), 0);
    assert.equal(existsSync(pc.socketPath), false);
    assert.deepEqual(readFileSync(file).subarray(1536, 2048), Buffer.alloc(512, 0x42));
  });

  test('ends at SIGTERM', async () => {
    const pc = await PortPc.start(['--image0', image('term')]);
    pc.process.kill('SIGTERM');
    await once(pc.process, 'exit');
    assert.equal(pc.process.exitCode, 0, pc.errors.join(''));
    assert.equal(existsSync(pc.socketPath), false);
    await pc.stop();
  });

  test('says what is wrong with its options', async () => {
    const cases: [string[], RegExp][] = [
      [['--image0', './no/such/file'], /no disk image file ".\/no\/such\/file"/],
      [['--image1', image('alone')], /--image1 needs --image0/],
      [['--image0', image('small', 100)], /smaller than one sector/],
      [['--image0', image('serial'), '--serial0', 'x'.repeat(21)], /serial must be at most 20/],
      [['--run', 'true'], /--run needs --pc v86/],
      [['--card', 'nonsense'], /Allowed choices are inproc/],
    ];
    for (const [options, expected] of cases) {
      await assert.rejects(PortPc.start(options), (error: Error) => {
        assert.match(error.message, expected);
        return true;
      });
    }
  });
});
