// The firmware's view of the world: the same list as assembly/imports.ts, in the same order. The prototypes are generated
// from that file (build/boards/generated/imports.h). A pointer is used only after engine_bytes() has checked it.

#include "imports.h"

#include <stdio.h>

#include "accelerators.h"
#include "board.h"
#include "engine.h"
#include "net.h"
#include "store.h"

// Clock

uint32_t import_clock_ms(void) { return board_clock_ms(); }

// Chance

uint32_t import_random_u32(void) {
  uint32_t value;
  board_random(&value, sizeof value);
  return value;
}

// Log

void import_log_write(uint32_t level, uint32_t text, uint32_t length) {
  board_log(level <= LOG_DEBUG ? (enum log_level)level : LOG_ERROR, engine_bytes(text, length), length);
}

// Settings

uint32_t import_settings_read(uint32_t target, uint32_t capacity) {
  return (uint32_t)board_settings_read(engine_bytes(target, capacity), capacity);
}

// Front end

void import_front_end_ring(void) { board_front_end_ring(); }

// Network

void import_net_open(uint32_t stream, uint32_t path) { net_open(stream, path); }
void import_net_close(uint32_t stream) { net_close(stream); }
uint32_t import_net_state(uint32_t stream) { return net_state(stream); }
void import_net_start_tls(uint32_t stream) { net_start_tls(stream); }

uint32_t import_net_receive(uint32_t stream, uint32_t target, uint32_t capacity) {
  return net_receive(stream, engine_bytes(target, capacity), capacity);
}

uint32_t import_net_send(uint32_t stream, uint32_t source, uint32_t length) {
  return net_send(stream, engine_bytes(source, length), length);
}

// Local store

uint32_t import_store_size(void) { return store_size(); }

void import_store_read(uint32_t tag, uint32_t block, uint32_t count, uint32_t target) {
  store_start(STORE_READ, tag, block, count, target);
}

void import_store_write(uint32_t tag, uint32_t block, uint32_t count, uint32_t source) {
  store_start(STORE_WRITE, tag, block, count, source);
}

void import_store_flush(uint32_t tag) { store_start(STORE_FLUSH, tag, 0, 0, 0); }
void import_store_trim(uint32_t tag, uint32_t block, uint32_t count) { store_start(STORE_TRIM, tag, block, count, 0); }
uint32_t import_store_completed(void) { return store_completed(); }

// Accelerators

uint32_t import_crc32c(uint32_t seed, uint32_t source, uint32_t length) {
  return crc32c(seed, engine_bytes(source, length), length);
}

// env.abort: a failed assertion. AssemblyScript strings are UTF-16 with their length in bytes in the word before them.

static void append_string(char *text, size_t size, size_t *at, uint32_t address) {
  if (address < 4) return;
  uint32_t length;
  __builtin_memcpy(&length, engine_bytes(address - 4, 4), 4);
  if (length > 2 * size) length = (uint32_t)(2 * size);
  const uint8_t *units = engine_bytes(address, length);
  for (uint32_t i = 0; i + 1 < length && *at + 1 < size; i += 2) {
    text[(*at)++] = units[i + 1] == 0 && units[i] >= 0x20 && units[i] < 0x7f ? (char)units[i] : '?';
  }
  text[*at] = 0;
}

void import_abort(uint32_t message, uint32_t file, uint32_t line, uint32_t column) {
  char text[sizeof((struct trap *)NULL)->text] = "";
  size_t at = 0;
  append_string(text, sizeof text, &at, message);
  if (at + 4 < sizeof text) at += (size_t)snprintf(text + at, sizeof text - at, " in ");
  append_string(text, sizeof text, &at, file);
  engine_trap(TRAP_ABORT, line, column, text);
}

void import_sha256(uint32_t source, uint32_t length, uint32_t target) {
  sha256(engine_bytes(source, length), length, engine_bytes(target, 32));
}

uint32_t import_deflate(uint32_t source, uint32_t length, uint32_t target, uint32_t capacity) {
  return deflate_bytes(engine_bytes(source, length), length, engine_bytes(target, capacity), capacity);
}

uint32_t import_inflate(uint32_t source, uint32_t length, uint32_t target, uint32_t capacity) {
  return inflate_bytes(engine_bytes(source, length), length, engine_bytes(target, capacity), capacity);
}
