// Cards that connect: where each belongs, its branch when both sides have changed the image, and how an administrator ends that
// (SPEC.md "Between a card and the image server"). The decision itself is judgeCard().

import { Failure } from '../failure.js';
import { type CardHello, type CardPlace, type Client, ExportError, ExportRefused } from '../server/export.js';
import { CARDS_MAX, type CardState, judgeCard } from './cards.js';
import { idOf, type Line } from './line.js';
import { LineExport } from './line-export.js';
import { imageOf, parseExportName } from './names.js';
import type { Store } from './store.js';

export class CardPlaces {
  /** The last of a card's connections that is being placed, by image and card. */
  readonly #placing = new Map<string, Promise<unknown>>();

  constructor(private readonly store: Store) {}

  /** Where a card that connects belongs; opens it there. What was committed for the card is digested first, so that it is known.
   * A card that has lost its power comes back while its branch is being made: it must find that one, not make another. */
  async place(name: string, client: Client, hello: CardHello): Promise<CardPlace> {
    const key = `${name} ${hello.card}`;
    const before = this.#placing.get(key);
    const placed = (async () => {
      await before?.catch(() => {});
      return this.#place(name, client, hello);
    })();
    this.#placing.set(key, placed);
    try {
      return await placed;
    } finally {
      if (this.#placing.get(key) === placed) this.#placing.delete(key);
    }
  }

  async #place(name: string, client: Client, hello: CardHello): Promise<CardPlace> {
    if ((parseExportName(name)?.at ?? null) !== null)
      throw new ExportRefused('plain', 'a generation that does not change');
    const image = this.store.lines.get(name);
    if (image === undefined || !this.store.allows(client, name, 'read'))
      throw new ExportRefused('unknown', 'there is no such export, or you may not read it');
    if (!this.store.allows(client, name, 'write'))
      throw new ExportRefused('plain', 'read-only: nothing is kept for this card');
    if (this.store.isClosing || image.moving) throw new ExportRefused('policy', 'the server is busy, try again');
    // What a card has is noted in its line: that is for the server that writes to it.
    await this.claim(image);
    if (image.record.cards?.[hello.card]?.leaving === true && !hello.dirty) {
      await this.store.images.changeLine(image, (it) => {
        const { branch: _branch, leaving: _leaving, ...rest } = it.cards![hello.card];
        it.cards![hello.card] = { ...rest, reset: true };
      });
    }
    const branch = image.record.cards?.[hello.card]?.branch;
    const line = (branch === undefined ? undefined : this.store.lines.get(`${imageOf(name)}/${branch}`)) ?? image;
    if (line !== image) await this.claim(line);
    // An earlier connection of the card may be half open: nothing that is still on its way there may count after this.
    for (const other of [...line.exports]) {
      if (other.card?.card === hello.card && other.identity === client.identity)
        other.fence(`card ${hello.card} has connected again`);
    }
    this.store.left.drop(hello.card);
    const { view, generation } = await this.store.newestView(line);
    try {
      const state = line.record.cards?.[hello.card] ?? null;
      const judged = judgeCard(hello, state, generation, (at) => {
        const record = this.store.findGeneration(line, at);
        return record === null ? null : idOf(record);
      });
      if (judged.verdict === 'older' || judged.verdict === 'copied')
        return await this.refuse(line, hello, state, judged.verdict);
      if (judged.verdict === 'lost') {
        this.store.log(
          'error',
          `card ${hello.card} has lost the end of its log: its local store has records up to ${judged.committed}, of ${line.name} record ` +
            `${state!.upTo} is committed, and nothing of that is missing here; the card's cache is dropped`,
        );
      }
      // A card that was never told of a generation behind its base cannot have met it: what it says is of the conflict whose branch this
      // is, and the answer that told of the branch did not reach it.
      const isConflict = hello.conflict && judged.base < generation && (state?.known ?? 0) > judged.base;
      if ((judged.verdict === 'ok' || judged.verdict === 'lost') && isConflict)
        return await this.branch(name, line, judged.base, client, hello);
      if (judged.verdict === 'reset' && hello.dirty && state?.reset === true && line === image)
        return await this.branch(name, line, generation, client, hello);
      await this.remember(line, hello, generation);
      const opened = new LineExport(this.store, line, this.store.copyView(view), generation, false, client);
      opened.card = { card: hello.card, session: hello.session, early: hello.early };
      const id = idOf(this.store.generationRecord(line.record.id, generation)!);
      // Something may have happened while the card was noted down.
      if (line.head !== generation) opened.fence(`${line.name} has changed meanwhile`);
      return {
        verdict: judged.verdict,
        line: line.name,
        base: judged.base,
        generation,
        id,
        committed: judged.committed ?? (judged.verdict === 'reset' ? hello.committed : (state?.upTo ?? 0)),
        export: opened,
      };
    } finally {
      view.close();
    }
  }

  private async claim(line: Line): Promise<void> {
    try {
      await this.store.claim(line);
    } catch (error) {
      if (error instanceof ExportError) throw new ExportRefused('policy', error.message);
      throw error;
    }
  }

