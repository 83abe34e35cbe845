// The card as a Linux program: board.h over files, signals and sockets.
//
//   ribbon-card --firmware FILE [--firmware FILE] --settings FILE --paths FILE --memory FILE --memory-size BYTES
//               --doorbell SOCKET --crash FILE [--store FILE] [--engine auto|wasm3|aot] [--keys FILE]
//   ribbon-card --check FILE...      says of each firmware whether this runtime would load it, and why not
//
// A firmware is a wasm module; with --keys it is a package (SPEC.md "Firmware package") that one of the keys in that file has
// signed, 64 bytes each. Log lines go to standard output, the level's name first. SIGTERM ends the process. SIGUSR1 makes the firmware trap as if the
// watchdog had ended its step: for tests of what follows.

#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

#include "board.h"
#include "crash.h"
#include "firmware.h"
#include "paths.h"
#include "posix.h"
#include "runtime.h"
#include "shared_memory.h"

enum {
  FIRMWARES_MAX = 4,
  SETTINGS_MAX = 4096,
  PAGE_SIZE = 65536,
  /// A step of the firmware takes microseconds; one that burns this much processor time does not end.
  WATCHDOG_MS = 500,
};

static struct {
  const char *firmware_names[FIRMWARES_MAX];
  uint8_t *firmware_files[FIRMWARES_MAX];
  const uint8_t *firmwares[FIRMWARES_MAX]; // the module in the file
  size_t firmware_lengths[FIRMWARES_MAX];
  unsigned firmware_count;
  uint8_t *settings;
  size_t settings_length;
  const char *memory_name;
  size_t memory_length;
  struct shared_memory_head *head;
  int crash_file;
  enum engine_choice engine;
} card = {.crash_file = -1};

static volatile sig_atomic_t stopping;

_Noreturn void posix_fail(const char *what, const char *name) {
  fprintf(stderr, "ribbon-card: %s: %s%s%s\n", what, name, errno != 0 ? ": " : "", errno != 0 ? strerror(errno) : "");
  exit(2);
}

// Clock, chance, log

uint32_t board_clock_ms(void) {
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return (uint32_t)((uint64_t)now.tv_sec * 1000 + (uint64_t)now.tv_nsec / 1000000);
}

void board_random(void *target, size_t length) {
  // Up to 256 bytes come at once and whole, and mbedTLS never asks for more.
  for (size_t at = 0; at < length;) {
    const ssize_t got = getrandom((uint8_t *)target + at, length - at, 0);
    if (got < 0 && errno != EINTR) posix_fail("no random numbers", "getrandom");
    if (got > 0) at += (size_t)got;
  }
}

void board_log(enum log_level level, const char *text, size_t length) {
  static const char *const NAMES[] = {"error", "warning", "info", "debug"};
  char line[1024];
  const size_t shown = length < sizeof line - 16 ? length : sizeof line - 16;
  int at = snprintf(line, sizeof line, "%s: ", NAMES[level]);
  for (size_t i = 0; i < shown; i++) line[at++] = text[i] == '\n' || text[i] == '\r' ? ' ' : text[i];
  line[at++] = '\n';
  // One write, so that lines of several cards on one pipe stay whole. A reader that is gone is no reason to stop.
  if (write(STDOUT_FILENO, line, (size_t)at) < 0) return;
}

// Events

unsigned board_wait(uint32_t timeout_ms) {
  struct pollfd polled[DOORBELL_POLL_MAX + SOCKETS_POLL_MAX];
  if (stopping) return EVENT_STOP;
  card.head->clock_ms = board_clock_ms();
  const unsigned doorbells = doorbell_poll_fill(polled);
  const unsigned sockets = sockets_poll_fill(polled + doorbells);
  // ppoll with the stop signals let through only here: one that arrives between the check and the call still ends it.
  sigset_t signals;
  sigprocmask(SIG_SETMASK, NULL, &signals);
  sigdelset(&signals, SIGTERM);
  sigdelset(&signals, SIGINT);
  const struct timespec timeout = {.tv_sec = timeout_ms / 1000, .tv_nsec = (long)(timeout_ms % 1000) * 1000000};
  const int count = ppoll(polled, doorbells + sockets, timeout_ms == UINT32_MAX ? NULL : &timeout, &signals);
  unsigned events = stopping ? EVENT_STOP : 0;
  if (count > 0) events |= doorbell_poll_done(polled, doorbells) | sockets_poll_done(polled + doorbells, sockets);
  return events;
}

