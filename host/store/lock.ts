// One process at a time owns a store: a lock file with the owner's process number and start time, so that the lock of a process
// that was killed is known to be stale.

import fs from 'node:fs';
import path from 'node:path';
import { Failure } from '../failure.js';

/** Takes the lock or throws a Failure that names the owner; the result lets it go. */
export function lockFolder(folder: string): () => void {
  const file = path.join(folder, 'lock');
  const mine = `${process.pid} ${startTime(process.pid)}\n`;
  const own = `${file}.${process.pid}`;
  fs.writeFileSync(own, mine);
  try {
    for (let attempt = 0; attempt < 5; attempt++) {
      try {
        // link() is atomic and fails when the name is taken; the content is there from the beginning.
        fs.linkSync(own, file);
        return () => fs.rmSync(file, { force: true });
      } catch (error) {
        if ((error as NodeJS.ErrnoException).code !== 'EEXIST') throw error;
      }
      const owner = readOwner(file);
      if (owner !== null && startTime(owner.pid) === owner.start) {
        throw new Failure(`the store ${folder} is in use by process ${owner.pid}: stop it, or use another --store`);
      }
      fs.rmSync(file, { force: true });
    }
  } finally {
    fs.rmSync(own, { force: true });
  }
  throw new Failure(`cannot lock the store ${folder}: others are trying at the same time`);
}

function readOwner(file: string): { pid: number; start: string } | null {
  try {
    const match = /^(\d+) (\S+)\n$/.exec(fs.readFileSync(file, 'utf8'));
    return match === null ? null : { pid: Number(match[1]), start: match[2] };
  } catch {
    return null;
  }
}

/** When the process started, in the kernel's ticks since boot; `none` when there is no such process. */
function startTime(pid: number): string {
  try {
    const stat = fs.readFileSync(`/proc/${pid}/stat`, 'utf8');
    // The second field is the name in parentheses, which may hold anything; start time is field 22.
    return stat.slice(stat.lastIndexOf(')') + 2).split(' ')[19];
  } catch {
    return 'none';
  }
}
