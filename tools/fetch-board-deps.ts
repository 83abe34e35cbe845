// Fetches the C sources that the boards are built with into build/deps/: wasm3 from an npm package, lwIP, mbedTLS and zlib
// from Debian's source packages. Everything is pinned by hash, nothing is committed, and what is there already is left alone.
//
//   node build/tools/fetch-board-deps.js [wasm3|lwip|mbedtls|zlib]...

import { execFile } from 'node:child_process';
import { createHash } from 'node:crypto';
import { cp, mkdir, mkdtemp, readdir, readFile, rename, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join, resolve } from 'node:path';
import { fileURLToPath } from 'node:url';
import { promisify } from 'node:util';
import { Failure, failureText } from '../host/failure.js';

const run = promisify(execFile);

interface NpmSource {
  kind: 'npm';
  package: string;
  version: string;
  /** Subresource-integrity hash of the tarball, as the lock file of a package manager has it. */
  integrity: string;
  /** The folder in the tarball that holds the sources, and which of its files are wanted. */
  folder: string;
  files: RegExp;
}

interface DebianSource {
  kind: 'debian';
  package: string;
  /** Name and SHA-256 of the upstream tarball. Debian keeps it for all revisions of its own packaging. */
  tarball: string;
  sha256: string;
}

export const BOARD_DEPENDENCIES: Record<string, NpmSource | DebianSource> = {
  wasm3: {
    kind: 'npm',
    package: 'react-native-webassembly',
    version: '0.3.3',
    integrity: 'sha512-wC8r/C6bHcWsNZmzES6vhMX1bao3JtG2FIVC9Un5kTn9EKQBN63qGVGMaD7ppe/vkzD8aPTfj9MKjsid4m7VRA==',
    folder: 'package/cpp',
    files: /^(m3_(?!api_)\w+\.[ch]|wasm3(_defs)?\.h)$/,
  },
  lwip: {
    kind: 'debian',
    package: 'lwip',
    tarball: 'lwip_2.1.3+dfsg1.orig.tar.xz',
    sha256: '0a8276d09fc4e97bbba2f953d74af2388fc2195ea156be9d7589e297a68fde24',
  },
  mbedtls: {
    kind: 'debian',
    package: 'mbedtls',
    tarball: 'mbedtls_2.28.3.orig.tar.gz',
    sha256: '3b4953aa55a681e084d31892d9904cc5328d6b4958ea57b90ae4b4f94ae69a8d',
  },
  zlib: {
    kind: 'debian',
    package: 'zlib',
    tarball: 'zlib_1.2.13.dfsg.orig.tar.bz2',
    sha256: '71feb7947e3c00ef125f83b79a4e529bde31171e5babe48b391f06758d1ab0a1',
  },
};

/** Makes sure that build/deps/NAME holds the pinned sources; returns that folder. */
export async function fetchBoardDependency(root: string, name: string): Promise<string> {
  const source = BOARD_DEPENDENCIES[name];
  if (source === undefined) {
    throw new Failure(`no dependency "${name}"; there are ${Object.keys(BOARD_DEPENDENCIES).join(', ')}`);
  }
  const target = join(root, 'build', 'deps', name);
  const pin = source.kind === 'npm' ? source.integrity : source.sha256;
  const isThere = async (): Promise<boolean> => (await readFile(join(target, 'PIN'), 'utf8').catch(() => '')) === pin;
  if (await isThere()) return target;

  const scratch = await mkdtemp(join(tmpdir(), 'ribbon-deps-'));
  try {
    const unpacked = join(scratch, 'sources');
    await mkdir(unpacked);
    if (source.kind === 'npm') await fetchNpm(source, scratch, unpacked);
    else await fetchDebian(source, scratch, unpacked);
    await writeFile(join(unpacked, 'PIN'), pin);
    await mkdir(join(root, 'build', 'deps'), { recursive: true });
    // Copy beside the target, then rename: an interrupted run leaves no half-filled folder under the final name.
    const partial = `${target}.${process.pid}`;
    await cp(unpacked, partial, { recursive: true });
    try {
      // Another process may have been quicker, and may be at work with it already.
      if (await isThere()) return target;
      await rm(target, { recursive: true, force: true });
      await rename(partial, target).catch(async (error: unknown) => {
        if (!(await isThere())) throw error;
      });
    } finally {
      await rm(partial, { recursive: true, force: true });
    }
  } finally {
    await rm(scratch, { recursive: true, force: true });
  }
  return target;
}

