// The switch between a QEMU card's port 0 and its network: it forwards, hears every frame, and may send the card any bytes as a frame.
// QEMU's stream network puts a big-endian length before each.
//
// The network behind it is QEMU's own user network, which does not stand what a card has to: nothing forged goes there.

import net from 'node:net';

/** The MAC's largest frame; QEMU takes nothing larger. */
export const FRAME_MAX = 16_383;

export class Switch {
  /** Every frame on its way to the card (from the network), or from it. */
  onFrame: (frame: Buffer, fromCard: boolean) => void = () => {};
  readonly #card = new Port((frame) => this.#forward(frame, true));
  readonly #uplink = new Port((frame) => this.#forward(frame, false));

  async listen(paths: { card: string; uplink: string }): Promise<void> {
    await this.#card.listen(paths.card);
    await this.#uplink.listen(paths.uplink);
  }

  /** Resolves once the frames so far are on their way to the card: a flood is limited by nothing else. */
  send(...frames: Uint8Array[]): Promise<void> {
    return this.#card.send(frames);
  }

  close(): void {
    this.#card.close();
    this.#uplink.close();
  }

  #forward(frame: Buffer, fromCard: boolean): void {
    this.onFrame(frame, fromCard);
    (fromCard ? this.#uplink : this.#card).write([frame]);
  }
}

class Port {
  readonly #onFrame: (frame: Buffer) => void;
  readonly #server = net.createServer((socket) => this.#take(socket));
  #socket: net.Socket | null = null;

  constructor(onFrame: (frame: Buffer) => void) {
    this.#onFrame = onFrame;
  }

  async listen(path: string): Promise<void> {
    await new Promise<void>((done) => this.#server.listen(path, done));
  }

  /** A port that nobody is connected to drops what is sent, as a switch does. True when there is room for more. */
  write(frames: Uint8Array[]): boolean {
    const socket = this.#socket;
    if (socket === null || socket.destroyed) return true;
    const parts: Uint8Array[] = [];
    for (const frame of frames) {
      const length = Buffer.alloc(4);
      length.writeUInt32BE(frame.length);
      parts.push(length, frame);
    }
    return socket.write(Buffer.concat(parts));
  }

  async send(frames: Uint8Array[]): Promise<void> {
    if (this.write(frames)) return;
    const socket = this.#socket;
    if (socket === null) return;
    await new Promise<void>((done) => {
      const over = (): void => {
        socket.off('drain', over);
        socket.off('close', over);
        done();
      };
      socket.on('drain', over);
      socket.on('close', over);
    });
  }

  close(): void {
    this.#socket?.destroy();
    this.#server.close();
  }

  #take(socket: net.Socket): void {
    this.#socket = socket;
    let pending = Buffer.alloc(0);
    socket.on('error', () => {});
    socket.on('data', (data) => {
      pending = pending.length === 0 ? Buffer.from(data) : Buffer.concat([pending, data]);
      let at = 0;
      while (pending.length - at >= 4) {
        const length = pending.readUInt32BE(at);
        if (pending.length - at - 4 < length) break;
        this.#onFrame(Buffer.from(pending.subarray(at + 4, at + 4 + length)));
        at += 4 + length;
      }
      pending = Buffer.from(pending.subarray(at));
    });
  }
}

export const ETHERTYPE_IPV4 = 0x0800;
export const ETHERTYPE_ARP = 0x0806;
export const PROTOCOL_ICMP = 1;
export const PROTOCOL_TCP = 6;
export const PROTOCOL_UDP = 17;

export function ethernet(target: Uint8Array, source: Uint8Array, type: number, payload: Uint8Array): Buffer {
  const head = Buffer.alloc(14);
  head.set(target, 0);
  head.set(source, 6);
  head.writeUInt16BE(type, 12);
  const frame = Buffer.concat([head, payload]);
  // Ethernet fills up to 60 bytes.
  return frame.length >= 60 ? frame : Buffer.concat([frame, Buffer.alloc(60 - frame.length)]);
}

export interface Ipv4 {
  source: Uint8Array;
  target: Uint8Array;
  protocol: number;
  payload: Uint8Array;
  identification?: number;
  /** Flags and offset in units of 8 bytes: 2000h is "more fragments". */
  fragment?: number;
}

export function ipv4({ source, target, protocol, payload, identification = 0, fragment = 0 }: Ipv4): Buffer {
  const head = Buffer.alloc(20);
  head[0] = 0x45;
  head.writeUInt16BE(20 + payload.length, 2);
  head.writeUInt16BE(identification, 4);
  head.writeUInt16BE(fragment, 6);
  head[8] = 64;
  head[9] = protocol;
  head.set(source, 12);
  head.set(target, 16);
  head.writeUInt16BE(internetChecksum(head), 10);
  return Buffer.concat([head, payload]);
}

export function udp(sourcePort: number, targetPort: number, payload: Uint8Array): Buffer {
  const head = Buffer.alloc(8); // a checksum of 0: none
  head.writeUInt16BE(sourcePort, 0);
  head.writeUInt16BE(targetPort, 2);
  head.writeUInt16BE(8 + payload.length, 4);
  return Buffer.concat([head, payload]);
}

export function echoRequest(sequence: number, payload: Uint8Array): Buffer {
  const message = Buffer.concat([Buffer.from([8, 0, 0, 0, 0x52, 0x42, sequence >> 8, sequence & 0xff]), payload]);
  message.writeUInt16BE(internetChecksum(message), 2);
  return message;
}

export function internetChecksum(bytes: Uint8Array): number {
  let sum = 0;
  for (let i = 0; i < bytes.length; i += 2) sum += (bytes[i] << 8) | (bytes[i + 1] ?? 0);
  while (sum > 0xffff) sum = (sum & 0xffff) + (sum >>> 16);
  return ~sum & 0xffff;
}
