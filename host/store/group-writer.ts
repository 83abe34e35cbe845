// Collects blobs into the groups of packs: nodes as they are, blocks compressed together when that helps, and those that it does not
// help in large groups, so that many of them are one read.

import type { Location } from './index.js';
import { type Blob, GROUP_BLOBS, type Packs, RAW_BLOBS } from './pack.js';

/** Groups being compressed at once. */
const PACKING_MAX = 4;

export class GroupWriter {
  private blocks: Blob[] = [];
  private raw: Blob[] = [];
  /** The bytes of `raw` in as many pieces as there were groups to be compressed. */
  private rawPayload: Buffer[] = [];
  private nodes: Blob[] = [];
  private readonly packing = new Set<Promise<void>>();
  private failure: unknown = null;

  /** `onWritten` is told of each group; it is durable after Packs.sync(). */
  constructor(
    private readonly packs: Packs,
    private readonly onWritten: (blobs: Blob[], locations: Location[]) => void,
  ) {}

  /** The blob's bytes must not change. */
  add(blob: Blob, isNode: boolean): void {
    if (isNode) {
      this.nodes.push(blob);
      if (this.nodes.length === GROUP_BLOBS) this.writeNodes();
    } else {
      this.blocks.push(blob);
      if (this.blocks.length === GROUP_BLOBS) this.packBlocks();
    }
  }

  /** Waits while too much is being compressed. */
  async room(): Promise<void> {
    while (this.packing.size >= PACKING_MAX) await Promise.race(this.packing);
    if (this.failure !== null) throw this.failure;
  }

  /** Everything is written. */
  async finish(): Promise<void> {
    this.packBlocks();
    await Promise.all(this.packing);
    if (this.failure !== null) throw this.failure;
    this.writeRaw();
    this.writeNodes();
  }

  private packBlocks(): void {
    const blobs = this.blocks;
    if (blobs.length === 0) return;
    this.blocks = [];
    const payload = payloadOf(blobs);
    const job: Promise<void> = this.packs.codec
      .compress(payload)
      .then((packed) => {
        if (packed !== null) this.onWritten(blobs, this.packs.writePacked(blobs, packed));
        else this.addRaw(blobs, payload);
      })
      .catch((error: unknown) => {
        this.failure ??= error ?? new Error('compression failed');
      })
      .finally(() => this.packing.delete(job));
    this.packing.add(job);
  }

  private addRaw(blobs: Blob[], payload: Buffer): void {
    if (this.raw.length + blobs.length > RAW_BLOBS) this.writeRaw();
    this.raw.push(...blobs);
    this.rawPayload.push(payload);
    if (this.raw.length === RAW_BLOBS) this.writeRaw();
  }

  private writeRaw(): void {
    const blobs = this.raw;
    if (blobs.length === 0) return;
    const payload = this.rawPayload;
    this.raw = [];
    this.rawPayload = [];
    this.onWritten(blobs, this.packs.writeRaw(blobs, payload, false));
  }

  private writeNodes(): void {
    const blobs = this.nodes;
    if (blobs.length === 0) return;
    this.nodes = [];
    this.onWritten(blobs, this.packs.writeRaw(blobs, [payloadOf(blobs)], true));
  }
}

function payloadOf(blobs: Blob[]): Buffer {
  return Buffer.concat(blobs.map(({ bytes }) => bytes));
}
