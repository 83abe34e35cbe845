// Runs a command in the shell of a booted PC over its serial console, and finds its output and exit status in what comes back.
//
// The console is a terminal with a line editor, an echo and a kernel that prints when it likes. So: the command travels in
// short lines of harmless characters, the terminal is told to leave output alone, kernel messages go elsewhere meanwhile,
// and the output lies between two marks that no echo can produce, as the shell puts them together only when it runs them.

import { randomBytes } from 'node:crypto';
import { Failure } from '../failure.js';

/** What a console offers: the PC's serial line. */
export interface SerialLine {
  onSerial: (bytes: Uint8Array) => void;
  sendSerial(bytes: Uint8Array): void;
}

/** A terminal's input queue holds 4096 bytes, a UART's FIFO 16, a line editor often 1023: short lines, each answered before
 * the next is sent. */
const LINE_SIZE = 512;
const PROBE_INTERVAL_MS = 500;
/** What a shell's prompt looks like at the end of the output. */
const PROMPT = /[#$%>] ?$/;
/** busybox asks the terminal where the cursor is after it has shown its prompt. */
const CURSOR_QUESTION = '\x1b[6n';
/** A shell without such a prompt is asked for after this much silence: a boot loader must not be disturbed by keys. */
const SILENCE_MS = 20_000;
const LINE_TIMEOUT_MS = 30_000;

export class GuestShell {
  readonly #line: SerialLine;
  #received = '';
  #wake: () => void = () => {};

  constructor(line: SerialLine) {
    this.#line = line;
    line.onSerial = (bytes) => {
      this.#received += Buffer.from(bytes).toString('latin1');
      this.#wake();
    };
  }

  /** Waits until a shell answers on the line. Throws a Failure with what the console shows when none does in time. */
  async ready(timeoutMs: number): Promise<void> {
    const deadline = Date.now() + timeoutMs;
    await this.#prompt(deadline);
    for (;;) {
      const mark = newMark();
      // Nobody may listen yet, and what was typed too early may come late: every probe has its own answer.
      this.#type(`echo ${split(mark)}`);
      if (await this.#find(mark, Math.min(deadline, Date.now() + PROBE_INTERVAL_MS))) break;
      if (Date.now() >= deadline) {
        throw new Failure(
          `no shell answered on the PC's serial console within ${timeoutMs / 1000} s; it shows:\n${this.#lastLines()}`,
        );
      }
    }
    // Echo and prompt would only be in the way, output is wanted as it is, and the console is not the kernel's now.
    await this.#command('stty -echo -opost 2>/dev/null; PS1= PS2=; echo 1 >/proc/sys/kernel/printk 2>/dev/null');
  }

  /** Runs `command`, gives its output (standard output and error) as it comes, and returns its exit status. */
  async run(command: string, onOutput: (bytes: Buffer) => void): Promise<number> {
    await this.#command('RIBBON_RUN=');
    for (const piece of encode(command)) await this.#command(`RIBBON_RUN=$RIBBON_RUN'${piece}'`);
    const begin = newMark();
    const end = newMark();
    this.#received = '';
    this.#type(
      `printf '%s\\n' ${split(begin)}; sh -c "$(printf '%b' "$RIBBON_RUN")" </dev/null 2>&1; ` +
        `printf '\\n%s %d\\n' ${split(end)} $?`,
    );
    await this.#find(`${begin}\n`, Number.POSITIVE_INFINITY);
    this.#received = this.#received.slice(this.#received.indexOf(`${begin}\n`) + begin.length + 1);
    return this.#collect(end, onOutput);
  }

  /** Resolves when it is time to ask for the shell. */
  async #prompt(deadline: number): Promise<void> {
    while (!PROMPT.test(this.#received.replace(CURSOR_QUESTION, ''))) {
      const before = this.#received.length;
      const silence = Math.min(deadline, Date.now() + SILENCE_MS);
      await this.#more(silence);
      if (this.#received.length === before && Date.now() >= silence) return;
    }
  }

  async #collect(end: string, onOutput: (bytes: Buffer) => void): Promise<number> {
    const pattern = new RegExp(`\\n${end} (\\d+)\\n`);
    for (;;) {
      const match = pattern.exec(this.#received);
      // Without the whole mark in sight, what may be its beginning is kept back.
      const ready = match === null ? this.#received.length - end.length - 8 : match.index;
      if (ready > 0) {
        onOutput(Buffer.from(this.#received.slice(0, ready), 'latin1'));
        this.#received = this.#received.slice(ready);
      }
      if (match !== null) return Number(match[1]);
      await this.#more(Number.POSITIVE_INFINITY);
    }
  }

  /** Runs a line and waits until it is over. */
  async #command(line: string): Promise<void> {
    const mark = newMark();
    this.#received = '';
    this.#type(`${line}; echo ${split(mark)}`);
    if (!(await this.#find(mark, Date.now() + LINE_TIMEOUT_MS))) {
      throw new Failure(`the PC's shell does not answer; its console shows:\n${this.#lastLines()}`);
    }
  }

  #type(line: string): void {
    this.#line.sendSerial(Buffer.from(`${line}\n`, 'latin1'));
  }

  async #find(text: string, deadline: number): Promise<boolean> {
    while (!this.#received.includes(text)) {
      if (Date.now() >= deadline) return false;
      await this.#more(deadline);
    }
    return true;
  }

  /** Resolves when more has come, or at the deadline. */
  #more(deadline: number): Promise<void> {
    return new Promise((resolve) => {
      const timeout = Number.isFinite(deadline) ? setTimeout(() => this.#wake(), deadline - Date.now()) : undefined;
      this.#wake = () => {
        clearTimeout(timeout);
        this.#wake = () => {};
        resolve();
      };
    });
  }

  #lastLines(): string {
    return this.#received.split('\n').slice(-10).join('\n');
  }
}

function newMark(): string {
  return `ribbon-${randomBytes(6).toString('hex')}`;
}

/** The mark as two words that the shell joins: an echo of the line does not contain the mark. */
function split(mark: string): string {
  return `${mark.slice(0, 4)}''${mark.slice(4)}`;
}

/** The command as pieces of text for `printf %b`: what is not plain is written in octal. */
function encode(command: string): string[] {
  const symbols = [...Buffer.from(command, 'utf8')].map((byte) =>
    /[A-Za-z0-9 ,./:=_-]/.test(String.fromCharCode(byte))
      ? String.fromCharCode(byte)
      : `\\0${byte.toString(8).padStart(3, '0')}`,
  );
  const pieces: string[] = [];
  let piece = '';
  for (const symbol of symbols) {
    if (piece.length + symbol.length > LINE_SIZE) {
      pieces.push(piece);
      piece = '';
    }
    piece += symbol;
  }
  pieces.push(piece);
  return pieces;
}
