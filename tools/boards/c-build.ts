// A C build whose cache is the content: an object is made again when the compiler, its flags, the source or any header that
// it read has changed, and never because of a date. So `build/` can be carried from one CI run to the next.

import { execFile, execFileSync } from 'node:child_process';
import { createHash } from 'node:crypto';
import { existsSync, mkdirSync, readFileSync, renameSync, writeFileSync } from 'node:fs';
import { rename, rm } from 'node:fs/promises';
import { availableParallelism } from 'node:os';
import { basename, join } from 'node:path';
import { promisify } from 'node:util';
import { Failure } from '../../host/failure.js';

const run = promisify(execFile);

export interface Sources {
  files: string[];
  flags: string[];
}

export interface Target {
  compiler: string;
  /** Given to every compilation and to the link. */
  flags: string[];
  sources: Sources[];
  linkFlags: string[];
  /** Files that the link reads besides objects: a linker script. */
  linkInputs?: string[];
  output: string;
}

interface ObjectRecord {
  dependencies: Record<string, string>;
}

const fileHashes = new Map<string, string>();

function hash(...parts: (string | Uint8Array)[]): string {
  const digest = createHash('sha256');
  for (const part of parts) digest.update(part).update('\0');
  return digest.digest('hex');
}

/** Hash of a file's content, read once a process. */
function hashFile(file: string): string {
  let value = fileHashes.get(file);
  if (value === undefined) {
    value = existsSync(file) ? hash(readFileSync(file)) : 'missing';
    fileHashes.set(file, value);
  }
  return value;
}

/** A file written by this build has changed under the cache of hashes. */
export function writeGenerated(file: string, content: string | Uint8Array): void {
  fileHashes.delete(file);
  if (existsSync(file) && readFileSync(file).equals(Buffer.from(content))) return;
  const partial = `${file}.${process.pid}`;
  writeFileSync(partial, content);
  renameSync(partial, file);
}

/** Compiles and links; returns true when anything had to be done. */
export async function buildTarget(target: Target, cacheFolder: string): Promise<boolean> {
  mkdirSync(cacheFolder, { recursive: true });
  let version: string;
  try {
    version = execFileSync(target.compiler, ['--version'], { encoding: 'utf8' }).split('\n')[0];
  } catch {
    throw new Failure(`the compiler "${target.compiler}" is not installed`);
  }
  const jobs = target.sources.flatMap((sources) =>
    sources.files.map((file) => ({ file, flags: [...target.flags, ...sources.flags] })),
  );
  const objects: string[] = new Array(jobs.length);
  let next = 0;
  const work = async (): Promise<void> => {
    while (next < jobs.length) {
      const index = next++;
      objects[index] = await compile(target.compiler, version, jobs[index].file, jobs[index].flags, cacheFolder);
    }
  };
  await Promise.all(Array.from({ length: availableParallelism() }, work));

  const inputs = [...objects, ...(target.linkInputs ?? [])];
  const key = hash(version, ...target.flags, ...target.linkFlags, ...inputs.map((file) => hashFile(file)));
  const keyFile = `${target.output}.key`;
  if (existsSync(target.output) && existsSync(keyFile) && readFileSync(keyFile, 'utf8') === key) return false;
  const partial = `${target.output}.${process.pid}`;
  await runOrFail(target.compiler, [...target.flags, ...objects, ...target.linkFlags, '-o', partial]);
  await rename(partial, target.output);
  writeFileSync(keyFile, key);
  return true;
}

async function compile(
  compiler: string,
  version: string,
  file: string,
  flags: string[],
  cacheFolder: string,
): Promise<string> {
  const name = `${basename(file)}-${hash(version, file, ...flags).slice(0, 16)}`;
  const object = join(cacheFolder, `${name}.o`);
  const recordFile = join(cacheFolder, `${name}.json`);
  if (existsSync(object) && existsSync(recordFile)) {
    const record = JSON.parse(readFileSync(recordFile, 'utf8')) as ObjectRecord;
    const fresh = Object.entries(record.dependencies).every(([path, value]) => hashFile(path) === value);
    if (fresh) return object;
  }
  await rm(recordFile, { force: true });
  // Two processes may compile the same file at once: each under a name of its own until it is whole.
  const dependencyFile = join(cacheFolder, `${name}.${process.pid}.d`);
  const partial = join(cacheFolder, `${name}.${process.pid}.o`);
  await runOrFail(compiler, [...flags, '-c', file, '-MD', '-MF', dependencyFile, '-o', partial]);
  await rename(partial, object);
  const text = readFileSync(dependencyFile, 'utf8').replace(/\\\n/g, ' ');
  const paths = text
    .slice(text.indexOf(':') + 1)
    .trim()
    .split(/\s+/);
  const dependencies = Object.fromEntries(paths.map((path) => [path, hashFile(path)]));
  const partialRecord = `${recordFile}.${process.pid}`;
  writeFileSync(partialRecord, JSON.stringify({ dependencies } satisfies ObjectRecord));
  await rename(partialRecord, recordFile);
  await rm(dependencyFile);
  fileHashes.delete(object);
  return object;
}

async function runOrFail(command: string, args: string[]): Promise<void> {
  try {
    const { stderr } = await run(command, args, { maxBuffer: 16 << 20 });
    if (stderr !== '') process.stderr.write(stderr);
  } catch (error) {
    throw new Failure(`${command} failed:\n${(error as { stderr?: string }).stderr ?? String(error)}`);
  }
}
