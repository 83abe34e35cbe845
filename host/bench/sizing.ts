// `ribbon bench sizing`: one image server with many cards: what an image, a connection and a commit cost, and how many commits a second
// there are when every card writes at once. The cards are a process of their own (sizing-cards.ts): sockets without a PC behind them.

import { type ChildProcess, fork } from 'node:child_process';
import fs from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import { Failure } from '../failure.js';
import { ImageServer } from '../server/server.js';
import { Store } from '../store/store.js';
import type { Benchmark, BenchOptions, Figure } from './report.js';
import { BLOCKS_PER_EPOCH, type CardsMessage, type CardsOrder } from './sizing-cards.js';

const MIB = 1024 * 1024;
const CARDS = 10_000;
const IMAGE_SIZE = 1024 * MIB;
const ROUNDS = 3;

const benchmark: Benchmark = {
  title: `one server, many cards, each with an image of its own (a clone); an epoch is ${BLOCKS_PER_EPOCH} random blocks of 4 KiB`,
  async run(options: BenchOptions, onProgress): Promise<Figure[]> {
    const cards = options.quick ? 1000 : CARDS;
    const folder = fs.mkdtempSync(path.join(os.tmpdir(), 'ribbon-sizing-'));
    const figures: Figure[] = [];
    const figure = (name: string, value: number, unit: string) => figures.push({ name, value, unit });
    let store = await Store.open(path.join(folder, 'store'));
    let child: ChildProcess | null = null;
    try {
      await makeMaster(store);
      onProgress(`${cards} clones`);
      const cloning = await seconds(async () => {
        for (let card = 0; card < cards; card++) await store.images.clone('master', null, imageOf(card));
      });
      figure('clone', (cloning / cards) * 1000, 'ms');
      await store.close();
      const before = memory();
      const opening = await seconds(async () => {
        store = await Store.open(path.join(folder, 'store'));
      });
      figure(`opening a store of ${cards} images`, opening, 's');
      const opened = memory();
      figure('memory of an image', (opened - before) / cards / 1024, 'KiB');
      const socket = path.join(folder, 'nbd.sock');
      const server = new ImageServer({
        exports: store,
        listen: [{ kind: 'unix', path: socket }],
        connectionsMax: cards + 1,
      });
      await server.listen();
      const script = path.join(import.meta.dirname, 'sizing-cards.js');
      child = fork(script, { stdio: ['ignore', 'inherit', 'inherit', 'ipc'] });
      const cardsDo = conversation(child);
      onProgress(`${cards} connections`);
      const connecting = await seconds(async () => {
        await cardsDo({ kind: 'connect', socket, cards });
      });
      figure('connections opened', cards / connecting, '/s');
      figure('memory of a connection and its export', (memory() - opened) / cards / 1024, 'KiB');
      const index = () => folderSize(path.join(folder, 'store/index'));
      const packs = () => folderSize(path.join(folder, 'store/packs'));
      const [indexBefore, packsBefore] = [index(), packs()];
      const rounds: CardsMessage[] = [];
      for (let round = 0; round < ROUNDS; round++) {
        onProgress(`round ${round + 1} of ${ROUNDS}`);
        rounds.push(await cardsDo({ kind: 'write' }));
      }
      const best = rounds.map(({ seconds: it }) => it).sort((a, b) => a - b)[Math.floor(ROUNDS / 2)];
      figure('commits, all cards at once, median round', cards / best, '/s');
      figure('the slowest card of that round waits', best, 's');
      figure('journal when the rounds are over', store.journal.bytes / MIB, 'MiB');
      figure('memory then', memory() / MIB, 'MiB');
      onProgress('digest');
      const digesting = await seconds(() => store.digestAll());
      const commits = cards * ROUNDS;
      figure('digest, for each card that has written', (digesting / cards) * 1000, 'ms');
      figure('packs for a commit', (packs() - packsBefore) / commits / 1024, 'KiB');
      figure('index for a commit', (index() - indexBefore) / commits / 1024, 'KiB');
      await cardsDo({ kind: 'close' });
      await server.close();
      return figures;
    } finally {
      child?.kill();
      await store.close();
      fs.rmSync(folder, { recursive: true, force: true });
    }
  },
};

export default benchmark;

export function imageOf(card: number): string {
  return `card-${card}`;
}

/** 64 MiB that do not compress, at the start of a disk that is empty otherwise. */
async function makeMaster(store: Store): Promise<void> {
  await store.images.create('master', IMAGE_SIZE);
  const opened = await store.open('master', { identity: 'bench', address: 'bench', tls: false });
  const { randomFillSync } = await import('node:crypto');
  const bytes = Buffer.alloc(MIB);
  for (let at = 0; at < 64; at++) await opened.write(at * MIB, randomFillSync(bytes));
  await opened.close(true);
  await store.digestAll();
}

function conversation(child: ChildProcess): (order: CardsOrder) => Promise<CardsMessage> {
  return (order) =>
    new Promise((resolve, reject) => {
      const ended = () => reject(new Failure('the process of the cards ended: see above'));
      child.once('exit', ended);
      child.once('message', (message) => {
        child.off('exit', ended);
        resolve(message as CardsMessage);
      });
      child.send(order);
    });
}

async function seconds(work: () => Promise<void>): Promise<number> {
  const begin = performance.now();
  await work();
  return (performance.now() - begin) / 1000;
}

/** Resident bytes of this process, which is the server. */
function memory(): number {
  (globalThis as { gc?: () => void }).gc?.();
  return process.memoryUsage().rss;
}

/** Bytes on the disk: LMDB's file has holes. */
function folderSize(folder: string): number {
  let size = 0;
  for (const name of fs.readdirSync(folder)) size += fs.statSync(path.join(folder, name)).blocks * 512;
  return size;
}
