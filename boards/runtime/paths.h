// The card's routes to its image server, from a text with one line for each (SPEC.md "Network paths"):
//
//   tcp ADDRESS PORT
//   unix FILE                                  (boards/posix only)
//
// each followed by nothing, or by how the peers know each other:
//
//   psk IDENTITY HEXKEY
//
// Empty lines and lines that start with # mean nothing.
#ifndef RIBBON_PATHS_H
#define RIBBON_PATHS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum { NET_PATHS_MAX = 4 };

struct net_path {
  enum { PATH_TCP, PATH_UNIX } kind;
  char address[108]; // a numeric IPv4 or IPv6 address, or a file name: sockaddr_un has 108 bytes
  uint16_t port;
  bool has_psk;
  char psk_identity[64];
  uint8_t psk[64];
  size_t psk_length;
};

/// Reads the text and replaces the table. Returns 0, or the number of the first line that is wrong.
unsigned paths_parse(const char *text, size_t length);
/// NULL when there is no path of that number.
const struct net_path *paths_get(unsigned index);

#endif
