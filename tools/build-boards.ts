// Builds the runtime for a board: `node build/tools/build-boards.js [posix] [posix-sanitized] [zynq] …`.
//
// The firmware in build/firmware/firmware.wasm is compiled in ahead of time when it is there; without it the runtime has
// wasm3 only. Everything lands in build/boards/.

import { existsSync, mkdirSync, readdirSync } from 'node:fs';
import { join, resolve } from 'node:path';
import { fileURLToPath } from 'node:url';
import { Failure, failureText } from '../host/failure.js';
import { generateAot } from './boards/aot.js';
import { writeArtefacts } from './boards/artefacts.js';
import { buildTarget, type Sources, writeGenerated } from './boards/c-build.js';
import { importsHeader, importsTable, readImports } from './boards/import-table.js';
import { fetchBoardDependency } from './fetch-board-deps.js';

/** Our own C is compiled with these; what others wrote is compiled without warnings. */
const WARNINGS = ['-Wall', '-Wextra', '-Wshadow', '-Wstrict-prototypes', '-Wmissing-prototypes', '-Wvla', '-Werror'];
const RUNTIME_FILES = [
  'accelerators.c',
  'deflate.c',
  'aot_runtime.c',
  'crash.c',
  'crc32c.c',
  'engine.c',
  'engine_aot.c',
  'engine_wasm3.c',
  'firmware.c',
  'front_end.c',
  'imports.c',
  'net.c',
  'paths.c',
  'runtime.c',
  'store.c',
  'wasm_check.c',
];

export interface CommonSources {
  /** The runtime, its libraries and the ahead-of-time compiled firmwares: what every board is linked from. */
  sources: Sources[];
  includes: string[];
}

/** What every board needs, for a compiler that takes GCC's flags. */
export async function commonSources(root: string, firmwares: string[]): Promise<CommonSources> {
  const wasm3 = await fetchBoardDependency(root, 'wasm3');
  const mbedtls = await fetchBoardDependency(root, 'mbedtls');
  const zlib = await fetchBoardDependency(root, 'zlib');
  const generated = join(root, 'build', 'boards', 'generated');
  mkdirSync(generated, { recursive: true });
  const imports = readImports(join(root, 'assembly', 'imports.ts'));
  writeGenerated(join(generated, 'imports.h'), importsHeader(imports));
  writeGenerated(join(generated, 'import_table.c'), importsTable(imports));
  const aot = generateAot(firmwares, generated);

  const runtime = join(root, 'boards', 'runtime');
  const includes = [
    `-I${runtime}`,
    `-I${generated}`,
    `-isystem${wasm3}`,
    `-isystem${join(mbedtls, 'include')}`,
    // Without files and without an allocator of its own.
    `-isystem${zlib}`,
    '-DZ_SOLO',
    '-DNO_GZIP',
    // wasm2c's own header, as Debian installs it. Named by its folder, since a cross compiler does not look there.
    `-isystem/usr/src/wasm2c`,
    '-DMBEDTLS_CONFIG_FILE="mbedtls_config.h"',
    '-Dd_m3HasFloat=0',
    '-Dd_m3VerboseErrorMessages=0',
    '-Dd_m3CodePageAlignSize=4096',
    // Bounds are checked in code: a board has no signals to tell of them. How deep calls go is known when a module is loaded
    // (wasm_check.c).
    '-DWASM_RT_MEMCHECK_SIGNAL_HANDLER=0',
    '-DWASM_RT_USE_STACK_DEPTH_COUNT=0',
  ];
  const listC = (folder: string, pattern: RegExp): string[] =>
    readdirSync(folder)
      .filter((file) => pattern.test(file))
      .sort()
      .map((file) => join(folder, file));
  return {
    includes,
    sources: [
      { files: RUNTIME_FILES.map((file) => join(runtime, file)), flags: [...includes, ...WARNINGS] },
      {
        files: [join(generated, 'import_table.c'), aot.table],
        flags: [...includes, ...WARNINGS, '-Wno-missing-prototypes'],
      },
      { files: aot.modules, flags: [...includes, '-w'] },
      // wasm3 counts on integers that wrap.
      { files: listC(wasm3, /^m3_.*\.c$/), flags: [...includes, '-w', '-fwrapv'] },
      { files: listC(join(mbedtls, 'library'), /\.c$/), flags: [...includes, '-w'] },
      {
        files: listC(zlib, /^(adler32|crc32|deflate|inffast|inflate|inftrees|trees|zutil)\.c$/),
        flags: [...includes, '-w'],
      },
    ],
  };
}

