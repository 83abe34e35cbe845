// Builds the demo image: a small bootable disk with a Debian i386 kernel, busybox, hdparm and smartmontools, for the
// simulated PC. Everything comes out of the packages of the Debian release that this system uses; nothing is mounted and
// no privilege is needed.
//
//   sector 0          master boot record (syslinux)
//   1 MiB             partition 1: FAT16, boot: syslinux, kernel, initrd
//   1 MiB + 31 MiB    partition 2: ext4, data, mounted at /data
//
// The result is kept under .ribbon/ and built again when this recipe changes.

import { execFile, spawn } from 'node:child_process';
import { createHash } from 'node:crypto';
import { mkdir, mkdtemp, open, readdir, readFile, realpath, rename, rm, stat, writeFile } from 'node:fs/promises';
import path from 'node:path';
import { fileURLToPath } from 'node:url';
import { promisify } from 'node:util';
import { gzipSync } from 'node:zlib';
import { SingleBar } from 'cli-progress';
import { Failure, failureText } from '../host/failure.js';
import { PrivateApt } from './demo-image/apt.js';
import { CpioArchive } from './demo-image/cpio.js';
import { moduleDependencies, neededLibraries } from './demo-image/elf.js';
import * as guest from './demo-image/guest.js';

const run = promisify(execFile);

const ARCHITECTURE = 'i386';
const KERNEL_METAPACKAGE = 'linux-image-686';
const PROGRAMS = ['hdparm', 'smartmontools'];
const PROGRAM_FILES = ['sbin/hdparm', 'usr/sbin/smartctl'];
const LIBRARY_FOLDERS = ['lib/i386-linux-gnu', 'usr/lib/i386-linux-gnu', 'lib'];

const SECTOR_SIZE = 512;
const BOOT_START = 2048;
const BOOT_SECTORS = (31 << 20) / SECTOR_SIZE;
const DATA_START = BOOT_START + BOOT_SECTORS;
const DATA_SECTORS = (96 << 20) / SECTOR_SIZE;
const IMAGE_SECTORS = DATA_START + DATA_SECTORS;
const SYSLINUX_MBR = '/usr/lib/syslinux/mbr/mbr.bin';
const MBR_CODE_SIZE = 440;

/** What the recipe runs, and the package that has it. */
const TOOLS: Record<string, string> = {
  'apt-get': 'apt',
  'dpkg-deb': 'dpkg',
  sfdisk: 'fdisk',
  'mkfs.vfat': 'dosfstools',
  mcopy: 'mtools',
  syslinux: 'syslinux',
  mke2fs: 'e2fsprogs',
};

/** Shares of the whole, measured: the downloads depend on the network, the rest is a few seconds. */
const STAGES = { lists: 30, packages: 40, unpack: 10, initrd: 10, disk: 10 };

export type OnProgress = (percent: number, what: string) => void;

export const DEMO_FOLDER = path.join(projectRoot(), '.ribbon', 'demo');

/** Builds the demo image unless this recipe has built it before. Returns the path of the raw disk image. */
export async function buildDemoImage(onProgress: OnProgress, folder = DEMO_FOLDER): Promise<string> {
  const image = path.join(folder, 'demo.img');
  const stamp = path.join(folder, 'recipe');
  const recipe = await recipeHash();
  if ((await readIfExists(stamp)) === recipe && (await exists(image))) return image;
  await checkTools();
  await mkdir(folder, { recursive: true });
  await rm(stamp, { force: true });
  const work = await mkdtemp(path.join(folder, 'work-'));
  try {
    const finished = await buildIn(work, onProgress);
    await rename(finished, image);
  } finally {
    await rm(work, { recursive: true, force: true });
  }
  await writeFile(stamp, recipe);
  return image;
}

