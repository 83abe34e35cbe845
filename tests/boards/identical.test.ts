// One firmware, three engines: the same PC gives every card the same accesses, and writes down every register and every byte that it gets. The
// records of wasm3 and of compiled code, as a Linux process and on the Zynq board, are those of V8.
//
// The accesses come from seeds: all 256 command codes with random registers, PIO, DMA, resets in the middle of transfers. What may
// differ is left out: how often the PC reads BSY, and into how many pieces a card cuts a DMA transfer.

import assert from 'node:assert/strict';
import { createHash } from 'node:crypto';
import { test } from 'node:test';
import { PosixCard } from '../../host/card/posix.js';
import { QemuCard } from '../../host/card/qemu.js';
import {
  CONTROL_HOB,
  CONTROL_NIEN,
  CONTROL_SRST,
  Register,
  STATUS_BSY,
  STATUS_DRQ,
} from '../../host/front-end/front-end.js';
import { type MakeCard, makeInProcessCard, type Rig, socketRig } from '../conformance/rig.js';
import { buildPosixCard, buildQemuCard, FIRMWARE, POSIX_CARD, qemuCard } from './builds.js';
import { pattern } from './image.js';

const SEED = Number(process.env.RIBBON_SEED ?? 1);
const LONG = process.env.RIBBON_LONG === '1';
const RUNS = LONG ? 50 : 3;
const COMMANDS = 150;
const SECTORS = 3000;
/** Their timers count in real time; with 0 they do not run. */
const STANDBY_TIMERS = [0x96, 0x97, 0xe2, 0xe3];
const TIMEOUT_MS = 30_000;

const CARDS: { name: string; build: () => Promise<void>; make: MakeCard; skip?: boolean }[] = [
  { name: 'V8', build: async () => {}, make: makeInProcessCard },
  ...(['wasm3', 'aot'] as const).map((engine) => ({
    name: `posix ${engine}`,
    build: buildPosixCard,
    make: ((settings, path, deviceNumber) =>
      new PosixCard({
        program: POSIX_CARD,
        firmware: FIRMWARE,
        engine,
        settings,
        path,
        deviceNumber,
        memorySize: 32 << 20,
      })) as MakeCard,
  })),
  ...(['aot', 'wasm3'] as const).map((engine) => ({
    name: `QEMU ${engine}`,
    build: () => buildQemuCard(engine),
    make: ((settings, path, deviceNumber) =>
      new QemuCard({ program: qemuCard(engine), firmware: FIRMWARE, settings, path, deviceNumber })) as MakeCard,
  })),
];

class Recorder {
  /** One line a step. */
  readonly lines: string[] = [];
  readonly #rig: Rig;
  #state: number;

  constructor(rig: Rig, seed: number) {
    this.#rig = rig;
    this.#state = (seed * 2654435761) >>> 0 || 1;
  }

  async run(commands: number): Promise<string[]> {
    await this.#rest();
    this.#registers('power-on');
    for (let i = 0; i < commands; i++) await this.#command(this.#below(10) < 7 ? this.#usual() : this.#below(256));
    return this.lines;
  }

  #below(limit: number): number {
    this.#state ^= this.#state << 13;
    this.#state ^= this.#state >>> 17;
    this.#state ^= this.#state << 5;
    return (this.#state >>> 0) % limit;
  }

  #usual(): number {
    const codes = [
      0x20, 0x24, 0x25, 0x29, 0x30, 0x34, 0x35, 0x39, 0x40, 0x42, 0x91, 0xc4, 0xc5, 0xc6, 0xc8, 0xca, 0xe7, 0xec, 0xef,
    ];
    return codes[this.#below(codes.length)];
  }

