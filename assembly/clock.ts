// The time, as of the last look: step() looks once a round. Asking an import costs more than most of what asks, and within a round
// no time passes that anybody would notice.

import { clock_ms } from './imports';

/** Milliseconds, as clock_ms() has them: wraps, so compare by subtraction. */
export let nowMs: u32 = 0;

export function readClock(): void {
  nowMs = clock_ms();
}
