import { makeInProcessCard, simulatedRig } from './rig.js';
import { conformance } from './suite.js';

conformance('the card in this process, in simulated time', simulatedRig(makeInProcessCard), { simulatedTime: true });
