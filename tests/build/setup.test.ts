// The set-up, run for real in a copy of the checkout: it builds what is missing, does nothing twice, and says what it cannot do.

import assert from 'node:assert/strict';
import { type ChildProcess, spawn } from 'node:child_process';
import {
  chmodSync,
  cpSync,
  mkdirSync,
  mkdtempSync,
  readFileSync,
  rmSync,
  statSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs';
import { utimes } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join, resolve } from 'node:path';
import { after, before, describe, test } from 'node:test';

const ROOT = resolve(import.meta.dirname, '../../..');
const COPIED = ['assembly', 'host', 'tools', 'asconfig.json', 'package.json', 'package-lock.json', 'tsconfig.json'];

interface Ended {
  code: number | null;
  text: string;
}

/** Exit status, and everything printed. */
function outcome(child: ChildProcess): Promise<Ended> {
  let text = '';
  for (const stream of [child.stdout, child.stderr]) {
    stream?.setEncoding('utf8').on('data', (part: string) => {
      text += part;
    });
  }
  return new Promise((resolve) => child.on('close', (code) => resolve({ code, text })));
}

describe('set-up', () => {
  let checkout: string;

  before(() => {
    checkout = mkdtempSync(join(tmpdir(), 'ribbon-setup-'));
    for (const name of COPIED) cpSync(join(ROOT, name), join(checkout, name), { recursive: true });
    mkdirSync(join(checkout, 'tests'));
    symlinkSync(join(ROOT, 'node_modules'), join(checkout, 'node_modules'));
  });

  after(() => rmSync(checkout, { recursive: true }));

  function start(environment: NodeJS.ProcessEnv = {}): { child: ChildProcess; ended: Promise<Ended> } {
    const child = spawn(process.execPath, ['tools/setup.mjs', 'build'], {
      cwd: checkout,
      env: { ...process.env, ...environment },
      stdio: ['ignore', 'pipe', 'pipe'],
    });
    return { child, ended: outcome(child) };
  }

  const setUp = (environment?: NodeJS.ProcessEnv): Promise<Ended> => start(environment).ended;
  const modified = (file: string): number => statSync(join(checkout, file)).mtimeMs;

  test('is stopped by Ctrl-C, and goes on at the next run', async () => {
    const { child, ended } = start();
    // The lock file shows that it is at work.
    while (!statSync(join(checkout, 'build/setup.lock'), { throwIfNoEntry: false })) {
      await new Promise((resolve) => setTimeout(resolve, 20));
    }
    await new Promise((resolve) => setTimeout(resolve, 300));
    child.kill('SIGINT');
    const { code, text } = await ended;
    assert.equal(code, 130, text);
    assert.match(text, /stopped during "/);
    assert.equal(statSync(join(checkout, 'build/setup.lock'), { throwIfNoEntry: false }), undefined);
  });

  test('builds everything', async () => {
    const { code, text } = await setUp();
    assert.equal(code, 0, text);
    assert.match(text, /^setup: compiling, \d+ s$/m);
    assert.match(text, /^setup: building the firmware, \d+ s$/m);
    assert.ok(WebAssembly.validate(readFileSync(join(checkout, 'build/firmware/firmware.wasm'))));
  });

  test('does nothing the second time', async () => {
    assert.deepEqual(await setUp(), { code: 0, text: '' });
  });

  test('goes by what a file says and not by when it was written', async () => {
    const now = new Date();
    await utimes(join(checkout, 'host/failure.ts'), now, now);
    assert.deepEqual(await setUp(), { code: 0, text: '' });
  });

  test('builds what is gone again', async () => {
    rmSync(join(checkout, 'build/firmware/firmware.wasm'));
    const { code, text } = await setUp();
    assert.equal(code, 0);
    assert.match(text, /^setup: building the firmware, \d+ s\n$/);
  });

  test('builds the firmware and nothing else when only its source has changed', async () => {
    const compiled = modified('build/host/main.js');
    const file = join(checkout, 'assembly/config.ts');
    const source = readFileSync(file, 'utf8');
    writeFileSync(file, source.replace('RECONNECT_MAX_MS: u32 = 10000', 'RECONNECT_MAX_MS: u32 = 10001'));
    const firmware = readFileSync(join(checkout, 'build/firmware/firmware.wasm'));
    const { code, text } = await setUp();
    assert.equal(code, 0, text);
    assert.match(text, /^setup: building the firmware, \d+ s\n$/);
    assert.notDeepEqual(readFileSync(join(checkout, 'build/firmware/firmware.wasm')), firmware);
    assert.equal(modified('build/host/main.js'), compiled);
  });

  test('says what is missing where there is no Debian, and goes on', async () => {
    const { code, text } = await setUp({ PATH: '/nonexistent' });
    assert.equal(code, 0);
    assert.match(text, /Debian packages are missing, and this is not a Debian system/);
    assert.match(text, /^ {2}seabios +the BIOS/m);
    assert.match(text, /What needs only npm still works/);
  });

  test('says what is missing where it is not root, and goes on', async () => {
    // A dpkg that has nothing installed, and no rights from before the packages are looked at.
    const folder = mkdtempSync(join(tmpdir(), 'ribbon-setup-'));
    cpSync(join(ROOT, 'tools/setup'), folder, { recursive: true });
    writeFileSync(join(folder, 'dpkg-query'), '#!/bin/sh\nexit 1\n');
    chmodSync(join(folder, 'dpkg-query'), 0o755);
    chmodSync(folder, 0o755);
    const program = `
      if (process.getuid() === 0) process.setuid(65534);
      const { ensureAptPackages } = await import(${JSON.stringify(join(folder, 'apt.mjs'))});
      await ensureAptPackages(['start', 'boards', 'test']);`;
    try {
      const child = spawn(process.execPath, ['--input-type=module', '--eval', program], {
        env: { ...process.env, PATH: `${folder}:${process.env.PATH}` },
        stdio: ['ignore', 'pipe', 'pipe'],
      });
      const { code, text } = await outcome(child);
      assert.equal(code, 0, text);
      assert.match(text, /only root can install packages/);
      assert.match(text, /^ {2}syslinux +boot loader/m);
      assert.match(text, /^ {2}nbdkit +/m);
      assert.match(text, /Tests that need them are skipped, with the reason/);
    } finally {
      rmSync(folder, { recursive: true });
    }
  });

  test('waits while another one is at work, and not for one that has died', async () => {
    const lock = join(checkout, 'build/setup.lock');
    writeFileSync(lock, String(process.pid));
    const { child, ended } = start();
    const waiting = await new Promise<string>((resolve) => child.stderr?.once('data', resolve));
    assert.match(waiting, new RegExp(`waiting for another one \\(process ${process.pid}\\)`));
    rmSync(lock);
    assert.equal((await ended).code, 0);

    const dead = spawn('true');
    await new Promise((resolve) => dead.on('close', resolve));
    writeFileSync(lock, String(dead.pid));
    assert.deepEqual(await setUp(), { code: 0, text: '' });
  });
});
