// The crash record: what ended the last run, kept over a restart (SPEC.md "Crash record").
#ifndef RIBBON_CRASH_H
#define RIBBON_CRASH_H

#include <stdbool.h>
#include <stdint.h>

#include "engine.h"

struct crash_record {
  uint32_t magic; // "RBCR"
  uint16_t version;
  uint16_t size;
  uint32_t checksum; // CRC-32C of bytes 12 to the end
  uint32_t kind;     // enum trap_kind
  uint32_t line;
  uint32_t column;
  uint32_t count;     // crashes since the record was new, this one included
  uint32_t uptime_ms; // board_clock_ms() at the crash
  uint8_t firmware_hash[FIRMWARE_HASH_SIZE];
  char engine[8];
  char text[112]; // zero-terminated
  uint8_t reserved[8];
};

_Static_assert(sizeof(struct crash_record) == 192, "SPEC.md says 192 bytes");
enum { CRASH_RECORD_SIZE = sizeof(struct crash_record) };

/// False when there is none that can be trusted.
bool crash_read(struct crash_record *record);
void crash_write(const struct trap *trap);
const char *crash_kind_name(uint32_t kind);

#endif
