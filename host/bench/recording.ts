// What a PC does to its disk when real programs run on a real ext4 file system: recorded here, at the moment it is needed, so that
// nothing recorded has to be kept. The kernel's ext4 is mounted on a loop device over nbdfuse over an NBD export that notes
// every read, write and flush in order.

import { execFile, execFileSync } from 'node:child_process';
import fs from 'node:fs';
import path from 'node:path';
import { promisify } from 'node:util';
import { Failure } from '../failure.js';
import type { Client, Done, ExportListing, Exports, Extent, OpenExport } from '../server/export.js';
import { NbdFuse, whyNoFuse } from '../server/nbdfuse.js';
import { ImageServer } from '../server/server.js';

const run = promisify(execFile);
const TOOLS = ['losetup', 'mount', 'umount', 'mke2fs', 'sqlite3', 'dpkg', 'dpkg-deb'];

export type Access =
  | { kind: 'write'; atMs: number; offset: number; data: Buffer }
  | { kind: 'read'; atMs: number; offset: number; length: number }
  | { kind: 'flush'; atMs: number };

export interface Recording {
  name: string;
  /** The disk before it. */
  base: Buffer;
  accesses: Access[];
  /** The disk after it. */
  end: Buffer;
}

export function writtenBytes({ accesses }: Recording): number {
  return accesses.reduce((sum, it) => sum + (it.kind === 'write' ? it.data.length : 0), 0);
}

/** Says why nothing can be recorded here; null: it can. */
export function whyNoRecording(): string | null {
  if (process.getuid?.() !== 0) return 'mounting a file system needs root';
  if (!fs.existsSync('/dev/loop-control')) return 'there are no loop devices';
  const noFuse = whyNoFuse();
  if (noFuse !== null) return noFuse;
  for (const tool of TOOLS) {
    try {
      execFileSync('sh', ['-c', `command -v ${tool}`], { stdio: 'ignore' });
    } catch {
      return `${tool} is not installed (Debian: mount, e2fsprogs, sqlite3, dpkg)`;
    }
  }
  return null;
}

/** A disk in memory that notes what is done to it. */
class RecordingDisk implements Exports {
  accesses: Access[] = [];
  readonly #startedMs = performance.now();

  constructor(readonly image: Buffer) {}

  list(): ExportListing[] {
    return [{ name: 'disk', description: '' }];
  }

