// The firmware as the build leaves it.

import { readFileSync } from 'node:fs';
import { Failure } from '../failure.js';

/** build/firmware/firmware.wasm. */
export const FIRMWARE_FILE = new URL('../../firmware/firmware.wasm', import.meta.url);

/** Compiles the firmware in `file`, or the one that was built here. */
export function loadFirmware(file: string | URL = FIRMWARE_FILE): WebAssembly.Module {
  let bytes: Uint8Array;
  try {
    bytes = readFileSync(file);
  } catch (error) {
    throw new Failure(
      `cannot read the firmware ${String(file)}: ${(error as Error).message}; "npm run build" makes it`,
    );
  }
  return new WebAssembly.Module(bytes);
}
