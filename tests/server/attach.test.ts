// `ribbon image attach`, and what works through it: `diff --files`.

import assert from 'node:assert/strict';
import { type ChildProcess, execFile, spawn } from 'node:child_process';
import { once } from 'node:events';
import fs from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import { after, before, test } from 'node:test';
import { promisify } from 'node:util';
import { attach, detach, discardAttached } from '../../host/server/attach.js';
import { ControlServer } from '../../host/server/control.js';
import { whyNoFuse } from '../../host/server/nbdfuse.js';
import { adminOperations } from '../../host/store/admin.js';
import { Store } from '../../host/store/store.js';
import { CLIENT } from '../store/model.js';
import { needs } from './needs.js';

const run = promisify(execFile);
const MIB = 1024 * 1024;
const MAIN = path.resolve(import.meta.dirname, '../../host/main.js');

let folder = '';
let store: Store;
let control: ControlServer;
const inFolder = (name: string) => path.join(folder, name);

before(async () => {
  folder = fs.mkdtempSync(path.join(os.tmpdir(), 'ribbon-attach-test-'));
  store = await Store.open(inFolder('store'), { digestDelayMs: 10 });
  control = new ControlServer(store, () => {});
  await control.listen(inFolder('store'));
});

after(async () => {
  await control.close();
  await discardAttached(store);
  await store.close();
  fs.rmSync(folder, { recursive: true, force: true });
});

const admin = () => adminOperations(store, 'test');
const io = (uri: string, ...commands: string[]) =>
  run('qemu-io', ['-f', 'raw', ...commands.flatMap((command) => ['-c', command]), uri]);

async function byteOf(name: string, offset: number): Promise<number> {
  const opened = await store.open(name, CLIENT);
  const target = Buffer.alloc(1);
  await opened.read(offset, target);
  await opened.close(true);
  return target[0];
}

test(
  'whatever flushes and reconnects meanwhile, all of it is one generation at the end',
  needs('qemu-io'),
  async () => {
    await store.images.create('one', MIB);
    const attached = await attach(store, 'one', 'repairer');
    await io(attached.uri, 'write -P 1 0 4k', 'flush', 'write -P 2 4k 4k', 'flush');
    await io(attached.uri, 'read -P 1 0 4k', 'read -P 2 4k 4k', 'write -z 4k 512');
    assert.equal(await byteOf('one', 0), 0, 'nobody else sees any of it before');
    assert.equal(await detach(store, attached.id, true), 2);
    assert.deepEqual([await byteOf('one', 0), await byteOf('one', 4096), await byteOf('one', 4608)], [1, 0, 2]);
    assert.equal((await admin().log('one')).at(-1)!.who, 'repairer');
    const again = await attach(store, 'one', 'repairer');
    assert.equal(await detach(store, again.id, true), null, 'nothing was changed');
    assert.ok(!fs.existsSync(path.dirname(new URL(again.uri).searchParams.get('socket')!)), 'its folder is gone');
  },
);

test('discarded, read-only, unknown, and fenced by another change', needs('qemu-io'), async () => {
  await store.images.create('two', MIB);
  const attached = await attach(store, 'two', 'repairer');
  await io(attached.uri, 'write -P 1 0 4k');
  const card = await store.open('two', CLIENT);
  assert.throws(() => card.write(0, Buffer.alloc(4096, 5)), /being written by repairer/);
  await card.close(false);
  assert.equal(await detach(store, attached.id, false), null);
  assert.equal(store.generation('two'), 1);
  const old = await attach(store, 'two@1', 'repairer');
  assert.ok(old.readOnly);
  await assert.rejects(io(old.uri, 'write 0 4k'));
  await detach(store, old.id, true);
  await assert.rejects(detach(store, old.id, true), /nothing is attached as number/);
  await assert.rejects(attach(store, 'three', 'x'), /no image "three"/);
  // Somebody else is first: the attachment has read an old generation and may not write.
  const late = await attach(store, 'two', 'repairer');
  const other = await store.open('two', CLIENT);
  await other.write(0, Buffer.alloc(4096, 6));
  await other.close(true);
  await assert.rejects(io(late.uri, 'write -P 1 0 4k'));
  assert.equal(await detach(store, late.id, true), null);
  assert.equal(await byteOf('two', 0), 6);
  // While it has changes, administrators cannot make a generation either.
  const held = await attach(store, 'two', 'repairer');
  await io(held.uri, 'write -P 1 0 4k');
  await assert.rejects(store.images.rollback('two', 1, 'somebody'), /being written by repairer/);
  assert.equal(await detach(store, held.id, true), 3);
});

