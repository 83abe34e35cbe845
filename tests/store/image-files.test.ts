// Disk image files in and out: every format, holes, and work that was cut short and goes on.

import assert from 'node:assert/strict';
import { execFile } from 'node:child_process';
import crypto from 'node:crypto';
import fs from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import { after, before, test } from 'node:test';
import { promisify } from 'node:util';
import { type AdminProgress, adminOperations } from '../../host/store/admin.js';
import { FORMATS, type Format, formatOfContent } from '../../host/store/qemu-img.js';
import { Store } from '../../host/store/store.js';
import { needs } from '../server/needs.js';

const run = promisify(execFile);
const MIB = 1024 * 1024;

let folder = '';
let store: Store;
const inFolder = (name: string) => path.join(folder, name);
const admin = (onProgress?: AdminProgress) => adminOperations(store, 'test', onProgress);

before(async () => {
  folder = fs.mkdtempSync(path.join(os.tmpdir(), 'ribbon-files-'));
  store = await Store.open(inFolder('store'));
});

after(async () => {
  await store.close();
  fs.rmSync(folder, { recursive: true, force: true });
});

/** A sparse raw file with random bytes at the offsets. */
function sparse(name: string, size: number, ...offsets: number[]): string {
  const fd = fs.openSync(inFolder(name), 'w');
  fs.ftruncateSync(fd, size);
  for (const offset of offsets)
    fs.writeSync(fd, crypto.randomBytes(10_000), 0, Math.min(10_000, size - offset), offset);
  fs.closeSync(fd);
  return inFolder(name);
}

const hashOf = (file: string) => crypto.createHash('sha256').update(fs.readFileSync(file)).digest('hex');

for (const format of Object.keys(FORMATS) as Format[]) {
  test(`${format} out and in again, as qemu-img reads it`, needs('qemu-img'), async () => {
    // Across the border of two windows of the import, with an end that is no whole block where the format can have one.
    const size = 260 * MIB + (format === 'raw' || format === 'qcow2' ? 512 : 0);
    const raw = sparse('raw.img', size, 0, 5 * MIB + 77, 256 * MIB - 5000, size - 3000);
    const [out, back] = [inFolder(`out.${format}`), inFolder('back.img')];
    await admin().import(`as-${format}`, raw, null);
    await admin().export(`as-${format}`, out, format);
    await run('qemu-img', ['compare', '-f', 'raw', '-F', FORMATS[format], raw, out]);
    assert.ok(fs.statSync(out).blocks * 512 < 32 * MIB, 'zeroes take no space');
    assert.deepEqual(fs.existsSync(`${out}.part`) || fs.existsSync(`${out}.part.json`), false);
    assert.equal(formatOfContent(out), format);
    await admin().import(`of-${format}`, out, null);
    await admin().export(`of-${format}`, back, 'raw');
    assert.equal(hashOf(back), hashOf(raw));
    assert.deepEqual(await admin().diff(`as-${format}`, `of-${format}`), []);
  });
}

test('a fixed VHD and a VMDK of two files', needs('qemu-img'), async () => {
  const raw = sparse('raw.img', 8 * MIB, 0, 4 * MIB);
  await run('qemu-img', ['convert', '-O', 'vpc', '-o', 'subformat=fixed,force_size', raw, inFolder('fixed.vhd')]);
  await run('qemu-img', ['convert', '-O', 'vmdk', '-o', 'subformat=monolithicFlat', raw, inFolder('flat.vmdk')]);
  for (const name of ['fixed.vhd', 'flat.vmdk']) {
    await admin().import(name, inFolder(name), null);
    await admin().export(name, inFolder('back.img'), 'raw');
    assert.equal(hashOf(inFolder('back.img')), hashOf(raw), name);
  }
});

test('an image file that needs other files is refused', needs('qemu-img'), async () => {
  const base = sparse('base.img', MIB, 0);
  await run('qemu-img', ['create', '-q', '-f', 'qcow2', '-b', base, '-F', 'raw', inFolder('over.qcow2')]);
  await assert.rejects(
    admin().import('over', inFolder('over.qcow2'), null),
    /not whole without .*base\.img.*qemu-img convert/,
  );
  fs.mkdirSync(inFolder('elsewhere'), { recursive: true });
  fs.writeFileSync(inFolder('elsewhere/secret'), Buffer.alloc(MIB, 's'));
  const vmdk = (place: string) =>
    fs.writeFileSync(
      inFolder('thief.vmdk'),
      `# Disk DescriptorFile\nversion=1\nCID=fffffffe\nparentCID=ffffffff\ncreateType="monolithicFlat"\nRW 2048 FLAT "${place}" 0\n`,
    );
  vmdk(inFolder('elsewhere/secret'));
  await assert.rejects(admin().import('thief', inFolder('thief.vmdk'), null), /no file beside it/);
  fs.symlinkSync('elsewhere/secret', inFolder('link'));
  vmdk('link');
  await assert.rejects(admin().import('thief', inFolder('thief.vmdk'), null), /no file beside it/);
  assert.ok(!store.has('over') && !store.has('thief'));
});

