// `ribbon image verify-prefix`: a card's local store against the master image, read-only on the card's side.

import { mkdtempSync, rmSync } from 'node:fs';
import { open } from 'node:fs/promises';
import os from 'node:os';
import path from 'node:path';
import type { Command } from 'commander';
import { Failure } from '../failure.js';
import { BLOCK_SIZE, SECTOR_SIZE } from '../local-store/format.js';
import { type Master, openNbdImage } from '../local-store/nbd-image.js';
import { openStoreFile, partitionOf, StoreLog, type StoreProblem, UnusableStore } from '../local-store/read-store.js';
import { type PrefixReport, verifyPrefix } from '../local-store/verify-prefix.js';
import { connectControl } from '../server/control.js';
import { type AdminOperations, adminOperations } from '../store/admin.js';
import type { CardState } from '../store/cards.js';
import type { GenerationRecord } from '../store/line.js';
import { Store } from '../store/store.js';
import { DEFAULT_STORE } from './serve.js';

interface Options {
  store: string;
  nbd?: string;
  json?: boolean;
  storeImage?: string;
}

/** Exit statuses; 1 is every other failure. */
export const EXIT = { proven: 0, differs: 2, unusable: 3, lost: 4, conflict: 5 } as const;
export type PrefixVerdict = keyof typeof EXIT;

const HELP = `
The card's file or device is opened for reading only, so it may be the store of a dead card, or a copy of it. A store that a card is
writing to at this moment gives a picture that is right at no moment: stop the card, or copy the store first.

Where the image server keeps the record numbers of this card, the master stands where they say, and the content must agree.
Otherwise (--nbd, or a card that has never told them) the content alone decides.

Exit status:
  0  the master is the PC's disk after some command of the log, and log + master is what the PC sees
  1  the question could not be asked: no such file, no such image, the server cannot be reached
  2  the content differs: the master is at no point of the log, or a clean block is not what the master has
  3  the local store cannot be used: blank, foreign, damaged, of a later version, or not all of it
  4  writes that the master does not have cannot be read from the local store any more
  5  conflict: others have changed what the card has changed too, or master and card are of different histories

Examples:
  ribbon image verify-prefix card.store
  ribbon image verify-prefix /dev/sdc demo --store /srv/images
  ribbon image verify-prefix card.store --nbd 'nbd+unix:///demo?socket=/run/images.sock'`;

export function register(image: Command): void {
  image
    .command('verify-prefix')
    .description(
      'says at which command of a card’s write log the master stands, and proves that log + master is the PC’s disk',
    )
    .argument('<card-store>', 'the card’s local store: a file or block device')
    .argument('[image]', 'IMAGE or IMAGE/BRANCH; default: the one that the card was made for, or its branch')
    .option('--store <folder>', 'the image store', DEFAULT_STORE)
    .option(
      '--nbd <uri>',
      'the master image behind any NBD server instead: nbd://HOST[:PORT]/IMAGE, nbd+unix:///IMAGE?socket=FILE',
    )
    .option('--store-image <name>', 'on a local store that several images share: the one to look at')
    .option('--json', 'as JSON')
    .addHelpText('after', HELP)
    .action(async (file: string, name: string | undefined, options: Options) => {
      const result = await verifyCardStore(file, name ?? null, options);
      process.stdout.write(options.json ? `${JSON.stringify(result, null, 2)}\n` : `${formatResult(result)}\n`);
      process.exitCode = EXIT[result.verdict];
    });
}

export interface PrefixResult {
  verdict: PrefixVerdict;
  file: string;
  /** Why, in words. */
  reason: string;
  problem?: StoreProblem;
  card?: { id: string; image: string; blocks: number; powerOns: number; imageSectors: number };
  master?: { name: string; recordFrom: 'image server' | 'content'; generation?: number };
  report?: PrefixReport;
}

export async function verifyCardStore(file: string, name: string | null, options: Options): Promise<PrefixResult> {
  const device = openStoreFile(file);
  try {
    const source = partitionOf(device, options.storeImage ?? null);
    const log = new StoreLog(source);
    const { storeId: id, imageName, blocks, powerOns, imageSectors } = log.superblock;
    const card = { id, image: imageName, blocks, powerOns, imageSectors };
    return { file, card, ...(await withMaster(log, name, options)) };
  } catch (error) {
    if (!(error instanceof UnusableStore)) throw error;
    return {
      verdict: 'unusable',
      file,
      reason: `the local store cannot be used: ${error.message}`,
      problem: error.problem,
    };
  } finally {
    device.close();
  }
}

