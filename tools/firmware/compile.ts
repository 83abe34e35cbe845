// From assembly/ to the bytes that a card runs: asc without optimisation, so that every function still has its name; then
// our own binaryen pass. The same sources give the same bytes, wherever the checkout lies.

import { execFile } from 'node:child_process';
import { createHash } from 'node:crypto';
import { readFileSync } from 'node:fs';
import { mkdtemp, readFile, rm, writeFile } from 'node:fs/promises';
import { createRequire } from 'node:module';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { promisify } from 'node:util';
import asc from 'assemblyscript/asc';
import { Failure } from '../../host/failure.js';
import { decodeModule, type Module, withoutCustomSections } from './module.js';
import { checkRules, type RulesReport, readDeclaredImports, type Violation, violationText } from './rules.js';

const run = promisify(execFile);

export interface Firmware {
  /** What is shipped. */
  wasm: Uint8Array<ArrayBuffer>;
  sha256: string;
  /** The decoded module, its functions with their names. */
  module: Module;
  /** Source file, line and column of offsets in `wasm`; names and map are not shipped. */
  sourceMap: string;
  report: RulesReport;
}

interface Compiled {
  wasm: Uint8Array<ArrayBuffer>;
  sourceMap: string;
}

/** Compiles the firmware of the checkout at `root` and checks it. Throws a Failure naming each function and rule broken. */
export async function compileFirmware(root: string): Promise<Firmware> {
  const declared = readDeclaredImports(readFileSync(join(root, 'assembly/imports.ts'), 'utf8'));
  const compiled = await runAsc(root);
  // Before anything is inlined, while every function is there under its own name; what optimisation changes comes after.
  const early = checkRules(compiled.wasm, declared).violations;
  refuse(early.filter(({ rule }) => rule !== 'start' && rule !== 'stack'));
  const named = await optimise(compiled);
  const report = checkRules(named.wasm, declared);
  refuse(report.violations);
  const wasm = withoutCustomSections(named.wasm);
  const sha256 = createHash('sha256').update(wasm).digest('hex');
  return { wasm, sha256, module: decodeModule(named.wasm), sourceMap: named.sourceMap, report };
}

function refuse(violations: Violation[]): void {
  if (violations.length === 0) return;
  const lines = violations.map(violationText).join('\n');
  throw new Failure(`the firmware breaks its rules (tools/firmware/rules.ts):\n${lines}`);
}

/** asc, with asconfig.json's target "release". */
async function runAsc(root: string): Promise<Compiled> {
  const files = new Map<string, string | Uint8Array>();
  const messages: string[] = [];
  const stream = {
    write: (text: string) => {
      messages.push(text);
    },
  };
  const output = ['--outFile', 'firmware.wasm', '--sourceMap'];
  const { error } = await asc.main(['--baseDir', root, '--config', 'asconfig.json', '--target', 'release', ...output], {
    stdout: stream,
    stderr: stream,
    writeFile: (name, contents) => {
      files.set(name, contents);
    },
  });
  const wasm = files.get('firmware.wasm');
  const sourceMap = files.get('firmware.wasm.map');
  if (error !== null || wasm === undefined || sourceMap === undefined) {
    throw new Failure(`the firmware does not compile:\n${messages.join('')}${error ?? ''}`);
  }
  return { wasm: new Uint8Array(wasm as Uint8Array), sourceMap: String(sourceMap) };
}

/** Binaryen's wasm-opt: for speed, twice, since what the first round inlines is worth a second. */
async function optimise(compiled: Compiled): Promise<Compiled> {
  const wasmOpt = createRequire(import.meta.url).resolve('binaryen/bin/wasm-opt');
  const folder = await mkdtemp(join(tmpdir(), 'ribbon-firmware-'));
  try {
    const file = (name: string): string => join(folder, name);
    await writeFile(file('in.wasm'), compiled.wasm);
    await writeFile(file('in.map'), compiled.sourceMap);
    const features = ['--mvp-features', '--enable-bulk-memory', '--enable-mutable-globals'];
    const passes = ['-O3', '-O3', '--strip-producers', '--strip-target-features'];
    const maps = ['-g', '-ism', file('in.map'), '-osm', file('out.map')];
    await run(process.execPath, [wasmOpt, file('in.wasm'), ...features, ...passes, ...maps, '-o', file('out.wasm')]);
    return {
      wasm: new Uint8Array(await readFile(file('out.wasm'))),
      sourceMap: await readFile(file('out.map'), 'utf8'),
    };
  } finally {
    await rm(folder, { recursive: true });
  }
}
