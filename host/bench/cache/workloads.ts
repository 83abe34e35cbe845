// One recorded PC touches few blocks; a card whose smallest store has 16 MiB is measured with several of them on one disk, each in a
// part of it.

import { createHash } from 'node:crypto';
import { existsSync, mkdirSync, readFileSync, renameSync, writeFileSync } from 'node:fs';
import path from 'node:path';
import { fileURLToPath } from 'node:url';
import { buildDemoImage } from '../../../tools/demo-image.js';
import { Random } from '../../fuzz/random.js';
import { type Recorded, recordTraces, type TraceAccess } from './trace.js';

export interface Workload {
  name: string;
  /** Of the disk. */
  sectors: number;
  accesses: TraceAccess[];
  /** The least acceptable share of the hits that an LRU cache, and one that knows the future, would have. */
  barLru: number;
  barOptimum: number;
}

const FOLDER = fileURLToPath(new URL('../../../bench', import.meta.url));
const SYSTEMS = 24;
const BOOTS = 96;
const DAYS = 4;
/** Accesses of one PC before it is another's turn. */
const TURN = 8;

/** Recorded once for each demo image and version of the recording, and kept under build/: a PC in v86 takes minutes. */
export async function recordedTraces(quick: boolean, onProgress: (text: string) => void): Promise<Recorded> {
  const image = await buildDemoImage((percent, what) => onProgress(`demo image: ${what} ${Math.round(percent)} %`));
  const recipe = readFileSync(path.join(path.dirname(image), 'recipe'), 'utf8');
  const recorder = readFileSync(fileURLToPath(new URL('trace.js', import.meta.url)), 'utf8');
  const key = createHash('sha256').update(`${recipe}${recorder}${quick}`).digest('hex').slice(0, 16);
  const file = path.join(FOLDER, `traces-${key}.json`);
  if (existsSync(file)) return JSON.parse(readFileSync(file, 'utf8')) as Recorded;
  const recorded = await recordTraces(image, quick, onProgress);
  mkdirSync(FOLDER, { recursive: true });
  writeFileSync(`${file}.part`, JSON.stringify(recorded));
  renameSync(`${file}.part`, file);
  return recorded;
}

/** A disk with many systems on it, some started oftener than others: the one of rank r with a chance of about 1/r. */
export function severalBoots({ sectors, boot }: Recorded, quick: boolean): Workload {
  const random = new Random(1);
  const accesses: TraceAccess[] = [];
  for (let i = 0; i < (quick ? BOOTS / 4 : BOOTS); i++) {
    const system = Math.floor(SYSTEMS ** (random.below(1 << 20) / (1 << 20))) - 1;
    accesses.push(...boot.map((access) => moved(access, system * sectors)));
  }
  return { name: 'boots', sectors: SYSTEMS * sectors, accesses, barLru: 0.95, barOptimum: 0.8 };
}

/** File servers that share a disk, each in another part of its day. */
export function severalDays({ sectors, day }: Recorded, quick: boolean): Workload {
  const days = quick ? 1 : DAYS;
  const accesses: TraceAccess[] = [];
  for (let at = 0; at < day.length; at += TURN) {
    for (let i = 0; i < days; i++) {
      const from = at + Math.floor(day.length / days) * i;
      for (let j = from; j < from + Math.min(TURN, day.length - at); j++) {
        accesses.push(moved(day[j % day.length], i * sectors));
      }
    }
  }
  return { name: 'file servers, scanned', sectors: days * sectors, accesses, barLru: 1, barOptimum: 0.8 };
}

function moved(access: TraceAccess, sectors: number): TraceAccess {
  return { ...access, lba: access.lba + sectors };
}
