// `ribbon image attach`: holds an image as a local file until Ctrl-C, then makes what was changed one generation.

import fs from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import { Failure, failureText } from '../failure.js';
import { NbdFuse, whyNoFuse } from '../server/nbdfuse.js';
import type { AdminOperations } from '../store/admin.js';

/** `file` undefined: a new name in the temporary folder. */
export async function attachImage(
  admin: AdminOperations,
  name: string,
  file: string | undefined,
  store: string,
): Promise<void> {
  const why = whyNoFuse();
  if (why !== null && file !== undefined)
    throw new Failure(`no local path: ${why}; without a path, attach offers an NBD URI instead`);
  const attached = await admin.attach(name);
  const folder = file === undefined && why === null ? fs.mkdtempSync(path.join(os.tmpdir(), 'ribbon-')) : null;
  let commit = false;
  try {
    if (why === null) {
      const target = path.resolve(file ?? path.join(folder!, `${name.replace(/[/@]/g, '-')}.img`));
      const fuse = await NbdFuse.mount(target, attached.uri, attached.size, attached.readOnly);
      print(target);
      print(`${name} is this file until Ctrl-C. Its partitions: losetup -fP --show ${target}`);
      commit = await holdFuse(fuse);
    } else {
      print(attached.uri);
      print(
        `${name} has no local path here (${why}), but this address, until Ctrl-C: for nbdcopy, qemu-nbd, guestfish`,
      );
      await interrupted();
      commit = true;
    }
  } catch (error) {
    // The server that holds the store may be gone; otherwise nothing is left attached.
    await admin.detach(attached.id, false).catch(() => {});
    throw error;
  } finally {
    if (folder !== null) fs.rmSync(folder, { recursive: true, force: true });
  }
  const generation = await admin.detach(attached.id, commit);
  if (!commit) throw new Failure(`nbdfuse ended by itself: the changes of ${name} are discarded (store ${store})`);
  print(generation === null ? 'nothing was changed' : `@${generation}`);
}

/** False: nbdfuse ended in another way than by being unmounted, and what it had is not known to be whole. */
async function holdFuse(fuse: NbdFuse): Promise<boolean> {
  const signals = new Signals();
  try {
    for (;;) {
      const asked = await Promise.race([signals.next().then(() => true), fuse.ended.then(() => false)]);
      if (!asked) return fuse.endedWell;
      try {
        await fuse.unmount();
        return true;
      } catch (error) {
        const hint = 'end what uses it (umount, losetup -d), then Ctrl-C again';
        process.stderr.write(`ribbon: ${failureText(error)}; ${hint}\n`);
      }
    }
  } finally {
    signals.stop();
  }
}

async function interrupted(): Promise<void> {
  const signals = new Signals();
  await signals.next();
  signals.stop();
}

/** Ctrl-C and SIGTERM, from now until stop(): one that comes while the one before is being answered must not end the process. */
class Signals {
  private count = 0;
  private wake: () => void = () => {};
  // Listening for signals alone does not keep a process alive.
  private readonly alive = setInterval(() => {}, 2 ** 30);

  constructor() {
    process.on('SIGINT', this.came);
    process.on('SIGTERM', this.came);
  }

  private readonly came = () => {
    this.count++;
    this.wake();
  };

  /** The next that has not been answered yet. */
  async next(): Promise<void> {
    if (this.count === 0) {
      await new Promise<void>((resolve) => {
        this.wake = resolve;
      });
    }
    this.count = 0;
  }

  stop(): void {
    clearInterval(this.alive);
    process.off('SIGINT', this.came);
    process.off('SIGTERM', this.came);
  }
}

function print(text: string): void {
  process.stdout.write(`${text}\n`);
}
