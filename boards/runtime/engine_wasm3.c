// wasm3: interprets any firmware. Slower than compiled code, and ready at once (FACTS.md has the ratios).
//
// All functions are compiled to wasm3's own form while the module is loaded, so that nothing is allocated later and a watchdog
// trap can leave the interpreter at any instruction.

#include <stdio.h>
#include <string.h>

#include "engine.h"
#include "import_table.h"
#include "m3_env.h"
#include "wasm3.h"
#include "wasm_check.h"

static struct {
  IM3Environment environment;
  IM3Runtime runtime;
  void *stack; // as it was allocated: wasm3 moves runtime->stack while an import runs, and a trap may leave it there
  IM3Function init, step;
} state;

_Static_assert(sizeof(M3MemoryHeader) <= LINEAR_HEADER_SIZE, "wasm3's header does not fit before the linear memory");

// wasm3 compares its results by address, one constant for each.
static enum trap_kind trap_kind(M3Result result) {
  if (result == m3Err_trapOutOfBoundsMemoryAccess) return TRAP_OUT_OF_BOUNDS;
  if (result == m3Err_trapDivisionByZero || result == m3Err_trapIntegerOverflow) return TRAP_INTEGER;
  if (result == m3Err_trapUnreachable) return TRAP_UNREACHABLE;
  if (result == m3Err_trapStackOverflow) return TRAP_STACK;
  return TRAP_REFUSED; // from the parser, the compiler or the linker
}

static void check(M3Result result) {
  if (result != m3Err_none) engine_trap(trap_kind(result), 0, 0, result);
}

static void wasm3_unload(void) {
  if (state.runtime != NULL) {
    // The linear memory is the board's: wasm3 must not free it.
    state.runtime->memory.mallocated = NULL;
    state.runtime->stack = state.stack;
    m3_FreeRuntime(state.runtime);
  }
  if (state.environment != NULL) m3_FreeEnvironment(state.environment);
  memset(&state, 0, sizeof state);
}

// wasm3 0.5.0 allocates no memory for a module that imports it: what it would have set up is set up here.
static void give_memory(IM3Runtime runtime) {
  const struct linear_memory memory = engine_memory();
  M3MemoryHeader *header = (M3MemoryHeader *)(memory.data - sizeof(M3MemoryHeader));
  header->runtime = runtime;
  header->maxStack = (m3slot_t *)runtime->stack + runtime->numStackSlots;
  header->length = memory.length;
  runtime->memory.mallocated = header;
  runtime->memory.numPages = runtime->memory.maxPages = memory.length / d_m3MemPageSize;
}

static void wasm3_load(const uint8_t *wasm, size_t length, const uint8_t hash[FIRMWARE_HASH_SIZE]) {
  (void)hash;
  state.environment = m3_NewEnvironment();
  if (state.environment == NULL) engine_trap(TRAP_REFUSED, 0, 0, "no memory for the wasm3 environment");
  state.runtime = m3_NewRuntime(state.environment, WASM_STACK_SIZE, NULL);
  if (state.runtime == NULL) engine_trap(TRAP_REFUSED, 0, 0, "no memory for the wasm3 stack");
  state.stack = state.runtime->stack;
  IM3Module module;
  check(m3_ParseModule(state.environment, &module, wasm, (uint32_t)length));
  give_memory(state.runtime);
  const M3Result loaded = m3_LoadModule(state.runtime, module);
  if (loaded != m3Err_none) {
    m3_FreeModule(module); // not the runtime's yet
    check(loaded);
  }
  for (size_t i = 0; i < IMPORT_COUNT; i++) {
    const struct import *import = &IMPORTS[i];
    const M3Result linked = m3_LinkRawFunction(module, import->module, import->name, import->signature, import->wasm3);
    // A firmware need not use every import.
    if (linked != m3Err_functionLookupFailed) check(linked);
  }
  check(m3_CompileModule(module));
  check(m3_RunStart(module));
  check(m3_FindFunction(&state.init, state.runtime, "init"));
  check(m3_FindFunction(&state.step, state.runtime, "step"));
}

static uint32_t call(IM3Function function) {
  uint32_t value = 0;
  check(m3_CallV(function));
  check(m3_GetResultsV(function, &value));
  return value;
}

static uint32_t wasm3_init(void) { return call(state.init); }
static uint32_t wasm3_step(void) { return call(state.step); }

const struct engine_backend engine_wasm3 = {"wasm3", wasm3_load, wasm3_init, wasm3_step, wasm3_unload};