async function fetchNpm(source: NpmSource, scratch: string, target: string): Promise<void> {
  // `npm pack` rather than a dependency: the package's own dependencies are a framework for telephones.
  const { stdout } = await run('npm', ['pack', '--silent', `${source.package}@${source.version}`], { cwd: scratch });
  const tarball = join(scratch, stdout.trim());
  check(tarball, await readFile(tarball), 'sha512', Buffer.from(source.integrity.slice(7), 'base64').toString('hex'));
  await run('tar', ['-xzf', tarball, '-C', scratch]);
  const folder = join(scratch, source.folder);
  for (const file of await readdir(folder)) {
    if (source.files.test(file)) await cp(join(folder, file), join(target, file));
  }
}

async function fetchDebian(source: DebianSource, scratch: string, target: string): Promise<void> {
  const configuration = await writeSourceConfiguration(scratch);
  const environment = { ...process.env, APT_CONFIG: configuration, LC_ALL: 'C' };
  try {
    await run('apt-get', ['update', '-qq'], { cwd: scratch, env: environment });
    await run('apt-get', ['source', '-qq', '--download-only', source.package], { cwd: scratch, env: environment });
  } catch (error) {
    throw new Failure(`apt-get cannot fetch the source package "${source.package}": ${(error as Error).message}`);
  }
  const tarball = join(scratch, source.tarball);
  const content = await readFile(tarball).catch(() => {
    throw new Failure(`the source package "${source.package}" of this Debian does not hold ${source.tarball}`);
  });
  check(source.tarball, content, 'sha256', source.sha256);
  await run('tar', ['-xf', tarball, '-C', target, '--strip-components=1']);
}

/** A private apt configuration: the system's own Debian sources, turned into source-package entries. */
async function writeSourceConfiguration(scratch: string): Promise<string> {
  const parts = join(scratch, 'sources.list.d');
  for (const folder of [parts, join(scratch, 'lists', 'partial'), join(scratch, 'cache', 'archives', 'partial')]) {
    await mkdir(folder, { recursive: true });
  }
  const stanzas: string[] = [];
  const lines: string[] = [];
  const systemParts = await readdir('/etc/apt/sources.list.d').catch(() => [] as string[]);
  for (const file of ['/etc/apt/sources.list', ...systemParts.map((name) => `/etc/apt/sources.list.d/${name}`)]) {
    const text = await readFile(file, 'utf8').catch(() => '');
    if (file.endsWith('.sources'))
      stanzas.push(...text.split(/\n\s*\n/).filter((stanza) => /debian-archive/.test(stanza)));
    else if (file.endsWith('.list'))
      lines.push(...text.split('\n').filter((line) => /^deb .*debian.* main\b/.test(line)));
  }
  if (stanzas.length + lines.length === 0) throw new Failure('this system has no Debian package sources in /etc/apt');
  await writeFile(join(parts, 'a.sources'), stanzas.join('\n\n').replace(/^Types:.*$/gm, 'Types: deb-src'));
  await writeFile(join(parts, 'b.list'), lines.join('\n').replace(/^deb /gm, 'deb-src '));
  const configuration = join(scratch, 'apt.conf');
  await writeFile(
    configuration,
    `Dir::Etc::sourcelist "/dev/null";\nDir::Etc::sourceparts "${parts}";\nDir::State::lists "${scratch}/lists";\n` +
      `Dir::Cache "${scratch}/cache";\nAPT::Sandbox::User "";\n`,
  );
  return configuration;
}

function check(what: string, content: Uint8Array, algorithm: 'sha256' | 'sha512', expected: string): void {
  const found = createHash(algorithm).update(content).digest('hex');
  if (found !== expected) throw new Failure(`${what} has ${algorithm} ${found}, but ${expected} is pinned`);
}

async function main(): Promise<void> {
  const root = resolve(import.meta.dirname, '..', '..');
  const names = process.argv.length > 2 ? process.argv.slice(2) : Object.keys(BOARD_DEPENDENCIES);
  for (const name of names) {
    const folder = await fetchBoardDependency(root, name);
    process.stdout.write(`${name}: ${folder}\n`);
  }
}

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  main().catch((error: unknown) => {
    process.stderr.write(`fetch-board-deps: ${failureText(error)}\n`);
    process.exitCode = 1;
  });
}
