import assert from 'node:assert/strict';
import { execFile } from 'node:child_process';
import { mkdtempSync, readdirSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { test } from 'node:test';
import { promisify } from 'node:util';

const MODULE = new URL('../../tools/fetch-board-deps.js', import.meta.url).href;

test('sources that several processes want at once are there for each of them', async () => {
  const root = mkdtempSync(path.join(tmpdir(), 'ribbon-deps-test-'));
  const script = `const { fetchBoardDependency } = await import('${MODULE}');
    const folder = await fetchBoardDependency(process.argv[1], 'wasm3');
    (await import('node:fs')).readFileSync(folder + '/m3_core.c');`;
  try {
    const fetch = () =>
      promisify(execFile)(process.execPath, ['--input-type=module', '--eval', script, root], { timeout: 120_000 });
    await Promise.all([fetch(), fetch(), fetch()]);
    assert.deepEqual(readdirSync(path.join(root, 'build', 'deps')), ['wasm3']);
  } finally {
    rmSync(root, { recursive: true, force: true });
  }
});
