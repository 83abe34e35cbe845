// Other NBD servers in the image server's place: what the PC writes through the card is in their file.

import assert from 'node:assert/strict';
import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { existsSync, mkdtempSync, readFileSync, rmSync, truncateSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { after, before, test } from 'node:test';
import { BM_INTERRUPT, COMMAND_BASE, DRDY, END_OF_TABLE, LBA, PortPc, REG } from './port-client.js';

const IMAGE_SIZE = 8 << 20;
const CMD_FLUSH = 0xe7;

const SERVERS: Record<string, (socket: string, file: string) => string[]> = {
  nbdkit: (socket, file) => ['nbdkit', '--foreground', '--unix', socket, 'file', file],
  'nbdkit without structured replies': (socket, file) => [
    'nbdkit',
    '--foreground',
    '--no-sr',
    '--unix',
    socket,
    'file',
    file,
  ],
  'qemu-nbd': (socket, file) => [
    'qemu-nbd',
    '--persistent',
    '--format=raw',
    '--export-name=disk',
    `--socket=${socket}`,
    file,
  ],
};

let folder: string;

before(() => {
  folder = mkdtempSync(path.join(tmpdir(), 'ribbon-servers-'));
});
after(() => rmSync(folder, { recursive: true, force: true }));

async function startServer(words: string[], socket: string): Promise<ChildProcess> {
  const child = spawn(words[0], words.slice(1), { stdio: 'inherit' });
  while (!existsSync(socket)) {
    assert.equal(child.exitCode, null, `${words[0]} has ended`);
    await new Promise((resolve) => setTimeout(resolve, 20));
  }
  return child;
}

for (const [name, command] of Object.entries(SERVERS)) {
  test(`a card on ${name}`, async () => {
    const file = path.join(folder, `${name}.img`);
    const socket = path.join(folder, `${name}.sock`);
    writeFileSync(file, '');
    truncateSync(file, IMAGE_SIZE);
    const server = await startServer(command(socket, file), socket);
    try {
      const pc = await PortPc.start(['--server', `unix:${socket}`, '--image0', 'disk']);
      await pc.enableIde();
      const data = Buffer.from(Array.from({ length: 65536 }, (_, i) => (i * 31 + (i >> 8)) & 0xff));
      const regions: [number, number][] = [[0x20_0000, END_OF_TABLE]];
      await pc.writeMemory(0x20_0000, data);
      assert.equal(await pc.dma({ command: 0xca, lba: 1000, sectors: 128, regions }), BM_INTERRUPT);
      await pc.do(`outb 0x1f6 ${LBA}`, `outb ${COMMAND_BASE + REG.command} ${CMD_FLUSH}`);
      assert.equal((await pc.status()) & 0xc9, DRDY);
      assert.deepEqual(readFileSync(file).subarray(512_000, 512_000 + 65_536), data);
      await pc.writeMemory(0x20_0000, Buffer.alloc(65536));
      assert.equal(await pc.dma({ command: 0xc8, lba: 1000, sectors: 128, regions }), BM_INTERRUPT);
      const read = await Promise.all(Array.from({ length: 8 }, (_, i) => pc.readMemory(0x20_0000 + i * 8192, 8192)));
      assert.deepEqual(Buffer.concat(read), data);
      assert.equal(await pc.stop(), 0, pc.errors.join(''));
    } finally {
      server.kill('SIGTERM');
      await once(server, 'exit');
    }
  });
}