async function buildIn(work: string, onProgress: OnProgress): Promise<string> {
  let done = 0;
  const stage = (name: keyof typeof STAGES, what: string): ((percent: number) => void) => {
    const begun = done;
    done += STAGES[name];
    onProgress(begun, what);
    return (percent) => onProgress(begun + (STAGES[name] * percent) / 100, what);
  };
  const tree = path.join(work, 'tree');
  const apt = new PrivateApt(path.join(work, 'apt'), ARCHITECTURE);
  const complaint = await apt.update(stage('lists', 'package lists'));
  const kernel = await findKernelPackage(apt, complaint);
  const libraries = (await apt.closure(PROGRAMS)).filter((name) => /^(lib|gcc-\d+-base)/.test(name));
  const packages = [kernel, 'busybox-static', ...PROGRAMS, ...libraries];
  const onPackages = stage('packages', 'packages');
  await apt.unpack(packages, tree, onPackages);
  stage('unpack', 'kernel modules');
  const modules = await findModules(tree, guest.MODULES);
  const onInitrd = stage('initrd', 'initial RAM disk');
  const initrd = gzipSync(await buildInitrd(tree, modules), { level: 9 });
  onInitrd(100);
  stage('disk', 'disk image');
  const vmlinuz = await findKernel(tree);
  const boot = await buildBootPartition(work, vmlinuz, initrd);
  const data = await buildDataPartition(work);
  return joinDisk(work, boot, data);
}

async function findKernelPackage(apt: PrivateApt, complaint: string | null): Promise<string> {
  const dependencies = await apt.dependencies(KERNEL_METAPACKAGE).catch((error: unknown) => {
    throw complaint === null ? error : new Failure(complaint);
  });
  const kernel = dependencies.find((name) => name.startsWith('linux-image-'));
  if (kernel !== undefined) return kernel;
  throw new Failure(`the apt sources have no ${KERNEL_METAPACKAGE} for ${ARCHITECTURE}\n${complaint ?? ''}`);
}

/** The modules and what they depend on, in the order to load them; `tree` holds an unpacked kernel package. */
export async function findModules(tree: string, names: string[]): Promise<Map<string, Buffer>> {
  const files = new Map<string, string>();
  for (const entry of await readdir(path.join(tree, 'lib', 'modules'), { recursive: true, withFileTypes: true })) {
    // Module names have underscores where file names may have dashes.
    if (entry.name.endsWith('.ko')) files.set(moduleName(entry.name.slice(0, -3)), path.join(entry.path, entry.name));
  }
  const modules = new Map<string, Buffer>();
  const add = async (name: string): Promise<void> => {
    if (modules.has(name)) return;
    const file = files.get(name);
    if (file === undefined) throw new Failure(`the kernel package has no module ${name}`);
    const content = await readFile(file);
    for (const dependency of moduleDependencies(content)) await add(moduleName(dependency));
    modules.set(name, content);
  };
  for (const name of names) await add(name);
  return modules;
}

function moduleName(name: string): string {
  return name.replaceAll('-', '_');
}

async function buildInitrd(tree: string, modules: Map<string, Buffer>): Promise<Buffer> {
  const archive = new CpioArchive();
  for (const folder of [
    'dev',
    'proc',
    'sys',
    'run',
    'root',
    'mnt',
    'usr/bin',
    'usr/sbin',
    guest.DATA_FOLDER.slice(1),
  ]) {
    archive.addFolder(folder);
  }
  archive.addFolder('tmp', 0o1777);
  archive.addCharacterDevice('dev/console', 5, 1);
  archive.addFile('bin/busybox', await readFile(path.join(tree, 'bin', 'busybox')), 0o755);
  archive.addLink('bin/sh', 'busybox');
  archive.addLink('init', 'bin/busybox');
  archive.addFile('etc/inittab', guest.INITTAB);
  archive.addFile('etc/rc', guest.RC, 0o755);
  archive.addFile('etc/profile', guest.PROFILE);
  archive.addFile('etc/motd', guest.MOTD);
  archive.addFile('etc/passwd', 'root::0:0:root:/root:/bin/sh\n');
  archive.addFile('etc/group', 'root::0:\n');
  archive.addFile('sbin/wait-for', guest.WAIT_FOR, 0o755);
  archive.addFile('sbin/ata-mode', guest.ATA_MODE, 0o755);
  for (const [name, content] of modules) archive.addFile(`lib/modules/${name}.ko`, content);
  archive.addFile('lib/modules/order', `${[...modules.keys()].join('\n')}\n`);
  await addPrograms(archive, tree);
  return archive.finish();
}

