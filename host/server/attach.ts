// `ribbon image attach`: a line as an NBD export of its own, whose changes all become one generation when it is detached.
//
// The export is opened once and shared by every connection to a private socket. Flushes are answered and commit nothing: a file system
// that is being repaired flushes all the time, and cards are to see the master before the repair or after it, never in between. The
// price: what has been written is lost when the server ends before `detach`.

import fs from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import { Failure } from '../failure.js';
import { LineExport } from '../store/line-export.js';
import { parseExportName } from '../store/names.js';
import type { Store } from '../store/store.js';
import { TreeView } from '../store/tree.js';
import type { Client, Done, ExportListing, Exports, Extent, OpenExport } from './export.js';
import { ExportError, ExportRefused } from './export.js';
import { ImageServer } from './server.js';

export interface AttachInfo {
  id: number;
  name: string;
  uri: string;
  size: number;
  readOnly: boolean;
}

const attachments = new WeakMap<Store, Map<number, Attachment>>();
let lastId = 0;

function attachmentsOf(store: Store): Map<number, Attachment> {
  let found = attachments.get(store);
  if (found === undefined) {
    found = new Map();
    attachments.set(store, found);
  }
  return found;
}

/** Opens IMAGE[/BRANCH][@GENERATION] on a socket of its own; with a generation it is read-only. */
export async function attach(store: Store, name: string, who: string): Promise<AttachInfo> {
  const attachment = await Attachment.open(store, name, who);
  attachmentsOf(store).set(attachment.info.id, attachment);
  return attachment.info;
}

/** Ends an attachment. `commit`: its changes become the next generation, which is returned; null when there were none. */
export async function detach(store: Store, id: number, commit: boolean): Promise<number | null> {
  const attachment = attachmentsOf(store).get(id);
  if (attachment === undefined) throw new Failure(`nothing is attached as number ${id}`);
  attachmentsOf(store).delete(id);
  return attachment.close(commit);
}

export function listAttached(store: Store): AttachInfo[] {
  return [...attachmentsOf(store).values()].map(({ info }) => info);
}

/** For the end of the server: what has not been detached is discarded. */
export async function discardAttached(store: Store): Promise<void> {
  for (const { info } of attachmentsOf(store).values()) {
    store.log('warn', `${info.name} was still attached: its changes are discarded`);
    await detach(store, info.id, false);
  }
}

class Attachment {
  private constructor(
    readonly info: AttachInfo,
    private readonly inner: LineExport,
    private readonly server: ImageServer,
    private readonly folder: string,
  ) {}

  static async open(store: Store, text: string, who: string): Promise<Attachment> {
    const parsed = parseExportName(text);
    if (parsed === null) throw new Failure(`"${text}" is not IMAGE[/BRANCH][@GENERATION]`);
    const line = store.line(parsed.line);
    const id = ++lastId;
    const client: Client = { identity: who, address: `attachment ${id}`, tls: false };
    let inner: LineExport;
    if (parsed.at === null) {
      const { view, generation } = await store.newestView(line);
      inner = new LineExport(store, line, view, generation, false, client);
    } else {
      const record = await store.needGeneration(parsed.line, parsed.at);
      const view = new TreeView(store.nodes, Buffer.from(record.root, 'hex'), record.size);
      inner = new LineExport(store, line, view, record.generation, true, client);
      inner.pinned = true;
    }
    // Only the owner may look into the folder of the socket.
    const folder = fs.mkdtempSync(path.join(os.tmpdir(), 'ribbon-attach-'));
    const server = new ImageServer({
      exports: new SharedExport(text, inner),
      listen: [{ kind: 'unix', path: path.join(folder, 'nbd.sock') }],
      log: (level, message) => store.log(level, `attached ${text}: ${message}`),
    });
    try {
      await server.listen();
    } catch (error) {
      await inner.close(false);
      fs.rmSync(folder, { recursive: true, force: true });
      throw error;
    }
    const info = { id, name: text, uri: server.uri(text), size: inner.size, readOnly: inner.readOnly };
    return new Attachment(info, inner, server, folder);
  }

  async close(commit: boolean): Promise<number | null> {
    const { inner } = this;
    try {
      await this.server.close();
      const changed = !inner.epochEmpty;
      if (commit && changed) await inner.commit();
      return commit && changed ? inner.generation : null;
    } catch (error) {
      if (error instanceof ExportError) throw new Failure(`the changes are lost: ${error.message}`);
      throw error;
    } finally {
      await inner.close(false);
      fs.rmSync(this.folder, { recursive: true, force: true });
    }
  }
}

class SharedExport implements Exports {
  constructor(
    private readonly name: string,
    private readonly inner: LineExport,
  ) {}

  list(): ExportListing[] {
    return [{ name: this.name, description: this.inner.description }];
  }

  open(name: string): OpenExport {
    if (name !== this.name) throw new ExportRefused('unknown', `only ${this.name} is attached here`);
    return new SharedOpening(this.inner);
  }
}

/** One connection's handle on the shared opening: all of them see each other's writes at once. */
class SharedOpening implements OpenExport {
  onLost: (reason: string) => void = () => {};
  readonly multiConnection = true;

  constructor(private readonly inner: LineExport) {}

  get size(): number {
    return this.inner.size;
  }

  get readOnly(): boolean {
    return this.inner.readOnly;
  }

  get description(): string {
    return this.inner.description;
  }

  read(offset: number, target: Buffer): Done {
    return this.inner.read(offset, target);
  }

  write(offset: number, data: Buffer): Done {
    return this.inner.write(offset, data);
  }

  zero(offset: number, length: number): Done {
    return this.inner.zero(offset, length);
  }

  commit(): Done {
    return undefined;
  }

  metaContexts(query: string): string[] {
    return this.inner.metaContexts(query);
  }

  status(context: string, offset: number, length: number, limit: number): Extent[] {
    return this.inner.status(context, offset, length, limit);
  }

  close(): Done {
    return undefined;
  }
}
