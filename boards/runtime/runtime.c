// The life of a card.
//
//   firmware image 0 -> check -> init -> step, step, …            a trap: record it, start the same image again
//   too many traps in a row, or refused: the next image            no image left: board_halt()
//
// A restart clears the linear memory but for the front end's register block: the front end keeps the PC waiting with BSY, and
// front_end.h gives its command to the new run. What the PC was told is done is then in the local store or with the image
// server, as far as the acknowledgement point promises it: linear memory is lost.

#include "runtime.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "board.h"
#include "crash.h"
#include "front_end.h"
#include "net.h"
#include "store.h"

enum {
  /// This many traps, each within TRAP_WINDOW_MS of its start, and the image is given up.
  TRAPS_MAX = 3,
  TRAP_WINDOW_MS = 60000,
};

void runtime_log(int level, const char *format, ...) {
  char line[256];
  va_list arguments;
  va_start(arguments, format);
  const int length = vsnprintf(line, sizeof line, format, arguments);
  va_end(arguments);
  if (length > 0) board_log((enum log_level)level, line, (size_t)length < sizeof line ? (size_t)length : sizeof line - 1);
}

static void report_last_crash(void) {
  struct crash_record record;
  if (!crash_read(&record)) return;
  runtime_log(LOG_WARNING, "last crash: %s: %s line=%lu column=%lu count=%lu uptime_ms=%lu engine=%s firmware=%02x%02x%02x%02x",
              crash_kind_name(record.kind), record.text, (unsigned long)record.line, (unsigned long)record.column,
              (unsigned long)record.count, (unsigned long)record.uptime_ms, record.engine, record.firmware_hash[0],
              record.firmware_hash[1], record.firmware_hash[2], record.firmware_hash[3]);
}

static void record_trap(unsigned image, const struct trap *trap) {
  crash_write(trap);
  runtime_log(LOG_ERROR, "firmware %u: %s: %s line=%lu column=%lu", image, crash_kind_name(trap->kind), trap->text,
              (unsigned long)trap->line, (unsigned long)trap->column);
}

/// All of the linear memory but what a front end that has been told of it uses: its register block, and the data buffer that
/// the PC may be reading at this moment.
static void clear_memory(struct linear_memory memory, bool keep_front_end) {
  if (!keep_front_end) {
    memset(memory.data, 0, memory.length);
    return;
  }
  const struct front_end_block *block = (const struct front_end_block *)(memory.data + FRONT_END);
  uint32_t kept_end = FRONT_END + FRONT_END_SIZE;
  uint32_t buffer = kept_end, buffer_end = kept_end;
  if (block->magic == FRONT_END_MAGIC && block->buffer_offset < memory.length &&
      block->buffer_size < memory.length - FRONT_END - block->buffer_offset) {
    buffer = FRONT_END + block->buffer_offset;
    buffer_end = buffer + block->buffer_size;
    if (buffer < kept_end) buffer = buffer_end = kept_end; // not a description that we would have written
  }
  memset(memory.data, 0, FRONT_END);
  memset(memory.data + kept_end, 0, buffer - kept_end);
  memset(memory.data + buffer_end, 0, memory.length - buffer_end);
}

/// Steps the firmware until it traps (false) or the board wants to stop (true).
static bool run(volatile struct front_end_block *block, struct trap *trap) {
  for (;;) {
    uint32_t timeout_ms;
    net_poll();
    if (!engine_step(&timeout_ms, trap)) return false;
    if (front_end_resume_step(block)) continue;
    if (board_wait(store_pending() ? 0 : timeout_ms) & EVENT_STOP) return true;
  }
}

/// A front end has been told that a firmware runs, in this run of the runtime or in the one before a reset.
static bool was_started;

/// Loads and runs one image once. True when the board wants to stop.
static bool start(enum engine_choice choice, const uint8_t *wasm, size_t length, struct linear_memory memory,
                  unsigned image, struct trap *trap) {
  volatile struct front_end_block *block = (volatile struct front_end_block *)(memory.data + FRONT_END);
  clear_memory(memory, was_started);
  if (!engine_load(choice, wasm, length, memory, trap)) return false;
  runtime_log(LOG_INFO, "firmware %u: engine=%s bytes=%lu memory=%lu", image, engine_name(), (unsigned long)length,
              (unsigned long)memory.length);
  // Not before the engine is ready: the front end may have been about to post an event when the last firmware ended.
  if (was_started) front_end_resume_prepare(block);
  uint32_t error;
  if (!engine_init(&error, trap)) return false;
  if (error != 0) {
    *trap = (struct trap){.kind = TRAP_INIT, .line = error};
    snprintf(trap->text, sizeof trap->text, "init() answers 0x%lx", (unsigned long)error);
    return false;
  }
  if (was_started) front_end_resume_begin(block);
  else board_front_end_started(); // with was_started, once the reset is over (front_end.c)
  was_started = true;
  return run(block, trap);
}

/// True when the board wants to stop; false when the image has been given up.
static bool run_image(enum engine_choice choice, const uint8_t *wasm, size_t length, struct linear_memory memory,
                      unsigned image) {
  for (unsigned traps = 0; traps < TRAPS_MAX;) {
    struct trap trap;
    const uint32_t started_ms = board_clock_ms();
    if (start(choice, wasm, length, memory, image, &trap)) return true;
    board_front_end_stopped();
    record_trap(image, &trap);
    engine_unload();
    net_close_all();
    store_abandon(); // before the linear memory is cleared: a DMA engine may still be filling it
    if (trap.kind == TRAP_REFUSED || trap.kind == TRAP_INIT) return false; // it would only do the same again
    traps = board_clock_ms() - started_ms > TRAP_WINDOW_MS ? 1 : traps + 1;
  }
  runtime_log(LOG_ERROR, "firmware %u: given up after %d traps in a row", image, TRAPS_MAX);
  return false;
}

void runtime_run(enum engine_choice choice) {
  size_t memory_length;
  uint8_t *data = board_linear_memory(&memory_length);
  const struct linear_memory memory = {data, (uint32_t)memory_length};
  report_last_crash();
  was_started = board_front_end_kept() && ((struct front_end_block *)(data + FRONT_END))->magic == FRONT_END_MAGIC;
  for (unsigned image = 0;; image++) {
    size_t length;
    const uint8_t *wasm = board_firmware(image, &length);
    if (wasm == NULL) board_halt(image == 0 ? "there is no firmware" : "no firmware image runs");
    if (run_image(choice, wasm, length, memory, image)) break;
  }
  engine_unload();
  net_close_all();
  store_abandon();
}
