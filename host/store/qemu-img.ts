// Disk image formats other than raw, through qemu-img run as a library program: what an image file is, and windows of it in and out.
//
// A window (a byte range of the disk inside the file) becomes a sparse raw file of its own, or is written from one, so that work can stop
// and go on anywhere. Image files come from strangers: nothing is opened that the named file does not hold itself.

import { execFile } from 'node:child_process';
import fs from 'node:fs';
import path from 'node:path';
import { Failure } from '../failure.js';

/** As a person names them, and as QEMU does. */
export const FORMATS = { raw: 'raw', qcow2: 'qcow2', vmdk: 'vmdk', vhd: 'vpc', vhdx: 'vhdx', vdi: 'vdi' } as const;
export type Format = keyof typeof FORMATS;

const CREATE_OPTIONS: Record<Format, string> = {
  raw: '',
  qcow2: 'compat=1.1',
  vmdk: 'subformat=monolithicSparse',
  // Without force_size the size is rounded to cylinders, as Virtual PC did.
  vhd: 'subformat=dynamic,force_size=on',
  vhdx: 'subformat=dynamic',
  vdi: '',
};

/** A hostile image may ask for any amount of memory. */
const LIMITS = ['--as=4294967296', '--core=0'];
const TIMEOUT_MS = 3_600_000;
const OUTPUT_MAX = 256 * 1024 * 1024;

export interface ByteExtent {
  offset: number;
  length: number;
}

export function isFormat(text: string): text is Format {
  return Object.hasOwn(FORMATS, text);
}

export function checkFormat(text: string): Format {
  if (!isFormat(text)) throw new Failure(`"${text}" is no image format: use ${Object.keys(FORMATS).join(', ')}`);
  return text;
}

/** The format that a file name asks for: by its ending, else raw. */
export function formatOfName(file: string): Format {
  const ending = path.extname(file).slice(1).toLowerCase();
  if (ending === 'vpc') return 'vhd';
  return isFormat(ending) ? ending : 'raw';
}

/** The format of a file's content. A raw disk that begins like one of these is imported with `--format raw`. */
export function formatOfContent(file: string): Format {
  const fd = fs.openSync(file, 'r');
  try {
    const head = Buffer.alloc(512);
    fs.readSync(fd, head, 0, head.length, 0);
    const begins = (text: string, at = 0) => head.toString('latin1', at, at + text.length) === text;
    if (begins('QFI\xfb')) return 'qcow2';
    if (begins('KDMV') || begins('COWD') || begins('# Disk DescriptorFile')) return 'vmdk';
    if (begins('vhdxfile')) return 'vhdx';
    if (begins('\x7f\x10\xda\xbe', 64)) return 'vdi';
    if (begins('conectix')) return 'vhd';
    // A fixed VHD is a raw disk with a footer.
    const { size } = fs.fstatSync(fd);
    if (size >= 1024 && size % 512 === 0) {
      fs.readSync(fd, head, 0, head.length, size - 512);
      if (begins('conectix')) return 'vhd';
    }
    return 'raw';
  } finally {
    fs.closeSync(fd);
  }
}

/** The size of the disk in an image file. Refuses files that need others: a base image, or extents elsewhere. */
export async function imageSize(file: string, format: Format): Promise<number> {
  const text = await qemuImg(['info', '--output=json', nodeOf(file, format)], `cannot read ${file} as ${format}`);
  const info = JSON.parse(text) as QemuInfo;
  const base = info['backing-filename'] ?? info['format-specific']?.data?.['data-file'];
  if (base !== undefined) {
    throw new Failure(
      `${file} is not whole without ${base}: make it so with \`qemu-img convert -O qcow2 ${file} WHOLE.qcow2\``,
    );
  }
  for (const extent of info['format-specific']?.data?.extents ?? []) {
    const folder = path.dirname(path.resolve(file));
    const place = path.resolve(folder, extent.filename);
    if (path.dirname(place) !== folder || !isRegularFile(place)) {
      throw new Failure(`${file} wants ${extent.filename}, which is no file beside it: it is not opened`);
    }
  }
  return info['virtual-size'];
}

interface QemuInfo {
  'virtual-size': number;
  'backing-filename'?: string;
  'format-specific'?: { data?: { 'data-file'?: string; extents?: { filename: string }[] } };
}

/** Symbolic links are not followed: they may lead anywhere. */
function isRegularFile(file: string): boolean {
  return fs.lstatSync(file, { throwIfNoEntry: false })?.isFile() ?? false;
}

/** Where the disk in an image file is not zero, in order. */
export async function dataExtents(file: string, format: Format): Promise<ByteExtent[]> {
  const text = await qemuImg(['map', '--output=json', nodeOf(file, format)], `cannot read ${file} as ${format}`);
  const extents = JSON.parse(text) as { start: number; length: number; zero: boolean }[];
  return extents.filter(({ zero }) => !zero).map(({ start, length }) => ({ offset: start, length }));
}

/** Writes a window of the disk in an image file to a raw file, sparse. */
export async function readWindow(file: string, format: Format, window: ByteExtent, raw: string): Promise<void> {
  await qemuImg(['convert', '-O', 'raw', windowOf(file, format, window), raw], `cannot read ${file}`);
}

export async function createImageFile(file: string, format: Format, size: number): Promise<void> {
  const options = CREATE_OPTIONS[format] === '' ? [] : ['-o', CREATE_OPTIONS[format]];
  await qemuImg(
    ['create', '-q', '-f', FORMATS[format], ...options, file, String(size)],
    `cannot make ${file} of ${size} bytes`,
  );
}

/** Writes a raw file to a window, zero before, of the disk in an image file. Durable when it resolves. */
export async function writeWindow(raw: string, file: string, format: Format, window: ByteExtent): Promise<void> {
  const target = windowOf(file, format, window);
  await qemuImg(
    ['convert', '-n', '--target-is-zero', '-f', 'raw', '-O', 'raw', raw, target],
    `cannot write to ${file}`,
  );
}

function nodeOf(file: string, format: Format): string {
  return `json:${JSON.stringify(formatNode(file, format))}`;
}

function windowOf(file: string, format: Format, { offset, length }: ByteExtent): string {
  return `json:${JSON.stringify({ driver: 'raw', offset, size: length, file: formatNode(file, format) })}`;
}

function formatNode(file: string, format: Format): object {
  return { driver: FORMATS[format], file: { driver: 'file', filename: path.resolve(file) } };
}

/** Runs qemu-img; what it says on failure becomes part of the Failure. */
function qemuImg(args: string[], what: string): Promise<string> {
  return new Promise((resolve, reject) => {
    const options = { timeout: TIMEOUT_MS, maxBuffer: OUTPUT_MAX, env: { ...process.env, LC_ALL: 'C' } };
    execFile('prlimit', [...LIMITS, 'qemu-img', ...args], options, (error, stdout, stderr) => {
      if (error === null) return resolve(stdout);
      if (/qemu-img: No such file|failed to execute qemu-img/.test(stderr)) {
        return reject(new Failure('qemu-img is not installed: apt-get install qemu-utils; raw images need it not'));
      }
      const said =
        stderr
          .trim()
          .split('\n')
          .at(-1)
          ?.replace(/^qemu-img: /, '')
          .slice(-400) || error.message;
      reject(new Failure(`${what}: ${said}`));
    });
  });
}
