// Waiting for the next request without falling asleep.
//
// A client that waits for each answer before it asks again costs two changes of thread a request, and on a virtual machine as many exits
// to its host: more than all the rest of a small read. So a process that has been asked again soon after its last answer looks for the
// next request that long before it sleeps.

import os from 'node:os';

/** Twice what it takes to fall asleep and be woken on a slow virtual machine. When nothing comes this much is lost, once. */
const PATIENCE_MS = 0.15;
/** On a single processor the client could not run meanwhile. */
const CAN_WAIT = os.availableParallelism() > 1;

let answeredMs = Number.NEGATIVE_INFINITY;
let awake = false;

/** Does what a client has asked for. */
export function answer<T>(work: () => T): T {
  if (!CAN_WAIT) return work();
  const isSoon = performance.now() - answeredMs < PATIENCE_MS;
  const result = work();
  answeredMs = performance.now();
  if (isSoon && !awake) {
    awake = true;
    setImmediate(look);
  }
  return result;
}

/** With something to do at once the event loop polls its sockets and does not sleep. */
function look(): void {
  awake = performance.now() - answeredMs < PATIENCE_MS;
  if (awake) setImmediate(look);
}
