// Reads a WebAssembly module: as much of the binary format as the firmware's rules and the size report need. What a
// module may hold is the core specification 1.0 plus the bulk memory instructions; anything else is named and kept, so that
// the rules can refuse it.

/** A value type's code in the binary format. */
export const ValueType = { I32: 0x7f, I64: 0x7e, F32: 0x7d, F64: 0x7c } as const;
const VALUE_TYPE_NAMES: Record<number, string> = { 127: 'i32', 126: 'i64', 125: 'f32', 124: 'f64', 123: 'v128' };

export interface FunctionType {
  params: number[];
  results: number[];
}

export interface Import {
  module: string;
  name: string;
  kind: 'function' | 'table' | 'memory' | 'global';
  /** Of a function. */
  type?: FunctionType;
  /** Of a memory: the pages of 64 KiB that it has at least. */
  pagesMin?: number;
}

export interface Instruction {
  opcode: number;
  /** The second byte of FC and FD instructions. */
  extended?: number;
  /** Offset in the module, as engines print it in a trap's stack. */
  offset: number;
  /** Function index of a call, type index of a call_indirect, block type of block, loop and if. */
  immediate: number;
}

export interface WasmFunction {
  index: number;
  name: string;
  type: FunctionType;
  /** Types of the locals that are not parameters, one entry a local. */
  locals: number[];
  code: Instruction[];
  /** Offset of the first byte behind the code. */
  end: number;
  /** Bytes of the function's entry in the code section, length field included. */
  sizeBytes: number;
}

export interface Module {
  types: FunctionType[];
  imports: Import[];
  /** Functions defined here; indices go on from the imported ones. */
  functions: WasmFunction[];
  tables: number;
  /** Function indices that element segments put into tables. */
  elements: number[];
  /** Memories defined here, not imported. */
  memories: number;
  globalTypes: number[];
  exports: { name: string; kind: number; index: number }[];
  start: number | null;
  dataBytes: number;
  codeBytes: number;
  sizeBytes: number;
}

export const EXPORT_FUNCTION = 0;

export const Opcode = {
  BLOCK: 0x02,
  LOOP: 0x03,
  IF: 0x04,
  CALL: 0x10,
  CALL_INDIRECT: 0x11,
  MEMORY_SIZE: 0x3f,
  MEMORY_GROW: 0x40,
} as const;

export function typeName(type: number): string {
  return VALUE_TYPE_NAMES[type] ?? `type 0x${type.toString(16)}`;
}

export function signature(type: FunctionType): string {
  return `(${type.params.map(typeName).join(', ')}) -> ${type.results.map(typeName).join(', ') || 'nothing'}`;
}

class Reader {
  readonly #bytes: Uint8Array;
  offset = 0;
  end: number;

  constructor(bytes: Uint8Array) {
    this.#bytes = bytes;
    this.end = bytes.length;
  }

  get done(): boolean {
    return this.offset >= this.end;
  }

  u8(): number {
    if (this.offset >= this.end) throw new RangeError(`module ends at offset ${this.offset}`);
    return this.#bytes[this.offset++];
  }

  /** LEB128, unsigned, up to 32 bits. */
  u32(): number {
    let value = 0;
    for (let shift = 0; ; shift += 7) {
      const byte = this.u8();
      value += (byte & 0x7f) * 2 ** shift;
      if (byte < 0x80) return value;
    }
  }

  /** LEB128 of any width: skipped. */
  skipLeb(): void {
    while (this.u8() >= 0x80);
  }

  /** A block type: 33-bit signed; types are negative bytes, indices are not. */
  blockType(): number {
    const first = this.u8();
    if (first < 0x80) return first;
    this.offset -= 1;
    return this.u32();
  }

  bytes(count: number): Uint8Array {
    if (this.offset + count > this.end) throw new RangeError(`module ends at offset ${this.end}`);
    const bytes = this.#bytes.subarray(this.offset, this.offset + count);
    this.offset += count;
    return bytes;
  }

  text(): string {
    return Buffer.from(this.bytes(this.u32())).toString('utf8');
  }

  list<T>(item: () => T): T[] {
    return Array.from({ length: this.u32() }, item);
  }
}

/** Decodes a module that is known to be valid: `WebAssembly.validate` comes first. */
export function decodeModule(bytes: Uint8Array): Module {
  const module: Module = {
    types: [],
    imports: [],
    functions: [],
    tables: 0,
    elements: [],
    memories: 0,
    globalTypes: [],
    exports: [],
    start: null,
    dataBytes: 0,
    codeBytes: 0,
    sizeBytes: bytes.length,
  };
  const typeIndices: number[] = [];
  const names = new Map<number, string>();
  const reader = new Reader(bytes);
  reader.offset = 8;
  while (!reader.done) {
    const section = reader.u8();
    const length = reader.u32();
    const end = reader.offset + length;
    switch (section) {
      case 0:
        if (reader.text() === 'name') readNames(reader, end, names);
        break;
      case 1:
        module.types = reader.list(() => readType(reader));
        break;
      case 2:
        module.imports = reader.list(() => readImport(reader, module));
        break;
      case 3:
        typeIndices.push(...reader.list(() => reader.u32()));
        break;
      case 4:
        module.tables += reader.u32();
        break;
      case 5:
        module.memories = reader.u32();
        break;
      case 6:
        module.globalTypes.push(...reader.list(() => readGlobal(reader)));
        break;
      case 7:
        module.exports = reader.list(() => ({ name: reader.text(), kind: reader.u8(), index: reader.u32() }));
        break;
      case 8:
        module.start = reader.u32();
        break;
      case 9:
        module.elements = reader.list(() => readElement(reader)).flat();
        break;
      case 10:
        module.codeBytes = length;
        readCode(reader, module, typeIndices);
        break;
      case 11:
        module.dataBytes = length;
        break;
    }
    reader.offset = end;
  }
  for (const it of module.functions) it.name = names.get(it.index) ?? it.name;
  return module;
}

