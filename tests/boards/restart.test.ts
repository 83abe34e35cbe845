// A firmware that traps is started again while the front end holds the PC with BSY: the PC's command is done, late but
// without an error, and what was committed stays.

import assert from 'node:assert/strict';
import { before, test } from 'node:test';
import { PosixCard } from '../../host/card/posix.js';
import { DEFAULT_SETTINGS } from '../../host/card/settings.js';
import { Cable } from '../../host/front-end/cable.js';
import { Register, STATUS_DRQ, STATUS_ERR } from '../../host/front-end/front-end.js';
import { buildPosixCard, FIRMWARE, POSIX_CARD } from './builds.js';
import { IMAGE_NAME, pattern, TestImage } from './image.js';
import { Command, Pc } from './pc.js';

const SECTORS = 16_384;

before(buildPosixCard);

interface Bench {
  card: PosixCard;
  pc: Pc;
  image: TestImage;
  signal(name: NodeJS.Signals): void;
  /** Log lines and orders come by different ways: a line may be late. */
  logged(pattern: RegExp, wanted: number): Promise<void>;
}

/** Stops this process, its front end and its image server with it. */
function pause(ms: number): void {
  Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, ms);
}

async function withCard(engine: 'wasm3' | 'aot', run: (bench: Bench) => Promise<void>): Promise<void> {
  const image = new TestImage(SECTORS);
  const log: string[] = [];
  const card = new PosixCard({
    program: POSIX_CARD,
    firmware: FIRMWARE,
    engine,
    settings: { ...DEFAULT_SETTINGS, acknowledgementPoint: 'remote-received', exportName: IMAGE_NAME },
    path: await image.serveUnix(),
    memorySize: 32 << 20,
  });
  card.onLog = (level, line) => log.push(`${level}: ${line}`);
  const logged = async (pattern: RegExp, wanted: number): Promise<void> => {
    const deadline = Date.now() + 10_000;
    const count = (): number => log.filter((line) => pattern.test(line)).length;
    while (count() < wanted && Date.now() < deadline) await new Promise((done) => setTimeout(done, 5));
    assert.equal(count(), wanted, `${pattern}\n${log.join('\n')}`);
  };
  const pc = new Pc(new Cable([card.frontEnd]));
  try {
    await card.start();
    await pc.ready();
    await run({ card, pc, image, logged, signal: (name) => process.kill(card.pid ?? 0, name) });
  } finally {
    await card.stop(0);
    await image.close();
  }
}

for (const engine of ['wasm3', 'aot'] as const) {
  test(`${engine}: the PC does not notice that the firmware traps during its command`, () =>
    withCard(engine, async ({ card, pc, image, logged, signal }) => {
      await pc.write(100, pattern(7, 20));
      await pc.flush();
      // What the PC did is there when the firmware is stepped, and that step traps at its first import, before anything is answered.
      const trapBefore = async <T>(command: () => Promise<T>): Promise<T> => {
        signal('SIGSTOP');
        const done = command();
        signal('SIGUSR1');
        signal('SIGCONT');
        return await done;
      };
      assert.deepEqual(await trapBefore(() => pc.read(5000, 20)), pattern(5000, 20));
      await logged(/event 2 of the PC is taken again/, 1);
      // The front end is this process, which stands still until the firmware has answered and has trapped in its next step.
      const commands = card.statistics().commands;
      const identified = pc.identify();
      while (card.statistics().commands === commands) pause(1);
      pause(20);
      signal('SIGUSR1');
      pause(20);
      const words = await identified;
      assert.equal(words[100], SECTORS);
      await logged(/event 2 of the PC was answered/, 1);
      await logged(/firmware 0: watchdog:/, 2);
      assert.deepEqual(await pc.read(100, 20), pattern(7, 20));
      await pc.write(300, pattern(9, 20));
      await pc.flush();
      assert.deepEqual(image.content().subarray(300 * 512, 320 * 512), pattern(9, 20));
    }));

  test(`${engine}: a transfer that a trap cuts ends with an error, and the PC tries again`, () =>
    withCard(engine, async ({ pc, image, logged, signal }) => {
      const cable = pc.cable;
      cable.writeRegister(Register.SECTOR_COUNT, 2);
      cable.writeRegister(Register.LBA_LOW, 200);
      cable.writeRegister(Register.LBA_MID, 0);
      cable.writeRegister(Register.LBA_HIGH, 0);
      cable.writeRegister(Register.DEVICE, 0xe0);
      cable.writeRegister(Register.COMMAND, Command.WRITE_SECTORS);
      assert.equal((await pc.ready()) & STATUS_DRQ, STATUS_DRQ);
      signal('SIGUSR1');
      await logged(/firmware 0: watchdog:/, 1);
      cable.advanceData(512);
      const status = await pc.ready();
      assert.equal(status & (STATUS_DRQ | STATUS_ERR), STATUS_ERR);
      assert.equal(cable.readRegister(Register.ERROR), 0x04);
      await logged(/event 4 of the PC is answered with an error/, 1);
      await pc.write(200, pattern(9, 20));
      await pc.flush();
      assert.deepEqual(image.content().subarray(200 * 512, 220 * 512), pattern(9, 20));
    }));
}
