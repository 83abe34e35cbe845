// Ahead-of-time compiled firmware: wasm2c's output, compiled with the runtime by tools/build-boards.ts, which also writes
// the table AOT_MODULES. Used only for the very module that it was made from.

#include <stdlib.h>
#include <string.h>

#include "aot_table.h"
#include "engine.h"

static struct {
  const struct aot_module *module;
  void *instance;
} state;

static const struct aot_module *find(const uint8_t hash[FIRMWARE_HASH_SIZE]) {
  for (size_t i = 0; i < AOT_MODULE_COUNT; i++) {
    if (memcmp(AOT_MODULES[i].hash, hash, FIRMWARE_HASH_SIZE) == 0) return &AOT_MODULES[i];
  }
  return NULL;
}

bool engine_aot_has(const uint8_t hash[FIRMWARE_HASH_SIZE]) { return find(hash) != NULL; }

static void aot_load(const uint8_t *wasm, size_t length, const uint8_t hash[FIRMWARE_HASH_SIZE]) {
  (void)wasm;
  (void)length;
  state.module = find(hash);
  state.instance = calloc(1, state.module->instance_size);
  if (state.instance == NULL) engine_trap(TRAP_REFUSED, 0, 0, "no memory for the instance");
  aot_memory_set(engine_memory());
  state.module->instantiate(state.instance);
}

static uint32_t aot_init(void) { return state.module->init(state.instance); }
static uint32_t aot_step(void) { return state.module->step(state.instance); }

static void aot_unload(void) {
  free(state.instance);
  memset(&state, 0, sizeof state);
}

const struct engine_backend engine_aot = {"aot", aot_load, aot_init, aot_step, aot_unload};
