// The register-level conformance suite on the QEMU card. Compiled code in every run; wasm3 as well with RIBBON_LONG=1 (the posix card runs
// the suite on wasm3 in every run, in a tenth of the time).

import { QemuCard } from '../../host/card/qemu.js';
import { socketRig } from '../conformance/rig.js';
import { conformance } from '../conformance/suite.js';
import { buildQemuCard, FIRMWARE, qemuCard } from './builds.js';

for (const engine of process.env.RIBBON_LONG === '1' ? (['aot', 'wasm3'] as const) : (['aot'] as const)) {
  await buildQemuCard(engine);
  const makeRig = socketRig(
    (settings, path, deviceNumber) =>
      new QemuCard({ program: qemuCard(engine), firmware: FIRMWARE, settings, path, deviceNumber }),
  );
  conformance(`the QEMU card, ${engine}`, makeRig, { simulatedTime: false });
}
