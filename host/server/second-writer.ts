// The setting "secondWriter": "branch": who may not write to a line now, because somebody else does or has changed it since it was opened,
// goes on in a branch that begins as the generation that the connection has read, together with the client's other connections. Cards have
// branches of their own (store/card-places.ts).

import type { LineExport } from '../store/line-export.js';
import { imageOf } from '../store/names.js';
import type { Store } from '../store/store.js';
import { together } from '../store/writer.js';
import {
  type CardHello,
  type CardPlace,
  type Client,
  type Done,
  ExportError,
  type ExportListing,
  type Exports,
  type Extent,
  type OpenExport,
} from './export.js';

/** More branches than this are not made of one image: a client that connects for ever must not fill the store. */
const BRANCHES_MAX = 100;

export class SecondWriters implements Exports {
  private readonly branching = new WeakMap<LineExport, BranchingExport>();

  constructor(private readonly store: Store) {}

  list(client: Client): ExportListing[] {
    return this.store.list(client);
  }

  async open(name: string, client: Client): Promise<OpenExport> {
    const opened = await this.store.open(name, client);
    return opened.readOnly ? opened : new BranchingExport(this, this.store, opened, client);
  }

  /** These go on with another opening. */
  moved(to: LineExport, opened: BranchingExport): void {
    this.branching.set(to, opened);
  }

  /** The connections of the client that this one belongs to. */
  together(inner: LineExport): BranchingExport[] {
    return together(inner)
      .map((it) => this.branching.get(it))
      .filter((it) => it !== undefined);
  }

  placeCard(name: string, client: Client, hello: CardHello): Promise<CardPlace> {
    return this.store.placeCard(name, client, hello);
  }

  get mayAsk(): boolean {
    return this.store.mayAsk;
  }
}

class BranchingExport implements OpenExport {
  onLost: (reason: string) => void = () => {};
  readonly readOnly = false;
  /** What was opened first; requests that it is still answering need it. */
  private readonly first: LineExport;
  private moving: Promise<void> | null = null;

  constructor(
    private readonly all: SecondWriters,
    private readonly store: Store,
    private inner: LineExport,
    private readonly client: Client,
  ) {
    this.first = inner;
    this.goOnWith(inner);
  }

  private goOnWith(inner: LineExport): void {
    this.inner = inner;
    this.all.moved(inner, this);
    inner.onLost = (reason) => this.lost(inner, reason);
  }

  get multiConnection(): boolean {
    return this.inner.multiConnection;
  }

  get size(): number {
    return this.inner.size;
  }

  get description(): string {
    return this.inner.description;
  }

  get lostReason(): string | null {
    return this.inner.lostReason;
  }

  read(offset: number, target: Buffer): Done {
    return this.inner.read(offset, target);
  }

  write(offset: number, data: Buffer): Done {
    // With several servers on a store it may take a while until it is known who writes: the data must outlive that.
    const kept = this.store.shared === null ? data : Buffer.from(data);
    if (this.moving === null) {
      try {
        return this.orBranch(this.inner.write(offset, kept), () => this.inner.write(offset, kept));
      } catch (error) {
        this.begin(error);
      }
    }
    const copy = Buffer.from(data);
    return this.moving!.then(() => this.inner.write(offset, copy));
  }

  zero(offset: number, length: number): Done {
    if (this.moving === null) {
      try {
        return this.orBranch(this.inner.zero(offset, length), () => this.inner.zero(offset, length));
      } catch (error) {
        this.begin(error);
      }
    }
    return this.moving!.then(() => this.inner.zero(offset, length));
  }

  private orBranch(done: Done, again: () => Done): Done {
    if (done === undefined || this.store.shared === null) return done;
    const { inner } = this;
    return done.catch((error: unknown) => {
      // Another connection of the client may have led the way meanwhile.
      if (this.moving === null && this.inner !== inner) return again();
      if (this.moving === null) this.begin(error);
      return this.moving!.then(again);
    });
  }

  fetch(offset: number, length: number): Done {
    return this.inner.fetch(offset, length);
  }

  prefetch(offset: number, length: number): Done {
    return this.inner.prefetch(offset, length);
  }

  commit(): Done {
    return this.inner.commit();
  }

  metaContexts(query: string): string[] {
    return this.inner.metaContexts(query);
  }

  status(context: string, offset: number, length: number, limit: number): Extent[] {
    return this.inner.status(context, offset, length, limit);
  }

  async close(clean: boolean): Promise<void> {
    await this.moving?.catch(() => {});
    await this.inner.close(clean);
    if (this.inner !== this.first) await this.first.close(false);
  }

  private lost(which: LineExport, reason: string): void {
    if (which === this.inner) this.onLost(reason);
  }

  /** Begins the move to a branch when that is what the error asks for, else throws it again. */
  private begin(error: unknown): void {
    const { inner } = this;
    const refused = error instanceof ExportError && (error.errno === 'EPERM' || error.errno === 'ESHUTDOWN');
    if (!refused || inner.hasWritten || inner.lostReason !== null || inner.root === null || this.store.isClosing)
      throw error;
    // All at once: what one of them writes on the branch the others must read there.
    const mates = this.all.together(inner);
    const moving = this.move(error, mates).finally(() => {
      for (const mate of mates) mate.moving = null;
    });
    for (const mate of mates) mate.moving = moving;
    // Those of them that write meanwhile are told; the others learn it by their own refusal.
    moving.catch(() => {});
  }

  private async move(refusal: ExportError, mates: BranchingExport[]): Promise<void> {
    const { inner, store, client } = this;
    const { line, generation } = inner;
    const image = imageOf(line.name);
    const stem = `${image}/${
      client.identity
        .replace(/[^A-Za-z0-9._-]/g, '_')
        .replace(/^[._-]+/, '')
        .slice(0, 32) || 'writer'
    }-${generation}`;
    for (let number = 1; number <= BRANCHES_MAX; number++) {
      const name = number === 1 ? stem : `${stem}-${number}`;
      if (store.has(name)) continue;
      const openings: LineExport[] = [];
      try {
        await store.images.branchOf(line, inner.root!, inner.size, generation, name, client.identity);
        for (const _ of mates) openings.push(await store.open(name, client));
        for (const [index, mate] of mates.entries()) mate.goOnWith(openings[index]);
      } catch (error) {
        for (const opened of openings) await opened.close(false);
        throw new ExportError('EPERM', `${refusal.message}; no branch could be made: ${(error as Error).message}`);
      }
      store.log('warn', `${refusal.message}: ${client.identity} at ${client.address} goes on in the branch ${name}`);
      return;
    }
    throw new ExportError('EPERM', `${refusal.message}; ${image} has ${BRANCHES_MAX} such branches already`);
  }
}
