// How the runtime ends when it fails itself.
#ifndef RIBBON_ZYNQ_MAIN_H
#define RIBBON_ZYNQ_MAIN_H

#include <stdint.h>

/// Records `text`, shows it, resets.
_Noreturn void native_panic(const char *text);
/// From startup.S: 1 undefined instruction, 2 prefetch abort, 3 data abort, at `address`.
_Noreturn void native_fault(uint32_t kind, uint32_t address);
/// From the watchdog's interrupt: the runtime stands at `address` and does not come back.
_Noreturn void native_stuck(uint32_t address);

#endif
