// Builds of the firmware with a known bug (assembly/mutant.ts). A checker that does not notice them is none.

import fs from 'node:fs';
import path from 'node:path';
import { fileURLToPath } from 'node:url';
import asc from 'assemblyscript/asc';
import { Failure } from '../failure.js';

const ROOT = path.resolve(fileURLToPath(import.meta.url), '../../../..');
const MUTANT_FILE = 'assembly/mutant.ts';
const CONSTANT = 'export const MUTANT: i32 = 0;';

export interface Mutant {
  number: number;
  /** As on the command line: `forget-flush`. */
  name: string;
  /** What it breaks. */
  bug: string;
}

/** The list in assembly/mutant.ts is the only one. */
export function listMutants(): Mutant[] {
  const source = fs.readFileSync(path.join(ROOT, MUTANT_FILE), 'utf8');
  const mutants: Mutant[] = [];
  for (const match of source.matchAll(/\/\*\* ([^\n]*) \*\/\n {2}([A-Z_]+) = (\d+),/g)) {
    mutants.push({ number: Number(match[3]), name: match[2].toLowerCase().replaceAll('_', '-'), bug: match[1] });
  }
  if (mutants.length === 0) throw new Failure(`${MUTANT_FILE} names no mutants`);
  return mutants;
}

/** Compiles the firmware with the mutant's bug; 0 is none. Optimised as far as it takes no time: V8 does the rest. */
export async function compileMutant(number: number): Promise<WebAssembly.Module> {
  let wasm: Uint8Array | null = null;
  const messages: string[] = [];
  const stream = { write: (text: string) => void messages.push(text) };
  const replaced = { constant: false };
  const config = ['--baseDir', ROOT, '--config', 'asconfig.json', '--target', 'release'];
  const { error } = await asc.main([...config, '--optimizeLevel', '1', '--outFile', 'firmware.wasm'], {
    stdout: stream,
    stderr: stream,
    readFile: (name, baseDir) => readSource(path.resolve(baseDir, name), number, replaced),
    writeFile: (name, contents) => {
      if (name === 'firmware.wasm') wasm = contents as Uint8Array;
    },
  });
  if (error !== null || wasm === null) {
    throw new Failure(`the firmware does not compile with mutant ${number}:\n${messages.join('')}`);
  }
  if (!replaced.constant) throw new Failure(`${MUTANT_FILE} does not contain "${CONSTANT}"`);
  return new WebAssembly.Module(new Uint8Array(wasm));
}

function readSource(file: string, number: number, replaced: { constant: boolean }): string | null {
  if (!fs.existsSync(file)) return null;
  const source = fs.readFileSync(file, 'utf8');
  if (path.relative(ROOT, file) !== MUTANT_FILE) return source;
  replaced.constant = source.includes(CONSTANT);
  return source.replace(CONSTANT, `export const MUTANT: i32 = ${number};`);
}
