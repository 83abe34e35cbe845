// Builds the firmware: `npm run build:firmware [-- --sizes]`. In build/firmware/:
//
//   firmware.wasm         what cards run
//   firmware.names.json   function names by index, for reading a crash record or a trap's stack

import { mkdirSync, renameSync, writeFileSync } from 'node:fs';
import { join, resolve } from 'node:path';
import { fileURLToPath } from 'node:url';
import { endWithReader, failureText } from '../host/failure.js';
import { compileFirmware, type Firmware } from './firmware/compile.js';
import { formatSizes } from './firmware/sizes.js';

/** Writes the files whole or not at all: somebody may be reading the old ones. */
function writeFirmware(folder: string, { wasm, sha256, module }: Firmware): void {
  mkdirSync(folder, { recursive: true });
  const functions = Object.fromEntries(module.functions.map(({ index, name }) => [index, name]));
  writeWhole(join(folder, 'firmware.names.json'), `${JSON.stringify({ sha256, functions }, null, 2)}\n`);
  writeWhole(join(folder, 'firmware.wasm'), wasm);
}

function writeWhole(file: string, contents: string | Uint8Array): void {
  const partial = `${file}.${process.pid}.part`;
  writeFileSync(partial, contents);
  renameSync(partial, file);
}

async function main(sizes: boolean): Promise<void> {
  const root = resolve(fileURLToPath(import.meta.url), '../../..');
  const firmware = await compileFirmware(root);
  writeFirmware(join(root, 'build', 'firmware'), firmware);
  const { deepest, largest } = firmware.report;
  if (sizes) process.stdout.write(`${formatSizes(firmware)}\n`);
  process.stdout.write(
    `firmware.wasm ${firmware.wasm.length} bytes, ${firmware.module.functions.length} functions, ` +
      `at most ${deepest.names.length} calls deep and ${largest.locals} locals on the stack\n`,
  );
  if (sizes) process.stdout.write(`deepest: ${deepest.names.join(' -> ')}\nlargest: ${largest.names.join(' -> ')}\n`);
  process.stdout.write(`sha256 ${firmware.sha256}\n`);
}

endWithReader();
main(process.argv.includes('--sizes')).catch((error: unknown) => {
  process.stderr.write(`build-firmware: ${failureText(error)}\n`);
  process.exitCode = 1;
});
