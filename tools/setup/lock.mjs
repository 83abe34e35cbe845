// One set-up at a time in one checkout: `npm start` in one terminal and `npm test` in another must not build into the same
// folder at once.

import fs from 'node:fs';
import path from 'node:path';
import process from 'node:process';
import { setTimeout as sleep } from 'node:timers/promises';

const POLL_MS = 200;

/** Creates the lock file with our process number in it, waiting for a living owner to remove his. */
export async function takeLock(file) {
  fs.mkdirSync(path.dirname(file), { recursive: true });
  let waited = false;
  for (;;) {
    try {
      fs.writeFileSync(file, String(process.pid), { flag: 'wx' });
      return file;
    } catch (error) {
      if (error.code !== 'EEXIST') throw error;
    }
    const owner = readOwner(file);
    if (owner === null || !isAlive(owner)) {
      fs.rmSync(file, { force: true });
      continue;
    }
    if (!waited) process.stderr.write(`setup: waiting for another one (process ${owner})\n`);
    waited = true;
    await sleep(POLL_MS);
  }
}

export function releaseLock(file) {
  fs.rmSync(file, { force: true });
}

/** The number in the file; null when it has gone. An empty file is being written right now: its writer is alive. */
function readOwner(file) {
  try {
    return Number(fs.readFileSync(file, 'utf8')) || process.pid;
  } catch {
    return null;
  }
}

function isAlive(pid) {
  try {
    process.kill(pid, 0);
    return true;
  } catch (error) {
    return error.code === 'EPERM';
  }
}