/** The programs with the dynamic loader and the libraries that they need. */
async function addPrograms(archive: CpioArchive, tree: string): Promise<void> {
  const waiting: Buffer[] = [];
  const known = new Set<string>();
  for (const file of PROGRAM_FILES) {
    const content = await readFile(path.join(tree, file));
    archive.addFile(file, content, 0o755);
    waiting.push(content);
  }
  for (let content = waiting.pop(); content !== undefined; content = waiting.pop()) {
    for (const name of neededLibraries(content)) {
      if (known.has(name)) continue;
      known.add(name);
      const library = await readFile(await findLibrary(tree, name));
      // The loader is named with its path in every program, the others are searched for.
      archive.addFile(name.startsWith('ld-') ? `lib/${name}` : `lib/i386-linux-gnu/${name}`, library, 0o755);
      waiting.push(library);
    }
  }
}

async function findLibrary(tree: string, name: string): Promise<string> {
  for (const folder of LIBRARY_FOLDERS) {
    const file = path.join(tree, folder, name);
    // A symbolic link inside the tree, relative in all library packages; absolute ones would leave the tree.
    const real = await realpath(file).catch(() => null);
    if (real?.startsWith(await realpath(tree))) return real;
  }
  throw new Failure(`no package brought the library ${name}`);
}

async function findKernel(tree: string): Promise<Buffer> {
  const names = (await readdir(path.join(tree, 'boot'))).filter((name) => name.startsWith('vmlinuz-'));
  if (names.length !== 1) throw new Failure(`expected one kernel in the kernel package, found: ${names.join(', ')}`);
  return readFile(path.join(tree, 'boot', names[0]));
}

async function buildBootPartition(work: string, vmlinuz: Buffer, initrd: Buffer): Promise<string> {
  const file = path.join(work, 'boot.img');
  await createSparse(file, BOOT_SECTORS * SECTOR_SIZE);
  await run('mkfs.vfat', ['-F', '16', '-n', 'BOOT', '-i', '52424e01', '-h', `${BOOT_START}`, file]);
  const contents = { vmlinuz, initrd, 'syslinux.cfg': guest.SYSLINUX_CFG };
  for (const [name, content] of Object.entries(contents)) {
    const source = path.join(work, name);
    await writeFile(source, content);
    await run('mcopy', ['-i', file, source, `::/${name}`]);
  }
  await run('syslinux', ['--install', file]);
  return file;
}

async function buildDataPartition(work: string): Promise<string> {
  const file = path.join(work, 'data.img');
  const folder = path.join(work, 'data');
  await mkdir(folder);
  await writeFile(path.join(folder, 'README'), guest.DATA_README);
  await createSparse(file, DATA_SECTORS * SECTOR_SIZE);
  const extended = 'lazy_itable_init=0,lazy_journal_init=0,root_owner=0:0';
  await run('mke2fs', ['-q', '-t', 'ext4', '-L', 'data', '-E', extended, '-d', folder, file]);
  return file;
}

async function joinDisk(work: string, boot: string, data: string): Promise<string> {
  const file = path.join(work, 'disk.img');
  await createSparse(file, IMAGE_SECTORS * SECTOR_SIZE);
  await partition(file);
  const disk = await open(file, 'r+');
  try {
    const code = (await readFile(SYSLINUX_MBR)).subarray(0, MBR_CODE_SIZE);
    await disk.write(code, 0, code.length, 0);
    await copyInto(disk, boot, BOOT_START * SECTOR_SIZE);
    await copyInto(disk, data, DATA_START * SECTOR_SIZE);
    await disk.sync();
  } finally {
    await disk.close();
  }
  return file;
}