export interface PosixBuild {
  /** Firmwares to compile ahead of time. */
  firmwares: string[];
  /** AddressSanitizer and UndefinedBehaviorSanitizer. */
  sanitized?: boolean;
  compiler?: string;
  output: string;
}

export async function buildPosix(root: string, options: PosixBuild): Promise<boolean> {
  const common = await commonSources(root, options.firmwares);
  const posix = join(root, 'boards', 'posix');
  const sanitizers = ['-fsanitize=address,undefined', '-fno-sanitize-recover=all', '-DRIBBON_SANITIZED'];
  const flags = ['-std=c11', '-D_GNU_SOURCE', '-O2', '-g', '-fno-omit-frame-pointer', '-ffunction-sections'];
  const files = ['main.c', 'sockets.c', 'doorbell.c', 'store_file.c'].map((file) => join(posix, file));
  return buildTarget(
    {
      compiler: options.compiler ?? 'gcc',
      flags: [...flags, ...(options.sanitized ? sanitizers : [])],
      sources: [{ files, flags: [...common.includes, `-I${posix}`, ...WARNINGS] }, ...common.sources],
      linkFlags: ['-lm', '-Wl,--gc-sections'],
      output: options.output,
    },
    join(root, 'build', 'boards', 'objects'),
  );
}

export interface ZynqBuild {
  firmwares: string[];
  /** A folder of boards/zynq/boards/. */
  board: string;
  ddrMegabytes: number;
  output: string;
  /** Further flags of the link. */
  linkFlags?: string[];
}

export async function buildZynq(root: string, options: ZynqBuild): Promise<boolean> {
  const common = await commonSources(root, options.firmwares);
  const lwip = join(await fetchBoardDependency(root, 'lwip'), 'src');
  const runtime = join(root, 'boards', 'runtime');
  const zynq = join(root, 'boards', 'zynq');
  const script = join(zynq, 'zynq.ld');
  const listC = (folder: string): string[] =>
    readdirSync(folder)
      .filter((file) => /\.[cS]$/.test(file))
      .sort()
      .map((file) => join(folder, file));
  const includes = [
    ...common.includes,
    `-isystem${join(lwip, 'include')}`,
    `-I${join(zynq, 'lwip')}`,
    `-I${zynq}`,
    `-I${join(zynq, 'boards', options.board)}`,
  ];
  const core = ['-mcpu=cortex-a9', '-mthumb', '-mfpu=neon', '-mfloat-abi=hard'];
  const flags = [...core, '-std=c11', '-D_GNU_SOURCE', '-O2', '-g', '-ffunction-sections', '-fdata-sections'];
  return buildTarget(
    {
      compiler: 'arm-none-eabi-gcc',
      flags,
      sources: [
        // Interrupt handlers save no floating point registers: no driver may touch them.
        { files: listC(zynq), flags: [...includes, ...WARNINGS, '-mgeneral-regs-only'] },
        {
          files: [join(runtime, 'transport_lwip.c'), join(runtime, 'syslog_lwip.c')],
          flags: [...includes, ...WARNINGS],
        },
        ...common.sources,
        {
          files: [
            ...listC(join(lwip, 'core')),
            ...listC(join(lwip, 'core', 'ipv4')),
            join(lwip, 'netif', 'ethernet.c'),
          ],
          flags: [...includes, '-w'],
        },
      ],
      linkFlags: [
        '-nostartfiles',
        `-T${script}`,
        `-Wl,--defsym=DDR_SIZE=${options.ddrMegabytes}M`,
        ...(options.linkFlags ?? []),
        '-Wl,--gc-sections',
        '-Wl,--no-warn-rwx-segments',
        `-Wl,-Map=${options.output}.map`,
        '-lm',
      ],
      linkInputs: [script],
      output: options.output,
    },
    join(root, 'build', 'boards', 'objects'),
  );
}

