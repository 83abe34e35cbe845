// The firmware of the first slice, with its RAM cache and no local store, built from this repository's own history with the compiler
// that is installed, and run by its own host code.

import { execFile, spawn } from 'node:child_process';
import { once } from 'node:events';
import { existsSync } from 'node:fs';
import { mkdir, rename, rm } from 'node:fs/promises';
import path from 'node:path';
import { fileURLToPath, pathToFileURL } from 'node:url';
import { promisify } from 'node:util';
import type { loadFirmware } from '../../card/firmware.js';
import type { InProcessCard } from '../../card/in-process.js';
import type { DEFAULT_SETTINGS } from '../../card/settings.js';
import type { Cable } from '../../front-end/cable.js';
import type { ImageServer } from '../../server/server.js';
import type { Store } from '../../store/store.js';

const run = promisify(execFile);
/** The last commit of `main` before the local store landed. */
const COMMIT = 'f28323e30913b2e95cfa87b6557510411a4ff52d';
const PARTS = ['assembly', 'host', 'tools', 'asconfig.json', 'package.json', 'tsconfig.json'];
const ROOT = path.resolve(fileURLToPath(import.meta.url), '../../../../..');

/** What a card and its image server are made of. Of what is used here, today's and the first slice's look alike. */
export interface Parts {
  loadFirmware: typeof loadFirmware;
  InProcessCard: typeof InProcessCard;
  DEFAULT_SETTINGS: typeof DEFAULT_SETTINGS;
  Cable: typeof Cable;
  ImageServer: typeof ImageServer;
  Store: typeof Store;
}

/** The parts as they were then; null when this checkout does not have that commit. Built once, under build/. */
export async function firstSlice(onProgress: (text: string) => void): Promise<Parts | null> {
  const folder = path.join(ROOT, 'build', 'bench', `first-slice-${COMMIT.slice(0, 8)}`);
  if (!existsSync(folder)) {
    try {
      await run('git', ['-C', ROOT, 'cat-file', '-e', `${COMMIT}^{commit}`]);
    } catch {
      return null;
    }
    onProgress('building the first slice');
    const partial = `${folder}.${process.pid}`;
    await mkdir(partial, { recursive: true });
    try {
      await unpack(partial);
      await run(process.execPath, [path.join(ROOT, 'node_modules/typescript/bin/tsc'), '-p', partial]);
      await run(process.execPath, [path.join(partial, 'build/tools/build-firmware.js')]);
      await rename(partial, folder);
    } finally {
      await rm(partial, { recursive: true, force: true });
    }
  }
  const modules = [
    'card/firmware',
    'card/in-process',
    'card/settings',
    'front-end/cable',
    'server/server',
    'store/store',
  ];
  const loaded = modules.map((name) => import(pathToFileURL(path.join(folder, 'build/host', `${name}.js`)).href));
  return Object.assign({}, ...(await Promise.all(loaded))) as Parts;
}

async function unpack(folder: string): Promise<void> {
  const archive = spawn('git', ['-C', ROOT, 'archive', COMMIT, ...PARTS], { stdio: ['ignore', 'pipe', 'inherit'] });
  const tar = spawn('tar', ['-x', '-C', folder], { stdio: [archive.stdout, 'inherit', 'inherit'] });
  const [[archived], [unpacked]] = await Promise.all([once(archive, 'exit'), once(tar, 'exit')]);
  if (archived !== 0 || unpacked !== 0) throw new Error(`git archive ${COMMIT} failed`);
}
