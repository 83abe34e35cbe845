// Every rule of the firmware build refuses a module that breaks it, and names the function. The good module beside them shows
// that it is the broken rule and nothing else that is refused.

import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import binaryen from 'binaryen';
import { ValueType } from '../../tools/firmware/module.js';
import { checkRules, readDeclaredImports, type Violation, violationText } from '../../tools/firmware/rules.js';

const { I32, I64 } = ValueType;

const DECLARED = readDeclaredImports(`
/** Milliseconds. */
export declare function clock_ms(): u32;
export declare function log_write(level: u32, text: usize, length: u32): void;
export declare function sample(offset: u64): bool;
`);

const MEMORY = '(import "env" "memory" (memory $memory 1))';
const INIT = '(func $init (export "init") (result i32) (i32.const 0))';
const STEP = '(func $step (export "step") (result i32) (i32.const 0))';

/** More than the firmware may use: the rules refuse, not the assembler. */
const { MutableGlobals, BulkMemory, SignExt, NontrappingFPToInt, SIMD128 } = binaryen.Features;
const FEATURES = MutableGlobals | BulkMemory | SignExt | NontrappingFPToInt | SIMD128;

function assemble(text: string): Uint8Array<ArrayBuffer> {
  const module = binaryen.parseText(`(module ${text})`);
  try {
    module.setFeatures(FEATURES);
    binaryen.setDebugInfo(true);
    return new Uint8Array(module.emitBinary());
  } finally {
    module.dispose();
  }
}

function check(text: string): Violation[] {
  return checkRules(assemble(text), DECLARED).violations;
}

interface Bad {
  name: string;
  text: string;
  rule: Violation['rule'];
  /** The function that is to be named. */
  function?: string;
  says: RegExp;
}

