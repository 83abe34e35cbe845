// The checker: knows every write command of the PC in order, watches what the PC is told and what the image server makes
// durable, and says when the two do not go together.
//
//   O1  a write is acknowledged only when what the acknowledgement point asks for has happened, and is not lost by any fault
//       in that point's set (DESIGN.md); so is a flush, which where writes wait for the server waits for a generation
//   O2  every generation is the base image and a prefix of the PC's commands; it ends inside a command only if that is
//       longer than 512 KiB, or was cut short by the PC or by an error
//   O3  that prefix never shrinks, and covers every FLUSH CACHE that was answered
//   O4  the reported lag is never below the truth
//   O5  no command takes longer than the PC waits, and none fails, unless the world forced it        (pc.ts)
//   O6  what an administrator has changed is read once the card has learnt of it; what both have changed goes to a branch,
//       once, and only then
//   O7  every read is right
//   O8  after faults stop, lag reaches zero in about bytes / rate                                     (run.ts)
//
// Every sector says which command wrote it (content.ts), so a generation tells by itself how far it goes.
//
// A write that failed or was cut short by the PC may have been done up to any sector: its `min` and `max` bound how far, and every
// later observation narrows them. One that was under way at a power cut is done or not. Two observations that contradict each
// other are a violation.

import type { AcknowledgementPoint } from '../card/settings.js';
import { commandOf, describeSector, isSector, SECTOR_SIZE, WORDS, wordsOf } from './content.js';
import { BLOCK, type Blocks, type StoreWatcher } from './memory-store.js';
import type { LostCommand } from './store-damage.js';
import { MS, Violation, type World } from './world.js';

const BLOCK_SECTORS = BLOCK / SECTOR_SIZE;

/** A command up to this size is never torn: one that has begun finds a free segment of 255 blocks in a full log, of which its
 * headers and the end of the segment before take less than half. A longer one goes on as a new command when the log is full. */
const WHOLE_COMMAND_BYTES = 512 << 10;

enum Outcome {
  RUNNING,
  /** The PC was told that it is done. */
  DONE,
  /** The PC was told that it failed, or ended it early, or the card has lost its power before it was safe: done up to some
   * sector, or not at all. */
  UNKNOWN,
}

interface WriteCommand {
  number: number;
  lba: number;
  count: number;
  outcome: Outcome;
  /** Sectors that are done at least, and at most. */
  min: number;
  max: number;
  /** The power went while it was under way, so it is there as a whole or not at all. */
  whole: boolean;
  acknowledgedUs: number;
  /** The generation that the card knew when it logged the write, with everything before it. */
  knew: number;
  /** The PC did not write this: an administrator did, and this generation holds it. */
  administrator: number;
  /** Which sectors the image server has received, once or more often. */
  received: Uint8Array | null;
  receivedCount: number;
}

/** An administrator's generation. */
interface Change {
  generation: number;
  number: number;
  /** What each sector was before. */
  before: Map<number, number>;
  learnt: boolean;
}

