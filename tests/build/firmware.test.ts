// The firmware build on the real sources: it keeps the rules, gives the same bytes wherever the checkout lies, and refuses sources
// that break a rule with a message that names the function.

import assert from 'node:assert/strict';
import { cpSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { SourceMap } from 'node:module';
import { tmpdir } from 'node:os';
import { join, resolve } from 'node:path';
import { after, before, describe, test } from 'node:test';
import { Failure } from '../../host/failure.js';
import { compileFirmware, type Firmware } from '../../tools/firmware/compile.js';
import { decodeModule } from '../../tools/firmware/module.js';
import { sizeByFile } from '../../tools/firmware/sizes.js';

const ROOT = resolve(import.meta.dirname, '../../..');

describe('firmware build', () => {
  const folders: string[] = [];
  let sources: string;
  let firmware: Firmware;

  /** A copy of the firmware's sources in a folder of its own. */
  function copySources(from: string, prefix: string): string {
    const folder = mkdtempSync(join(tmpdir(), prefix));
    folders.push(folder);
    cpSync(join(from, 'assembly'), join(folder, 'assembly'), { recursive: true });
    cpSync(join(from, 'asconfig.json'), join(folder, 'asconfig.json'));
    return folder;
  }

  /** What the build says about the sources with `code` put before the first function of index.ts, called by step(). */
  async function refusal(code: string, call: string): Promise<string> {
    const folder = copySources(sources, 'ribbon-bad-');
    const file = join(folder, 'assembly/index.ts');
    const source = readFileSync(file, 'utf8');
    const changed = source
      .replace('export function init()', () => `${code}\nexport function init()`)
      .replace('  quiet = 0;', () => `  quiet = 0;\n${call}`);
    assert.notEqual(changed, source);
    writeFileSync(file, changed);
    try {
      await compileFirmware(folder);
    } catch (error) {
      assert.ok(error instanceof Failure, String(error));
      return error.message;
    }
    throw new Error('the build took it');
  }

  before(async () => {
    sources = copySources(ROOT, 'ribbon-a-');
    firmware = await compileFirmware(sources);
  });

  after(() => {
    for (const folder of folders) rmSync(folder, { recursive: true });
  });

  test('gives the same bytes in another folder', async () => {
    const again = await compileFirmware(copySources(sources, 'ribbon-another-folder-'));
    assert.equal(again.sha256, firmware.sha256);
    assert.deepEqual(again.wasm, firmware.wasm);
  });

  test('ships no names, and keeps them beside', () => {
    const shipped = decodeModule(firmware.wasm);
    assert.ok(shipped.functions.every(({ name }) => name.startsWith('function ')));
    assert.deepEqual(
      shipped.functions.map(({ sizeBytes }) => sizeBytes),
      firmware.module.functions.map(({ sizeBytes }) => sizeBytes),
    );
    assert.ok(firmware.module.functions.some(({ name }) => name === 'assembly/index/step'));
    assert.ok(!firmware.module.functions.some(({ name }) => name.startsWith('function ')));
  });

  test('says of every byte of code where it comes from', () => {
    const sizes = sizeByFile(firmware.module, new SourceMap(JSON.parse(firmware.sourceMap)));
    assert.equal(
      [...sizes.values()].reduce((sum, bytes) => sum + bytes, 0),
      firmware.module.codeBytes,
    );
    assert.ok([...sizes.values()].every((bytes) => bytes > 0));
    for (const file of ['assembly/ata/device.ts', 'assembly/nbd/client.ts', 'assembly/cache/cache.ts']) {
      assert.ok(sizes.has(file), `${file} is not among ${[...sizes.keys()].join(', ')}`);
    }
  });

  test('refuses an allocation, although it is inlined', async () => {
    const code = `class Leak { a: u32; }\nlet leaked: Leak | null = null;\nfunction leak(): void { leaked = new Leak(); }`;
    assert.match(await refusal(code, 'leak();'), /rule "allocation": .*(leak|Leak).*calls ~lib\/rt\/stub\/__new/);
  });

  test('refuses floating point', async () => {
    const code = 'function share(a: u32, b: u32): u32 { return <u32>((<f64>a / <f64>b) * 100.0); }';
    const text = await refusal(code, 'if (share(<u32>nbdTimeoutMs(), 7) == 3) quiet = 1;');
    assert.match(text, /rule "float": assembly\/index\/share: floating-point instruction/);
  });

  test('refuses recursion', async () => {
    const code = 'function down(n: u32): u32 { return n < 2 ? n : down(n - 1) + down(n - 2); }';
    const text = await refusal(code, 'if (down(nbdTimeoutMs()) == 3) quiet = 1;');
    assert.match(text, /rule "recursion": assembly\/index\/down: assembly\/index\/down -> assembly\/index\/down/);
  });

  test('refuses an import that the list does not have', async () => {
    const code = 'declare function peek(address: usize): u32;';
    assert.match(await refusal(code, 'if (peek(0) == 3) quiet = 1;'), /rule "imports": function index\.peek/);
  });

  test('says where a source does not compile', async () => {
    assert.match(await refusal('', 'missing();'), /does not compile:[\s\S]*missing[\s\S]*assembly\/index\.ts/);
  });
});
