// The test runner, on test files that go wrong in every way that node:test lets pass, or nearly.

import assert from 'node:assert/strict';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, describe, test } from 'node:test';
import { type Result, runTestFile } from '../../tools/node-tests.js';

interface Case {
  name: string;
  code: string;
  passed: number;
  failed: number;
  skipped?: string[];
  says?: RegExp;
}

const CASES: Case[] = [
  { name: 'a test that passes', code: `test('a', () => {});`, passed: 1, failed: 0 },
  {
    name: 'groups and subtests, which do not count by themselves',
    code: `describe('g', () => { test('a', () => {}); describe('h', () => { test('b', () => {}); }); });
      test('outer', async (t) => { await t.test('c', () => {}); await t.test('d', () => {}); });`,
    passed: 4,
    failed: 0,
  },
  {
    name: 'a test that fails, named with its groups',
    code: `describe('g', () => { test('a', () => { console.log('hint'); assert.equal(1, 2); }); test('b', () => {}); });`,
    passed: 1,
    failed: 1,
    says: /not ok: g > a\n[\s\S]*1 !== 2[\s\S]*hint/,
  },
  {
    name: 'a skip with its reason',
    code: `test('a', { skip: 'no TUN' }, () => {}); test('b', () => {});`,
    passed: 1,
    failed: 0,
    skipped: ['a: no TUN'],
  },
  {
    name: 'a skip without a reason',
    code: `test('a', { skip: true }, () => {});`,
    passed: 0,
    failed: 1,
    says: /skipped without a reason/,
  },
  { name: 'a todo mark', code: `test.todo('a'); test('b', () => {});`, passed: 1, failed: 1, says: /marked as todo/ },
  { name: 'no test at all', code: '', passed: 0, failed: 1, says: /no test ran/ },
  {
    name: 'a hook that fails',
    code: `describe('g', () => { before(() => { throw new Error('hook'); }); test('a', () => {}); });`,
    passed: 0,
    failed: 2,
    says: /hook/,
  },
  {
    name: 'an end before all tests have run, with status 0',
    code: `test('a', () => {}); test('b', async () => { await new Promise((r) => setTimeout(r, 200)); process.exit(0); });`,
    passed: 1,
    failed: 1,
    says: /ended before its tests did/,
  },
  {
    name: 'an error outside every test',
    code: `test('a', () => {}); setTimeout(() => { throw new Error('late'); }, 50);`,
    passed: 1,
    failed: 1,
    says: /late/,
  },
  {
    name: 'an import that is missing',
    code: `await import('./nothing.mjs');`,
    passed: 0,
    failed: 1,
    says: /nothing\.mjs/,
  },
  {
    name: 'a file that does not end',
    code: `test('a', () => {}); test('b', () => new Promise(() => { setInterval(() => {}, 1000); }));`,
    passed: 1,
    failed: 1,
    says: /stopped after 4 s/,
  },
];

describe('the test runner', () => {
  let folder: string;

  before(() => {
    folder = mkdtempSync(join(tmpdir(), 'ribbon-runner-'));
  });
  after(() => rmSync(folder, { recursive: true }));

  async function run(code: string): Promise<Result> {
    const imports = `import assert from 'node:assert/strict';\nimport { before, describe, test } from 'node:test';\n`;
    writeFileSync(join(folder, 'case.mjs'), imports + code);
    return runTestFile('case.mjs', folder, 4000);
  }

  for (const { name, code, passed, failed, skipped, says } of CASES) {
    test(`sees ${name}`, async () => {
      const result = await run(code);
      assert.deepEqual(
        { passed: result.passed, failed: result.failed, skipped: result.skipped },
        { passed, failed, skipped: skipped ?? [] },
        result.output,
      );
      if (says) assert.match(result.output, says);
    });
  }

  test('sees a file that was not compiled', async () => {
    const result = await runTestFile('missing.mjs', folder, 4000);
    assert.equal(result.failed, 1);
    assert.match(result.output, /missing\.mjs is missing/);
  });
});