const BAD: Bad[] = [
  {
    name: 'an import that is not in the list',
    text: `${MEMORY} (import "imports" "net_peek" (func $net_peek)) ${INIT}
      (func $step (export "step") (result i32) (call $net_peek) (i32.const 0))`,
    rule: 'imports',
    says: /imports\.net_peek is not in assembly\/imports\.ts/,
  },
  {
    name: 'an import of another module',
    text: `${MEMORY} (import "wasi" "clock_ms" (func $clock (result i32))) ${INIT}
      (func $step (export "step") (result i32) (call $clock))`,
    rule: 'imports',
    says: /wasi\.clock_ms/,
  },
  {
    name: 'an import with another type',
    text: `${MEMORY} (import "imports" "clock_ms" (func $clock (result i64))) ${INIT}
      (func $step (export "step") (result i32) (i32.wrap_i64 (call $clock)))`,
    rule: 'imports',
    says: /clock_ms has the type \(\) -> i64, .*\(\) -> i32/,
  },
  {
    name: 'an imported global',
    text: `${MEMORY} (import "env" "base" (global $base i32)) ${INIT} (func $step (export "step") (result i32) (global.get $base))`,
    rule: 'imports',
    says: /global env\.base/,
  },
  { name: 'no step', text: `${MEMORY} ${INIT}`, rule: 'exports', says: /step is missing/ },
  {
    name: 'a step that returns nothing',
    text: `${MEMORY} ${INIT} (func $step (export "step"))`,
    rule: 'exports',
    says: /step is not of the type/,
  },
  {
    name: 'one more function to call',
    text: `${MEMORY} ${INIT} ${STEP} (func $debug (export "debug"))`,
    rule: 'exports',
    says: /debug is nothing that the runtime calls/,
  },
  {
    name: 'a memory of its own',
    text: `(memory $own 1) ${INIT} (func $step (export "step") (result i32) (i32.load (i32.const 0)))`,
    rule: 'memory',
    says: /defines a memory/,
  },
  {
    name: 'growing memory',
    text: `${MEMORY} ${INIT} ${STEP} (func $greedy (result i32) (memory.grow (i32.const 1)))
      (func $keep (drop (call $greedy)))`,
    rule: 'memory',
    function: 'greedy',
    says: /memory\.grow at offset \d+/,
  },
  {
    name: 'a floating-point instruction between integers',
    text: `${MEMORY} ${INIT} ${STEP}
      (func $ratio (param $a i32) (result i32) (i32.trunc_f64_u (f64.convert_i32_u (local.get $a))))`,
    rule: 'float',
    function: 'ratio',
    says: /floating-point instruction 0xb8/,
  },
  {
    name: 'a saturating truncation',
    text: `${MEMORY} ${INIT} ${STEP} (func $cut (param $a f32) (result i32) (i32.trunc_sat_f32_s (local.get $a)))`,
    rule: 'float',
    function: 'cut',
    says: /f32|0xfc/,
  },
  {
    name: 'a floating-point local that nothing uses',
    text: `${MEMORY} ${INIT} ${STEP} (func $idle (local $x f32) (nop))`,
    rule: 'float',
    function: 'idle',
    says: /values of type f32/,
  },
  {
    name: 'a floating-point global',
    text: `${MEMORY} ${INIT} ${STEP} (global $gain (mut f64) (f64.const 1.5))`,
    rule: 'float',
    says: /a global is of type f64/,
  },
  {
    name: 'sign extension, which is not in the core specification 1.0',
    text: `${MEMORY} ${INIT} ${STEP} (func $extend (param $a i32) (result i32) (i32.extend8_s (local.get $a)))`,
    rule: 'instructions',
    function: 'extend',
    says: /0xc0/,
  },
  {
    name: 'a passive data segment',
    text: `${MEMORY} (data $blob "abc") ${INIT} ${STEP}
      (func $unpack (memory.init $blob (i32.const 0) (i32.const 0) (i32.const 3)))`,
    rule: 'instructions',
    function: 'unpack',
    says: /0xfc 8/,
  },
  {
    name: 'vector instructions',
    text: `${MEMORY} ${INIT} ${STEP} (func $wide (drop (v128.load (i32.const 0))))`,
    rule: 'instructions',
    says: /0xfd .*not supported/,
  },
  {
    name: 'an allocation',
    text: `${MEMORY} ${INIT} (func $~lib/rt/stub/__alloc (param $size i32) (result i32) (i32.const 64))
      (func $step (export "step") (result i32) (call $~lib/rt/stub/__alloc (i32.const 8)))`,
    rule: 'allocation',
    function: 'step',
    says: /calls ~lib\/rt\/stub\/__alloc/,
  },
  {
    name: 'a start function that does something',
    text: `${MEMORY} (global $ready (mut i32) (i32.const 0)) ${INIT} ${STEP} (start $begin)
      (func $begin (global.set $ready (i32.const 1)) (i32.store (i32.const 4096) (i32.const 1)))`,
    rule: 'start',
    function: 'begin',
    says: /more than set globals to constants/,
  },
  {
    name: 'a function that calls itself',
    text: `${MEMORY} ${INIT} ${STEP} (func $again (param $n i32) (if (local.get $n) (then (call $again (local.get $n)))))`,
    rule: 'recursion',
    function: 'again',
    says: /: again -> again/,
  },
  {
    name: 'two functions that call each other',
    text: `${MEMORY} ${INIT} ${STEP} (func $ping (call $pong)) (func $pong (call $ping))`,
    rule: 'recursion',
    function: 'ping',
    says: /: ping -> pong -> ping/,
  },
  {
    name: 'recursion through a table',
    text: `${MEMORY} (type $callback (func (param i32))) (table 2 funcref) (elem (i32.const 0) $other $hook) ${INIT} ${STEP}
      (func $other (param $n i32) (nop))
      (func $hook (param $n i32) (call_indirect (type $callback) (local.get $n) (local.get $n)))`,
    rule: 'recursion',
    function: 'hook',
    says: /: hook -> hook/,
  },
  {
    name: 'a chain of 33 calls',
    text: `${MEMORY} ${INIT} ${STEP} ${chain(33, '')}`,
    rule: 'stack',
    function: 'call0',
    says: /33 calls deep, at most 32: call0 -> call1 -> /,
  },
  {
    name: 'more than 1024 locals on the stack',
    text: `${MEMORY} ${INIT} ${STEP} ${chain(5, '(local i32) '.repeat(205))}`,
    rule: 'stack',
    function: 'call0',
    says: /1025 locals on the stack/,
  },
];

