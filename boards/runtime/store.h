// The store group of the imports: the local store as a block device, and what a board provides of it.
//
// Checked here, so that a board can trust it: tags, block ranges, memory. A board starts operations in any order it likes, but
// a flush covers every write that it has reported as done before, and reports each one once through store_done(). All of
// this happens in the main program: nothing here may be called from an interrupt or a signal.
#ifndef RIBBON_STORE_H
#define RIBBON_STORE_H

#include <stdbool.h>
#include <stdint.h>

enum { STORE_BLOCK_SIZE = 4096, STORE_TAGS = 256 };

enum store_kind { STORE_READ, STORE_WRITE, STORE_FLUSH, STORE_TRIM };

struct store_operation {
  enum store_kind kind;
  uint32_t tag;
  uint32_t block, count; // count is at least 1; both 0 for a flush
  uint8_t *memory;       // of a read and a write: `count` blocks of linear memory at any alignment, the board's until store_done()
};

// Provided by a board.

/// Size in blocks, 0 when there is no device. The same at every call while the card has power.
uint32_t board_store_blocks(void);
/// Starts an operation. May end it at once. At most STORE_TAGS are in flight, each with a tag of its own.
void board_store_start(const struct store_operation *operation);
/// The firmware has ended. On return no operation is in flight, nothing touches linear memory any more; store_done() is not
/// called for what was dropped. Writes that were reported as done are kept.
void board_store_abandon(void);

// Provided to a board.

/// The operation with this tag has ended. A failed read may have written anything into its memory; a failed write may have
/// stored any part of it.
void store_done(uint32_t tag, bool failed);

// For the runtime.

uint32_t store_size(void);
void store_start(enum store_kind kind, uint32_t tag, uint32_t block, uint32_t count, uint32_t address);
/// assembly/imports.ts store_completed()
uint32_t store_completed(void);
/// True when the firmware has not heard yet of something that has ended: it is to be stepped again at once.
bool store_pending(void);
void store_abandon(void);

#endif
