// `ribbon image`: the master images of a store, directly or through the server that holds it.

import os from 'node:os';
import path from 'node:path';
import { SingleBar } from 'cli-progress';
import type { Command } from 'commander';
import { Failure } from '../failure.js';
import { connectControl } from '../server/control.js';
import type { ReplicaReport } from '../server/replica-client.js';
import { type AdminOperations, type AdminProgress, adminOperations } from '../store/admin.js';
import type { FilesDiff } from '../store/diff-files.js';
import { FORMATS, formatOfName } from '../store/qemu-img.js';
import { DEFAULT_RETENTION } from '../store/retention.js';
import { Store } from '../store/store.js';
import { attachImage } from './image-attach.js';
import { DEFAULT_STORE } from './serve.js';
import * as verifyPrefix from './verify-prefix.js';

interface Options {
  store: string;
  json?: boolean;
}

type Work = (admin: AdminOperations, args: string[], options: Options & Record<string, unknown>) => Promise<void>;

export function register(program: Command): void {
  const image = program.command('image').description('master images: their generations, branches, copies and upkeep');
  const verb = (synopsis: string, description: string, work: Work): Command => {
    const [name, ...args] = synopsis.split(' ');
    const command = image
      .command(name)
      .description(description)
      .option('--store <folder>', 'the image store', DEFAULT_STORE);
    for (const argument of args) command.argument(argument);
    command.action(async (...values: unknown[]) => {
      const options = values[args.length] as Options & Record<string, unknown>;
      await withAdmin(options, (admin) => work(admin, (values.slice(0, args.length) as string[]).flat(), options));
    });
    return command;
  };
  verb('ls', 'list images and branches', async (admin, _args, options) => {
    const lines = await admin.ls();
    if (options.json) print(JSON.stringify(lines, null, 2));
    else {
      table(
        ['image', 'size', 'generation', 'tags', 'origin', 'in use by'],
        lines.map((it) => [
          it.name,
          String(it.size),
          `@${it.generation}`,
          Object.entries(it.tags)
            .map(([tag, generation]) => `${tag}=@${generation}`)
            .join(' '),
          it.origin === null ? '' : `${it.origin.line ?? '(removed)'}@${it.origin.generation}`,
          [it.writer === null ? '' : `writer ${it.writer}`, it.readers > 0 ? `${it.readers} readers` : '']
            .filter(Boolean)
            .join(', '),
        ]),
      );
    }
  }).option('--json', 'as JSON');
  verb('create <name> <size>', 'make an empty image; SIZE in bytes, or with K, M, G, T', (admin, [name, size]) =>
    admin.create(name, parseSize(size)),
  );
  verb(
    'import <name> <file>',
    'make a disk image file an image; the same command goes on with an import that was cut short',
    (admin, [name, file], { format }) => admin.import(name, path.resolve(file), (format as string | undefined) ?? null),
  ).option('--format <format>', `${Object.keys(FORMATS).join(', ')}; default: what the file begins with`);
  verb(
    'export <image> <file>',
    'write IMAGE[/BRANCH][@GENERATION] to a file, sparse; the same command goes on with an export that was cut short',
    (admin, [name, file], { format }) =>
      admin.export(name, path.resolve(file), (format as string | undefined) ?? formatOfName(file)),
  ).option('--format <format>', `${Object.keys(FORMATS).join(', ')}; default: as the file's name ends, else raw`);
  verb('clone <image> <name>', 'a new image that begins as IMAGE[@GENERATION]; costs no space', (admin, [from, name]) =>
    admin.clone(from, name),
  );
  verb('branch <image> <name>', 'a branch IMAGE/NAME that begins as IMAGE[@GENERATION]', (admin, [from, name]) =>
    admin.branch(from, name),
  );
  verb('snapshot <image> <tag>', 'give IMAGE[@GENERATION] a name; it is kept for ever', (admin, [name, tag]) =>
    admin.snapshot(name, tag),
  );
  verb('untag <image> <tag>', 'take the name away again', (admin, [name, tag]) => admin.untag(name, tag));
  verb('log <image>', 'the generations that are kept, newest first', async (admin, [name], options) => {
    const generations = (await admin.log(name)).reverse();
    if (options.json) print(JSON.stringify(generations, null, 2));
    else {
      table(
        ['generation', 'time', 'who', 'why', 'blocks', 'card and record'],
        generations.map((it) => [
          it.from === it.generation ? `@${it.generation}` : `@${it.generation} (from ${it.from})`,
          new Date(it.timeMs).toISOString(),
          it.who,
          it.why,
          String(it.changedBlocks),
          it.card === undefined ? '' : `${it.card.card} ${it.card.upTo}`,
        ]),
      );
    }
  }).option('--json', 'as JSON');
  verb(
    'cards <image>',
    'the cards that write to IMAGE, how far they are, conflicts',
    async (admin, [name], options) => {
      const cards = Object.entries(await admin.cards(name));
      if (options.json) print(JSON.stringify(Object.fromEntries(cards), null, 2));
      else {
        table(
          ['card', 'committed record', 'as', 'last seen', 'state'],
          cards.map(([card, it]) => [
            card,
            String(it.upTo),
            it.generation === 0 ? '' : `@${it.generation}`,
            new Date(it.seenMs).toISOString(),
            it.refused !== undefined
              ? `conflict: refused, ${it.refused.verdict === 'older' ? 'it knows more than this server' : 'its store is a copy'}`
              : it.branch !== undefined
                ? `conflict: on branch ${it.branch}${it.leaving === true ? ', leaving it' : ''}`
                : 'in step',
          ]),
        );
      }
    },
  ).option('--json', 'as JSON');
  verb('resolve <image> <card>', 'end a conflict of a card with IMAGE', async (admin, [name, card], options) => {
    const generation = await admin.resolve(name, card, String(options.take));
    print(options.take === 'branch' ? `@${generation}` : `card ${card} takes ${name} when it has nothing uncommitted`);
  }).requiredOption('--take <side>', 'branch: its branch becomes IMAGE; image: the card goes on with IMAGE as it is');
  verb('diff <from> <to>', 'the byte ranges in which two generations differ', async (admin, [from, to], options) => {
    if (options.files) return printFiles(await admin.diffFiles(from, to), options.json === true);
    const ranges = await admin.diff(from, to);
    if (options.json) print(JSON.stringify(ranges));
    else {
      table(
        ['offset', 'length'],
        ranges.map((it) => [String(it.offset), String(it.length)]),
      );
    }
  })
    .option('--json', 'as JSON')
    .option('--files', 'the files that differ, in file systems that are recognised (FAT, NTFS, ext, …)');
  verb('merge-base <a> <b>', 'the newest generation that both come from', async (admin, [a, b], options) => {
    const base = await admin.mergeBase(a, b);
    if (options.json) print(JSON.stringify(base));
    else if (base === null) throw new Failure(`${a} and ${b} have no generation in common`);
    else print(`${base.line ?? '(removed)'}@${base.generation}${base.kept ? '' : ' (no longer kept)'}`);
  }).option('--json', 'as JSON');
  verb(
    'attach <image> [path]',
    'the image as a local file, for mounting and repairing; what is changed becomes one generation when it ends',
    (admin, [name, file], { store }) => attachImage(admin, name, file, store),
  );
  verb('detach <number>', 'end an attachment whose command is gone', async (admin, [number], { discard }) => {
    if (!/^\d{1,9}$/.test(number)) throw new Failure(`"${number}" is not the number of an attachment`);
    const generation = await admin.detach(Number(number), discard !== true);
    print(generation === null ? 'nothing was changed' : `@${generation}`);
  }).option('--discard', 'forget what was changed');
  const remote = (command: Command): Command =>
    command
      .option('--token-file <file>', 'the bearer token for the other server')
      .option('--ca <file>', 'who has signed its certificate (PEM)');
  const remoteOptions = ({ tokenFile, ca }: Record<string, unknown>) => ({
    tokenFile: tokenFile === undefined ? null : path.resolve(String(tokenFile)),
    caFile: ca === undefined ? null : path.resolve(String(ca)),
  });
  const report = ({ generations, blobs, bytes }: ReplicaReport) =>
    print(`${generations} generations, ${blobs} blocks and tree nodes, ${bytes} bytes`);
  remote(
    verb(
      'push <image> <url>',
      'send what the server at http(s)://HOST:PORT/NAME has not',
      async (admin, [name, url], options) => report(await admin.push(name, url, remoteOptions(options))),
    ),
  );
  remote(
    verb(
      'pull <url> <image>',
      'fetch what is missing here of http(s)://HOST:PORT/NAME',
      async (admin, [url, name], options) => report(await admin.pull(url, name, remoteOptions(options))),
    ),
  );
  verb('rollback <image>', 'make the content of IMAGE@GENERATION the next generation', async (admin, [name]) =>
    print(`@${await admin.rollback(name)}`),
  );
  verb('rename <from> <to>', 'rename an image, with its branches, or a branch', (admin, [from, to]) =>
    admin.rename(from, to),
  );
  verb('rm <image>', 'remove an image or branch; `gc` gives its space back', (admin, [name], { force }) =>
    admin.rm(name, force === true),
  ).option('--force', 'even with generations that are tagged');
  verb('verify [images...]', 'read and hash everything again; names what is damaged', async (admin, names, options) => {
    const report = await admin.verify(names.filter((it) => it !== undefined));
    if (options.json) print(JSON.stringify(report, null, 2));
    else {
      print(
        `${report.generations} generations, ${report.blocks} blocks, ${report.nodes} tree nodes: ${report.damages.length} damaged`,
      );
      for (const damage of report.damages) {
        print(`bytes ${damage.from} to ${damage.to} of ${damage.generations.join(', ')}: ${damage.message}`);
      }
    }
    if (report.damages.length > 0) process.exitCode = 1;
  }).option('--json', 'as JSON');
  verb('gc', 'forget generations by the retention rules and give unused space back', async (admin, _args, options) => {
    const report = await admin.gc((options.retention as string | undefined) ?? null);
    print(
      `${report.generationsForgotten} generations forgotten, ${report.packsRemoved} of ${report.packs} packs rewritten or removed, ` +
        `${report.bytesBefore - report.bytesAfter} bytes freed`,
    );
  }).option(
    '--retention <rules>',
    `SPACING:AGE,… youngest first; default ${DEFAULT_RETENTION}; "all:ever" forgets nothing`,
  );
  verifyPrefix.register(image);
}