async function withMaster(log: StoreLog, name: string | null, options: Options): Promise<Omit<PrefixResult, 'file'>> {
  if (options.nbd !== undefined) {
    if (name !== null) throw new Failure('name the image in the URI: --nbd takes no image beside it');
    const master = await openNbdImage(options.nbd);
    try {
      return await compare(log, master, null);
    } finally {
      await master.close();
    }
  }
  const folder = mkdtempSync(path.join(os.tmpdir(), 'ribbon-verify-'));
  const who = os.userInfo().username;
  const remote = await connectControl(options.store, who, () => {});
  const store = remote === null ? await Store.open(options.store) : null;
  try {
    const admin = remote ?? adminOperations(store!, who);
    const place = await findPlace(admin, log, name ?? log.superblock.imageName);
    const exported = path.join(folder, 'master');
    // A sparse copy of one generation: nothing that happens to the image meanwhile gets between two reads.
    await admin.export(`${place.line}@${place.newest}`, exported, 'raw');
    const master = await openRawFile(exported, `${place.line}@${place.newest}`);
    try {
      return await compare(log, master, place);
    } finally {
      await master.close();
    }
  } finally {
    await store?.close();
    rmSync(folder, { recursive: true, force: true });
  }
}

interface Place {
  line: string;
  newest: number;
  /** What the server knows of the card, null when it has never told anything. */
  state: CardState | null;
  /** Blocks that differ between the generation that the card's view is based on and the newest. */
  foreign: { first: number; end: number }[];
}

async function findPlace(admin: AdminOperations, log: StoreLog, name: string): Promise<Place> {
  const { storeId } = log.superblock;
  const branch = (await admin.cards(name))[storeId]?.branch;
  const line = branch === undefined ? name : `${name.split('/')[0]}/${branch}`;
  const state = (await admin.cards(line))[storeId] ?? null;
  const kept = await admin.log(line);
  const newest = kept.reduce((most, it) => Math.max(most, it.generation), 0);
  // The card's view is based on the newer of the generation that it has made last and the one that it has been told of.
  const { generation, generationId } = log.progress;
  const isBase = ({ generation: at, id }: GenerationRecord): boolean =>
    (state !== null && at === state.generation) || (at === generation && id === generationId);
  const base = kept.filter(isBase).reduce((most, it) => Math.max(most, it.generation), 0);
  const ranges = base > 0 && base < newest ? await admin.diff(`${line}@${base}`, `${line}@${newest}`) : [];
  const foreign = ranges.map(({ offset, length }) => ({
    first: Math.floor(offset / BLOCK_SIZE),
    end: Math.ceil((offset + length) / BLOCK_SIZE),
  }));
  return { line, newest, state: state !== null && state.generation > 0 ? state : null, foreign };
}

async function compare(log: StoreLog, master: Master, place: Place | null): Promise<Omit<PrefixResult, 'file'>> {
  const state = place?.state ?? null;
  const { committed } = log.progress;
  const newest = log.nextNumber - 1;
  const from = state === null ? ('content' as const) : ('image server' as const);
  const about = { name: master.name, recordFrom: from, ...(state === null ? {} : { generation: state.generation }) };
  if (state !== null && (state.upTo < committed || state.upTo > newest)) {
    const reason =
      state.upTo < committed
        ? `the card knows record ${committed} to be committed and ${master.name} has record ${state.upTo}: it was restored from a backup, or is another image of that name`
        : `${master.name} has record ${state.upTo} of this card and the local store ends at record ${newest}: it is an older copy, or the end of its log is lost; what is committed is not`;
    return { verdict: 'conflict', reason, master: about };
  }
  const isForeign = foreignBlocks(place?.foreign ?? []);
  const report = await verifyPrefix({ log, master, serverRecord: state?.upTo ?? null, isForeign });
  const { verdict, reason } = judge(report);
  return { verdict, reason, master: about, report };
}

