// The Debian packages that Ribbon uses, each with its reason, and their installation when they are missing.

import { execFileSync } from 'node:child_process';
import fs from 'node:fs';
import process from 'node:process';
import { runStep, SetupFailure } from './steps.mjs';

/** `for`: what `npm start` needs; what building and running the card's boards needs, `cross` what building it for other computers needs besides; `npm test` needs all. */
export const APT_PACKAGES = [
  { name: 'seabios', for: 'start', reason: 'the BIOS and video BIOS of the simulated PC' },
  { name: 'syslinux', for: 'start', reason: 'boot loader of the demo image' },
  { name: 'syslinux-common', for: 'start', reason: 'master boot record of the demo image' },
  { name: 'mtools', for: 'start', reason: 'fills the FAT partition of the demo image' },
  { name: 'dosfstools', for: 'start', reason: 'makes the FAT partition of the demo image' },
  { name: 'fdisk', for: 'start', reason: 'partitions the demo image' },
  { name: 'e2fsprogs', for: 'start', reason: 'makes and checks the ext4 partition of the demo image' },
  { name: 'libnbd-bin', for: 'test', reason: 'nbdinfo and nbdcopy, stock clients of the image server' },
  { name: 'nbdkit', for: 'test', reason: 'a stock NBD server under the card, peer of the benchmarks' },
  { name: 'qemu-utils', for: 'test', reason: 'qemu-img and qemu-nbd, stock client and server' },
  { name: 'fuse3', for: 'test', reason: 'image attach: mounts as another user than root' },
  { name: 'sleuthkit', for: 'test', reason: 'image diff --files: lists the files of FAT, NTFS and ext' },
  { name: 'ntfs-3g', for: 'test', reason: 'makes the NTFS of the tests' },
  { name: 'qemu-system-x86', for: 'test', reason: 'a PC whose disk is an image of the server' },
  { name: 'fio', for: 'test', reason: 'load for the image server' },
  { name: 'hdparm', for: 'test', reason: 'a second reader of IDENTIFY DEVICE data' },
  { name: 'grub-pc-bin', for: 'test', reason: "GRUB's own disk driver as a PC" },
  { name: 'ceph-mon', for: 'test', reason: 'an object store for the store in a bucket: its monitor' },
  { name: 'ceph-osd', for: 'test', reason: 'the same: what keeps the objects' },
  { name: 'radosgw', for: 'test', reason: 'the same: speaks S3' },
  { name: 'ceph-common', for: 'test', reason: 'the same: sets it up' },
  { name: 'xz-utils', for: 'boards', reason: 'unpacks the sources of lwIP and mbedTLS' },
  { name: 'gcc', for: 'boards', reason: 'compiles the card for Linux' },
  { name: 'libc6-dev', for: 'boards', reason: 'compiles the card for Linux' },
  { name: 'openssl', for: 'test', reason: 'certificates for tests of NBD inside TLS' },
  { name: 'gcc-arm-none-eabi', for: 'boards', reason: 'compiles the card for its Zynq board' },
  { name: 'libnewlib-arm-none-eabi', for: 'boards', reason: "the board's C library" },
  { name: 'qemu-system-arm', for: 'boards', reason: 'the Zynq board, simulated' },
  { name: 'gcc-aarch64-linux-gnu', for: 'cross', reason: 'compiles the card for 64-bit ARM single-board computers' },
  { name: 'libc6-dev-arm64-cross', for: 'cross', reason: 'their C library' },
  { name: 'gcc-arm-linux-gnueabihf', for: 'cross', reason: 'compiles the card for 32-bit ARM single-board computers' },
  { name: 'libc6-dev-armhf-cross', for: 'cross', reason: 'their C library' },
  { name: 'qemu-user', for: 'test', reason: 'runs what was compiled for them' },
  { name: 'valgrind', for: 'test', reason: 'looks for leaks in the card' },
  { name: 'wabt', for: 'boards', reason: 'wasm2c, which compiles the firmware ahead of time' },
];

