// `ribbon sim` as a person and a script use it: --run, its output and exit status, signals, and what survives them.

import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { after, before, test } from 'node:test';
import { BOOT_TIMEOUT_MS, cutPartition, run } from './booted-pc.js';
import { RIBBON } from './port-client.js';

let folder: string;
let store: string;

before(() => {
  folder = mkdtempSync(path.join(tmpdir(), 'ribbon-sim-'));
  store = path.join(folder, 'store');
});
after(() => rmSync(folder, { recursive: true, force: true }));

interface Ended {
  status: number | null;
  output: string;
  errors: string;
}

/** Runs `ribbon sim`; `onOutput` may act on what it has printed so far. */
async function sim(
  options: string[],
  onOutput: (text: string, child: ReturnType<typeof spawn>) => void = () => {},
): Promise<Ended> {
  const child = spawn(process.execPath, [RIBBON, 'sim', '--store', store, ...options], {
    stdio: ['pipe', 'pipe', 'pipe'],
  });
  const ended: Ended = { status: null, output: '', errors: '' };
  child.stdout.on('data', (text) => {
    ended.output += text;
    onOutput(ended.output, child);
  });
  child.stderr.on('data', (text) => {
    ended.errors += text;
  });
  await once(child, 'close');
  ended.status = child.exitCode;
  return ended;
}

/** A file of the data partition of the master image. */
async function masterFile(name: string): Promise<string> {
  const disk = path.join(folder, 'disk.img');
  const data = path.join(folder, 'data.img');
  rmSync(disk, { force: true });
  await run(process.execPath, [RIBBON, 'image', 'export', 'demo', disk, '--store', store]);
  cutPartition(disk, 2, data);
  await run('e2fsck', ['-fn', data]);
  return (await run('debugfs', ['-R', `cat ${name}`, data])).stdout;
}

test('--run prints what the command prints, exits with its status, and loses nothing it wrote', {
  timeout: BOOT_TIMEOUT_MS,
}, async () => {
  const command = `echo "it's \\$HOME: \\\\ \t é"; cat /data/README; echo to stderr >&2; echo kept > /data/kept; printf 'no newline'; exit 7`;
  const { status, output, errors } = await sim(['--run', command]);
  assert.equal(errors, '');
  assert.match(
    output,
    /^it's \$HOME: \\ \t é\nThis file system lives on an image server\.[^\n]*\nto stderr\nno newline$/,
  );
  assert.equal(status, 7);
  // Not synced by the command: switching the PC off did it.
  assert.equal(await masterFile('/kept'), 'kept\n');
});

test('without a terminal the console is standard input and output; SIGTERM ends it cleanly', {
  timeout: BOOT_TIMEOUT_MS,
}, async () => {
  let typed = false;
  let asked = false;
  const { status, output, errors } = await sim([], (text, child) => {
    if (!typed && /demo:\S*# /.test(text)) {
      typed = true;
      child.stdin?.write('cat /data/kept; echo typed > /data/typed; echo do""ne\n');
    }
    if (!asked && text.includes('done\r\n')) {
      asked = true;
      child.kill('SIGTERM');
    }
  });
  assert.equal(errors, '');
  assert.equal(status, 0);
  assert.match(output, /kept\r\n/);
  assert.equal(await masterFile('/typed'), 'typed\n');
});

test('says what is wrong before anything starts', async () => {
  const cases: [string[], RegExp][] = [
    [['--image', 'nothing'], /there is no image "nothing" in .*store/],
    [['--pc', 'none'], /--pc none needs --ports/],
    [['--pc', 'nbd'], /--pc nbd needs --listen/],
    [['--memory', '1M'], /--memory must be from 16M/],
    [['--memory', 'much'], /"much" is not a size/],
    [['--server', 'ftp:x'], /cannot listen on "ftp:x"|write tcp:HOST:PORT or unix:PATH/],
    [['--server', 'unix:/no/such/socket'], /no answer from the image server at \/no\/such\/socket/],
  ];
  for (const [options, expected] of cases) {
    const { status, output, errors } = await sim(options);
    assert.match(errors, expected);
    assert.doesNotMatch(errors, /\n {4}at /, 'no stack for a mistake of the user');
    assert.equal(status, 1);
    assert.equal(output, '');
  }
});
