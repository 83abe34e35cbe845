// A hostile network: the switch that carries the image server's connection sends malformed, fragmented, oversized and repeated frames to a card in
// QEMU, floods it, and forges what it hears, while the PC reads and writes through the same port. Invariants:
//   - the runtime does not fail, the firmware is not started again;
//   - what the PC reads is right, or an ATA error (forged frames may break the connection; TLS tells that they are forged);
//   - when it is quiet again, the card answers on the network and everything that the PC wrote is in the master image.

import assert from 'node:assert/strict';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, test } from 'node:test';
import { QemuCard } from '../../host/card/qemu.js';
import { DEFAULT_SETTINGS } from '../../host/card/settings.js';
import { Cable } from '../../host/front-end/cable.js';
import { buildQemuCard, FIRMWARE, qemuCard } from './builds.js';
import { IMAGE_NAME, pattern, TestImage } from './image.js';
import {
  ETHERTYPE_ARP,
  ETHERTYPE_IPV4,
  echoRequest,
  ethernet,
  FRAME_MAX,
  ipv4,
  PROTOCOL_ICMP,
  PROTOCOL_TCP,
  PROTOCOL_UDP,
  Switch,
  udp,
} from './lan.js';
import { AtaError, Command, Pc } from './pc.js';

const SEED = Number(process.env.RIBBON_SEED ?? 1);
const ROUNDS = process.env.RIBBON_LONG === '1' ? 20_000 : 400;
/** Frames of one round. */
const BURST = 25;
const FLOOD = 20_000;
const SECTORS = 65_536;
/** The first half is read, the second one written. */
const WRITE_FROM = SECTORS / 2;

const STATION = Buffer.from([0x02, 0, 0, 0, 0xba, 0xd1]);
const BROADCAST = Buffer.alloc(6, 0xff);
const STATION_ADDRESS = Buffer.from([10, 0, 2, 99]);

const folder = mkdtempSync(join(tmpdir(), 'ribbon-lan-'));
const image = new TestImage(SECTORS);
const expected = pattern(0, SECTORS);
const lan = new Switch();
const sockets = { card: join(folder, 'card'), uplink: join(folder, 'uplink') };
const log: string[] = [];
/** Frames that were heard on their way to the card, the newest last. */
const heard: Buffer[] = [];
let cardMac: Buffer = BROADCAST;
let cardAddress: Buffer = Buffer.from([10, 0, 2, 15]);
let gatewayMac: Buffer | null = null;
const echoes = new Set<number>();
let card: QemuCard;
let pc: Pc;

let state = (SEED * 2654435761) >>> 0 || 1;
function below(limit: number): number {
  state ^= state << 13;
  state ^= state >>> 17;
  state ^= state << 5;
  return (state >>> 0) % limit;
}
function bytes(length: number): Buffer {
  return Buffer.from(Array.from({ length }, () => below(256)));
}

function hear(frame: Buffer, fromCard: boolean): void {
  if (frame.length < 42) return;
  const isIpv4 = frame.readUInt16BE(12) === ETHERTYPE_IPV4;
  if (fromCard) {
    cardMac = Buffer.from(frame.subarray(6, 12));
    if (isIpv4 && frame[23] === PROTOCOL_ICMP && frame[34] === 0) echoes.add(frame.readUInt16BE(40));
  } else {
    if (isIpv4) gatewayMac = Buffer.from(frame.subarray(6, 12));
    heard.push(frame);
    if (heard.length > 64) heard.shift();
  }
}

