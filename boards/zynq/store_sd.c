// SDHCI0 with ADMA2. [SDHC] = SD Host Controller Simplified Specification 2.00, which the Zynq's controller follows
// [UG585 13, appendix B.27]; [SD] = SD Physical Layer Simplified Specification 3.01.
//
//   no card <-> card that is not ready (tried again every second) -> ready: one operation at a time, in order
//
// A card that is pulled fails every operation, at once and until it is back. Another card in its place is not used: the
// firmware's store is the one that it started with, its size never changes. What a card was told but not asked to keep (no
// flush since) may be lost with its power, so the first flush after a removal fails if there were such writes.
//
// Memory: linear memory is cached, write-back, in L1 alone (mmu.c); the DMA engine goes past L1. Before a write the lines are
// cleaned. Before a read they are cleaned and invalidated, so that no dirty line is evicted over what the engine stores; after
// it they are invalidated again, as the core may have fetched some meanwhile by speculation [V7 B2.2.3]. Lines at the ends
// that also hold somebody else's bytes would lose these, so what is not aligned to lines goes through a buffer. Descriptors and
// that buffer are in memory that is not cached, where barrier() is all that it takes.

#include "store_sd.h"

#include <string.h>

#include "board.h"
#include "board_config.h"
#include "irq.h"
#include "mmu.h"
#include "registers.h"
#include "runtime.h"
#include "store.h"
#include "timer.h"

enum {
  BLOCK = 0x04, ARGUMENT = 0x08, COMMAND = 0x0c, RESPONSE = 0x10, PRESENT = 0x24, HOST = 0x28, CLOCK = 0x2c, STATUS = 0x30,
  STATUS_ENABLE = 0x34, SIGNAL_ENABLE = 0x38, ADMA_ADDRESS = 0x58,
};
enum { PRESENT_COMMAND_BUSY = 1 << 0, PRESENT_DATA_BUSY = 1 << 1, PRESENT_INSERTED = 1 << 16, PRESENT_STABLE = 1 << 17 };
enum { HOST_4_BIT = 1 << 1, HOST_ADMA2 = 2 << 3, HOST_POWER_3V3 = 0x0f << 8 };
enum { CLOCK_INTERNAL = 1 << 0, CLOCK_STABLE = 1 << 1, CLOCK_CARD = 1 << 2, CLOCK_TIMEOUT_LONGEST = 0xe << 16 };
enum { RESET_ALL = 1 << 24, RESET_LINES = 3 << 25 };
enum {
  STATUS_COMMAND = 1 << 0,
  STATUS_TRANSFER = 1 << 1,
  STATUS_INSERTED = 1 << 6,
  STATUS_REMOVED = 1 << 7,
  STATUS_ERROR = 1 << 15,
};
#define STATUS_ERRORS 0xffff0000u
#define SIGNALS (STATUS_ERRORS | STATUS_TRANSFER | STATUS_INSERTED | STATUS_REMOVED)

/// The command register's upper half, the transfer mode its lower one [SDHC 2.2.5, 2.2.6].
enum response {
  NO_RESPONSE = 0,
  R2 = 1 << 16 | 1 << 19,           // 136 bits, CRC
  R3 = 2 << 16,                     // 48 bits, neither CRC nor index
  R1 = 2 << 16 | 1 << 19 | 1 << 20, // also R6, R7
  R1B = 3 << 16 | 1 << 19 | 1 << 20,
};
enum {
  WITH_DATA = 1 << 21,
  TRANSFER_READ = 1 << 4,
  TRANSFER = 1 << 0 | 1 << 1 | 1 << 2 | 1 << 5, // DMA, block count, Auto CMD12, several blocks
};
/// Card status [SD 4.10.1]: every bit that says that something went wrong.
enum { CARD_READY = 1 << 8, CARD_STATE = 15 << 9, CARD_TRANSFER_STATE = 4 << 9 };
#define CARD_ERRORS 0xfdf98008u

