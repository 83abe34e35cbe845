// The local store in a file or on a block device. Operations are done when board_store_start() returns; the firmware hears of
// it in its next look all the same.
//
// After a flush that has failed every later one fails, too: Linux reports an error of writing back once, and a later
// fdatasync(2) that succeeds says nothing about what was lost before. A new process finds out what is there.

#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <string.h>
#include <sys/file.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "board.h"
#include "posix.h"
#include "runtime.h"
#include "store.h"

static struct {
  int file;
  uint32_t blocks;
  bool cannot_trim;
  bool flush_failed;
} store = {.file = -1};

void store_file_open(const char *name) {
  struct stat status;
  uint64_t size = 0;
  store.file = open(name, O_RDWR | O_CLOEXEC);
  if (store.file < 0 || fstat(store.file, &status) != 0) posix_fail("cannot open the local store", name);
  // Two cards on one store would destroy it. The lock goes with the process, however that ends.
  if (flock(store.file, LOCK_EX | LOCK_NB) != 0) posix_fail("the local store is in use", name);
  if (S_ISBLK(status.st_mode)) {
    if (ioctl(store.file, BLKGETSIZE64, &size) != 0) posix_fail("cannot tell the size of the local store", name);
  } else {
    size = (uint64_t)status.st_size;
  }
  const uint64_t blocks = size / STORE_BLOCK_SIZE;
  // Above 2^32 - 1 blocks (16 TiB) the rest is not used.
  store.blocks = blocks < UINT32_MAX ? (uint32_t)blocks : UINT32_MAX;
}

void store_file_close(void) {
  if (store.file >= 0) close(store.file);
  store.file = -1;
}

uint32_t board_store_blocks(void) { return store.blocks; }

static bool read_all(uint8_t *target, size_t length, off_t offset) {
  while (length > 0) {
    const ssize_t got = pread(store.file, target, length, offset);
    if (got < 0 && errno == EINTR) continue;
    if (got == 0) errno = ENODATA; // the file is shorter than it was
    if (got <= 0) return false;
    target += got;
    offset += got;
    length -= (size_t)got;
  }
  return true;
}

static bool write_all(const uint8_t *source, size_t length, off_t offset) {
  while (length > 0) {
    const ssize_t put = pwrite(store.file, source, length, offset);
    if (put < 0 && errno == EINTR) continue;
    if (put == 0) errno = EIO;
    if (put <= 0) return false;
    source += put;
    offset += put;
    length -= (size_t)put;
  }
  return true;
}

static bool flush(void) {
  int result;
  if (store.flush_failed) {
    errno = EIO;
    return false;
  }
  do {
    result = fdatasync(store.file);
  } while (result != 0 && errno == EINTR);
  store.flush_failed = result != 0;
  return result == 0;
}

/// Gives the space back where the file system can; nothing depends on it.
static void trim(size_t length, off_t offset) {
  if (store.cannot_trim) return;
  if (fallocate(store.file, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, offset, (off_t)length) == 0) return;
  store.cannot_trim = errno == EOPNOTSUPP || errno == ENOSYS;
}

void board_store_start(const struct store_operation *operation) {
  static const char *const NAMES[] = {"read", "write", "flush", "trim"};
  const size_t length = (size_t)operation->count * STORE_BLOCK_SIZE;
  const off_t offset = (off_t)operation->block * STORE_BLOCK_SIZE;
  bool done = true;
  switch (operation->kind) {
    case STORE_READ: done = read_all(operation->memory, length, offset); break;
    case STORE_WRITE: done = write_all(operation->memory, length, offset); break;
    case STORE_FLUSH: done = flush(); break;
    case STORE_TRIM: trim(length, offset); break;
  }
  if (!done) {
    runtime_log(LOG_ERROR, "local store: %s of %lu blocks at %lu: %s", NAMES[operation->kind],
                (unsigned long)operation->count, (unsigned long)operation->block, strerror(errno));
  }
  store_done(operation->tag, !done);
}

void board_store_abandon(void) {}
