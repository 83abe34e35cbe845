// What is put on a board: the program as U-Boot loads it, the script that makes U-Boot do so, the firmware package, the part of
// the flash that is the card's own, and a list of sizes and hashes.
//
// Packages are signed with the key in RIBBON_FIRMWARE_KEY (a PEM file), or with one that this checkout makes for itself: a card
// that was flashed from here then runs what is built here.

import { execFileSync } from 'node:child_process';
import { createHash } from 'node:crypto';
import { readFileSync, writeFileSync } from 'node:fs';
import { basename, join } from 'node:path';
import { encodeFirmwarePackage, FIRMWARE_HEAD_SIZE, readFirmwareKey } from '../../host/card/firmware-package.js';
import { buildFlashImage, FLASH_FIRMWARE_OFFSET, FLASH_OWN_OFFSET } from '../../host/card/flash-image.js';
import { crc32 } from './crc32.js';

const LOAD_ADDRESS = 0x00100000;
const FIRST_SEQUENCE = 1;

/** U-Boot runs it from the first FAT partition of the SD card, when it finds it under the name boot.scr. */
const BOOT_SCRIPT = `echo Ribbon
fatload mmc 0 0x${LOAD_ADDRESS.toString(16)} ribbon-card.bin
dcache flush
dcache off
icache off
go 0x${LOAD_ADDRESS.toString(16)}
`;

/** Writes the artefacts beside the ELF; returns the file that lists them. */
export function writeArtefacts(folder: string, elf: string, firmware: string | null): string {
  const artefacts: { file: string; use: string }[] = [{ file: elf, use: 'with symbols, for a debugger' }];
  const add = (name: string, use: string, content?: Uint8Array): string => {
    const file = join(folder, name);
    if (content !== undefined) writeFileSync(file, content);
    artefacts.push({ file, use });
    return file;
  };
  const binary = add('ribbon-card.bin', 'SD card, first FAT partition');
  execFileSync('arm-none-eabi-objcopy', ['-O', 'binary', elf, binary]);
  add('boot.scr', 'SD card, first FAT partition', scriptImage(BOOT_SCRIPT));
  if (firmware !== null) {
    const key = readFirmwareKey(process.env.RIBBON_FIRMWARE_KEY ?? join(folder, '..', '..', 'keys', 'firmware.pem'), {
      make: process.env.RIBBON_FIRMWARE_KEY === undefined,
    });
    const packaged = encodeFirmwarePackage(FIRST_SEQUENCE, readFileSync(firmware), key.privateKey);
    add(
      'firmware.rbfw',
      `flash ${hex(FLASH_FIRMWARE_OFFSET)}: an update, its wasm after ${FIRMWARE_HEAD_SIZE} bytes`,
      packaged,
    );
    const flash = buildFlashImage({ firmwareKeys: [key.publicKey], firmwares: [packaged] });
    const end = FLASH_FIRMWARE_OFFSET + packaged.length;
    add(
      'flash.bin',
      `flash ${hex(FLASH_OWN_OFFSET)}: firmware key and firmware; settings, paths, identity erased`,
      flash.subarray(FLASH_OWN_OFFSET, end),
    );
  }
  const lines = artefacts.map(({ file, use }) => {
    const content = readFileSync(file);
    const hash = createHash('sha256').update(content).digest('hex');
    return `${hash}  ${String(content.length).padStart(9)}  ${basename(file).padEnd(16)}  ${use}`;
  });
  lines.push('', memory(elf));
  const manifest = join(folder, 'MANIFEST');
  writeFileSync(manifest, `${lines.join('\n')}\n`);
  return manifest;
}

function hex(value: number): string {
  return `0x${value.toString(16)}`;
}

/** The sections with their sizes: what the card uses of its memory. */
function memory(elf: string): string {
  return execFileSync('arm-none-eabi-size', ['-A', '-x', elf], { encoding: 'utf8' })
    .split('\n')
    .filter((line) => /^\.(text|ARM\.exidx|data|bss|heap|stack|dma|shared)\s/.test(line))
    .join('\n');
}

/** U-Boot's legacy image format, type script: a 64-byte big-endian header, then the length of the only script, 0, the text. */
function scriptImage(text: string): Buffer {
  const IH_MAGIC = 0x27051956;
  const IH_OS_LINUX = 5;
  const IH_ARCH_ARM = 2;
  const IH_TYPE_SCRIPT = 6;
  const lengths = Buffer.alloc(8);
  lengths.writeUInt32BE(Buffer.byteLength(text), 0);
  const data = Buffer.concat([lengths, Buffer.from(text)]);
  const header = Buffer.alloc(64);
  header.writeUInt32BE(IH_MAGIC, 0);
  header.writeUInt32BE(data.length, 12); // the time at 8 stays 0: the same sources give the same bytes
  header.writeUInt32BE(crc32(data), 24);
  header.set([IH_OS_LINUX, IH_ARCH_ARM, IH_TYPE_SCRIPT, 0], 28);
  header.write('Ribbon', 32);
  header.writeUInt32BE(crc32(header), 4);
  return Buffer.concat([header, data]);
}
