// Addresses and interrupts of the Zynq-7000 [UG585 4.1, 7.2.3, appendix B], and how registers are accessed.
#ifndef RIBBON_ZYNQ_REGISTERS_H
#define RIBBON_ZYNQ_REGISTERS_H

#include <stdint.h>

enum {
  UART0_BASE = 0xE0000000,
  UART1_BASE = 0xE0001000,
  GEM0_BASE = 0xE000B000,
  GEM1_BASE = 0xE000C000,
  QSPI_BASE = 0xE000D000,
  SDHCI0_BASE = 0xE0100000,
  SLCR_BASE = 0xF8000000,
  SWDT_BASE = 0xF8005000,
  XADC_BASE = 0xF8007100,
  SCU_BASE = 0xF8F00000,
  GIC_CPU_BASE = 0xF8F00100,
  GLOBAL_TIMER_BASE = 0xF8F00200,
  PRIVATE_TIMER_BASE = 0xF8F00600,
  WATCHDOG_BASE = 0xF8F00620,
  GIC_DISTRIBUTOR_BASE = 0xF8F01000,
  L2_BASE = 0xF8F02000,
  QSPI_LINEAR_BASE = 0xFC000000,
};

enum {
  IRQ_PRIVATE_TIMER = 29,
  IRQ_WATCHDOG = 30,
  IRQ_GEM0 = 54,
  IRQ_SDHCI0 = 56,
  IRQ_UART0 = 59,
  IRQ_GEM1 = 77,
  IRQ_UART1 = 82,
};

/// Peripherals are mapped as Device memory: accesses stay in order, are not merged and not repeated [V7 A3.5.5].
static inline uint32_t register_read(uint32_t base, uint32_t offset) {
  return *(volatile uint32_t *)(uintptr_t)(base + offset);
}

static inline void register_write(uint32_t base, uint32_t offset, uint32_t value) {
  *(volatile uint32_t *)(uintptr_t)(base + offset) = value;
}

/// Everything stored before is in memory before anything after is stored or a device register is written [V7 A3.8.3]: before
/// a descriptor is handed to a DMA engine, before a doorbell. Normal (DDR) and Device memory are not ordered otherwise.
static inline void barrier(void) { __asm__ volatile("dsb" ::: "memory"); }

#endif
