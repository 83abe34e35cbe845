// The local store of a board whose SD card is not used yet: memory. It survives a restart of the firmware, not a power cut.

#include <string.h>

#include "board.h"

enum { BLOCK_SIZE = 4096, BLOCKS = 4608, COMPLETED_MAX = 64, FAILED = 256 };

static uint8_t content[BLOCKS][BLOCK_SIZE] __attribute__((aligned(BLOCK_SIZE), section(".store")));
static bool blank;
static uint32_t completed[COMPLETED_MAX];
static unsigned completed_first, completed_count;

static void complete(uint32_t tag, bool done) {
  if (completed_count == COMPLETED_MAX) return;
  completed[(completed_first + completed_count++) % COMPLETED_MAX] = tag | (done ? 0 : FAILED);
}

static bool inside(uint32_t block, uint32_t count) { return block <= BLOCKS && count <= BLOCKS - block; }

uint32_t board_store_size(void) {
  // No superblock: the firmware formats it.
  if (!blank) memset(content, 0, 4 * BLOCK_SIZE);
  blank = true;
  return BLOCKS;
}

void board_store_read(uint32_t tag, uint32_t block, uint32_t count, void *target) {
  if (inside(block, count)) memcpy(target, content[block], (size_t)count * BLOCK_SIZE);
  complete(tag, inside(block, count));
}

void board_store_write(uint32_t tag, uint32_t block, uint32_t count, const void *source) {
  if (inside(block, count)) memcpy(content[block], source, (size_t)count * BLOCK_SIZE);
  complete(tag, inside(block, count));
}

void board_store_flush(uint32_t tag) { complete(tag, true); }
void board_store_trim(uint32_t tag, uint32_t block, uint32_t count) { complete(tag, inside(block, count)); }

uint32_t board_store_completed(void) {
  if (completed_count == 0) return UINT32_MAX;
  const uint32_t tag = completed[completed_first];
  completed_first = (completed_first + 1) % COMPLETED_MAX;
  completed_count--;
  return tag;
}
