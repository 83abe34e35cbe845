// The port socket: any foreign program can be the PC, by a line protocol on a Unix socket (SPEC.md "Port socket").
//
// One request a line, one reply a request, in order; requests may be sent ahead. A reply is held back until the cards wait
// for the PC, so that a program that asks for Status in its next line sees what a PC would see much later: a card's real
// work is done then. A card that needs longer than SETTLE_TIMEOUT_MS for a command, or whose command is held, shows BSY.

import fs from 'node:fs';
import net from 'node:net';
import { Failure } from '../failure.js';
import type { Cable } from '../front-end/cable.js';
import type { FrontEnd } from '../front-end/front-end.js';
import { type AccessSize, ArrayMemory, PciIde } from './pci-ide.js';

export const GUEST_MEMORY_SIZE = 16 << 20;
export const LINE_SIZE_MAX = 16 << 10;
/** How long a reply waits for the cards. A read that misses takes a network round trip; an unreachable server takes longer
 * than any PC's patience, and the PC shall see that. */
const SETTLE_TIMEOUT_MS = 5_000;

const PCI_ADDRESS_PORT = 0xcf8;
const PCI_DATA_PORT = 0xcfc;
const PCI_ENABLE = 0x8000_0000;
/** Bus 0, device 1, function 1. */
const IDE_FUNCTION = (1 << 3) | 1;
const FLUSH_COMMANDS = [0xe7, 0xea];
const PORT_MAX = 0xffff;

const ACCESS_SIZES: Record<string, AccessSize> = { b: 1, w: 2, l: 4 };

/** What the client did wrong: the text of an ERR reply. */
class RequestError extends Error {}

export class PortSocket {
  /** Resolves when the client has gone. */
  readonly closed: Promise<void>;
  readonly #memory = new ArrayMemory(GUEST_MEMORY_SIZE);
  readonly #ide: PciIde;
  readonly #frontEnds: readonly FrontEnd[];
  readonly #server: net.Server;
  #client: net.Socket | null = null;
  #path = '';
  #input = '';
  #skipping = false;
  #requests: (string | RequestError)[] = [];
  #output = '';
  #working = false;
  #pciAddress = 0;
  /** A wait for the cards has run out: no reply waits again until they have answered. */
  #gaveUp = false;
  #answered: () => void = () => {};
  #endSettle: () => void = () => {};
  #ended = false;
  #resolveClosed!: () => void;

  constructor(cables: readonly Cable[], frontEnds: readonly FrontEnd[]) {
    this.closed = new Promise((resolve) => {
      this.#resolveClosed = resolve;
    });
    this.#frontEnds = frontEnds;
    this.#ide = new PciIde(cables, this.#memory);
    this.#ide.onInterrupt = (irq, level) => {
      this.#output += `IRQ ${level ? 'raise' : 'lower'} ${irq}\n`;
      if (!this.#working) this.#flush();
    };
    for (const cable of cables) cable.onAnswer = () => this.#answered();
    // A client may send all its requests, close its side, and read the replies.
    this.#server = net.createServer({ allowHalfOpen: true }, (socket) => this.#accept(socket));
  }

  /** Makes the socket appear, complete: a client that finds the file can connect. Throws a Failure when it cannot. */
  async listen(path: string): Promise<void> {
    const existing = fs.lstatSync(path, { throwIfNoEntry: false });
    if (existing !== undefined && !existing.isSocket()) {
      throw new Failure(`${path} exists and is not a socket: choose another path for --ports`);
    }
    const hidden = `${path}.${process.pid}`;
    await new Promise<void>((resolve, reject) => {
      this.#server.once('error', (error) => reject(new Failure(`cannot listen on ${path}: ${error.message}`)));
      this.#server.listen(hidden, resolve);
    });
    fs.renameSync(hidden, path);
    this.#path = path;
  }

