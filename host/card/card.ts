// A card as the host side sees it: a front end to put on a cable, and something to start, stop and look at.

import type { FrontEnd } from '../front-end/front-end.js';
import type { AcknowledgementPoint } from './settings.js';
import type { CardStatistics } from './statistics.js';

export type LogLevel = 'error' | 'warning' | 'info' | 'debug';
export const LOG_LEVELS: readonly LogLevel[] = ['error', 'warning', 'info', 'debug'];

/** A connected card that shows no capacity for this long has an image without a sector: others are known as soon as the card has learnt of
 * the image's generation, which takes its local store a flush. */
export const EMPTY_IMAGE_MS = 5000;

export interface Card {
  readonly frontEnd: FrontEnd;
  /** One line of the firmware's or the runtime's log. */
  onLog: (level: LogLevel, line: string) => void;
  /** The firmware has stopped for good: a trap or a failed assertion. */
  onCrash: (error: Error) => void;
  /** Powers the card on. Resolves when the disk is ready: the image server has told its size. Rejects with a Failure when
   * the settings or the image server's answer make that impossible. */
  start(): Promise<void>;
  /** Waits until the image server has committed every write, as far as it can be reached within `timeoutMs`, then powers
   * the card off. Resolves to the number of bytes that were not committed. */
  stop(timeoutMs?: number): Promise<number>;
  statistics(): CardStatistics;
  /** Switches when a write is done, while the card runs; the next power-on goes by the settings again. */
  setAcknowledgementPoint(point: AcknowledgementPoint): void;
}
