// Keeps the real world out of a simulated run: while the guard is up, real clocks and real chance throw, and timers are the
// world's. What a run does depends on its seed alone, and this is what makes that more than a promise.

import crypto from 'node:crypto';
import { syncBuiltinESMExports } from 'node:module';

const realSetImmediate = setImmediate;

/** Lets every promise that is settled run its reactions, and theirs. */
export function settlePromises(): Promise<void> {
  return new Promise((resolve) => realSetImmediate(resolve));
}

type Holder = Record<string, unknown>;

const FORBIDDEN: [holder: Holder, name: string][] = [
  [Date as unknown as Holder, 'now'],
  [Math as unknown as Holder, 'random'],
  [performance as unknown as Holder, 'now'],
  [globalThis as unknown as Holder, 'setTimeout'],
  [globalThis as unknown as Holder, 'setInterval'],
  [globalThis as unknown as Holder, 'setImmediate'],
  [globalThis as unknown as Holder, 'clearTimeout'],
  [globalThis as unknown as Holder, 'Date'],
  [process as unknown as Holder, 'hrtime'],
  [crypto as unknown as Holder, 'randomBytes'],
  [crypto as unknown as Holder, 'randomInt'],
  [crypto as unknown as Holder, 'randomUUID'],
  [crypto as unknown as Holder, 'randomFillSync'],
];

/** What stands in for the forbidden while a run is on, by name. */
export type Replacements = Record<string, unknown>;

/** Runs `body` with the guard up. */
export async function guarded<T>(replacements: Replacements, body: () => Promise<T>): Promise<T> {
  const saved = FORBIDDEN.map(([holder, name]) => Object.getOwnPropertyDescriptor(holder, name));
  for (const [holder, name] of FORBIDDEN) {
    const value = replacements[name] ?? forbid(name);
    Object.defineProperty(holder, name, { configurable: true, writable: true, value });
  }
  syncBuiltinESMExports();
  try {
    return await body();
  } finally {
    for (const [index, [holder, name]] of FORBIDDEN.entries()) {
      const descriptor = saved[index];
      if (descriptor === undefined) delete holder[name];
      else Object.defineProperty(holder, name, descriptor);
    }
    syncBuiltinESMExports();
  }
}

/** A function, and a class (`new Date()`), that throws. */
function forbid(name: string): unknown {
  function forbidden(): never {
    throw new Error(`${name} is not for simulated runs: time and chance come from the World`);
  }
  return Object.assign(forbidden, { now: forbidden });
}
