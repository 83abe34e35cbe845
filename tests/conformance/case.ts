import type { Pc } from './pc.js';
import type { DeviceOptions, Rig } from './rig.js';

export interface ConformanceCase {
  name: string;
  /** One Device 0 of 8 MiB without. */
  devices?: DeviceOptions[];
  /** Hours must pass: only for rigs whose time is simulated. */
  simulatedTime?: boolean;
  run(pc: Pc, rig: Rig): Promise<void>;
}

/** The disk of a case that does not say otherwise, in bytes and in sectors. */
export const SIZE = 8 << 20;
export const SECTORS = SIZE / 512;
