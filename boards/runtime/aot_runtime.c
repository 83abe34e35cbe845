// What wasm2c's output expects of its runtime, for modules with an imported memory of fixed size and no tables. Debian's own
// wasm-rt-impl.c wants signal handlers and sys/mman.h, which a board has not.

#include <wasm-rt.h>

#include "aot_table.h"
#include "engine.h"

static wasm_rt_memory_t memory;

void aot_memory_set(struct linear_memory linear) {
  memory.data = linear.data;
  memory.size = linear.length;
  memory.pages = memory.max_pages = linear.length / 65536;
}

struct Z_env_instance_t;
wasm_rt_memory_t *Z_envZ_memory(struct Z_env_instance_t *instance);
wasm_rt_memory_t *Z_envZ_memory(struct Z_env_instance_t *instance) {
  (void)instance;
  return &memory;
}

bool wasm_rt_is_initialized(void) { return true; }

// Types matter to call_indirect only, which wasm_check refuses.
uint32_t wasm_rt_register_func_type(uint32_t params, uint32_t results, ...) {
  (void)params;
  (void)results;
  return 0;
}

void wasm_rt_trap(wasm_rt_trap_t trap) {
  switch (trap) {
    case WASM_RT_TRAP_OOB:
      engine_trap(TRAP_OUT_OF_BOUNDS, 0, 0, "out of bounds memory access");
    case WASM_RT_TRAP_INT_OVERFLOW:
    case WASM_RT_TRAP_DIV_BY_ZERO:
      engine_trap(TRAP_INTEGER, 0, 0, "integer division by zero or overflow");
    case WASM_RT_TRAP_EXHAUSTION:
      engine_trap(TRAP_STACK, 0, 0, "call stack exhausted");
    default:
      engine_trap(TRAP_UNREACHABLE, 0, 0, "unreachable executed");
  }
}
