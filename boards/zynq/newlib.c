// What newlib asks of the board: memory for malloc; there are no files. And a memmove() for what it is used for here, wasm's
// memory.copy: newlib's goes word by word, while its memcpy() uses NEON and takes a quarter of the instructions.

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

// The compiler must not turn the loops into calls of what they implement.
__attribute__((optimize("no-tree-loop-distribute-patterns"))) void *memmove(void *target, const void *source, size_t length) {
  uint8_t *to = target;
  const uint8_t *from = source;
  const uintptr_t distance = (uintptr_t)to - (uintptr_t)from;
  if (distance >= length && -distance >= length) return memcpy(target, source, length);
  if (distance < length) {
    while (length-- > 0) to[length] = from[length];
  } else {
    for (size_t i = 0; i < length; i++) to[i] = from[i];
  }
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
