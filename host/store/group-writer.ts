// Collects blobs into the groups of packs: nodes as they are, blocks compressed together when that helps, and those that it does not
// help in large groups, so that many of them are one read.

import type { Location } from './index.js';
import { BLOB_MAX, type BlobHead, GROUP_BLOBS, type Packs, RAW_BLOBS } from './pack.js';

/** Groups being compressed at once. */
const PACKING_MAX = 4;

export class GroupWriter {
  private blocks: BlobHead[] = [];
  /** Their bytes. */
  private payload: Buffer | null = null;
  private raw: BlobHead[] = [];
  private rawPayload: Buffer[] = [];
  private nodes: BlobHead[] = [];
  private nodesPayload: Buffer[] = [];
  /** Memory of groups that have been written. */
  private readonly free: Buffer[] = [];
  private readonly packing = new Set<Promise<void>>();
  private failure: unknown = null;

  /** `onWritten` is told of each group; it is durable after Packs.sync(). */
  constructor(
    private readonly packs: Packs,
    private readonly onWritten: (blobs: BlobHead[], locations: Location[]) => void,
  ) {}

  /** The bytes of a block, 4096, are copied; those of a node, which is smaller, must not change. */
  add(hash: Buffer, bytes: Buffer): void {
    if (bytes.length === BLOB_MAX) this.addBlock(hash, bytes);
    else this.addNode(hash, bytes);
  }

  private addBlock(hash: Buffer, bytes: Buffer): void {
    this.payload ??= this.free.pop() ?? Buffer.allocUnsafeSlow(GROUP_BLOBS * BLOB_MAX);
    bytes.copy(this.payload, this.blocks.length * BLOB_MAX);
    this.blocks.push({ hash, length: BLOB_MAX });
    if (this.blocks.length === GROUP_BLOBS) this.packBlocks();
  }

  private addNode(hash: Buffer, bytes: Buffer): void {
    this.nodes.push({ hash, length: bytes.length });
    this.nodesPayload.push(bytes);
    if (this.nodes.length === GROUP_BLOBS) this.writeNodes();
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
    const { blocks, payload } = this;
    if (payload === null) return;
    this.blocks = [];
    this.payload = null;
    const used = payload.subarray(0, blocks.length * BLOB_MAX);
    const job: Promise<void> = this.packs.codec
      .compress(used)
      .then((packed) => {
        if (packed === null) {
          this.addRaw(blocks, used);
        } else {
          this.onWritten(blocks, this.packs.writePacked(blocks, packed));
          this.free.push(payload);
        }
      })
      .catch((error: unknown) => {
        this.failure ??= error ?? new Error('compression failed');
      })
      .finally(() => this.packing.delete(job));
    this.packing.add(job);
  }

  private addRaw(blocks: BlobHead[], payload: Buffer): void {
    if (this.raw.length + blocks.length > RAW_BLOBS) this.writeRaw();
    this.raw.push(...blocks);
    this.rawPayload.push(payload);
    if (this.raw.length === RAW_BLOBS) this.writeRaw();
  }

  private writeRaw(): void {
    const { raw, rawPayload } = this;
    if (raw.length === 0) return;
    this.raw = [];
    this.rawPayload = [];
    this.onWritten(raw, this.packs.writeRaw(raw, rawPayload, false));
    for (const payload of rawPayload) if (payload.length === GROUP_BLOBS * BLOB_MAX) this.free.push(payload);
  }

  private writeNodes(): void {
    const { nodes, nodesPayload } = this;
    if (nodes.length === 0) return;
    this.nodes = [];
    this.nodesPayload = [];
    this.onWritten(nodes, this.packs.writeRaw(nodes, [Buffer.concat(nodesPayload)], true));
  }
}
