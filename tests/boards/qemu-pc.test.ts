// The whole of it: a PC boots from a card in QEMU, whose disk is an image of our own server, through TLS-PSK, lwIP and the Ethernet MAC, with an SD
// card as local store. Compiled code works through the tree of files while the cable is pulled and the image server is killed, then
// loses its SD card; wasm3 boots and works through the tree.

import assert from 'node:assert/strict';
import { type ChildProcess, spawn } from 'node:child_process';
import { randomBytes } from 'node:crypto';
import { once } from 'node:events';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, describe, test } from 'node:test';
import type { NetworkPath } from '../../host/card/network.js';
import { QemuCard } from '../../host/card/qemu.js';
import { DEFAULT_SETTINGS } from '../../host/card/settings.js';
import { Cable } from '../../host/front-end/cable.js';
import { GuestShell } from '../../host/pc/shell.js';
import { V86Pc } from '../../host/pc/v86.js';
import { buildDemoImage } from '../../tools/demo-image.js';
import { BOOT_TIMEOUT_MS, run } from '../pc/booted-pc.js';
import { RIBBON } from '../pc/port-client.js';
import { assertNoDiskMessages, assertTreesIn, FILES, writeTree } from '../pc/tree.js';
import { buildQemuCard, FIRMWARE, qemuCard } from './builds.js';
import { freePort } from './image.js';

const IMAGE = 'disk';
const IDENTITY = 'card';

/** Our image server, as a process that can be killed. */
class Server {
  readonly folder = mkdtempSync(join(tmpdir(), 'ribbon-qemu-pc-'));
  readonly store = join(this.folder, 'store');
  readonly #key = randomBytes(32);
  #port = 0;
  #process: ChildProcess | null = null;

