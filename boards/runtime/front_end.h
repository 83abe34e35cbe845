// The front end's register block (SPEC.md "Front end", assembly/front-end/block.ts), and how a firmware that has trapped
// takes up the PC's command again.
#ifndef RIBBON_FRONT_END_H
#define RIBBON_FRONT_END_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct front_end_block {
  uint32_t magic;
  uint16_t version, size;
  uint32_t buffer_offset, buffer_size;
  uint32_t event_sequence, event, event_length, lines; // the front end's
  uint32_t order_sequence, order_event, order, order_flags, order_offset, order_length; // the card's
  uint8_t order_status, order_end_status;
  uint8_t reserved[6];
  uint8_t registers[16]; // Features to interruptPending
};

_Static_assert(sizeof(struct front_end_block) == 80 && offsetof(struct front_end_block, registers) == 64, "SPEC.md");

enum {
  /// assembly/memory-map.ts
  FRONT_END = 0x1000,
  FRONT_END_SIZE = 0x100,
  FRONT_END_MAGIC = 0x45464252, // "RBFE"
  REGISTER_ERROR = 14, // in `registers`
};
enum front_end_event { FRONT_END_EVENT_NONE = 0, FRONT_END_EVENT_RESET = 1, FRONT_END_EVENT_COMMAND = 2 };
enum front_end_order { FRONT_END_ORDER_NONE = 0, FRONT_END_ORDER_COMPLETE = 1, FRONT_END_ORDER_DATA_IN = 2 };

/// Before init() of a firmware that follows a trapped one: hides the event that is there.
void front_end_resume_prepare(volatile struct front_end_block *block);
/// After init(): the firmware gets a reset that the PC does not see.
void front_end_resume_begin(volatile struct front_end_block *block);
/// After each step: once that reset is over, the firmware gets the event that the trapped one left, and the front end is told
/// that events are taken again. True when the firmware has to be stepped again at once.
bool front_end_resume_step(volatile struct front_end_block *block);

#endif