/** dpkg's own variables: nothing is put in here. */
const DPKG_FORMAT = '$' + '{Package} $' + '{db:Status-Status}\\n';
const LOCK_TIMEOUT_S = 300;
const INSTALL_OPTIONS = [
  '--yes',
  '--no-install-recommends',
  '-o',
  `DPkg::Lock::Timeout=${LOCK_TIMEOUT_S}`,
  '-o',
  'Acquire::Retries=3',
  '-o',
  'APT::Status-Fd=3',
];
const ENVIRONMENT = { DEBIAN_FRONTEND: 'noninteractive', LC_ALL: 'C' };

/** Installs what is missing for `goals`. Where that is not possible, says what is missing and what still works, and goes on. */
export async function ensureAptPackages(goals) {
  const wanted = APT_PACKAGES.filter((it) => goals.includes(it.for));
  const missing = missingPackages(wanted.map(({ name }) => name));
  if (missing === null) {
    warn('this is not a Debian system', wanted, goals);
  } else if (missing.length > 0) {
    const packages = wanted.filter(({ name }) => missing.includes(name));
    if (process.getuid?.() !== 0) warn('only root can install packages', packages, goals);
    else await install(missing);
  }
}

/** Those of `names` that are not installed; null when there is no dpkg. */
function missingPackages(names) {
  try {
    const query = ['-W', '-f', DPKG_FORMAT, ...names];
    return notInstalled(names, execFileSync('dpkg-query', query, { stdio: ['ignore', 'pipe', 'ignore'] }));
  } catch (error) {
    if (error.code === 'ENOENT' || !fs.existsSync('/usr/bin/apt-get')) return null;
    // Some are unknown to dpkg: it still lists the others.
    return notInstalled(names, error.stdout);
  }
}

function notInstalled(names, listing) {
  const lines = String(listing).split('\n');
  return names.filter((name) => !lines.includes(`${name} installed`));
}

async function install(names) {
  const step = `Debian packages (${names.length})`;
  const command = ['apt-get', 'install', ...INSTALL_OPTIONS, ...names];
  const options = { environment: ENVIRONMENT, progress: percentOf, uninterruptible: true };
  if (wasInterrupted()) {
    const repair = { environment: ENVIRONMENT, uninterruptible: true };
    await runStep('finishing an interrupted installation', ['dpkg', '--configure', '-a'], repair);
  }
  if (hasPackageLists()) {
    try {
      return await runStep(step, command, options);
    } catch (error) {
      if (error.exitCode !== 1) throw error;
      // The lists may be too old: fetch them and try once more.
    }
  }
  const update = ['apt-get', 'update', '-o', 'Acquire::Retries=3', '-o', `DPkg::Lock::Timeout=${LOCK_TIMEOUT_S}`];
  await runStep('Debian package lists', update, { environment: ENVIRONMENT });
  try {
    await runStep(step, command, options);
  } catch (error) {
    throw new SetupFailure(
      `${error.message}\nInstall them by hand: apt-get install ${names.join(' ')}`,
      error.exitCode,
    );
  }
}

/** What dpkg had begun and not ended lies here; apt-get refuses to work until it is ended. */
function wasInterrupted() {
  try {
    return fs.readdirSync('/var/lib/dpkg/updates').some((name) => /^\d+$/.test(name));
  } catch {
    return false;
  }
}

function hasPackageLists() {
  try {
    return fs.readdirSync('/var/lib/apt/lists').some((name) => name.includes('_Packages'));
  } catch {
    return false;
  }
}

/** apt's status lines: `dlstatus:1:42.5:text` while it downloads, `pmstatus:package:42.5:text` while it installs. */
function percentOf(line) {
  const match = /^(dl|pm)status:[^:]*(?::\w+)?:(\d+(?:\.\d+)?):/.exec(line);
  if (match === null) return null;
  return Number(match[2]) / 2 + (match[1] === 'pm' ? 50 : 0);
}

function warn(why, packages, goals) {
  const lines = packages.map(({ name, reason }) => `  ${name.padEnd(16)} ${reason}`);
  const works = goals.includes('test')
    ? 'Tests that need them are skipped, with the reason; everything else runs.'
    : 'What needs only npm still works: the firmware build, `ribbon serve`, `ribbon image`, and `ribbon sim --image FILE`.';
  process.stderr.write(`setup: Debian packages are missing, and ${why}:\n${lines.join('\n')}\n${works}\n`);
}
