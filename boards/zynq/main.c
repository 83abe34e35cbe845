// The card on a Zynq-7000: board.h over its peripherals.

#include <malloc.h>
#include <mbedtls/ctr_drbg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "accelerators.h"
#include "board.h"
#include "board_config.h"
#include "crash.h"
#include "flash.h"
#include "gem.h"
#include "irq.h"
#include "main.h"
#include "mmu.h"
#include "paths.h"
#include "registers.h"
#include "runtime.h"
#include "shared_memory.h"
#include "store_sd.h"
#include "syslog.h"
#include "timer.h"
#include "transport_lwip.h"
#include "uart.h"

enum {
  /// How long a card that has nothing to run shows why before it tries again.
  HALT_MS = 10000,
  CLOCK_WORDS = 64,
  /// Averaged over 16 conversions of several channels at 1 MS/s each result is new after some 100 us.
  NOISE_SAMPLES = 128,
  NOISE_INTERVAL_US = 100,
};

extern uint8_t shared_start[], shared_end[], heap_start[], heap_end[];
static struct shared_memory_head *const head = (struct shared_memory_head *)shared_start;

/// In memory that is neither cached nor cleared, so that it is there after the reset that follows. DDR keeps its content over
/// a soft reset as long as the boot loader does not test it.
static uint8_t crash_record[CRASH_RECORD_SIZE] __attribute__((section(".crash"), aligned(32)));

static bool front_end_kept;
static mbedtls_ctr_drbg_context random_generator;

int main(void);

// Clock, log

uint32_t board_clock_ms(void) { return timer_ms(); }

void board_log(enum log_level level, const char *text, size_t length) {
  static const char *const NAMES[] = {"error", "warning", "info", "debug"};
  console_write(NAMES[level], (uint32_t)strlen(NAMES[level]));
  console_write(": ", 2);
  for (size_t i = 0; i < length; i++) console_write(text[i] == '\n' || text[i] == '\r' ? " " : &text[i], 1);
  console_write("\r\n", 2);
  syslog_add(level, text, length);
}

// Chance. A Zynq has no generator of its own. Three sources, each of which would do if the others failed:
//   - the noise of its analogue to digital converter, in the lowest bits of temperature and core voltage [UG480 1, 2]: 12 bits are
//     converted, 16 are shown with what 16 averaged conversions add. Different at every start, unknown to anybody outside.
//   - a seed in flash, secret and this card's own. All that there is where the converter gives constants, as in QEMU.
//   - the clock at moments that nothing in this program decides.

enum { XADC_CONFIG = 0x00, XADC_STATUS = 0x0c, XADC_COMMAND = 0x10, XADC_DATA = 0x14, XADC_CONTROL = 0x18 };
enum { XADC_STATUS_DATA_EMPTY = 1 << 8 };
enum { XADC_READ = 1 << 26, XADC_TEMPERATURE = 0 << 16, XADC_CORE_VOLTAGE = 1 << 16 };

/// Reads the converter through its serial interface [UG585 30.4, B.16]: each read is answered with the next one's answer slot.
static bool sample_noise(uint16_t samples[NOISE_SAMPLES]) {
  // Enabled, data valid at the default edges, a quarter of the clock, 20 idle cycles between commands, as after reset.
  register_write(XADC_BASE, XADC_CONFIG, 1u << 31 | 1 << 12 | 1 << 8 | 0x14);
  register_write(XADC_BASE, XADC_CONTROL, 0); // out of reset
  for (unsigned i = 0; i < NOISE_SAMPLES; i++) {
    register_write(XADC_BASE, XADC_COMMAND, XADC_READ | (i & 1 ? XADC_CORE_VOLTAGE : XADC_TEMPERATURE));
    const uint64_t start = timer_ticks();
    while (register_read(XADC_BASE, XADC_STATUS) & XADC_STATUS_DATA_EMPTY) {
      if (timer_ticks() - start > BOARD_PERIPHCLK_HZ / 1000) return false; // a command takes 5 us
    }
    samples[i] = (uint16_t)register_read(XADC_BASE, XADC_DATA);
    timer_delay_us(NOISE_INTERVAL_US);
  }
  return true;
}

