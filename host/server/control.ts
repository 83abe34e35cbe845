// The control socket of a running server, DIR/control.sock: `ribbon image` uses it when a server holds the store.
//
// One request a connection, one JSON object a line: {"verb":…,"arguments":[…],"who":…}; answers are {"progress":[done,total]} any number of
// times, then {"result":…} or {"failure":"text"}. Only the owner of the folder may connect (mode 0600).

import fs from 'node:fs';
import net from 'node:net';
import path from 'node:path';
import readline from 'node:readline';
import { Failure, failureText } from '../failure.js';
import { ADMIN_VERBS, type AdminOperations, type AdminProgress, adminOperations } from '../store/admin.js';
import type { Store } from '../store/store.js';
import type { Log } from './server.js';

type Answer = { progress: [number, number] } | { result: unknown } | { failure: string };

const REQUEST_MAX = 64 * 1024;

export function controlPath(folder: string): string {
  return path.join(folder, 'control.sock');
}

export class ControlServer {
  private readonly server: net.Server;
  private readonly sockets = new Set<net.Socket>();

  constructor(
    private readonly store: Store,
    private readonly log: Log,
  ) {
    this.server = net.createServer((socket) => this.accept(socket));
  }

  async listen(folder: string): Promise<void> {
    const file = controlPath(folder);
    // The store's lock is ours: a socket that is there is a dead server's.
    fs.rmSync(file, { force: true });
    const mask = process.umask(0o177);
    try {
      await new Promise<void>((resolve, reject) => {
        this.server.once('error', reject);
        this.server.listen(file, resolve);
      });
    } finally {
      process.umask(mask);
    }
  }

  async close(): Promise<void> {
    const closed = new Promise<void>((resolve) => this.server.close(() => resolve()));
    for (const socket of this.sockets) socket.destroy();
    await closed;
  }

  private accept(socket: net.Socket): void {
    this.sockets.add(socket);
    let text = '';
    socket.setEncoding('utf8');
    socket.on('error', () => {});
    socket.on('close', () => this.sockets.delete(socket));
    socket.on('data', (data: string) => {
      text += data;
      const end = text.indexOf('\n');
      if (end < 0 && text.length > REQUEST_MAX) socket.destroy();
      if (end < 0) return;
      socket.pause();
      const line = text.slice(0, end);
      const send = (answer: Answer) => socket.write(`${JSON.stringify(answer)}\n`);
      this.answer(line, (done, total) => send({ progress: [done, total] })).then(
        (result) => socket.end(`${JSON.stringify({ result: result ?? null })}\n`),
        (error: unknown) => {
          if (!(error instanceof Failure)) this.log('error', `control: ${failureText(error)}`);
          socket.end(`${JSON.stringify({ failure: failureText(error) })}\n`);
        },
      );
    });
  }

  private async answer(line: string, onProgress: AdminProgress): Promise<unknown> {
    let request: { verb?: unknown; arguments?: unknown; who?: unknown };
    try {
      request = JSON.parse(line);
    } catch {
      throw new Failure('the request is not JSON');
    }
    const verb = ADMIN_VERBS.find((it) => it === request?.verb);
    if (verb === undefined || !Array.isArray(request.arguments))
      throw new Failure(`there is no verb "${request?.verb}"`);
    const who = typeof request.who === 'string' ? request.who.slice(0, 64) : 'administrator';
    this.log('info', `control: ${who}: ${verb} ${JSON.stringify(request.arguments).slice(0, 200)}`);
    const operations = adminOperations(this.store, who, onProgress);
    return (operations[verb] as (...args: unknown[]) => Promise<unknown>)(...request.arguments);
  }
}

/** The operations as a client of the server that holds the store in `folder`; null when there is none. */
export async function connectControl(
  folder: string,
  who: string,
  onProgress: AdminProgress,
): Promise<AdminOperations | null> {
  const file = controlPath(folder);
  if (!fs.existsSync(file)) return null;
  const alive = await new Promise<boolean>((resolve) => {
    const probe = net.connect(file, () => {
      probe.destroy();
      resolve(true);
    });
    probe.once('error', () => resolve(false));
  });
  if (!alive) return null;
  const operations: Record<string, (...args: unknown[]) => Promise<unknown>> = {};
  for (const verb of ADMIN_VERBS)
    operations[verb] = (...args) => request(file, { verb, arguments: args, who }, onProgress);
  return operations as unknown as AdminOperations;
}

async function request(file: string, message: object, onProgress: AdminProgress): Promise<unknown> {
  const socket = net.connect(file);
  socket.write(`${JSON.stringify(message)}\n`);
  try {
    for await (const line of readline.createInterface({ input: socket })) {
      const answer = JSON.parse(line) as Answer;
      if ('progress' in answer) onProgress(...answer.progress);
      else if ('failure' in answer) throw new Failure(answer.failure);
      else return answer.result;
    }
  } finally {
    socket.destroy();
  }
  throw new Failure('the server ended before it answered: see its log');
}