test('what is no image is refused with its name', needs('qemu-img'), async () => {
  fs.writeFileSync(inFolder('bad.qcow2'), Buffer.concat([Buffer.from('QFI\xfb', 'latin1'), Buffer.alloc(600, 0xff)]));
  await assert.rejects(admin().import('bad', inFolder('bad.qcow2'), null), /cannot read .*bad\.qcow2 as qcow2: /);
  await assert.rejects(admin().import('bad', inFolder('nowhere.img'), null), /cannot read .*nowhere/);
  await assert.rejects(admin().import('bad', folder, null), /not a regular file/);
  await assert.rejects(
    admin().import('bad', inFolder('bad.qcow2'), 'floppy'),
    /"floppy" is no image format: use raw, qcow2/,
  );
  fs.writeFileSync(inFolder('empty.img'), '');
  await assert.rejects(admin().import('bad', inFolder('empty.img'), null), /at least one byte/);
  await admin().import('bad', inFolder('bad.qcow2'), 'raw');
  assert.equal(store.infoOf('bad').size, 604);
});

/** Ends at the first progress, and says where the next run went on. */
async function cutShort(
  work: (onProgress: AdminProgress) => Promise<void>,
  meanwhile: () => Promise<void>,
): Promise<number> {
  const stop = () => {
    throw new Error('cut short');
  };
  await assert.rejects(work(stop), /cut short/);
  await meanwhile();
  let first = 0;
  await work((done) => {
    first ||= done;
  });
  return first;
}

test('an import goes on where it stopped, also after garbage collection and in another process', async () => {
  const raw = sparse('long.img', 200 * MIB + 512, 0, 63 * MIB, 64 * MIB, 150 * MIB);
  const first = await cutShort(
    (onProgress) => admin(onProgress).import('long', raw, null),
    async () => {
      await admin().gc(null);
      await store.close();
      store = await Store.open(inFolder('store'));
    },
  );
  // The first chunk of 64 MiB was not recorded yet when the progress was shown.
  assert.equal(first, 64 * MIB);
  const second = await cutShort(
    (onProgress) => {
      let calls = 0;
      return admin((done, total) => {
        if (++calls === 2) onProgress(done, total);
      }).import('longer', raw, null);
    },
    async () => {
      await admin().gc(null);
    },
  );
  assert.equal(second, 192 * MIB, 'the second of its progresses: it began at 64 MiB');
  await admin().export('longer', inFolder('back.img'), 'raw');
  assert.equal(hashOf(inFolder('back.img')), hashOf(raw));
  assert.deepEqual(await admin().diff('long', 'longer'), []);
});

test('an import of a file that has changed begins anew, and rm forgets one', async () => {
  const raw = sparse('long.img', 130 * MIB, 0, 100 * MIB);
  let calls = 0;
  const stopSecond: AdminProgress = () => {
    if (++calls === 2) throw new Error('cut short');
  };
  await assert.rejects(admin(stopSecond).import('changing', raw, null), /cut short/);
  const fd = fs.openSync(raw, 'r+');
  fs.writeSync(fd, 'changed', 7);
  fs.closeSync(fd);
  await admin().import('changing', raw, null);
  await admin().export('changing', inFolder('back.img'), 'raw');
  assert.equal(hashOf(inFolder('back.img')), hashOf(raw));
  calls = 0;
  await assert.rejects(admin(stopSecond).import('given-up', raw, null), /cut short/);
  assert.equal(store.index.records('import/').length, 1);
  await admin().rm('given-up', false);
  assert.equal(store.index.records('import/').length, 0);
  await assert.rejects(admin().rm('given-up', false), /no image "given-up"/);
});

for (const format of ['raw', 'qcow2'] as const) {
  test(
    `an export to ${format} goes on where it stopped`,
    needs(...(format === 'raw' ? [] : ['qemu-img'])),
    async () => {
      const raw = sparse('long.img', 600 * MIB, 0, 255 * MIB, 256 * MIB, 599 * MIB);
      const out = inFolder(`out.${format}`);
      fs.rmSync(out, { force: true });
      await admin().import(`whole-${format}`, raw, null);
      const first = await cutShort(
        (onProgress) => admin(onProgress).export(`whole-${format}`, out, format),
        async () => assert.ok(!fs.existsSync(out), 'it has its name only when it is whole'),
      );
      assert.equal(first, 512 * MIB);
      if (format === 'raw') assert.equal(hashOf(out), hashOf(raw));
      else await run('qemu-img', ['compare', '-f', 'raw', '-F', 'qcow2', raw, out]);
      assert.ok(!fs.existsSync(`${out}.part.json`));
    },
  );
}