enum {
  SECTOR = 512,
  SECTORS_PER_BLOCK = STORE_BLOCK_SIZE / SECTOR,
  LINE = 32, // L1
  /// Blocks in one command; what does not lie on cache lines goes in smaller ones, as large as the buffer.
  CHUNK_MAX = 256,
  BOUNCE_BLOCKS = 16,
  DESCRIPTOR_BLOCKS = 8, // 32 KiB: a length of 65536 is written as 0, which is best not met
  /// A card may take 100 ms to read and 250 ms to write a block, 500 ms in all at SDXC [SD 4.6.2].
  COMMAND_MS = 100,
  TRANSFER_MS = 1000,
  POWER_UP_MS = 1000,
  RETRY_MS = 1000,
  ATTEMPTS = 3,
};

struct descriptor {
  volatile uint32_t control, address; // [SDHC 1.13.3]: length in bits 31-16
};
enum { DESCRIPTOR_VALID = 1 << 0, DESCRIPTOR_END = 1 << 1, DESCRIPTOR_TRANSFER = 2 << 4 };

static struct {
  struct descriptor descriptors[CHUNK_MAX / DESCRIPTOR_BLOCKS];
  uint8_t bounce[BOUNCE_BLOCKS * STORE_BLOCK_SIZE] __attribute__((aligned(LINE)));
} dma __attribute__((section(".dma"), aligned(64)));

static struct {
  volatile uint32_t interrupts; // STATUS bits that nobody has taken yet

  uint32_t blocks;    // of the card that was there first
  uint32_t identity[4]; // its CID
  uint32_t relative_address;
  bool addressed_by_block; // SDHC, SDXC; an SDSC card is addressed by the byte
  bool ready;
  bool unflushed; // writes have ended since the last flush
  bool lost_writes;
  uint32_t retry_at_ms;

  struct store_operation queue[STORE_TAGS];
  unsigned taken, added; // free-running

  bool active;      // the first of the queue is with the controller
  uint32_t done;    // blocks of it that have been moved
  uint32_t chunk;   // blocks that are being moved
  bool bounced;
  unsigned attempt;
  uint32_t started_ms;
} sd;

// Registers

/// In the interrupt, and with interrupts masked: notes what has happened and ends the request.
static void collect(void) {
  const uint32_t status = register_read(SDHCI0_BASE, STATUS);
  register_write(SDHCI0_BASE, STATUS, status);
  sd.interrupts |= status;
}

static void on_interrupt(struct irq_frame *frame) {
  (void)frame;
  collect();
}

/// Takes these bits if they are set.
static uint32_t take(uint32_t bits) {
  irq_mask();
  collect();
  const uint32_t taken = sd.interrupts & bits;
  sd.interrupts &= ~bits;
  irq_unmask();
  return taken;
}

static bool is_inserted(void) {
  const uint32_t both = PRESENT_INSERTED | PRESENT_STABLE;
  return (register_read(SDHCI0_BASE, PRESENT) & both) == both;
}

static bool wait_register(uint32_t offset, uint32_t mask, uint32_t value, uint32_t limit_ms) {
  const uint32_t start_ms = timer_ms();
  while ((register_read(SDHCI0_BASE, offset) & mask) != value) {
    if (timer_ms() - start_ms > limit_ms) return false;
  }
  return true;
}

static void reset_lines(void) {
  register_write(SDHCI0_BASE, CLOCK, register_read(SDHCI0_BASE, CLOCK) | RESET_LINES);
  wait_register(CLOCK, RESET_LINES, 0, COMMAND_MS);
}

