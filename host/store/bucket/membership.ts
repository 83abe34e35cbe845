// Who serves the store: signs of life, the expulsion of who gives none, and the lines that are given back.
//
// Nothing here decides what is right: two servers that both think the other dead still make one log. It decides how long clients wait.

import { failureText } from '../../failure.js';
import type { Line } from '../line.js';
import type { Store } from '../store.js';
import { type Change, COLLECTOR_KEY, type SignOfLife, sealJson, serverKey, signObject, unseal } from './format.js';
import { ConflictError, type Shared } from './shared.js';

const SIGN_MS = 2000;
const DEAD_MS = 15_000;
const RELEASE_MS = 10_000;

interface Observed {
  etag: string;
  /** By this process's own clock, in a time in which the bucket has answered without a gap. */
  sinceMs: number;
}

export class Membership {
  /** What the open exports of this server need, while somebody collects garbage. */
  roots: SignOfLife['roots'] = null;
  private readonly observed = new Map<number, Observed>();
  private readonly idleSince = new Map<number, number>();
  private timer: NodeJS.Timeout | null = null;
  private beating: Promise<void> | null = null;
  private count = 0;

  constructor(
    private readonly shared: Shared,
    private readonly store: Store,
  ) {
    shared.onCollector = () => this.collectionBegins();
    shared.onRecord = (key, value) => this.recordChanged(key, value);
  }

  /** From here on every blob that is used again is noted: the collector does not know that it is. */
  private async collectionBegins(): Promise<void> {
    if (this.store.collecting) return;
    const { builder } = this.store;
    await builder.withBlobLock(async () => {
      const reused = new Set<string>();
      this.shared.reused = reused;
      builder.onReuse = (hash) => reused.add(hash.toString('latin1'));
    });
  }

  private recordChanged(key: string, value: unknown): void {
    if (key !== COLLECTOR_KEY || this.store.collecting) return;
    if (value != null) {
      const heads = new Set([...this.store.lines.values()].map((line) => line.view.root.toString('hex')));
      const needed = new Map(this.store.openRoots().map(({ root, size }) => [root.toString('hex'), size]));
      this.roots = [...needed].filter(([root]) => !heads.has(root));
      void this.beat();
    } else if (this.shared.reused !== null) {
      this.shared.reused = null;
      this.store.builder.onReuse = () => {};
      this.roots = null;
    }
  }

  start(): void {
    void this.beat();
    this.timer = setInterval(() => void this.beat(), this.shared.options.signMs ?? SIGN_MS).unref();
  }

  /** Gives everything back, so that nobody has to wait for this server to be found missing. */
  async leave(): Promise<void> {
    if (this.timer !== null) clearInterval(this.timer);
    await this.beating;
    const { server } = this.shared;
    if (server === 0) return;
    try {
      await this.shared.transact(() => {
        const removal = this.shared.removalOf(server);
        return removal.length === 0 ? null : removal;
      });
      await this.shared.reach.bucket.remove(signObject(server));
    } catch (error) {
      this.shared.options.log('warn', `could not take leave of the other servers: ${failureText(error)}`);
    }
  }

  /** One sign of life, and a look at those of the others. */
  beat(): Promise<void> {
    this.beating ??= this.beatNow().finally(() => {
      this.beating = null;
    });
    return this.beating;
  }

  private async beatNow(): Promise<void> {
    const { shared } = this;
    if (shared.server === 0) return;
    try {
      await this.sign();
      const objects = await shared.reach.bucket.list('servers/');
      this.observe(new Map(objects.map(({ name, etag }) => [Number(name.slice('servers/'.length)), etag])));
    } catch {
      // Nothing was seen: nobody was seen to be silent. Requests that matter are tried again, and logged, elsewhere.
      this.observed.clear();
      return;
    }
    try {
      await this.expelSilent();
      await this.releaseIdle();
    } catch (error) {
      if (!(error instanceof ConflictError)) shared.options.log('warn', `servers: ${failureText(error)}`);
    }
  }

  /** Also at once, when somebody waits for it. */
  async sign(): Promise<void> {
    const { shared } = this;
    if (this.roots !== null && this.roots.length > 0) {
      // What is not open any more need not be waited for. (What has been opened since is in the log, or noted as used again.)
      const open = new Set(this.store.openRoots().map(({ root }) => root.toString('hex')));
      this.roots = this.roots.filter(([root]) => open.has(root));
    }
    const sign: SignOfLife = {
      version: 1,
      server: shared.server,
      name: shared.options.name,
      count: ++this.count,
      applied: shared.appliedSequence,
      roots: this.roots,
    };
    await shared.reach.bucket.put(signObject(shared.server), sealJson(sign));
  }

  async signOf(server: number): Promise<SignOfLife | null> {
    const name = signObject(server);
    const sealed = await this.shared.reach.request((bucket) => bucket.get(name));
    return sealed === null ? null : (JSON.parse(unseal(name, sealed).bytes.toString()) as SignOfLife);
  }

  /** The other servers, as far as the log knows. */
  others(): number[] {
    return this.shared.local
      .records('server/')
      .map(([key]) => Number(key.slice('server/'.length)))
      .filter((server) => server !== this.shared.server);
  }

  private observe(etags: Map<number, string>): void {
    const now = performance.now();
    const others = new Set(this.others());
    for (const server of others) {
      // One that has no object yet is as one whose object does not change.
      const etag = etags.get(server) ?? '';
      const before = this.observed.get(server);
      if (before === undefined || before.etag !== etag) this.observed.set(server, { etag, sinceMs: now });
    }
    for (const server of this.observed.keys()) if (!others.has(server)) this.observed.delete(server);
  }

  private async expelSilent(): Promise<void> {
    const { shared } = this;
    const now = performance.now();
    for (const [server, { sinceMs }] of this.observed) {
      if (now - sinceMs < (shared.options.deadMs ?? DEAD_MS)) continue;
      const name = (shared.record(serverKey(server)) as { name?: string } | undefined)?.name;
      const done = await shared.transact(() => {
        const removal: Change[] = shared.removalOf(server);
        return removal.length === 0 ? null : removal;
      });
      this.observed.delete(server);
      if (!done) continue;
      shared.options.log(
        'warn',
        `server ${server} (${name}) has given no sign of life: its images are free for others`,
      );
      await shared.reach.bucket.remove(signObject(server)).catch(() => {});
    }
  }

  private async releaseIdle(): Promise<void> {
    const { shared } = this;
    const now = performance.now();
    const idle: Line[] = [];
    for (const line of this.store.lines.values()) {
      const { id } = line.record;
      const isUsed = line.pending.length > 0 || line.moving || [...line.exports].some((it) => it.learnsOfChanges);
      if (isUsed || !shared.owns(id)) this.idleSince.delete(id);
      else if (!this.idleSince.has(id)) this.idleSince.set(id, now);
      else if (now - this.idleSince.get(id)! >= (shared.options.releaseMs ?? RELEASE_MS)) idle.push(line);
    }
    if (idle.length === 0) return;
    for (const line of idle) this.idleSince.delete(line.record.id);
    await shared.release(idle.map((line) => line.record.id));
  }
}
