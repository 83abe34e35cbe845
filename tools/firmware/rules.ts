// The rules that the firmware keeps, checked on what is shipped and not on what was written:
//
//   imports        only those of assembly/imports.ts, with their types, and env.memory and env.abort
//   exports        init and step, and nothing else to call
//   memory         imported, never grown
//   float          no floating point, neither types nor instructions: a board's engine is built without
//   instructions   core specification 1.0 and bulk memory, which every engine has
//   allocation     nothing reachable from an export allocates
//   start          a start function sets globals to constants and does nothing else: what runs first is init()
//   recursion      no function can come back to itself, directly, through others or through a table
//   stack          the deepest chain of calls and the largest number of locals on it are bounded
//
// A violation names the function and the rule.

import {
  decodeModule,
  EXPORT_FUNCTION,
  type FunctionType,
  type Import,
  type Instruction,
  type Module,
  Opcode,
  signature,
  typeName,
  ValueType,
  type WasmFunction,
} from './module.js';

export type Rule =
  | 'valid'
  | 'imports'
  | 'exports'
  | 'memory'
  | 'float'
  | 'instructions'
  | 'allocation'
  | 'recursion'
  | 'start'
  | 'stack';

export interface Violation {
  rule: Rule;
  /** The function's name; absent when the module as a whole breaks the rule. */
  function?: string;
  text: string;
}

/** The deepest chain of calls from an export, outermost function first. */
export interface CallChain {
  names: string[];
  /** Parameters and locals of all of them. */
  locals: number;
}

export interface RulesReport {
  violations: Violation[];
  /** The chain with the most calls, and the one with the most parameters and locals. */
  deepest: CallChain;
  largest: CallChain;
}

/** A chain of calls, outermost function first. */
export interface CallChain {
  names: string[];
  /** Parameters and locals of all of them together. */
  locals: number;
}

const NO_CHAIN: CallChain = { names: [], locals: 0 };

/** Exports that the runtime calls. */
const EXPORTS: Record<string, FunctionType> = {
  init: { params: [], results: [ValueType.I32] },
  step: { params: [], results: [ValueType.I32] },
};
const ABORT: FunctionType = { params: Array<number>(4).fill(ValueType.I32), results: [] };

/** wasm3 keeps locals and operands in slots of 8 bytes, on a stack of 64 KiB (boards/runtime/wasm_check.h): locals may take
 * 1024 * 8 = 8 KiB of it. The depth bounds the C stack, which ahead-of-time compiled firmware runs on. */
const STACK_LOCALS_MAX = 1024;
const STACK_DEPTH_MAX = 32;

/** i32.const, i64.const, global.set, end. */
const START_OPCODES = [0x41, 0x42, 0x24, 0x0b];

/** Functions of AssemblyScript's runtimes that hand out memory. */
const ALLOCATORS =
  /(^|\/)(__alloc|__realloc|__new|__renew|__newBuffer|__newArray|__newString|heap\.alloc|heap\.realloc)$/;

/** Checks a module. `declared` are the functions of assembly/imports.ts. */
export function checkRules(bytes: Uint8Array<ArrayBuffer>, declared: ReadonlyMap<string, FunctionType>): RulesReport {
  const refused = (violation: Violation): RulesReport => ({
    violations: [violation],
    deepest: NO_CHAIN,
    largest: NO_CHAIN,
  });
  if (!WebAssembly.validate(bytes)) return refused({ rule: 'valid', text: 'the module does not validate' });
  let module: Module;
  try {
    module = decodeModule(bytes);
  } catch (error) {
    return refused({ rule: 'instructions', text: (error as Error).message });
  }
  const stack = checkStack(module);
  const violations = [
    ...checkImports(module, declared),
    ...checkExports(module),
    ...checkMemory(module),
    ...checkFloat(module),
    ...checkInstructions(module),
    ...checkAllocation(module),
    ...checkStart(module),
    ...stack.violations,
  ];
  return { violations, deepest: stack.deepest, largest: stack.largest };
}

