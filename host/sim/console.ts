// The terminal of `ribbon sim`: the PC's serial console, as raw as the terminal allows, over a status line.
//
// Ctrl-C switches everything off, cleanly. Ctrl-] begins a key for this program: c sends Ctrl-C to the PC, Ctrl-] itself; the
// others are the events' own.
// Without a terminal, standard input is typed into the PC and standard output shows its console.

import { StatusLine } from './status-line.js';

export interface ConsolePc {
  onSerial: (bytes: Uint8Array) => void;
  sendSerial(bytes: Uint8Array): void;
}

export interface ConsoleEvents {
  /** The text of the status line. */
  status: () => string;
  onPowerOff: () => void;
  /** What a key after Ctrl-] does, by letter, and what to tell about it. */
  keys: Record<string, { help: string; press: () => void }>;
}

const CTRL_C = 0x03;
const ESCAPE_KEY = 0x1d; // Ctrl-]
const ROWS_MIN = 4;
/** The UART has no flow control: what is pasted or piped in goes out in pieces that a guest can take. */
const PIECE_SIZE = 256;
const PIECE_INTERVAL_MS = 20;

export class Console {
  readonly #pc: ConsolePc;
  readonly #events: ConsoleEvents;
  readonly #statusLine: StatusLine | null;
  readonly #isRaw: boolean;
  #escaped = false;
  #typed: Buffer = Buffer.alloc(0);
  #timer: NodeJS.Timeout | null = null;
  readonly #onInput = (bytes: Buffer): void => this.#take(bytes);

  constructor(pc: ConsolePc, events: ConsoleEvents) {
    this.#pc = pc;
    this.#events = events;
    this.#isRaw = process.stdin.isTTY === true;
    const hasStatus = process.stdout.isTTY === true && process.stdout.rows >= ROWS_MIN;
    this.#statusLine = hasStatus ? new StatusLine(process.stdout, events.status) : null;
  }

  start(): void {
    if (this.#isRaw) process.stdin.setRawMode(true);
    process.stdin.on('data', this.#onInput);
    this.#pc.onSerial = (bytes) => process.stdout.write(bytes);
    const keys = Object.entries(this.#events.keys).map(([key, { help }]) => `Ctrl-] ${key} ${help}`);
    const own = 'Ctrl-C switches the PC off (Ctrl-] c sends it to the PC)';
    if (this.#isRaw) this.message([own, ...keys].join('; '));
    this.#statusLine?.start();
  }

  stop(): void {
    this.#pc.onSerial = () => {};
    this.#statusLine?.stop();
    if (this.#timer !== null) clearInterval(this.#timer);
    process.stdin.off('data', this.#onInput);
    process.stdin.pause();
    if (this.#isRaw) process.stdin.setRawMode(false);
  }

  /** A line for the person at the terminal, between the PC's. */
  message(text: string): void {
    const end = this.#isRaw ? '\r\n' : '\n';
    process.stderr.write(`ribbon: ${text.replaceAll('\n', end)}${end}`);
  }

  #take(bytes: Buffer): void {
    if (!this.#isRaw) {
      this.#type(bytes);
      return;
    }
    const typed: number[] = [];
    for (const byte of bytes) {
      if (this.#escaped) {
        this.#escaped = false;
        if (byte === 0x63) typed.push(CTRL_C);
        else if (byte === ESCAPE_KEY) typed.push(ESCAPE_KEY);
        else this.#events.keys[String.fromCharCode(byte)]?.press();
      } else if (byte === ESCAPE_KEY) this.#escaped = true;
      else if (byte === CTRL_C) this.#events.onPowerOff();
      else typed.push(byte);
    }
    this.#type(Buffer.from(typed));
  }

  #type(bytes: Buffer): void {
    this.#typed = Buffer.concat([this.#typed, bytes]);
    if (this.#timer !== null) return;
    this.#typePiece();
    if (this.#typed.length > 0) this.#timer = setInterval(() => this.#typePiece(), PIECE_INTERVAL_MS);
  }

  #typePiece(): void {
    this.#pc.sendSerial(this.#typed.subarray(0, PIECE_SIZE));
    this.#typed = this.#typed.subarray(PIECE_SIZE);
    if (this.#typed.length > 0 || this.#timer === null) return;
    clearInterval(this.#timer);
    this.#timer = null;
  }
}
