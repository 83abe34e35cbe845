// A stock PC on an image of the server: QEMU boots Debian's kernel with the image as its IDE disk; mkfs, fio with verification and fsck
// run in it. Then its host looks at what the server has kept, generation by generation.

import assert from 'node:assert/strict';
import { execFile, execFileSync } from 'node:child_process';
import fs from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import { test } from 'node:test';
import { fileURLToPath } from 'node:url';
import { promisify } from 'node:util';
import { ImageServer } from '../../host/server/server.js';
import { Store } from '../../host/store/store.js';
import { verify } from '../../host/store/verify.js';
import { PrivateApt } from '../../tools/demo-image/apt.js';
import { CpioArchive } from '../../tools/demo-image/cpio.js';
import { findModules } from '../../tools/demo-image.js';
import { needs } from './needs.js';

const run = promisify(execFile);
const CACHE = fileURLToPath(new URL('../../guest-amd64', import.meta.url));
const SIZE = 96 * 1024 * 1024;
/** Of this system, with their libraries: the guest is the same Debian. */
const PROGRAMS = ['/sbin/mke2fs', '/sbin/e2fsck', '/usr/bin/fio'];
const MODULES = ['ata_piix', 'sd_mod', 'crc32c_generic', 'ext4'];

const INIT = `#!/bin/busybox sh
/bin/busybox --install -s /bin
mount -t proc proc /proc; mount -t sysfs sys /sys; mount -t devtmpfs dev /dev
for module in $(cat /modules/order); do insmod /modules/$module.ko; done
step() { echo "STEP $1"; shift; "$@" || { echo "FAILED: $*"; poweroff -f; }; }
step mkfs /sbin/mke2fs -q -F -t ext4 -O metadata_csum /dev/sda
step mount mount -t ext4 /dev/sda /mnt
step fio /usr/bin/fio --name=guest --directory=/mnt --size=16m --rw=randwrite --bsrange=512-64k --bs_unaligned --ioengine=psync \\
  --fsync=64 --verify=crc32c --do_verify=1 --verify_fatal=1 --verify_state_save=0 --io_size=16m
cp /proc/version /mnt/written-by
step umount umount /mnt
step fsck /sbin/e2fsck -fn /dev/sda
echo GUEST IS DONE
poweroff -f
`;

test('QEMU: mkfs, fio with verification and fsck on an image', needs('qemu-system-x86_64', 'fio', 'xz'), async () => {
  const folder = fs.mkdtempSync(path.join(os.tmpdir(), 'ribbon-guest-'));
  const store = await Store.open(path.join(folder, 'store'), { coalesceMs: 0 });
  const socket = path.join(folder, 's');
  const server = new ImageServer({ exports: store, listen: [{ kind: 'unix', path: socket }] });
  await server.listen();
  try {
    await store.images.create('guest', SIZE);
    const { kernel, initrd } = await guestFiles(folder);
    const { stdout } = await run('qemu-system-x86_64', [
      ...[
        '-accel',
        'tcg',
        '-cpu',
        'max',
        '-M',
        'pc',
        '-m',
        '768',
        '-nodefaults',
        '-display',
        'none',
        '-serial',
        'stdio',
      ],
      ...['-no-reboot', '-kernel', kernel, '-initrd', initrd, '-append', 'console=ttyS0 quiet panic=-1'],
      ...['-drive', `file=nbd:unix:${socket}:exportname=guest,format=raw,if=ide,cache=none`],
    ]);
    assert.match(stdout, /GUEST IS DONE/, stdout);
    await store.digestAll();
    const kept = store.generations('guest');
    assert.ok(kept.length > 5, `every flush of the guest is a generation: ${kept.length}`);
    // Whatever the guest had flushed is a file system that its journal makes whole: 0 nothing wrong, 1 corrected.
    const mounted = kept.slice(Math.floor(kept.length / 2));
    for (const { generation } of [...mounted.filter((_, index) => index % 8 === 0), kept.at(-1)!]) {
      const image = path.join(folder, 'generation.img');
      await store.images.exportRaw('guest', generation, image);
      const checked = await run('e2fsck', ['-fp', image]).catch((error) => error);
      assert.ok((checked.code ?? 0) <= 1, `generation ${generation}: ${checked.stdout}`);
    }
    const newest = path.join(folder, 'generation.img');
    const { stdout: version } = await run('debugfs', ['-R', 'cat /written-by', newest]);
    assert.match(version, /^Linux version \d/);
    assert.deepEqual((await verify(store)).damages, []);
  } finally {
    await server.close();
    await store.close();
    fs.rmSync(folder, { recursive: true, force: true });
  }
});

/** Debian's kernel, as it is before it was compressed, and a RAM disk with the programs. */
async function guestFiles(folder: string): Promise<{ kernel: string; initrd: string }> {
  const tree = path.join(CACHE, 'tree');
  if (!fs.existsSync(tree)) {
    const apt = new PrivateApt(path.join(folder, 'apt'), 'amd64');
    await apt.update(() => {});
    const image = (await apt.dependencies('linux-image-amd64')).find((name) => name.startsWith('linux-image-'));
    assert.ok(image !== undefined, 'the apt sources have a kernel');
    const unpacked = path.join(folder, 'tree');
    await apt.unpack([image, 'busybox-static'], unpacked, () => {});
    fs.mkdirSync(CACHE, { recursive: true });
    execFileSync('cp', ['-a', unpacked, `${tree}.new`]);
    fs.renameSync(`${tree}.new`, tree);
  }
  const kernel = path.join(folder, 'vmlinux');
  const boot = path.join(tree, 'boot');
  unpackKernel(path.join(boot, named(boot, /^vmlinuz-/)), kernel);
  const archive = new CpioArchive();
  for (const name of ['proc', 'sys', 'dev', 'mnt', 'tmp', 'bin', 'etc']) archive.addFolder(name);
  archive.addCharacterDevice('dev/console', 5, 1);
  archive.addFile('bin/busybox', fs.readFileSync(path.join(tree, 'bin', 'busybox')), 0o755);
  archive.addFile('init', INIT, 0o755);
  const modules = await findModules(tree, MODULES);
  archive.addFile('modules/order', [...modules.keys()].join('\n'));
  for (const [name, content] of modules) archive.addFile(`modules/${name}.ko`, content);
  const files = new Set(PROGRAMS);
  for (const program of PROGRAMS) {
    for (const [, library] of execFileSync('ldd', [program])
      .toString()
      .matchAll(/(\/\S+) \(0x/g))
      files.add(library);
  }
  for (const file of files) archive.addFile(file.slice(1), fs.readFileSync(file), 0o755);
  const initrd = path.join(folder, 'initrd');
  fs.writeFileSync(initrd, archive.finish());
  return { kernel, initrd };
}

function named(folder: string, pattern: RegExp): string {
  return fs.readdirSync(folder).find((name) => pattern.test(name))!;
}

/** Takes the ELF file out of a bzImage, where it is an xz stream with more behind it. */
function unpackKernel(bzImage: string, kernel: string): void {
  const bytes = fs.readFileSync(bzImage);
  const begin = bytes.indexOf(Buffer.from([0xfd, 0x37, 0x7a, 0x58, 0x5a, 0x00]));
  assert.ok(begin > 0, 'the kernel is compressed by xz');
  fs.writeFileSync(`${kernel}.xz`, bytes.subarray(begin));
  execFileSync('xz', ['--decompress', '--keep', '--single-stream', `${kernel}.xz`], { stdio: 'ignore' });
}
