// A card in QEMU: boards/zynq on the machine xilinx-zynq-a9, its DDR a file that this process plays the front end on, its
// second UART the doorbell (SPEC.md "Doorbells").

import { spawnSync } from 'node:child_process';
import { randomBytes } from 'node:crypto';
import { existsSync, readFileSync, statSync, writeFileSync } from 'node:fs';
import net from 'node:net';
import { join } from 'node:path';
import { Failure } from '../failure.js';
import { encodeFirmwarePackage, makeFirmwareKey } from './firmware-package.js';
import { buildFlashImage } from './flash-image.js';
import type { NetworkPath } from './network.js';
import { qmp } from './qmp.js';
import { encodePath, type Launch, RemoteCard, type RemoteCardOptions } from './remote.js';
import { encodeSettings } from './settings.js';

/** Where boards/zynq/zynq.ld puts SHARED, and its end of memory for the board that QEMU plays. */
const SHARED_OFFSET = 0x01000000;
export const QEMU_DDR_MEGABYTES = 64;
/** An emulated card boots and takes an address by DHCP: 1 s on an idle machine. */
const START_TIMEOUT_MS = 60_000;
/** What QEMU's user network calls the machine that it runs on. */
const GATEWAYS = ['10.0.2.2', '10.0.3.2'];

export interface QemuCardOptions extends RemoteCardOptions {
  /** The runtime, as `npm run build:board` makes it: build/boards/ribbon-card-qemu.elf. */
  program: string;
  /** A second firmware image, tried when the first one cannot run. */
  fallbackFirmware?: string;
  /** Further lines of SPEC.md "Network paths": other paths, how the Ethernet ports get their addresses. */
  networkLines?: string[];
  /** Two unix sockets that QEMU connects to, the card's port 0 to one and the network that it is otherwise on to the other: who listens
   * there is the switch between them (tests/boards/lan.ts). */
  lan?: { card: string; uplink: string };
  /** Further arguments of QEMU: for tests. */
  qemuArguments?: string[];
  /** Changes the flash before the card is switched on for the first time: for tests of damage. */
  prepareFlash?: (flash: Buffer) => void;
  /** Counts instructions instead of time: `-icount shift=0`. */
  countInstructions?: boolean;
}

export class QemuCard extends RemoteCard {
  readonly #options: QemuCardOptions;
  #relay: net.Server | null = null;

  constructor(options: QemuCardOptions) {
    if (!existsSync(options.program)) {
      throw new Failure(`the QEMU card is not built (${options.program}): run "npm run build:board"`);
    }
    super(options);
    this.#options = options;
  }

