// How the output of wasm2c gets at the linear memory, in place of its own way (tools/boards/aot.ts puts this in). wasm2c asks for place and
// size of the memory at every access, as it may grow, and adds in 64 bits. Ours never changes (wasm_check.c refuses memory.grow):
// a function asks once, and what remains of a check is one comparison, or none where the address is a constant.
#ifndef RIBBON_AOT_MEMORY_H
#define RIBBON_AOT_MEMORY_H

/// What stands at the head of every function. AOT_MEMORY_MIN: bytes that the module asks for; wasm_check.c has seen to it that
/// they are there.
#define FUNC_PROLOGUE                                            \
  uint8_t *const linear = instance->Z_envZ_memory->data;         \
  const uint32_t linear_size = instance->Z_envZ_memory->size;    \
  if (linear_size < AOT_MEMORY_MIN) __builtin_unreachable()
#define FUNC_EPILOGUE

/// Where `size` bytes at `base` + `offset` lie, which may be more than 32 bits have.
static inline uint8_t *linear_at(uint8_t *linear, uint32_t linear_size, uint32_t base, uint32_t offset, uint32_t size) {
  const uint64_t end = (uint64_t)offset + size;
  if (UNLIKELY(end > linear_size || base > linear_size - (uint32_t)end)) TRAP(OOB);
  return linear + base + offset;
}

/// `stored`: as it lies in memory. `extended`: what gives it its sign, or not. `value`: as wasm has it.
#define DEFINE_LOAD(name, stored, extended, value)                                                         \
  static inline value name(uint8_t *linear, uint32_t linear_size, uint32_t base, uint32_t offset) {        \
    stored result;                                                                                         \
    __builtin_memcpy(&result, linear_at(linear, linear_size, base, offset, sizeof result), sizeof result); \
    return (value)(extended)result;                                                                        \
  }

#define DEFINE_STORE(name, stored, value)                                                                          \
  static inline void name(uint8_t *linear, uint32_t linear_size, uint32_t base, uint32_t offset, value operand) { \
    const stored result = (stored)operand;                                                                         \
    __builtin_memcpy(linear_at(linear, linear_size, base, offset, sizeof result), &result, sizeof result);         \
  }

#endif
