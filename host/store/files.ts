// The files that a store is made of, behind an interface that the simulator and the power-cut tests replace.
//
// Nothing is durable before sync() of the file and, for a file that was created or removed, syncFolder() have resolved.

import fs from 'node:fs';
import path from 'node:path';

export interface StoreFile {
  /** Reads up to `length` bytes at `position`; returns how many there were. */
  read(target: Uint8Array, at: number, length: number, position: number): number;
  /** Brings these bytes to where the next read() finds them, as far as it can, without stopping this process for the medium; missing where
   * reading costs no time. They must not be written meanwhile. */
  prefetch?(position: number, length: number): Promise<void>;
  /** Writes all `length` bytes at `position` or throws. */
  write(data: Uint8Array, at: number, length: number, position: number): void;
  /** Makes everything written so far durable. */
  sync(): Promise<void>;
  size(): number;
  close(): void;
}

export interface Files {
  open(name: string): StoreFile;
  /** Makes an empty file; throws when there is one. */
  create(name: string): StoreFile;
  /** The names in a folder, sorted; none when there is no such folder. */
  list(folder: string): string[];
  remove(name: string): void;
  rename(from: string, to: string): void;
  syncFolder(folder: string): Promise<void>;
}

/**
 * Is a sync on this medium so quick (memory, a write cache with a battery, a virtual disk) that waiting for it here costs less than two
 * changes of thread? Measured all the time; one slow one sends the next 256 to a thread.
 */
class SyncPace {
  private threaded = 0;

  get quick(): boolean {
    if (this.threaded === 0) return true;
    this.threaded--;
    return false;
  }

  took(ms: number): void {
    if (ms > 0.15) this.threaded = 256;
  }
}

/** Real files under one folder. */
export class DiskFiles implements Files {
  private readonly pace = new SyncPace();

  /** `scratch`: a folder of which nothing has to outlive the power. */
  constructor(
    private readonly root: string,
    private readonly scratch: string | null = null,
  ) {}

  open(name: string): StoreFile {
    return this.file(name, 'r+');
  }

  private file(name: string, flags: string): StoreFile {
    const fd = fs.openSync(path.join(this.root, name), flags);
    return new DiskFile(fd, this.scratch !== null && name.startsWith(`${this.scratch}/`) ? null : this.pace);
  }

  create(name: string): StoreFile {
    const file = path.join(this.root, name);
    fs.mkdirSync(path.dirname(file), { recursive: true });
    return this.file(name, 'wx+');
  }

  list(folder: string): string[] {
    try {
      return fs.readdirSync(path.join(this.root, folder)).sort();
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code === 'ENOENT') return [];
      throw error;
    }
  }

  remove(name: string): void {
    fs.unlinkSync(path.join(this.root, name));
  }

  rename(from: string, to: string): void {
    fs.renameSync(path.join(this.root, from), path.join(this.root, to));
  }

  syncFolder(folder: string): Promise<void> {
    if (folder === this.scratch) return Promise.resolve();
    return new Promise((resolve, reject) => {
      const fd = fs.openSync(path.join(this.root, folder), 'r');
      fs.fsync(fd, (error) => {
        fs.closeSync(fd);
        if (error) reject(error);
        else resolve();
      });
    });
  }
}

/** What one thread reads at once: 1 MiB of blocks and the tables of its groups. */
const BRING_SIZE = 1024 * 1024 + 64 * 1024;
/** What is kept for read(), of all files: older parts are left to the page cache. */
const BROUGHT_BYTES_MAX = 32 * 1024 * 1024;
const SPARES_MAX = 8;

/** Bytes of a file that a thread has read. */
interface Brought {
  file: DiskFile;
  position: number;
  end: number;
  bytes: Buffer;
  /** Where in `bytes` they begin. */
  from: number;
}

/** The oldest first. */
const brought: Brought[] = [];
let broughtBytes = 0;
/** Memory for BRING_SIZE bytes, page-aligned: new memory costs as much as reading to it. */
const spares: Buffer[] = [];
const PAGE = 4096;