async function withAdmin(options: Options, work: (admin: AdminOperations) => Promise<void>): Promise<void> {
  const who = os.userInfo().username;
  const progress = progressBar();
  try {
    const remote = await connectControl(options.store, who, progress.update);
    if (remote !== null) {
      await work(remote);
      return;
    }
    const store = await Store.open(options.store, {
      log: (level, message) => process.stderr.write(`${level}: ${message}\n`),
    });
    try {
      await work(adminOperations(store, who, progress.update));
    } finally {
      await store.close();
    }
  } finally {
    progress.stop();
  }
}

function progressBar(): { update: AdminProgress; stop: () => void } {
  if (!process.stderr.isTTY) return { update: () => {}, stop: () => {} };
  const bar = new SingleBar({
    format: '{bar} {percentage}% {eta_formatted} left',
    clearOnComplete: true,
    hideCursor: true,
  });
  let started = false;
  return {
    update(done, total) {
      if (!started) bar.start(total, done);
      else bar.update(done);
      started = true;
    },
    stop() {
      if (started) bar.stop();
    },
  };
}

function printFiles({ fileSystems, files }: FilesDiff, json: boolean): void {
  if (json) {
    print(JSON.stringify({ fileSystems, files }));
    return;
  }
  table(
    ['change', 'partition', 'size before', 'size', 'file'],
    files.map(({ change, partition, sizeBefore, size, path: name }) => [
      change,
      String(partition),
      String(sizeBefore ?? ''),
      String(size ?? ''),
      // Names come from the disk and may hold anything; a terminal must not take them for its own.
      // biome-ignore lint/suspicious/noControlCharactersInRegex: these are what is replaced
      name.replace(/[\0-\x1f\x7f-\x9f]/g, '?'),
    ]),
  );
}

function print(text: string): void {
  process.stdout.write(`${text}\n`);
}

function table(head: string[], rows: string[][]): void {
  const all = [head, ...rows];
  const widths = head.map((_, column) => Math.max(...all.map((row) => row[column].length)));
  for (const row of all)
    print(
      row
        .map((cell, column) => cell.padEnd(widths[column]))
        .join('  ')
        .trimEnd(),
    );
}

/** `512`, `64K`, `10M`, `2G`, `1T` as bytes. */
export function parseSize(text: string): number {
  const match = /^(\d{1,15})([KMGT]?)$/i.exec(text);
  const size = match === null ? Number.NaN : Number(match[1]) * 1024 ** ' KMGT'.indexOf(match[2].toUpperCase() || ' ');
  if (!Number.isSafeInteger(size) || size === 0) {
    throw new Failure(`"${text}" is not a size: write bytes, or 64K, 10M, 2G, 1T`);
  }
  return size;
}