export class Checker implements StoreWatcher {
  generations = 0;
  #newestGeneration = 0;
  sectorsChecked = 0;
  powerCuts = 0;
  /** Writes that power cuts were allowed to take. */
  writesAtRisk = 0;
  readonly #world: World;
  readonly #sectors: number;
  /** By command number; 0 is the base image. */
  readonly #writes: WriteCommand[] = [];
  /** The command that each sector of the newest generation comes from. */
  readonly #image: Uint32Array;
  /** The command that the PC must see in each sector, but for those in `#maybe`. */
  readonly #shadow: Uint32Array;
  /** Unknown commands newer than the shadow's, the oldest first, by sector. */
  readonly #maybe = new Map<number, number[]>();
  /** Every command up to this one is settled in the newest generation. */
  #position = 0;
  /** The newest command that the PC was told to be done. */
  #newestDone = 0;
  /** Sectors that the PC wrote, was told so, and that are not in the newest generation. */
  #dirty = 0;
  readonly #isDirty: Uint8Array;
  /** The newest command that was done when the PC was last told that everything is safe. */
  #safe = 0;
  /** The card has made a generation. */
  onCommitted: () => void = () => {};
  /** May the image server refuse the card, because its store has damaged what it knows it by? Set by the run. */
  mayBeRefused: () => boolean = () => false;
  /** Sectors that the image server has and the card's log has lost, unless a command after this number has written them: the
   * card may show, and a plain image server may get again, what an earlier command had written. */
  readonly #loose = new Map<number, number>();
  /** A server that knows cards has told by then what is outdated. */
  #looseUntil = 0;
  readonly #serverKnowsCards: boolean;
  /** The card reports its lag since then; not while it starts. */
  #reportsSinceUs = Number.POSITIVE_INFINITY;
  /** Changes of administrators, the oldest first, since the card's base. */
  #changes: Change[] = [];
  /** What sectors were before the card learnt of their change: a command that was running then may still show it. */
  readonly #lately = new Map<number, number>();
  conflicts = 0;
  administrations = 0;
  /** When the connection that stands now began; infinite while there is none. */
  #connectedUs = Number.POSITIVE_INFINITY;
  readonly #point: AcknowledgementPoint;
  readonly #mark: Uint32Array;
  #markNumber = 0;

  /** `serverKnowsCards`: it tells the card which records it has committed. */
  constructor(world: World, sectors: number, point: AcknowledgementPoint, serverKnowsCards = false) {
    this.#world = world;
    this.#serverKnowsCards = serverKnowsCards;
    this.#point = point;
    this.#sectors = sectors;
    this.#image = new Uint32Array(sectors);
    this.#shadow = new Uint32Array(sectors);
    this.#mark = new Uint32Array(sectors);
    this.#isDirty = new Uint8Array(sectors);
    this.#writes.push(newWrite(0, 0, 0));
  }

  // What the PC does

  /** The PC issues a write; returns its number, which goes into every sector that it writes. */
  begin(lba: number, count: number): number {
    const number = this.#writes.length;
    this.#writes.push(newWrite(number, lba, count));
    return number;
  }

  // What administrators do

  /** An administrator is about to write; returns the number of the command that stands for it. */
  administrate(): number {
    const number = this.#writes.length;
    this.#writes.push({ ...newWrite(number, 0, 0), outcome: Outcome.UNKNOWN, administrator: -1 });
    return number;
  }