class DiskFile implements StoreFile {
  /** Operations on threads. */
  private pending = 0;
  private closed = false;
  /** Of `brought`. */
  private parts = 0;

  constructor(
    private readonly fd: number,
    /** Null: it need not be durable. */
    private readonly pace: SyncPace | null,
  ) {}

  read(target: Uint8Array, at: number, length: number, position: number): number {
    if (this.parts > 0 && this.take(target, at, length, position)) return length;
    let done = 0;
    while (done < length) {
      const count = fs.readSync(this.fd, target, at + done, length - done, position + done);
      if (count === 0) break;
      done += count;
    }
    return done;
  }

  write(data: Uint8Array, at: number, length: number, position: number): void {
    for (let done = 0; done < length; ) {
      done += fs.writeSync(this.fd, data, at + done, length - done, position + done);
    }
  }

  sync(): Promise<void> {
    if (this.pace === null) return Promise.resolve();
    if (this.pace.quick) {
      const begin = performance.now();
      try {
        fs.fdatasyncSync(this.fd);
      } catch (error) {
        return Promise.reject(error);
      }
      this.pace.took(performance.now() - begin);
      return Promise.resolve();
    }
    this.pending++;
    return new Promise((resolve, reject) => {
      fs.fdatasync(this.fd, (error) => {
        this.ended();
        if (error) reject(error);
        else resolve();
      });
    });
  }

  prefetch(position: number, length: number): Promise<void> {
    this.pending++;
    return new Promise((resolve) => {
      const next = (at: number): void => {
        const size = Math.min(length - at, BRING_SIZE);
        const isLarge = size > BRING_SIZE / 4;
        const bytes = isLarge ? (spares.pop() ?? Buffer.allocUnsafeSlow(BRING_SIZE + PAGE)) : Buffer.allocUnsafe(size);
        // Some processors copy four times slower when both ends have the same place in their pages: here they are half a page apart.
        const from = isLarge ? (position + at + PAGE / 2) % PAGE : 0;
        fs.read(this.fd, bytes, from, size, position + at, (error, count) => {
          // Whoever reads what is missing will say so.
          if (error === null)
            this.keep({ file: this, position: position + at, end: position + at + count, bytes, from });
          if (error === null && count === size && at + size < length) next(at + size);
          else {
            this.ended();
            resolve();
          }
        });
      };
      next(0);
    });
  }

  private keep(part: Brought): void {
    if (this.closed) return;
    brought.push(part);
    broughtBytes += part.bytes.length;
    this.parts++;
    while (broughtBytes > BROUGHT_BYTES_MAX) brought[0].file.drop(0);
  }

  private drop(index: number): void {
    const [{ bytes }] = brought.splice(index, 1);
    broughtBytes -= bytes.length;
    this.parts--;
    if (bytes.length === BRING_SIZE + PAGE && spares.length < SPARES_MAX) spares.push(bytes);
  }

  /** Gives what has been brought; once all of a part has been read it is forgotten. */
  private take(target: Uint8Array, at: number, length: number, position: number): boolean {
    const end = position + length;
    const index = brought.findIndex((part) => part.file === this && part.position <= position && end <= part.end);
    if (index < 0) return false;
    const part = brought[index];
    const from = part.from + position - part.position;
    part.bytes.copy(target, at, from, from + length);
    if (end === part.end) this.drop(index);
    return true;
  }

  size(): number {
    return fs.fstatSync(this.fd).size;
  }

  /** The descriptor is let go when the last operation has ended, so that its number is not another file's by then. */
  close(): void {
    this.closed = true;
    for (let index = brought.length - 1; index >= 0 && this.parts > 0; index--)
      if (brought[index].file === this) this.drop(index);
    if (this.pending === 0) fs.closeSync(this.fd);
  }

  private ended(): void {
    this.pending--;
    if (this.closed && this.pending === 0) fs.closeSync(this.fd);
  }
}