/// At most `hertz` [SDHC 2.2.14]: the reference divided by a power of two.
static void set_clock(uint32_t hertz) {
  uint32_t divider = 0; // field value: half the divisor
  while (divider < 0x80 && BOARD_SDIO_REF_HZ / (divider == 0 ? 1 : 2 * divider) > hertz) divider = divider == 0 ? 1 : 2 * divider;
  const uint32_t value = CLOCK_TIMEOUT_LONGEST | divider << 8 | CLOCK_INTERNAL;
  register_write(SDHCI0_BASE, CLOCK, value);
  wait_register(CLOCK, CLOCK_STABLE, CLOCK_STABLE, COMMAND_MS);
  register_write(SDHCI0_BASE, CLOCK, value | CLOCK_CARD);
}

// Commands without data

/// Without a card, or with one that has just been pulled, a command never ends: the time-out is what tells.
static bool command(uint32_t index, enum response response, uint32_t argument) {
  const bool is_busy_after = response == R1B;
  if (!wait_register(PRESENT, PRESENT_COMMAND_BUSY | (is_busy_after ? PRESENT_DATA_BUSY : 0), 0, COMMAND_MS)) reset_lines();
  take(STATUS_COMMAND | STATUS_TRANSFER | STATUS_ERROR | STATUS_ERRORS);
  register_write(SDHCI0_BASE, ARGUMENT, argument);
  register_write(SDHCI0_BASE, COMMAND, index << 24 | (uint32_t)response);
  const uint32_t limit_ms = is_busy_after ? TRANSFER_MS : COMMAND_MS;
  const uint32_t start_ms = timer_ms();
  uint32_t wanted = STATUS_COMMAND | (is_busy_after ? STATUS_TRANSFER : 0);
  for (;;) {
    const uint32_t taken = take(wanted | STATUS_ERRORS);
    wanted &= ~taken;
    if (wanted == 0 && (taken & STATUS_ERRORS) == 0) return true;
    if ((taken & STATUS_ERRORS) != 0 || timer_ms() - start_ms > limit_ms) break;
  }
  reset_lines();
  return false;
}

static uint32_t response_word(unsigned index) { return register_read(SDHCI0_BASE, RESPONSE + 4 * index); }

/// ACMD: one for this card's application [SD 4.3.9].
static bool application_command(uint32_t index, enum response response, uint32_t argument) {
  return command(55, R1, sd.relative_address) && command(index, response, argument);
}

/// Waits until the card has programmed what it was sent and can take the next command [SD 4.10.1].
static bool card_settles(void) {
  const uint32_t start_ms = timer_ms();
  do {
    if (!is_inserted() || !command(13, R1, sd.relative_address)) return false;
    const uint32_t status = response_word(0);
    if (status & CARD_ERRORS) return false;
    if ((status & CARD_READY) && (status & CARD_STATE) == CARD_TRANSFER_STATE) return true;
  } while (timer_ms() - start_ms <= TRANSFER_MS);
  return false;
}

// Initialisation [SD 4.2.3]

/// The size in blocks of 4 KiB, from the CSD as the response registers have it: without its last 8 bits [SDHC 2.2.7].
static uint32_t card_blocks(void) {
  if (response_word(3) >> 22 & 3) { // CSD version 2: in 512 KiB
    const uint32_t size = response_word(1) >> 8 & 0x3fffff;
    return (size + 1) * (512 * 1024 / STORE_BLOCK_SIZE);
  }
  const uint32_t size = (response_word(2) & 3) << 10 | response_word(1) >> 22;
  const uint32_t multiplier = response_word(1) >> 7 & 7;
  const uint32_t block_bits = response_word(2) >> 8 & 15;
  return (uint32_t)((uint64_t)(size + 1) << (multiplier + 2 + block_bits) >> 12);
}

static bool power_up_card(void) {
  sd.relative_address = 0;
  command(0, NO_RESPONSE, 0);
  const bool is_version_2 = command(8, R1, 0x1aa) && (response_word(0) & 0xfff) == 0x1aa;
  const uint32_t start_ms = timer_ms();
  do {
    // 3.2-3.4 V; we know high capacity.
    if (!application_command(41, R3, 0x00300000u | (is_version_2 ? 1u << 30 : 0))) return false;
    if (response_word(0) >> 31) {
      sd.addressed_by_block = response_word(0) >> 30 & 1;
      return true;
    }
    timer_delay_us(1000);
  } while (is_inserted() && timer_ms() - start_ms <= POWER_UP_MS);
  return false;
}

