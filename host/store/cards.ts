// What a line knows about the cards that write to it, and where a card that connects belongs (SPEC.md "Between a card and the image
// server"). The decision is a pure function; Store.placeCard() acts on it.

import crypto from 'node:crypto';
import type { CardHello } from '../server/export.js';

/** Part of a line's record: how far a card has come there. */
export interface CardState {
  /** Every record of the card up to this one is committed, in this generation, with this id, in this session of the card. */
  upTo: number;
  generation: number;
  id: string;
  session: number;
  /** The newest generation that the card was told of: the retention keeps it. */
  known: number;
  seenMs: number;
  /** The card works on this branch of the image instead (image lines only). */
  branch?: string;
  /** It comes back to the image, as it is then, once it has nothing uncommitted. */
  leaving?: boolean;
  /** The card calls this generation of another line its own; it has the content of `generation` here. */
  alias?: { generation: number; id: string };
  /** Why the card was refused, and since when. */
  refused?: { verdict: 'older' | 'copied'; sinceMs: number };
  /** An administrator has decided: the card takes this line as it is. */
  reset?: boolean;
}

/** What makes a commit of a card known again. */
export interface CardCommit {
  card: string;
  upTo: number;
  session: number;
}

export type Verdict = 'ok' | 'reset' | 'lost' | 'older' | 'copied';

export interface Judgement {
  verdict: Verdict;
  /** The generation that the card's view is based on. */
  base: number;
  /** 'lost': the records up to this one are on the card, and committed. */
  committed?: number;
}

/** More cards than this on one line: the ones that were not seen for the longest time are forgotten. */
export const CARDS_MAX = 256;

/** The id of the generation that follows the one with id `before`. */
export function generationId(before: string, ...what: (string | number)[]): string {
  return crypto
    .createHash('sha256')
    .update(JSON.stringify([before, ...what]))
    .digest('hex')
    .slice(0, 16);
}

/**
 * Where a card stands. `state`: what the line knows of it; `idOf`: the id of a kept generation of the line, null when it is not kept;
 * `head`: the line's newest generation.
 */
export function judgeCard(
  hello: CardHello,
  state: CardState | null,
  head: number,
  idOf: (generation: number) => string | null,
): Judgement {
  const upTo = state?.upTo ?? 0;
  if (state?.reset === true) return { verdict: 'reset', base: head };
  if (upTo > hello.committed) {
    // An answer was lost, or the end of the card's log. The generations between the card's and that one are all its own.
    const base = Math.max(state!.generation, isOurs(hello, idOf) ? hello.generation : 0);
    const earlier = hello.sessions.find((it) => it.session === state!.session);
    if (earlier !== undefined && upTo > earlier.last)
      return { verdict: 'lost', base, committed: Math.max(earlier.last, hello.committed) };
    const isThisCard = earlier !== undefined || (state!.session === hello.session && upTo <= hello.newest);
    return isThisCard ? { verdict: 'ok', base } : { verdict: 'copied', base: 0 };
  }
  if (upTo < hello.committed) return { verdict: 'older', base: 0 };
  if (hello.generation === 0) return { verdict: hello.dirty ? 'older' : 'reset', base: head };
  const alias = state?.alias;
  if (alias !== undefined && alias.generation === hello.generation && alias.id === hello.id) {
    return { verdict: 'ok', base: state!.generation };
  }
  if (state !== null && state.generation === hello.generation && state.id === hello.id) {
    return { verdict: 'ok', base: hello.generation };
  }
  // With all of its commits let go, a card knows the generation of the last one, whether or not it has noted it down.
  if (state !== null && upTo > 0 && hello.generation <= state.generation)
    return { verdict: 'ok', base: state.generation };
  if (hello.generation <= head && isOurs(hello, idOf))
    return { verdict: 'ok', base: Math.max(hello.generation, state?.generation ?? 0) };
  // It has nothing that could be lost: only what it has read is of another history.
  if (!hello.dirty && hello.committed === 0) return { verdict: 'reset', base: head };
  return { verdict: 'older', base: 0 };
}

function isOurs(hello: CardHello, idOf: (generation: number) => string | null): boolean {
  return hello.generation > 0 && idOf(hello.generation) === hello.id;
}

/** The cards of a line with a commit of one of them. */
export function withCommit(
  cards: Record<string, CardState> | undefined,
  made: { generation: number; id: string },
  { card, upTo, session }: CardCommit,
  nowMs: number,
): Record<string, CardState> {
  const { generation, id } = made;
  const { alias: _alias, reset: _reset, ...before } = cards?.[card] ?? { known: generation };
  return {
    ...cards,
    [card]: { ...before, upTo, generation, id, session, known: Math.max(before.known, generation), seenMs: nowMs },
  };
}
