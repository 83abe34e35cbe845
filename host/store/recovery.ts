// What a crash has left in the journal becomes the lines' pending generations again.

import { generationId } from './cards.js';
import { NO_RANGES } from './changes.js';
import type { CommitRecord, Journal } from './journal.js';
import { type Line, mergePending, type Pending } from './line.js';
import type { StoreLog } from './store.js';

/** Makes the valid records of a line its pending generations, up to the last one that is whole. False: one was missing in between. */
export function adoptRecords(line: Line, records: CommitRecord[], journal: Journal, log: StoreLog): boolean {
  const missing = new Set<number>();
  let open: Pending | null = null;
  let expected = line.head + 1;
  let whole = true;
  for (const record of records) {
    if (record.generation !== expected) {
      // A later record is there, so this one was acknowledged: not a crash but damage.
      log(
        'error',
        `${line.name}: generation ${expected} is damaged in the journal and those after it are left out; ` +
          'the journal is kept as journal/*.damaged',
      );
      whole = false;
      break;
    }
    expected++;
    // Generations that were committed close together share slots: an older record may have lost blocks that a newer one replaced.
    if (record.base !== null) missing.clear();
    for (const range of record.changes.ranges()) {
      for (const block of missing) if (block >= range.first && block < range.first + range.count) missing.delete(block);
    }
    for (const block of record.changes.blocks.keys()) missing.delete(block);
    for (const block of record.missing ?? []) missing.add(block);
    const pending: Pending = {
      generation: record.generation,
      from: record.generation,
      firstMs: record.timeMs,
      timeMs: record.timeMs,
      size: record.size,
      who: record.who,
      why: record.why,
      id: record.id || generationId(line.headId, record.generation, record.timeMs),
      card: record.card,
      base: record.base,
      baseChanges: record.base === null ? NO_RANGES : null,
      changes: record.changes,
      records: [],
      durable: Promise.resolve(),
      isDurable: true,
    };
    if (open === null) open = pending;
    else mergePending(open, pending, journal);
    if (missing.size > 0) continue;
    line.pending.push(open);
    line.head = open.generation;
    line.lastTimeMs = open.timeMs;
    line.size = open.size;
    open = null;
  }
  if (open !== null)
    log('warn', `${line.name}: generation ${open.generation} is not whole in the journal and is left out`);
  for (const pending of line.pending) line.committed.merge(pending.changes, () => {});
  return whole;
}
