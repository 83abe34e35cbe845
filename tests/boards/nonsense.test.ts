// A front end that writes nonsense, on the sanitized posix runtime with both engines.

import assert from 'node:assert/strict';
import { before, test } from 'node:test';
import { PosixCard } from '../../host/card/posix.js';
import { DEFAULT_SETTINGS } from '../../host/card/settings.js';
import { Cable } from '../../host/front-end/cable.js';
import { buildSanitizedPosixCard, FIRMWARE, POSIX_CARD_SANITIZED } from './builds.js';
import { IMAGE_NAME, pattern, TestImage } from './image.js';
import { writeNonsense } from './nonsense.js';
import { Pc } from './pc.js';

const SECTORS = 16_384;

before(buildSanitizedPosixCard);

for (const engine of ['wasm3', 'aot'] as const) {
  test(`${engine}: a front end that writes nonsense does not bring the card down`, async () => {
    const image = new TestImage(SECTORS);
    const log: string[] = [];
    const card = new PosixCard({
      program: POSIX_CARD_SANITIZED,
      firmware: FIRMWARE,
      engine,
      settings: { ...DEFAULT_SETTINGS, exportName: IMAGE_NAME },
      path: await image.serveUnix(),
      memorySize: 32 << 20,
    });
    card.onLog = (level, line) => log.push(`${level}: ${line}`);
    const crashes: Error[] = [];
    card.onCrash = (error) => crashes.push(error);
    try {
      await card.start();
      const pc = new Pc(new Cable([card.frontEnd]));
      await pc.ready();
      await writeNonsense(card, pc, log);
      assert.deepEqual(await pc.read(300, 64), pattern(300, 64));
      assert.equal(card.pid === null, false, `${crashes}`);
    } finally {
      await card.stop(0);
      await image.close();
    }
  });
}
