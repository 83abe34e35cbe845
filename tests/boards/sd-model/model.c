// boards/zynq/store_sd.c on a model of SDHCI and of an SD card that misbehaves. The program ends with the number of the line that does not
// hold, or with 0. Invariants, whatever the card does:
//   - an operation ends, as done or as failed, within a bounded time of the model's clock;
//   - a read that is reported as done has the card's bytes;
//   - when the card behaves again, so does the driver.

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "board.h"
#include "mmu.h"
#include "registers.h"
#include "runtime.h"
#include "store.h"
#include "store_sd.h"
#include "timer.h"

enum fault {
  NONE,
  COMMAND_TIMEOUT, // no answer to a data command
  COMMAND_CRC,
  DATA_TIMEOUT,
  DATA_CRC, // after half of the data
  SILENT,   // the controller never says anything
  OUT_OF_RANGE, // the card has less than its CSD says: it refuses what lies behind
  STAYS_BUSY,   // writes are taken, and never finished
  NOT_THERE,    // pulled
};
enum { CARD_BLOCKS = 16384, KEPT = 1024, LIMIT_MS = 60000 };

static enum fault fault;
static unsigned faults_left; // 0: until it is taken back
static uint32_t registers[64], card_status;
static uint8_t card[KEPT][STORE_BLOCK_SIZE];
static uint64_t clock_us;
static bool done[STORE_TAGS], failed[STORE_TAGS];

static bool strikes(void) {
  if (fault == NONE) return false;
  if (faults_left != 0 && --faults_left == 0) fault = NONE;
  return true;
}

// What the driver links to.
uint32_t timer_ms(void) { return (uint32_t)(++clock_us / 1000); }
void timer_delay_us(uint32_t us) { clock_us += us; }
uint64_t timer_ticks(void) { return clock_us; }
void cache_clean(const void *start, uint32_t length) { (void)start, (void)length; }
void cache_invalidate(const void *start, uint32_t length) { (void)start, (void)length; }
void runtime_log(int level, const char *format, ...) {
  va_list arguments;
  va_start(arguments, format);
  printf("%d: ", level);
  vprintf(format, arguments);
  printf("\n");
  va_end(arguments);
}
void store_done(uint32_t tag, bool has_failed) {
  done[tag] = true;
  failed[tag] = has_failed;
}
bool store_pending(void) { return false; }

// The controller and the card: only what the driver uses.
enum { STATUS = 0x30 / 4, RESPONSE = 0x10 / 4 };
enum { ERROR = 1u << 15, CMD_DONE = 1, TRANSFER_DONE = 2 };

static void error(uint32_t bits) { registers[STATUS] |= bits | ERROR; }

static void transfer(bool is_read) {
  const uint32_t sector = registers[0x08 / 4] / 512, count = registers[0x04 / 4] >> 16;
  const uint32_t *descriptor = (const uint32_t *)(uintptr_t)registers[0x58 / 4];
  const uint32_t first = sector / 8, blocks = count / 8;
  const enum fault now = fault;
  if (now == OUT_OF_RANGE && first + blocks > KEPT / 2) {
    registers[RESPONSE] = 1u << 31 | 4 << 9 | 1 << 8;
    registers[STATUS] |= CMD_DONE | TRANSFER_DONE;
    return;
  }
  const bool bad = now != OUT_OF_RANGE && now != STAYS_BUSY && strikes();
  if (bad && now == SILENT) return;
  if (bad && now == COMMAND_TIMEOUT) return error(1 << 16);
  if (bad && now == COMMAND_CRC) return error(1 << 17);
  registers[RESPONSE] = 4 << 9 | 1 << 8;
  registers[STATUS] |= CMD_DONE;
  uint32_t block = first, end = first + (bad ? blocks / 2 : blocks);
  for (;; descriptor += 2) {
    for (uint32_t at = 0, length = descriptor[0] >> 16; at < length && block < end; at += STORE_BLOCK_SIZE, block++) {
      uint8_t *memory = (uint8_t *)(uintptr_t)(descriptor[1] + at);
      if (is_read) memcpy(memory, card[block % KEPT], STORE_BLOCK_SIZE);
      else memcpy(card[block % KEPT], memory, STORE_BLOCK_SIZE);
      if (bad && is_read) memory[100] ^= 0x55; // what came with an error is not to be trusted
    }
    if (descriptor[0] & 2) break;
  }
  if (bad) return error(now == DATA_CRC ? 1 << 21 : 1 << 20);
  registers[STATUS] |= TRANSFER_DONE;
  if (!is_read && now == STAYS_BUSY) card_status = 7 << 9; // programming
}

static void command(uint32_t value) {
  const uint32_t index = value >> 24;
  if (fault == NOT_THERE) return;
  registers[RESPONSE] = card_status;
  switch (index) {
    case 18: return transfer(true);
    case 25: return transfer(false);
    case 8: registers[RESPONSE] = 0x1aa; break;
    case 41: registers[RESPONSE] = 1u << 31; break; // ready, addressed by the byte
    case 2: for (int i = 0; i < 4; i++) registers[RESPONSE + i] = 0x1234567 * (i + 1); break;
    case 3: registers[RESPONSE] = 1 << 16; break;
    case 9: // CSD version 1: 1024 * 2^(5 + 2 + 9) bytes = 64 MiB
      registers[RESPONSE + 3] = 0;
      registers[RESPONSE + 2] = 9 << 8 | 1023 >> 10;
      registers[RESPONSE + 1] = (1023u & 0x3ff) << 22 | 5 << 7;
      break;
    default: break;
  }
  registers[STATUS] |= CMD_DONE | ((value >> 16 & 3) == 3 ? TRANSFER_DONE : 0);
}

