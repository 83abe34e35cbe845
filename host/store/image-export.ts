// `ribbon image export`: a generation becomes a disk image file. It is written as FILE.part and takes its name when it is whole;
// FILE.part.json says how far it came, so that the same export goes on there.

import fs from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import { Failure } from '../failure.js';
import type { Progress } from './images.js';
import { createImageFile, type Format, writeWindow } from './qemu-img.js';
import type { Store } from './store.js';
import { BLOCK_SIZE, TreeView } from './tree.js';

/** Bytes after which the export can go on, and that one run of qemu-img writes. */
const WINDOW = 256 * 1024 * 1024;
const COPY_SIZE = 1024 * 1024;

interface State {
  root: string;
  size: number;
  format: Format;
  done: number;
}

/** Writes a generation (null: the newest) to a file; ranges of zeroes become holes. */
export async function exportImage(
  store: Store,
  name: string,
  at: number | string | null,
  file: string,
  format: Format,
  onProgress: Progress = () => {},
): Promise<void> {
  const record = await store.needGeneration(name, at);
  const existing = fs.statSync(file, { throwIfNoEntry: false });
  if (existing !== undefined && !existing.isFile()) {
    throw new Failure(`${file} is not a regular file; copy to devices with \`nbdcopy\` or \`qemu-img convert\``);
  }
  const part = `${file}.part`;
  const wanted: State = { root: record.root, size: record.size, format, done: 0 };
  const state = resumable(part, wanted) ?? wanted;
  const view = new TreeView(store.nodes, Buffer.from(record.root, 'hex'), record.size);
  const folder = fs.mkdtempSync(path.join(os.tmpdir(), 'ribbon-export-'));
  try {
    if (state.done === 0) await begin(part, state);
    while (state.done < state.size) {
      const length = Math.min(WINDOW, state.size - state.done);
      if (format === 'raw') await copyRange(view, state.done, length, part, state.done);
      else await writeThrough(view, state.done, length, part, format, path.join(folder, 'window'));
      state.done += length;
      saveState(part, state);
      onProgress(state.done, state.size);
    }
    fs.renameSync(part, file);
    fs.rmSync(stateFile(part), { force: true });
  } catch (error) {
    if (error instanceof Error && 'syscall' in error) throw new Failure(`cannot write ${file}: ${error.message}`);
    throw error;
  } finally {
    view.close();
    fs.rmSync(folder, { recursive: true, force: true });
  }
}

async function begin(part: string, { size, format }: State): Promise<void> {
  fs.rmSync(stateFile(part), { force: true });
  fs.rmSync(part, { force: true });
  if (format !== 'raw') return createImageFile(part, format, size);
  const fd = fs.openSync(part, 'wx');
  fs.ftruncateSync(fd, size);
  fs.closeSync(fd);
}

/** Copies what is stored of a range of the image to a file that is zero there. Durable when it resolves. */
async function copyRange(view: TreeView, from: number, length: number, file: string, at: number): Promise<boolean> {
  const fd = fs.openSync(file, 'r+');
  let any = false;
  try {
    const buffer = Buffer.alloc(COPY_SIZE);
    for (let done = 0; done < length; ) {
      const { allocated, count } = view.allocation((from + done) / BLOCK_SIZE, COPY_SIZE / BLOCK_SIZE);
      const bytes = Math.min(count * BLOCK_SIZE, length - done);
      if (allocated) {
        await view.fetch(from + done, bytes);
        await view.read(from + done, buffer, 0, bytes);
        for (let written = 0; written < bytes; )
          written += fs.writeSync(fd, buffer, written, bytes - written, at + done + written);
        any = true;
      } else {
        // Reading gives way to others now and then; skipping must too.
        await new Promise<void>((resolve) => setImmediate(resolve));
      }
      done += bytes;
    }
    fs.fdatasyncSync(fd);
  } finally {
    fs.closeSync(fd);
  }
  return any;
}

async function writeThrough(
  view: TreeView,
  from: number,
  length: number,
  part: string,
  format: Format,
  window: string,
): Promise<void> {
  const fd = fs.openSync(window, 'w');
  fs.ftruncateSync(fd, length);
  fs.closeSync(fd);
  if (await copyRange(view, from, length, window, 0)) await writeWindow(window, part, format, { offset: from, length });
}

/** How far an earlier export of the same content came; null when there was none. */
function resumable(part: string, wanted: State): State | null {
  let state: State;
  try {
    state = JSON.parse(fs.readFileSync(stateFile(part), 'utf8'));
  } catch {
    return null;
  }
  const same = state.root === wanted.root && state.size === wanted.size && state.format === wanted.format;
  const sane = Number.isSafeInteger(state.done) && state.done % WINDOW === 0 && state.done <= wanted.size;
  return same && sane && fs.existsSync(part) ? state : null;
}

function saveState(part: string, state: State): void {
  if (state.done >= state.size) return;
  fs.writeFileSync(`${stateFile(part)}.new`, JSON.stringify(state));
  fs.renameSync(`${stateFile(part)}.new`, stateFile(part));
}

function stateFile(part: string): string {
  return `${part}.json`;
}