static int gather(void *context, unsigned char *target, size_t length) {
  (void)context;
  struct {
    uint8_t seed[FLASH_SEED_SIZE];
    uint32_t clock[CLOCK_WORDS];
    uint16_t noise[NOISE_SAMPLES];
    uint8_t memory[64];
    uint32_t call;
  } pool;
  static uint32_t calls;
  memset(&pool, 0, sizeof pool);
  if (!flash_seed(pool.seed) && calls == 0) runtime_log(LOG_WARNING, "random numbers: no seed in flash");
  // The flash answers in its own time, DDR refresh and the PHY's clock run free of ours.
  for (unsigned i = 0; i < CLOCK_WORDS; i++) {
    uint32_t word;
    flash_read(4 * i, &word, sizeof word);
    pool.clock[i] = (uint32_t)timer_ticks() ^ word << 8;
  }
  if (!sample_noise(pool.noise) && calls == 0) runtime_log(LOG_WARNING, "random numbers: the converter does not answer");
  // The last crash record and whatever the DMA memory held at power-on.
  memcpy(pool.memory, crash_record, sizeof pool.memory);
  pool.call = calls++;
  for (size_t done = 0; done < length; done += 32) {
    uint8_t digest[32];
    pool.clock[0] += (uint32_t)done + 1;
    sha256(&pool, sizeof pool, digest);
    memcpy(target + done, digest, length - done < 32 ? length - done : 32);
  }
  return 0;
}

void board_random(void *target, size_t length) {
  for (size_t at = 0; at < length; at += MBEDTLS_CTR_DRBG_MAX_REQUEST) {
    const size_t part = length - at < MBEDTLS_CTR_DRBG_MAX_REQUEST ? length - at : MBEDTLS_CTR_DRBG_MAX_REQUEST;
    if (mbedtls_ctr_drbg_random(&random_generator, (unsigned char *)target + at, part) != 0) {
      native_panic("the random generator has failed");
    }
  }
}

// Events

static uint32_t awake_since; // timer_ticks(), the low half

unsigned board_wait(uint32_t timeout_ms) {
  const uint32_t start_ms = timer_ms();
  head->clock_ms = start_ms;
  // The network is looked at once after every step, which may have sent something, and then unless something else has woken the core.
  for (bool network_due = true;;) {
    watchdog_feed();
    unsigned events = network_due && network_poll() ? EVENT_NETWORK : 0;
    if (doorbell_take()) events |= EVENT_FRONT_END;
    if (store_sd_poll()) events |= EVENT_STORE;
    const uint32_t waited_ms = timer_ms() - start_ms;
    if (events != 0 || waited_ms >= timeout_ms) return events;
    const uint32_t left_ms = timeout_ms == UINT32_MAX ? UINT32_MAX : timeout_ms - waited_ms;
    const uint32_t network_ms = network_timeout_ms();
    const uint32_t store_ms = store_sd_timeout_ms();
    const uint32_t drivers_ms = network_ms < store_ms ? network_ms : store_ms;
    // With interrupts masked WFI still ends at one: none can slip in between the look and the sleep [V7 B1.8.14].
    irq_mask();
    if (!doorbell_pending() && !ethernet_pending() && !store_sd_interrupted()) {
      timer_wake_in(left_ms < drivers_ms ? left_ms : drivers_ms);
      head->busy_ticks += (uint32_t)timer_ticks() - awake_since;
      __asm__ volatile("dsb; wfi" ::: "memory");
      awake_since = (uint32_t)timer_ticks();
    }
    irq_unmask();
    network_due = ethernet_pending() || !(doorbell_pending() || store_sd_interrupted());
  }
}

// Settings, firmware, memory

size_t board_settings_read(void *target, size_t capacity) { return flash_settings(target, capacity); }
const uint8_t *board_firmware(unsigned index, size_t *length) { return flash_firmware(index, length); }

bool board_front_end_kept(void) { return front_end_kept; }

uint8_t *board_linear_memory(size_t *length) {
  *length = (size_t)(shared_end - shared_start - SHARED_MEMORY_LINEAR_OFFSET) & ~(size_t)0xffff;
  return shared_start + SHARED_MEMORY_LINEAR_OFFSET;
}

// Front end

void board_front_end_ring(void) {
  barrier();
  doorbell_write(DOORBELL_RING);
}

