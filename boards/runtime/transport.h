// Plain byte streams, one for each of the firmware's stream numbers. Implemented over sockets (boards/posix/sockets.c) and
// over lwIP (transport_lwip.c). Nothing here blocks, nothing calls back: EVENT_NETWORK says that something changed.
#ifndef RIBBON_TRANSPORT_H
#define RIBBON_TRANSPORT_H

#include <stddef.h>
#include <stdint.h>

#include "paths.h"

/// The firmware's NetState.
enum net_state { NET_CLOSED = 0, NET_CONNECTING = 1, NET_OPEN = 2 };

void transport_open(unsigned stream, const struct net_path *path);
/// What was sent still goes out, then the connection is closed.
void transport_close(unsigned stream);
/// NET_OPEN also after the peer has closed, as long as received bytes are left.
enum net_state transport_state(unsigned stream);
/// Bytes moved; 0 when there are none now.
size_t transport_receive(unsigned stream, void *target, size_t capacity);
/// Bytes taken; 0 when there is no room.
size_t transport_send(unsigned stream, const void *source, size_t length);

#endif