  /** Ends the client's connection and removes the socket. */
  close(): void {
    this.#server.close();
    this.#client?.destroy();
    if (this.#path !== '') fs.rmSync(this.#path, { force: true });
    this.#path = '';
  }

  #accept(socket: net.Socket): void {
    if (this.#client !== null) {
      socket.end('ERR another program is this PC already\n');
      return;
    }
    this.#client = socket;
    socket.setEncoding('latin1');
    socket.on('data', (text: string) => this.#receive(text));
    socket.on('end', () => {
      this.#ended = true;
      if (!this.#working) socket.end();
    });
    socket.on('error', () => {});
    socket.on('close', () => {
      this.#requests = [];
      this.#endSettle();
      this.#resolveClosed();
    });
  }

  #receive(text: string): void {
    const lines = (this.#input + text).split('\n');
    this.#input = lines.pop() as string;
    for (const line of lines) {
      if (this.#skipping) this.#skipping = false;
      else this.#requests.push(line.length > LINE_SIZE_MAX ? tooLong() : line);
    }
    if (this.#input.length > LINE_SIZE_MAX) {
      if (!this.#skipping) this.#requests.push(tooLong());
      this.#skipping = true;
      this.#input = '';
    }
    if (!this.#working) void this.#work();
  }

  async #work(): Promise<void> {
    this.#working = true;
    for (let request = this.#requests.shift(); request !== undefined; request = this.#requests.shift()) {
      const reply = this.#answer(request);
      if (!this.#settled()) await this.#settle();
      this.#output += `${reply}\n`;
    }
    this.#working = false;
    this.#flush();
    if (this.#ended) this.#client?.end();
  }

  #flush(): void {
    if (this.#output !== '') this.#client?.write(this.#output, 'latin1');
    this.#output = '';
  }

  #settled(): boolean {
    const waiting = this.#frontEnds.every((frontEnd) => frontEnd.waiting);
    if (waiting) this.#gaveUp = false;
    return waiting || this.#gaveUp;
  }

  #settle(): Promise<void> {
    this.#flush();
    return new Promise((resolve) => {
      const done = (): void => {
        clearTimeout(timeout);
        this.#answered = this.#endSettle = () => {};
        resolve();
      };
      this.#endSettle = done;
      const timeout = setTimeout(() => {
        this.#gaveUp = true;
        done();
      }, SETTLE_TIMEOUT_MS);
      this.#answered = () => {
        // The card is in the middle of its step: it may go on with its next order.
        setImmediate(() => {
          if (this.#settled()) done();
        });
      };
    });
  }

  #answer(request: string | RequestError): string {
    try {
      if (request instanceof RequestError) throw request;
      const value = this.#execute(request.trim().split(/\s+/));
      return value === null ? 'OK' : `OK ${value}`;
    } catch (error) {
      if (error instanceof RequestError) return `ERR ${error.message}`;
      throw error;
    }
  }

  /** Carries a request out; returns what follows OK. */
  #execute(words: string[]): string | null {
    const [verb, ...parameters] = words;
    const port = /^(in|out)([bwl])$/.exec(verb);
    if (port !== null) {
      const size = ACCESS_SIZES[port[2]];
      if (port[1] === 'in') {
        const [number] = numbers(words, ['PORT']);
        return hex(this.#readPort(checkPort(number), size));
      }
      const [number, value] = numbers(words, ['PORT', 'VALUE']);
      if (value >= 2 ** (8 * size)) throw new RequestError(`${parameters[1]} has more than ${8 * size} bits`);
      this.#writePort(checkPort(number), size, value);
      return null;
    }
    switch (verb) {
      case 'read':
        return this.#readMemory(words);
      case 'write':
        return this.#writeMemory(words);
      case 'hold':
        if (parameters.length !== 1 || parameters[0] !== 'flush') throw new RequestError('usage: hold flush');
        for (const frontEnd of this.#frontEnds) frontEnd.hold(FLUSH_COMMANDS);
        return null;
      case 'release':
        if (parameters.length > 0) throw new RequestError('usage: release');
        for (const frontEnd of this.#frontEnds) frontEnd.release();
        return null;
      default:
        throw new RequestError(
          `unknown request "${verb.slice(0, 20)}": inb inw inl outb outw outl read write hold release`,
        );
    }
  }

  #readPort(port: number, size: AccessSize): number {
    if (port === PCI_ADDRESS_PORT && size === 4) return this.#pciAddress;
    const offset = this.#configOffset(port, size);
    return offset === null ? this.#ide.readPort(port, size) : this.#ide.readConfig(offset, size);
  }

  #writePort(port: number, size: AccessSize, value: number): void {
    if (port === PCI_ADDRESS_PORT && size === 4) {
      this.#pciAddress = (value & ~3) >>> 0;
      return;
    }
    const offset = this.#configOffset(port, size);
    if (offset === null) this.#ide.writePort(port, size, value);
    else this.#ide.writeConfig(offset, size, value);
  }

  /** The offset in our function's configuration space that an access to the configuration data port means; null when it
   * means something else. */
  #configOffset(port: number, size: AccessSize): number | null {
    const within = port - PCI_DATA_PORT;
    if (within < 0 || within + size > 4 || this.#pciAddress < PCI_ENABLE) return null;
    return ((this.#pciAddress >>> 8) & 0xffff) === IDE_FUNCTION ? (this.#pciAddress & 0xfc) + within : null;
  }

  #readMemory(words: string[]): string {
    const [address, length] = numbers(words, ['ADDR', 'LEN']);
    checkRange(address, length);
    return `0x${Buffer.from(this.#memory.bytes.buffer, address, length).toString('hex')}`;
  }

  #writeMemory(words: string[]): null {
    const data = /^0x((?:[0-9a-fA-F]{2})+)$/.exec(words[3] ?? '');
    const [address, length] = numbers(words.slice(0, 3), ['ADDR', 'LEN', '0xHEX']);
    if (data === null || words.length !== 4) throw new RequestError('usage: write ADDR LEN 0xHEX');
    checkRange(address, length);
    const bytes = Buffer.from(data[1], 'hex');
    if (bytes.length !== length) throw new RequestError(`LEN is ${length}, the data has ${bytes.length} bytes`);
    this.#memory.write(address, bytes);
    return null;
  }
}

function tooLong(): RequestError {
  return new RequestError(`a line has at most ${LINE_SIZE_MAX} bytes`);
}

/** The numbers after the verb, decimal or 0x…; a usage error when there are more or fewer than `names`. */
function numbers(words: string[], names: string[]): number[] {
  const given = words.slice(1);
  const needed = names.filter((name) => name !== '0xHEX').length;
  if (given.length !== needed) throw new RequestError(`usage: ${words[0]} ${names.join(' ')}`);
  return given.map((word) => {
    const value = /^(0[xX][0-9a-fA-F]{1,8}|[0-9]{1,10})$/.test(word) ? Number(word) : Number.NaN;
    if (!(value <= 0xffffffff)) throw new RequestError(`"${word.slice(0, 20)}" is not a number of at most 32 bits`);
    return value;
  });
}

function checkPort(port: number): number {
  if (port > PORT_MAX) throw new RequestError(`there is no port ${hex(port)}`);
  return port;
}

function checkRange(address: number, length: number): void {
  if (length === 0 || address + length > GUEST_MEMORY_SIZE) {
    throw new RequestError(`${length} bytes at ${hex(address)} are not in the memory, ${hex(GUEST_MEMORY_SIZE)} bytes`);
  }
}

function hex(value: number): string {
  return `0x${value.toString(16)}`;
}