  /** Until the card waits for the PC. */
  async #rest(): Promise<void> {
    const { cable } = this.#rig;
    await this.#rig.until(
      () => (cable.readAlternateStatus() & STATUS_BSY) === 0 || cable.dmaBlock() !== null,
      TIMEOUT_MS,
    );
  }

  #registers(what: string): void {
    const { cable } = this.#rig;
    const values: number[] = [cable.readAlternateStatus(), Number(cable.interrupt)];
    values.push(cable.readRegister(Register.STATUS), Number(cable.interrupt));
    for (const hob of [0, CONTROL_HOB]) {
      cable.writeDeviceControl(hob);
      for (let register = Register.ERROR; register <= Register.DEVICE; register++)
        values.push(cable.readRegister(register));
    }
    cable.writeDeviceControl(0);
    this.lines.push(`${what}: ${values.map((value) => value.toString(16).padStart(2, '0')).join(' ')}`);
  }

  async #command(code: number): Promise<void> {
    const { cable } = this.#rig;
    const inRange = this.#below(4) !== 0;
    for (const register of [
      Register.FEATURES,
      Register.SECTOR_COUNT,
      Register.LBA_LOW,
      Register.LBA_MID,
      Register.LBA_HIGH,
    ]) {
      // Twice: the EXT commands take both. Mostly small numbers, so that there is something to transfer.
      const value = this.#below(256);
      if (this.#below(2) === 0)
        cable.writeRegister(register, register >= Register.LBA_MID && inRange ? this.#below(3) : value);
      const low = register === Register.SECTOR_COUNT ? this.#below(24) : value;
      const isZero = STANDBY_TIMERS.includes(code) && register === Register.SECTOR_COUNT;
      cable.writeRegister(
        register,
        isZero
          ? 0
          : inRange && register >= Register.LBA_MID
            ? this.#below(register === Register.LBA_MID ? 11 : 1)
            : low,
      );
    }
    cable.writeRegister(Register.DEVICE, [0x40, 0xe0, 0xa0, 0x00][this.#below(4)]);
    cable.writeDeviceControl(this.#below(4) === 0 ? CONTROL_NIEN : 0);
    cable.writeRegister(Register.COMMAND, code);
    const resetAfter = this.#below(12) === 0 ? this.#below(3) : -1;
    const received = createHash('sha256');
    let bytes = 0;
    for (let blocks = 0; ; blocks++) {
      await this.#rest();
      if (blocks === resetAfter && cable.dmaBlock() === null) {
        await this.#reset(code);
        return;
      }
      const dma = cable.dmaBlock();
      const pio = (cable.readAlternateStatus() & STATUS_DRQ) !== 0 ? cable.dataBlock() : null;
      const block = dma ?? pio;
      if (block === null) break;
      if (pio !== null) this.#registers(`${code.toString(16)} block ${pio.length}`);
      // What the PC sends follows from where it stands in the transfer; a block for the PC is not changed by that any more.
      received.update(block);
      for (let i = 0; i < block.length; i++) block[i] = (bytes + i) * 37 + code;
      bytes += block.length;
      if (dma !== null) cable.advanceDma(block.length);
      else cable.advanceData(block.length);
    }
    // The buffer of a transfer to the card holds what was there before: not the PC's business.
    this.#registers(
      `${code.toString(16)} end, ${bytes} bytes${isToPc(code) ? ` ${received.digest('hex').slice(0, 16)}` : ''}`,
    );
  }

  async #reset(code: number): Promise<void> {
    const { cable } = this.#rig;
    cable.writeDeviceControl(CONTROL_SRST);
    this.lines.push(`${code.toString(16)} SRST: ${cable.readAlternateStatus().toString(16)}`);
    cable.writeDeviceControl(0);
    await this.#rest();
    this.#registers(`${code.toString(16)} reset`);
  }
}

function isToPc(code: number): boolean {
  return [0x20, 0x21, 0x24, 0x25, 0x29, 0xc4, 0xc8, 0xc9, 0xec].includes(code);
}

async function record(make: MakeCard): Promise<{ lines: string[]; content: Buffer }[]> {
  const results: { lines: string[]; content: Buffer }[] = [];
  const rig = await socketRig(make)([{ deviceNumber: 0, size: SECTORS * 512, settings: { serial: 'SAME' } }]);
  try {
    const disk = rig.disks[0];
    disk.image.set(pattern(0, SECTORS));
    for (let run = 0; run < RUNS; run++) {
      rig.cards[0].frontEnd.powerOn();
      const lines = await new Recorder(rig, SEED + run).run(COMMANDS);
      // A flush at the end, and the disk as the server has it.
      rig.cable.writeRegister(Register.DEVICE, 0x40);
      rig.cable.writeRegister(Register.COMMAND, 0xe7);
      await rig.until(() => (rig.cable.readAlternateStatus() & STATUS_BSY) === 0, TIMEOUT_MS);
      results.push({ lines, content: Buffer.from(disk.image) });
    }
  } finally {
    await rig.close();
  }
  return results;
}

test(`${RUNS} runs of ${COMMANDS} commands are the same on every engine (RIBBON_SEED=${SEED})`, async (t) => {
  const [reference, ...others] = CARDS;
  const expected = await record(reference.make);
  const lines = expected.flatMap((run) => run.lines);
  t.diagnostic(`${lines.length} states of 16 registers, ${new Set(lines).size} different ones`);
  const transfers = lines.filter((line) => / end, [1-9]/.test(line)).length;
  t.diagnostic(`${transfers} whole transfers`);
  assert.ok(new Set(lines).size > COMMANDS && transfers > COMMANDS / 4, 'the runs show too little to say anything');
  for (const { name, build, make } of others) {
    await build();
    const actual = await record(make);
    actual.forEach((run, i) => {
      const differs = run.lines.findIndex((line, at) => line !== expected[i].lines[at]);
      if (differs >= 0) {
        assert.fail(
          `${name} differs from ${reference.name} in run ${i} (RIBBON_SEED=${SEED}), step ${differs}, after "${run.lines[differs - 1]}":\n` +
            `${name}: ${run.lines[differs]}\n${reference.name}: ${expected[i].lines[differs]}`,
        );
      }
      assert.equal(run.lines.length, expected[i].lines.length);
      assert.ok(
        run.content.equals(expected[i].content),
        `${name}: another disk than with ${reference.name} after run ${i}`,
      );
    });
  }
});
