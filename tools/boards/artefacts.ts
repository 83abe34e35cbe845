// What is put on a board: the program as U-Boot loads it, the script that makes U-Boot do so, the firmware package as it lies in
// a flash slot, and a list of sizes and hashes.

import { execFileSync } from 'node:child_process';
import { createHash } from 'node:crypto';
import { readFileSync, writeFileSync } from 'node:fs';
import { basename, join } from 'node:path';
import { encodeFirmwareSlot, FLASH_FIRMWARE_OFFSET } from '../../host/card/flash-image.js';
import { crc32 } from './crc32.js';

const LOAD_ADDRESS = 0x00100000;

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
  const binary = join(folder, 'ribbon-card.bin');
  execFileSync('arm-none-eabi-objcopy', ['-O', 'binary', elf, binary]);
  const script = join(folder, 'boot.scr');
  writeFileSync(script, scriptImage(BOOT_SCRIPT));
  const files = [elf, binary, script];
  if (firmware !== null) {
    const slot = join(folder, 'firmware-slot.bin');
    writeFileSync(slot, encodeFirmwareSlot(1, readFileSync(firmware)));
    files.push(slot);
  }
  const lines = files.map((file) => {
    const content = readFileSync(file);
    const hash = createHash('sha256').update(content).digest('hex');
    return `${hash}  ${String(content.length).padStart(9)}  ${basename(file)}`;
  });
  lines.push('', `firmware-slot.bin goes to flash offset 0x${FLASH_FIRMWARE_OFFSET.toString(16)}`, '', memory(elf));
  const manifest = join(folder, 'MANIFEST');
  writeFileSync(manifest, `${lines.join('\n')}\n`);
  return manifest;
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
