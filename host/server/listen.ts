// Listen addresses as the command line writes them: `tcp:HOST:PORT` and `unix:PATH`.

import { Failure } from '../failure.js';

export type ListenAddress = { kind: 'tcp'; host: string; port: number } | { kind: 'unix'; path: string };

export function parseListen(text: string): ListenAddress {
  if (text.startsWith('unix:') && text.length > 5) {
    const path = text.slice(5);
    // sun_path holds 108 bytes with its terminator.
    if (Buffer.byteLength(path) > 107)
      throw new Failure(`the socket path "${path}" is longer than 107 bytes: use a shorter one`);
    return { kind: 'unix', path };
  }
  const match = /^tcp:(\[[0-9a-fA-F:.]+\]|[^:[\]]+):(\d{1,5})$/.exec(text);
  if (match !== null && Number(match[2]) <= 65535) {
    return { kind: 'tcp', host: match[1].replace(/^\[|\]$/g, ''), port: Number(match[2]) };
  }
  throw new Failure(`cannot listen on "${text}": write tcp:HOST:PORT or unix:PATH`);
}

/** How a client names an export behind this address. */
export function nbdUri(address: ListenAddress, exportName: string): string {
  const name = encodeURIComponent(exportName).replaceAll('%2F', '/');
  if (address.kind === 'unix') return `nbd+unix:///${name}?socket=${address.path}`;
  const host = address.host.includes(':') ? `[${address.host}]` : address.host;
  return `nbd://${host}:${address.port}/${name}`;
}
