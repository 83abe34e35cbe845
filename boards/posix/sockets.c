// transport.h over non-blocking sockets.
//
// poll() tells of a readable socket again and again, so one that was told of is not asked about until the firmware has read
// it empty: a firmware that does not want its data yet does not keep the processor busy.

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "board.h"
#include "net.h"
#include "posix.h"
#include "transport.h"

_Static_assert((int)NET_STREAMS_MAX <= (int)SOCKETS_POLL_MAX, "one poll entry for each stream");

static struct socket {
  int file; // 0 when there is none: standard input is never a stream
  enum net_state state;
  bool ended;      // the peer has closed, and all it sent has been read
  bool wait_read;  // the firmware has seen everything: ask poll() for more
  bool wait_write; // the last send found no room
} sockets[NET_STREAMS_MAX];
static unsigned polled_streams[NET_STREAMS_MAX];

static void fail(struct socket *socket, const char *what, int error) {
  char line[160];
  const int length = snprintf(line, sizeof line, "network: %s: %s", what, strerror(error));
  board_log(LOG_WARNING, line, (size_t)length);
  close(socket->file);
  *socket = (struct socket){0};
}

static bool make_address(const struct net_path *path, struct sockaddr_storage *address, socklen_t *length) {
  memset(address, 0, sizeof *address);
  if (path->kind == PATH_UNIX) {
    struct sockaddr_un *local = (struct sockaddr_un *)address;
    local->sun_family = AF_UNIX;
    memcpy(local->sun_path, path->address, sizeof local->sun_path);
    *length = sizeof *local;
    return true;
  }
  struct sockaddr_in *v4 = (struct sockaddr_in *)address;
  struct sockaddr_in6 *v6 = (struct sockaddr_in6 *)address;
  if (inet_pton(AF_INET, path->address, &v4->sin_addr) == 1) {
    v4->sin_family = AF_INET;
    v4->sin_port = htons(path->port);
    *length = sizeof *v4;
    return true;
  }
  if (inet_pton(AF_INET6, path->address, &v6->sin6_addr) == 1) {
    v6->sin6_family = AF_INET6;
    v6->sin6_port = htons(path->port);
    *length = sizeof *v6;
    return true;
  }
  return false;
}

_Static_assert(sizeof((struct sockaddr_un *)NULL)->sun_path == sizeof((struct net_path *)NULL)->address,
               "a path's address is a whole sun_path");

void transport_open(unsigned stream, const struct net_path *path) {
  struct socket *target = &sockets[stream];
  struct sockaddr_storage address;
  socklen_t length;
  transport_close(stream);
  if (!make_address(path, &address, &length)) {
    char line[200];
    const int count = snprintf(line, sizeof line, "network: \"%s\" is not a numeric address", path->address);
    board_log(LOG_WARNING, line, (size_t)count);
    return;
  }
  const int file = socket(address.ss_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
  if (file < 0) return;
  const int on = 1;
  if (path->kind == PATH_TCP) setsockopt(file, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
  *target = (struct socket){.file = file, .state = NET_CONNECTING, .wait_read = true};
  if (connect(file, (const struct sockaddr *)&address, length) == 0) target->state = NET_OPEN;
  else if (errno != EINPROGRESS) fail(target, path->address, errno);
}

void transport_close(unsigned stream) {
  if (sockets[stream].file != 0) close(sockets[stream].file);
  sockets[stream] = (struct socket){0};
}

enum net_state transport_state(unsigned stream) { return sockets[stream].ended ? NET_CLOSED : sockets[stream].state; }

size_t transport_receive(unsigned stream, void *target, size_t capacity) {
  struct socket *socket = &sockets[stream];
  if (socket->state != NET_OPEN || socket->ended || capacity == 0) return 0;
  const ssize_t received = recv(socket->file, target, capacity, 0);
  if (received == 0) socket->ended = true;
  else if (received < 0 && errno != EAGAIN && errno != EINTR) fail(socket, "receive", errno);
  else if (received < (ssize_t)capacity) socket->wait_read = true;
  return received > 0 ? (size_t)received : 0;
}

size_t transport_send(unsigned stream, const void *source, size_t length) {
  struct socket *socket = &sockets[stream];
  if (socket->state != NET_OPEN || length == 0) return 0;
  const ssize_t sent = send(socket->file, source, length, MSG_NOSIGNAL);
  // What is sent is answered, and the firmware may not ask again before it is; what cannot be sent has an end that it must hear of.
  socket->wait_read = true;
  if (sent < 0 && errno != EAGAIN && errno != EINTR) {
    // What the peer sent before it went away can still be read: the end of that closes the stream.
    if (errno != EPIPE && errno != ECONNRESET) fail(socket, "send", errno);
    return 0;
  }
  if (sent < (ssize_t)length) socket->wait_write = true;
  return sent > 0 ? (size_t)sent : 0;
}

unsigned sockets_poll_fill(struct pollfd *target) {
  unsigned count = 0;
  for (unsigned stream = 0; stream < NET_STREAMS_MAX; stream++) {
    const struct socket *socket = &sockets[stream];
    if (socket->file == 0 || socket->ended) continue;
    const bool wait_write = socket->state == NET_CONNECTING || socket->wait_write;
    if (!socket->wait_read && !wait_write) continue;
    polled_streams[count] = stream;
    target[count++] = (struct pollfd){
        .fd = socket->file,
        .events = (short)((socket->wait_read ? POLLIN : 0) | (wait_write ? POLLOUT : 0)),
    };
  }
  return count;
}

static void connected(struct socket *socket) {
  int error = 0;
  socklen_t length = sizeof error;
  getsockopt(socket->file, SOL_SOCKET, SO_ERROR, &error, &length);
  if (error != 0) fail(socket, "connect", error);
  else socket->state = NET_OPEN;
}

unsigned sockets_poll_done(const struct pollfd *polled, unsigned count) {
  unsigned events = 0;
  for (unsigned i = 0; i < count; i++) {
    struct socket *socket = &sockets[polled_streams[i]];
    if (polled[i].revents == 0) continue;
    events |= EVENT_NETWORK;
    if (socket->state == NET_CONNECTING) {
      connected(socket);
      continue;
    }
    if (polled[i].revents & POLLOUT) socket->wait_write = false;
    if (polled[i].revents & (POLLIN | POLLHUP | POLLERR)) {
      char byte;
      socket->wait_read = false;
      const ssize_t peeked = recv(socket->file, &byte, 1, MSG_PEEK);
      if (peeked == 0) socket->ended = true;
      else if (peeked < 0 && (errno == EAGAIN || errno == EINTR)) socket->wait_read = true;
      else if (peeked < 0) fail(socket, "receive", errno);
    }
  }
  return events;
}
