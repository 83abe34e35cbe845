// Warnings and errors for a log server on the network (SPEC.md "Log server"): what a card in the field says when nobody looks at its console, a card
// without a usable firmware among them.
#ifndef RIBBON_SYSLOG_H
#define RIBBON_SYSLOG_H

#include <stddef.h>

#include "board.h"

/// Keeps a line until the network is there; the first ones when there is no room. Any context but an interrupt.
void syslog_add(enum log_level level, const char *text, size_t length);
/// Sends what is due. Called by network_poll().
void syslog_poll(void);

#endif