void board_front_end_stopped(void) { head->running = 0; }

void board_front_end_started(void) {
  size_t length;
  board_linear_memory(&length);
  head->ticks_per_ms = BOARD_PERIPHCLK_HZ / 1000;
  const struct mallinfo heap = mallinfo();
  runtime_log(LOG_INFO, "memory: heap=%lu of %lu linear=%lu", (unsigned long)heap.uordblks,
              (unsigned long)(heap_end - heap_start), (unsigned long)length);
  shared_memory_announce(head, (uint32_t)length);
  barrier();
  doorbell_write(DOORBELL_STARTED);
}

// Crashes

void board_crash_read(void *target, size_t length) { memcpy(target, crash_record, length); }
void board_crash_write(const void *source, size_t length) {
  memcpy(crash_record, source, length);
  barrier();
}

static _Noreturn void reset(void) {
  // PSS_RST_CTRL: the whole processor system [UG585 26.2.3].
  barrier();
  register_write(SLCR_BASE, 0x008, 0xdf0d);
  register_write(SLCR_BASE, 0x200, 1);
  for (;;) __asm__ volatile("wfi");
}

_Noreturn void board_halt(const char *why) {
  runtime_log(LOG_ERROR, "halted: %s; reset in %d s", why, HALT_MS / 1000);
  const uint32_t start_ms = timer_ms();
  while (timer_ms() - start_ms < HALT_MS) {
    watchdog_feed();
    network_poll(); // the log server hears of it, if there is one
    timer_delay_us(1000);
  }
  reset();
}

_Noreturn void native_panic(const char *text) {
  struct trap trap = {.kind = TRAP_NATIVE};
  irq_mask();
  snprintf(trap.text, sizeof trap.text, "%s", text);
  crash_write(&trap);
  runtime_log(LOG_ERROR, "runtime failed: %s", text);
  reset();
}

_Noreturn void native_stuck(uint32_t address) {
  struct trap trap = {.kind = TRAP_WATCHDOG, .line = address};
  snprintf(trap.text, sizeof trap.text, "the runtime does not come back at 0x%lx", (unsigned long)address);
  crash_write(&trap);
  runtime_log(LOG_ERROR, "runtime failed: %s", trap.text);
  reset();
}

_Noreturn void native_fault(uint32_t kind, uint32_t address) {
  static const char *const NAMES[] = {"", "undefined instruction", "prefetch abort", "data abort"};
  struct trap trap = {.kind = TRAP_NATIVE, .line = address};
  uint32_t fault_address;
  __asm__ volatile("mrc p15, 0, %0, c6, c0, 0" : "=r"(fault_address)); // DFAR
  snprintf(trap.text, sizeof trap.text, "%s at 0x%lx, fault address 0x%lx", NAMES[kind & 3], (unsigned long)address,
           (unsigned long)fault_address);
  crash_write(&trap);
  runtime_log(LOG_ERROR, "runtime failed: %s", trap.text);
  reset();
}

static void read_paths(void) {
  static char text[4096];
  const size_t length = flash_network_text(text, sizeof text);
  if (length == 0) runtime_log(LOG_ERROR, "flash: no network paths");
  const unsigned wrong = paths_parse(text, length);
  if (wrong != 0) runtime_log(LOG_ERROR, "flash: line %u of the network paths is wrong", wrong);
}

int main(void) {
  irq_init();
  timer_init();
  // DDR keeps its content over a reset that is not a power cut, and the front end its state.
  front_end_kept = head->magic == SHARED_MEMORY_MAGIC && head->size == sizeof *head;
  *head = (struct shared_memory_head){.starts = front_end_kept ? head->starts : 0};
  uart_init();
  irq_unmask();
  runtime_log(LOG_INFO, "board: %s", BOARD_NAME);
  flash_init();
  store_sd_init();
  mbedtls_ctr_drbg_init(&random_generator);
  if (mbedtls_ctr_drbg_seed(&random_generator, gather, NULL, NULL, 0) != 0) native_panic("no random numbers");
  read_paths();
  gem_init(BOARD_GEM_COUNT);
  network_init(BOARD_GEM_COUNT);
  runtime_run(ENGINE_AUTO);
  board_halt("the runtime has ended"); // it does not: nothing here asks it to
}
