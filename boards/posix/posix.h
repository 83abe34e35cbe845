// Between the files of boards/posix/.
#ifndef RIBBON_POSIX_H
#define RIBBON_POSIX_H

#include <poll.h>

enum { SOCKETS_POLL_MAX = 4, DOORBELL_POLL_MAX = 2 };

/// Adds what is to be waited for; returns how many entries.
unsigned sockets_poll_fill(struct pollfd *target);
/// Takes the answers to the same entries; returns board_event bits.
unsigned sockets_poll_done(const struct pollfd *polled, unsigned count);

void doorbell_listen(const char *path);
void doorbell_close(void);
void doorbell_send(unsigned char byte);
unsigned doorbell_poll_fill(struct pollfd *target);
unsigned doorbell_poll_done(const struct pollfd *polled, unsigned count);

/// Opens the device behind store.h; before this there is none.
void store_file_open(const char *name);
void store_file_close(void);

/// Ends the process with a message: an error at start-up that the caller has to put right.
_Noreturn void posix_fail(const char *what, const char *name);

#endif