uint32_t register_read(uint32_t base, uint32_t offset) {
  (void)base;
  clock_us++;
  if (offset == 0x24) return fault == NOT_THERE ? 1 << 17 : 1 << 16 | 1 << 17;
  if (offset == 0x2c) return registers[offset / 4] | 2; // the clock is stable, resets are over at once
  return registers[offset / 4];
}

void register_write(uint32_t base, uint32_t offset, uint32_t value) {
  (void)base;
  if (offset == 0x30) {
    registers[STATUS] &= ~value;
    if ((registers[STATUS] & 0xffff0000u) == 0) registers[STATUS] &= ~ERROR;
    return;
  }
  registers[offset / 4] = offset == 0x2c ? value & ~(7u << 24) : value;
  if (offset == 0x0c) command(value);
}

// The test.

#define CHECK(condition) \
  do { \
    if (!(condition)) { \
      printf("line %d: %s (fault %d)\n", __LINE__, #condition, (int)fault); \
      return __LINE__; \
    } \
  } while (0)

static uint8_t memory[64 * STORE_BLOCK_SIZE + 4] __attribute__((aligned(32)));

/// Ends with whether the operation was done; -1 when it did not end.
static int run(enum store_kind kind, uint32_t block, uint32_t count, unsigned misalignment) {
  const uint64_t start_us = clock_us;
  done[7] = false;
  board_store_start(&(struct store_operation){.kind = kind, .tag = 7, .block = block, .count = count, .memory = memory + misalignment});
  while (!done[7]) {
    store_sd_poll();
    clock_us += 50;
    if (clock_us - start_us > LIMIT_MS * 1000ull) return -1;
  }
  return !failed[7];
}

static void fill(uint32_t seed, unsigned misalignment, uint32_t count) {
  for (uint32_t i = 0; i < count * STORE_BLOCK_SIZE; i++) memory[misalignment + i] = (uint8_t)(i * 7 + i / 4096 + seed);
}

static int test(enum fault kind, unsigned times, unsigned misalignment) {
  const uint32_t seed = (uint32_t)kind * 16 + times + misalignment;
  fill(seed, misalignment, 40);
  CHECK(run(STORE_WRITE, 600, 40, misalignment) == 1);
  CHECK(run(STORE_FLUSH, 0, 0, 0) == 1);
  fault = kind;
  faults_left = times;
  memset(memory, 0xee, sizeof memory);
  const int read = run(STORE_READ, 600, 40, misalignment);
  CHECK(read >= 0);
  // Once or twice is put right without a word; for ever is not.
  if (times != 0) CHECK(read == 1);
  else if (kind != STAYS_BUSY) CHECK(read == 0);
  if (read == 1) CHECK(memcmp(memory + misalignment, card[600], 40 * STORE_BLOCK_SIZE) == 0);
  fault = kind;
  faults_left = times;
  fill(seed + 1, misalignment, 40);
  const int written = run(STORE_WRITE, 600, 40, misalignment);
  CHECK(written >= 0);
  if (times != 0) CHECK(written == 1);
  if (written == 1) CHECK(memcmp(memory + misalignment, card[600], 40 * STORE_BLOCK_SIZE) == 0);
  const int flushed = run(STORE_FLUSH, 0, 0, 0);
  CHECK(flushed >= 0);
  if (times == 0) CHECK(written == 0 || flushed == 0); // nothing is promised that is not there
  // The card is well again. What was not flushed may be lost, so one flush may fail, and then none.
  fault = NONE;
  card_status = 4 << 9 | 1 << 8;
  for (int tries = 0; tries < 100 && run(STORE_READ, 0, 1, 0) != 1; tries++) clock_us += 100000;
  run(STORE_FLUSH, 0, 0, 0);
  fill(seed + 2, misalignment, 40);
  CHECK(run(STORE_WRITE, 600, 40, misalignment) == 1);
  CHECK(run(STORE_FLUSH, 0, 0, 0) == 1);
  CHECK(run(STORE_READ, 600, 40, misalignment) == 1);
  CHECK(memcmp(memory + misalignment, card[600], 40 * STORE_BLOCK_SIZE) == 0);
  return 0;
}

/// What was written and not flushed may have gone with the card's power: the next flush says so, once.
static int test_removal_before_flush(void) {
  CHECK(run(STORE_WRITE, 600, 4, 0) == 1);
  fault = NOT_THERE;
  CHECK(run(STORE_READ, 0, 1, 0) == 0);
  fault = NONE;
  for (int tries = 0; tries < 100 && run(STORE_READ, 0, 1, 0) != 1; tries++) clock_us += 100000;
  CHECK(run(STORE_FLUSH, 0, 0, 0) == 0);
  CHECK(run(STORE_FLUSH, 0, 0, 0) == 1);
  return 0;
}

int main(void) {
  setvbuf(stdout, NULL, _IOLBF, 0);
  card_status = 4 << 9 | 1 << 8;
  store_sd_init();
  CHECK(board_store_blocks() == CARD_BLOCKS);
  for (int kind = COMMAND_TIMEOUT; kind <= NOT_THERE; kind++) {
    const bool is_passing = kind <= SILENT;
    for (unsigned misalignment = 0; misalignment <= 4; misalignment += 4) {
      for (unsigned times = 0; times <= (is_passing ? 2 : 0); times++) {
        const int line = test((enum fault)kind, times, misalignment);
        if (line != 0) {
          printf("fault %d, %u times, misalignment %u\n", kind, times, misalignment);
          return 1;
        }
      }
    }
  }
  if (test_removal_before_flush() != 0) return 1;
  printf("done\n");
  return 0;
}
