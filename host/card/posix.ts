// A card in a Linux process: boards/posix, with either engine.

import { existsSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { Failure } from '../failure.js';
import { encodePath, type Launch, RemoteCard, type RemoteCardOptions } from './remote.js';
import { encodeSettings } from './settings.js';

const PAGE_SIZE = 65_536;
const DEFAULT_MEMORY_SIZE = 128 << 20;
const START_TIMEOUT_MS = 15_000;

export interface PosixCardOptions extends RemoteCardOptions {
  /** The runtime, as `npm run build:board` makes it: build/boards/ribbon-card. */
  program: string;
  /** Linear memory in bytes, a multiple of 64 KiB. */
  memorySize?: number;
  /** How long the card may take until its disk is ready; 15 s. */
  startTimeoutMs?: number;
  /** Where the crash record is kept; without it, it goes with the card. */
  crashFile?: string;
}

export class PosixCard extends RemoteCard {
  readonly #options: PosixCardOptions;

  constructor(options: PosixCardOptions) {
    const size = options.memorySize ?? DEFAULT_MEMORY_SIZE;
    if (size % PAGE_SIZE !== 0) throw new Failure(`card memory must be a multiple of 64 KiB, not ${size} bytes`);
    if (!existsSync(options.program)) {
      throw new Failure(`the posix card is not built (${options.program}): run "npm run build:board"`);
    }
    super(options);
    this.#options = options;
  }

  protected override async prepare(): Promise<Launch> {
    const options = this.#options;
    const file = (name: string): string => join(this.folder, name);
    writeFileSync(file('settings'), encodeSettings(options.settings));
    writeFileSync(file('paths'), await encodePath(options.path), { mode: 0o600 });
    const size = options.memorySize ?? DEFAULT_MEMORY_SIZE;
    return {
      command: options.program,
      arguments: [
        ...['--firmware', options.firmware, '--settings', file('settings'), '--paths', file('paths')],
        ...['--memory', file('memory'), '--memory-size', String(size), '--doorbell', file('doorbell')],
        ...['--crash', options.crashFile ?? file('crash'), '--engine', options.engine ?? 'auto'],
        ...['--store', this.storeFile()],
      ],
      memoryFile: file('memory'),
      headOffset: 0,
      doorbell: file('doorbell'),
      startTimeoutMs: options.startTimeoutMs ?? START_TIMEOUT_MS,
    };
  }
}
