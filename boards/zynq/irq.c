// [GIC] = ARM Generic Interrupt Controller Architecture 1.0 (IHI 0048); its registers in [A9-MP] = Cortex-A9 MPCore TRM.

#include "irq.h"

#include <stddef.h>

#include "registers.h"

enum { ICCICR = 0x00, ICCPMR = 0x04, ICCIAR = 0x0c, ICCEOIR = 0x10 };
enum { ICDDCR = 0x000, ICDISER = 0x100, ICDICER = 0x180, ICDIPR = 0x400, ICDIPTR = 0x800 };
enum { INTERRUPTS = 96, SPURIOUS = 1023 };

static irq_handler *handlers[INTERRUPTS];

void irq_init(void) {
  // What a boot loader has enabled would come without a handler, and a level that stays would come again and again.
  for (uint32_t word = 0; word < INTERRUPTS / 32; word++) {
    register_write(GIC_DISTRIBUTOR_BASE, ICDICER + 4 * word, 0xffffffff);
  }
  register_write(GIC_CPU_BASE, ICCPMR, 0xf0); // every priority gets through
  register_write(GIC_CPU_BASE, ICCICR, 1);
  register_write(GIC_DISTRIBUTOR_BASE, ICDDCR, 1);
}

void irq_enable(uint32_t number, irq_handler *handler) {
  handlers[number] = handler;
  // Byte registers, read and written as words. Priority A0h, target CPU 0; the private ones (below 32) have no target.
  const uint32_t word = number & ~3u, shift = 8 * (number & 3);
  const uint32_t priority = register_read(GIC_DISTRIBUTOR_BASE, ICDIPR + word) & ~(0xffu << shift);
  register_write(GIC_DISTRIBUTOR_BASE, ICDIPR + word, priority | 0xa0u << shift);
  const uint32_t target = register_read(GIC_DISTRIBUTOR_BASE, ICDIPTR + word) & ~(0xffu << shift);
  register_write(GIC_DISTRIBUTOR_BASE, ICDIPTR + word, target | 1u << shift);
  register_write(GIC_DISTRIBUTOR_BASE, ICDISER + number / 32 * 4, 1u << (number % 32));
}

void irq_dispatch(struct irq_frame *frame);
void irq_dispatch(struct irq_frame *frame) {
  const uint32_t acknowledged = register_read(GIC_CPU_BASE, ICCIAR);
  const uint32_t number = acknowledged & 0x3ff;
  if (number == SPURIOUS) return;
  if (number < INTERRUPTS && handlers[number] != NULL) handlers[number](frame);
  register_write(GIC_CPU_BASE, ICCEOIR, acknowledged);
}
