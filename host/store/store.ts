// The image store: master images and their generations in one folder.

import { EventEmitter } from 'node:events';
import fs from 'node:fs';
import path from 'node:path';
import { Failure } from '../failure.js';
import {
  type Client,
  type Done,
  ExportError,
  type ExportListing,
  ExportRefused,
  type Exports,
  type Extent,
  type OpenExport,
} from '../server/export.js';
import { NBD_STATE_HOLE, NBD_STATE_ZERO } from '../server/nbd-protocol.js';

export interface ImageInfo {
  name: string;
  size: number;
  generation: number;
}

interface StoreEvents {
  commit: [image: string, generation: number];
}

const BLOCK = 4096;
const ZERO = Buffer.alloc(BLOCK);

interface Image extends ImageInfo {
  fd: number;
  writer: FileExport | null;
}

/** First light: images are plain files; a generation is only a number. The Merkle store replaces the inside of this class. */
export class Store extends EventEmitter<StoreEvents> implements Exports {
  private readonly images = new Map<string, Image>();

  private constructor(private readonly folder: string) {
    super();
  }

  static async open(folder: string): Promise<Store> {
    const store = new Store(folder);
    fs.mkdirSync(path.join(folder, 'images'), { recursive: true });
    for (const file of fs.readdirSync(path.join(folder, 'images'))) {
      if (!file.endsWith('.json')) continue;
      const name = file.slice(0, -5);
      const { generation } = JSON.parse(fs.readFileSync(path.join(folder, 'images', file), 'utf8'));
      const fd = fs.openSync(store.file(name, 'raw'), 'r+');
      store.images.set(name, { name, generation, fd, size: fs.fstatSync(fd).size, writer: null });
    }
    return store;
  }

  async close(): Promise<void> {
    for (const image of this.images.values()) fs.closeSync(image.fd);
    this.images.clear();
  }

  info(): ImageInfo[] {
    return [...this.images.values()].map(({ name, size, generation }) => ({ name, size, generation }));
  }

  /** The newest generation of an image. */
  generation(name: string): number {
    return this.image(name).generation;
  }

  has(name: string): boolean {
    return this.images.has(name);
  }

  create(name: string, size: number): void {
    if (this.images.has(name)) throw new Failure(`there is an image "${name}" already`);
    if (!/^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$/.test(name)) throw new Failure(`"${name}" cannot be the name of an image`);
    const fd = fs.openSync(this.file(name, 'raw'), 'w+');
    fs.ftruncateSync(fd, size);
    this.images.set(name, { name, size, generation: 0, fd, writer: null });
    this.saved(name);
  }

  /** Makes a raw disk image file an image. */
  async importRaw(
    name: string,
    file: string,
    onProgress: (done: number, total: number) => void = () => {},
  ): Promise<void> {
    const source = fs.openSync(file, 'r');
    try {
      const size = fs.fstatSync(source).size;
      this.create(name, size);
      const image = this.image(name);
      const buffer = Buffer.alloc(1 << 20);
      for (let at = 0; at < size; ) {
        const count = fs.readSync(source, buffer, 0, buffer.length, at);
        for (let block = 0; block < count; block += BLOCK) {
          const piece = buffer.subarray(block, Math.min(block + BLOCK, count));
          if (!piece.equals(ZERO.subarray(0, piece.length))) fs.writeSync(image.fd, piece, 0, piece.length, at + block);
        }
        at += count;
        onProgress(at, size);
        await new Promise(setImmediate);
      }
      this.bump(image);
    } finally {
      fs.closeSync(source);
    }
  }

  /** Writes a generation of an image to a raw file, sparse. */
  async exportRaw(name: string, file: string): Promise<void> {
    fs.copyFileSync(this.file(this.image(name).name, 'raw'), file);
  }

  list(): ExportListing[] {
    return this.info().map((image) => ({ name: image.name, description: `generation ${image.generation}` }));
  }

