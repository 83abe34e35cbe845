// The firmware's side of the local store: arguments are checked, what has ended waits in a queue until it is asked for.

#include "store.h"

#include <stdio.h>
#include <string.h>

#include "board.h"
#include "engine.h"

enum { NONE_COMPLETED = 0xffffffff, FAILED = 0x100 };

/// A tag is in flight from its start until the firmware has heard of its end, so the queue cannot overflow.
static struct {
  bool in_flight[STORE_TAGS];
  uint16_t completed[STORE_TAGS];
  unsigned taken, added; // free-running
} store;

static _Noreturn void refuse(const char *why, uint32_t tag, uint32_t block, uint32_t count) {
  char text[sizeof((struct trap *)NULL)->text];
  snprintf(text, sizeof text, "store operation %lu, block %lu, count %lu: %s", (unsigned long)tag, (unsigned long)block,
           (unsigned long)count, why);
  engine_trap(TRAP_IMPORT_ARGUMENT, 0, 0, text);
}

uint32_t store_size(void) { return board_store_blocks(); }

void store_start(enum store_kind kind, uint32_t tag, uint32_t block, uint32_t count, uint32_t address) {
  struct store_operation operation = {.kind = kind, .tag = tag, .block = block, .count = count};
  if (tag >= STORE_TAGS) refuse("no such tag", tag, block, count);
  if (store.in_flight[tag]) refuse("the tag is in use", tag, block, count);
  if ((uint64_t)block + count > board_store_blocks()) refuse("outside of the store", tag, block, count);
  if (kind == STORE_READ || kind == STORE_WRITE) {
    // A store may be larger than what 32 bits count in bytes.
    const uint64_t length = (uint64_t)count * STORE_BLOCK_SIZE;
    if (length > UINT32_MAX) refuse("larger than the memory", tag, block, count);
    operation.memory = engine_bytes(address, (uint32_t)length);
  }
  store.in_flight[tag] = true;
  if (count == 0 && kind != STORE_FLUSH) store_done(tag, false);
  else board_store_start(&operation);
}

void store_done(uint32_t tag, bool failed) {
  store.completed[store.added++ % STORE_TAGS] = (uint16_t)(tag | (failed ? FAILED : 0));
}

uint32_t store_completed(void) {
  if (!store_pending()) return NONE_COMPLETED;
  const uint32_t completed = store.completed[store.taken++ % STORE_TAGS];
  store.in_flight[completed % FAILED] = false;
  return completed;
}

bool store_pending(void) { return store.taken != store.added; }

void store_abandon(void) {
  board_store_abandon();
  memset(&store, 0, sizeof store);
}
