// `ribbon image diff --files`: which files differ between two generations, where the Sleuth Kit (fiwalk) recognises file systems: FAT,
// NTFS, ext, ISO 9660, HFS+, UFS, behind DOS, GPT, BSD and Mac partition tables.
//
// fiwalk lists every file with its attributes and the byte ranges of the disk that hold it. A file has changed when an attribute has, or
// when a byte of its content has: only ranges in which the generations differ are compared, so a change that left size and time alone is
// found too, and equal files cost nothing. The content of small NTFS files lies in their entry of the master file table: they count as
// changed when anything in the entry has.

import { spawn } from 'node:child_process';
import { SaxesParser } from 'saxes';
import { Failure } from '../failure.js';
import { firstEndingAfter, type Ranges } from './changes.js';
import { BLOCK_SIZE, type TreeView } from './tree.js';

export interface ChangedFile {
  /** Counts from 1, in the order of the disk. */
  partition: number;
  path: string;
  change: 'added' | 'removed' | 'changed';
  /** Null where there is none. */
  sizeBefore: number | null;
  size: number | null;
}

export interface Run {
  offset: number;
  length: number;
}

export interface FileEntry {
  partition: number;
  path: string;
  size: number;
  /** Everything that tells two states of a file apart besides its content. */
  attributes: string;
  runs: Run[];
}

export interface Listing {
  /** Types of the file systems found, as the Sleuth Kit calls them. */
  fileSystems: string[];
  files: Map<string, FileEntry>;
}

/** Inodes below are NTFS's own files; an entry of the table has 1 KiB, or a sector where that is more. */
const NTFS_FIRST_FILE = 24;
const NTFS_ENTRY_MIN = 1024;
const FILES_MAX = 2_000_000;
/** A disk from a stranger may keep fiwalk busy for ever. */
const LIMITS = ['--as=4294967296', '--core=0', '--cpu=3600'];

/** Lists the files of a raw disk image. */
export async function listFiles(file: string): Promise<Listing> {
  const child = spawn('prlimit', [...LIMITS, 'fiwalk', '-x', '-z', '-g', '-O', file], {
    stdio: ['ignore', 'pipe', 'pipe'],
    env: { ...process.env, LC_ALL: 'C', TZ: 'UTC' },
  });
  let stderr = '';
  child.stderr.on('data', (text: Buffer) => {
    stderr = (stderr + text).slice(-2000);
  });
  const ended = new Promise<number | null>((resolve, reject) => {
    child.once('error', reject);
    child.once('close', resolve);
  });
  const reader = new FiwalkReader();
  child.stdout.setEncoding('utf8');
  try {
    for await (const text of child.stdout) reader.take(text as string);
  } catch (error) {
    child.kill();
    throw error;
  }
  const status = await ended;
  if (/fiwalk: No such file|failed to execute fiwalk/.test(stderr)) {
    throw new Failure('fiwalk is not installed: apt-get install sleuthkit; without --files it is not needed');
  }
  if (status !== 0 || !reader.complete) {
    throw new Failure(`the file systems cannot be listed: ${stderr.trim() || `fiwalk ended with status ${status}`}`);
  }
  return reader.listing;
}

/** The files that differ, in the order of their names. `differs` says whether any byte of a range of the disk does. */
export async function compareListings(
  before: Listing,
  after: Listing,
  differs: (run: Run) => Promise<boolean>,
): Promise<ChangedFile[]> {
  const changes: ChangedFile[] = [];
  for (const [key, old] of before.files) {
    const { partition, path } = old;
    const now = after.files.get(key);
    if (now === undefined) changes.push({ partition, path, change: 'removed', sizeBefore: old.size, size: null });
    else if (await fileDiffers(old, now, differs))
      changes.push({ partition, path, change: 'changed', sizeBefore: old.size, size: now.size });
  }
  for (const [key, { partition, path, size }] of after.files) {
    if (!before.files.has(key)) changes.push({ partition, path, change: 'added', sizeBefore: null, size });
  }
  return changes.sort((a, b) => a.partition - b.partition || (a.path < b.path ? -1 : 1));
}

async function fileDiffers(old: FileEntry, now: FileEntry, differs: (run: Run) => Promise<boolean>): Promise<boolean> {
  if (old.attributes !== now.attributes || old.runs.length !== now.runs.length) return true;
  for (const [index, run] of now.runs.entries()) {
    if (run.offset !== old.runs[index].offset || run.length !== old.runs[index].length) return true;
    if (await differs(run)) return true;
  }
  return false;
}

/** Compares two generations, but only where the tree says that they differ. */
export class ContentComparison {
  constructor(
    private readonly before: TreeView,
    private readonly after: TreeView,
    private readonly changed: Ranges,
  ) {}