/** The command in a process of its own, against the server here. */
class AttachCommand {
  readonly child: ChildProcess;
  output = '';

  constructor(...args: string[]) {
    this.child = spawn(process.execPath, [MAIN, 'image', 'attach', ...args, '--store', inFolder('store')]);
    for (const stream of [this.child.stdout!, this.child.stderr!])
      stream.on('data', (text: Buffer) => {
        this.output += text;
      });
  }

  async says(pattern: RegExp): Promise<void> {
    while (!pattern.test(this.output)) {
      if (this.child.exitCode !== null || this.child.signalCode !== null) throw new Error(`ended: ${this.output}`);
      await new Promise((resolve) => setTimeout(resolve, 10));
    }
  }

  async interrupt(): Promise<number> {
    this.child.kill('SIGINT');
    const [status] = await once(this.child, 'close');
    return status;
  }
}

const fuse = () => {
  const why = whyNoFuse();
  return why === null ? needs('umount') : { skip: why };
};

test('as a local file, until Ctrl-C', fuse(), async () => {
  await store.images.create('local', 8 * MIB);
  const file = inFolder('local.img');
  const command = new AttachCommand('local', file);
  await command.says(/until Ctrl-C/);
  // By other processes: the server is in this one, which must not wait for itself.
  await run('dd', ['if=/dev/zero', `of=${file}`, 'bs=1M', 'seek=4', 'count=1', 'conv=notrunc,fsync']);
  await run('sh', ['-c', `printf repaired | dd of=${file} bs=1M seek=4 conv=notrunc,fsync`]);
  assert.equal(store.generation('local'), 1, 'a sync commits nothing');
  // Open files keep it: the first Ctrl-C says so and changes nothing.
  const user = spawn('sh', ['-c', 'exec 3<>"$0"; echo open; read -r _; printf and-more >&3', file]);
  await once(user.stdout, 'data');
  command.child.kill('SIGINT');
  await command.says(/then Ctrl-C again/);
  // Impatience, while it tries: it must not be killed by it.
  for (let times = 0; times < 3; times++) {
    command.child.kill('SIGINT');
    await new Promise((resolve) => setTimeout(resolve, 5));
  }
  await command.says(/then Ctrl-C again[\s\S]*then Ctrl-C again/);
  assert.deepEqual([command.child.exitCode, command.child.signalCode], [null, null]);
  user.stdin.end('\n');
  await once(user, 'close');
  assert.equal(await command.interrupt(), 0, command.output);
  assert.match(command.output, /@2\n$/);
  assert.deepEqual([await byteOf('local', 4 * MIB), await byteOf('local', 0)], [...Buffer.from('ra')]);
  assert.equal(store.generation('local'), 2);
  assert.ok(!fs.existsSync(file));
});