const GENERATORS: (() => Buffer)[] = [
  function anything() {
    return bytes(1 + below(80)); // QEMU's stream stops for good at a frame without a byte
  },
  function anyLength() {
    return ethernet(
      cardMac,
      STATION,
      [ETHERTYPE_IPV4, ETHERTYPE_ARP, 0x8100, 0x86dd, below(65_536)][below(5)],
      bytes(below(1600)),
    );
  },
  function oversized() {
    const length = [1515, 1519, 1522, 1536, 1537, 2048, 4096, 9018, FRAME_MAX][below(9)];
    return Buffer.concat([ethernet(cardMac, STATION, ETHERTYPE_IPV4, Buffer.alloc(0)), Buffer.alloc(length)]).subarray(
      0,
      length,
    );
  },
  function forged() {
    if (heard.length === 0) return bytes(60);
    const frame = Buffer.from(heard[below(heard.length)]);
    for (let edits = 1 + below(3); edits > 0; edits--) {
      // Heads are where a parser can go wrong.
      const at = 12 + below(Math.min(frame.length - 12, 60));
      frame[at] = [frame[at] ^ (1 << below(8)), below(256), 0, 0xff][below(4)];
    }
    return below(4) === 0 ? frame.subarray(0, 14 + below(frame.length - 14)) : frame;
  },
  function wrongHeads() {
    const packet = ipv4({ ...toCard(), protocol: [1, 2, 6, 17, below(256)][below(5)], payload: bytes(below(64)) });
    if (below(2) === 0) packet[0] = below(256);
    if (below(2) === 0) packet.writeUInt16BE([0, 19, 20, packet.length + 1, 65_535][below(5)], 2);
    return ethernet(cardMac, STATION, ETHERTYPE_IPV4, packet);
  },
  function options() {
    const payload = Buffer.concat([bytes(40), bytes(below(100))]);
    const packet = ipv4({ ...toCard(), protocol: PROTOCOL_TCP, payload });
    packet[0] = 0x40 | (6 + below(10));
    return ethernet(cardMac, STATION, ETHERTYPE_IPV4, packet);
  },
  function fragment() {
    // Overlapping, out of order, never whole; some that end beyond 64 KiB.
    const offset = [below(8), below(200), 8189, 8191][below(4)];
    return ethernet(
      cardMac,
      STATION,
      ETHERTYPE_IPV4,
      ipv4({
        ...toCard(),
        protocol: [PROTOCOL_ICMP, PROTOCOL_UDP, PROTOCOL_TCP][below(3)],
        payload: bytes(8 * (1 + below(100)) + (below(4) === 0 ? below(8) : 0)),
        identification: below(6),
        fragment: (below(3) === 0 ? 0 : 0x2000) | offset,
      }),
    );
  },
  function segment() {
    // TCP with any flags, offsets and options, to the port that the card talks from as well.
    const segment = bytes(20 + below(60));
    const talking = heard.findLast((frame) => frame.length >= 54 && frame[23] === PROTOCOL_TCP);
    if (talking !== undefined && below(2) === 0) segment.set(talking.subarray(34, 46), 0);
    segment[12] = below(256);
    const source = talking !== undefined && below(2) === 0 ? Buffer.from(talking.subarray(26, 30)) : STATION_ADDRESS;
    return ethernet(
      cardMac,
      STATION,
      ETHERTYPE_IPV4,
      ipv4({ ...toCard(), source, protocol: PROTOCOL_TCP, payload: segment }),
    );
  },
  function dhcp() {
    // A reply with options that overrun, repeat, or have no length.
    const reply = Buffer.concat([
      Buffer.alloc(236),
      Buffer.from([99, 130, 83, 99, 53, 1, 2 + below(5)]),
      bytes(below(300)),
    ]);
    reply.set([2, 1, 6, 0], 0);
    reply.set(bytes(4), 4);
    reply.set(cardMac, 28);
    const packet = ipv4({
      source: STATION_ADDRESS,
      target: BROADCAST.subarray(0, 4),
      protocol: PROTOCOL_UDP,
      payload: udp(67, 68, reply),
    });
    return ethernet(below(2) === 0 ? BROADCAST : cardMac, STATION, ETHERTYPE_IPV4, packet);
  },
  function arp() {
    // Any operation from any address but the gateway's: who poisons that one takes the card off the network, which no card can help.
    const packet = Buffer.concat([
      Buffer.from([0, 1, 8, 0, 6, 4, 0, 1 + below(3)]),
      STATION,
      Buffer.from([10, 0, 2, 100 + below(100)]),
      bytes(6),
      cardAddress,
    ]);
    if (below(3) === 0) packet.set(bytes(4), 2);
    return ethernet(BROADCAST, STATION, ETHERTYPE_ARP, packet.subarray(0, below(4) === 0 ? below(28) : 28));
  },
  function ping() {
    return echo(below(65_536), below(1400));
  },
];

function toCard(): { source: Buffer; target: Buffer } {
  return { source: STATION_ADDRESS, target: cardAddress };
}

function echo(sequence: number, length: number): Buffer {
  const packet = ipv4({
    ...toCard(),
    protocol: PROTOCOL_ICMP,
    payload: echoRequest(sequence, Buffer.alloc(length, 0x5a)),
  });
  return ethernet(cardMac, STATION, ETHERTYPE_IPV4, packet);
}

/** Puts right what a forged ARP reply may have told the card, and tells it who this one is. */
function arpReply(mac: Buffer, address: Buffer): Buffer {
  return ethernet(
    cardMac,
    mac,
    ETHERTYPE_ARP,
    Buffer.concat([Buffer.from([0, 1, 8, 0, 6, 4, 0, 2]), mac, address, cardMac, cardAddress]),
  );
}

