// The life of a card: loads the firmware, steps it, and starts it again when it traps.
#ifndef RIBBON_RUNTIME_H
#define RIBBON_RUNTIME_H

#include "engine.h"

/// Runs until board_wait() says EVENT_STOP.
void runtime_run(enum engine_choice choice);

/// One formatted line to the log.
void runtime_log(int level, const char *format, ...) __attribute__((format(printf, 2, 3)));

#endif