  open(name: string, _client: Client): OpenExport {
    const image = this.images.get(name);
    if (image === undefined) throw new ExportRefused('unknown', `there is no image "${name}"`);
    return new FileExport(this, image);
  }

  bump(image: Image): void {
    fs.fdatasyncSync(image.fd);
    image.generation++;
    this.saved(image.name);
    this.emit('commit', image.name, image.generation);
  }

  private image(name: string): Image {
    const image = this.images.get(name);
    if (image === undefined) throw new Failure(`there is no image "${name}"`);
    return image;
  }

  private saved(name: string): void {
    fs.writeFileSync(this.file(name, 'json'), JSON.stringify({ generation: this.image(name).generation }));
  }

  private file(name: string, extension: string): string {
    return path.join(this.folder, 'images', `${name}.${extension}`);
  }
}

class FileExport implements OpenExport {
  private overlay = new Map<number, Buffer>();
  readonly multiConnection = false;
  readonly readOnly = false;

  constructor(
    private readonly store: Store,
    private readonly image: Image,
  ) {}

  get size(): number {
    return this.image.size;
  }

  get description(): string {
    return `generation ${this.image.generation}`;
  }

  read(offset: number, target: Buffer): Done {
    for (let at = 0; at < target.length; ) {
      const within = (offset + at) % BLOCK;
      const count = Math.min(BLOCK - within, target.length - at);
      const changed = this.overlay.get((offset + at - within) / BLOCK);
      if (changed !== undefined) changed.copy(target, at, within, within + count);
      else fs.readSync(this.image.fd, target, at, count, offset + at);
      at += count;
    }
    return undefined;
  }

  write(offset: number, data: Buffer): Done {
    const { image } = this;
    if (image.writer !== null && image.writer !== this) {
      throw new ExportError('EPERM', 'another client is writing to this image');
    }
    image.writer = this;
    for (let at = 0; at < data.length; ) {
      const within = (offset + at) % BLOCK;
      const count = Math.min(BLOCK - within, data.length - at);
      const number = (offset + at - within) / BLOCK;
      let block = this.overlay.get(number);
      if (block === undefined) {
        block = Buffer.alloc(BLOCK);
        if (count < BLOCK) fs.readSync(image.fd, block, 0, BLOCK, number * BLOCK);
        this.overlay.set(number, block);
      }
      data.copy(block, within, at, at + count);
      at += count;
    }
    return undefined;
  }

  zero(offset: number, length: number): Done {
    for (let at = 0; at < length; at += 1 << 20) {
      const count = Math.min(1 << 20, length - at);
      this.write(offset + at, Buffer.alloc(count));
    }
    return undefined;
  }

  commit(): Done {
    if (this.overlay.size === 0) return undefined;
    const { image } = this;
    for (const [number, block] of this.overlay) {
      fs.writeSync(image.fd, block, 0, Math.min(BLOCK, image.size - number * BLOCK), number * BLOCK);
    }
    this.overlay.clear();
    this.store.bump(image);
    return undefined;
  }

  metaContexts(query: string): string[] {
    return query === '' || query === 'base:' || query === 'base:allocation' ? ['base:allocation'] : [];
  }

  status(_context: string, offset: number, length: number, limit: number): Extent[] {
    const extents: Extent[] = [];
    const block = Buffer.alloc(BLOCK);
    for (let at = 0; at < length; ) {
      const count = Math.min(BLOCK - ((offset + at) % BLOCK), length - at);
      const piece = block.subarray(0, count);
      this.read(offset + at, piece);
      const flags = piece.equals(ZERO.subarray(0, count)) ? NBD_STATE_HOLE | NBD_STATE_ZERO : 0;
      const last = extents.at(-1);
      if (last !== undefined && last.flags === flags) last.length += count;
      else if (extents.length === limit) return extents;
      else extents.push({ length: count, flags });
      at += count;
    }
    return extents;
  }

  close(clean: boolean): Done {
    if (clean) this.commit();
    if (this.image.writer === this) this.image.writer = null;
    return undefined;
  }
}
