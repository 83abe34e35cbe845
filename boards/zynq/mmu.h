#ifndef RIBBON_ZYNQ_MMU_H
#define RIBBON_ZYNQ_MMU_H

#include <stdint.h>

/// Called once, with caches and MMU off.
void mmu_enable(void);

/// Before a device reads memory that the core has written.
void cache_clean(const void *start, uint32_t length);
/// Before a device writes memory, and again before the core reads what it wrote (lines may have been fetched meanwhile).
void cache_invalidate(const void *start, uint32_t length);

#endif
