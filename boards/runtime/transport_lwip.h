// What a board without sockets adds to transport.h: its Ethernet interfaces.
#ifndef RIBBON_TRANSPORT_LWIP_H
#define RIBBON_TRANSPORT_LWIP_H

#include <stdbool.h>
#include <stdint.h>

#include "paths.h"

struct netif;
struct pbuf;

enum { NETWORK_INTERFACES_MAX = NET_INTERFACES_MAX };

/// Starts lwIP on `count` interfaces, with DHCP or the addresses that paths.h has for them.
void network_init(unsigned count);
/// Takes received frames, runs timers. True when a stream has news.
bool network_poll(void);
/// Milliseconds until network_poll() has something to do by itself.
uint32_t network_timeout_ms(void);

/// The interface that leads to an IPv4 address, below 0 when none does at the moment.
int network_route(const uint8_t address[4]);
struct netif *network_interface(unsigned interface);

// The driver's part.

/// Sends one frame; false when the ring is full.
bool ethernet_send(unsigned interface, const struct pbuf *frame);
/// The next received frame, NULL when there is none.
struct pbuf *ethernet_receive(unsigned interface);
bool ethernet_link_up(unsigned interface);
/// How often frames were lost because the receive ring was full.
uint32_t ethernet_overflows(unsigned interface);
void ethernet_address(unsigned interface, uint8_t address[6]);

#endif
