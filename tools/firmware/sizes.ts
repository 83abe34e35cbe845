// How many bytes of code come from each folder and file, and how many each shipped function has. The optimiser moves code
// into its callers; the source map still knows where each instruction was written.

import { SourceMap } from 'node:module';
import type { Firmware } from './compile.js';
import type { Module } from './module.js';

interface Row {
  name: string;
  bytes: number;
}

const FRAMES = 'function headers';

/** Three tables: folders and the rest of the module, files, functions. */
export function formatSizes({ wasm, module, sourceMap }: Firmware): string {
  const byFile = sizeByFile(module, new SourceMap(JSON.parse(sourceMap)));
  const byFolder = new Map<string, number>();
  for (const [file, bytes] of byFile) {
    const folder = file.includes('/') ? file.slice(0, file.lastIndexOf('/')) : file;
    byFolder.set(folder, (byFolder.get(folder) ?? 0) + bytes);
  }
  const whole = [
    { name: 'all code', bytes: module.codeBytes },
    { name: 'static data', bytes: module.dataBytes },
    { name: 'other sections', bytes: wasm.length - module.codeBytes - module.dataBytes },
    { name: 'firmware.wasm', bytes: wasm.length },
  ];
  const functions = new Map(module.functions.map(({ name, sizeBytes }) => [name, sizeBytes]));
  return [
    table('folder', [...rows(byFolder), ...whole]),
    table('source file', rows(byFile)),
    table('function, with what was inlined into it', rows(functions)),
  ].join('\n');
}

/** Bytes of instructions by the file that they were written in; what is left of the code section are its frames. */
export function sizeByFile(module: Module, sourceMap: SourceMap): Map<string, number> {
  const sizes = new Map<string, number>();
  let attributed = 0;
  for (const { name, code, end } of module.functions) {
    let file = fileOfFunction(name);
    code.forEach(({ offset }, i) => {
      const bytes = (code[i + 1]?.offset ?? end) - offset;
      const entry = sourceMap.findEntry(0, offset);
      // What the optimiser made up has no place in a source: it goes with what stands before it.
      if ('originalSource' in entry) file = /(?:~lib|assembly)\/.*/.exec(entry.originalSource)?.[0] ?? file;
      sizes.set(file, (sizes.get(file) ?? 0) + bytes);
      attributed += bytes;
    });
  }
  return sizes.set(FRAMES, module.codeBytes - attributed);
}

/** `assembly/nbd/client/nbdStep` is a function of `assembly/nbd/client.ts`. */
function fileOfFunction(name: string): string {
  return name.includes('/') ? `${name.slice(0, name.lastIndexOf('/'))}.ts` : 'start function';
}

function rows(sizes: Map<string, number>): Row[] {
  return [...sizes].map(([name, bytes]) => ({ name, bytes })).sort((a, b) => b.bytes - a.bytes);
}

function table(heading: string, rows: Row[]): string {
  const width = Math.max(heading.length, ...rows.map(({ name }) => name.length));
  const lines = rows.map(({ name, bytes }) => `${name.padEnd(width)}  ${String(bytes).padStart(7)}`);
  return `${heading.padEnd(width)}    bytes\n${lines.join('\n')}\n`;
}
