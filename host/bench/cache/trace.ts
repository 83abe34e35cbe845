// What a PC asks of its disk, recorded from the demo guest in v86 with v86's own disk, so that no card's cache, read-ahead or time
// is in it. Only places are kept, no data.

import { readFileSync } from 'node:fs';
import { GuestShell } from '../../pc/shell.js';
import { type V86Disk, V86Pc } from '../../pc/v86.js';

export interface TraceAccess {
  kind: 'read' | 'write';
  lba: number;
  count: number;
}

export interface Recorded {
  /** Of the disk. */
  sectors: number;
  boot: TraceAccess[];
  /** Reads of files, some much oftener than others, and small writes; in the middle the whole disk is read once, as a backup or a
   * virus scanner does. */
  day: TraceAccess[];
}

const SECTOR_SIZE = 512;
const BOOT_TIMEOUT_MS = 600_000;
/** 2^9 and those before, so that a rank is an octave and a place in it. */
const FILES = 511;
const OCTAVES = 9;
/** 4 to 240 KiB; the file with number n is of the same size in every recording. */
const MAKE_FILES = [
  'mkdir -p /data/f; cd /data/f; n=0',
  `while [ $n -lt ${FILES} ]; do dd if=/dev/zero of=$n bs=4096 count=$((n * 7 % 60 + 1)) 2>/dev/null; n=$((n + 1)); done; sync`,
].join('\n');

/** `count` reads of whole files: every octave of ranks as often as any other, so that the file of rank r is read with a chance of about
 * 1/r; ranks are strewn over the numbers, and with them over the disk. After every 20 a line goes into a log and a block of a file is
 * written anew, and the PC, which has little memory, forgets what it has read. */
function work(count: number, seed: number): string {
  return [
    `cd /data/f; i=0; s=${seed}`,
    'next() { s=$(((s * 1103515245 + 12345) & 0x7fffffff)); }',
    `while [ $i -lt ${count} ]; do`,
    `next; o=$(((s >> 12) % ${OCTAVES})); next; n=$(((((1 << o) + (s >> 8) % (1 << o)) * 367) % ${FILES}))`,
    'cat $n >/dev/null; i=$((i + 1)); if [ $((i % 20)) = 0 ]; then',
    'echo $i $n >>../log; dd if=/dev/zero of=$n bs=4096 count=1 conv=notrunc 2>/dev/null; sync; echo 3 >/proc/sys/vm/drop_caches',
    'fi; done; sync',
  ].join('\n');
}

export async function recordTraces(
  image: string,
  quick: boolean,
  onProgress: (text: string) => void,
): Promise<Recorded> {
  const disk = new RecordingDisk(readFileSync(image));
  const pc = await V86Pc.create({ builtInDisk: disk });
  try {
    const shell = new GuestShell(pc);
    onProgress('recording a boot');
    await pc.start();
    await shell.ready(BOOT_TIMEOUT_MS);
    const boot = disk.take();
    onProgress('recording a file server: making its files');
    await guest(shell, MAKE_FILES);
    await guest(shell, 'sync; echo 3 >/proc/sys/vm/drop_caches');
    disk.take();
    onProgress('recording a file server');
    const count = quick ? 200 : 1500;
    await guest(shell, work(count, 1));
    await guest(shell, 'echo 3 >/proc/sys/vm/drop_caches; cat /dev/sda >/dev/null; echo 3 >/proc/sys/vm/drop_caches');
    await guest(shell, work(count, 2));
    return { sectors: disk.byteLength / SECTOR_SIZE, boot, day: disk.take() };
  } finally {
    await pc.stop();
  }
}

async function guest(shell: GuestShell, command: string): Promise<void> {
  const parts: Buffer[] = [];
  const status = await shell.run(command, (bytes) => parts.push(bytes));
  if (status !== 0) throw new Error(`the guest's work failed with status ${status}: ${Buffer.concat(parts)}`);
}

/** A disk in memory as v86 takes one, which notes what is done to it. */
class RecordingDisk implements V86Disk {
  onload: ((event: object) => void) | undefined;
  readonly byteLength: number;
  readonly #content: Buffer;
  #accesses: TraceAccess[] = [];

  constructor(content: Buffer) {
    this.#content = content;
    this.byteLength = content.length;
  }

  /** What was done since the last call. */
  take(): TraceAccess[] {
    return this.#accesses.splice(0);
  }

  load(): void {
    this.onload?.({});
  }

  get(start: number, length: number, done: (data: Uint8Array) => void): void {
    this.#note('read', start, length);
    done(this.#content.subarray(start, start + length));
  }

  get_and_cache(start: number, length: number, done: (data: Uint8Array) => void): void {
    done(this.get_from_cache(start, length));
  }

  get_from_cache(start: number, length: number): Uint8Array {
    return this.#content.subarray(start, start + length);
  }

  set(start: number, data: Uint8Array, done: () => void): void {
    this.#note('write', start, data.length);
    this.#content.set(data, start);
    done();
  }

  #note(kind: TraceAccess['kind'], start: number, length: number): void {
    this.#accesses.push({ kind, lba: start / SECTOR_SIZE, count: length / SECTOR_SIZE });
  }
}