  /** Both sides have changed the same blocks: the card goes on where it was, on a branch. */
  private async branch(name: string, line: Line, base: number, client: Client, hello: CardHello): Promise<CardPlace> {
    const image = imageOf(name);
    const stem = `card-${hello.card.slice(0, 8)}-${base}`;
    let branch = stem;
    for (let number = 2; this.store.lines.has(`${image}/${branch}`); number++) branch = `${stem}.${number}`;
    const state = line.record.cards?.[hello.card];
    const record = this.store.findGeneration(line, base)!;
    const own: CardState = {
      upTo: state?.upTo ?? 0,
      generation: base,
      id: idOf(record),
      session: state?.session ?? 0,
      known: base,
      seenMs: this.store.nowMs(),
      ...(state?.reset === true ? { reset: true } : {}),
    };
    this.store.log(
      'error',
      `conflict: ${line.name} has changed since generation ${base} where card ${hello.card} has changed it too; the card goes on ` +
        `on the branch ${image}/${branch}. \`ribbon image resolve ${image} ${hello.card} --take branch\` or \`--take image\` ends that.`,
    );
    await this.store.images.clone(line.name, base, `${image}/${branch}`, `card ${hello.card}`, { [hello.card]: own });
    await this.store.images.changeLine(this.store.line(name), (it) => {
      it.cards![hello.card] = { ...own, ...it.cards![hello.card], branch };
      delete it.cards![hello.card].reset;
    });
    this.store.statistics.conflicts++;
    this.store.emit('conflict', `${image}/${branch}`, base, hello.card);
    return this.#place(name, client, { ...hello, conflict: false });
  }

  private async refuse(
    line: Line,
    hello: CardHello,
    state: CardState | null,
    verdict: 'older' | 'copied',
  ): Promise<CardPlace> {
    if (state?.refused?.verdict !== verdict) {
      this.store.log(
        'error',
        verdict === 'older'
          ? `conflict: card ${hello.card} knows generation ${hello.generation} and committed record ${hello.committed} of ${line.name}, this ` +
              `server has generation ${line.head} and record ${state?.upTo ?? 0} of that card: restored from a backup, or another image of that name`
          : `the local store of card ${hello.card} is a copy: another one has committed record ${state!.upTo} of ${line.name}`,
      );
      await this.store.images.changeLine(line, (it) => {
        const before = state ?? { upTo: 0, generation: 0, id: '', session: 0, known: 0, seenMs: 0 };
        it.cards![hello.card] = {
          ...before,
          seenMs: this.store.nowMs(),
          refused: { verdict, sinceMs: this.store.nowMs() },
        };
      });
      this.store.emit('conflict', line.name, hello.generation, hello.card);
    }
    const committed = state?.upTo ?? 0;
    return { verdict, line: line.name, base: 0, generation: line.head, id: line.headId, committed, export: null };
  }

  /** Ends a conflict: the card's branch, or the image as it is, becomes what the card works on. */
  async resolve(name: string, card: string, take: 'branch' | 'image', who: string): Promise<number> {
    const image = this.store.line(name);
    const state = image.record.cards?.[card];
    if (state === undefined)
      throw new Failure(`${name} knows no card ${card}; \`ribbon image cards ${name}\` lists them`);
    if (take === 'image') {
      await this.store.images.changeLine(image, (it) => {
        const { refused: _refused, ...rest } = it.cards![card];
        it.cards![card] = state.branch === undefined ? { ...rest, reset: true } : { ...rest, leaving: true };
      });
      for (const line of this.store.lines.values()) fenceCard(line, card, `card ${card} is to take ${name}`);
      return image.head;
    }
    if (state.branch === undefined) throw new Failure(`card ${card} is not on a branch of ${name}`);
    const branch = this.store.line(`${name}/${state.branch}`);
    image.moving = true;
    try {
      fenceCard(branch, card, `${branch.name} becomes ${name}`);
      await this.store.digest(branch);
      const own = branch.record.cards?.[card] ?? state;
      const why = `branch ${branch.name} of card ${card}`;
      const known =
        this.store.findGeneration(branch, own.generation) ?? (await this.store.needGeneration(branch.name, null));
      let generation = await this.store.images.newGeneration(
        image,
        Buffer.from(known.root, 'hex'),
        known.size,
        why,
        who,
      );
      const id = image.digestedId;
      await this.store.images.changeLine(image, (it) => {
        const { seenMs } = state;
        const alias = { generation: own.generation, id: own.id };
        it.cards![card] = { upTo: own.upTo, generation, id, session: own.session, known: generation, seenMs, alias };
      });
      if (branch.head !== known.generation) {
        // Somebody else has written to the branch too: the card will see that as a change.
        const newest = await this.store.needGeneration(branch.name, null);
        generation = await this.store.images.newGeneration(
          image,
          Buffer.from(newest.root, 'hex'),
          newest.size,
          why,
          who,
        );
      }
      return generation;
    } finally {
      image.moving = false;
    }
  }

  /** Keeps for the card what it will be told: the retention must not take it away. */
  private async remember(line: Line, hello: CardHello, generation: number): Promise<void> {
    const state = line.record.cards?.[hello.card];
    if (state !== undefined && state.known === generation && state.refused === undefined && state.reset !== true)
      return;
    await this.store.images.changeLine(line, (it) => {
      const cards = it.cards!;
      const {
        refused: _refused,
        reset,
        ...before
      } = cards[hello.card] ?? {
        upTo: 0,
        generation: 0,
        id: '',
        session: 0,
        known: 0,
        seenMs: 0,
      };
      cards[hello.card] = { ...before, known: generation, seenMs: this.store.nowMs() };
      // What it had committed elsewhere, or before a backup was made, counts as committed from here on.
      if (reset === true) cards[hello.card].upTo = hello.committed;
      const oldest = Object.keys(cards).sort((a, b) => cards[a].seenMs - cards[b].seenMs);
      for (const card of oldest.slice(0, Math.max(0, oldest.length - CARDS_MAX))) delete cards[card];
    });
  }
}

function fenceCard(line: Line, card: string, reason: string): void {
  for (const opened of [...line.exports]) if (opened.card?.card === card) opened.fence(reason);
}
