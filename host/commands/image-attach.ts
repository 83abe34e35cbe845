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
  for (;;) {
    const asked = await Promise.race([interrupted().then(() => true), fuse.ended.then(() => false)]);
    if (!asked) return fuse.endedWell;
    try {
      await fuse.unmount();
      return true;
    } catch (error) {
      process.stderr.write(`ribbon: ${failureText(error)}; end what uses it (umount, losetup -d), then Ctrl-C again\n`);
    }
  }
}

function interrupted(): Promise<void> {
  return new Promise((resolve) => {
    // Listening for signals alone does not keep a process alive.
    const alive = setInterval(() => {}, 2 ** 30);
    const done = () => {
      clearInterval(alive);
      process.off('SIGINT', done);
      process.off('SIGTERM', done);
      resolve();
    };
    process.on('SIGINT', done);
    process.on('SIGTERM', done);
  });
}

function print(text: string): void {
  process.stdout.write(`${text}\n`);
}
