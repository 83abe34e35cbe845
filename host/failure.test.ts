import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import { test } from 'node:test';

test('a program whose reader has gone ends without a word', () => {
  const failure = new URL('./failure.js', import.meta.url);
  const program = `import { endWithReader } from '${failure}';
    endWithReader();
    const write = () => process.stdout.write('more\\n', () => setImmediate(write));
    write();`;
  const shell = '"$0" --input-type=module -e "$1" | true';
  const { stderr } = spawnSync('sh', ['-c', shell, process.execPath, program], { encoding: 'utf8', timeout: 60_000 });
  assert.equal(stderr, '');
});