export const FIRMWARE_FILE = join('build', 'firmware', 'firmware.wasm');

/** What is put on a board: see boards/zynq/boards/BOARD/README.md. */
async function buildArtefacts(root: string, firmwares: string[], board: string, ddrMegabytes: number): Promise<string> {
  const folder = join(root, 'build', 'boards', board);
  mkdirSync(folder, { recursive: true });
  const elf = join(folder, 'ribbon-card.elf');
  await buildZynq(root, { firmwares, board, ddrMegabytes, output: elf });
  return writeArtefacts(folder, elf, firmwares[0] ?? null);
}

/** GCC's names for the Linux systems of single-board computers, by Debian's. */
export const CROSS_SYSTEMS = { arm64: 'aarch64-linux-gnu', armhf: 'arm-linux-gnueabihf' } as const;

/** The card as a program for another computer; returns its file. */
export async function buildCross(
  root: string,
  firmwares: string[],
  system: keyof typeof CROSS_SYSTEMS,
): Promise<string> {
  const output = join(root, 'build', 'boards', `ribbon-card-${system}`);
  await buildPosix(root, { firmwares, compiler: `${CROSS_SYSTEMS[system]}-gcc`, output });
  return output;
}

const TARGETS: Record<string, (root: string, firmwares: string[]) => Promise<string>> = {
  posix: async (root, firmwares) => {
    const output = join(root, 'build', 'boards', 'ribbon-card');
    await buildPosix(root, { firmwares, output });
    return output;
  },
  'posix-sanitized': async (root, firmwares) => {
    const output = join(root, 'build', 'boards', 'ribbon-card-sanitized');
    await buildPosix(root, { firmwares, sanitized: true, output });
    return output;
  },
  arm64: (root, firmwares) => buildCross(root, firmwares, 'arm64'),
  armhf: (root, firmwares) => buildCross(root, firmwares, 'armhf'),
  qemu: async (root, firmwares) => {
    const output = join(root, 'build', 'boards', 'ribbon-card-qemu.elf');
    await buildZynq(root, { firmwares, board: 'qemu', ddrMegabytes: 64, output });
    return output;
  },
  'qemu-wasm3': async (root) => {
    const output = join(root, 'build', 'boards', 'ribbon-card-qemu-wasm3.elf');
    await buildZynq(root, { firmwares: [], board: 'qemu', ddrMegabytes: 64, output });
    return output;
  },
  'zybo-z7': (root, firmwares) => buildArtefacts(root, firmwares, 'zybo-z7', 256),
  ebaz4205: (root, firmwares) => buildArtefacts(root, firmwares, 'ebaz4205', 256),
};

async function main(): Promise<void> {
  const root = resolve(import.meta.dirname, '..', '..');
  const names = process.argv.length > 2 ? process.argv.slice(2) : Object.keys(TARGETS);
  const firmware = join(root, FIRMWARE_FILE);
  const firmwares = existsSync(firmware) ? [firmware] : [];
  if (firmwares.length === 0) process.stderr.write(`build-boards: no ${FIRMWARE_FILE}: the runtime gets wasm3 only\n`);
  for (const name of names) {
    const build = TARGETS[name];
    if (build === undefined) throw new Failure(`no board "${name}"; there are ${Object.keys(TARGETS).join(', ')}`);
    process.stdout.write(`${name}: ${await build(root, firmwares)}\n`);
  }
}

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  main().catch((error: unknown) => {
    process.stderr.write(`build-boards: ${failureText(error)}\n`);
    process.exitCode = 1;
  });
}
