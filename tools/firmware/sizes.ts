// How many bytes of code each folder and each function takes. Inlining moves a function's bytes into its caller, so the
// table says what is shipped and not what was written where.

import type { Firmware } from './compile.js';

interface Row {
  name: string;
  bytes: number;
}

/** Two tables: folders and files, then every function. */
export function formatSizes({ wasm, module }: Firmware): string {
  const byFolder = new Map<string, number>();
  const byFile = new Map<string, number>();
  for (const { name, sizeBytes } of module.functions) {
    const file = fileOf(name);
    const folder = file.includes('/') ? file.slice(0, file.lastIndexOf('/')) : '(top)';
    byFolder.set(folder, (byFolder.get(folder) ?? 0) + sizeBytes);
    byFile.set(file, (byFile.get(file) ?? 0) + sizeBytes);
  }
  const folders = [...rows(byFolder), { name: 'all code', bytes: module.codeBytes }];
  const sections = [
    { name: 'static data', bytes: module.dataBytes },
    { name: 'other sections', bytes: wasm.length - module.codeBytes - module.dataBytes },
    { name: 'firmware.wasm', bytes: wasm.length },
  ];
  const functions = rows(new Map(module.functions.map(({ name, sizeBytes }) => [shortName(name), sizeBytes])));
  return [table('folder', [...folders, ...sections]), table('file', rows(byFile)), table('function', functions)].join(
    '\n',
  );
}

/** `assembly/nbd/client/nbdStep` is a function of `nbd/client`; what does not come from us is the compiler's. */
function fileOf(name: string): string {
  const path = name.replace(/^(?:start:)?assembly\//, '');
  if (path === name || !path.includes('/')) return 'compiler';
  return path.slice(0, path.lastIndexOf('/'));
}

function shortName(name: string): string {
  return name.replace(/^assembly\//, '');
}

function rows(sizes: Map<string, number>): Row[] {
  return [...sizes].map(([name, bytes]) => ({ name, bytes })).sort((a, b) => b.bytes - a.bytes);
}

function table(heading: string, rows: Row[]): string {
  const width = Math.max(heading.length, ...rows.map(({ name }) => name.length));
  const lines = rows.map(({ name, bytes }) => `${name.padEnd(width)}  ${String(bytes).padStart(7)}`);
  return `${`${heading.padEnd(width)}    bytes`}\n${lines.join('\n')}\n`;
}
