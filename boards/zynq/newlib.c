// What newlib asks of the board: memory for malloc; there are no files. And memmove() and memset() for what they are used for here,
// wasm's memory.copy and memory.fill of whole blocks: newlib's go word by word, or nearly (copy.S).

#include <errno.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <sys/stat.h>

#include "main.h"

extern uint8_t heap_start[], heap_end[];

void *_sbrk(ptrdiff_t increment);
_Noreturn void _exit(int status);
int _kill(int process, int signal);
int _getpid(void);
int _write(int file, const char *source, int length);
int _read(int file, char *target, int length);
int _close(int file);
int _fstat(int file, struct stat *status);
int _isatty(int file);
int _lseek(int file, int offset, int from);

void *_sbrk(ptrdiff_t increment) {
  static uint8_t *end = heap_start;
  if (increment > heap_end - end) {
    errno = ENOMEM;
    return (void *)-1;
  }
  uint8_t *start = end;
  end += increment;
  return start;
}

// Whole rounds of copy.S.
enum { ROUND = 128 };
void copy_rounds(void *target, const void *source, size_t length);
void fill_rounds(void *target, uint32_t word, size_t length);

// The compiler must not turn the loops into calls of what they implement.
#define NO_CALLS __attribute__((optimize("no-tree-loop-distribute-patterns")))

NO_CALLS void *memmove(void *target, const void *source, size_t length) {
  uint8_t *to = target;
  const uint8_t *from = source;
  const uintptr_t distance = (uintptr_t)to - (uintptr_t)from;
  if (distance >= length && -distance >= length) {
    const size_t rounds = (((uintptr_t)to | (uintptr_t)from) & 3) == 0 ? length & ~(size_t)(ROUND - 1) : 0;
    if (rounds > 0) copy_rounds(to, from, rounds);
    memcpy(to + rounds, from + rounds, length - rounds);
  } else if (distance < length) {
    while (length-- > 0) to[length] = from[length];
  } else {
    for (size_t i = 0; i < length; i++) to[i] = from[i];
  }
  return target;
}

NO_CALLS void *memset(void *target, int value, size_t length) {
  uint8_t *to = target;
  const uint32_t word = (uint8_t)value * 0x01010101u;
  for (; length > 0 && ((uintptr_t)to & 3) != 0; length--) *to++ = (uint8_t)value;
  const size_t rounds = length & ~(size_t)(ROUND - 1);
  if (rounds > 0) fill_rounds(to, word, rounds);
  to += rounds;
  length -= rounds;
  for (; length >= 4; length -= 4, to += 4) __builtin_memcpy(to, &word, 4);
  while (length-- > 0) *to++ = (uint8_t)value;
  return target;
}

_Noreturn void _exit(int status) {
  (void)status;
  native_panic("exit");
}
int _kill(int process, int signal) {
  (void)process;
  (void)signal;
  native_panic("abort");
}
int _getpid(void) { return 1; }
int _write(int file, const char *source, int length) {
  (void)file;
  (void)source;
  return length;
}
int _read(int file, char *target, int length) {
  (void)file;
  (void)target;
  (void)length;
  return 0;
}
int _close(int file) {
  (void)file;
  return -1;
}
int _fstat(int file, struct stat *status) {
  (void)file;
  status->st_mode = S_IFCHR;
  return 0;
}
int _isatty(int file) {
  (void)file;
  return 1;
}
int _lseek(int file, int offset, int from) {
  (void)file;
  (void)offset;
  (void)from;
  return 0;
}
