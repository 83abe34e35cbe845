// After a trap the front end may show BSY, with its event in the block unanswered, or may not have taken the last order yet.
// The new firmware needs a reset first (it has to learn the capacity again), which the PC must not see. So the block's
// event number is set back meanwhile: orders that answer older events have no effect. Then:
//
//   COMMAND, RESET unanswered    as they were, with the registers as the PC wrote them: the command runs from its start
//   a transfer event unanswered  the command ends with ABRT: its first half is lost
//   an order was given           it is given once more; a front end that has taken it takes no second one. If it moves data
//                                and more was to follow, the event that comes next ends the command with ABRT

#include "front_end.h"

#include "board.h"
#include "runtime.h"

enum { STATUS_DRDY = 0x40, STATUS_DSC = 0x10, STATUS_ERR = 0x01, ERROR_ABRT = 0x04, ORDER_INTRQ = 1, ORDER_LAST = 2 };

static struct {
  enum { RESUME_NONE, RESUME_RESET, RESUME_WATCH } state;
  bool answered;
  uint32_t order_sequence;      // when the reset began: an order for the event before may have the same number in it
  struct front_end_block block; // as the trapped firmware left it
} resume;

static void copy(volatile uint8_t *target, const volatile uint8_t *source, size_t length) {
  for (size_t i = 0; i < length; i++) target[i] = source[i];
}

void front_end_resume_prepare(volatile struct front_end_block *block) {
  // A firmware that did not live through its own reset leaves a block that says nothing new.
  if (resume.state != RESUME_RESET) {
    copy((uint8_t *)&resume.block, (volatile uint8_t *)block, sizeof resume.block);
    resume.answered = block->order_event == block->event_sequence && block->order != FRONT_END_ORDER_NONE;
  }
  resume.state = RESUME_RESET;
  block->event_sequence = resume.block.event_sequence - 2;
}

void front_end_resume_begin(volatile struct front_end_block *block) {
  resume.order_sequence = block->order_sequence;
  block->event = FRONT_END_EVENT_RESET;
  block->event_length = 0;
  block->event_sequence = resume.block.event_sequence - 1;
}

static void give_order(volatile struct front_end_block *block, uint32_t event_sequence) {
  block->order_event = event_sequence;
  __atomic_thread_fence(__ATOMIC_SEQ_CST);
  block->order_sequence++;
  board_front_end_ring();
}

/// Ends the command whose transfer was cut: the PC sees an error and tries again.
static void abort_command(volatile struct front_end_block *block) {
  block->registers[REGISTER_ERROR] = ERROR_ABRT;
  block->order = FRONT_END_ORDER_COMPLETE;
  block->order_flags = ORDER_INTRQ;
  block->order_status = STATUS_DRDY | STATUS_DSC | STATUS_ERR;
  give_order(block, block->event_sequence);
  runtime_log(LOG_WARNING, "front end: event %lu of the PC is answered with an error", (unsigned long)block->event);
}

static void repeat_order(volatile struct front_end_block *block) {
  const struct front_end_block *old = &resume.block;
  block->order = old->order;
  block->order_flags = old->order_flags;
  block->order_offset = old->order_offset;
  block->order_length = old->order_length;
  block->order_status = old->order_status;
  block->order_end_status = old->order_end_status;
  give_order(block, old->event_sequence);
  const bool ends = old->order == FRONT_END_ORDER_COMPLETE ||
                    (old->order == FRONT_END_ORDER_DATA_IN && (old->order_flags & ORDER_LAST) != 0);
  resume.state = ends ? RESUME_NONE : RESUME_WATCH;
  runtime_log(LOG_WARNING, "front end: event %lu of the PC was answered", (unsigned long)old->event);
}

static void finish_reset(volatile struct front_end_block *block) {
  const struct front_end_block *old = &resume.block;
  const bool repeats = old->event == FRONT_END_EVENT_COMMAND || old->event == FRONT_END_EVENT_RESET;
  resume.state = RESUME_NONE;
  copy(block->registers, old->registers, sizeof old->registers);
  block->event = !resume.answered && repeats ? old->event : FRONT_END_EVENT_NONE;
  block->event_length = old->event_length;
  block->event_sequence = old->event_sequence;
  if (resume.answered) {
    repeat_order(block);
  } else if (repeats) {
    runtime_log(LOG_WARNING, "front end: event %lu of the PC is taken again", (unsigned long)old->event);
  } else if (old->event != FRONT_END_EVENT_NONE) {
    abort_command(block);
  }
  board_front_end_started();
}

bool front_end_resume_step(volatile struct front_end_block *block) {
  const uint32_t last = resume.block.event_sequence;
  if (resume.state == RESUME_RESET) {
    const bool is_new = block->order_sequence != resume.order_sequence && block->order_event == last - 1;
    if (!is_new || block->order != FRONT_END_ORDER_COMPLETE) return false;
    finish_reset(block);
    return true;
  }
  if (resume.state == RESUME_WATCH && block->event_sequence != last) {
    resume.state = RESUME_NONE;
    if (block->event > FRONT_END_EVENT_COMMAND) abort_command(block);
  }
  return false;
}
