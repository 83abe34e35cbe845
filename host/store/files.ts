// The files that a store is made of, behind an interface that the simulator and the power-cut tests replace.
//
// Nothing is durable before sync() of the file and, for a file that was created or removed, syncFolder() have resolved.

import fs from 'node:fs';
import path from 'node:path';

export interface StoreFile {
  /** Reads up to `length` bytes at `position`; returns how many there were. */
  read(target: Uint8Array, at: number, length: number, position: number): number;
  /** Brings these bytes into the system's page cache, as far as it can, without stopping this process for the medium; missing where
   * reading costs no time. */
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

/** Where prefetch() reads to, on several threads at once: nobody looks at it. */
const UNWANTED = Buffer.allocUnsafeSlow(1024 * 1024);

class DiskFile implements StoreFile {
  /** Operations on threads. */
  private pending = 0;
  private closed = false;

  constructor(
    private readonly fd: number,
    /** Null: it need not be durable. */
    private readonly pace: SyncPace | null,
  ) {}

  read(target: Uint8Array, at: number, length: number, position: number): number {
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
        const count = Math.min(length - at, UNWANTED.length);
        fs.read(this.fd, UNWANTED, 0, count, position + at, (error) => {
          // Whoever reads what is missing will say so.
          if (error === null && at + count < length) next(at + count);
          else {
            this.ended();
            resolve();
          }
        });
      };
      next(0);
    });
  }

  size(): number {
    return fs.fstatSync(this.fd).size;
  }

  /** The descriptor is let go when the last operation has ended, so that its number is not another file's by then. */
  close(): void {
    this.closed = true;
    if (this.pending === 0) fs.closeSync(this.fd);
  }

  private ended(): void {
    this.pending--;
    if (this.closed && this.pending === 0) fs.closeSync(this.fd);
  }
}
