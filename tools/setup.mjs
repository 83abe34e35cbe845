// Brings a checkout to the point where everything runs, then does what was asked. Plain JavaScript: it runs before the
// packages are there.
//
//   node tools/setup.mjs start [ARGS]   sets up, then `ribbon sim ARGS`
//   node tools/setup.mjs test [ARGS]    sets up, then every test (tools/test.ts)
//   node tools/setup.mjs board [NAME…]  sets up, then builds the card for boards (tools/build-boards.ts)
//   node tools/setup.mjs build          sets up only
//
// Every step looks first whether it is needed, by content and not by time: a second run takes about a second.

import { createHash } from 'node:crypto';
import fs from 'node:fs';
import path from 'node:path';
import process from 'node:process';
import { fileURLToPath, pathToFileURL } from 'node:url';
import { ensureAptPackages } from './setup/apt.mjs';
import { releaseLock, takeLock } from './setup/lock.mjs';
import { runStep, SetupFailure } from './setup/steps.mjs';

const ROOT = path.resolve(fileURLToPath(import.meta.url), '../..');
const NODE_VERSION_MIN = 20;
/** What each finished step was made from: { step: hash }. */
const STAMPS = path.join(ROOT, 'build', 'setup.json');

/** The Debian packages that each goal needs, as apt.mjs groups them. */
const PACKAGES = {
  start: ['start'],
  build: ['start'],
  board: ['boards', 'cross'],
  test: ['start', 'boards', 'cross', 'test'],
};

async function setUp(goal, args) {
  if (!(goal in PACKAGES)) throw new SetupFailure(`there is no "${goal}": ${Object.keys(PACKAGES).join(', ')}`);
  const board = goal === 'start' ? boardOf(args) : null;
  checkNode();
  process.chdir(ROOT);
  const lock = await takeLock(path.join(ROOT, 'build', 'setup.lock'));
  try {
    await ensureNpmPackages();
    await ensureAptPackages([...PACKAGES[goal], ...(board === null ? [] : ['boards'])]);
    await compile(goal);
    await buildFirmware();
    if (board !== null) await buildBoard(board);
  } finally {
    releaseLock(lock);
  }
}

/** `--card posix` and `--card qemu` run a card that has to be built first. */
function boardOf(args) {
  const card = args.find((_, i) => args[i - 1] === '--card') ?? /--card=(\w+)/.exec(args.join(' '))?.[1];
  if (card === 'qemu') return /--engine[= ]wasm3/.test(args.join(' ')) ? 'qemu-wasm3' : 'qemu';
  return card === 'posix' ? 'posix' : null;
}

function checkNode() {
  const major = Number(process.versions.node.split('.')[0]);
  if (major >= NODE_VERSION_MIN) return;
  throw new SetupFailure(`Node ${NODE_VERSION_MIN} or newer is needed, this is ${process.versions.node}`);
}

/** Runs one of our programs in this process: Ctrl-C then means what that program makes of it. */
async function run(program, args) {
  const file = path.join(ROOT, program);
  process.argv = [process.argv[0], file, ...args];
  await import(pathToFileURL(file).href);
}

async function ensureNpmPackages() {
  if (npmPackagesMatch()) return;
  const command = process.env.npm_execpath ? [process.execPath, process.env.npm_execpath] : ['npm'];
  // Not `npm ci`: it refuses a lock file whose registry did not have every optional package for other kinds of machines.
  // --no-save leaves package.json and the lock file alone; versions and hashes are the lock file's either way.
  await runStep('npm packages', [...command, 'install', '--no-save', '--ignore-scripts', '--loglevel=error']);
}

/** Compares the lock file with what npm noted at the end of its last installation. */
function npmPackagesMatch() {
  const wanted = readJson(path.join(ROOT, 'package-lock.json'))?.packages;
  const installed = readJson(path.join(ROOT, 'node_modules', '.package-lock.json'))?.packages;
  if (wanted === undefined || installed === undefined) return false;
  return Object.entries(wanted).every(([name, { version, optional }]) => {
    if (name === '') return true;
    const there = installed[name];
    // What is optional may be for another kind of machine.
    return there === undefined ? optional === true : there.version === version;
  });
}

/** TypeScript to build/. The tests run with type errors too, and report them. */
async function compile(goal) {
  const sources = [...files('host'), ...files('tools'), ...files('tests'), 'tsconfig.json', 'package-lock.json'];
  // Not -b, which goes by the time of files: one that was put back in an older version would count as compiled.
  const tsc = [process.execPath, path.join('node_modules', 'typescript', 'bin', 'tsc'), '-p', '.'];
  const outputs = ['build/host/main.js', 'build/tools/test.js'];
  await ifChanged('compile', sources, outputs, async () => {
    // The compiler does not look whether what it wrote is still there.
    if (!outputs.every((file) => fs.existsSync(file))) fs.rmSync('build/tsconfig.tsbuildinfo', { force: true });
    try {
      await runStep('compiling', tsc);
    } catch (error) {
      if (goal !== 'test' || !fs.existsSync('build/tools/test.js')) throw error;
      return false;
    }
    return true;
  });
}

async function buildFirmware() {
  const sources = [
    ...files('assembly').filter((file) => !file.endsWith('.spec.ts')),
    ...files('tools/firmware'),
    'tools/build-firmware.ts',
    'asconfig.json',
    'package-lock.json',
  ];
  await ifChanged('firmware', sources, ['build/firmware/firmware.wasm'], async () => {
    await runStep('building the firmware', [process.execPath, 'build/tools/build-firmware.js']);
    return true;
  });
}

/** Looks itself what is to be done: object files have their own cache. */
async function buildBoard(name) {
  const command = [process.execPath, 'build/tools/build-boards.js', name];
  await runStep(`building the card for ${name}`, command, { silent: true });
}

/** Does `action` when a source has changed since it last succeeded, or an output is gone. */
async function ifChanged(step, sources, outputs, action) {
  const hash = createHash('sha256');
  for (const file of [...sources].sort()) hash.update(`${file}\0`).update(fs.readFileSync(file)).update('\0');
  const digest = hash.digest('hex');
  const stamps = readJson(STAMPS) ?? {};
  if (stamps[step] === digest && outputs.every((file) => fs.existsSync(file))) return;
  const succeeded = await action();
  const { [step]: _old, ...others } = readJson(STAMPS) ?? {};
  fs.writeFileSync(STAMPS, JSON.stringify(succeeded ? { ...others, [step]: digest } : others, null, 2));
}

/** The files under a folder that a build reads. */
function files(folder) {
  return fs
    .readdirSync(folder, { recursive: true, withFileTypes: true })
    .filter((entry) => entry.isFile() && /\.(ts|json)$/.test(entry.name))
    .map((entry) => path.join(entry.parentPath ?? entry.path, entry.name));
}

function readJson(file) {
  try {
    return JSON.parse(fs.readFileSync(file, 'utf8'));
  } catch {
    return undefined;
  }
}

const [goal = 'build', ...args] = process.argv.slice(2);
try {
  await setUp(goal, args);
} catch (error) {
  process.stderr.write(`setup: ${error instanceof SetupFailure ? error.message : error.stack}\n`);
  process.exit(error.exitCode ?? 1);
}
if (goal === 'start') await run('build/host/main.js', ['sim', ...args]);
if (goal === 'board') await run('build/tools/build-boards.js', args);
if (goal === 'test') await run('build/tools/test.js', args);
