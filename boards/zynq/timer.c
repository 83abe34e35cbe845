// [A9-MP] chapter 4: all three timers count PERIPHCLK, half the core's clock, here divided down to one tick rate.

#include "timer.h"

#include "board.h"
#include "board_config.h"
#include "engine.h"
#include "irq.h"
#include "main.h"
#include "registers.h"

enum { GLOBAL_LOW = 0x0, GLOBAL_HIGH = 0x4, GLOBAL_CONTROL = 0x8 };
enum { LOAD = 0x0, COUNTER = 0x4, CONTROL = 0x8, STATUS = 0xc };
enum { WATCHDOG_DISABLE = 0x14 }; // from WATCHDOG_BASE
enum { ENABLE = 1, RELOAD = 2, INTERRUPT = 4 };

/// A step takes microseconds; one that runs at two ticks does not end. The time is real time, in QEMU too, where a busy
/// machine may hold the core up: a tick that comes late counts once, however late.
///
/// What the trap cannot reach is the runtime itself: C code that does not come back, in a driver or in an import. It is reset at
/// the third tick without a round of the main loop, which takes 200 ms at most (transport_lwip.c polls the links).
enum { WATCHDOG_MS = 2000, WATCHDOG_TICKS_MAX = 3 };

/// The system watchdog, for a core that takes no interrupts any more: it resets the whole system [UG585 8.4, B.31]. Counts
/// CPU_1x / 4096 in 24 bits, of which the upper 12 can be set. QEMU has nothing at this address, stores to it do nothing.
enum { SWDT_MODE = 0x0, SWDT_CONTROL = 0x4, SWDT_RESTART = 0x8 };
enum {
  SWDT_MODE_KEY = 0xabc << 12,
  SWDT_MODE_RESET = 1 << 1 | 1 << 0, // reset at zero, enable
  SWDT_CONTROL_KEY = 0x248 << 14,
  SWDT_CONTROL_DIVIDE_4096 = 3,
  SWDT_RESTART_KEY = 0x1999,
  SWDT_SECONDS = 15, // after the other one has had its chance to say why
  SWDT_RELOAD = (BOARD_CPU_1X_HZ / 4096 * SWDT_SECONDS) >> 12,
};
_Static_assert(SWDT_RELOAD > 0 && SWDT_RELOAD < 4096, "12 bits");

/// The watchdog and the private timer count 32 bits: divided by 10, 2^32 ticks are two minutes at 333 MHz.
enum { PRESCALER = 10, TICKS_PER_MS = BOARD_PERIPHCLK_HZ / PRESCALER / 1000 };
enum { CLOCK_TICKS_PER_MS = BOARD_PERIPHCLK_HZ / 1000 };

static volatile bool armed; // the private timer runs
static volatile uint32_t unfed_ticks;

static void on_timer(struct irq_frame *frame) {
  (void)frame;
  register_write(PRIVATE_TIMER_BASE, STATUS, 1);
  armed = false;
}

/// The firmware's step does not end: the interrupted program goes on in engine_watchdog_trap().
static void on_watchdog(struct irq_frame *frame) {
  register_write(WATCHDOG_BASE, STATUS, 1);
  if (!engine_watchdog_tick()) {
    if (++unfed_ticks >= WATCHDOG_TICKS_MAX) native_stuck(frame->pc);
    return;
  }
  unfed_ticks = 0; // the trap is a way out
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
  register_write(WATCHDOG_BASE, LOAD, WATCHDOG_MS * TICKS_PER_MS);
  register_write(WATCHDOG_BASE, CONTROL, (PRESCALER - 1) << 8 | INTERRUPT | RELOAD | ENABLE);
  register_write(SWDT_BASE, SWDT_CONTROL, SWDT_CONTROL_KEY | SWDT_RELOAD << 2 | SWDT_CONTROL_DIVIDE_4096);
  register_write(SWDT_BASE, SWDT_MODE, SWDT_MODE_KEY | 4 << 7 | SWDT_MODE_RESET); // IRQLN 16 cycles, as after reset
  register_write(SWDT_BASE, SWDT_RESTART, SWDT_RESTART_KEY);
  irq_enable(IRQ_PRIVATE_TIMER, on_timer);
  irq_enable(IRQ_WATCHDOG, on_watchdog);
}

void watchdog_feed(void) {
  unfed_ticks = 0;
  register_write(SWDT_BASE, SWDT_RESTART, SWDT_RESTART_KEY);
}

uint64_t timer_ticks(void) {
  // The halves cannot be read together: the high one must not have changed meanwhile [A9-MP 4.4.1].
  for (;;) {
    const uint32_t high = register_read(GLOBAL_TIMER_BASE, GLOBAL_HIGH);
    const uint32_t low = register_read(GLOBAL_TIMER_BASE, GLOBAL_LOW);
    if (register_read(GLOBAL_TIMER_BASE, GLOBAL_HIGH) == high) return (uint64_t)high << 32 | low;
  }
}

static struct {
  uint64_t ticks;
  uint32_t ms;
} counted;

// The core has no divide instruction: what has passed since the last call fits 32 bits and a short division, or none.
static __attribute__((noinline)) uint32_t count_ms(void) {
  const uint64_t passed = timer_ticks() - counted.ticks;
  if (passed < (uint64_t)CLOCK_TICKS_PER_MS) return counted.ms;
  const uint32_t more = passed < UINT32_MAX ? (uint32_t)passed / CLOCK_TICKS_PER_MS : (uint32_t)(passed / CLOCK_TICKS_PER_MS);
  counted.ticks += (uint64_t)more * CLOCK_TICKS_PER_MS;
  counted.ms += more;
  return counted.ms;
}

uint32_t timer_ms(void) {
  // Asked dozens of times a command: within the same millisecond the low half alone tells. Where nobody has asked for a whole round of it,
  // it says so wrongly, for less than a millisecond.
  const uint32_t passed = register_read(GLOBAL_TIMER_BASE, GLOBAL_LOW) - (uint32_t)counted.ticks;
  return passed < (uint32_t)CLOCK_TICKS_PER_MS ? counted.ms : count_ms();
}

void timer_wake_in(uint32_t ms) {
  static uint32_t due_ms;
  const uint32_t now_ms = timer_ms();
  // A timer that runs already and ends no later does: waking for nothing is cheaper than setting it at every sleep.
  if (armed && due_ms - now_ms <= ms) return;
  armed = false;
  register_write(PRIVATE_TIMER_BASE, CONTROL, 0);
  register_write(PRIVATE_TIMER_BASE, STATUS, 1);
  if (ms == UINT32_MAX) return;
  const uint32_t most = UINT32_MAX / TICKS_PER_MS;
  const uint32_t set_ms = ms == 0 ? 1 : ms < most ? ms : most;
  due_ms = now_ms + set_ms;
  armed = true;
  register_write(PRIVATE_TIMER_BASE, LOAD, set_ms * TICKS_PER_MS);
  register_write(PRIVATE_TIMER_BASE, CONTROL, (PRESCALER - 1) << 8 | INTERRUPT | ENABLE);
}

void timer_delay_us(uint32_t us) {
  const uint64_t end = timer_ticks() + (uint64_t)us * (BOARD_PERIPHCLK_HZ / 1000000);
  while (timer_ticks() < end) continue;
}
