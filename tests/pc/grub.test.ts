// A second driver: GRUB's own `pata` module drives the card's registers, with no BIOS between.

import assert from 'node:assert/strict';
import { copyFileSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { after, before, test } from 'node:test';
import { buildDemoImage } from '../../tools/demo-image.js';
import { BOOT_TIMEOUT_MS, BootedPc, run } from './booted-pc.js';

const GRUB_MODULES = '/usr/lib/grub/i386-pc';
/** Begins GRUB as a Linux kernel: SYSLINUX loads it through INT 13h. */
const LINUX_HEADER = path.join(GRUB_MODULES, 'lnxboot.img');
const BOOT_PARTITION_OFFSET = '1M';

const CONFIG = `serial --unit=0 --speed=115200
terminal_output serial
ls
ls -l (ata0)
hdparm -i (ata0)
cat (ata0,msdos2)/README
sha256sum (ata0,msdos1)/vmlinuz
echo "GRUB has finished"
`;

let folder: string;

before(() => {
  folder = mkdtempSync(path.join(tmpdir(), 'ribbon-grub-'));
});
after(() => rmSync(folder, { recursive: true, force: true }));

/** The demo image, with GRUB in the kernel's place. */
async function buildImage(): Promise<string> {
  const image = path.join(folder, 'grub.img');
  copyFileSync(await buildDemoImage(() => {}), image);
  const file = (name: string): string => path.join(folder, name);
  writeFileSync(file('early.cfg'), CONFIG);
  const modules = [
    'ata',
    'pata',
    'hdparm',
    'serial',
    'terminal',
    'part_msdos',
    'ext2',
    'fat',
    'ls',
    'cat',
    'echo',
    'hashsum',
  ];
  const hashes = ['gcry_sha256'];
  const core = ['-O', 'i386-pc', '-p', '(ata0,msdos1)/', '-c', file('early.cfg'), '-o', file('core.img')];
  await run('grub-mkimage', [...core, ...modules, ...hashes]);
  writeFileSync(file('grub'), Buffer.concat([readFileSync(LINUX_HEADER), readFileSync(file('core.img'))]));
  writeFileSync(file('syslinux.cfg'), 'DEFAULT grub\nPROMPT 0\nLABEL grub\n  LINUX /grub\n');
  for (const name of ['grub', 'syslinux.cfg']) {
    await run('mcopy', ['-o', '-i', `${image}@@${BOOT_PARTITION_OFFSET}`, file(name), `::/${name}`]);
  }
  return image;
}

test("GRUB's pata driver lists the disk, reads its file systems and its IDENTIFY data", {
  timeout: BOOT_TIMEOUT_MS,
}, async () => {
  const image = await buildImage();
  const pc = await BootedPc.start({ image, waitForShell: false });
  let console = '';
  try {
    await new Promise<void>((resolve, reject) => {
      const timeout = setTimeout(
        () => reject(new Error(`GRUB has not finished; its console:\n${console}\n${pc.biosLog.join('\n')}`)),
        BOOT_TIMEOUT_MS / 2,
      );
      pc.pc.onSerial = (bytes) => {
        console += Buffer.from(bytes).toString('latin1');
        if (!console.includes('GRUB has finished')) return;
        clearTimeout(timeout);
        resolve();
      };
    });
  } finally {
    assert.equal(await pc.powerOff(), 0);
    pc.remove();
  }
  assert.match(console, /\(ata0\) .*\(ata0,msdos/);
  assert.match(console, /RIBBON VIRTUAL DISK/);
  assert.match(console, /SERIAL-42/);
  assert.match(console, /This file system lives on an image server/);
  await run('mcopy', ['-i', `${image}@@${BOOT_PARTITION_OFFSET}`, '::/vmlinuz', path.join(folder, 'vmlinuz')]);
  const { stdout } = await run('sha256sum', [path.join(folder, 'vmlinuz')]);
  assert.ok(console.includes(stdout.slice(0, 64)), console);
  assert.deepEqual(pc.messages, []);
});
