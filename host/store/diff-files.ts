// The files that differ between two generations: each is given to the Sleuth Kit as a local file, by nbdfuse where there is FUSE (only
// what is looked at is read), else as a sparse copy.

import fs from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import { Failure } from '../failure.js';
import { attach, detach } from '../server/attach.js';
import { NbdFuse, whyNoFuse } from '../server/nbdfuse.js';
import { type ChangedFile, ContentComparison, compareListings, type Listing, listFiles } from './changed-files.js';
import { exportImage } from './image-export.js';
import type { Progress } from './images.js';
import type { GenerationRecord } from './line.js';
import { parseExportName } from './names.js';
import type { Store } from './store.js';
import { TreeView } from './tree.js';

export interface FilesDiff {
  /** What was recognised in each of the two. */
  fileSystems: [string[], string[]];
  files: ChangedFile[];
}

export async function diffFiles(
  store: Store,
  from: string,
  to: string,
  who: string,
  onProgress: Progress = () => {},
): Promise<FilesDiff> {
  const [before, after] = [await generationOf(store, from), await generationOf(store, to)];
  const listings: Listing[] = [];
  for (const [index, it] of [before, after].entries()) {
    listings.push(await withLocalFile(store, it, who, listFiles));
    onProgress(index + 1, 3);
  }
  for (const [index, { fileSystems }] of listings.entries()) {
    if (fileSystems.length === 0)
      throw new Failure(`no file system is recognised in ${[from, to][index]}: compare without --files`);
  }
  const views = [before, after].map(
    ({ record }) => new TreeView(store.nodes, Buffer.from(record.root, 'hex'), record.size),
  );
  try {
    const comparison = new ContentComparison(views[0], views[1], store.differingRanges(before.record, views[1]));
    const files = await compareListings(listings[0], listings[1], (run) => comparison.differs(run));
    onProgress(3, 3);
    return { fileSystems: [listings[0].fileSystems, listings[1].fileSystems], files };
  } finally {
    for (const view of views) view.close();
  }
}

interface Generation {
  line: string;
  record: GenerationRecord;
}

async function generationOf(store: Store, text: string): Promise<Generation> {
  const parsed = parseExportName(text);
  if (parsed === null) throw new Failure(`"${text}" is not IMAGE[/BRANCH][@GENERATION]`);
  return { line: parsed.line, record: await store.needGeneration(parsed.line, parsed.at) };
}

/** Gives the generation to `work` as a raw file that may be read only. */
async function withLocalFile<T>(
  store: Store,
  { line, record }: Generation,
  who: string,
  work: (file: string) => Promise<T>,
): Promise<T> {
  const folder = fs.mkdtempSync(path.join(os.tmpdir(), 'ribbon-diff-'));
  const file = path.join(folder, 'disk.img');
  try {
    if (whyNoFuse() === null) {
      const attached = await attach(store, `${line}@${record.generation}`, who);
      try {
        const fuse = await NbdFuse.mount(file, attached.uri, record.size, true).catch((error: unknown) => {
          store.log('info', `diff --files copies, because ${(error as Error).message}`);
          return null;
        });
        if (fuse !== null) {
          try {
            return await work(file);
          } finally {
            await fuse.unmount();
          }
        }
      } finally {
        await detach(store, attached.id, false);
      }
    }
    await exportImage(store, line, record.generation, file, 'raw');
    return await work(file);
  } finally {
    fs.rmSync(folder, { recursive: true, force: true });
  }
}
