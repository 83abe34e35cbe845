// [A9-MP] chapter 4: all three timers count PERIPHCLK, half the core's clock, here divided down to one tick rate.

#include "timer.h"

#include "board.h"
#include "board_config.h"
#include "engine.h"
#include "irq.h"
#include "registers.h"

enum { GLOBAL_LOW = 0x0, GLOBAL_HIGH = 0x4, GLOBAL_CONTROL = 0x8 };
enum { LOAD = 0x0, COUNTER = 0x4, CONTROL = 0x8, STATUS = 0xc };
enum { WATCHDOG_DISABLE = 0x14 }; // from WATCHDOG_BASE
enum { ENABLE = 1, INTERRUPT = 4 };

/// A step takes microseconds. The time is real time, in QEMU too, where a busy machine may hold the core up.
enum { WATCHDOG_MS = 5000 };

/// The watchdog and the private timer count 32 bits: divided by 10, 2^32 ticks are two minutes at 333 MHz.
enum { PRESCALER = 10, TICKS_PER_MS = BOARD_PERIPHCLK_HZ / PRESCALER / 1000 };

static void on_timer(struct irq_frame *frame) {
  (void)frame;
  register_write(PRIVATE_TIMER_BASE, STATUS, 1);
}

/// The firmware's step does not end: the interrupted program goes on in engine_watchdog_trap().
static void on_watchdog(struct irq_frame *frame) {
  register_write(WATCHDOG_BASE, STATUS, 1);
  if (!engine_watchdog_expired()) return;
  const uint32_t target = (uint32_t)engine_watchdog_trap;
  frame->pc = target & ~1u;
  // Instruction set as the target has it, and no rest of an IT block [V7 B1.3.3].
  frame->cpsr = (frame->cpsr & ~(1u << 5 | 0x0600fc00u)) | (target & 1) << 5;
}

void timer_init(void) {
  register_write(GLOBAL_TIMER_BASE, GLOBAL_CONTROL, ENABLE);
  register_write(PRIVATE_TIMER_BASE, CONTROL, 0);
  register_write(PRIVATE_TIMER_BASE, STATUS, 1);
  // The watchdog leaves watchdog mode for timer mode only after this sequence [A9-MP 4.2.6].
  register_write(WATCHDOG_BASE, WATCHDOG_DISABLE, 0x12345678);
  register_write(WATCHDOG_BASE, WATCHDOG_DISABLE, 0x87654321);
  register_write(WATCHDOG_BASE, CONTROL, 0);
  irq_enable(IRQ_PRIVATE_TIMER, on_timer);
  irq_enable(IRQ_WATCHDOG, on_watchdog);
}

uint64_t timer_ticks(void) {
  // The halves cannot be read together: the high one must not have changed meanwhile [A9-MP 4.4.1].
  for (;;) {
    const uint32_t high = register_read(GLOBAL_TIMER_BASE, GLOBAL_HIGH);
    const uint32_t low = register_read(GLOBAL_TIMER_BASE, GLOBAL_LOW);
    if (register_read(GLOBAL_TIMER_BASE, GLOBAL_HIGH) == high) return (uint64_t)high << 32 | low;
  }
}

uint32_t timer_ms(void) { return (uint32_t)(timer_ticks() / (BOARD_PERIPHCLK_HZ / 1000)); }

void timer_wake_in(uint32_t ms) {
  register_write(PRIVATE_TIMER_BASE, CONTROL, 0);
  register_write(PRIVATE_TIMER_BASE, STATUS, 1);
  if (ms == UINT32_MAX) return;
  const uint32_t most = UINT32_MAX / TICKS_PER_MS;
  register_write(PRIVATE_TIMER_BASE, LOAD, (ms < most ? ms : most) * TICKS_PER_MS);
  register_write(PRIVATE_TIMER_BASE, CONTROL, (PRESCALER - 1) << 8 | INTERRUPT | ENABLE);
}

void timer_delay_us(uint32_t us) {
  const uint64_t end = timer_ticks() + (uint64_t)us * (BOARD_PERIPHCLK_HZ / 1000000);
  while (timer_ticks() < end) continue;
}

void board_watchdog_start(void) {
  register_write(WATCHDOG_BASE, LOAD, WATCHDOG_MS * TICKS_PER_MS);
  register_write(WATCHDOG_BASE, CONTROL, (PRESCALER - 1) << 8 | INTERRUPT | ENABLE);
}

void board_watchdog_stop(void) { register_write(WATCHDOG_BASE, CONTROL, 0); }
