// Four related disk images of a Debian system, as its life makes them: installed; 50 more packages; the security updates, in place; the
// same files on a fresh file system. Made of the packages of the Debian release that this system uses, once, and kept.

import { execFile } from 'node:child_process';
import fs from 'node:fs';
import path from 'node:path';
import { fileURLToPath } from 'node:url';
import { promisify } from 'node:util';
import { PrivateApt } from '../../tools/demo-image/apt.js';
import { Failure } from '../failure.js';

const run = promisify(execFile);
const CACHE = fileURLToPath(new URL('../../bench/debian-series', import.meta.url));
export const SERIES_SIZE = 1024 ** 3;

/** A small server; what these need comes with them. */
const INSTALLED = [
  ...[
    'apt',
    'systemd-sysv',
    'udev',
    'openssh-server',
    'linux-image-cloud-amd64',
    'grub-pc',
    'sudo',
    'less',
    'nano',
    'cron',
  ],
  ...['python3', 'perl', 'git', 'curl', 'nginx', 'ca-certificates', 'iproute2', 'man-db', 'locales', 'rsyslog'],
];
const ADDED = [
  ...['vim', 'tmux', 'screen', 'htop', 'iotop', 'ncdu', 'strace', 'lsof', 'sysstat', 'rsync', 'wget', 'socat', 'pv'],
  ...['zip', 'unzip', 'bc', 'jq', 'tree', 'xxd', 'gawk', 'patch', 'make', 'mc', 'sqlite3', 'lua5.4', 'tcl', 'gnupg'],
  ...['tcpdump', 'nmap', 'iperf3', 'ethtool', 'traceroute', 'netcat-openbsd', 'bind9-dnsutils', 'wireguard-tools'],
  ...['openvpn', 'haproxy', 'redis-server', 'postgresql-client-15', 'exim4', 'mutt', 'nfs-common', 'cifs-utils'],
  ...['lvm2', 'mdadm', 'xfsprogs', 'dosfstools', 'ntfs-3g', 'parted', 'smartmontools'],
];

/** Paths of the four images, made when they are not there yet. */
export async function debianSeries(onProgress: (text: string) => void): Promise<string[]> {
  const images = [1, 2, 3, 4].map((number) => path.join(CACHE, `image${number}.raw`));
  if (images.every((image) => fs.existsSync(image))) return images;
  const work = `${CACHE}.new`;
  fs.rmSync(work, { recursive: true, force: true });
  fs.mkdirSync(work, { recursive: true });
  const release = codename();
  const unpack = async (names: string[], tree: string, suite: string | null) => {
    const apt = new PrivateApt(path.join(work, 'apt'), 'amd64', suite);
    await apt.unpack(await apt.closure(names), path.join(work, tree), (percent) =>
      onProgress(`Debian packages for "${tree}": ${percent.toFixed(0)} %`),
    );
    return path.join(work, tree);
  };
  onProgress('package lists');
  await new PrivateApt(path.join(work, 'apt'), 'amd64').update(() => {});
  const trees = [
    await unpack(INSTALLED, 'installed', release),
    await unpack([...INSTALLED, ...ADDED], 'more', release),
    await unpack([...INSTALLED, ...ADDED], 'updated', null),
  ];
  const made = images.map((image) => path.join(work, path.basename(image)));
  onProgress('file systems');
  await makeFileSystem(made[0], trees[0]);
  for (const index of [1, 2]) {
    fs.copyFileSync(made[index - 1], made[index], fs.constants.COPYFILE_FICLONE);
    await changeInPlace(made[index], trees[index - 1], trees[index]);
  }
  await makeFileSystem(made[3], trees[2]);
  for (const image of made) await run('e2fsck', ['-fn', image]);
  fs.mkdirSync(CACHE, { recursive: true });
  for (const [index, image] of made.entries()) fs.renameSync(image, images[index]);
  fs.rmSync(work, { recursive: true, force: true });
  return images;
}

function codename(): string {
  const name = /^VERSION_CODENAME=(\w+)$/m.exec(fs.readFileSync('/etc/os-release', 'utf8'))?.[1];
  if (name === undefined || !/^ID=debian$/m.test(fs.readFileSync('/etc/os-release', 'utf8')))
    throw new Failure('the series of Debian images is made of Debian packages: run this benchmark on Debian');
  return name;
}

async function makeFileSystem(image: string, tree: string): Promise<void> {
  await run('mke2fs', ['-q', '-F', '-t', 'ext4', '-m', '0', '-d', tree, image, `${SERIES_SIZE / 1024}k`]);
}

/** Makes the files in the image those of `to`, where they are, as an upgrade does. */
async function changeInPlace(image: string, from: string, to: string): Promise<void> {
  const removals: string[] = [];
  const additions: string[] = [];
  compare(from, to, '', removals, additions);
  const script = `${image}.commands`;
  fs.writeFileSync(script, `${[...removals, ...additions].join('\n')}\n`);
  const { stdout, stderr } = await run('debugfs', ['-w', '-f', script, image], { maxBuffer: 256 * 1024 ** 2 });
  const wrong = `${stdout}\n${stderr}`
    .split('\n')
    .find((line) => /No space|not enough|Could not|Ext2 file too big/i.test(line));
  if (wrong !== undefined) throw new Failure(`debugfs cannot change ${image}: ${wrong}`);
  fs.rmSync(script);
}

function compare(from: string, to: string, folder: string, first: string[], then: string[]): void {
  const [before, after] = [from, to].map((tree) => new Map(list(path.join(tree, folder)).map((it) => [it.name, it])));
  const removals: string[] = [];
  const additions: string[] = [];
  // Folders that have become empty stay: nobody minds.
  for (const [name, entry] of before) {
    if (!entry.isDirectory() && !same(entry, after.get(name), from, to, folder)) removals.push(`rm ${quoted(name)}`);
  }
  for (const [name, entry] of after) {
    if (same(entry, before.get(name), to, from, folder)) continue;
    const source = path.join(to, folder, name);
    if (entry.isDirectory()) additions.push(`mkdir ${quoted(name)}`);
    else if (entry.isSymbolicLink()) additions.push(`symlink ${quoted(name)} ${quoted(fs.readlinkSync(source))}`);
    else if (entry.isFile()) additions.push(`write ${quoted(source)} ${quoted(name)}`);
  }
  const here = [`cd ${quoted(`/${folder}`)}`];
  if (removals.length > 0) first.push(...here, ...removals);
  if (additions.length > 0) then.push(...here, ...additions);
  for (const [name, entry] of new Map([...before, ...after])) {
    if (entry.isDirectory()) compare(from, to, path.join(folder, name), first, then);
  }
}

/** Is it there, and the same? */
function same(a: fs.Dirent, b: fs.Dirent | undefined, treeA: string, treeB: string, folder: string): boolean {
  if (b === undefined) return false;
  const [pathA, pathB] = [path.join(treeA, folder, a.name), path.join(treeB, folder, b.name)];
  if (a.isDirectory()) return b.isDirectory();
  if (a.isSymbolicLink()) return b.isSymbolicLink() && fs.readlinkSync(pathA) === fs.readlinkSync(pathB);
  return a.isFile() && b.isFile() && fs.readFileSync(pathA).equals(fs.readFileSync(pathB));
}

function list(folder: string): fs.Dirent[] {
  try {
    return fs.readdirSync(folder, { withFileTypes: true }).sort((a, b) => (a.name < b.name ? -1 : 1));
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ENOENT') return [];
    throw error;
  }
}

function quoted(name: string): string {
  return `"${name.replaceAll('"', '""')}"`;
}