export function violationText({ rule, function: name, text }: Violation): string {
  return name === undefined ? `rule "${rule}": ${text}` : `rule "${rule}": ${name}: ${text}`;
}

/** Reads `export declare function NAME(…): TYPE;` lines. */
export function readDeclaredImports(source: string): Map<string, FunctionType> {
  const declared = new Map<string, FunctionType>();
  for (const [, name, params, result] of source.matchAll(/^export declare function (\w+)\(([^)]*)\): (\w+);/gm)) {
    const types = params.split(',').filter((param) => param.trim() !== '');
    declared.set(name, {
      params: types.map((param) => wasmType(param.split(':')[1]?.trim() ?? '')),
      results: result === 'void' ? [] : [wasmType(result)],
    });
  }
  return declared;
}

function wasmType(type: string): number {
  if (type === 'u64' || type === 'i64') return ValueType.I64;
  if (['u32', 'i32', 'usize', 'isize', 'u16', 'i16', 'u8', 'i8', 'bool'].includes(type)) return ValueType.I32;
  throw new Error(`assembly/imports.ts uses the type "${type}": arguments are scalars and pointers`);
}

function checkImports(module: Module, declared: ReadonlyMap<string, FunctionType>): Violation[] {
  const violations: Violation[] = [];
  for (const { module: from, name, kind, type } of module.imports) {
    const path = `${from}.${name}`;
    if (path === 'env.memory' && kind === 'memory') continue;
    const expected = path === 'env.abort' ? ABORT : from === 'imports' ? declared.get(name) : undefined;
    if (expected === undefined || type === undefined) {
      violations.push({ rule: 'imports', text: `${kind} ${path} is not in assembly/imports.ts` });
    } else if (signature(type) !== signature(expected)) {
      violations.push({
        rule: 'imports',
        text: `${path} has the type ${signature(type)}, in assembly/imports.ts ${signature(expected)}`,
      });
    }
  }
  return violations;
}

function checkExports(module: Module): Violation[] {
  const violations: Violation[] = [];
  const imported = importedFunctions(module).length;
  const functions = module.exports.filter(({ kind }) => kind === EXPORT_FUNCTION);
  for (const [name, type] of Object.entries(EXPORTS)) {
    const found = functions.find((it) => it.name === name);
    if (found === undefined) {
      violations.push({ rule: 'exports', text: `${name} is missing` });
      continue;
    }
    const actual = module.functions[found.index - imported]?.type;
    if (actual === undefined || signature(actual) !== signature(type)) {
      violations.push({ rule: 'exports', text: `${name} is not of the type ${signature(type)}` });
    }
  }
  for (const { name } of functions) {
    if (!(name in EXPORTS)) violations.push({ rule: 'exports', text: `${name} is nothing that the runtime calls` });
  }
  return violations;
}

function checkMemory(module: Module): Violation[] {
  const violations: Violation[] = [];
  if (module.memories > 0) violations.push({ rule: 'memory', text: 'the module defines a memory of its own' });
  if (!module.imports.some(({ kind }) => kind === 'memory')) {
    violations.push({ rule: 'memory', text: 'env.memory is not imported' });
  }
  for (const it of module.functions) {
    const grow = it.code.find(({ opcode }) => opcode === Opcode.MEMORY_GROW);
    if (grow) violations.push({ rule: 'memory', function: it.name, text: `memory.grow at offset ${grow.offset}` });
  }
  return violations;
}

const isFloat = (type: number): boolean => type === ValueType.F32 || type === ValueType.F64;

/** Loads and stores, constants, comparisons, arithmetic, conversions either way, reinterpretations, saturating truncations. */
function isFloatInstruction({ opcode, extended, immediate }: Instruction): boolean {
  if (opcode >= Opcode.BLOCK && opcode <= Opcode.IF) return isFloat(immediate);
  if (opcode === 0xfc) return extended !== undefined && extended <= 7;
  return (
    [0x2a, 0x2b, 0x38, 0x39, 0x43, 0x44].includes(opcode) ||
    (opcode >= 0x5b && opcode <= 0x66) ||
    (opcode >= 0x8b && opcode <= 0xa6) ||
    (opcode >= 0xa8 && opcode <= 0xab) ||
    (opcode >= 0xae && opcode <= 0xbf)
  );
}