/// True when the card is the one that was here before, or the first. Leaves it in the transfer state, on four lines.
static const char *identify_card(void) {
  uint32_t identity[4];
  if (!power_up_card()) return "it does not answer";
  if (!command(2, R2, 0)) return "no CID";
  for (unsigned i = 0; i < 4; i++) identity[i] = response_word(i);
  if (!command(3, R1, 0)) return "no address";
  sd.relative_address = response_word(0) & 0xffff0000u;
  if (!command(9, R2, sd.relative_address)) return "no CSD";
  const uint32_t blocks = card_blocks();
  if (sd.blocks == 0) {
    sd.blocks = blocks;
    memcpy(sd.identity, identity, sizeof identity);
  } else if (sd.blocks != blocks || memcmp(sd.identity, identity, sizeof identity) != 0) {
    return "it is another card than at power-on; put that one back, or switch off and on";
  }
  if (!command(7, R1B, sd.relative_address)) return "it cannot be selected";
  if (!command(16, R1, SECTOR)) return "no block length";
  if (!application_command(6, R1, 2)) return "no four lines";
  return NULL;
}

static void start_card(void) {
  sd.ready = false;
  register_write(SDHCI0_BASE, HOST, HOST_ADMA2 | HOST_POWER_3V3);
  set_clock(400000);
  timer_delay_us(2000); // 1 ms of power and 74 clocks before the first command [SD 6.4.1]
  const char *failure = identify_card();
  if (failure != NULL) {
    // Once, not at every retry.
    static const char *last_failure;
    if (failure != last_failure) runtime_log(LOG_ERROR, "SD card: %s", failure);
    last_failure = failure;
    sd.retry_at_ms = timer_ms() + RETRY_MS;
    return;
  }
  register_write(SDHCI0_BASE, HOST, HOST_ADMA2 | HOST_POWER_3V3 | HOST_4_BIT);
  set_clock(25000000); // default speed: every card has it
  take(STATUS_REMOVED | STATUS_INSERTED);
  sd.ready = is_inserted();
  runtime_log(LOG_INFO, "SD card: blocks=%lu addressed by %s", (unsigned long)sd.blocks,
              sd.addressed_by_block ? "block" : "byte");
}

void store_sd_init(void) {
  register_write(SDHCI0_BASE, CLOCK, RESET_ALL);
  wait_register(CLOCK, RESET_ALL, 0, COMMAND_MS);
  register_write(SDHCI0_BASE, STATUS_ENABLE, SIGNALS | STATUS_COMMAND);
  register_write(SDHCI0_BASE, SIGNAL_ENABLE, SIGNALS);
  irq_enable(IRQ_SDHCI0, on_interrupt);
  // Card detection is debounced by the controller [SDHC 2.2.9].
  wait_register(PRESENT, PRESENT_STABLE, PRESENT_STABLE, COMMAND_MS);
  if (is_inserted()) start_card();
  else runtime_log(LOG_WARNING, "SD card: none");
}

// Operations

static struct store_operation *first(void) { return &sd.queue[sd.taken % STORE_TAGS]; }

static void end(bool failed) {
  const struct store_operation *operation = first();
  if (operation->kind == STORE_WRITE) sd.unflushed = true; // even a failed one may have changed the card
  if (failed) {
    static const char *const NAMES[] = {"read", "write", "flush", "trim"};
    if (sd.ready) {
      runtime_log(LOG_ERROR, "SD card: %s of %lu blocks at %lu fails", NAMES[operation->kind],
                  (unsigned long)operation->count, (unsigned long)operation->block);
    }
  }
  sd.active = false;
  sd.taken++;
  store_done(operation->tag, failed);
}

