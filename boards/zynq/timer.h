// Time: the global timer as the clock, the private timer to wake from sleep, the watchdog against steps that do not end.
#ifndef RIBBON_ZYNQ_TIMER_H
#define RIBBON_ZYNQ_TIMER_H

#include <stdint.h>

void timer_init(void);
uint64_t timer_ticks(void);
uint32_t timer_ms(void);
/// Raises an interrupt that ends WFI after `ms` at the latest; UINT32_MAX: none. With interrupts masked.
void timer_wake_in(uint32_t ms);
/// Busy waiting, for drivers that wait for hardware.
void timer_delay_us(uint32_t us);

/// The main loop still goes round. Without this for WATCHDOG_TICKS_MAX ticks the card is reset; a firmware's step that does not
/// end is trapped before that (engine.h).
void watchdog_feed(void);

#endif
