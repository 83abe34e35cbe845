// The thread of block-hashes.ts.

import { parentPort } from 'node:worker_threads';
import { type HashResult, type HashTask, hashesOf } from './block-hashes.js';

parentPort!.on('message', ({ number, blocks, count }: HashTask) => {
  const hashes = hashesOf(Buffer.from(blocks), count);
  parentPort!.postMessage({ number, hashes } satisfies HashResult, [hashes.buffer as ArrayBuffer]);
});