/** Reads blocks that were not read before, and writes, until `isOver`. Returns how many commands ended in an error. */
async function work(isOver: () => boolean): Promise<number> {
  let errors = 0;
  for (let lba = 1000; !isOver(); lba = (lba + 64) % WRITE_FROM) {
    try {
      assert.ok(
        (await pc.read(lba, 64, Command.READ_DMA_EXT)).equals(expected.subarray(lba * 512, (lba + 64) * 512)),
        `wrong data at ${lba}`,
      );
      const data = bytes(8 * 512);
      const target = WRITE_FROM + lba;
      await pc.write(target, data);
      expected.set(data, target * 512);
    } catch (error) {
      if (!(error instanceof AtaError)) throw error;
      errors++;
    }
  }
  return errors;
}

async function until(
  what: string,
  condition: () => boolean,
  everySoOften: () => Promise<void> = async () => {},
): Promise<void> {
  const deadline = Date.now() + 60_000;
  while (!condition()) {
    if (Date.now() > deadline) throw new Error(`${what} (RIBBON_SEED=${SEED}):\n${log.slice(-20).join('\n')}`);
    await everySoOften();
    await new Promise((done) => setTimeout(done, 50));
  }
}

/** The card answers on the network, and its disk does what a disk does. */
async function assertQuietCardWorks(): Promise<void> {
  echoes.clear();
  await until(
    'the card does not answer an echo request',
    () => echoes.has(4711),
    async () => {
      if (gatewayMac !== null) await lan.send(arpReply(gatewayMac, Buffer.from([10, 0, 2, 2])));
      await lan.send(arpReply(STATION, STATION_ADDRESS), echo(4711, 1000));
    },
  );
  await until('the image server is not reached', () => card.statistics().linkState === 'up');
  assert.deepEqual(
    log.filter((line) => line.startsWith('error:')),
    [],
    `RIBBON_SEED=${SEED}`,
  );
  assert.equal(log.filter((line) => line.includes('engine=aot')).length, 1, 'the firmware was started again');
}

before(async () => {
  await buildQemuCard('aot');
  lan.onFrame = hear;
  await lan.listen(sockets);
  card = new QemuCard({
    program: qemuCard('aot'),
    firmware: FIRMWARE,
    settings: { ...DEFAULT_SETTINGS, exportName: IMAGE_NAME, tls: true },
    path: await image.serveTcp({ tls: true }),
    lan: sockets,
  });
  card.onLog = (level, line) => log.push(`${level}: ${line}`);
  card.onCrash = (error) => {
    log.push(`error: ${error.message}`);
  };
  await card.start();
  pc = new Pc(new Cable([card.frontEnd]));
  await pc.ready();
  const address = /network 0: address=([\d.]+)/.exec(log.join('\n'));
  if (address !== null) cardAddress = Buffer.from(address[1].split('.').map(Number));
});

after(async () => {
  await card?.stop(0);
  lan.close();
  await image.close();
  rmSync(folder, { recursive: true, force: true });
});

test('the card answers an echo request of this switch', () => assertQuietCardWorks());

test(`${ROUNDS * BURST} malformed, fragmented, oversized and forged frames (RIBBON_SEED=${SEED})`, async (t) => {
  let over = false;
  const worked = work(() => over);
  for (let round = 0; round < ROUNDS; round++) {
    await lan.send(...Array.from({ length: BURST }, () => GENERATORS[below(GENERATORS.length)]()));
    await new Promise((done) => setTimeout(done, 5));
  }
  over = true;
  t.diagnostic(`commands with an error: ${await worked}`);
  await assertQuietCardWorks();
});

test(`a flood of ${FLOOD} frames overflows the receive ring; the card goes on`, async (t) => {
  const frames = Array.from({ length: 1000 }, (_, i) =>
    i % 100 !== 0
      ? ethernet(BROADCAST, STATION, 0x1234, Buffer.alloc(46))
      : ethernet(
          cardMac,
          STATION,
          ETHERTYPE_IPV4,
          ipv4({ ...toCard(), protocol: PROTOCOL_UDP, payload: udp(9, 9, Buffer.alloc(1400)) }),
        ),
  );
  const flood = async (): Promise<void> => {
    for (let sent = 0; sent < FLOOD; sent += frames.length) await lan.send(...frames);
  };
  // While the PC is idle the card has nothing to send that would start its receiver again by the way.
  await flood();
  await assertQuietCardWorks();
  await until('no flood, no test', () =>
    log.some((line) => /^warning: network 0: receive ring full \d+ times/.test(line)),
  );
  let over = false;
  const worked = work(() => over);
  await flood();
  over = true;
  t.diagnostic(`commands with an error: ${await worked}`);
  await assertQuietCardWorks();
});

test('what the PC wrote all the while is in the master image', async () => {
  assert.equal(await card.stop(60_000), 0);
  assert.ok(image.content().equals(expected));
});