static void on_stop(int signal) {
  (void)signal;
  stopping = 1;
}

// Settings, firmware, memory

size_t board_settings_read(void *target, size_t capacity) {
  const size_t length = card.settings_length < capacity ? card.settings_length : capacity;
  memcpy(target, card.settings, length);
  return length;
}

const uint8_t *board_firmware(unsigned index, size_t *length) {
  if (index >= card.firmware_count) return NULL;
  *length = card.firmware_lengths[index];
  return card.firmwares[index];
}

uint8_t *board_linear_memory(size_t *length) {
  *length = card.memory_length;
  return (uint8_t *)card.head + SHARED_MEMORY_LINEAR_OFFSET;
}

static void map_memory(void) {
  const size_t size = SHARED_MEMORY_LINEAR_OFFSET + card.memory_length;
  const int file = open(card.memory_name, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
  if (file < 0 || ftruncate(file, (off_t)size) != 0) posix_fail("cannot create the memory file", card.memory_name);
  card.head = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
  if (card.head == MAP_FAILED) posix_fail("cannot map the memory file", card.memory_name);
  close(file);
}

// Front end

/// The memory file is new at every start.
bool board_front_end_kept(void) { return false; }

void board_front_end_ring(void) {
  __atomic_thread_fence(__ATOMIC_SEQ_CST);
  doorbell_send(DOORBELL_RING);
}

void board_front_end_stopped(void) { card.head->running = 0; }

void board_front_end_started(void) {
  shared_memory_announce(card.head, (uint32_t)card.memory_length);
  doorbell_send(DOORBELL_STARTED);
}

// Watchdog: a timer of this process's own processor time, so that a stopped or overloaded machine does not trip it, and a
// sleeping card is not woken.

static void on_watchdog(int signal) {
  (void)signal;
  if (engine_watchdog_tick()) engine_watchdog_trap(); // leaves the handler by longjmp: SA_NODEFER
}

static void on_trap_request(int signal) {
  (void)signal;
  engine_watchdog_request();
}

// Crash record

void board_crash_read(void *target, size_t length) {
  if (pread(card.crash_file, target, length, 0) != (ssize_t)length) memset(target, 0, length);
}

void board_crash_write(const void *source, size_t length) {
  if (pwrite(card.crash_file, source, length, 0) != (ssize_t)length || fsync(card.crash_file) != 0) {
    runtime_log(LOG_ERROR, "the crash record cannot be written: %s", strerror(errno));
  }
}

#ifndef RIBBON_SANITIZED // a sanitizer reports these better
/// The runtime's own failure. Only what a signal handler may call; a stack of its own, as a stack overflow is one cause.
static void on_native_crash(int signal) {
  const struct trap trap = {.kind = TRAP_NATIVE, .line = (uint32_t)signal, .text = "signal in the runtime"};
  crash_write(&trap);
  raise(signal); // SA_RESETHAND: ends the process as it would have ended
}
#endif

_Noreturn void board_halt(const char *why) {
  runtime_log(LOG_ERROR, "halted: %s", why);
  doorbell_close();
  exit(3);
}

// Start-up

static uint8_t *read_file(const char *name, size_t most, size_t *length) {
  const int file = open(name, O_RDONLY | O_CLOEXEC);
  struct stat status;
  if (file < 0 || fstat(file, &status) != 0) posix_fail("cannot read", name);
  errno = 0;
  if (status.st_size <= 0 || (size_t)status.st_size > most) posix_fail("is empty or too large", name);
  uint8_t *content = malloc((size_t)status.st_size);
  if (content == NULL || read(file, content, (size_t)status.st_size) != status.st_size) posix_fail("cannot read", name);
  close(file);
  *length = (size_t)status.st_size;
  return content;
}

static void add_firmware(const char *name) {
  if (card.firmware_count == FIRMWARES_MAX) posix_fail("more firmware images than can be tried", name);
  card.firmware_names[card.firmware_count] = name;
  card.firmware_files[card.firmware_count] = read_file(name, 16 << 20, &card.firmware_lengths[card.firmware_count]);
  card.firmwares[card.firmware_count] = card.firmware_files[card.firmware_count];
  card.firmware_count++;
}

/// Where packages are asked for, a firmware is the module in one that is signed; what is not is left out.
static void unpack_firmwares(const char *key_file) {
  size_t keys_length;
  uint8_t *keys = read_file(key_file, FIRMWARE_KEYS_MAX * FIRMWARE_KEY_SIZE, &keys_length);
  if (keys_length % FIRMWARE_KEY_SIZE != 0) posix_fail("a key has 64 bytes", key_file);
  unsigned kept = 0;
  for (unsigned i = 0; i < card.firmware_count; i++) {
    uint8_t *file = card.firmware_files[i];
    const size_t length = card.firmware_lengths[i];
    struct firmware_head head;
    const char *objection = "not a firmware package";
    if (length >= sizeof head) {
      memcpy(&head, file, sizeof head);
      objection = firmware_head_check(&head, length);
    }
    if (objection == NULL) {
      objection = firmware_package_check(&head, file + sizeof head, (const uint8_t(*)[FIRMWARE_KEY_SIZE])keys,
                                         (unsigned)(keys_length / FIRMWARE_KEY_SIZE));
    }
    if (objection != NULL) {
      runtime_log(LOG_ERROR, "%s: %s", card.firmware_names[i], objection);
      free(file);
      continue;
    }
    card.firmware_files[kept] = file;
    card.firmwares[kept] = file + sizeof head;
    card.firmware_lengths[kept] = head.length;
    kept++;
  }
  card.firmware_count = kept;
  free(keys);
}

static void read_paths(const char *name) {
  size_t length;
  char *text = (char *)read_file(name, 65536, &length);
  const unsigned wrong = paths_parse(text, length);
  if (wrong != 0) {
    fprintf(stderr, "ribbon-card: %s:%u: not a network path\n", name, wrong);
    exit(2);
  }
  free(text);
}

static enum engine_choice parse_engine(const char *name) {
  if (strcmp(name, "wasm3") == 0) return ENGINE_WASM3;
  if (strcmp(name, "aot") == 0) return ENGINE_AOT;
  if (strcmp(name, "auto") != 0) posix_fail("no such engine", name);
  return ENGINE_AUTO;
}

/// Loads each module into memory of its own and lets it go again; none is started. Returns the number that was refused.
static int check_firmwares(int count, char **names) {
  enum { MEMORY = 16 << 20 };
  int refused = 0;
  uint8_t *memory = calloc(1, LINEAR_HEADER_SIZE + MEMORY);
  if (memory == NULL) posix_fail("no memory", "--check");
  for (int i = 0; i < count; i++) {
    size_t length;
    struct trap trap;
    uint8_t *wasm = read_file(names[i], 16 << 20, &length);
    const bool loads = engine_load(card.engine, wasm, length, (struct linear_memory){memory + LINEAR_HEADER_SIZE, MEMORY}, &trap);
    printf("%s: %s%s\n", names[i], loads ? "ok" : "refused: ", loads ? "" : trap.text);
    if (loads) engine_unload();
    else refused++;
    free(wasm);
  }
  free(memory);
  return refused;
}

static void parse_options(int count, char **arguments) {
  enum { FIRMWARE = 1, SETTINGS, PATHS, MEMORY, MEMORY_SIZE, DOORBELL, CRASH, ENGINE, STORE, KEYS, CHECK };
  static const struct option OPTIONS[] = {
      {"firmware", required_argument, NULL, FIRMWARE}, {"settings", required_argument, NULL, SETTINGS},
      {"paths", required_argument, NULL, PATHS},       {"memory", required_argument, NULL, MEMORY},
      {"doorbell", required_argument, NULL, DOORBELL}, {"memory-size", required_argument, NULL, MEMORY_SIZE},
      {"crash", required_argument, NULL, CRASH},       {"engine", required_argument, NULL, ENGINE},
      {"store", required_argument, NULL, STORE},       {"keys", required_argument, NULL, KEYS},
      {"check", no_argument, NULL, CHECK},
      {0},
  };
  const char *doorbell = NULL, *keys = NULL;
  for (int option; (option = getopt_long(count, arguments, "", OPTIONS, NULL)) != -1;) {
    switch (option) {
      case FIRMWARE: add_firmware(optarg); break;
      case SETTINGS: card.settings = read_file(optarg, SETTINGS_MAX, &card.settings_length); break;
      case PATHS: read_paths(optarg); break;
      case MEMORY: card.memory_name = optarg; break;
      case MEMORY_SIZE: card.memory_length = strtoul(optarg, NULL, 10); break;
      case DOORBELL: doorbell = optarg; break;
      case CRASH: card.crash_file = open(optarg, O_RDWR | O_CREAT | O_CLOEXEC, 0600); break;
      case STORE: store_file_open(optarg); break;
      case ENGINE: card.engine = parse_engine(optarg); break;
      case KEYS: keys = optarg; break;
      case CHECK: exit(check_firmwares(count - optind, arguments + optind) == 0 ? 0 : 1);
      default: exit(2);
    }
  }
  errno = 0;
  if (card.firmware_count == 0) posix_fail("missing option", "--firmware");
  if (card.memory_name == NULL) posix_fail("missing option", "--memory");
  if (doorbell == NULL) posix_fail("missing option", "--doorbell");
  if (card.crash_file < 0) posix_fail("missing option, or a file that cannot be opened", "--crash");
  if (card.memory_length == 0 || card.memory_length % PAGE_SIZE != 0 || card.memory_length > UINT32_MAX) {
    posix_fail("the memory size must be a multiple of 65536", "--memory-size");
  }
  if (keys != NULL) unpack_firmwares(keys);
  map_memory();
  doorbell_listen(doorbell);
}

static void set_signals(void) {
  struct sigaction action = {.sa_handler = on_stop};
  sigset_t stops;
  sigemptyset(&stops);
  sigaddset(&stops, SIGTERM);
  sigaddset(&stops, SIGINT);
  sigprocmask(SIG_BLOCK, &stops, NULL);
  sigaction(SIGTERM, &action, NULL);
  sigaction(SIGINT, &action, NULL);
  action = (struct sigaction){.sa_handler = on_watchdog, .sa_flags = SA_NODEFER};
  sigaction(SIGVTALRM, &action, NULL);
  action = (struct sigaction){.sa_handler = on_trap_request};
  sigaction(SIGUSR1, &action, NULL);
  const struct timeval interval = {.tv_sec = WATCHDOG_MS / 1000, .tv_usec = WATCHDOG_MS % 1000 * 1000};
  setitimer(ITIMER_VIRTUAL, &(struct itimerval){.it_value = interval, .it_interval = interval}, NULL);
  signal(SIGPIPE, SIG_IGN);
#ifndef RIBBON_SANITIZED
  static uint8_t stack[65536];
  sigaltstack(&(stack_t){.ss_sp = stack, .ss_size = sizeof stack}, NULL);
  action = (struct sigaction){.sa_handler = on_native_crash, .sa_flags = (int)(SA_ONSTACK | SA_RESETHAND)};
  sigaction(SIGSEGV, &action, NULL);
  sigaction(SIGBUS, &action, NULL);
  sigaction(SIGILL, &action, NULL);
  sigaction(SIGFPE, &action, NULL);
#endif
}

int main(int count, char **arguments) {
  parse_options(count, arguments);
  set_signals();
  runtime_run(card.engine);
  doorbell_close();
  store_file_close();
  for (unsigned i = 0; i < card.firmware_count; i++) free(card.firmware_files[i]);
  free(card.settings);
  return 0;
}
