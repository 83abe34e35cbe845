// Network paths (SPEC.md): lines that the runtime takes, and lines that it names as wrong. On the sanitized posix runtime, which
// reads them with the code that a board has.

import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, test } from 'node:test';
import { buildSanitizedPosixCard, POSIX_CARD_SANITIZED } from './builds.js';

const folder = mkdtempSync(join(tmpdir(), 'ribbon-paths-'));
const KEY = '00112233445566778899aabbccddeeff';

before(buildSanitizedPosixCard);
after(() => rmSync(folder, { recursive: true, force: true }));

/** What the program says of a text; it then misses its other options. */
function verdict(text: string): string {
  const file = join(folder, 'paths');
  writeFileSync(file, text);
  const { status, stderr } = spawnSync(POSIX_CARD_SANITIZED, ['--paths', file], { encoding: 'utf8' });
  assert.equal(status, 2, stderr);
  return stderr.includes('missing option') ? 'taken' : (/:(\d+): not a network path/.exec(stderr)?.[1] ?? stderr);
}

const TAKEN = [
  '# a comment\n\n  tcp 10.0.0.1 10809 \n',
  `tcp 10.0.0.1 1 psk card ${KEY}\r\nunix /run/nbd\n`,
  'tcp 10.0.0.1 65535\ninterface 0 dhcp\ninterface 1 static 192.168.7.9/24\n',
  'interface 0 static 10.1.2.3/8 10.0.0.1\ntcp 10.0.0.1 10809',
  'interface 0 static 10.1.2.3/30 0.0.0.0\ninterface 0 dhcp\n',
  'tcp a 1\ntcp b 2\ntcp c 3\ntcp d 4\n',
  'tcp 10.0.0.1 10809\nlog 10.0.0.9 514\n',
];
const WRONG: [string, number][] = [
  ['tcp 10.0.0.1\n', 1],
  ['tcp 10.0.0.1 0\n', 1],
  ['tcp 10.0.0.1 65536\n', 1],
  ['tcp 10.0.0.1 99999999999999999999\n', 1],
  [`tcp 10.0.0.1 1 psk card ${KEY.slice(2)}\n`, 1],
  [`# one\ntcp 10.0.0.1 1 psk card ${KEY}0\n`, 2],
  [`tcp 10.0.0.1 1 psk card ${KEY} more\n`, 1],
  ['udp 10.0.0.1 1\n', 1],
  ['log 10.0.0.1\n', 1],
  ['log 10.0.0.1 0\n', 1],
  ['log 255.255.255.255 514\n', 1],
  ['log loghost 514\n', 1],
  ['log 10.0.0.1 514 more\n', 1],
  ['interface\n', 1],
  ['interface 0\n', 1],
  ['interface 2 dhcp\n', 1],
  ['interface x dhcp\n', 1],
  ['interface 0 dhcp 10.0.0.1\n', 1],
  ['interface 0 static\n', 1],
  ['interface 0 static 10.0.0.1\n', 1],
  ['interface 0 static 10.0.0.1/0\n', 1],
  ['interface 0 static 10.0.0.1/31\n', 1],
  ['interface 0 static 10.0.0/24\n', 1],
  ['interface 0 static 10.0.0.1.2/24\n', 1],
  ['interface 0 static 10.0.0.256/24\n', 1],
  ['interface 0 static 10.0.0./24\n', 1],
  ['interface 0 static 224.0.0.1/24\n', 1],
  ['interface 0 static 0.0.0.0/24\n', 1],
  ['interface 0 static 10.0.0.1/24 10.0.0\n', 1],
  ['interface 0 static 10.0.0.1/24 10.0.0.2 3\n', 1],
  ['tcp a 1\ntcp b 2\ntcp c 3\ntcp d 4\ninterface 0 dhcp\ntcp e 5\n', 6],
];

for (const text of TAKEN) test(`taken: ${JSON.stringify(text)}`, () => assert.equal(verdict(text), 'taken'));
for (const [text, line] of WRONG) {
  test(`line ${line} is wrong: ${JSON.stringify(text)}`, () => assert.equal(verdict(text), String(line)));
}
