// What an administrator can ask of a store, by name: called in process, or by the control socket of the server that holds the store.

import { Failure } from '../failure.js';
import { type AttachInfo, attach, detach } from '../server/attach.js';
import { pull, push, type RemoteOptions, type ReplicaReport } from '../server/replica-client.js';
import { type MergeBase, mergeBase } from './ancestry.js';
import type { CardState } from './cards.js';
import { diffFiles, type FilesDiff } from './diff-files.js';
import { collectGarbage, type GarbageReport } from './garbage.js';
import { exportImage } from './image-export.js';
import { forgetImport, forgetOldImports, importImage, importRecords } from './image-import.js';
import type { GenerationRecord } from './line.js';
import { checkImageName, checkLineName, parseExportName } from './names.js';
import { checkFormat } from './qemu-img.js';
import { DEFAULT_RETENTION, parseRetention } from './retention.js';
import type { LineInfo, Store } from './store.js';
import { BLOCK_SIZE, TreeView } from './tree.js';
import { type VerifyReport, verify } from './verify.js';

export type AdminProgress = (done: number, total: number) => void;

/** Byte range of an image. */
export interface ByteRange {
  offset: number;
  length: number;
}

export interface AdminOperations {
  ls(): Promise<LineInfo[]>;
  create(name: string, size: number): Promise<void>;
  /** Formats as in qemu-img.ts; null: as the content of the file says. */
  import(name: string, file: string, format: string | null): Promise<void>;
  export(name: string, file: string, format: string): Promise<void>;
  clone(from: string, name: string): Promise<void>;
  branch(from: string, branch: string): Promise<void>;
  snapshot(name: string, tag: string): Promise<void>;
  untag(name: string, tag: string): Promise<void>;
  log(name: string): Promise<GenerationRecord[]>;
  cards(name: string): Promise<Record<string, CardState>>;
  resolve(name: string, card: string, take: string): Promise<number>;
  diff(from: string, to: string): Promise<ByteRange[]>;
  diffFiles(from: string, to: string): Promise<FilesDiff>;
  mergeBase(a: string, b: string): Promise<MergeBase | null>;
  attach(name: string): Promise<AttachInfo>;
  detach(id: number, commit: boolean): Promise<number | null>;
  /** The image or branch to, or from, another server: `url` ends in its name there. */
  push(name: string, url: string, options: RemoteOptions): Promise<ReplicaReport>;
  pull(url: string, name: string, options: RemoteOptions): Promise<ReplicaReport>;
  rollback(name: string): Promise<number>;
  rename(from: string, to: string): Promise<void>;
  rm(name: string, force: boolean): Promise<void>;
  verify(names: string[]): Promise<VerifyReport>;
  gc(retention: string | null): Promise<GarbageReport & { generationsForgotten: number }>;
}

export const ADMIN_VERBS = [
  'ls',
  'create',
  'import',
  'export',
  'clone',
  'branch',
  'snapshot',
  'untag',
  'log',
  'cards',
  'resolve',
  'diff',
  'diffFiles',
  'mergeBase',
  'attach',
  'detach',
  'push',
  'pull',
  'rollback',
  'rename',
  'rm',
  'verify',
  'gc',
] as const satisfies (keyof AdminOperations)[];

/** `who` is written into the generations that are made. */
export function adminOperations(store: Store, who: string, onProgress: AdminProgress = () => {}): AdminOperations {
  return {
    ls: async () => store.info(),
    create: async (name, size) => {
      checkImageName(name);
      await store.images.create(name, size, who);
    },
    import: async (name, file, format) => {
      checkImageName(name);
      await importImage(store, name, file, format === null ? null : checkFormat(format), who, onProgress);
    },
    export: async (name, file, format) => {
      const { line, at } = generationName(name);
      await exportImage(store, line, at, file, checkFormat(format), onProgress);
    },
    clone: async (from, name) => {
      checkImageName(name);
      const { line, at } = generationName(from);
      await store.images.clone(line, at, name, who);
    },
    branch: async (from, branch) => {
      const { line, at } = generationName(from);
      if (branch.includes('/') || line.includes('/'))
        throw new Failure('a branch begins at an image: branch IMAGE[@GENERATION] NAME');
      checkLineName(`${line}/${branch}`);
      await store.images.clone(line, at, `${line}/${branch}`, who);
    },
    snapshot: async (name, tag) => {
      const { line, at } = generationName(name);
      await store.images.tag(line, tag, at);
    },
    untag: async (name, tag) => store.images.untag(name, tag),
    log: async (name) => {
      await store.digest(store.line(name));
      return store.generations(name);
    },
    cards: async (name) => {
      await store.digest(store.line(name));
      return store.line(name).record.cards ?? {};
    },
    resolve: async (name, card, take) => {
      if (take !== 'branch' && take !== 'image')
        throw new Failure(`--take ${take}: say branch (the card's side) or image (the other side)`);
      return store.cards.resolve(name, card, take, who);
    },
    diff: async (from, to) => diff(store, from, to),
    diffFiles: async (from, to) => diffFiles(store, from, to, who, onProgress),
    mergeBase: async (a, b) => {
      const [first, second] = [generationName(a), generationName(b)];
      const at = await store.needGeneration(first.line, first.at);
      const other = await store.needGeneration(second.line, second.at);
      return mergeBase(store, store.line(first.line), at.generation, store.line(second.line), other.generation);
    },
    attach: async (name) => attach(store, name, who),
    detach: async (id, commit) => detach(store, id, commit),
    push: async (name, url, options) => push(store, name, url, options, onProgress),
    pull: async (url, name, options) => {
      checkLineName(name);
      return pull(store, name, url, options, who, onProgress);
    },
    rollback: async (name) => {
      const { line, at } = generationName(name);
      if (at === null) throw new Failure(`say to which generation: rollback ${line}@GENERATION`);
      return store.images.rollback(line, at, who);
    },
    rename: async (from, to) => store.images.rename(from, to),
    rm: async (name, force) => {
      if (!store.has(name) && importRecords(store).has(name)) return forgetImport(store, name);
      return store.images.remove(name, force);
    },
    verify: async (names) => {
      for (const name of names) store.line(name);
      return verify(store, names, onProgress);
    },
    gc: async (retention) => {
      await forgetOldImports(store);
      const generationsForgotten = await store.images.applyRetention(parseRetention(retention ?? DEFAULT_RETENTION));
      return { generationsForgotten, ...(await collectGarbage(store, onProgress)) };
    },
  };
}

function generationName(text: string): { line: string; at: number | string | null } {
  const parsed = parseExportName(text);
  if (parsed === null) throw new Failure(`"${text}" is not IMAGE[/BRANCH][@GENERATION]`);
  return parsed;
}

/** The byte ranges in which two generations differ. */
async function diff(store: Store, from: string, to: string): Promise<ByteRange[]> {
  const old = generationName(from);
  const now = generationName(to);
  const record = await store.needGeneration(old.line, old.at);
  const newer = await store.needGeneration(now.line, now.at);
  const view = new TreeView(store.nodes, Buffer.from(newer.root, 'hex'), newer.size);
  try {
    const end = Math.max(record.size, newer.size);
    const ranges = store.differingRanges(record, view);
    return Array.from({ length: ranges.length / 2 }, (_, index) => {
      const offset = ranges[2 * index] * BLOCK_SIZE;
      return { offset, length: Math.min(ranges[2 * index + 1] * BLOCK_SIZE, end) - offset };
    });
  } finally {
    view.close();
  }
}
