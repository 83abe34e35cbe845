// What a board provides to the runtime. Everything in boards/runtime/ is written over these functions and over transport.h
// alone: no chip header, no operating system. PORTING.md walks through them in the order in which a new board gets them.
#ifndef RIBBON_BOARD_H
#define RIBBON_BOARD_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum log_level { LOG_ERROR = 0, LOG_WARNING = 1, LOG_INFO = 2, LOG_DEBUG = 3 };

/// What board_wait() came back for; several bits may be set.
enum board_event {
  EVENT_FRONT_END = 1, // the front end rang its doorbell
  EVENT_NETWORK = 2,   // a stream can be read, written, or changed its state
  EVENT_STORE = 4,     // the local store finished something
  EVENT_STOP = 8,      // the runtime is to end (a process only: a board never ends)
};

/// Milliseconds since an arbitrary start. Never runs backwards, wraps at 2^32.
uint32_t board_clock_ms(void);

/// Fills `target` with random bytes fit for keys.
void board_random(void *target, size_t length);

/// Shows one line, `length` bytes of UTF-8 without a line end.
void board_log(enum log_level level, const char *text, size_t length);

/// Sleeps until an event or for at most `timeout_ms` (UINT32_MAX: no limit). Returns board_event bits, 0 when time ran out.
unsigned board_wait(uint32_t timeout_ms);

/// Copies the settings record to `target`; returns its length, 0 when there is none.
size_t board_settings_read(void *target, size_t capacity);

/// Tells the front end that the register block holds a new order. Everything stored before must be visible to it first.
void board_front_end_ring(void);

/// True when this runtime follows one that was reset in the middle of its work, and linear memory still has the register block
/// that the front end goes on with: the PC is then not to notice.
bool board_front_end_kept(void);
/// Tells the front end that the firmware takes events: it has started, or started again, and the shared memory is laid out.
void board_front_end_started(void);
/// The firmware has ended; the front end keeps what comes now until it is told of the next start.
void board_front_end_stopped(void);

// The board calls engine_watchdog_tick() every second or so of processor time, from an interrupt or a signal (engine.h).

/// Memory that survives a restart of the runtime (not a power cut): CRASH_RECORD_SIZE bytes. crash.c checks what it reads.
void board_crash_read(void *target, size_t length);
void board_crash_write(const void *source, size_t length);

/// Firmware images in the order in which they are tried. Returns NULL when there is no image `index`.
const uint8_t *board_firmware(unsigned index, size_t *length);

/// The linear memory: `length` bytes, a multiple of 64 KiB, zero at power-on, 64 KiB aligned to its own start, with at
/// least LINEAR_HEADER_SIZE writable bytes before it that belong to the engine.
uint8_t *board_linear_memory(size_t *length);

/// No firmware runs any more. Must not return: a board resets after a while, a process ends.
_Noreturn void board_halt(const char *why);

#endif
