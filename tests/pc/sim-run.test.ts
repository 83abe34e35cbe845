// `ribbon sim --run CMD`: prints what the command prints in the PC, and ends with its status.

import assert from 'node:assert/strict';
import { execFile } from 'node:child_process';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join, resolve } from 'node:path';
import { after, before, describe, test } from 'node:test';

const MAIN = resolve(import.meta.dirname, '../../host/main.js');

interface Ended {
  code: number;
  stdout: string;
  stderr: string;
}

describe('ribbon sim --run', () => {
  let folder: string;

  before(() => {
    folder = mkdtempSync(join(tmpdir(), 'ribbon-sim-run-'));
  });
  after(() => rmSync(folder, { recursive: true }));

  /** One after the other on the same store: what the first has written, the second reads. */
  function simulate(command: string): Promise<Ended> {
    const args = [MAIN, 'sim', '--store', join(folder, 'store'), '--run', command];
    return new Promise((resolve) => {
      execFile(process.execPath, args, (error, stdout, stderr) => {
        resolve({ code: error === null ? 0 : Number(error.code), stdout, stderr });
      });
    });
  }

  test('ends with status 0 after a command that succeeds', async () => {
    const { code, stdout, stderr } = await simulate('uname -m; echo "it works" > /data/note; sync');
    assert.deepEqual({ code, stdout: stdout.trim() }, { code: 0, stdout: 'i686' }, stderr);
  });

  test("ends with the command's status, and finds what the run before has written", async () => {
    const { code, stdout, stderr } = await simulate('cat /data/note; exit 3');
    assert.deepEqual({ code, stdout: stdout.trim() }, { code: 3, stdout: 'it works' }, stderr);
  });
});