/** Copies a file, leaving holes where it is zero. */
async function copyInto(disk: Awaited<ReturnType<typeof open>>, file: string, offset: number): Promise<void> {
  const content = await readFile(file);
  const piece = 64 << 10;
  const zeros = Buffer.alloc(piece);
  for (let at = 0; at < content.length; at += piece) {
    const part = content.subarray(at, at + piece);
    if (!part.equals(zeros.subarray(0, part.length))) await disk.write(part, 0, part.length, offset + at);
  }
}

/** Two primary partitions, the first one active. */
async function partition(file: string): Promise<void> {
  const script =
    'label: dos\nlabel-id: 0x52424e00\n' +
    `start=${BOOT_START}, size=${BOOT_SECTORS}, type=e, bootable\n` +
    `start=${DATA_START}, size=${DATA_SECTORS}, type=83\n`;
  const child = spawn('sfdisk', ['--quiet', '--no-reread', '--no-tell-kernel', file], {
    stdio: ['pipe', 'ignore', 'pipe'],
  });
  let errors = '';
  child.stderr.on('data', (text) => {
    errors += text;
  });
  child.stdin.end(script);
  const status = await new Promise((resolve) => child.on('close', resolve));
  if (status !== 0) throw new Failure(`sfdisk cannot partition the demo image: ${errors.trim()}`);
}

async function createSparse(file: string, size: number): Promise<void> {
  const handle = await open(file, 'w');
  await handle.truncate(size);
  await handle.close();
}

async function checkTools(): Promise<void> {
  const folders = `${process.env.PATH ?? ''}:/usr/sbin:/sbin`.split(':');
  process.env.PATH = folders.join(':');
  const missing = new Set<string>();
  for (const [tool, name] of Object.entries(TOOLS)) {
    const found = await Promise.all(folders.map((folder) => exists(path.join(folder, tool))));
    if (!found.includes(true)) missing.add(name);
  }
  if (!(await exists(SYSLINUX_MBR))) missing.add('syslinux-common');
  if (missing.size > 0) {
    throw new Failure(
      `the demo image needs these Debian packages: ${[...missing].join(' ')}\n` +
        `install them as root: apt-get install ${[...missing].join(' ')}`,
    );
  }
}

/** A hash of this recipe: the compiled sources of this file and its parts. */
async function recipeHash(): Promise<string> {
  const own = fileURLToPath(import.meta.url);
  const parts = path.join(path.dirname(own), 'demo-image');
  const files = (await readdir(parts)).filter((name) => name.endsWith('.js')).sort();
  const hash = createHash('sha256').update(await readFile(own));
  for (const name of files) hash.update(await readFile(path.join(parts, name)));
  return hash.digest('hex');
}

/** The checkout: the folder of package.json above this file, which runs from build/tools/. */
function projectRoot(): string {
  return path.resolve(path.dirname(fileURLToPath(import.meta.url)), '..', '..');
}

async function exists(file: string): Promise<boolean> {
  return stat(file).then(
    () => true,
    () => false,
  );
}

async function readIfExists(file: string): Promise<string | null> {
  return readFile(file, 'utf8').catch(() => null);
}

async function main(): Promise<void> {
  const bar = new SingleBar({
    format: 'demo image [{bar}] {percentage}% {what}',
    barsize: 30,
    noTTYOutput: true,
    notTTYSchedule: 5000,
    clearOnComplete: true,
  });
  let begun = false;
  const onProgress: OnProgress = (percent, what) => {
    if (!begun) bar.start(100, 0, { what });
    begun = true;
    bar.update(Math.round(percent), { what });
  };
  try {
    const image = await buildDemoImage(onProgress);
    if (begun) {
      bar.update(100, { what: 'done' });
      bar.stop();
    }
    process.stdout.write(`${path.relative(process.cwd(), image)}\n`);
  } catch (error) {
    if (begun) bar.stop();
    process.stderr.write(`demo image: ${failureText(error)}\n`);
    process.exitCode = 1;
  }
}

if (process.argv[1] === fileURLToPath(import.meta.url)) await main();
