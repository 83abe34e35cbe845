// Small firmwares in WebAssembly text, good and hostile, for the engine tests.

import { execFileSync } from 'node:child_process';
import { mkdirSync, renameSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';

export interface TestModule {
  name: string;
  text: string;
  /** Skips wat2wasm's own validation, for modules that are malformed on purpose. */
  unchecked?: boolean;
}

const LOG = '(import "imports" "log_write" (func $log (param i32 i32 i32)))';
const MEMORY = '(import "env" "memory" (memory 1))';
const ABORT = '(import "env" "abort" (func $abort (param i32 i32 i32 i32)))';
/** Logs "good firmware" from init() and then sleeps. */
const GOOD_INIT =
  '(func (export "init") (result i32) (call $log (i32.const 2) (i32.const 4096) (i32.const 13)) (i32.const 0))';
const NOW = '(import "imports" "clock_ms" (func $now (result i32)))';
const STORE = `(import "imports" "store_read" (func $read (param i32 i32 i32 i32)))
  (import "imports" "store_write" (func $write (param i32 i32 i32 i32)))
  (import "imports" "store_flush" (func $flush (param i32)))
  (import "imports" "store_trim" (func $trim (param i32 i32 i32)))
  (import "imports" "store_completed" (func $completed (result i32)))`;
const INIT = '(func (export "init") (result i32) (i32.const 0))';
const SLEEP = '(func (export "step") (result i32) (i32.const -1))';

/** A module whose step() runs `body`, which must leave an i32. */
const stepping = (name: string, body: string, extra = ''): TestModule => ({
  name,
  text: `(module ${LOG} ${ABORT} ${MEMORY} ${extra} ${INIT} (func (export "step") (result i32) ${body}))`,
});

/** A module that uses the local store of 16 blocks (posix-card.ts). */
const storing = (name: string, body: string): TestModule => stepping(name, `${body} (i32.const 0)`, STORE);
const call = (name: string, ...values: number[]): string =>
  `(call $${name} ${values.map((value) => `(i32.const ${value})`).join(' ')})`;

/** Writes two blocks at block 14, flushes, trims others, reads them back elsewhere and compares: unreachable, a trap, if anything is not as it should be, else "good store". */
export const STORE_ROUND_TRIP: TestModule = {
  name: 'store-round-trip',
  text: `(module ${LOG} ${MEMORY} ${STORE} (import "imports" "store_size" (func $size (result i32)))
    (func $ended (param $tag i32) (if (i32.ne (call $completed) (local.get $tag)) (then unreachable)))
    (func (export "init") (result i32) (local $at i32)
      (if (i32.ne (call $size) (i32.const 16)) (then unreachable))
      (if (i32.ne (call $completed) (i32.const -1)) (then unreachable))
      (memory.fill (i32.const 8195) (i32.const 0xa5) (i32.const 8192))
      (i32.store (i32.const 12290) (i32.const 0x12345678))
      ${call('write', 0, 14, 2, 8195)} (call $ended (i32.const 0))
      ${call('flush', 255)} ${call('trim', 7, 3, 4)} (call $ended (i32.const 255)) (call $ended (i32.const 7))
      ${call('read', 0, 14, 2, 24576)} (call $ended (i32.const 0))
      (loop $next
        (if (i32.ne (i32.load8_u (i32.add (i32.const 8195) (local.get $at)))
                    (i32.load8_u (i32.add (i32.const 24576) (local.get $at)))) (then unreachable))
        (local.set $at (i32.add (local.get $at) (i32.const 1)))
        (br_if $next (i32.lt_u (local.get $at) (i32.const 8192))))
      (call $log (i32.const 2) (i32.const 40960) (i32.const 10)) (i32.const 0))
    ${SLEEP} (data (i32.const 40960) "good store"))`,
};

/** The same in steps, for a device that takes its time: 40 blocks out of memory at an odd address, and back to another. */
export const STORE_ASYNCHRONOUS: TestModule = {
  name: 'store-asynchronous',
  text: `(module ${LOG} ${MEMORY} ${STORE} (global $phase (mut i32) (i32.const 0))
    (func (export "init") (result i32) (local $at i32)
      (loop $next
        (i32.store (i32.add (i32.const 65539) (local.get $at)) (i32.mul (local.get $at) (i32.const 0x9e3779b1)))
        (local.set $at (i32.add (local.get $at) (i32.const 4)))
        (br_if $next (i32.lt_u (local.get $at) (i32.const 163840))))
      ${call('write', 0, 1000, 40, 65_539)} (i32.const 0))
    (func $compare (local $at i32)
      (loop $next
        (if (i32.ne (i32.load (i32.add (i32.const 65539) (local.get $at)))
                    (i32.load (i32.add (i32.const 400001) (local.get $at)))) (then unreachable))
        (local.set $at (i32.add (local.get $at) (i32.const 4)))
        (br_if $next (i32.lt_u (local.get $at) (i32.const 163840)))))
    (func (export "step") (result i32) (local $tag i32)
      (local.set $tag (call $completed))
      (if (i32.eq (local.get $tag) (i32.const -1)) (then (return (i32.const -1))))
      (if (i32.ne (local.get $tag) (global.get $phase)) (then unreachable))
      (global.set $phase (i32.add (global.get $phase) (i32.const 1)))
      (if (i32.eq (global.get $phase) (i32.const 1)) (then ${call('flush', 1)}))
      (if (i32.eq (global.get $phase) (i32.const 2)) (then ${call('read', 2, 1000, 40, 400_001)}))
      (if (i32.eq (global.get $phase) (i32.const 3))
        (then (call $compare) (call $log (i32.const 2) (i32.const 40960) (i32.const 10))))
      (i32.const 0))
    (data (i32.const 40960) "good store"))`,
};

/** Opens path 0, reads the four bytes that come, not one more, and after a second sends four to a server that has gone meanwhile: logs "closed" when it is told. */
export const SENDS_TO_NOBODY: TestModule = {
  name: 'sends-to-nobody',
  text: `(module ${LOG} ${MEMORY}
    (import "imports" "net_open" (func $open (param i32 i32)))
    (import "imports" "net_state" (func $state (param i32) (result i32)))
    (import "imports" "net_receive" (func $receive (param i32 i32 i32) (result i32)))
    (import "imports" "net_send" (func $send (param i32 i32 i32) (result i32)))
    (global $phase (mut i32) (i32.const 0))
    (func (export "init") (result i32) (call $open (i32.const 0) (i32.const 0)) (i32.const 0))
    (func (export "step") (result i32)
      (if (i32.eq (global.get $phase) (i32.const 0))
        (then
          (if (i32.ne (call $receive (i32.const 0) (i32.const 8192) (i32.const 4)) (i32.const 4)) (then (return (i32.const -1))))
          (global.set $phase (i32.const 1))
          (return (i32.const 1000))))
      (if (i32.eqz (call $state (i32.const 0)))
        (then
          (call $log (i32.const 2) (i32.const 4096) (i32.const 6))
          (return (i32.const -1))))
      (if (i32.eq (global.get $phase) (i32.const 1))
        (then
          (global.set $phase (i32.const 2))
          (drop (call $send (i32.const 0) (i32.const 8192) (i32.const 4)))))
      (i32.const -1))
    (data (i32.const 4096) "closed"))`,
};

export const GOOD: TestModule = {
  name: 'good',
  text: `(module ${LOG} ${MEMORY} ${GOOD_INIT} ${SLEEP} (data (i32.const 4096) "good firmware"))`,
};

/** Trap while they run; `kind` is what the crash record says. */
export const TRAPPING: (TestModule & { kind: string; slow?: boolean })[] = [
  { ...stepping('load-past-end', '(i32.load (i32.const -4))'), kind: 'out-of-bounds' },
  {
    ...stepping('load-at-last-byte', '(i32.load (i32.sub (i32.mul (memory.size) (i32.const 65536)) (i32.const 3)))'),
    kind: 'out-of-bounds',
  },
  { ...stepping('load-with-offset', '(i32.load offset=0xffffffff (i32.const -1))'), kind: 'out-of-bounds' },
  {
    ...stepping('store-past-end', '(i64.store (i32.const 0x7fffffff) (i64.const 1)) (i32.const 0)'),
    kind: 'out-of-bounds',
  },
  {
    ...stepping(
      'copy-past-end',
      '(memory.copy (i32.const 0) (i32.const 0xfffff) (i32.const 0x7fffffff)) (i32.const 0)',
    ),
    kind: 'out-of-bounds',
  },
  {
    ...stepping('fill-past-end', '(memory.fill (i32.const -16) (i32.const 1) (i32.const 32)) (i32.const 0)'),
    kind: 'out-of-bounds',
  },
  {
    ...stepping('import-pointer', '(call $log (i32.const 0) (i32.const -2) (i32.const 100)) (i32.const 0)'),
    kind: 'import-argument',
  },
  {
    ...stepping('import-length', '(call $log (i32.const 0) (i32.const 0) (i32.const -1)) (i32.const 0)'),
    kind: 'import-argument',
  },
  { ...storing('store-read-past-memory', call('read', 0, 0, 16, 2 * 1024 * 1024 - 65_535)), kind: 'import-argument' },
  { ...storing('store-write-past-memory', call('write', 0, 0, 1, -4095)), kind: 'import-argument' },
  { ...storing('store-past-device', call('read', 0, 15, 2, 65_536)), kind: 'import-argument' },
  { ...storing('store-block-wraps', call('write', 0, -1, 2, 65_536)), kind: 'import-argument' },
  // 2^20 blocks are 2^32 bytes: none, if counted in 32 bits.
  { ...storing('store-count-wraps', call('read', 0, 0, 0x100000, 65_536)), kind: 'import-argument' },
  { ...storing('store-trim-past-end', call('trim', 0, 0, 17)), kind: 'import-argument' },
  { ...storing('store-tag', call('flush', 256)), kind: 'import-argument' },
  { ...storing('store-tag-in-use', call('flush', 3) + call('flush', 3)), kind: 'import-argument' },
  { ...stepping('divide-by-zero', '(i32.div_u (i32.const 1) (i32.const 0))'), kind: 'integer' },
  { ...stepping('divide-overflow', '(i32.div_s (i32.const 0x80000000) (i32.const -1))'), kind: 'integer' },
  { ...stepping('unreachable', 'unreachable'), kind: 'unreachable' },
  {
    ...stepping(
      'failed-assertion',
      '(call $abort (i32.const 1028) (i32.const 0) (i32.const 17) (i32.const 5)) unreachable',
      '(data (i32.const 1024) "\\08\\00\\00\\00b\\00o\\00o\\00m\\00")',
    ),
    kind: 'abort',
  },
  {
    ...stepping(
      'abort-bad-string',
      '(call $abort (i32.const -8) (i32.const 2) (i32.const 1) (i32.const 1)) unreachable',
    ),
    kind: 'import-argument',
  },
  { ...stepping('endless-loop', '(loop $l (br $l)) (i32.const 0)'), kind: 'watchdog', slow: true },
  {
    ...stepping('endless-imports', '(loop $l (drop (call $now)) (br $l)) (i32.const 0)', NOW),
    kind: 'watchdog',
    slow: true,
  },
];

/** Never run: refused before an engine sees them, for this reason. */
export const REFUSED: (TestModule & { reason: RegExp })[] = [
  { ...stepping('recursion', '(call $deep)', '(func $deep (result i32) (call $deep))'), reason: /recursion/ },
  {
    ...stepping('mutual-recursion', '(call $a)', '(func $a (result i32) (call $b)) (func $b (result i32) (call $a))'),
    reason: /recursion/,
  },
  {
    ...stepping(
      'deep-calls',
      '(call $f0)',
      Array.from(
        { length: 80 },
        (_, i) => `(func $f${i} (result i32) ${i === 79 ? '(i32.const 0)' : `(call $f${i + 1})`})`,
      ).join(' '),
    ),
    reason: /nested too deeply/,
  },
  {
    ...stepping('deep-blocks', `${'(block '.repeat(120)}${')'.repeat(120)} (i32.const 0)`),
    reason: /nested too deeply/,
  },
  {
    name: 'missing-import',
    text: `(module (import "imports" "format_disk" (func (param i32))) ${MEMORY} ${INIT} ${SLEEP})`,
    reason: /import is unknown/,
  },
  {
    name: 'import-of-other-module',
    text: `(module (import "wasi" "clock_ms" (func (result i32))) ${MEMORY} ${INIT} ${SLEEP})`,
    reason: /import is unknown/,
  },
  {
    name: 'wrong-signature',
    text: `(module (import "imports" "clock_ms" (func (result i64))) ${MEMORY} ${INIT} ${SLEEP})`,
    reason: /import has the wrong type/,
  },
  {
    name: 'wrong-parameters',
    text: `(module (import "imports" "net_close" (func (param i32 i32))) ${MEMORY} ${INIT} ${SLEEP})`,
    reason: /import has the wrong type/,
  },
  { ...stepping('memory-grow', '(memory.grow (i32.const 1))'), reason: /memory\.grow/ },
  { name: 'own-memory', text: `(module (memory 1) ${INIT} ${SLEEP})`, reason: /must be imported/ },
  { name: 'no-memory', text: `(module ${INIT} ${SLEEP})`, reason: /does not import env\.memory/ },
  {
    name: 'memory-too-large',
    text: `(module (import "env" "memory" (memory 65536)) ${INIT} ${SLEEP})`,
    reason: /more memory/,
  },
  {
    name: 'memory-limited',
    text: `(module (import "env" "memory" (memory 1 2)) ${INIT} ${SLEEP})`,
    reason: /larger than the module allows/,
  },
  { ...stepping('floating-point', '(i32.trunc_f32_s (f32.const 1))'), reason: /not allowed/ },
  { ...stepping('table', '(i32.const 0)', '(table 1 funcref)'), reason: /tables/ },
  { name: 'no-step', text: `(module ${MEMORY} ${INIT})`, reason: /does not export/ },
  {
    name: 'step-with-parameter',
    text: `(module ${MEMORY} ${INIT} (func (export "step") (param i32) (result i32) (i32.const 0)))`,
    reason: /wrong type/,
  },
  {
    name: 'data-out-of-bounds',
    text: `(module ${MEMORY} ${INIT} ${SLEEP} (data (i32.const -1) "xx"))`,
    reason: /data segment is out of bounds/,
  },
  { ...stepping('operand-missing', 'i32.add'), unchecked: true, reason: /operand is missing/ },
  { ...stepping('operand-type', '(i32.add (i64.const 1) (i32.const 2))'), unchecked: true, reason: /wrong type/ },
  { ...stepping('operand-left-over', '(i32.const 1) (i32.const 2)'), unchecked: true, reason: /left over/ },
  { ...stepping('unknown-local', '(local.get 7)'), unchecked: true, reason: /unknown local/ },
  { ...stepping('unknown-label', '(br 9)'), unchecked: true, reason: /unknown label/ },
  {
    ...stepping('constant-global', '(global.set 0 (i32.const 1)) (i32.const 0)', '(global i32 (i32.const 0))'),
    unchecked: true,
    reason: /constant global/,
  },
  {
    ...stepping('if-without-else', '(if (result i32) (i32.const 1) (then (i32.const 2)))'),
    unchecked: true,
    reason: /without else/,
  },
];

/** Assembles into `folder`; returns the file. */
export function assemble(module: TestModule, folder: string): string {
  mkdirSync(folder, { recursive: true });
  // Under names of this process: several test files make the same modules at once.
  const text = join(folder, `${module.name}.${process.pid}.wat`);
  const partial = join(folder, `${module.name}.${process.pid}.wasm`);
  const wasm = join(folder, `${module.name}.wasm`);
  writeFileSync(text, module.text);
  execFileSync('wat2wasm', [...(module.unchecked ? ['--no-check'] : []), text, '-o', partial]);
  rmSync(text);
  renameSync(partial, wasm);
  return wasm;
}
