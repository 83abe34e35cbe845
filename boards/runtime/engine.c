// The guard around every call into the firmware: traps by longjmp, the watchdog, the check before a module is loaded.

#include "engine.h"

#include <setjmp.h>
#include <stdio.h>
#include <string.h>

#include "accelerators.h"
#include "board.h"
#include "wasm_check.h"

static struct {
  const struct engine_backend *backend;
  struct linear_memory memory;
  uint8_t hash[FIRMWARE_HASH_SIZE];
  struct trap trap;
  jmp_buf guard;
  // Read by an interrupt or signal handler.
  volatile bool running;
  volatile uint32_t calls; // into the firmware: tells one long step from many short ones
  uint32_t calls_at_tick;
} engine;

struct engine_guard engine_guard;

struct linear_memory engine_memory(void) { return engine.memory; }
const char *engine_name(void) { return engine.backend == NULL ? "none" : engine.backend->name; }
const uint8_t *engine_firmware_hash(void) { return engine.hash; }

_Noreturn void engine_trap(enum trap_kind kind, uint32_t line, uint32_t column, const char *text) {
  engine.running = false;
  engine_guard.watchdog_pending = false;
  engine.trap.kind = kind;
  engine.trap.line = line;
  engine.trap.column = column;
  snprintf(engine.trap.text, sizeof engine.trap.text, "%s", text);
  longjmp(engine.guard, 1);
}

void *engine_bytes(uint32_t address, uint32_t length) {
  if ((uint64_t)address + length > engine.memory.length) {
    char text[64];
    snprintf(text, sizeof text, "import argument 0x%lx+0x%lx is out of bounds", (unsigned long)address,
             (unsigned long)length);
    engine_trap(TRAP_IMPORT_ARGUMENT, 0, 0, text);
  }
  return engine.memory.data + address;
}

bool engine_watchdog_tick(void) {
  const bool is_same_call = engine.running && engine.calls == engine.calls_at_tick;
  engine.calls_at_tick = engine.calls;
  if (!is_same_call) return false;
  if (engine_guard.in_import) engine_guard.watchdog_pending = true;
  return !engine_guard.in_import;
}

void engine_watchdog_request(void) { engine_guard.watchdog_pending = true; }

_Noreturn void engine_watchdog_trap(void) { engine_trap(TRAP_WATCHDOG, 0, 0, "a step did not end in time"); }

// Calls go through one function, so that there is one place where a trap lands.
enum call { CALL_LOAD, CALL_INIT, CALL_STEP };

static uint32_t call_backend(enum call call, const uint8_t *wasm, size_t length) {
  switch (call) {
    case CALL_LOAD:
      engine.backend->load(wasm, length, engine.hash);
      return 0;
    case CALL_INIT:
      return engine.backend->init();
    case CALL_STEP:
      return engine.backend->step();
  }
  return 0;
}

static bool guarded_call(enum call call, const uint8_t *wasm, size_t length, uint32_t *result, struct trap *trap) {
  engine_guard.in_import = false;
  if (setjmp(engine.guard) != 0) {
    *trap = engine.trap;
    return false;
  }
  engine.calls++;
  engine.running = true;
  const uint32_t value = call_backend(call, wasm, length);
  engine.running = false;
  if (result != NULL) *result = value;
  return true;
}

bool engine_load(enum engine_choice choice, const uint8_t *wasm, size_t length, struct linear_memory memory,
                 struct trap *trap) {
  memset(trap, 0, sizeof *trap);
  engine.backend = NULL;
  engine.memory = memory;
  sha256(wasm, length, engine.hash);
  const char *refusal = wasm_check(wasm, length, memory.length / 65536);
  if (refusal == NULL && choice == ENGINE_AOT && !engine_aot_has(engine.hash)) {
    refusal = "no ahead-of-time compiled code for this firmware";
  }
  if (refusal != NULL) {
    trap->kind = TRAP_REFUSED;
    snprintf(trap->text, sizeof trap->text, "%s", refusal);
    return false;
  }
  engine.backend = choice != ENGINE_WASM3 && engine_aot_has(engine.hash) ? &engine_aot : &engine_wasm3;
  if (guarded_call(CALL_LOAD, wasm, length, NULL, trap)) return true;
  engine_unload();
  return false;
}

bool engine_init(uint32_t *result, struct trap *trap) { return guarded_call(CALL_INIT, NULL, 0, result, trap); }
bool engine_step(uint32_t *result, struct trap *trap) { return guarded_call(CALL_STEP, NULL, 0, result, trap); }

void engine_unload(void) {
  if (engine.backend != NULL) engine.backend->unload();
  engine.backend = NULL;
}