static void describe(uint32_t address) {
  unsigned count = 0;
  for (uint32_t block = 0; block < sd.chunk; block += DESCRIPTOR_BLOCKS) {
    const uint32_t blocks = sd.chunk - block < DESCRIPTOR_BLOCKS ? sd.chunk - block : DESCRIPTOR_BLOCKS;
    dma.descriptors[count].address = address + block * STORE_BLOCK_SIZE;
    dma.descriptors[count++].control = blocks * STORE_BLOCK_SIZE << 16 | DESCRIPTOR_TRANSFER | DESCRIPTOR_VALID;
  }
  dma.descriptors[count - 1].control |= DESCRIPTOR_END;
}

/// Hands the next blocks of the first operation to the controller.
static void start_chunk(void) {
  const struct store_operation *operation = first();
  const bool is_read = operation->kind == STORE_READ;
  uint8_t *memory = operation->memory + sd.done * STORE_BLOCK_SIZE;
  sd.bounced = (uintptr_t)memory % LINE != 0;
  const uint32_t most = sd.bounced ? BOUNCE_BLOCKS : CHUNK_MAX;
  sd.chunk = operation->count - sd.done < most ? operation->count - sd.done : most;
  const uint32_t length = sd.chunk * STORE_BLOCK_SIZE;
  if (!sd.bounced) {
    if (is_read) cache_invalidate(memory, length);
    else cache_clean(memory, length);
  } else if (!is_read) {
    memcpy(dma.bounce, memory, length);
  }
  describe((uint32_t)(sd.bounced ? dma.bounce : memory));
  const uint32_t sector = (operation->block + sd.done) * SECTORS_PER_BLOCK;
  take(STATUS_COMMAND | STATUS_TRANSFER | STATUS_ERROR | STATUS_ERRORS);
  register_write(SDHCI0_BASE, ADMA_ADDRESS, (uint32_t)dma.descriptors);
  register_write(SDHCI0_BASE, BLOCK, sd.chunk * SECTORS_PER_BLOCK << 16 | SECTOR);
  register_write(SDHCI0_BASE, ARGUMENT, sd.addressed_by_block ? sector : sector * SECTOR);
  barrier(); // data and descriptors are in memory before the controller looks
  sd.started_ms = timer_ms();
  sd.active = true;
  register_write(SDHCI0_BASE, COMMAND,
                 (is_read ? 18u : 25u) << 24 | R1 | WITH_DATA | TRANSFER | (is_read ? TRANSFER_READ : 0));
}

static bool flush_card(void) {
  if (sd.lost_writes) {
    runtime_log(LOG_ERROR, "SD card: it was removed with writes that were not flushed");
    sd.lost_writes = false;
    return false;
  }
  if (!card_settles()) return false;
  sd.unflushed = false;
  return true;
}

/// Starts what can be started, ends what needs no card.
static void start_next(void) {
  while (sd.ready && !sd.active && sd.taken != sd.added) {
    switch (first()->kind) {
      case STORE_READ:
      case STORE_WRITE:
        sd.done = 0;
        sd.attempt = 1;
        start_chunk();
        break;
      case STORE_FLUSH: end(!flush_card()); break;
      // A card erases whole allocation units and may be busy for seconds [SD 4.14]: reads would wait for that.
      case STORE_TRIM: end(false); break;
    }
  }
}

static void fail_all(void) {
  while (sd.taken != sd.added) end(true);
}

/// The chunk has been moved.
static void finish_chunk(void) {
  const struct store_operation *operation = first();
  uint8_t *memory = operation->memory + sd.done * STORE_BLOCK_SIZE;
  if (operation->kind == STORE_READ) {
    barrier(); // the interrupt first, then what it tells of
    if (sd.bounced) memcpy(memory, dma.bounce, sd.chunk * STORE_BLOCK_SIZE);
    else cache_invalidate(memory, sd.chunk * STORE_BLOCK_SIZE);
  }
  sd.done += sd.chunk;
  sd.attempt = 1;
  if (sd.done == operation->count) end(false);
  else start_chunk();
}

