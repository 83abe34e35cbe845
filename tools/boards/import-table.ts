// Writes the C side of assembly/imports.ts: prototypes for boards/runtime/imports.c, the table that both the module check and
// wasm3 use, and the functions that wasm2c's output calls.

import { readFileSync } from 'node:fs';
import ts from 'typescript';
import { Failure } from '../../host/failure.js';

export interface ImportedFunction {
  module: string;
  name: string;
  /** `i` and `I` for i32 and i64, in order. */
  parameters: string[];
  parameterNames: string[];
  result: 'i' | 'I' | 'v';
}

/** AssemblyScript's abort(message, file, line, column): the one import that imports.ts does not declare. */
const ABORT: ImportedFunction = {
  module: 'env',
  name: 'abort',
  parameters: ['i', 'i', 'i', 'i'],
  parameterNames: ['message', 'file', 'line', 'column'],
  result: 'v',
};

const WASM_TYPES: Record<string, 'i' | 'I' | 'v'> = {
  u8: 'i',
  i8: 'i',
  u16: 'i',
  i16: 'i',
  u32: 'i',
  i32: 'i',
  usize: 'i',
  isize: 'i',
  bool: 'i',
  u64: 'I',
  i64: 'I',
  void: 'v',
};

/** The functions that imports.ts declares, in its order. */
export function readImports(file: string): ImportedFunction[] {
  const source = ts.createSourceFile(file, readFileSync(file, 'utf8'), ts.ScriptTarget.Latest);
  const wasmType = (type: ts.TypeNode | undefined): 'i' | 'I' | 'v' => {
    const text = type?.getText(source) ?? '(none)';
    const found = WASM_TYPES[text];
    if (found === undefined) throw new Failure(`${file}: an import uses the type ${text}, which has no C counterpart`);
    return found;
  };
  const functions: ImportedFunction[] = [];
  for (const statement of source.statements) {
    if (!ts.isFunctionDeclaration(statement) || statement.body !== undefined || statement.name === undefined) continue;
    functions.push({
      module: 'imports',
      name: statement.name.text,
      parameters: statement.parameters.map((parameter) => wasmType(parameter.type)),
      parameterNames: statement.parameters.map((parameter) => parameter.name.getText(source)),
      result: wasmType(statement.type),
    });
  }
  if (functions.length === 0) throw new Failure(`${file} declares no imports`);
  return functions;
}

const C_TYPES = { i: 'uint32_t', I: 'uint64_t', v: 'void' } as Record<string, string>;

function parameterList(imported: ImportedFunction): string {
  if (imported.parameters.length === 0) return 'void';
  return imported.parameters.map((type, i) => `${C_TYPES[type]} ${snake(imported.parameterNames[i])}`).join(', ');
}

function snake(name: string): string {
  return name.replace(/[A-Z]/g, (letter) => `_${letter.toLowerCase()}`);
}

export function importsHeader(imports: ImportedFunction[]): string {
  const prototypes = [...imports, ABORT].map(
    (imported) => `${C_TYPES[imported.result]} import_${imported.name}(${parameterList(imported)});\n`,
  );
  return `// Generated from assembly/imports.ts by tools/boards/import-table.ts.\n#ifndef RIBBON_IMPORTS_H\n#define RIBBON_IMPORTS_H\n\n#include <stdint.h>\n\n${prototypes.join('')}\n#endif\n`;
}

export function importsTable(imports: ImportedFunction[]): string {
  const all = [...imports, ABORT];
  const parts = [
    '// Generated from assembly/imports.ts by tools/boards/import-table.ts.\n',
    '#include "engine.h"\n#include "import_table.h"\n#include "imports.h"\n\n',
    'struct Z_imports_instance_t;\nstruct Z_env_instance_t;\n\n',
  ];
  for (const imported of all) parts.push(wasm3Function(imported), aotFunction(imported));
  parts.push('const struct import IMPORTS[] = {\n');
  for (const { module, name, result, parameters } of all) {
    parts.push(`    {"${module}", "${name}", "${result}(${parameters.join('')})", wasm3_${name}},\n`);
  }
  parts.push('};\nconst size_t IMPORT_COUNT = sizeof IMPORTS / sizeof IMPORTS[0];\n');
  return parts.join('');
}

/** wasm3 hands over 64-bit slots: first the result's, when there is one, then the arguments. */
function wasm3Function({ name, parameters, result }: ImportedFunction): string {
  const first = result === 'v' ? 0 : 1;
  const values = parameters.map((type, i) => `(${C_TYPES[type]})slots[${i + first}]`);
  const call = `import_${name}(${values.join(', ')})`;
  return (
    `static const void *wasm3_${name}(IM3Runtime runtime, IM3ImportContext context, uint64_t *slots, void *memory) {\n` +
    `  (void)runtime, (void)context, (void)slots, (void)memory;\n  engine_import_enter();\n` +
    `  ${result === 'v' ? call : `slots[0] = ${call}`};\n  engine_import_leave();\n  return m3Err_none;\n}\n\n`
  );
}

function aotFunction({ module, name, parameters, result }: ImportedFunction): string {
  const symbol = `Z_${module}Z_${name}`;
  const declared = parameters.map((type, i) => `, ${C_TYPES[type]} a${i}`).join('');
  const call = `import_${name}(${parameters.map((_, i) => `a${i}`).join(', ')})`;
  const head = `${C_TYPES[result]} ${symbol}(struct Z_${module}_instance_t *instance${declared})`;
  const kept = result === 'v' ? '' : `const ${C_TYPES[result]} value = `;
  return (
    `${head};\n${head} {\n  (void)instance;\n  engine_import_enter();\n  ${kept}${call};\n  engine_import_leave();\n` +
    `${result === 'v' ? '' : '  return value;\n'}}\n\n`
  );
}
