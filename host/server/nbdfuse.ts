// A local path for an NBD URI, through libnbd's nbdfuse: for programs that want a file.

import { type ChildProcess, execFile, execFileSync, spawn } from 'node:child_process';
import fs from 'node:fs';
import { promisify } from 'node:util';
import { Failure } from '../failure.js';

const run = promisify(execFile);
const MOUNT_TIMEOUT_MS = 10_000;

/** Why there can be no local path here; null: there can. */
export function whyNoFuse(): string | null {
  try {
    // A container may show the device and not let it be opened.
    fs.closeSync(fs.openSync('/dev/fuse', 'r+'));
  } catch (error) {
    return `/dev/fuse cannot be opened (${(error as NodeJS.ErrnoException).code})`;
  }
  try {
    execFileSync('nbdfuse', ['--version'], { stdio: 'ignore' });
  } catch {
    return 'nbdfuse is not installed: apt-get install libnbd-bin fuse3';
  }
  return null;
}

/** A file that is the export; the path must not exist, and is gone again afterwards. */
export class NbdFuse {
  /** Resolved when the path is gone: it was unmounted, or nbdfuse ended. */
  readonly ended: Promise<void>;
  /** It was unmounted, here or by somebody else, and not killed. */
  endedWell = false;
  private readonly child: ChildProcess;
  private stderr = '';

  private constructor(
    readonly path: string,
    uri: string,
    readOnly: boolean,
  ) {
    fs.closeSync(fs.openSync(path, 'wx', 0o600));
    // A group of its own: Ctrl-C is for us, who unmount first.
    this.child = spawn('nbdfuse', [...(readOnly ? ['-r'] : []), path, uri], {
      stdio: ['ignore', 'ignore', 'pipe'],
      detached: true,
    });
    this.child.stderr!.on('data', (text: Buffer) => {
      this.stderr = (this.stderr + text).slice(-2000);
    });
    this.ended = new Promise((resolve) => {
      this.child.once('error', (error) => {
        this.stderr = error.message;
        resolve();
      });
      this.child.once('close', (status) => {
        this.endedWell = status === 0;
        resolve();
      });
    });
  }

  static async mount(path: string, uri: string, size: number, readOnly: boolean): Promise<NbdFuse> {
    let fuse: NbdFuse;
    try {
      fuse = new NbdFuse(path, uri, readOnly);
    } catch (error) {
      throw new Failure(`cannot make ${path}: ${(error as Error).message}`);
    }
    let over = false;
    fuse.ended.then(() => {
      over = true;
    });
    // The empty file turns into the export when it is mounted.
    for (let waited = 0; !over && waited < MOUNT_TIMEOUT_MS; waited += 20) {
      if ((await fs.promises.stat(path)).size === size) return fuse;
      await new Promise<void>((resolve) => setTimeout(resolve, 20));
    }
    fuse.child.kill();
    await fuse.ended;
    fs.rmSync(path, { force: true });
    throw new Failure(`nbdfuse does not mount ${path}: ${fuse.stderr.trim() || 'it says nothing'}`);
  }

  /** Unmounts; everything that was written is at the server when it resolves. Throws while the path is in use. */
  async unmount(): Promise<void> {
    // Not synchronously: the kernel writes back first, perhaps to a server in this very process.
    try {
      await run('umount', [this.path]);
    } catch (error) {
      const text = String((error as { stderr?: string }).stderr ?? error).trim();
      await run('fusermount3', ['-u', this.path]).catch(() => {
        throw new Failure(`cannot unmount ${this.path}: ${text}`);
      });
    }
    await this.ended;
    fs.rmSync(this.path, { force: true });
  }
}
