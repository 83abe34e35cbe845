// `ribbon sim --pc nbd`: stock NBD clients work on the disk of a card, through an ATA driver.

import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { createHash, randomFillSync } from 'node:crypto';
import { once } from 'node:events';
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { after, before, test } from 'node:test';
import { run } from './booted-pc.js';
import { RIBBON } from './port-client.js';

/** Neither a multiple of 4096 nor of what one command moves. */
const IMAGE_SIZE = (24 << 20) + 512;

let folder: string;
let store: string;

before(async () => {
  folder = mkdtempSync(path.join(tmpdir(), 'ribbon-nbd-pc-'));
  store = path.join(folder, 'store');
  await run(process.execPath, [RIBBON, 'image', 'create', 'disk', String(IMAGE_SIZE), '--store', store]);
});
after(() => rmSync(folder, { recursive: true, force: true }));

/** Runs `work` with the URI of a card's disk; the simulation must end cleanly. */
async function withCard(work: (uri: string) => Promise<void>): Promise<void> {
  const socket = path.join(folder, 'card');
  const args = [RIBBON, 'sim', '--pc', 'nbd', '--listen', `unix:${socket}`, '--image', 'disk', '--store', store];
  const child = spawn(process.execPath, args, { stdio: ['ignore', 'pipe', 'inherit'] });
  const exited = once(child, 'exit');
  try {
    const [uri] = await Promise.race([
      once(child.stdout, 'data'),
      exited.then(() => {
        throw new Error('the simulation ended before it was ready');
      }),
    ]);
    await work(String(uri).trim());
  } finally {
    child.kill('SIGTERM');
    await exited;
  }
  assert.equal(child.exitCode, 0);
}

function digest(file: string): string {
  return createHash('sha256').update(readFileSync(file)).digest('hex');
}

test('nbdcopy fills the disk, reads it back, and it is in the store when the card is off', async () => {
  const source = path.join(folder, 'source');
  writeFileSync(source, randomFillSync(Buffer.alloc(IMAGE_SIZE)));
  const copy = path.join(folder, 'copy');
  await withCard(async (uri) => {
    await run('nbdcopy', ['--flush', source, uri]);
    await run('nbdcopy', [uri, copy]);
  });
  assert.equal(digest(copy), digest(source));
  const exported = path.join(folder, 'exported');
  await run(process.execPath, [RIBBON, 'image', 'export', 'disk', exported, '--store', store]);
  assert.equal(digest(exported), digest(source));
});

test('fio writes at random with verification, several requests at once, sectors and parts of sectors', async () => {
  await withCard(async (uri) => {
    for (const size of ['4k', '512', '700']) {
      const { stdout } = await run('fio', [
        ...['--name=verify', '--ioengine=nbd', `--uri=${uri}`, '--rw=randwrite', `--bs=${size}`, '--size=4m'],
        ...[
          '--io_size=1m',
          '--iodepth=8',
          '--verify=crc32c',
          '--verify_state_save=0',
          '--do_verify=1',
          '--verify_fatal=1',
        ],
        ...['--verify_state_save=0', '--randseed=7'],
      ]);
      assert.match(stdout, /err= 0/);
    }
  });
});

test('qemu-io reads and writes across the end of what one command moves', async () => {
  await withCard(async (uri) => {
    const commands = ['write -P 0x5a 1048000 2097152', 'flush', 'read -P 0x5a 1048000 2097152', 'discard 0 65536'];
    const { stdout } = await run('qemu-io', ['-f', 'raw', ...commands.flatMap((command) => ['-c', command]), uri]);
    assert.doesNotMatch(stdout, /failed|Pattern/);
  });
});
