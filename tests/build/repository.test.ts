// What must not be in the repository: binaries, big files, third-party code, the hosts of package registries.

import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import { existsSync, readFileSync } from 'node:fs';
import { join, resolve } from 'node:path';
import { describe, test } from 'node:test';

const ROOT = resolve(import.meta.dirname, '../../..');
const SIZE_MAX = 400_000;
const hasGit = existsSync(join(ROOT, '.git'));

describe('the repository', { skip: !hasGit && 'not a git checkout' }, () => {
  const files = hasGit
    ? execFileSync('git', ['ls-files', '-z'], { cwd: ROOT, encoding: 'utf8' })
        .split('\0')
        .filter((file) => file !== '' && existsSync(join(ROOT, file)))
    : [];
  const contents = files.map((file) => ({ file, bytes: readFileSync(join(ROOT, file)) }));

  test('is the one that this test is in', () => {
    assert.ok(files.includes('package.json'));
  });

  test('holds no binaries', () => {
    assert.deepEqual(
      contents.filter(({ bytes }) => bytes.includes(0)).map(({ file }) => file),
      [],
    );
  });

  test('holds no big files', () => {
    assert.deepEqual(
      contents.filter(({ bytes }) => bytes.length > SIZE_MAX).map(({ file }) => file),
      [],
    );
  });

  test('holds no code of others', () => {
    assert.deepEqual(
      files.filter((file) => /(^|\/)(m3_[a-z_]+\.[ch]|node_modules|vendor|third[-_]party)(\/|$)/i.test(file)),
      [],
    );
  });

  test('names no host of a package registry', () => {
    const host = /https?:\/\/[a-z0-9.-]*(npm|deb|node)[a-z0-9.-]*/;
    const found = contents.filter(({ bytes }) => host.test(bytes.toString('utf8'))).map(({ file }) => file);
    assert.deepEqual(found, []);
    assert.ok(!readFileSync(join(ROOT, 'package-lock.json'), 'utf8').includes('"resolved"'));
  });

  test('pins every npm package to one version', () => {
    const { dependencies, devDependencies } = JSON.parse(readFileSync(join(ROOT, 'package.json'), 'utf8'));
    const loose = Object.entries({ ...dependencies, ...devDependencies }).filter(
      ([, version]) => !/^\d/.test(String(version)),
    );
    assert.deepEqual(loose, []);
  });

  test('has no test that runs alone or is left out without a word', () => {
    const left = contents
      .filter(({ file }) => /\.(test|spec)\.ts$/.test(file))
      .filter(({ bytes }) =>
        /\b(test|it|describe)\.(only|todo)\(|\bx(it|test|describe)\(|\btodo\(/.test(bytes.toString('utf8')),
      )
      .map(({ file }) => file)
      // These two name the marks: to look for them, and to show that the runner refuses them.
      .filter((file) => !/\/(repository|test-runner)\.test\.ts$/.test(file));
    assert.deepEqual(left, []);
  });
});
