// Which generations are kept: all of the last day, one an hour of the last week, and so on. Pure decisions; Store.forget acts on them.

import { Failure } from '../failure.js';

export interface RetentionRule {
  /** Generations younger than this … */
  ageMs: number;
  /** … are kept when the one kept before is at least this much older; 0 keeps all. */
  spacingMs: number;
}

/** Youngest rule first. */
export type Retention = RetentionRule[];

export const DEFAULT_RETENTION = 'all:1d,1h:7d,1d:31d,7d:365d';
export const KEEP_EVERYTHING: Retention = [{ ageMs: Number.POSITIVE_INFINITY, spacingMs: 0 }];

const UNITS: Record<string, number> = { s: 1000, m: 60_000, h: 3_600_000, d: 86_400_000 };

/** `SPACING:AGE,…` as in `all:1d,1h:7d`; the age `ever` has no end. */
export function parseRetention(text: string): Retention {
  const rules = text.split(',').map((part) => {
    const [spacing, age, more] = part.trim().split(':');
    if (age === undefined || more !== undefined) throw wrong(text, part);
    return {
      spacingMs: spacing === 'all' ? 0 : parseDuration(spacing, text),
      ageMs: age === 'ever' ? Number.POSITIVE_INFINITY : parseDuration(age, text),
    };
  });
  for (let index = 1; index < rules.length; index++) {
    if (rules[index].ageMs <= rules[index - 1].ageMs) throw wrong(text, 'ages must grow');
  }
  return rules;
}

function parseDuration(text: string, whole: string): number {
  const match = /^(\d{1,6})([smhd])$/.exec(text);
  if (match === null || Number(match[1]) === 0) throw wrong(whole, text);
  return Number(match[1]) * UNITS[match[2]];
}

function wrong(text: string, part: string): Failure {
  return new Failure(
    `cannot read the retention "${text}" at "${part}": write SPACING:AGE,… as in ${DEFAULT_RETENTION}`,
  );
}

/** The generations to forget. `generations` oldest first; the newest and the tagged are always kept. */
export function expired(
  generations: { generation: number; timeMs: number }[],
  tagged: Set<number>,
  retention: Retention,
  nowMs: number,
): number[] {
  const drop: number[] = [];
  let keptMs = Number.NEGATIVE_INFINITY;
  for (const [index, { generation, timeMs }] of generations.entries()) {
    const rule = retention.find(({ ageMs }) => nowMs - timeMs < ageMs);
    const spaced = rule !== undefined && timeMs - keptMs >= rule.spacingMs;
    if (spaced || tagged.has(generation) || index === generations.length - 1) {
      if (spaced) keptMs = timeMs;
    } else {
      drop.push(generation);
    }
  }
  return drop;
}