/// Stops the controller and brings the card back to the transfer state.
static bool recover(void) {
  reset_lines();
  command(12, R1B, 0); // refused by a card that has nothing to stop
  return card_settles() || card_settles(); // the first may tell of the error that brought us here
}

static void retry_chunk(void) {
  const bool recovered = recover();
  if (recovered && sd.attempt < ATTEMPTS) {
    sd.attempt++;
    start_chunk();
    return;
  }
  end(true);
  if (recovered) return;
  // Nothing works any more: from the start.
  sd.ready = false;
  sd.lost_writes = sd.lost_writes || sd.unflushed;
  sd.retry_at_ms = timer_ms();
}

static void follow_transfer(void) {
  const uint32_t taken = take(STATUS_TRANSFER | STATUS_ERRORS);
  const bool is_late = timer_ms() - sd.started_ms > TRANSFER_MS;
  if (taken & STATUS_ERRORS) retry_chunk();
  else if (taken & STATUS_TRANSFER) {
    if (response_word(0) & CARD_ERRORS) retry_chunk();
    else finish_chunk();
  } else if (is_late) retry_chunk();
}

/// Cards that come and go. A card that was out for however short a time has lost its state.
static void follow_slot(void) {
  const bool was_removed = take(STATUS_REMOVED | STATUS_INSERTED) & STATUS_REMOVED;
  const bool inserted = is_inserted();
  if (sd.ready && (was_removed || !inserted)) {
    runtime_log(LOG_WARNING, "SD card: removed");
    sd.ready = false;
    sd.lost_writes = sd.lost_writes || sd.unflushed || (sd.active && first()->kind == STORE_WRITE);
    sd.retry_at_ms = timer_ms();
    reset_lines(); // the DMA engine stops before the memory is given back
  }
  if (!sd.ready) {
    fail_all();
    // A slot that was empty at power-on stays so: the firmware knows of no store.
    if (inserted && sd.blocks != 0 && (int32_t)(timer_ms() - sd.retry_at_ms) >= 0) start_card();
  }
}

bool store_sd_poll(void) {
  // Nothing to do and nothing to hear of, removal included: the usual case, at every look of the main loop.
  const bool is_idle = !sd.active && sd.taken == sd.added && (sd.interrupts & SIGNALS) == 0;
  if (is_idle && (sd.ready || sd.blocks == 0)) return store_pending();
  // Removal first: a transfer that ends after it has moved nothing that can be trusted.
  follow_slot();
  if (sd.ready && sd.active) follow_transfer();
  start_next();
  // What comes late for a command that was given up would keep the core awake.
  if (!sd.active) take(STATUS_TRANSFER | STATUS_ERRORS);
  return store_pending();
}

bool store_sd_interrupted(void) { return (sd.interrupts & SIGNALS) != 0; }

uint32_t store_sd_timeout_ms(void) {
  const uint32_t now_ms = timer_ms();
  if (sd.active) {
    const uint32_t passed_ms = now_ms - sd.started_ms;
    return passed_ms > TRANSFER_MS ? 0 : TRANSFER_MS + 1 - passed_ms;
  }
  if (sd.ready || sd.blocks == 0 || !is_inserted()) return UINT32_MAX;
  const int32_t left_ms = (int32_t)(sd.retry_at_ms - now_ms);
  return left_ms > 0 ? (uint32_t)left_ms : 0;
}

// store.h

uint32_t board_store_blocks(void) { return sd.blocks; }

void board_store_start(const struct store_operation *operation) {
  sd.queue[sd.added++ % STORE_TAGS] = *operation;
  start_next();
}

void board_store_abandon(void) {
  // What is with the controller ends or times out: a write that is cut short would be a torn one for no reason.
  sd.added = sd.active ? sd.taken + 1 : sd.taken;
  while (sd.taken != sd.added) store_sd_poll();
}
