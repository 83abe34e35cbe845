// The check that a module has to pass before any engine sees it. wasm3 does not validate, and wasm2c's output is trusted to
// have come from a valid module: so the whole of validation is here, for the part of WebAssembly that a firmware may use.
//
// A firmware may use: i32 and i64 arithmetic, loads, stores, memory.copy and memory.fill, structured control flow, direct
// calls. It imports env.memory and functions from import_table.h with exactly their types, and exports `init` and `step`,
// both () -> i32. Refused as a rule: floating point, tables and call_indirect, memory.grow, recursion (so that the stack
// is bounded), and memories that do not fit the one that the board gives.
#ifndef RIBBON_WASM_CHECK_H
#define RIBBON_WASM_CHECK_H

#include <stddef.h>
#include <stdint.h>

enum {
  WASM_FUNCTIONS_MAX = 4096,
  WASM_TYPES_MAX = 256,
  WASM_PARAMETERS_MAX = 16,
  WASM_GLOBALS_MAX = 1024,
  WASM_LOCALS_MAX = 512,
  WASM_OPERANDS_MAX = 512,
  WASM_NESTING_MAX = 96,
  WASM_CALLS_MAX = 32768,
  /// The longest chain of calls. With WASM_NESTING_MAX it bounds the native stack that wasm3 needs.
  WASM_CALL_DEPTH_MAX = 48,
  /// wasm3's stack for values, in bytes: (locals + operands + constants) * 4 or 8 bytes at each level of the longest chain.
  /// 64 KiB are 1,300 bytes a level; wasm3 checks it at every call.
  WASM_STACK_SIZE = 65536,
};

/// NULL when the module may run in a memory of `memory_pages` 64 KiB pages, else a text that says why not.
const char *wasm_check(const uint8_t *wasm, size_t length, uint32_t memory_pages);

#endif
