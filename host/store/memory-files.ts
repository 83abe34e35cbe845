// Files in memory with a power switch: the store's disk in simulations and in the power-cut tests.
//
// What a disk may lose at a power cut: any of the writes since a file's last sync, whole or torn at 512 bytes, and every name
// that was created, renamed or removed since the folder's last sync (from some point on: file systems keep the order of names).

import type { Files, StoreFile } from './files.js';

export class PowerCut extends Error {
  override name = 'PowerCut';
}

export class OutOfSpace extends Error {
  override name = 'OutOfSpace';
  readonly code = 'ENOSPC';
}

const SECTOR = 512;

interface Content {
  data: Buffer;
  length: number;
  /** What survives for certain. */
  durable: Buffer;
  durableLength: number;
  /** Writes since the last sync. */
  writes: { position: number; bytes: Buffer }[];
}

type NameChange = { name: string; content: Content | null };

export class MemoryFiles implements Files {
  private names = new Map<string, Content>();
  private durableNames = new Map<string, Content>();
  private nameChanges: NameChange[] = [];
  /** Operations so far; the one with number `cutAt` does not happen, and none after it. */
  operations = 0;
  cutAt = Number.POSITIVE_INFINITY;
  /** Bytes that all files together may have. */
  capacity = Number.POSITIVE_INFINITY;

  /** An operation begins: its number. */
  onOperation: (number: number) => void = () => {};

  /** Counts one operation on the medium; the power may be gone. */
  operation(): void {
    this.onOperation(this.operations + 1);
    if (++this.operations >= this.cutAt) throw new PowerCut(`power cut at operation ${this.operations}`);
  }

  open(name: string): StoreFile {
    const content = this.names.get(name);
    if (content === undefined) throw new Error(`there is no file ${name}`);
    return new MemoryFile(this, content);
  }

  create(name: string): StoreFile {
    this.operation();
    if (this.names.has(name)) throw new Error(`there is a file ${name} already`);
    const content: Content = {
      data: Buffer.alloc(0),
      length: 0,
      durable: Buffer.alloc(0),
      durableLength: 0,
      writes: [],
    };
    this.change(name, content);
    return new MemoryFile(this, content);
  }

  list(folder: string): string[] {
    const prefix = `${folder}/`;
    return [...this.names.keys()]
      .filter((name) => name.startsWith(prefix))
      .map((name) => name.slice(prefix.length))
      .sort();
  }

  remove(name: string): void {
    this.operation();
    if (!this.names.has(name)) throw new Error(`there is no file ${name}`);
    this.change(name, null);
  }

  rename(from: string, to: string): void {
    this.operation();
    const content = this.names.get(from);
    if (content === undefined) throw new Error(`there is no file ${from}`);
    this.change(from, null);
    this.change(to, content);
  }

  syncFolder(_folder: string): Promise<void> {
    this.operation();
    this.durableNames = new Map(this.names);
    this.nameChanges = [];
    return Promise.resolve();
  }

  get used(): number {
    let bytes = 0;
    for (const content of this.names.values()) bytes += content.length;
    return bytes;
  }

  private change(name: string, content: Content | null): void {
    this.nameChanges.push({ name, content });
    if (content === null) this.names.delete(name);
    else this.names.set(name, content);
  }

  /** The medium after a power cut; `random` (0 to 1) decides what of the unsynced is there. */
  afterPowerCut(random: () => number): MemoryFiles {
    const next = new MemoryFiles();
    const names = new Map(this.durableNames);
    const kept = Math.floor(random() * (this.nameChanges.length + 1));
    for (const { name, content } of this.nameChanges.slice(0, kept)) {
      if (content === null) names.delete(name);
      else names.set(name, content);
    }
    // All, none, or any of the writes: extremes find more than the middle does.
    const share = [0, 0.5, 1][Math.floor(random() * 3)];
    for (const [name, content] of names) {
      let end = content.durableLength;
      for (const { position, bytes } of content.writes) end = Math.max(end, position + bytes.length);
      const data = Buffer.alloc(end);
      content.durable.copy(data, 0, 0, content.durableLength);
      let length = content.durableLength;
      for (const { position, bytes } of content.writes) {
        if (random() >= share) continue;
        const torn = random() < 0.3 ? Math.floor(random() * (bytes.length / SECTOR)) * SECTOR : bytes.length;
        length = Math.max(length, position + torn);
        bytes.copy(data, position, 0, torn);
      }
      const durable = Buffer.from(data.subarray(0, length));
      const copy: Content = { data, length, durable, durableLength: length, writes: [] };
      next.names.set(name, copy);
      next.durableNames.set(name, copy);
    }
    return next;
  }

  /** Inverts one bit of a file, now and for ever. */
  flipBit(name: string, bit: number): void {
    const content = this.names.get(name);
    if (content === undefined) throw new Error(`there is no file ${name}`);
    for (const data of [content.data, content.durable]) {
      const at = Math.floor(bit / 8) % content.length;
      if (at < data.length) data[at] ^= 1 << (bit % 8);
    }
  }
}

class MemoryFile implements StoreFile {
  constructor(
    private readonly files: MemoryFiles,
    private readonly content: Content,
  ) {}

  read(target: Uint8Array, at: number, length: number, position: number): number {
    const count = Math.max(0, Math.min(length, this.content.length - position));
    this.content.data.copy(target, at, position, position + count);
    return count;
  }

  write(data: Uint8Array, at: number, length: number, position: number): void {
    this.files.operation();
    const { content } = this;
    const end = position + length;
    if (this.files.used + Math.max(0, end - content.length) > this.files.capacity) {
      throw new OutOfSpace('no space left on the simulated disk');
    }
    if (end > content.data.length) {
      const larger = Buffer.alloc(Math.max(end, content.data.length * 2, 65536));
      content.data.copy(larger, 0, 0, content.length);
      content.data = larger;
    }
    content.length = Math.max(content.length, end);
    const bytes = Buffer.from(data.subarray(at, at + length));
    bytes.copy(content.data, position);
    content.writes.push({ position, bytes });
  }

  sync(): Promise<void> {
    try {
      this.files.operation();
    } catch (error) {
      return Promise.reject(error);
    }
    const { content } = this;
    if (content.durable.length < content.length) {
      const larger = Buffer.alloc(content.data.length);
      content.durable.copy(larger, 0, 0, content.durableLength);
      content.durable = larger;
    }
    for (const { position, bytes } of content.writes) bytes.copy(content.durable, position);
    content.durableLength = content.length;
    content.writes = [];
    return Promise.resolve();
  }

  size(): number {
    return this.content.length;
  }

  close(): void {}
}