/** The module without names, source map address and whatever else is not executed. */
export function withoutCustomSections(bytes: Uint8Array): Uint8Array<ArrayBuffer> {
  const reader = new Reader(bytes);
  const kept = [reader.bytes(8)];
  while (!reader.done) {
    const start = reader.offset;
    const section = reader.u8();
    const end = reader.u32() + reader.offset;
    if (section !== 0) kept.push(bytes.subarray(start, end));
    reader.offset = end;
  }
  return new Uint8Array(Buffer.concat(kept));
}

function readType(reader: Reader): FunctionType {
  const form = reader.u8();
  if (form !== 0x60) throw new RangeError(`type form 0x${form.toString(16)} is not a function`);
  return { params: reader.list(() => reader.u8()), results: reader.list(() => reader.u8()) };
}

/** Returns the lower one. */
function readLimits(reader: Reader): number {
  const flags = reader.u8();
  const min = reader.u32();
  if (flags & 1) reader.skipLeb();
  return min;
}

function readImport(reader: Reader, module: Module): Import {
  const from = reader.text();
  const name = reader.text();
  const kind = reader.u8();
  switch (kind) {
    case 0:
      return { module: from, name, kind: 'function', type: module.types[reader.u32()] };
    case 1:
      reader.u8();
      readLimits(reader);
      module.tables += 1;
      return { module: from, name, kind: 'table' };
    case 2:
      return { module: from, name, kind: 'memory', pagesMin: readLimits(reader) };
    default:
      module.globalTypes.push(reader.u8());
      reader.u8();
      return { module: from, name, kind: 'global' };
  }
}

function readGlobal(reader: Reader): number {
  const type = reader.u8();
  reader.u8();
  readExpression(reader);
  return type;
}

/** An element segment of the plain form: table 0, an offset, function indices. The others need reference types. */
function readElement(reader: Reader): number[] {
  const flags = reader.u32();
  if (flags !== 0) throw new RangeError(`element segment of form ${flags} is not supported`);
  readExpression(reader);
  return reader.list(() => reader.u32());
}

function readCode(reader: Reader, module: Module, typeIndices: number[]): void {
  const imported = module.imports.filter(({ kind }) => kind === 'function').length;
  const sectionEnd = reader.end;
  const count = reader.u32();
  for (let i = 0; i < count; i++) {
    const start = reader.offset;
    const length = reader.u32();
    reader.end = reader.offset + length;
    const locals: number[] = [];
    for (let groups = reader.u32(); groups > 0; groups--) {
      const inGroup = reader.u32();
      const type = reader.u8();
      for (let n = 0; n < inGroup; n++) locals.push(type);
    }
    const code: Instruction[] = [];
    while (!reader.done) code.push(readInstruction(reader));
    module.functions.push({
      index: imported + i,
      name: `function ${imported + i}`,
      type: module.types[typeIndices[i]],
      locals,
      code,
      end: reader.offset,
      sizeBytes: reader.offset - start,
    });
    reader.end = sectionEnd;
  }
}

/** A constant expression, up to its `end`. */
function readExpression(reader: Reader): void {
  while (readInstruction(reader).opcode !== 0x0b);
}

function readInstruction(reader: Reader): Instruction {
  const instruction: Instruction = { offset: reader.offset, opcode: reader.u8(), immediate: 0 };
  const { opcode } = instruction;
  if (opcode >= Opcode.BLOCK && opcode <= Opcode.IF) instruction.immediate = reader.blockType();
  else if (opcode === Opcode.CALL) instruction.immediate = reader.u32();
  else if (opcode === Opcode.CALL_INDIRECT) {
    instruction.immediate = reader.u32();
    reader.u32();
  } else if (opcode === 0x0e) {
    for (let targets = reader.u32(); targets >= 0; targets--) reader.u32();
  } else if (opcode === 0x0c || opcode === 0x0d || (opcode >= 0x20 && opcode <= 0x26)) reader.u32();
  else if (opcode >= 0x28 && opcode <= 0x3e) {
    reader.u32();
    reader.skipLeb();
  } else if (opcode === Opcode.MEMORY_SIZE || opcode === Opcode.MEMORY_GROW) reader.u32();
  else if (opcode === 0x41 || opcode === 0x42) reader.skipLeb();
  else if (opcode === 0x43) reader.bytes(4);
  else if (opcode === 0x44) reader.bytes(8);
  else if (opcode === 0xfc) instruction.extended = readBulkMemory(reader);
  else if (opcode === 0x1c || opcode > 0xc4) {
    throw new RangeError(`instruction 0x${opcode.toString(16)} at offset ${instruction.offset} is not supported`);
  }
  return instruction;
}

/** The FC instructions: saturating conversions 0-7, bulk memory 8-14. */
function readBulkMemory(reader: Reader): number {
  const extended = reader.u32();
  const immediates = [0, 0, 0, 0, 0, 0, 0, 0, 2, 1, 2, 1, 2, 1, 2][extended];
  if (immediates === undefined) throw new RangeError(`instruction 0xfc ${extended} is not supported`);
  for (let i = 0; i < immediates; i++) reader.u32();
  return extended;
}

/** Subsection 1 of the name section: function names. */
function readNames(reader: Reader, end: number, names: Map<number, string>): void {
  while (reader.offset < end) {
    const kind = reader.u8();
    const length = reader.u32();
    const next = reader.offset + length;
    if (kind === 1) for (let count = reader.u32(); count > 0; count--) names.set(reader.u32(), reader.text());
    reader.offset = next;
  }
}
