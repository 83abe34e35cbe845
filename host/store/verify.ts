// `verify`: reads every block and node that a kept generation needs, hashes it again, and names what is damaged and whom it concerns.

import type { GenerationRecord } from './line.js';
import { DamagedError } from './pack.js';
import type { Store } from './store.js';
import { BLOCK_SIZE, decodeNode, FANOUT, isZeroHash, levelsOf, ZERO_HASH } from './tree.js';

export interface Damage {
  /** `image@generation` of every kept generation that needs it. */
  generations: string[];
  /** Bytes of the image that cannot be read: [from, to). */
  from: number;
  to: number;
  message: string;
}

export interface VerifyReport {
  generations: number;
  blocks: number;
  nodes: number;
  damages: Damage[];
}

/** `names`: the lines to verify; all when there are none. */
export async function verify(
  store: Store,
  names: string[] = [],
  onProgress: (blobs: number, total: number) => void = () => {},
): Promise<VerifyReport> {
  const report: VerifyReport = { generations: 0, blocks: 0, nodes: 0, damages: [] };
  const walk = new Walk(store, report, onProgress);
  for (const { name } of store.info()) {
    if (names.length > 0 && !names.includes(name)) continue;
    await store.digest(store.line(name));
    for (const record of store.generations(name)) {
      report.generations++;
      await walk.generation(name, record);
    }
  }
  return report;
}

class Walk {
  /** Hashes of what has been read and is good, all the way down. */
  private readonly good = new Set<string>();
  private readonly damages = new Map<string, Damage>();
  private readonly total: number;
  private label = '';

  constructor(
    private readonly store: Store,
    private readonly report: VerifyReport,
    private readonly onProgress: (blobs: number, total: number) => void,
  ) {
    this.total = store.index.blobCount();
  }

  async generation(name: string, record: GenerationRecord): Promise<void> {
    this.label = `${name}@${record.generation}`;
    const root = Buffer.from(record.root, 'hex');
    if (!root.equals(ZERO_HASH)) await this.visit(root, levelsOf(record.size) - 1, 0);
  }

  /** Level -1 is a block. True when everything below is good. */
  private async visit(hash: Buffer, level: number, first: number): Promise<boolean> {
    const key = hash.toString('latin1');
    if (this.good.has(key)) return true;
    const known = this.damages.get(key);
    if (known !== undefined) {
      if (known.generations.at(-1) !== this.label) known.generations.push(this.label);
      return false;
    }
    let bytes: Buffer;
    try {
      const location = this.store.index.blob(hash);
      if (location === null)
        throw new DamagedError(`${level < 0 ? 'block' : 'tree node'} ${hash.toString('hex')} is missing`);
      bytes = await this.store.packs.blob(hash, location);
      if (level < 0 && bytes.length !== BLOCK_SIZE)
        throw new DamagedError(`block ${hash.toString('hex')} has ${bytes.length} bytes`);
    } catch (error) {
      this.damaged(key, level, first, error);
      return false;
    }
    if (level < 0) {
      this.report.blocks++;
      this.good.add(key);
      if ((this.report.blocks & 255) === 0) {
        this.onProgress(this.report.blocks + this.report.nodes, this.total);
        await new Promise<void>((resolve) => setImmediate(resolve));
      }
      return true;
    }
    this.report.nodes++;
    let whole = true;
    try {
      const node = decodeNode(bytes);
      if (node.level !== level)
        throw new DamagedError(`tree node ${hash.toString('hex')} has level ${node.level}, not ${level}`);
      const span = FANOUT ** level;
      for (let child = 0; child < FANOUT; child++) {
        const below = node.child(child);
        if (isZeroHash(below)) continue;
        if (!(await this.visit(below, level - 1, first + child * span))) whole = false;
      }
    } catch (error) {
      this.damaged(key, level, first, error);
      return false;
    }
    if (whole) this.good.add(key);
    return whole;
  }

  private damaged(key: string, level: number, first: number, error: unknown): void {
    const damage: Damage = {
      generations: [this.label],
      from: first * BLOCK_SIZE,
      to: (first + FANOUT ** (level + 1)) * BLOCK_SIZE,
      message: error instanceof Error ? error.message : String(error),
    };
    this.damages.set(key, damage);
    this.report.damages.push(damage);
  }
}
