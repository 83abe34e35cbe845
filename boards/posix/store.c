// The local store of a card that is a process: a file or block device, or memory when none is named. Operations are done when
// the call returns; a flush is fdatasync(2).

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "board.h"
#include "posix.h"
#include "runtime.h"

enum {
  BLOCK_SIZE = 4096,
  MEMORY_SIZE = 64 << 20,
  /// The firmware has at most 32 operations in flight.
  COMPLETED_MAX = 64,
  FAILED = 256,
};

static int file = -1;
static uint32_t blocks;
static uint32_t completed[COMPLETED_MAX];
static unsigned completed_first, completed_count;

void store_open(const char *name) {
  file = name != NULL ? open(name, O_RDWR | O_CLOEXEC) : memfd_create("ribbon-store", MFD_CLOEXEC);
  if (file < 0) posix_fail("cannot open the local store", name != NULL ? name : "memory");
  if (name == NULL && ftruncate(file, MEMORY_SIZE) != 0) posix_fail("no memory for the local store", "memory");
  const off_t size = lseek(file, 0, SEEK_END);
  if (size < 0) posix_fail("cannot find the size of the local store", name);
  blocks = size / BLOCK_SIZE > UINT32_MAX ? UINT32_MAX : (uint32_t)(size / BLOCK_SIZE);
}

static void complete(uint32_t tag, bool done, const char *what, uint32_t block) {
  if (!done) runtime_log(LOG_WARNING, "local store: %s of block %u fails: %s", what, (unsigned)block, strerror(errno));
  if (completed_count == COMPLETED_MAX) return;
  completed[(completed_first + completed_count++) % COMPLETED_MAX] = tag | (done ? 0 : FAILED);
}

static bool inside(uint32_t block, uint32_t count) {
  errno = ERANGE;
  return block <= blocks && count <= blocks - block;
}

uint32_t board_store_size(void) { return blocks; }

void board_store_read(uint32_t tag, uint32_t block, uint32_t count, void *target) {
  bool done = inside(block, count);
  const size_t length = (size_t)count * BLOCK_SIZE;
  for (size_t at = 0; done && at < length;) {
    const ssize_t got = pread(file, (uint8_t *)target + at, length - at, (off_t)block * BLOCK_SIZE + (off_t)at);
    if (got > 0) at += (size_t)got;
    else done = got < 0 && errno == EINTR;
  }
  complete(tag, done, "read", block);
}

void board_store_write(uint32_t tag, uint32_t block, uint32_t count, const void *source) {
  bool done = inside(block, count);
  const size_t length = (size_t)count * BLOCK_SIZE;
  for (size_t at = 0; done && at < length;) {
    const ssize_t put = pwrite(file, (const uint8_t *)source + at, length - at, (off_t)block * BLOCK_SIZE + (off_t)at);
    if (put > 0) at += (size_t)put;
    else done = put < 0 && errno == EINTR;
  }
  complete(tag, done, "write", block);
}

void board_store_flush(uint32_t tag) { complete(tag, fdatasync(file) == 0, "flush", 0); }

void board_store_trim(uint32_t tag, uint32_t block, uint32_t count) {
  complete(tag, inside(block, count), "trim", block);
}

uint32_t board_store_completed(void) {
  if (completed_count == 0) return UINT32_MAX;
  const uint32_t tag = completed[completed_first];
  completed_first = (completed_first + 1) % COMPLETED_MAX;
  completed_count--;
  return tag;
}
