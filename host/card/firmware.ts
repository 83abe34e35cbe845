// Where the firmware is, and how to get it.

import fs from 'node:fs';
import { fileURLToPath } from 'node:url';
import { Failure } from '../failure.js';

/** build/firmware/firmware.wasm of this checkout; this file runs as build/host/card/firmware.js. */
export const FIRMWARE_FILE = fileURLToPath(new URL('../../firmware/firmware.wasm', import.meta.url));

/** Compiles the firmware in `file`. Throws a Failure when it is missing or is no WebAssembly module. */
export function loadFirmware(file = FIRMWARE_FILE): WebAssembly.Module {
  let bytes: Buffer;
  try {
    bytes = fs.readFileSync(file);
  } catch (error) {
    throw new Failure(`cannot read the firmware ${file}: ${(error as Error).message} ("npm run build" makes it)`);
  }
  if (!WebAssembly.validate(bytes)) throw new Failure(`${file} is not a valid WebAssembly module`);
  return new WebAssembly.Module(bytes);
}
