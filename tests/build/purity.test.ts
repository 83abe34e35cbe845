// The firmware sees the world through assembly/imports.ts alone: nothing else declares an import, and nothing names a clock, chance
// or a console that AssemblyScript would otherwise bring along as imports of its own.

import assert from 'node:assert/strict';
import { readdirSync, readFileSync } from 'node:fs';
import { join, resolve } from 'node:path';
import { describe, test } from 'node:test';
import { stripComments } from './strip-comments.js';

const ASSEMBLY = resolve(import.meta.dirname, '../../../assembly');

const sources = readdirSync(ASSEMBLY, { recursive: true, encoding: 'utf8' })
  .filter((file) => file.endsWith('.ts') && !file.endsWith('.spec.ts'))
  .map((file) => ({ file, code: stripComments(readFileSync(join(ASSEMBLY, file), 'utf8')) }));

/** Lines of code, without comments, that match. */
function linesWith(pattern: RegExp, except?: string): string[] {
  return sources
    .filter(({ file }) => file !== except)
    .flatMap(({ file, code }) =>
      code
        .split('\n')
        .map((line, i) => `${file}:${i + 1}: ${line.trim()}`)
        .filter((line) => pattern.test(line)),
    );
}

describe('the firmware', () => {
  test('is where this test looks for it', () => {
    assert.ok(sources.length > 10);
    assert.ok(sources.some(({ file }) => file === 'index.ts'));
  });

  test('declares imports in imports.ts alone', () => {
    assert.deepEqual(linesWith(/\bdeclare\b|@external/, 'imports.ts'), []);
    assert.ok(sources.find(({ file }) => file === 'imports.ts')?.code.includes('declare function clock_ms'));
  });

  test('names no clock and no chance of its own', () => {
    assert.deepEqual(linesWith(/\b(Date|Math|performance|crypto|process|console|trace)\b\s*[.(]/), []);
  });

  test('has no floating-point type', () => {
    assert.deepEqual(linesWith(/\b(f32|f64|Float32Array|Float64Array)\b|[:<]\s*number\b/), []);
  });

  test('allocates nothing', () => {
    assert.deepEqual(linesWith(/\bnew\s+[A-Z]|\bheap\.|\b__(new|alloc|renew)\b|\bmemory\.grow\b/), []);
  });

  test('has no known bug planted', () => {
    const mutant = sources.find(({ file }) => file === 'mutant.ts');
    assert.match(mutant?.code ?? '', /^export const MUTANT: i32 = 0;$/m);
  });

  test('has no function table', () => {
    assert.deepEqual(linesWith(/\bcall_indirect\b|\bfunction\s*\(|=>\s*[{(\w]/), []);
  });
});

describe('stripComments', () => {
  test('keeps lines and text in quotes', () => {
    const source = "a; // Date.now()\n/* Math.\n random */ b('// not a comment'); c(`/* nor */`);\n";
    assert.equal(stripComments(source), "a; \n\n b('// not a comment'); c(`/* nor */`);\n");
  });
});
