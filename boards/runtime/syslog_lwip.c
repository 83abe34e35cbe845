#include <lwip/udp.h>
#include <stdio.h>
#include <string.h>

#include "paths.h"
#include "syslog.h"
#include "transport_lwip.h"

enum {
  /// What a start without a firmware has to say, and something else.
  LINES_MAX = 16,
  LINE_SIZE = 256,
  /// One datagram at a time, at most: a card that complains without end does not fill the line.
  INTERVAL_MS = 100,
  /// [RFC 5424] 6.2.1: the first facility that is for local use.
  FACILITY_LOCAL0 = 16,
};

static struct {
  enum log_level level;
  size_t length;
  char text[LINE_SIZE];
} lines[LINES_MAX];
static unsigned first, count, lost;
static uint32_t sent_ms;
static struct udp_pcb *pcb;

void syslog_add(enum log_level level, const char *text, size_t length) {
  if (level > LOG_WARNING) return;
  if (count == LINES_MAX) {
    lost++;
    return;
  }
  const unsigned at = (first + count++) % LINES_MAX;
  lines[at].level = level;
  lines[at].length = length < LINE_SIZE ? length : LINE_SIZE;
  memcpy(lines[at].text, text, lines[at].length);
}

/// Cards have no clock and no name: a log server puts the time, and knows them by their Ethernet address.
static int make_head(char *target, size_t size, enum log_level level) {
  uint8_t mac[6];
  ethernet_address(0, mac);
  return snprintf(target, size, "<%d>1 - ribbon-%02x%02x%02x%02x%02x%02x card - - - ", FACILITY_LOCAL0 * 8 + (level == LOG_ERROR ? 3 : 4),
                  mac[0], mac[1], mac[2], mac[3], mac[4], mac[5]);
}

static void send_line(const struct net_log *server, int interface, enum log_level level, const char *text, size_t length) {
  char head[64];
  const int head_length = make_head(head, sizeof head, level);
  ip_addr_t address;
  memcpy(&address.addr, server->address, 4); // both as on the wire
  if (pcb == NULL) pcb = udp_new();
  if (pcb == NULL) return;
  struct pbuf *datagram = pbuf_alloc(PBUF_TRANSPORT, (uint16_t)(head_length + (int)length), PBUF_RAM);
  if (datagram == NULL) return;
  pbuf_take(datagram, head, (uint16_t)head_length);
  pbuf_take_at(datagram, text, (uint16_t)length, (uint16_t)head_length);
  udp_bind_netif(pcb, network_interface((unsigned)interface));
  udp_sendto(pcb, datagram, &address, server->port);
  pbuf_free(datagram);
}

void syslog_poll(void) {
  const struct net_log *server = paths_log();
  if (count == 0 || server->port == 0 || board_clock_ms() - sent_ms < INTERVAL_MS) return;
  const int interface = network_route(server->address);
  if (interface < 0) return;
  sent_ms = board_clock_ms();
  send_line(server, interface, lines[first].level, lines[first].text, lines[first].length);
  first = (first + 1) % LINES_MAX;
  if (--count > 0 || lost == 0) return;
  char text[48];
  const int length = snprintf(text, sizeof text, "%u more lines are on the console", lost);
  lost = 0;
  syslog_add(LOG_WARNING, text, (size_t)length);
}