  async start(): Promise<NetworkPath> {
    const config = join(this.folder, 'server.json');
    if (this.#port === 0) {
      this.#port = await freePort();
      const identities = { [IDENTITY]: { psk: this.#key.toString('hex'), rights: { [IMAGE]: 'write' } } };
      writeFileSync(config, JSON.stringify({ identities, tls: { required: true } }), { mode: 0o600 });
      await run(process.execPath, [
        RIBBON,
        'image',
        'import',
        IMAGE,
        await buildDemoImage(() => {}),
        '--store',
        this.store,
      ]);
    }
    const listen = `tcp:127.0.0.1:${this.#port}`;
    this.#process = spawn(
      process.execPath,
      [RIBBON, 'serve', '--store', this.store, '--config', config, '--listen', listen],
      {
        stdio: ['ignore', 'pipe', 'ignore'],
      },
    );
    if (this.#process.stdout !== null) await once(this.#process.stdout, 'data');
    return { address: { host: '127.0.0.1', port: this.#port }, tls: { identity: IDENTITY, key: this.#key } };
  }

  async kill(signal: NodeJS.Signals): Promise<void> {
    const child = this.#process;
    this.#process = null;
    if (child === null) return;
    child.kill(signal);
    if (child.exitCode === null && child.signalCode === null) await once(child, 'exit');
  }

  /** The master image as a raw file; the server is stopped. */
  async master(): Promise<string> {
    const file = join(this.folder, 'master.img');
    await run(process.execPath, [RIBBON, 'image', 'export', IMAGE, file, '--store', this.store]);
    return file;
  }
}

for (const engine of ['aot', 'wasm3'] as const) {
  describe(`a PC on a QEMU card, ${engine}, TLS-PSK, SD card`, { timeout: BOOT_TIMEOUT_MS }, () => {
    const server = new Server();
    const log: string[] = [];
    const biosLog: string[] = [];
    const sums: Record<string, string> = {};
    let card: QemuCard;
    let pc: V86Pc;
    let shell: GuestShell;

    const guest = async (command: string): Promise<{ output: string; status: number }> => {
      const parts: Buffer[] = [];
      const status = await shell.run(command, (bytes) => parts.push(bytes));
      return { output: Buffer.concat(parts).toString('utf8'), status };
    };
    const logged = async (wanted: RegExp, since = 0): Promise<void> => {
      const deadline = Date.now() + 60_000;
      while (!log.slice(since).some((line) => wanted.test(line))) {
        if (Date.now() > deadline) throw new Error(`no line matches ${wanted}:\n${log.join('\n')}`);
        await new Promise((done) => setTimeout(done, 20));
      }
    };

    before(async () => {
      await buildQemuCard(engine);
      card = new QemuCard({
        program: qemuCard(engine),
        firmware: FIRMWARE,
        settings: { ...DEFAULT_SETTINGS, exportName: IMAGE, tls: true, acknowledgementPoint: 'stored' },
        path: await server.start(),
        storeFile: join(server.folder, 'sd'),
      });
      card.onLog = (level, line) => log.push(`${level}: ${line}`);
      await card.start().catch((error: Error) => {
        throw new Error(`${error.message}\n${log.join('\n')}`);
      });
      pc = await V86Pc.create({ cables: [new Cable([card.frontEnd]), new Cable([])] });
      pc.onBiosLog = (line) => biosLog.push(line);
      shell = new GuestShell(pc);
      await pc.start();
      await shell.ready(BOOT_TIMEOUT_MS);
    });

    after(async () => {
      await pc?.stop();
      await card?.stop(0);
      await server.kill('SIGKILL');
      rmSync(server.folder, { recursive: true, force: true });
    });

    test('the BIOS boots from it, libata binds without a warning', async () => {
      assert.ok(
        log.some((line) => line.includes(`engine=${engine}`)),
        log.join('\n'),
      );
      assert.match(biosLog.join('\n'), /ata0-0: RIBBON VIRTUAL DISK ATA-6 Hard-Disk \(128 MiBytes\)/);
      assertNoDiskMessages((await guest('dmesg -r')).output);
      assert.equal(card.statistics().storeState, 'ready');
    });

    if (engine === 'wasm3') {
      test(`${FILES} files are written and read back, and are in the master image`, async () => {
        const { output, status } = await guest(writeTree('tree'));
        assert.equal(status, 0, output);
        await pc.stop();
        assert.equal(await card.stop(60_000), 0);
        await server.kill('SIGTERM');
        await assertTreesIn(await server.master(), server.folder, { tree: output });
      });
      return;
    }

    test(`${FILES} files are written and read back; meanwhile the cable is pulled, then the image server killed`, async () => {
      let since = log.length;
      const working = guest(writeTree('tree'));
      await card.setLink(0, false);
      await logged(/network 0: link down/, since);
      await card.setLink(0, true);
      await logged(/network 0: link up/, since);
      since = log.length;
      await server.kill('SIGKILL');
      await logged(/connection lost|server|closed/i, since);
      await server.start();
      const { output, status } = await working;
      assert.equal(status, 0, output);
      sums.tree = output;
      assertNoDiskMessages((await guest('dmesg -r')).output);
      await logged(/image server connected/, since);
    });

    test('the SD card is pulled: writes fail, no read is wrong; it is put back, and the disk is one again', async () => {
      // Nothing is mounted while this goes on: what the file system would do with its errors is not the question.
      const before = await guest('umount /data; sync; md5sum < /dev/sda1');
      assert.equal(before.status, 0, before.output);
      const since = log.length;
      await card.removeStore();
      await logged(/SD card: removed/, since);
      const write = await guest(
        'dd if=/dev/sda1 bs=512 count=8 skip=60000 of=/tmp/own 2>/dev/null; dd if=/tmp/own of=/dev/sda1 bs=512 seek=60000 conv=fsync 2>&1',
      );
      assert.notEqual(write.status, 0, `a write without an SD card was acknowledged: ${write.output}`);
      await card.insertStore();
      await logged(/SD card: blocks=/, since);
      const back = await guest(
        'echo 3 > /proc/sys/vm/drop_caches; for i in 1 2 3 4 5; do md5sum < /dev/sda1 && break; sleep 1; done 2>/dev/null',
      );
      assert.equal(back.output.trim().split('\n').at(-1), before.output.trim().split('\n').at(-1), back.output);
    });

    test('with the PC off the master image is a clean file system with the same files', async () => {
      await pc.stop();
      await card.cutPower(); // and on again: what the local store still has reaches the server
      await card.start();
      assert.equal(await card.stop(60_000), 0, log.slice(-20).join('\n'));
      await server.kill('SIGTERM');
      await assertTreesIn(await server.master(), server.folder, sums);
    });
  });
}
