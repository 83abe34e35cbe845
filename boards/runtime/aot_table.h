// The ahead-of-time compiled firmwares in this build. The table is written by tools/build-boards.ts.
#ifndef RIBBON_AOT_TABLE_H
#define RIBBON_AOT_TABLE_H

#include <stddef.h>
#include <stdint.h>

#include "engine.h"

struct aot_module {
  uint8_t hash[FIRMWARE_HASH_SIZE]; // SHA-256 of the wasm
  size_t instance_size;
  void (*instantiate)(void *instance);
  uint32_t (*init)(void *instance);
  uint32_t (*step)(void *instance);
};

extern const struct aot_module AOT_MODULES[];
extern const size_t AOT_MODULE_COUNT;

/// The memory that the next instance imports.
void aot_memory_set(struct linear_memory memory);

#endif
