#include "crash.h"

#include <stddef.h>
#include <stdio.h>
#include <string.h>

#include "accelerators.h"
#include "board.h"

enum { CRASH_MAGIC = 0x52434252, CRASH_VERSION = 1, CHECKED_FROM = offsetof(struct crash_record, kind) };

static uint32_t checksum(const struct crash_record *record) {
  return crc32c(0, (const uint8_t *)record + CHECKED_FROM, sizeof *record - CHECKED_FROM);
}

bool crash_read(struct crash_record *record) {
  board_crash_read(record, sizeof *record);
  if (record->magic != CRASH_MAGIC || record->version != CRASH_VERSION || record->size != sizeof *record) return false;
  if (record->checksum != checksum(record)) return false;
  record->text[sizeof record->text - 1] = 0;
  return true;
}

void crash_write(const struct trap *trap) {
  struct crash_record last;
  const uint32_t count = crash_read(&last) ? last.count : 0;
  struct crash_record record = {
      .magic = CRASH_MAGIC,
      .version = CRASH_VERSION,
      .size = sizeof record,
      .kind = trap->kind,
      .line = trap->line,
      .column = trap->column,
      .count = count + 1,
      .uptime_ms = board_clock_ms(),
  };
  memcpy(record.firmware_hash, engine_firmware_hash(), FIRMWARE_HASH_SIZE);
  const char *engine = engine_name();
  for (size_t i = 0; i + 1 < sizeof record.engine && engine[i] != 0; i++) record.engine[i] = engine[i];
  memcpy(record.text, trap->text, sizeof record.text);
  record.checksum = checksum(&record);
  board_crash_write(&record, sizeof record);
}

const char *crash_kind_name(uint32_t kind) {
  static const char *const NAMES[] = {
      [TRAP_NONE] = "none",
      [TRAP_REFUSED] = "refused",
      [TRAP_OUT_OF_BOUNDS] = "out-of-bounds",
      [TRAP_IMPORT_ARGUMENT] = "import-argument",
      [TRAP_INTEGER] = "integer",
      [TRAP_UNREACHABLE] = "unreachable",
      [TRAP_STACK] = "stack",
      [TRAP_ABORT] = "abort",
      [TRAP_WATCHDOG] = "watchdog",
      [TRAP_INIT] = "init",
      [TRAP_NATIVE] = "native",
  };
  return kind < sizeof NAMES / sizeof NAMES[0] ? NAMES[kind] : "unknown";
}
