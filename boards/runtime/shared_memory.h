// The head of the memory that a card shares with its front end (SPEC.md "Doorbells"): says where the register block is.
#ifndef RIBBON_SHARED_MEMORY_H
#define RIBBON_SHARED_MEMORY_H

#include <stdint.h>

struct shared_memory_head {
  uint32_t magic; // "RBSM"
  uint16_t version;
  uint16_t size;
  uint32_t linear_offset; // of the linear memory, in bytes from this head
  uint32_t linear_length;
  uint32_t front_end_offset; // of the front end's register block, in the linear memory
  uint32_t starts;           // how often the firmware was started since power-on
  uint32_t clock_ms;         // board_clock_ms() after the last step: what the statistics' times are compared with
  uint32_t running;          // 1 while a firmware takes events, 0 while one is being started
  uint32_t busy_ticks;       // time not spent asleep, wraps; written before each sleep
  uint32_t ticks_per_ms;     // 0: the board does not count it
  uint32_t reserved[2];
};

_Static_assert(sizeof(struct shared_memory_head) == 48, "SPEC.md says 48 bytes");

enum {
  SHARED_MEMORY_MAGIC = 0x4d534252,
  SHARED_MEMORY_VERSION = 1,
  /// The linear memory starts this far behind the head; the engine's header lies just before it.
  SHARED_MEMORY_LINEAR_OFFSET = 65536,
  SHARED_MEMORY_FRONT_END_OFFSET = 0x1000, // assembly/memory-map.ts FRONT_END
};

/// Bytes on the doorbell.
enum doorbell {
  DOORBELL_RING = 1,    // either way: the register block has changed
  DOORBELL_STARTED = 2, // card to front end: the head is valid, the firmware has started or started again
};

static inline void shared_memory_announce(struct shared_memory_head *head, uint32_t linear_length) {
  head->version = SHARED_MEMORY_VERSION;
  head->size = sizeof *head;
  head->linear_offset = SHARED_MEMORY_LINEAR_OFFSET;
  head->linear_length = linear_length;
  head->front_end_offset = SHARED_MEMORY_FRONT_END_OFFSET;
  head->starts++;
  head->running = 1;
  // The magic last: whoever sees it sees the rest.
  __atomic_thread_fence(__ATOMIC_SEQ_CST);
  head->magic = SHARED_MEMORY_MAGIC;
}

#endif
