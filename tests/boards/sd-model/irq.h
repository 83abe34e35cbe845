// In place of boards/zynq/irq.h: the model raises no interrupt, the driver looks for itself.
#ifndef RIBBON_ZYNQ_IRQ_H
#define RIBBON_ZYNQ_IRQ_H

#include <stdint.h>

struct irq_frame;
typedef void irq_handler(struct irq_frame *frame);
static inline void irq_enable(uint32_t number, irq_handler *handler) { (void)number, (void)handler; }
static inline void irq_mask(void) {}
static inline void irq_unmask(void) {}

#endif
