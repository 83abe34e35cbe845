// The last line of a terminal, kept out of what scrolls: what the card is doing.

import type { CardStatistics } from '../card/statistics.js';

const INTERVAL_MS = 500;
/** An unchanged line is drawn again after this many intervals: what runs in the PC may have cleared the screen. */
const REDRAW_INTERVALS = 4;
const REVERSE = '\x1b[7m';
const NORMAL = '\x1b[0m';
const SAVE_CURSOR = '\x1b7';
const RESTORE_CURSOR = '\x1b8';
const ERASE_LINE = '\x1b[2K';

export class StatusLine {
  readonly #output: NodeJS.WriteStream;
  readonly #text: () => string;
  #timer: NodeJS.Timeout | null = null;
  #shown = '';
  #intervals = 0;
  readonly #resized = (): void => this.#reserve();

  /** `text` is asked for whenever the line is drawn. */
  constructor(output: NodeJS.WriteStream, text: () => string) {
    this.#output = output;
    this.#text = text;
  }

  start(): void {
    // Room for the line, if the cursor is at the bottom.
    this.#output.write('\n\x1b[1A');
    this.#reserve();
    this.#output.on('resize', this.#resized);
    this.#timer = setInterval(() => this.#draw(), INTERVAL_MS);
  }

  stop(): void {
    if (this.#timer === null) return;
    clearInterval(this.#timer);
    this.#timer = null;
    this.#output.off('resize', this.#resized);
    // What follows begins on this line: the PC may have left the cursor anywhere.
    this.#output.write(`\x1b[r\x1b[${this.#output.rows};1H${ERASE_LINE}`);
  }

  /** Everything but the last line scrolls. */
  #reserve(): void {
    this.#output.write(`${SAVE_CURSOR}\x1b[1;${this.#output.rows - 1}r${RESTORE_CURSOR}`);
    this.#shown = '';
    this.#draw();
  }

  #draw(): void {
    const { columns, rows } = this.#output;
    const text = ` ${this.#text()}`.slice(0, columns).padEnd(columns);
    this.#intervals++;
    if (text === this.#shown && this.#intervals % REDRAW_INTERVALS !== 0) return;
    this.#shown = text;
    this.#output.write(`${SAVE_CURSOR}\x1b[${rows};1H${REVERSE}${text}${NORMAL}${RESTORE_CURSOR}`);
  }
}

/** `generation` is the master image's, null when it is not known. */
export function formatStatus(statistics: CardStatistics, generation: number | null): string {
  const { commands, blockHits, blockMisses, bytesFromServer, bytesToServer, lagBytes, linkState } = statistics;
  const parts = [
    `ATA commands ${commands.toLocaleString('en-US')}`,
    `hits ${blockHits.toLocaleString('en-US')}`,
    `misses ${blockMisses.toLocaleString('en-US')}`,
    `from server ${formatBytes(bytesFromServer)}`,
    `to server ${formatBytes(bytesToServer)}`,
    `generation ${generation ?? '?'}`,
    `link ${linkState}`,
    `done when ${statistics.acknowledgementPoint}`,
  ];
  // Behind, in the three ways that matter: how much is not in the master image, in how many generations, since when.
  if (lagBytes > 0) {
    const { lagEpochs, lagMs } = statistics;
    parts.push(
      `LAG ${formatBytes(lagBytes)}, ${lagEpochs} epoch${lagEpochs === 1 ? '' : 's'}, ${Math.round(lagMs / 1000)} s`,
    );
  } else parts.push('no lag');
  if (statistics.storeState !== 'ready') parts.push(`LOCAL STORE ${statistics.storeState}`);
  return parts.join(' | ');
}

export function formatBytes(bytes: number): string {
  const units = ['B', 'KiB', 'MiB', 'GiB', 'TiB'];
  let unit = 0;
  let value = bytes;
  while (value >= 1024 && unit < units.length - 1) {
    value /= 1024;
    unit++;
  }
  return `${unit === 0 ? value : value.toFixed(1)} ${units[unit]}`;
}
