// Interrupts: the GIC of the Cortex-A9 MPCore. Handlers run on the main stack with interrupts off, and only note that
// something happened: the work is done in board_wait().
#ifndef RIBBON_ZYNQ_IRQ_H
#define RIBBON_ZYNQ_IRQ_H

#include <stdint.h>

/// What startup.S saves of the interrupted program.
struct irq_frame {
  uint32_t r0, r1, r2, r3, r12, lr, pc, cpsr;
};

typedef void irq_handler(struct irq_frame *frame);

void irq_init(void);
/// Calls `handler` at every interrupt `number`, level-sensitive.
void irq_enable(uint32_t number, irq_handler *handler);

static inline void irq_mask(void) { __asm__ volatile("cpsid i" ::: "memory"); }
static inline void irq_unmask(void) { __asm__ volatile("cpsie i" ::: "memory"); }

#endif