  get #qmpSocket(): string {
    return join(this.folder, 'qmp');
  }

  /** Pulls the Ethernet cable out of port 0 or 1, or puts it back. */
  async setLink(port: 0 | 1, up: boolean): Promise<void> {
    await qmp(this.#qmpSocket, 'set_link', { name: `n${port}`, up });
  }

  /** Pulls the SD card out. */
  async removeStore(): Promise<void> {
    await qmp(this.#qmpSocket, 'eject', { device: 'card0', force: true });
  }

  /** Puts the SD card back, or another one in: a file whose size is a power of two. */
  async insertStore(file = this.storeFile()): Promise<void> {
    await qmp(this.#qmpSocket, 'blockdev-change-medium', { device: 'card0', filename: file, format: 'raw' });
  }

  protected override async prepare(): Promise<Launch> {
    const options = this.#options;
    const file = (name: string): string => join(this.folder, name);
    if (!existsSync(file('flash'))) {
      const flash = await this.#flash();
      options.prepareFlash?.(flash);
      writeFileSync(file('flash'), flash, { mode: 0o600 });
    }
    const sd = this.storeFile();
    const size = statSync(sd).size;
    if (size === 0 || (size & (size - 1)) !== 0) {
      throw new Failure(`the SD card image ${sd} has ${size} bytes; it must be a power of two`);
    }
    return {
      command: 'qemu-system-arm',
      arguments: [
        ...['-M', 'xilinx-zynq-a9,memory-backend=ddr', '-nodefaults', '-display', 'none', '-monitor', 'none'],
        ...['-object', `memory-backend-file,id=ddr,size=${QEMU_DDR_MEGABYTES}M,mem-path=${file('ddr')},share=on`],
        ...['-kernel', options.program, '-serial', 'stdio'],
        ...['-serial', `unix:${file('doorbell')},server=on,wait=off`],
        ...['-drive', `if=sd,index=0,file=${sd},format=raw,id=card0,aio=${asynchronousIo(sd)}`],
        ...['-drive', `if=mtd,index=8,file=${file('flash')},format=raw`],
        ...(options.lan === undefined ? ['-netdev', 'user,id=n0'] : switched(options.lan)),
        ...['-netdev', 'user,id=n1,net=10.0.3.0/24'],
        ...[0, 1].flatMap((port) => ['-net', `nic,model=cadence_gem,netdev=n${port}`]),
        ...['-qmp', `unix:${this.#qmpSocket},server=on,wait=off`],
        ...(options.countInstructions ? ['-icount', 'shift=0'] : []),
        ...(options.qemuArguments ?? []),
      ],
      memoryFile: file('ddr'),
      headOffset: SHARED_OFFSET,
      doorbell: file('doorbell'),
      startTimeoutMs: START_TIMEOUT_MS,
    };
  }

  override async stop(timeoutMs?: number): Promise<number> {
    const left = await super.stop(timeoutMs);
    this.#relay?.close();
    this.#relay = null;
    return left;
  }

  async #flash(): Promise<Buffer> {
    const options = this.#options;
    const firmwares = [options.firmware, options.fallbackFirmware].filter((name) => name !== undefined);
    const ethernetAddress = randomBytes(6);
    ethernetAddress[0] = 0x02; // given locally
    // A key for this card alone: who makes the flash is who may say what runs.
    const { privateKey, publicKey } = makeFirmwareKey();
    return buildFlashImage({
      settings: encodeSettings(options.settings),
      network: `${await encodePath(await this.#guestPath(options.path), GATEWAYS[0])}${(options.networkLines ?? []).join('\n')}\n`,
      ethernetAddress,
      firmwareKeys: [publicKey],
      firmwares: firmwares.map((name, i) =>
        encodeFirmwarePackage(firmwares.length - i, readFileSync(name), privateKey),
      ),
    });
  }

  /** The path as the guest sees it: a port of this machine. A unix socket is given a port on loopback. */
  async #guestPath(path: NetworkPath): Promise<NetworkPath> {
    const { address } = path;
    if (!('path' in address)) return path;
    const relay = net.createServer((socket) => {
      const upstream = net.connect(address.path);
      socket.pipe(upstream).pipe(socket);
      for (const end of [socket, upstream]) {
        end.on('error', () => {
          socket.destroy();
          upstream.destroy();
        });
      }
    });
    await new Promise<void>((done) => relay.listen(0, '127.0.0.1', done));
    this.#relay = relay;
    return { ...path, address: { host: '127.0.0.1', port: (relay.address() as net.AddressInfo).port } };
  }
}

let hasIoUring: boolean | null = null;

/** QEMU's SD card writes each 512 bytes by themselves and waits for them: with io_uring that costs 15 us, with a thread of its own three
 * times as much. Not every kernel lets it be used. */
function asynchronousIo(file: string): 'io_uring' | 'threads' {
  hasIoUring ??=
    spawnSync('qemu-img', ['info', '--force-share', '--image-opts', `driver=file,filename=${file},aio=io_uring`])
      .status === 0;
  return hasIoUring ? 'io_uring' : 'threads';
}

/** Port 0 at one socket, the user network at the other. */
function switched(lan: { card: string; uplink: string }): string[] {
  const stream = (id: string, path: string): string => `stream,id=${id},server=off,addr.type=unix,addr.path=${path}`;
  return [
    ...['-netdev', stream('n0', lan.card), '-netdev', stream('uplink', lan.uplink), '-netdev', 'user,id=lan'],
    ...['-netdev', 'hubport,id=lan0,hubid=0,netdev=lan', '-netdev', 'hubport,id=lan1,hubid=0,netdev=uplink'],
  ];
}
