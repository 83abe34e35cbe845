// A disk image in memory behind the real NBD session, with faults on request: sectors that cannot be read, writes that are
// refused, commits and reads that are held back. Writes of a connection collect until a commit, as in the image store.

import {
  type Client,
  type Done,
  ExportError,
  type ExportListing,
  ExportRefused,
  type Exports,
  type Extent,
  type OpenExport,
} from '../server/export.js';

const SECTOR = 512;

/** Lets through what it has held, in order, when it is released. */
class Gate {
  held = false;
  #waiting: (() => void)[] = [];

  /** Runs `action` now, or when the gate is released. */
  pass(action: () => void): Done {
    if (!this.held) {
      action();
      return undefined;
    }
    return new Promise((resolve, reject) => {
      this.#waiting.push(() => {
        try {
          action();
          resolve();
        } catch (error) {
          reject(error);
        }
      });
    });
  }

  get waiting(): number {
    return this.#waiting.length;
  }

  hold(): void {
    this.held = true;
  }

  release(): void {
    this.held = false;
    for (const go of this.#waiting.splice(0)) go();
  }
}

export class FaultyDisk {
  /** What is committed. */
  readonly image: Buffer;
  /** LBAs that a read fails on. */
  readonly unreadable = new Set<number>();
  /** Writes and commits fail. */
  refuseWrites = false;
  readonly reads = new Gate();
  readonly commits = new Gate();
  commitsDone = 0;
  /** After each commit that changed anything: a generation. */
  onCommit: () => void = () => {};

  /** `size` in bytes, of any value. */
  constructor(size: number) {
    this.image = Buffer.alloc(size);
  }

  open(): OpenExport {
    return new FaultyDiskExport(this);
  }
}

/** An image server of such disks, by export name. */
export class FaultyDisks implements Exports {
  readonly #disks: ReadonlyMap<string, FaultyDisk>;

  constructor(disks: ReadonlyMap<string, FaultyDisk>) {
    this.#disks = disks;
  }

  list(): ExportListing[] {
    return [...this.#disks.keys()].map((name) => ({ name, description: '' }));
  }

  open(name: string, _client: Client): OpenExport {
    const disk = this.#disks.get(name);
    if (disk === undefined) throw new ExportRefused('unknown', `there is no image "${name}"`);
    return disk.open();
  }
}

class FaultyDiskExport implements OpenExport {
  readonly readOnly = false;
  readonly multiConnection = false;
  readonly description = '';
  readonly #disk: FaultyDisk;
  /** Writes that are not committed, in order. */
  #epoch: { offset: number; data: Buffer }[] = [];

  constructor(disk: FaultyDisk) {
    this.#disk = disk;
  }

  get size(): number {
    return this.#disk.image.length;
  }

  read(offset: number, target: Buffer): Done {
    return this.#disk.reads.pass(() => {
      const last = Math.floor((offset + target.length - 1) / SECTOR);
      for (let lba = Math.floor(offset / SECTOR); lba <= last; lba++) {
        if (this.#disk.unreadable.has(lba)) throw new ExportError('EIO', `sector ${lba} is unreadable`);
      }
      this.#disk.image.copy(target, 0, offset, offset + target.length);
      for (const write of this.#epoch) this.#overlay(write, offset, target);
    });
  }

  /** Later writes come later in the list. */
  #overlay(write: { offset: number; data: Buffer }, offset: number, target: Buffer): void {
    const from = Math.max(offset, write.offset);
    const to = Math.min(offset + target.length, write.offset + write.data.length);
    if (from < to) write.data.copy(target, from - offset, from - write.offset, to - write.offset);
  }

  write(offset: number, data: Buffer): Done {
    if (this.#disk.refuseWrites) throw new ExportError('EIO', 'the disk refuses writes');
    this.#epoch.push({ offset, data: Buffer.from(data) });
    return undefined;
  }

  zero(offset: number, length: number): Done {
    return this.write(offset, Buffer.alloc(length));
  }

  /** What is written while a commit is held back belongs to the next one. */
  commit(): Done {
    const count = this.#epoch.length;
    return this.#disk.commits.pass(() => {
      if (this.#disk.refuseWrites) throw new ExportError('EIO', 'the disk refuses writes');
      for (const { offset, data } of this.#epoch.splice(0, count)) data.copy(this.#disk.image, offset);
      this.#disk.commitsDone += 1;
      this.#disk.onCommit();
    });
  }

  metaContexts(): string[] {
    return [];
  }

  status(_context: string, _offset: number, length: number): Extent[] {
    return [{ length, flags: 0 }];
  }

  close(clean: boolean): Done {
    return clean ? this.commit() : undefined;
  }
}
