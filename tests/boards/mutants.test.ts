// Thousands of damaged firmwares under ASan and UBSan. Invariants:
//   - the check ends, and reads nothing outside of the module;
//   - what it lets through is valid by V8's judgement, and uses nothing that the rules exclude;
//   - what it lets through cannot take the runtime down when it runs: the firmware behind it runs in the end.

import assert from 'node:assert/strict';
import { execFile } from 'node:child_process';
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, test } from 'node:test';
import { promisify } from 'node:util';
import { FIRMWARE } from './builds.js';
import { assemble, GOOD, TRAPPING } from './modules.js';
import { buildTestCard, MODULES, TestCard } from './posix-card.js';

const SEED = Number(process.env.RIBBON_SEED ?? 1);
const MUTANTS = process.env.RIBBON_LONG === '1' ? 50_000 : 3000;
const RUN = process.env.RIBBON_LONG === '1' ? 500 : 25;
/** Files of one run of the check. */
const BATCH = 500;

const folder = mkdtempSync(join(tmpdir(), 'ribbon-mutants-'));
const accepted: string[] = [];
let binary: string;
let good: string;

/** xorshift32 */
function random(seed: number): (below: number) => number {
  let state = (seed * 2654435761) >>> 0 || 1;
  return (below) => {
    state ^= state << 13;
    state ^= state >>> 17;
    state ^= state << 5;
    return (state >>> 0) % below;
  };
}

function mutate(source: Buffer, below: (limit: number) => number): Buffer {
  let mutant = Buffer.from(source);
  for (let edits = 1 + below(3); edits > 0; edits--) {
    const at = below(mutant.length);
    switch (below(6)) {
      case 0:
        mutant[at] ^= 1 << below(8);
        break;
      case 1:
        mutant[at] = below(256);
        break;
      case 2:
        mutant = mutant.subarray(0, at + 1);
        break;
      case 3:
        mutant = Buffer.concat([mutant.subarray(0, at), mutant.subarray(at + 1 + below(4))]);
        break;
      case 4:
        mutant = Buffer.concat([mutant.subarray(0, at), Buffer.from([below(256), 0x80]), mutant.subarray(at)]);
        break;
      default:
        // Numbers at their ends are where readers go wrong.
        mutant[at] = [0, 1, 0x7f, 0x80, 0xff][below(5)];
    }
    if (mutant.length === 0) mutant = Buffer.from([0]);
  }
  return mutant;
}

/** Why V8 refuses a module, null when it does not. */
function invalidity(module: Buffer): string | null {
  try {
    new WebAssembly.Module(module);
    return null;
  } catch (error) {
    return (error as Error).message;
  }
}

before(async () => {
  binary = await buildTestCard(true);
  good = assemble(GOOD, MODULES);
});

after(() => rmSync(folder, { recursive: true, force: true }));

test(`${MUTANTS} damaged modules (RIBBON_SEED=${SEED}): what is let through is valid`, async () => {
  const below = random(SEED);
  const small = [GOOD, ...TRAPPING].map((module) => readFileSync(assemble(module, MODULES)));
  const firmware = readFileSync(FIRMWARE);
  for (let first = 0; first < MUTANTS; first += BATCH) {
    const files: string[] = [];
    for (let i = first; i < Math.min(first + BATCH, MUTANTS); i++) {
      // Small modules are mostly structure, the real firmware is mostly code.
      const mutant = mutate(below(3) === 0 ? firmware : small[below(small.length)], below);
      const file = join(folder, `${i}.wasm`);
      writeFileSync(file, mutant);
      files.push(file);
    }
    const { stdout } = await promisify(execFile)(binary, ['--engine', 'wasm3', '--check', ...files], {
      maxBuffer: 16 << 20,
    }).catch((error: { code: number; stdout: string; stderr: string }) => {
      assert.equal(error.code, 1, `the check broke (mutants ${first} and on):\n${error.stderr}`);
      return error;
    });
    const verdicts = stdout.trimEnd().split('\n');
    assert.equal(verdicts.length, files.length);
    verdicts.forEach((verdict, i) => {
      if (!verdict.endsWith(': ok')) {
        rmSync(files[i]);
        return;
      }
      const objection = invalidity(readFileSync(files[i]));
      assert.equal(objection, null, `mutant ${first + i} passed the check, but V8 says: ${objection}`);
      accepted.push(files[i]);
    });
  }
  assert.ok(accepted.length > RUN, 'too few mutants are let through to say anything');
});

test(`${RUN} of those that are let through run: the firmware behind them runs in the end, or they do`, async () => {
  const chosen = accepted.filter((_, i) => i % Math.floor(accepted.length / RUN) === 0).slice(0, RUN);
  for (const file of chosen) {
    const card = new TestCard();
    try {
      card.start(binary, [file, good], 'wasm3');
      // A mutant that does no harm sleeps, or works on: then its engine line is all there is.
      await card.line(/^info: (good firmware$|firmware 0: engine=wasm3)|^error: firmware 0/);
      await new Promise((done) => setTimeout(done, 30));
    } finally {
      await card.stop();
      card.remove();
    }
    assert.equal(card.exitCode, 0, `${file}:\n${card.lines.join('\n')}`);
  }
});
