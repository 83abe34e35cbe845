// The programs that the tests of this folder run, built when their sources have changed.

import { copyFileSync, mkdirSync, renameSync } from 'node:fs';
import { join, resolve } from 'node:path';
import { buildPosix, buildZynq, FIRMWARE_FILE } from '../../tools/build-boards.js';

export const ROOT = resolve(import.meta.dirname, '..', '..', '..');
const BOARDS = join(ROOT, 'build', 'boards');
/** A copy, so that a firmware that is built meanwhile is not half of a test's. */
export const FIRMWARE = join(BOARDS, 'test-firmware.wasm');
mkdirSync(BOARDS, { recursive: true });
const copy = `${FIRMWARE}.${process.pid}`;
copyFileSync(join(ROOT, FIRMWARE_FILE), copy);
renameSync(copy, FIRMWARE);

export const POSIX_CARD = join(BOARDS, 'test-ribbon-card');
export const POSIX_CARD_SANITIZED = join(BOARDS, 'test-ribbon-card-sanitized');

export async function buildPosixCard(): Promise<void> {
  await buildPosix(ROOT, { firmwares: [FIRMWARE], output: POSIX_CARD });
}

export async function buildSanitizedPosixCard(): Promise<void> {
  await buildPosix(ROOT, { firmwares: [FIRMWARE], sanitized: true, output: POSIX_CARD_SANITIZED });
}

/** The QEMU card runs compiled code for the firmware that its program was built with, and wasm3 for any other. */
export function qemuCard(engine: 'wasm3' | 'aot'): string {
  return join(BOARDS, engine === 'aot' ? 'test-ribbon-card-qemu.elf' : 'test-ribbon-card-qemu-wasm3.elf');
}

export async function buildQemuCard(engine: 'wasm3' | 'aot'): Promise<void> {
  await buildZynq(ROOT, {
    firmwares: engine === 'aot' ? [FIRMWARE] : [],
    board: 'qemu',
    ddrMegabytes: 64,
    output: qemuCard(engine),
  });
}

/** The cards that `ribbon bench arm` and `ribbon sim --card qemu` run. */
export async function buildBenchCards(): Promise<void> {
  const common = { board: 'qemu', ddrMegabytes: 64 };
  const card = (name: string): string => join(BOARDS, `ribbon-card-${name}.elf`);
  await buildZynq(ROOT, { ...common, firmwares: [join(ROOT, FIRMWARE_FILE)], output: card('qemu') });
  await buildZynq(ROOT, { ...common, firmwares: [], output: card('qemu-wasm3') });
}
