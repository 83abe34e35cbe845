// Engines: what executes the firmware. One firmware runs at a time.
//
// engine_load() picks the ahead-of-time compiled engine when the module is one that it was made from (DESIGN.md
// decision 2) and wasm3 otherwise. A trap ends the run for good: engine_load() has to start afresh.
#ifndef RIBBON_ENGINE_H
#define RIBBON_ENGINE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define FIRMWARE_HASH_SIZE 32

/// Bytes before the linear memory that an engine may use (wasm3 keeps its memory header there).
#define LINEAR_HEADER_SIZE 64

enum trap_kind {
  TRAP_NONE = 0,
  TRAP_REFUSED = 1,         // the module is malformed, or breaks a rule of the runtime (wasm_check.h)
  TRAP_OUT_OF_BOUNDS = 2,   // a load or store outside the linear memory
  TRAP_IMPORT_ARGUMENT = 3, // a pointer and length given to an import lie outside the linear memory
  TRAP_INTEGER = 4,         // division by zero, or its overflow
  TRAP_UNREACHABLE = 5,
  TRAP_STACK = 6,           // the engine's stack is exhausted
  TRAP_ABORT = 7,           // a failed assertion: text, line and column say which
  TRAP_WATCHDOG = 8,        // a step that did not end
  TRAP_INIT = 9,            // init() gave an error, in `line`
  TRAP_NATIVE = 10,         // the runtime itself failed (a bus error, a stack overflow)
};

struct trap {
  enum trap_kind kind;
  uint32_t line;
  uint32_t column;
  char text[112]; // what is known, in words
};

enum engine_choice { ENGINE_AUTO, ENGINE_WASM3, ENGINE_AOT };

struct linear_memory {
  uint8_t *data;
  uint32_t length;
};

/// One backend. Its functions run inside engine.c's guard: they may call engine_trap() at any point.
struct engine_backend {
  const char *name;
  /// Instantiates the module: memory is zero, data segments get copied, a start function runs.
  void (*load)(const uint8_t *wasm, size_t length, const uint8_t hash[FIRMWARE_HASH_SIZE]);
  uint32_t (*init)(void);
  uint32_t (*step)(void);
  /// Frees everything, whatever state a trap left behind.
  void (*unload)(void);
};

extern const struct engine_backend engine_wasm3, engine_aot;
bool engine_aot_has(const uint8_t hash[FIRMWARE_HASH_SIZE]);

/// Checks and instantiates a module. On failure `trap` says why and nothing is loaded.
bool engine_load(enum engine_choice choice, const uint8_t *wasm, size_t length, struct linear_memory memory,
                 struct trap *trap);
/// Calls an export. False when it trapped; then only engine_unload() may follow.
bool engine_init(uint32_t *result, struct trap *trap);
bool engine_step(uint32_t *result, struct trap *trap);
void engine_unload(void);
const char *engine_name(void);
const uint8_t *engine_firmware_hash(void);

// For backends and imports, while the firmware runs.

_Noreturn void engine_trap(enum trap_kind kind, uint32_t line, uint32_t column, const char *text);
struct linear_memory engine_memory(void);
/// The bytes at `address`, or a trap when any of them lies outside the linear memory.
void *engine_bytes(uint32_t address, uint32_t length);

/// From an interrupt or a signal, at regular intervals: true when the call that ran at the last tick still runs. The caller
/// must then make the interrupted context call engine_watchdog_trap(). False also when an import runs: the trap then follows
/// at its end.
bool engine_watchdog_tick(void);
_Noreturn void engine_watchdog_trap(void);
/// From a signal, for tests: the next import that the firmware calls ends in a watchdog trap.
void engine_watchdog_request(void);

/// Read and written by an interrupt or signal handler.
extern struct engine_guard {
  volatile bool in_import;
  volatile bool watchdog_pending;
} engine_guard;

/// Around every import: a watchdog that expires inside one waits for its end, since C code may hold something.
static inline void engine_import_enter(void) {
  if (engine_guard.watchdog_pending) engine_watchdog_trap();
  engine_guard.in_import = true;
}
static inline void engine_import_leave(void) {
  engine_guard.in_import = false;
  if (engine_guard.watchdog_pending) engine_watchdog_trap();
}

#endif