  open(_name: string, _client: Client): OpenExport {
    const { image } = this;
    const write = (offset: number, data: Buffer): Done => {
      this.accesses.push({ kind: 'write', atMs: this.#atMs(), offset, data: Buffer.from(data) });
      data.copy(image, offset);
      return undefined;
    };
    return {
      size: image.length,
      readOnly: false,
      multiConnection: true,
      description: '',
      read: (offset, target) => {
        this.accesses.push({ kind: 'read', atMs: this.#atMs(), offset, length: target.length });
        image.copy(target, 0, offset, offset + target.length);
        return undefined;
      },
      write,
      zero: (offset, length) => write(offset, Buffer.alloc(length)),
      commit: () => {
        this.accesses.push({ kind: 'flush', atMs: this.#atMs() });
        return undefined;
      },
      metaContexts: () => [],
      status: (_context, _offset, length): Extent[] => [{ length, flags: 0 }],
      close: () => undefined,
    };
  }

  #atMs(): number {
    return performance.now() - this.#startedMs;
  }
}

/** None of this may touch the folder from this very process: the kernel would wait for the disk, which is served here. */
export interface Program {
  name: string;
  /** Before the recording begins: what is on the disk already. */
  prepare?(folder: string): Promise<void>;
  work(folder: string): Promise<void>;
}

/** Records what each program does, one after the other, on one file system of `megabytes`. */
export async function record(
  folder: string,
  megabytes: number,
  programs: Program[],
  onProgress: (text: string) => void,
): Promise<Recording[]> {
  const why = whyNoRecording();
  if (why !== null) throw new Failure(`recording a real file system: ${why}`);
  const raw = path.join(folder, 'raw');
  await run('truncate', ['-s', `${megabytes}M`, raw]);
  await run('mke2fs', ['-q', '-F', '-t', 'ext4', raw]);
  const disk = new RecordingDisk(fs.readFileSync(raw));
  const mounted = await mountDisk(folder, disk);
  const recordings: Recording[] = [];
  try {
    for (const program of programs) {
      onProgress(`recording: ${program.name}`);
      await program.prepare?.(mounted.folder);
      await mounted.remount();
      const base = Buffer.from(disk.image);
      disk.accesses = [];
      await program.work(mounted.folder);
      await run('sync', ['-f', mounted.folder]);
      recordings.push({ name: program.name, base, accesses: [...disk.accesses], end: Buffer.from(disk.image) });
    }
  } finally {
    await mounted.close();
  }
  return recordings;
}

interface Mounted {
  folder: string;
  /** With nothing in the page cache. */
  remount(): Promise<void>;
  close(): Promise<void>;
}

async function mountDisk(folder: string, exports: RecordingDisk): Promise<Mounted> {
  const socket = path.join(folder, 'record.sock');
  const target = path.join(folder, 'mounted');
  fs.mkdirSync(target);
  const server = new ImageServer({ exports, listen: [{ kind: 'unix', path: socket }] });
  await server.listen();
  const undo: (() => Promise<unknown>)[] = [() => server.close()];
  const close = async (): Promise<void> => {
    for (const step of undo.reverse()) await step();
  };
  try {
    const file = path.join(folder, 'fuse');
    const fuse = await NbdFuse.mount(file, `nbd+unix:///disk?socket=${socket}`, exports.image.length, false);
    undo.push(() => fuse.unmount());
    const loop = (await run('losetup', ['--find', '--show', file])).stdout.trim();
    undo.push(() => run('losetup', ['-d', loop]));
    const mount = () => run('mount', ['-t', 'ext4', '-o', 'noatime', loop, target]);
    await mount();
    undo.push(() => run('umount', [target]));
    const remount = async (): Promise<void> => {
      await run('umount', [target]);
      await mount();
    };
    return { folder: target, remount, close };
  } catch (error) {
    await close();
    throw error;
  }
}

// Programs

/** Packages that every Debian has, made from the files that are installed: nothing is fetched. */
const PACKAGES = [
  'coreutils',
  'perl-base',
  'bash',
  'dpkg',
  'util-linux',
  'findutils',
  'grep',
  'tar',
  'login',
  'passwd',
  'gzip',
  'mount',
];

/** dpkg unpacks and configures packages, with its own fsync and rename. */
export function installPackages(scratch: string, quick: boolean): Program {
  const built: string[] = [];
  return {
    name: 'package installation (dpkg)',
    async prepare() {
      for (const name of quick ? PACKAGES.slice(6, 9) : PACKAGES) built.push(await buildPackage(scratch, name));
    },
    async work(folder) {
      const root = path.join(folder, 'root');
      await run('sh', [
        '-c',
        'mkdir -p "$0"/updates "$0"/info "$0"/triggers; : >"$0"/status; : >"$0"/available',
        `${root}/var/lib/dpkg`,
      ]);
      await run('dpkg', [`--root=${root}`, '--force-all', '--log=/dev/null', '-i', ...built], { maxBuffer: 1 << 26 });
    },
  };
}

async function buildPackage(scratch: string, name: string): Promise<string> {
  const stage = path.join(scratch, `stage-${name}`);
  fs.mkdirSync(path.join(stage, 'DEBIAN'), { recursive: true });
  fs.writeFileSync(
    path.join(stage, 'DEBIAN/control'),
    `Package: ${name}\nVersion: 1\nArchitecture: all\nMaintainer: none <none@localhost>\nDescription: recorded\n`,
  );
  const { stdout } = await run('dpkg', ['-L', name], { maxBuffer: 1 << 24 });
  for (const file of stdout.split('\n')) {
    const status = fs.lstatSync(file, { throwIfNoEntry: false });
    if (!status?.isFile()) continue;
    const target = path.join(stage, file);
    fs.mkdirSync(path.dirname(target), { recursive: true });
    fs.copyFileSync(file, target);
  }
  const deb = path.join(scratch, `${name}.deb`);
  await run('dpkg-deb', ['-Zgzip', '-b', stage, deb]);
  fs.rmSync(stage, { recursive: true });
  return deb;
}

/** SQLite with its defaults: a rollback journal, and every transaction durable. */
export function updateDatabase(quick: boolean): Program {
  const rows = quick ? 5_000 : 40_000;
  const transactions = quick ? 60 : 600;
  return {
    name: 'database updates (sqlite)',
    async prepare(folder) {
      const script = [
        'create table part (id integer primary key, name text, maker text, count integer, price real, changed text);',
        `with recursive n(i) as (select 1 union all select i+1 from n where i<${rows}) insert into part select i,`,
        `'part number ' || (i*7919 % 100003), 'maker ' || (i % 97), i % 1000, (i % 500) * 1.25, datetime(1700000000+i, 'unixepoch') from n;`,
        'create index part_name on part(name);',
      ];
      await sqlite(path.join(folder, 'stock.db'), script.join('\n'));
    },
    async work(folder) {
      const script: string[] = [];
      for (let i = 0; i < transactions; i++) {
        const id = ((i * 48271) % rows) + 1;
        const other = ((i * 16807) % rows) + 1;
        script.push(
          'begin;',
          `update part set count = count - 1, changed = datetime(${1_710_000_000 + i * 60}, 'unixepoch') where id = ${id};`,
          `update part set count = count + 3, price = price * 1.01 where id = ${other};`,
          `insert into part values (${rows + 1 + i}, 'order ${i * 31}', 'maker ${i % 97}', 1, 9.5, datetime(${1_710_000_000 + i * 60}, 'unixepoch'));`,
          'commit;',
        );
      }
      await sqlite(path.join(folder, 'stock.db'), script.join('\n'));
    },
  };
}

async function sqlite(file: string, script: string): Promise<void> {
  const child = run('sqlite3', ['-bail', file]);
  child.child.stdin!.end(`${script}\n`);
  await child;
}

/** A folder of programs and texts of this system is copied to the disk. */
export function copyFiles(scratch: string, quick: boolean): Program {
  const stage = path.join(scratch, 'files');
  return {
    name: 'file copy (cp)',
    async prepare() {
      const limit = (quick ? 3 : 40) * (1 << 20);
      const all = ['/usr/lib', '/usr/share', '-xdev', '-type', 'f', '-size', '-2048k'];
      const { stdout } = await run('find', all, { maxBuffer: 1 << 26 });
      const files = stdout.split('\n').filter(Boolean).sort();
      // Every 17th: of all kinds, and the same ones on the same system.
      for (let i = 0, bytes = 0; i < files.length && bytes < limit; i += 17) {
        const target = path.join(stage, files[i]);
        fs.mkdirSync(path.dirname(target), { recursive: true });
        fs.copyFileSync(files[i], target);
        bytes += fs.statSync(target).size;
      }
    },
    async work(folder) {
      await run('cp', ['-a', stage, path.join(folder, 'copy')]);
    },
  };
}
