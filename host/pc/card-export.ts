// The disk of a card as an NBD export: any NBD client works on it through the ATA driver, the cable and the card.

import {
  type Client,
  ExportError,
  type ExportListing,
  ExportRefused,
  type Exports,
  type Extent,
  type OpenExport,
} from '../server/export.js';
import { type AtaDriver, AtaError, SECTOR_SIZE } from './ata-driver.js';

const ZERO_PIECE_SIZE = 1 << 20;

/** One export, under the empty name and under `name`. */
export class CardExports implements Exports {
  readonly #driver: AtaDriver;
  readonly #name: string;

  constructor(driver: AtaDriver, name: string) {
    this.#driver = driver;
    this.#name = name;
  }

  list(): ExportListing[] {
    return [{ name: this.#name, description: 'the disk of a card' }];
  }

  open(name: string, _client: Client): OpenExport {
    if (name !== '' && name !== this.#name) throw new ExportRefused('unknown', `the only disk here is "${this.#name}"`);
    return new CardExport(this.#driver);
  }
}

class CardExport implements OpenExport {
  readonly readOnly = false;
  /** There is one device, and a flush on any connection flushes it. */
  readonly multiConnection = true;
  readonly description = 'the disk of a card';
  readonly size: number;
  readonly #driver: AtaDriver;
  /** The end of the last write of a part of a sector: reading, changing and writing it must not be interleaved. */
  #partial: Promise<void> = Promise.resolve();

  constructor(driver: AtaDriver) {
    this.#driver = driver;
    this.size = driver.sectors * SECTOR_SIZE;
  }

  async read(offset: number, target: Buffer): Promise<void> {
    if (isWhole(offset, target.length)) {
      await tell(this.#driver.read(offset / SECTOR_SIZE, target));
      return;
    }
    const { first, buffer } = around(offset, target.length);
    await tell(this.#driver.read(first, buffer));
    buffer.copy(target, 0, offset - first * SECTOR_SIZE);
  }

  async write(offset: number, data: Buffer): Promise<void> {
    // The caller's bytes are its own again as soon as this returns.
    const bytes = Buffer.from(data);
    if (isWhole(offset, bytes.length)) {
      await tell(this.#driver.write(offset / SECTOR_SIZE, bytes));
      return;
    }
    const change = async (): Promise<void> => {
      const { first, buffer } = around(offset, bytes.length);
      await this.#driver.read(first, buffer);
      bytes.copy(buffer, offset - first * SECTOR_SIZE);
      await this.#driver.write(first, buffer);
    };
    const done = this.#partial.then(change);
    this.#partial = done.catch(() => {});
    await tell(done);
  }

  async zero(offset: number, length: number): Promise<void> {
    for (let at = 0; at < length; at += ZERO_PIECE_SIZE) {
      await this.write(offset + at, Buffer.alloc(Math.min(ZERO_PIECE_SIZE, length - at)));
    }
  }

  async commit(): Promise<void> {
    await tell(this.#driver.flush());
  }

  metaContexts(): string[] {
    return [];
  }

  status(_context: string, _offset: number, length: number): Extent[] {
    return [{ length, flags: 0 }];
  }

  close(): undefined {
    return undefined;
  }
}

function isWhole(offset: number, length: number): boolean {
  return offset % SECTOR_SIZE === 0 && length % SECTOR_SIZE === 0;
}

/** Room for the whole sectors around a range. */
function around(offset: number, length: number): { first: number; buffer: Buffer } {
  const first = Math.floor(offset / SECTOR_SIZE);
  const end = Math.ceil((offset + length) / SECTOR_SIZE);
  return { first, buffer: Buffer.alloc((end - first) * SECTOR_SIZE) };
}

/** What the device refuses is an I/O error to the NBD client. */
async function tell(work: Promise<void>): Promise<void> {
  try {
    await work;
  } catch (error) {
    if (error instanceof AtaError) throw new ExportError('EIO', error.message);
    throw error;
  }
}