function checkFloat(module: Module): Violation[] {
  const violations: Violation[] = [];
  for (const type of module.globalTypes) {
    if (isFloat(type)) violations.push({ rule: 'float', text: `a global is of type ${typeName(type)}` });
  }
  for (const type of module.types) {
    if ([...type.params, ...type.results].some(isFloat)) {
      violations.push({ rule: 'float', text: `a function type is ${signature(type)}` });
    }
  }
  for (const it of module.functions) {
    const types = [...it.type.params, ...it.type.results, ...it.locals].filter(isFloat);
    if (types.length > 0) {
      violations.push({ rule: 'float', function: it.name, text: `has values of type ${typeName(types[0])}` });
    }
    const found = it.code.find(isFloatInstruction);
    if (found) {
      const text = `floating-point instruction 0x${found.opcode.toString(16)} at offset ${found.offset}`;
      violations.push({ rule: 'float', function: it.name, text });
    }
  }
  return violations;
}

/** memory.copy and memory.fill are in; passive segments and table instructions are not. */
function checkInstructions(module: Module): Violation[] {
  const violations: Violation[] = [];
  for (const it of module.functions) {
    const found = it.code.find(
      ({ opcode, extended }) =>
        (opcode >= 0xc0 && opcode <= 0xc4) ||
        opcode === 0x25 ||
        opcode === 0x26 ||
        (opcode === 0xfc && extended !== undefined && (extended === 8 || extended === 9 || extended > 11)),
    );
    if (found === undefined) continue;
    const code = `0x${found.opcode.toString(16)}${found.extended === undefined ? '' : ` ${found.extended}`}`;
    violations.push({
      rule: 'instructions',
      function: it.name,
      text: `instruction ${code} at offset ${found.offset} is not in every engine`,
    });
  }
  return violations;
}

/**
 * An allocator that is compiled in is reachable, or it would have been left out; so any is a violation, in init() too, where
 * arenas are handed out and nothing is allocated. Run on a module with names, before inlining hides them.
 */
function checkAllocation(module: Module): Violation[] {
  const callers = callersOf(module);
  return module.functions
    .filter(({ name }) => ALLOCATORS.test(name))
    .map(({ name, index }) => {
      const by = (callers.get(index) ?? []).map((caller) => caller.name).join(', ');
      return { rule: 'allocation', function: by || name, text: `calls ${name}` };
    });
}

function callersOf(module: Module): Map<number, WasmFunction[]> {
  const callers = new Map<number, WasmFunction[]>();
  const edges = callGraph(module);
  for (const it of module.functions) {
    for (const callee of edges.get(it.index) ?? []) callers.set(callee, [...(callers.get(callee) ?? []), it]);
  }
  return callers;
}

/** asc sets a global to an enum's value in the start function. That runs nothing of ours; anything else there would. */
function checkStart(module: Module): Violation[] {
  if (module.start === null) return [];
  const start = module.functions.find(({ index }) => index === module.start);
  const ours = start?.code.find(({ opcode }) => !START_OPCODES.includes(opcode));
  if (start !== undefined && ours === undefined) return [];
  const text =
    ours === undefined
      ? 'is an import and the start function'
      : `is the start function and does more than set globals to constants, at offset ${ours.offset}: move it into init()`;
  return [{ rule: 'start', function: start?.name ?? `function ${module.start}`, text }];
}

function importedFunctions(module: Module): Import[] {
  return module.imports.filter(({ kind }) => kind === 'function');
}

