// What a card had sent, and not yet committed, when its connection ended. Such an epoch is no generation, and a card that comes
// back sends it again. But a card may be lost, and if it tells its PC of writes as soon as the server has received them, what the
// PC was told is here only: an epoch whose card has not come back for some time becomes a branch of its own.

import { CARDS_MAX } from './cards.js';
import type { Line } from './line.js';
import { imageOf } from './names.js';
import type { Store } from './store.js';
import type { TreeView } from './tree.js';

interface LeftEpoch {
  line: Line;
  card: string;
  /** The generation that the epoch was on top of. */
  generation: number;
  /** The two together. */
  view: TreeView;
  timer: NodeJS.Timeout | null;
}

export class LeftEpochs {
  /** By card: it can have written to one line only. */
  private readonly left = new Map<string, LeftEpoch>();

  /** `waitMs`: the card may come back for so long. */
  constructor(
    private readonly store: Store,
    private readonly waitMs: number,
  ) {}

  /** The card's connection has ended. The view is closed here. Of too many, the oldest becomes its branch at once. */
  keep(line: Line, card: string, generation: number, view: TreeView): void {
    this.drop(card);
    const left: LeftEpoch = { line, card, generation, view, timer: null };
    if (Number.isFinite(this.waitMs)) left.timer = setTimeout(() => void this.makeBranch(left), this.waitMs).unref();
    this.left.set(card, left);
    const [oldest] = this.left.values();
    if (this.left.size > CARDS_MAX) void this.makeBranch(oldest);
  }

  /** The card is back, and has all of it. */
  drop(card: string): void {
    const left = this.left.get(card);
    if (left === undefined) return;
    this.left.delete(card);
    if (left.timer !== null) clearTimeout(left.timer);
    left.view.close();
  }

  /** The server is going to stop: what cards have left must be kept now. */
  async keepAll(): Promise<void> {
    for (const left of [...this.left.values()]) await this.makeBranch(left);
  }

  private async makeBranch(left: LeftEpoch): Promise<void> {
    const { line, card, generation, view } = left;
    if (this.left.get(card) !== left) return;
    this.left.delete(card);
    if (left.timer !== null) clearTimeout(left.timer);
    try {
      if (line.removed) return;
      const stem = `${imageOf(line.name)}/left-${card.slice(0, 8)}-${generation}`;
      let name = stem;
      for (let number = 2; this.store.lines.has(name); number++) name = `${stem}.${number}`;
      await this.store.images.branchOf(line, view.root, view.size, generation, name, `card ${card}`);
      this.store.log(
        'error',
        `card ${card} has not come back; what it had sent and not committed, on top of ${line.name}@${generation}, is the branch ${name}. ` +
          `If the card is lost, clone that for its successor. If it comes back, remove the branch: the card has everything.`,
      );
    } catch (error) {
      this.store.log('error', `what card ${card} had not committed could not be kept: ${(error as Error).message}`);
    } finally {
      view.close();
    }
  }
}
