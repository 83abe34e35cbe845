// The Ethernet MACs (GEM) with their PHYs. The rest of the driver's interface is transport_lwip.h's.
#ifndef RIBBON_ZYNQ_GEM_H
#define RIBBON_ZYNQ_GEM_H

#include <stdbool.h>

/// Starts MAC 0 up to `count`.
void gem_init(unsigned count);

/// An interrupt has come since the rings were last looked at; for a last look with interrupts masked.
bool ethernet_pending(void);

#endif
