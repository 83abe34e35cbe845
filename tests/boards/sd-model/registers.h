// In place of boards/zynq/registers.h: accesses go to the model of the controller (model.c).
#ifndef RIBBON_ZYNQ_REGISTERS_H
#define RIBBON_ZYNQ_REGISTERS_H

#include <stdint.h>

enum { SDHCI0_BASE = 0, IRQ_SDHCI0 = 56 };

uint32_t register_read(uint32_t base, uint32_t offset);
void register_write(uint32_t base, uint32_t offset, uint32_t value);
static inline void barrier(void) { __atomic_thread_fence(__ATOMIC_SEQ_CST); }

#endif