function foreignBlocks(ranges: { first: number; end: number }[]): (block: number) => boolean {
  const sorted = [...ranges].sort((a, b) => a.first - b.first);
  return (block) => {
    let low = 0;
    let high = sorted.length;
    while (low < high) {
      const middle = (low + high) >> 1;
      if (sorted[middle].end <= block) low = middle + 1;
      else high = middle;
    }
    return low < sorted.length && sorted[low].first <= block;
  };
}

function judge(report: PrefixReport): { verdict: PrefixVerdict; reason: string } {
  if (report.lost.length > 0) {
    return {
      verdict: 'lost',
      reason: `${report.lost.length} sectors that the master does not have are lost, the first is LBA ${report.lost[0]}`,
    };
  }
  if (report.conflictBlocks.length > 0) {
    const reason = `others have changed ${report.conflictBlocks.length} blocks that the card has changed too, the first at LBA ${report.conflictBlocks[0] * 8}; the card's epochs will go to a branch`;
    return { verdict: 'conflict', reason };
  }
  if (report.differenceCount > 0) {
    const [first] = report.differences;
    return {
      verdict: 'differs',
      reason: `${report.differenceCount} sectors differ, the first is LBA ${first.lba}: ${first.what}`,
    };
  }
  return {
    verdict: 'proven',
    reason: 'the master is a prefix of what the PC did, and log + master is what the PC sees',
  };
}

async function openRawFile(file: string, name: string): Promise<Master> {
  const handle = await open(file, 'r');
  const { size } = await handle.stat();
  return {
    name,
    size,
    read: async (offset, length) => {
      const target = Buffer.alloc(length);
      const { bytesRead } = await handle.read(target, 0, length, offset);
      if (bytesRead !== length) throw new Failure(`${file} ends at ${offset + bytesRead}, not at ${size}`);
      return target;
    },
    close: () => handle.close(),
  };
}

function formatResult({ verdict, file, reason, card, master, report }: PrefixResult): string {
  const lines: string[] = [];
  if (card !== undefined) {
    lines.push(
      `local store   ${file}: card ${card.id}, image "${card.image}" of ${number(card.imageSectors)} sectors, ${number(card.blocks)} blocks, ${number(card.powerOns)} power-ons`,
    );
  }
  if (master !== undefined && report !== undefined) {
    const range =
      report.masterLowest === report.master ? '' : ` (the content is the same from record ${report.masterLowest} on)`;
    const how =
      master.recordFrom === 'content'
        ? 'by its content'
        : `by the image server’s record, generation ${master.generation}`;
    lines.push(
      `master        ${master.name} stands at record ${number(report.master)} of ${number(report.newest)}, ${how}${range}`,
    );
    lines.push(`log           ${formatLeft(report)}`);
    if (report.left.next !== null) {
      const { record, lba, sectors } = report.left.next;
      lines.push(`next          ${sectors} sectors at LBA ${lba}, record ${number(record)}`);
    }
    lines.push(
      `compared      ${number(report.cleanBlocks)} clean blocks, ${number(report.uncommittedBlocks)} blocks that were uncommitted${report.rottenCleanBlocks > 0 ? `; ${number(report.rottenCleanBlocks)} clean blocks are rotten, a card fetches them again` : ''}${report.staleBlocks > 0 ? `; ${number(report.staleBlocks)} clean blocks were changed by others, a card forgets them` : ''}`,
    );
    for (const { lba, what } of report.differences) lines.push(`LBA ${lba}: ${what}`);
  }
  lines.push(
    `${verdict === 'proven' ? 'proven' : 'NOT PROVEN'.padEnd(13)} ${verdict === 'proven' ? '       ' : ''}${reason}`,
  );
  return lines.join('\n');
}

function formatLeft({ left }: PrefixReport): string {
  if (left.records === 0) return 'nothing is left in the log';
  return (
    `${number(left.records)} records of ${number(left.commands)} commands in ${left.epochs} epoch, ${number(left.sectors * SECTOR_SIZE)} bytes ` +
    `(${number(left.sectorsToSend * SECTOR_SIZE)} to send, in ${number(left.blocks)} blocks), ` +
    `the oldest had waited ${(left.ageMs / 1000).toFixed(1)} s at the last record`
  );
}

function number(value: number): string {
  return value.toLocaleString('en-US');
}
