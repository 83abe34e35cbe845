// What newlib asks of the board: memory for malloc. There are no files.

#include <errno.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/stat.h>

extern uint8_t heap_start[], heap_end[];

_Noreturn void native_panic(const char *text);
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
