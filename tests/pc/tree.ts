// The first slice's workload: a tree of 1,024 files (20 MiB in 16 folders) that a PC writes, and what must be in the master image then.

import assert from 'node:assert/strict';
import { createHash } from 'node:crypto';
import { mkdirSync, readFileSync } from 'node:fs';
import path from 'node:path';
import { cutPartition, run } from './booted-pc.js';

export const FILES = 1024;
export const FILE_SIZE = 20_480;

/** Writes the tree, syncs, drops the caches, and prints the checksums of what it reads back. Every file repeats a line of
 * its own whose length does not divide a block, so that blocks that changed places would show. */
export const writeTree = (name: string): string => `
set -e
cd /data
for i in 0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15; do mkdir -p ${name}/$i; done
awk 'BEGIN {
  for (i = 0; i < ${FILES}; i++) {
    name = sprintf("${name}/%d/file-%d", i % 16, i)
    text = sprintf("${name} %066d\\n", i * i)
    while (length(text) < ${FILE_SIZE}) text = text text
    printf "%s", substr(text, 1, ${FILE_SIZE}) > name
    close(name)
  }
}'
find ${name} -type f | sort | xargs md5sum > /tmp/before
sync
echo 3 > /proc/sys/vm/drop_caches
find ${name} -type f | sort | xargs md5sum > /tmp/after
cmp /tmp/before /tmp/after
cat /tmp/after
`;

/** The data partition of the disk image is a clean file system with the trees whose checksums the PC has printed. */
export async function assertTreesIn(disk: string, folder: string, sums: Record<string, string>): Promise<void> {
  const data = path.join(folder, 'data.img');
  cutPartition(disk, 2, data);
  await run('e2fsck', ['-fn', data]);
  const target = path.join(folder, 'files');
  mkdirSync(target);
  for (const name of Object.keys(sums)) await run('debugfs', ['-R', `rdump /${name} ${target}`, data]);
  for (const printed of Object.values(sums)) {
    const lines = printed.trim().split('\n');
    assert.equal(lines.length, FILES);
    for (const line of lines) {
      const [sum, name] = line.split(/\s+/);
      const content = readFileSync(path.join(target, name));
      assert.equal(createHash('md5').update(content).digest('hex'), sum, name);
    }
  }
}

/** `dmesg -r` begins each line with its level: 4 is a warning, less is worse. That a driver lets go of its disk when it is
 * unloaded is said at that level too. */
export function assertNoDiskMessages(log: string): void {
  const about = /\b(ata\d|ata_piix|libata|scsi|sd \d|sda|EXT4|JBD2|I\/O error|Buffer I\/O)/;
  const bad = log.split('\n').filter((line) => {
    const level = /^<(\d+)>/.exec(line);
    return level !== null && (Number(level[1]) & 7) <= 4 && about.test(line) && !line.endsWith(': disable device');
  });
  assert.deepEqual(bad, []);
}
