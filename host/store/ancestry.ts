// Where histories meet: every line begins at a generation of another one, or of none.

import type { Line } from './line.js';
import type { Store } from './store.js';

export interface MergeBase {
  /** The line that both come from, as it is called now; null: it has been removed. */
  line: string | null;
  generation: number;
  /** Can it still be read? */
  kept: boolean;
}

/** Generations `first … last` of the line `id` are ancestors. */
interface Stretch {
  id: number;
  last: number;
}

/** The newest generation that both come from; null when they have nothing in common. */
export function mergeBase(store: Store, a: Line, atA: number, b: Line, atB: number): MergeBase | null {
  const others = ancestry(store, b, atB);
  for (const { id, last } of ancestry(store, a, atA)) {
    const other = others.find((it) => it.id === id);
    if (other === undefined) continue;
    const generation = Math.min(last, other.last);
    const line = store.linesById.get(id);
    return {
      line: line?.name ?? null,
      generation,
      kept: line !== undefined && store.generationRecord(id, generation) !== null,
    };
  }
  return null;
}

/** Nearest first: the line itself, the one that it was made from, and so on. */
function ancestry(store: Store, line: Line, at: number): Stretch[] {
  const found: Stretch[] = [];
  let next: Line | undefined = line;
  let last = at;
  while (next !== undefined && found.every(({ id }) => id !== next!.record.id)) {
    found.push({ id: next.record.id, last });
    const origin: Line['record']['origin'] = next.record.origin;
    if (origin === null) break;
    last = origin.generation;
    next = store.linesById.get(origin.id);
    // The line has been removed, its number is not used again: two clones of it still have it in common.
    if (next === undefined) found.push({ id: origin.id, last });
  }
  return found;
}
