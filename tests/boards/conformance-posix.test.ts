// The register-level conformance suite on the posix card, with both engines.

import { PosixCard } from '../../host/card/posix.js';
import { socketRig } from '../conformance/rig.js';
import { conformance } from '../conformance/suite.js';
import { buildPosixCard, FIRMWARE, POSIX_CARD } from './builds.js';

await buildPosixCard();

for (const engine of ['wasm3', 'aot'] as const) {
  const makeCard = socketRig(
    (settings, path, deviceNumber) =>
      new PosixCard({
        program: POSIX_CARD,
        firmware: FIRMWARE,
        engine,
        settings,
        path,
        deviceNumber,
        memorySize: 32 << 20,
      }),
  );
  conformance(`the posix card, ${engine}`, makeCard, { simulatedTime: false });
}