test('without FUSE it offers an address', needs('qemu-io'), async () => {
  await store.images.create('address', MIB);
  // A PATH without nbdfuse.
  const child = spawn(process.execPath, [MAIN, 'image', 'attach', 'address', '--store', inFolder('store')], {
    env: { ...process.env, PATH: folder },
  });
  let output = '';
  for (const stream of [child.stdout, child.stderr])
    stream.on('data', (text: Buffer) => {
      output += text;
    });
  while (!/until Ctrl-C/.test(output) && child.exitCode === null)
    await new Promise((resolve) => setTimeout(resolve, 10));
  assert.match(output, /no local path here \(.+\)/);
  await io(output.split('\n')[0], 'write -P 7 0 4k');
  child.kill('SIGINT');
  await once(child, 'close', { signal: AbortSignal.timeout(60_000) });
  assert.equal(child.exitCode, 0);
  assert.equal(await byteOf('address', 0), 7);
});

test('merge-base, also through renamed and removed images', async () => {
  const name = (base: Awaited<ReturnType<ReturnType<typeof admin>['mergeBase']>>) =>
    base === null ? null : `${base.line}@${base.generation}${base.kept ? '' : ' gone'}`;
  const write = async (image: string) => {
    const opened = await store.open(image, CLIENT);
    await opened.write(0, Buffer.alloc(4096, store.generation(image)));
    await opened.commit();
    await opened.close(true);
    await store.digest(store.line(image));
  };
  await store.images.create('root', MIB);
  await write('root');
  await admin().branch('root', 'left');
  await write('root');
  await admin().clone('root', 'right');
  await write('root/left');
  await write('right');
  await admin().clone('right', 'far');
  assert.equal(name(await admin().mergeBase('root/left', 'right')), 'root@2');
  assert.equal(name(await admin().mergeBase('root', 'right')), 'root@3');
  assert.equal(name(await admin().mergeBase('far', 'right')), 'right@2');
  assert.equal(name(await admin().mergeBase('far', 'root/left')), 'root@2');
  assert.equal(name(await admin().mergeBase('root@1', 'root')), 'root@1');
  await admin().rename('root', 'trunk');
  assert.equal(name(await admin().mergeBase('far', 'trunk/left')), 'trunk@2');
  assert.equal(store.infoOf('right').origin!.line, 'trunk');
  await admin().rm('trunk/left', false);
  await admin().rm('trunk', false);
  await store.images.create('trunk', MIB);
  assert.equal(name(await admin().mergeBase('far', 'trunk')), null, 'another image of that name is another image');
  await admin().rm('right', false);
  await admin().clone('far', 'farther');
  assert.equal(name(await admin().mergeBase('farther', 'far')), 'far@1');
  assert.equal(store.infoOf('far').origin!.line, null);
});

test('renaming and removing: what is open or tagged stays', async () => {
  await store.images.create('kept', MIB);
  await admin().snapshot('kept', 'golden');
  await assert.rejects(admin().rm('kept', false), /has tags.*golden/);
  const reader = await store.open('kept', CLIENT);
  await assert.rejects(admin().rename('kept', 'other'), /is open/);
  await assert.rejects(admin().rm('kept', true), /is open/);
  await reader.close(true);
  await assert.rejects(admin().rename('kept', 'trunk'), /already/);
  await assert.rejects(admin().rename('kept', 'a/b'), /must both be/);
  for (const bad of ['..', 'a\0b', 'x'.repeat(300), 'e\u0301', '\u202egnp', '', '/', 'a/b/c', '-rf']) {
    await assert.rejects(admin().rename('kept', bad), /is not IMAGE or IMAGE\/BRANCH/, JSON.stringify(bad));
    await assert.rejects(admin().clone('kept', bad), /cannot be the name of an image/, JSON.stringify(bad));
    await assert.rejects(admin().snapshot('kept', bad), /cannot be a tag/, JSON.stringify(bad));
  }
  await admin().rm('kept', true);
  assert.ok(!store.has('kept'));
});

const TOOLS = ['fiwalk', 'sfdisk', 'mkfs.vfat', 'mcopy', 'mke2fs', 'debugfs'];

