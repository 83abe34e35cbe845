// A bad network in front of an object store: an HTTP proxy that loses requests and answers, delays them, and lets them arrive twice.

import http from 'node:http';
import type { AddressInfo } from 'node:net';

/** `refuse`: the request does not arrive. `lose`: it is carried out, and nobody hears of it. `twice`: it arrives again. */
export type Fate = 'pass' | 'refuse' | 'lose' | 'twice';

export class BadNetwork {
  /** Decides what becomes of a request; may take its time. */
  fate: (method: string, path: string) => Fate | Promise<Fate> = () => 'pass';
  requests = 0;
  private readonly server: http.Server;
  private readonly agent = new http.Agent({ keepAlive: true });

  private constructor(private readonly target: URL) {
    this.server = http.createServer((request, response) => void this.handle(request, response));
  }

  static async infrontOf(url: string): Promise<BadNetwork> {
    const network = new BadNetwork(new URL(url));
    await new Promise<void>((resolve) => network.server.listen(0, '127.0.0.1', resolve));
    return network;
  }

  get url(): string {
    return `http://127.0.0.1:${(this.server.address() as AddressInfo).port}${this.target.pathname}`;
  }

  async close(): Promise<void> {
    this.server.closeAllConnections();
    this.agent.destroy();
    await new Promise((resolve) => this.server.close(resolve));
  }

  private async handle(request: http.IncomingMessage, response: http.ServerResponse): Promise<void> {
    this.requests++;
    const pieces: Buffer[] = [];
    for await (const piece of request) pieces.push(piece as Buffer);
    const body = Buffer.concat(pieces);
    const fate = await this.fate(request.method!, request.url!);
    try {
      if (fate === 'refuse') throw new Error('refused');
      const first = await this.forward(request, body);
      const answer = fate === 'twice' ? await this.forward(request, body) : first;
      if (fate === 'lose') throw new Error('lost');
      // Of two answers the client gets either: here the second, which it could not have foreseen.
      response.writeHead(answer.status, answer.headers).end(answer.bytes);
    } catch {
      response.destroy();
    }
  }

  private forward(
    { method, url, headers }: http.IncomingMessage,
    body: Buffer,
  ): Promise<{ status: number; headers: http.IncomingHttpHeaders; bytes: Buffer }> {
    return new Promise((resolve, reject) => {
      const { hostname, port } = this.target;
      // The Host header stays as it was signed.
      const request = http.request({ hostname, port, method, path: url, headers, agent: this.agent }, (answer) => {
        const pieces: Buffer[] = [];
        answer.on('data', (piece: Buffer) => pieces.push(piece));
        answer.on('error', reject);
        answer.on('end', () => {
          const { 'transfer-encoding': _encoding, ...rest } = answer.headers;
          resolve({ status: answer.statusCode!, headers: rest, bytes: Buffer.concat(pieces) });
        });
      });
      request.on('error', reject);
      request.end(body);
    });
  }
}
