// The card's routes to its image server, from a text with one line for each (SPEC.md "Network paths"):
//
//   tcp ADDRESS PORT
//   unix FILE                                  (boards/posix only)
//
// each followed by nothing, or by how the peers know each other:
//
//   psk IDENTITY HEXKEY
//
// and, for a card with Ethernet ports of its own, how port N gets its address; without such a line by DHCP:
//
//   interface N dhcp
//   interface N static ADDRESS/PREFIX [GATEWAY]
//
// and where warnings and errors go, as syslog datagrams:
//
//   log ADDRESS PORT
//
// Empty lines and lines that start with # mean nothing.
#ifndef RIBBON_PATHS_H
#define RIBBON_PATHS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum { NET_PATHS_MAX = 4, NET_INTERFACES_MAX = 2 };

struct net_path {
  enum { PATH_TCP, PATH_UNIX } kind;
  char address[108]; // a numeric IPv4 or IPv6 address, or a file name: sockaddr_un has 108 bytes
  uint16_t port;
  bool has_psk;
  char psk_identity[64];
  uint8_t psk[64];
  size_t psk_length;
};

struct net_interface {
  bool is_static; // false: DHCP, and the rest is 0
  uint8_t address[4], gateway[4]; // as they are written; gateway 0.0.0.0: none
  unsigned prefix;                // bits of the network, 1 to 30
};

struct net_log {
  uint8_t address[4]; // as it is written
  uint16_t port;      // 0: there is none
};

/// Reads the text and replaces the table. Returns 0, or the number of the first line that is wrong.
unsigned paths_parse(const char *text, size_t length);
/// NULL when there is no path of that number.
const struct net_path *paths_get(unsigned index);
/// How interface `index` (below NET_INTERFACES_MAX) gets its address.
const struct net_interface *paths_interface(unsigned index);
const struct net_log *paths_log(void);

#endif