  administrated(generation: number, number: number, changed: Blocks): void {
    this.generations += 1;
    this.#newestGeneration = generation;
    this.administrations += 1;
    this.#writes[number].administrator = generation;
    const before = new Map<number, number>();
    for (const [block, bytes] of changed) {
      const words = wordsOf(bytes);
      for (let i = 0; i < BLOCK_SECTORS; i++) {
        const lba = block * BLOCK_SECTORS + i;
        if (lba >= this.#sectors || commandOf(words, i * WORDS, lba) !== number) continue;
        before.set(lba, this.#image[lba]);
        this.#setImage(lba, number);
      }
    }
    this.#changes.push({ generation, number, before, learnt: false });
    this.#world.trace('administrator', `generation ${generation}: write #${number}, ${before.size} sectors`);
  }

  #setImage(lba: number, number: number): void {
    this.#image[lba] = number;
    // What an administrator has changed after it was committed is not dirty, whichever of the two has the higher number.
    this.#setDirty(lba, this.#lags(lba) && this.#shadow[lba] > this.#position);
  }

  /** The link is up, or not. */
  connected(up: boolean): void {
    if (!up) this.#connectedUs = Number.POSITIVE_INFINITY;
    else if (this.#connectedUs === Number.POSITIVE_INFINITY) this.#connectedUs = this.#world.nowUs;
  }

  /** The card says that its clean blocks are right for this generation. */
  learnt(generation: number): void {
    if (this.#loose.size > 0 && this.#serverKnowsCards && generation >= this.#looseUntil) this.#loose.clear();
    for (const change of this.#changes) {
      if (change.learnt || change.generation > generation) continue;
      change.learnt = true;
      this.#world.trace('checker', `the card has learnt of generation ${change.generation}`);
      for (const lba of change.before.keys()) this.#learn(lba, change);
    }
  }

  #learn(lba: number, { number, generation, before }: Change): void {
    const shadow = this.#shadow[lba];
    const write = this.#writes[shadow];
    const isOpen = shadow > this.#position && write.administrator === 0;
    const isLater = write.acknowledgedUs >= this.#connectedUs || write.knew >= generation;
    if (isOpen && write.outcome === Outcome.DONE && !isLater) {
      throw new Violation(
        'O6',
        `generation ${generation} of an administrator and write #${shadow}, which was not committed, both changed sector ${lba}: no conflict was reported`,
      );
    }
    // Written after the card had looked at it.
    if (isOpen) return;
    // What may have been done before has been committed before, or has not been done.
    const held = before.get(lba)!;
    const settled = Math.max(this.#position, this.#writes[held].administrator === 0 ? held : 0);
    const maybe = this.#maybe.get(lba)?.filter((it) => it > settled) ?? [];
    if (maybe.length > 0) this.#maybe.set(lba, maybe);
    else this.#maybe.delete(lba);
    if (!this.#lately.has(lba)) this.#lately.set(lba, shadow);
    this.#setShadow(lba, number);
  }

  /** The PC begins its next command: whatever it shows from now on is what the card knows. */
  commandBegins(): void {
    this.#lately.clear();
  }

  conflict(base: number): void {
    this.conflicts += 1;
    this.#looseUntil = Math.min(this.#looseUntil, base);
    const undone = this.#changes.filter((change) => change.generation > base);
    this.#changes = this.#changes.filter((change) => change.generation <= base);
    this.#checkConflict(base, undone);
    for (const { before } of undone.reverse()) for (const [lba, number] of before) this.#setImage(lba, number);
  }

  /** Right only for a card whose superblock its store has lost: it looks like a copy. The run is over. */
  refused(base: number): void {
    if (!this.mayBeRefused())
      throw new Violation('O6', `the card is refused at generation ${base}, and nothing was lost`);
    this.#world.stop();
  }

  #checkConflict(base: number, undone: Change[]): void {
    const blocks = new Set<number>();
    for (const { before } of undone) for (const lba of before.keys()) blocks.add(Math.floor(lba / BLOCK_SECTORS));
    let real = false;
    for (let number = this.#position + 1; number < this.#writes.length && !real; number++) {
      const { lba, count, administrator } = this.#writes[number];
      if (administrator !== 0) continue;
      for (let block = Math.floor(lba / BLOCK_SECTORS); block * BLOCK_SECTORS < lba + count; block++)
        if (blocks.has(block)) real = true;
    }
    if (!real) {
      throw new Violation(
        'O6',
        `a conflict since generation ${base} was reported, but no write of the PC that is not committed meets what was changed`,
      );
    }
    if (undone.some(({ learnt }) => learnt))
      throw new Violation('O6', `the card was put on a branch from generation ${base}, and knew a later one`);
  }

  /** Is this what an administrator has made of the sector, and the card may or may not show it? */
  #mayShow(lba: number, number: number): boolean {
    if (this.#lately.get(lba) === number) return true;
    return this.#changes.some((change) => !change.learnt && change.number === number && change.before.has(lba));
  }

  /** The card has logged some of a write, and knew this generation then. */
  logged(number: number, generation: number): void {
    const write = this.#writes[number];
    if (write !== undefined) write.knew = Math.min(write.knew, generation);
  }

  /** The PC was told that the write is done. */
  acknowledged(number: number): void {
    const write = this.#writes[number];
    const needsServer = this.#point === 'remote-received' || this.#point === 'remote-stored';
    if (needsServer && write.receivedCount < write.count) {
      throw new Violation(
        'O1',
        `write #${number} was acknowledged, but the image server has received ${write.receivedCount} of its ${write.count} sectors`,
      );
    }
    if (write.max < write.count) {
      throw new Violation(
        'O2',
        `write #${number} was acknowledged, but a generation holds ${write.max} of its sectors`,
      );
    }
    if (this.#point === 'remote-stored' && number > this.#position) {
      throw new Violation('O1', `write #${number} was acknowledged, but no generation holds it`);
    }
    write.outcome = Outcome.DONE;
    write.min = write.count;
    write.acknowledgedUs = this.#world.nowUs;
    this.#newestDone = number;
    for (let lba = write.lba; lba < write.lba + write.count; lba++) {
      this.#maybe.delete(lba);
      // Committed long before the PC heard of it, changed by an administrator since, and the card has learnt of that.
      const shadow = this.#shadow[lba];
      const isChanged = number <= this.#position && shadow > number && shadow === this.#image[lba];
      if (!isChanged) this.#setShadow(lba, number);
    }
  }

  /** The PC was told that the write failed, or ended it early. */
  abandoned(number: number): void {
    const write = this.#writes[number];
    write.outcome = Outcome.UNKNOWN;
    for (let lba = write.lba; lba < write.lba + write.count; lba++) {
      const maybe = this.#maybe.get(lba);
      if (maybe === undefined) this.#maybe.set(lba, [number]);
      else maybe.push(number);
    }
  }

  /** The power went while the write was under way, and nobody had ended it: a card undoes what it has of it. */
  cutOff(number: number): void {
    const write = this.#writes[number];
    write.whole = write.count * SECTOR_SIZE <= WHOLE_COMMAND_BYTES;
    this.abandoned(number);
  }

  /** FLUSH CACHE was answered, or a write without write cache: everything that was done survives a power cut. */
  flushed(): void {
    this.#safe = this.#newestDone;
    const needsCommit = this.#point === 'remote-received' || this.#point === 'remote-stored';
    if (!needsCommit || this.#newestDone <= this.#position) return;
    throw new Violation(
      'O1',
      `a flush was answered at ${this.#point}, but no generation holds write #${this.#newestDone}, which was done before it`,
    );
  }

  /** The PC has read sectors from `lba` on. */
  read(lba: number, bytes: Uint8Array): void {
    const words = wordsOf(bytes);
    for (let at = 0; at < words.length; at += WORDS, lba++) this.#readSector(lba, words, at);
  }

  #readSector(lba: number, words: Uint32Array, at: number): void {
    this.sectorsChecked += 1;
    const number = commandOf(words, at, lba);
    if (this.#loose.size > 0 && this.#isLoose(lba, number) && this.#shadow[lba] <= this.#loose.get(lba)!) {
      if (!this.#isSome(number, words, at, lba)) this.#failRead(lba, words, at);
      return;
    }
    if (this.#changes.length > 0 && number !== this.#shadow[lba] && this.#mayShow(lba, number)) {
      if (!isSector(words, at, number, lba)) this.#failRead(lba, words, at);
      return;
    }
    if (this.#maybe.size > 0 && this.#maybe.has(lba)) this.#resolve(lba, number, words, at);
    else if (number !== this.#shadow[lba]) this.#failRead(lba, words, at);
    if (!isSector(words, at, number, lba)) this.#failRead(lba, words, at);
  }

  /** Is it whole, and what a command wrote there? */
  #isSome(number: number, words: Uint32Array, at: number, lba: number): boolean {
    const write = this.#writes[number];
    if (number < 0 || write === undefined || !isSector(words, at, number, lba)) return false;
    return number === 0 || write.administrator !== 0 || (lba >= write.lba && lba < write.lba + write.count);
  }

  /** May it be what this command, or an earlier one, has written? */
  #isLoose(lba: number, number: number): boolean {
    const newest = this.#loose.get(lba);
    return newest !== undefined && number <= newest;
  }

  #failRead(lba: number, words: Uint32Array, at: number): never {
    const maybe = this.#maybe.get(lba) ?? [];
    const expected = [this.#shadow[lba], ...maybe].map((number) =>
      number === 0 ? 'the base image' : `write #${number}`,
    );
    throw new Violation(
      'O7',
      `sector ${lba} was read as ${describeSector(words, at, lba)}, right is ${expected.join(' or ')}`,
    );
  }

  /** A sector of a write that may or may not have been done was seen. */
  #resolve(lba: number, seen: number, words: Uint32Array, at: number): void {
    const maybe = this.#maybe.get(lba)!;
    const place = maybe.indexOf(seen);
    if (place < 0 && seen !== this.#shadow[lba]) this.#failRead(lba, words, at);
    // The newer ones have not been done up to here; the one that was seen has.
    for (const number of maybe.slice(place + 1)) this.#narrow(number, lba, false);
    if (place >= 0) this.#narrow(seen, lba, true);
    this.#maybe.delete(lba);
    this.#setShadow(lba, seen);
  }

  #narrow(number: number, lba: number, done: boolean): void {
    const write = this.#writes[number];
    const index = lba - write.lba;
    if (done) write.min = Math.max(write.min, write.whole ? write.count : index + 1);
    else write.max = Math.min(write.max, write.whole ? 0 : index);
    if (write.min <= write.max) return;
    throw new Violation(
      write.whole ? 'O2' : 'O7',
      `write #${number} of sectors ${write.lba} to ${write.lba + write.count - 1} ended early, and now sector ${lba} shows ` +
        `${done ? 'its data' : 'older data'} although it was ${done ? '' : 'not '}cut off before`,
    );
  }

  /** The card has lost its power and comes back. What was acknowledged as `received` may be gone, unless it was flushed since;
   * what was acknowledged at any later point is there. */
  cardRestarted(): void {
    this.powerCuts += 1;
    this.#reportsSinceUs = Number.POSITIVE_INFINITY;
    this.#survivePowerCut();
  }

  /** The local store has lost the end of its log, by faults of its own: these commands, or what the image server does not have
   * of them, never happened. The card's clean blocks are right for `generation`. */
  truncated(lost: readonly LostCommand[], generation: number): void {
    for (const change of this.#changes) if (change.generation > generation) change.learnt = false;
    for (const { command, lbas } of lost) this.#lose(this.#writes[command], lbas);
    if (this.#serverKnowsCards) this.#looseUntil = this.#newestGeneration;
    this.#survivePowerCut();
  }

  #lose(write: WriteCommand, lbas: readonly number[]): void {
    this.#world.trace('checker', `the local store has lost write #${write.number}, ${lbas.length} sectors`);
    write.outcome = Outcome.UNKNOWN;
    for (const lba of lbas) {
      // Committed, or overwritten by something that is.
      if (write.number <= this.#position || this.#image[lba] === write.number)
        this.#loose.set(lba, Math.max(write.number, this.#loose.get(lba) ?? 0));
      else write.max = Math.min(write.max, write.whole ? 0 : lba - write.lba);
    }
    write.min = Math.min(write.min, write.max);
  }

  #survivePowerCut(): void {
    this.#shadow.set(this.#image);
    // What the card has not learnt of, it need not show.
    for (const { before, learnt } of [...this.#changes].reverse())
      if (!learnt) for (const [lba, number] of before) this.#shadow[lba] = number;
    this.#lately.clear();
    this.#maybe.clear();
    this.#dirty = 0;
    this.#isDirty.fill(0);
    this.#newestDone = this.#position;
    for (let number = this.#position + 1; number < this.#writes.length; number++) this.#survive(this.#writes[number]);
  }

  #survive(write: WriteCommand): void {
    if (write.administrator !== 0) return;
    const isSafe = this.#point !== 'received' || write.number <= this.#safe;
    if (write.outcome === Outcome.DONE && !isSafe) {
      this.writesAtRisk += 1;
      write.outcome = Outcome.UNKNOWN;
    }
    // What the PC was not told to be done may be undone, though it was seen: as with a disk's write cache.
    if (write.outcome === Outcome.UNKNOWN) write.min = this.#heldByImage(write);
    for (let i = 0; i < write.count; i++) {
      const lba = write.lba + i;
      if (write.outcome === Outcome.DONE) {
        this.#maybe.delete(lba);
        this.#setShadow(lba, write.number);
      } else if (i < write.max) {
        const maybe = this.#maybe.get(lba);
        if (maybe === undefined) this.#maybe.set(lba, [write.number]);
        else maybe.push(write.number);
      }
    }
    if (write.outcome === Outcome.DONE) this.#newestDone = write.number;
  }

  /** How far the newest generation holds the command. */
  #heldByImage({ number, lba, count, whole }: WriteCommand): number {
    let held = count;
    while (held > 0 && this.#image[lba + held - 1] !== number) held -= 1;
    return whole && held > 0 ? count : held;
  }

  /** The card has started and answers the PC: from now on its lag counts. */
  cardReady(): void {
    this.#reportsSinceUs = this.#world.nowUs;
  }

  #setShadow(lba: number, number: number): void {
    this.#shadow[lba] = number;
    this.#setDirty(lba, this.#lags(lba));
  }

  /** Has the PC written something there that is not in the newest generation? An administrator's change, which has a higher number than a
   * write that had begun before it, never counts. */
  #lags(lba: number): boolean {
    const shadow = this.#shadow[lba];
    return shadow > this.#image[lba] && this.#writes[shadow].administrator === 0;
  }

  #setDirty(lba: number, dirty: boolean): void {
    const now = dirty ? 1 : 0;
    this.#dirty += now - this.#isDirty[lba];
    this.#isDirty[lba] = now;
  }

  // What reaches the image server

  received(offset: number, data: Buffer): void {
    const words = alignedWords(data);
    let lba = offset / SECTOR_SIZE;
    if (!Number.isInteger(lba) || data.length % SECTOR_SIZE !== 0) {
      throw new Violation('O2', `the server received ${data.length} bytes at ${offset}: not whole sectors`);
    }
    for (let at = 0; at < words.length; at += WORDS, lba++) {
      const number = commandOf(words, at, lba);
      const write = number > 0 ? this.#writes[number] : undefined;
      if (write === undefined || lba < write.lba || lba >= write.lba + write.count) {
        throw new Violation('O2', `the server received for sector ${lba}: ${describeSector(words, at, lba)}`);
      }
      write.received ??= new Uint8Array(write.count);
      if (write.received[lba - write.lba] === 0) {
        write.received[lba - write.lba] = 1;
        write.receivedCount += 1;
      }
    }
  }

  committed(generation: number, changed: Blocks): void {
    this.generations += 1;
    this.#newestGeneration = generation;
    this.onCommitted();
    const newest = this.#newestIn(generation, changed);
    const held = this.#settle(generation, newest, changed);
    this.#compare(generation, changed);
    this.#advance(generation, newest, held);
    if (this.#world.tracing) {
      this.#world.trace('server', `generation ${generation}: writes up to #${this.#position}, ${changed.size} blocks`);
    }
  }

  /** The newest command of which the generation holds something. */
  #newestIn(generation: number, changed: Blocks): number {
    let newest = this.#position;
    for (const [block, bytes] of changed) {
      const words = wordsOf(bytes);
      for (let i = 0; i < BLOCK_SECTORS; i++) {
        const lba = block * BLOCK_SECTORS + i;
        if (lba >= this.#sectors) break;
        const number = commandOf(words, i * WORDS, lba);
        if (number < 0 || number >= this.#writes.length) this.#failGeneration(generation, lba, words, i * WORDS);
        if (number > newest && this.#writes[number].administrator === 0) newest = number;
      }
    }
    return newest;
  }

  #failGeneration(generation: number, lba: number, words: Uint32Array, at: number): never {
    throw new Violation(
      'O2',
      `generation ${generation}, sector ${lba}: ${describeSector(words, at, lba)}; before it was write #${this.#image[lba]}, ` +
        `the generation before holds the writes up to #${this.#position}`,
    );
  }

  /** Decides for every command up to the newest how much of it the generation must hold, and marks its sectors. Returns how
   * many sectors of the newest it holds. */
  #settle(generation: number, newest: number, changed: Blocks): number {
    this.#markNumber += 1;
    let held = this.#writes[newest].count;
    for (let number = newest; number > this.#position; number--) {
      const write = this.#writes[number];
      if (write.administrator !== 0) continue;
      const holds = this.#settleWrite(generation, newest, write, changed);
      if (number === newest) held = Math.min(holds, write.count);
    }
    return held;
  }

  #settleWrite(generation: number, newest: number, write: WriteCommand, changed: Blocks): number {
    let missing = write.count;
    for (let i = 0; i < write.count; i++) {
      const lba = write.lba + i;
      // A later command of this generation has overwritten it.
      if (this.#mark[lba] === this.#markNumber) continue;
      if (this.#writtenIn(changed, lba) !== write.number) {
        missing = Math.min(missing, i);
        continue;
      }
      if (i > missing) this.#failGap(generation, write, missing);
      write.min = Math.max(write.min, write.whole ? write.count : i + 1);
      this.#mark[lba] = this.#markNumber;
    }
    // The rest of a long command may come with the next generation, whatever the PC has been told, or has read, meanwhile.
    const mayBeSplit = write.number === newest && write.count * SECTOR_SIZE > WHOLE_COMMAND_BYTES;
    if (write.min > Math.min(missing, write.max) && !mayBeSplit) {
      this.#failGap(generation, write, Math.min(missing, write.max));
    }
    // What is not there although later data is will never be.
    if (write.number < newest) write.max = Math.min(write.max, write.whole && missing < write.count ? 0 : missing);
    return missing;
  }

  #failGap(generation: number, write: WriteCommand, index: number): never {
    const { number, lba, count } = write;
    throw new Violation(
      'O2',
      `generation ${generation} lacks sector ${lba + index} of write #${number} (${count} sectors from ${lba}), but holds later data`,
    );
  }

  #commandIn(changed: Blocks, lba: number): number {
    const block = changed.get(Math.floor(lba / BLOCK_SECTORS));
    if (block === undefined) return this.#image[lba];
    return commandOf(wordsOf(block), (lba % BLOCK_SECTORS) * WORDS, lba);
  }