test('diff --files: FAT and ext behind a partition table', needs(...TOOLS), async () => {
  const disk = inFolder('disk.img');
  fs.mkdirSync(inFolder('tree/sub'), { recursive: true });
  fs.writeFileSync(inFolder('tree/sub/same.txt'), 'same');
  fs.writeFileSync(inFolder('tree/grows.txt'), 'small');
  fs.writeFileSync(inFolder('tree/quiet.bin'), Buffer.alloc(50_000, 'q'));
  const script = `
    truncate -s 40M disk.img
    printf 'label: dos\\n2048,40960,6\\n43008,32768,83\\n' | sfdisk -q disk.img
    mkfs.vfat -F16 --offset 2048 disk.img 20480 > mkfs.log 2>&1
    mcopy -s -i disk.img@@1M tree/* ::
    printf bye > 'tree/leaves & <goes>.txt'
    truncate -s 16M ext.img && mke2fs -q -t ext4 -d tree ext.img
    dd if=ext.img of=disk.img bs=1M seek=21 conv=notrunc status=none`;
  await run('sh', ['-ec', script], { cwd: folder });
  await admin().import('files', disk, null);
  // On ext: one removed, one added. On FAT: one grows, and a byte changes where no directory tells.
  const change = `
    mcopy -o -i disk.img@@1M tree/sub/same.txt ::/grows.txt
    printf 'new' > new.txt
    debugfs -w -R 'rm "leaves & <goes>.txt"' ext.img 2> debugfs.log
    debugfs -w -R 'write new.txt sub/new.txt' ext.img 2>> debugfs.log
    dd if=ext.img of=disk.img bs=1M seek=21 conv=notrunc status=none`;
  await run('sh', ['-ec', change], { cwd: folder });
  const bytes = fs.readFileSync(disk);
  bytes.write('Q', bytes.indexOf('qqqqqqqq') + 30_000);
  fs.writeFileSync(disk, bytes);
  await admin().import('files2', disk, null);
  const { fileSystems, files } = await admin().diffFiles('files', 'files2');
  assert.deepEqual(fileSystems, [
    ['fat16', 'ext4'],
    ['fat16', 'ext4'],
  ]);
  assert.deepEqual(
    files.map(({ change, partition, path: name, sizeBefore, size }) => [change, partition, name, sizeBefore, size]),
    [
      ['changed', 1, 'grows.txt', 5, 4],
      ['changed', 1, 'quiet.bin', 50_000, 50_000],
      ['removed', 2, 'leaves & <goes>.txt', 3, null],
      ['added', 2, 'sub/new.txt', null, 3],
    ],
  );
  assert.deepEqual((await admin().diffFiles('files', 'files')).files, []);
  await assert.rejects(admin().diffFiles('one', 'files'), /no file system is recognised in one/);
});

test('diff --files: NTFS', needs('fiwalk', 'mkntfs', 'ntfscp'), async () => {
  const script = `
    truncate -s 8M ntfs.img && mkntfs -q -F -s 512 -p 0 ntfs.img > mkntfs.log 2>&1
    head -c 20000 /dev/urandom > big.bin
    printf 'one' > small.txt
    ntfscp -q -f ntfs.img big.bin big.bin && ntfscp -q -f ntfs.img small.txt small.txt`;
  await run('sh', ['-ec', script], { cwd: folder });
  await admin().import('ntfs', inFolder('ntfs.img'), null);
  await run(
    'sh',
    [
      '-ec',
      `printf 'two' > small.txt; ntfscp -q -f ntfs.img small.txt small.txt; ntfscp -q -f ntfs.img small.txt third.txt`,
    ],
    { cwd: folder },
  );
  await admin().import('ntfs2', inFolder('ntfs.img'), null);
  const { fileSystems, files } = await admin().diffFiles('ntfs', 'ntfs2');
  assert.deepEqual(fileSystems, [['ntfs'], ['ntfs']]);
  assert.deepEqual(
    files.map(({ change, path: name }) => [change, name]),
    [
      ['changed', 'small.txt'],
      ['added', 'third.txt'],
    ],
  );
});