  async differs({ offset, length }: Run): Promise<boolean> {
    const end = offset + length;
    const { changed } = this;
    let index = firstEndingAfter(changed, Math.floor(offset / BLOCK_SIZE));
    for (; index < changed.length && changed[index] * BLOCK_SIZE < end; index += 2) {
      const from = Math.max(offset, changed[index] * BLOCK_SIZE);
      const to = Math.min(end, changed[index + 1] * BLOCK_SIZE, this.before.size, this.after.size);
      for (let at = from; at < to; at += 1024 * 1024) {
        const part = Math.min(1024 * 1024, to - at);
        const [old, now] = [Buffer.alloc(part), Buffer.alloc(part)];
        await Promise.all([this.before.fetch(at, part), this.after.fetch(at, part)]);
        await this.before.read(at, old, 0, part);
        await this.after.read(at, now, 0, part);
        if (!old.equals(now)) return true;
      }
    }
    return false;
  }
}

/** Reads fiwalk's XML (DFXML) as it comes. */
export class FiwalkReader {
  readonly listing: Listing = { fileSystems: [], files: new Map() };
  complete = false;
  private readonly parser = new SaxesParser();
  private readonly elements: string[] = [];
  private text = '';
  private fields: Record<string, string> = {};
  private runs: Run[] = [];
  /** Of the volume that is being read. */
  private fileSystem = '';
  private sectorSize = 512;
  private masterFileTable: Run[] = [];
  private readonly resident: { entry: FileEntry; inode: number }[] = [];
  private hasResident = false;

  constructor() {
    this.parser.on('opentag', ({ name, attributes }) => this.open(name, attributes as Record<string, string>));
    this.parser.on('text', (text) => {
      this.text += text;
    });
    this.parser.on('closetag', ({ name }) => this.close(name));
    this.parser.on('error', (error) => {
      throw new Failure(`fiwalk's listing cannot be read: ${error.message}`);
    });
  }

  take(text: string): void {
    // File names may hold what XML does not allow.
    // biome-ignore lint/suspicious/noControlCharactersInRegex: these are what is replaced
    this.parser.write(text.replace(/[\0-\x08\x0b\x0c\x0e-\x1f\ufffe\uffff]/g, '\ufffd'));
  }

  private open(name: string, attributes: Record<string, string>): void {
    this.elements.push(name);
    this.text = '';
    if (name === 'fileobject') {
      this.fields = {};
      this.runs = [];
      this.hasResident = false;
    } else if (name === 'byte_run' && attributes.type === 'resident') {
      this.hasResident = true;
    } else if (name === 'byte_run' && attributes.img_offset !== undefined) {
      this.runs.push({ offset: Number(attributes.img_offset), length: Number(attributes.len) });
    }
  }

  private close(name: string): void {
    this.elements.pop();
    if (name === 'fileobject') this.file();
    else if (name === 'volume') this.volume();
    else if (name === 'sector_size') this.sectorSize = Number(this.text);
    else if (name === 'ftype_str') {
      this.fileSystem = this.text;
      this.listing.fileSystems.push(this.text);
    } else if (name === 'dfxml') this.complete = true;
    else if (this.elements.at(-1) === 'fileobject') this.fields[name] = this.text;
  }

  private file(): void {
    const { filename, name_type: type } = this.fields;
    // Directories change with their files; what the Sleuth Kit makes up (type v: $MBR, $FAT1, …) is no file.
    if (filename === undefined || type === 'd' || type === 'v' || type === 'V') return;
    const inodeNumber = Number(this.fields.inode);
    if (this.fileSystem === 'ntfs' && (inodeNumber < NTFS_FIRST_FILE || filename.startsWith('$Extend/'))) {
      if (filename === '$MFT') this.masterFileTable = this.runs;
      return;
    }
    const { files } = this.listing;
    if (files.size >= FILES_MAX) throw new Failure(`there are more than ${FILES_MAX} files: compare without --files`);
    const partition = Number(this.fields.partition ?? 1);
    const size = Number(this.fields.filesize ?? 0);
    const { inode, mode, uid, gid, mtime, ctime, crtime, link_target: link } = this.fields;
    const attributes = [size, inode, mode, uid, gid, mtime, ctime, crtime, link].join(' ');
    const entry = { partition, path: filename, size, attributes, runs: this.runs };
    if (this.hasResident) this.resident.push({ entry, inode: inodeNumber });
    files.set(`${partition}/${filename}`, entry);
  }

  /** At the end of a volume it is known where the master file table lies. */
  private volume(): void {
    const length = Math.max(NTFS_ENTRY_MIN, this.sectorSize);
    for (const { entry, inode } of this.resident.splice(0)) {
      let rest = inode * length;
      for (const run of this.masterFileTable) {
        if (rest < run.length) {
          entry.runs.push({ offset: run.offset + rest, length });
          break;
        }
        rest -= run.length;
      }
    }
    this.masterFileTable = [];
  }
}
