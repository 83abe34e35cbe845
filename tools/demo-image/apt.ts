// Packages of another architecture without touching the system: apt with all its state in a private folder, using the
// system's own sources, keys and proxies.

import { execFile, spawn } from 'node:child_process';
import { mkdir, readdir, writeFile } from 'node:fs/promises';
import path from 'node:path';
import { promisify } from 'node:util';
import { Failure } from '../../host/failure.js';

const run = promisify(execFile);
const OUTPUT_SIZE_MAX = 64 << 20;

export class PrivateApt {
  readonly #folder: string;
  readonly #options: string[];

  /** `release`: take packages from this suite even where another one has newer ones. */
  constructor(folder: string, architecture: string, release: string | null = null) {
    this.#folder = folder;
    const settings = {
      'APT::Architecture': architecture,
      'APT::Architectures': architecture,
      'APT::Sandbox::User': 'root',
      'Acquire::Languages': 'none',
      'Dir::State': path.join(folder, 'state'),
      'Dir::State::status': path.join(folder, 'state', 'status'),
      'Dir::Cache': path.join(folder, 'cache'),
      'Dir::Log': path.join(folder, 'log'),
      ...(release === null ? {} : { 'APT::Default-Release': release }),
    };
    this.#options = Object.entries(settings).flatMap(([name, value]) => ['-o', `${name}=${value}`]);
  }

  /** Fetches the package lists. `onProgress` gets 0 to 100. Returns apt's complaint when a source failed, else null: the
   * system may have sources that have nothing for this architecture, and what is missing shows when it is asked for. */
  async update(onProgress: (percent: number) => void): Promise<string | null> {
    for (const name of ['state/lists/partial', 'cache/archives/partial', 'log']) {
      await mkdir(path.join(this.#folder, name), { recursive: true });
    }
    await writeFile(path.join(this.#folder, 'state', 'status'), '');
    try {
      await this.#runWithProgress(['update'], this.#folder, onProgress);
      return null;
    } catch (error) {
      if (error instanceof Failure) return error.message;
      throw error;
    }
  }

  /** The packages that `name` (a metapackage, say) depends on directly. */
  async dependencies(name: string): Promise<string[]> {
    const text = await this.#run('apt-cache', ['depends', '--important', name]);
    return [...text.matchAll(/^ *Depends: ([^<\s]+)/gm)].map((match) => match[1]);
  }

  /** Everything that an installation of `names` on an empty system would install. */
  async closure(names: string[]): Promise<string[]> {
    const text = await this.#run('apt-get', ['install', '--simulate', '--no-install-recommends', ...names]);
    return [...text.matchAll(/^Inst (\S+)/gm)].map((match) => match[1]);
  }

  /** Downloads and unpacks packages into `target`; apt checks them against the signed lists. */
  async unpack(names: string[], target: string, onProgress: (percent: number) => void): Promise<void> {
    const archives = path.join(this.#folder, `archives-${path.basename(target)}`);
    await mkdir(archives, { recursive: true });
    await mkdir(target, { recursive: true });
    await this.#runWithProgress(['download', ...names], archives, onProgress);
    for (const file of (await readdir(archives)).sort()) {
      if (file.endsWith('.deb')) await run('dpkg-deb', ['--extract', path.join(archives, file), target]);
    }
  }

  async #run(program: string, args: string[]): Promise<string> {
    try {
      const { stdout } = await run(program, [...this.#options, ...args], {
        env: { ...process.env, LC_ALL: 'C' },
        maxBuffer: OUTPUT_SIZE_MAX,
      });
      return stdout;
    } catch (error) {
      throw aptFailure(`${program} ${args.join(' ')}`, (error as { stderr?: string }).stderr ?? String(error));
    }
  }

  /** apt-get with its machine-readable progress on descriptor 3: `dlstatus:NUMBER:PERCENT:TEXT`. */
  #runWithProgress(args: string[], folder: string, onProgress: (percent: number) => void): Promise<void> {
    return new Promise((resolve, reject) => {
      const child = spawn('apt-get', [...this.#options, '-o', 'APT::Status-Fd=3', '--quiet', ...args], {
        cwd: folder,
        env: { ...process.env, LC_ALL: 'C', DEBIAN_FRONTEND: 'noninteractive' },
        stdio: ['ignore', 'ignore', 'pipe', 'pipe'],
      });
      let errors = '';
      child.stderr?.on('data', (data) => {
        errors += data;
      });
      child.stdio[3]?.on('data', (data: Buffer) => {
        const percents = [...data.toString().matchAll(/^dlstatus:[^:]*:([0-9.]+):/gm)];
        const last = percents.at(-1);
        if (last !== undefined) onProgress(Number(last[1]));
      });
      child.on('error', (error) => reject(aptFailure('apt-get', error.message)));
      child.on('close', (status) => {
        if (status === 0) resolve();
        else reject(aptFailure(`apt-get ${args.join(' ')}`, errors));
      });
    });
  }
}

function aptFailure(what: string, errors: string): Failure {
  const lines = errors.trim().split('\n').slice(-12).join('\n');
  return new Failure(
    `${what} failed:\n${lines}\n` +
      'It is built from packages of the Debian release that this system uses: check its apt sources and network.',
  );
}
