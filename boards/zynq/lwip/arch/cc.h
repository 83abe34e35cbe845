// What lwIP wants to know of the compiler and the board.
#ifndef RIBBON_LWIP_CC_H
#define RIBBON_LWIP_CC_H

#include <stdint.h>
#include <stdlib.h>

void board_random(void *target, size_t length);
_Noreturn void native_panic(const char *text); // main.h

static inline uint32_t lwip_board_random(void) {
  uint32_t value;
  board_random(&value, sizeof value);
  return value;
}

#define LWIP_RAND() lwip_board_random()
#define LWIP_PLATFORM_DIAG(x)
#define LWIP_PLATFORM_ASSERT(text) native_panic(text)

#endif