  /** The command of the PC that has written the sector, whatever administrators have made of it since. */
  #writtenIn(changed: Blocks, lba: number): number {
    let number = this.#commandIn(changed, lba);
    if (number !== this.#image[lba]) return number;
    for (let i = this.#changes.length - 1; i >= 0; i--) {
      if (this.#changes[i].number === number) number = this.#changes[i].before.get(lba) ?? number;
    }
    return number;
  }

  /** Every sector that changed is what a command wrote that belongs there; every other is as before. */
  #compare(generation: number, changed: Blocks): void {
    for (const [block, bytes] of changed) {
      const words = wordsOf(bytes);
      for (let i = 0; i < BLOCK_SECTORS; i++) {
        const lba = block * BLOCK_SECTORS + i;
        if (lba >= this.#sectors) break;
        const number = commandOf(words, i * WORDS, lba);
        const before = this.#image[lba];
        const isNew = this.#mark[lba] === this.#markNumber;
        const isRight = isNew || number === before || (!this.#serverKnowsCards && this.#isLoose(lba, number));
        if (!isRight) this.#failGeneration(generation, lba, words, i * WORDS);
        if (!isSector(words, i * WORDS, number, lba)) this.#failGeneration(generation, lba, words, i * WORDS);
        if (number === before) continue;
        this.#image[lba] = number;
        this.#setDirty(lba, this.#lags(lba) && !this.#isLoose(lba, this.#shadow[lba]));
      }
    }
  }

  #advance(generation: number, newest: number, held: number): void {
    const last = this.#writes[newest];
    const torn = Math.min(last.min, held) < last.count && newest > this.#position;
    if (torn && last.outcome === Outcome.RUNNING && last.count * SECTOR_SIZE <= WHOLE_COMMAND_BYTES) {
      throw new Violation(
        'O2',
        `generation ${generation} ends inside write #${newest}: ${Math.min(last.min, held)} of ${last.count} sectors, and the command is still running`,
      );
    }
    // More of a command that ended early may come with the next generation.
    this.#position = Math.max(this.#position, torn ? newest - 1 : newest);
  }

  // What the card reports

  /** After every step of the firmware. */
  lag(bytes: number, epochs: number, ms: number): void {
    if (this.#dirty === 0 || this.#reportsSinceUs === Number.POSITIVE_INFINITY) return;
    const truth = this.#dirty * SECTOR_SIZE;
    if (bytes < truth) {
      throw new Violation(
        'O4',
        `the card reports a lag of ${bytes} bytes, ${truth} bytes are not in the newest generation`,
      );
    }
    if (epochs === 0) throw new Violation('O4', `the card reports no epoch in its lag of ${bytes} bytes`);
    const oldest = this.#oldestDirty();
    if (oldest === null) return;
    // One tick of the card's clock and one of rounding.
    const sinceUs = Math.max(oldest.acknowledgedUs, this.#reportsSinceUs);
    const truthMs = Math.floor((this.#world.nowUs - sinceUs) / MS) - 2;
    if (ms < truthMs) {
      throw new Violation(
        'O4',
        `the card reports a lag of ${ms} ms, write #${oldest.number} was acknowledged ${truthMs} ms ago and is in no generation`,
      );
    }
  }

  #oldestDirty(): WriteCommand | null {
    for (let number = this.#position + 1; number < this.#writes.length; number++) {
      if (this.#writes[number].outcome === Outcome.DONE) return this.#writes[number];
    }
    return null;
  }

  // The end

  /** Everything is drained: the image is what the PC sees. */
  drained(blocks: Blocks): void {
    for (let lba = 0; lba < this.#sectors; lba++) {
      const image = this.#image[lba];
      if (image === this.#shadow[lba] || this.#isLoose(lba, this.#shadow[lba]) || this.#maybe.get(lba)?.includes(image))
        continue;
      if (this.#changes.some((change) => !change.learnt && change.before.has(lba))) continue;
      throw new Violation(
        'O2',
        `the card reports no lag, but sector ${lba} of the image holds write #${image} and the PC's is #${this.#shadow[lba]}`,
      );
    }
    this.reopened(blocks);
  }

  reopened(blocks: Blocks): void {
    for (const [block, bytes] of blocks) {
      const words = wordsOf(bytes);
      for (let i = 0; i < BLOCK_SECTORS; i++) {
        const lba = block * BLOCK_SECTORS + i;
        if (lba >= this.#sectors || isSector(words, i * WORDS, this.#image[lba], lba)) continue;
        throw new Violation(
          'O2',
          `sector ${lba} of the image holds ${describeSector(words, i * WORDS, lba)}, it was committed as write #${this.#image[lba]}`,
        );
      }
    }
  }

  get writes(): number {
    return this.#writes.length - 1;
  }

  get position(): number {
    return this.#position;
  }

  /** Where commands wrote, the newest first. */
  writtenRanges(limit: number): { lba: number; count: number }[] {
    return this.#writes
      .slice(1)
      .filter(({ count }) => count > 0)
      .reverse()
      .slice(0, limit)
      .map(({ lba, count }) => ({ lba, count }));
  }
}

function newWrite(number: number, lba: number, count: number): WriteCommand {
  return {
    number,
    lba,
    count,
    outcome: Outcome.RUNNING,
    min: 0,
    max: count,
    whole: false,
    acknowledgedUs: 0,
    knew: Number.POSITIVE_INFINITY,
    administrator: 0,
    received: null,
    receivedCount: 0,
  };
}

let scratch = new Uint32Array(0);

/** Received bytes lie anywhere in the session's buffer. */
function alignedWords(data: Buffer): Uint32Array {
  if (data.byteOffset % 4 === 0) return wordsOf(data);
  if (scratch.length < data.length / 4) scratch = new Uint32Array(data.length / 4);
  const bytes = new Uint8Array(scratch.buffer, 0, data.length);
  bytes.set(data);
  return scratch.subarray(0, data.length / 4);
}
