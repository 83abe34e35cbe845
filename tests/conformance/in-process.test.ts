import { makeInProcessCard, socketRig } from './rig.js';
import { conformance } from './suite.js';

conformance('the card in this process, with a real image server', socketRig(makeInProcessCard), {
  simulatedTime: false,
});
