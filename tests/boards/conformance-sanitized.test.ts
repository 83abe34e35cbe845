// The register-level conformance suite on the posix card built with ASan and UBSan, interpreter and compiled code in turn: a finding ends
// the card's process, and the test with it.

import { PosixCard } from '../../host/card/posix.js';
import { socketRig } from '../conformance/rig.js';
import { conformance } from '../conformance/suite.js';
import { buildSanitizedPosixCard, FIRMWARE, POSIX_CARD_SANITIZED } from './builds.js';

await buildSanitizedPosixCard();

let rigs = 0;
const makeRig = socketRig(
  (settings, path, deviceNumber) =>
    new PosixCard({
      program: POSIX_CARD_SANITIZED,
      firmware: FIRMWARE,
      engine: rigs++ % 2 === 0 ? 'wasm3' : 'aot',
      settings,
      path,
      deviceNumber,
      memorySize: 32 << 20,
    }),
);
conformance('the posix card under ASan and UBSan', makeRig, { simulatedTime: false });
