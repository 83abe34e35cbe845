// The cards of `ribbon bench sizing`: a process with one NBD connection a card, as little as the protocol allows.

import crypto from 'node:crypto';
import net from 'node:net';

export type CardsOrder = { kind: 'connect'; socket: string; cards: number } | { kind: 'write' } | { kind: 'close' };
export interface CardsMessage {
  seconds: number;
}

export const BLOCKS_PER_EPOCH = 16;
const BLOCK = 4096;
const IMAGE_BLOCKS = 262_144;
/** Connections that are being opened at once. */
const CONNECTING_MAX = 200;
const REPLY = 16;

class Card {
  private expected = 0;
  private done: () => void = () => {};
  private readonly socket: net.Socket;

  private constructor(
    path: string,
    private readonly image: string,
  ) {
    this.socket = net.connect(path);
    this.socket.on('data', (bytes) => {
      this.expected -= bytes.length;
      if (this.expected <= 0) this.done();
    });
    this.socket.on('error', fail);
    this.socket.on('close', () => fail(new Error(`${image}: the server closed the connection`)));
  }

  static async open(path: string, image: string): Promise<Card> {
    const card = new Card(path, image);
    // Greeting; then flags (fixed newstyle, no zeroes) and NBD_OPT_EXPORT_NAME, answered by size and flags.
    await card.receive(18);
    const head = Buffer.from('0000000349484156454f50540000000100000000', 'hex');
    head.writeUInt32BE(card.image.length, 16);
    const answer = card.receive(10);
    card.socket.write(Buffer.concat([head, Buffer.from(card.image)]));
    await answer;
    return card;
  }

  private receive(count: number): Promise<void> {
    this.expected = count;
    return new Promise((resolve) => {
      this.done = resolve;
    });
  }

  /** An epoch: writes and a flush, sent at once. */
  async write(): Promise<void> {
    const answers = this.receive((BLOCKS_PER_EPOCH + 1) * REPLY);
    const parts: Buffer[] = [];
    for (let index = 0; index < BLOCKS_PER_EPOCH; index++) {
      parts.push(request(1, crypto.randomInt(IMAGE_BLOCKS) * BLOCK, BLOCK), crypto.randomBytes(BLOCK));
    }
    parts.push(request(3, 0, 0));
    this.socket.write(Buffer.concat(parts));
    await answers;
  }

  close(): void {
    this.socket.removeAllListeners('close');
    this.socket.end(request(2, 0, 0));
  }
}

function request(type: number, offset: number, length: number): Buffer {
  const bytes = Buffer.alloc(28);
  bytes.writeUInt32BE(0x25609513, 0);
  bytes.writeUInt16BE(type, 6);
  bytes.writeBigUInt64BE(BigInt(offset), 16);
  bytes.writeUInt32BE(length, 24);
  return bytes;
}

function fail(error: Error): void {
  process.stderr.write(`bench: a card failed: ${error.message}\n`);
  process.exit(1);
}

const cards: Card[] = [];

async function obey(order: CardsOrder): Promise<void> {
  if (order.kind === 'connect') {
    for (let first = 0; first < order.cards; first += CONNECTING_MAX) {
      const count = Math.min(CONNECTING_MAX, order.cards - first);
      cards.push(
        ...(await Promise.all(
          Array.from({ length: count }, (_, index) => Card.open(order.socket, `card-${first + index}`)),
        )),
      );
    }
  } else if (order.kind === 'write') {
    await Promise.all(cards.map((card) => card.write()));
  } else {
    for (const card of cards) card.close();
  }
}

if (process.send !== undefined) {
  process.on('message', (order: CardsOrder) => {
    const begin = performance.now();
    obey(order).then(() => process.send!({ seconds: (performance.now() - begin) / 1000 } satisfies CardsMessage), fail);
  });
}
