// The doorbell as a unix stream socket with one front end on it (SPEC.md "Doorbells").

#include <errno.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "board.h"
#include "posix.h"
#include "shared_memory.h"

static int listener = -1, front_end = -1;

/// A card that was killed leaves its socket behind: nobody listens there.
static void remove_left_behind(const struct sockaddr_un *address) {
  const int probe = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
  if (probe < 0) return;
  if (connect(probe, (const struct sockaddr *)address, sizeof *address) != 0 && errno == ECONNREFUSED) unlink(address->sun_path);
  close(probe);
}

void doorbell_listen(const char *path) {
  struct sockaddr_un address = {.sun_family = AF_UNIX};
  if (strlen(path) >= sizeof address.sun_path) posix_fail("doorbell path is too long", path);
  strcpy(address.sun_path, path);
  remove_left_behind(&address);
  listener = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
  if (listener < 0 || bind(listener, (struct sockaddr *)&address, sizeof address) != 0 || listen(listener, 1) != 0) {
    posix_fail("cannot listen on the doorbell", path);
  }
}

void doorbell_close(void) {
  if (front_end >= 0) close(front_end);
  if (listener >= 0) close(listener);
  front_end = listener = -1;
}

static void lose_front_end(void) {
  close(front_end);
  front_end = -1;
}

void doorbell_send(unsigned char byte) {
  // A full socket means rings that the front end has not looked at yet: one more would tell it nothing new.
  if (front_end >= 0 && send(front_end, &byte, 1, MSG_NOSIGNAL) < 0 && errno != EAGAIN && errno != EINTR) lose_front_end();
}

unsigned doorbell_poll_fill(struct pollfd *target) {
  unsigned count = 0;
  if (listener >= 0) target[count++] = (struct pollfd){.fd = listener, .events = POLLIN};
  if (front_end >= 0) target[count++] = (struct pollfd){.fd = front_end, .events = POLLIN};
  return count;
}

static unsigned receive(void) {
  char bytes[64];
  ssize_t received;
  unsigned events = 0;
  do {
    received = recv(front_end, bytes, sizeof bytes, 0);
    if (received > 0) events = EVENT_FRONT_END;
  } while (received == sizeof bytes);
  if (received == 0 || (received < 0 && errno != EAGAIN && errno != EINTR)) lose_front_end();
  return events;
}

unsigned doorbell_poll_done(const struct pollfd *polled, unsigned count) {
  unsigned events = 0;
  for (unsigned i = 0; i < count; i++) {
    if (polled[i].revents == 0) continue;
    if (polled[i].fd == front_end) {
      events |= receive();
    } else if (polled[i].fd == listener) {
      const int file = accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
      if (file < 0) continue;
      if (front_end >= 0) close(front_end);
      front_end = file;
      doorbell_send(DOORBELL_STARTED); // nothing is polled before the firmware has started once
      events |= EVENT_FRONT_END;       // whatever rang while nobody was connected
    }
  }
  return events;
}