/** Functions call0 … that call the next. */
function chain(length: number, locals: string): string {
  const functions = Array.from({ length }, (_, i) => {
    const call = i + 1 < length ? `(call $call${i + 1})` : '';
    return `(func $call${i} ${locals} ${call})`;
  });
  return functions.join(' ');
}

describe('rules of the firmware', () => {
  for (const bad of BAD) {
    test(`refuse ${bad.name}`, () => {
      const violations = check(bad.text);
      const found = violations.filter(
        (it) => it.rule === bad.rule && (bad.function === undefined || it.function === bad.function),
      );
      assert.ok(found.length > 0, `nothing said: ${violations.map(violationText).join('; ')}`);
      assert.ok(
        found.some((it) => bad.says.test(violationText(it))),
        found.map(violationText).join('; '),
      );
      // Only what is wrong is refused. A type that holds a float may be named twice, by function and by type.
      assert.deepEqual([...new Set(violations.map(({ rule }) => rule))], [bad.rule]);
    });
  }

  test('refuse what is not WebAssembly', () => {
    const report = checkRules(new Uint8Array([0, 0x61, 0x73, 0x6d, 2, 0, 0, 0]), DECLARED);
    assert.deepEqual(
      report.violations.map(({ rule }) => rule),
      ['valid'],
    );
  });

  test('take a good module, and know its deepest chain', () => {
    const wasm = assemble(`${MEMORY}
      (import "env" "abort" (func $abort (param i32 i32 i32 i32)))
      (import "imports" "clock_ms" (func $clock (result i32)))
      (import "imports" "log_write" (func $log (param i32 i32 i32)))
      (import "imports" "sample" (func $sample (param i64) (result i32)))
      (global $state (mut i32) (i32.const 0))
      (start $begin)
      (func $begin (global.set $state (i32.const 3)))
      ${INIT}
      (func $leaf (param $n i32) (result i32) (local $wide i64)
        (memory.fill (i32.const 0) (i32.const 0) (local.get $n))
        (memory.copy (i32.const 64) (i32.const 0) (local.get $n))
        (drop (call $sample (local.get $wide)))
        (call $clock))
      (func $middle (result i32) (block (result i32) (call $leaf (i32.shr_u (i32.const 64) (i32.const 1)))))
      (func $step (export "step") (result i32)
        (if (i32.eqz (global.get $state)) (then (call $abort (i32.const 0) (i32.const 0) (i32.const 1) (i32.const 1))))
        (call $log (i32.const 0) (i32.const 0) (memory.size))
        (call $middle))`);
    const report = checkRules(wasm, DECLARED);
    assert.deepEqual(report.violations, []);
    assert.deepEqual(report.deepest, { names: ['step', 'middle', 'leaf'], locals: 2 });
  });
});

describe('the list of imports', () => {
  test('is read with its types', () => {
    assert.deepEqual(
      [...DECLARED],
      [
        ['clock_ms', { params: [], results: [I32] }],
        ['log_write', { params: [I32, I32, I32], results: [] }],
        ['sample', { params: [I64], results: [I32] }],
      ],
    );
  });

  test('takes scalars only', () => {
    assert.throws(
      () => readDeclaredImports('export declare function say(text: string): void;'),
      /uses the type "string"/,
    );
  });
});