/** Whom each function may call; an indirect call may reach every function of its type that stands in a table. */
function callGraph(module: Module): Map<number, Set<number>> {
  const byIndex = new Map(module.functions.map((it) => [it.index, it]));
  const edges = new Map<number, Set<number>>();
  for (const { index, code } of module.functions) {
    const callees = new Set<number>();
    for (const { opcode, immediate } of code) {
      if (opcode === Opcode.CALL) callees.add(immediate);
      if (opcode !== Opcode.CALL_INDIRECT) continue;
      const type = signature(module.types[immediate]);
      for (const element of module.elements) {
        const target = byIndex.get(element);
        if (target && signature(target.type) === type) callees.add(element);
      }
    }
    edges.set(index, callees);
  }
  return edges;
}

function checkStack(module: Module): { violations: Violation[]; deepest: CallChain; largest: CallChain } {
  const edges = callGraph(module);
  const cycle = findCycle(module, edges);
  if (cycle !== null) {
    const names = cycle.map((index) => module.functions.find((it) => it.index === index)?.name ?? 'an import');
    return {
      violations: [{ rule: 'recursion', function: names[0], text: names.join(' -> ') }],
      deepest: NO_CHAIN,
      largest: NO_CHAIN,
    };
  }
  const deepest = heaviestChain(module, edges, () => 1);
  const largest = heaviestChain(module, edges, localsOf);
  const violations: Violation[] = [];
  if (deepest.names.length > STACK_DEPTH_MAX) {
    const text = `${deepest.names.length} calls deep, at most ${STACK_DEPTH_MAX}: ${deepest.names.join(' -> ')}`;
    violations.push({ rule: 'stack', function: deepest.names[0], text });
  }
  if (largest.locals > STACK_LOCALS_MAX) {
    const text = `${largest.locals} locals on the stack, at most ${STACK_LOCALS_MAX}: ${largest.names.join(' -> ')}`;
    violations.push({ rule: 'stack', function: largest.names[0], text });
  }
  return { violations, deepest, largest };
}

/** The functions of one cycle, the first again at the end; null when no function can come back to itself. */
function findCycle(module: Module, edges: Map<number, Set<number>>): number[] | null {
  const done = new Set<number>();
  const path: number[] = [];
  const visit = (index: number): number[] | null => {
    if (path.includes(index)) return [...path.slice(path.indexOf(index)), index];
    if (done.has(index)) return null;
    path.push(index);
    for (const callee of edges.get(index) ?? []) {
      const cycle = visit(callee);
      if (cycle !== null) return cycle;
    }
    path.pop();
    done.add(index);
    return null;
  };
  for (const { index } of module.functions) {
    const cycle = visit(index);
    if (cycle !== null) return cycle;
  }
  return null;
}

/** The chain of calls with the largest sum of `weight`, in a graph without cycles. */
function heaviestChain(
  module: Module,
  edges: Map<number, Set<number>>,
  weight: (it: WasmFunction) => number,
): CallChain {
  const byIndex = new Map(module.functions.map((it) => [it.index, it]));
  const known = new Map<number, { weight: number; chain: CallChain }>();
  const visit = (index: number): { weight: number; chain: CallChain } => {
    const it = byIndex.get(index);
    const found = known.get(index);
    if (found !== undefined || it === undefined) return found ?? { weight: 0, chain: NO_CHAIN };
    let below = { weight: 0, chain: NO_CHAIN };
    for (const callee of edges.get(index) ?? []) {
      const candidate = visit(callee);
      if (candidate.weight > below.weight) below = candidate;
    }
    const chain = { names: [it.name, ...below.chain.names], locals: localsOf(it) + below.chain.locals };
    const result = { weight: weight(it) + below.weight, chain };
    known.set(index, result);
    return result;
  };
  let heaviest = { weight: -1, chain: NO_CHAIN };
  for (const { index } of module.functions) {
    const candidate = visit(index);
    if (candidate.weight > heaviest.weight) heaviest = candidate;
  }
  return heaviest.chain;
}

function localsOf({ type, locals }: WasmFunction): number {
  return type.params.length + locals.length;
}
