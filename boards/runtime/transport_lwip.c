// transport.h over lwIP's raw interface. Everything runs in the main loop: callbacks only move lwIP's buffers into our
// streams, the firmware looks for itself in its next step.
//
// A stream stays on the port that it was opened on. One whose port is no longer of use ends at once when another port or another path
// leads to the image server, so that the firmware goes there; when none does it waits, as the cable may be back in a moment.

#include "transport_lwip.h"

#include <lwip/dhcp.h>
#include <lwip/etharp.h>
#include <lwip/init.h>
#include <lwip/netif.h>
#include <lwip/snmp.h>
#include <lwip/tcp.h>
#include <lwip/timeouts.h>
#include <netif/ethernet.h>
#include <stdio.h>
#include <string.h>

#include "board.h"
#include "net.h"
#include "runtime.h"
#include "syslog.h"
#include "transport.h"

/// How often the PHYs are asked for their link.
enum { LINK_POLL_MS = 200 };
/// A network with a link that gives no address for so long is reported, once.
enum { ADDRESS_PATIENCE_MS = 10000 };
/// Floods are reported at most so often.
enum { OVERFLOW_REPORT_MS = 10000 };
/// Frames taken from one interface before the others and the firmware get their turn.
enum { FRAMES_AT_ONCE = 64 };
enum { NO_INTERFACE = -1 };

static struct netif interfaces[NETWORK_INTERFACES_MAX];
static unsigned interface_count;
static struct {
  bool has_address;
  bool complained;
  uint32_t waiting_since_ms; // for an address, with a link
  uint32_t overflows;
  uint32_t overflows_at_ms;
} reported[NETWORK_INTERFACES_MAX];
static uint32_t link_polled_ms;

static struct lwip_stream {
  struct tcp_pcb *pcb; // NULL: closed by us, by the peer, or by an error
  enum net_state state;
  struct pbuf *received; // a chain; the first `offset` bytes of it are taken
  uint16_t offset;
  bool ended; // the peer has closed
  const struct net_path *path; // NULL: none
  int interface; // that it is on, NO_INTERFACE while it waits for one
} streams[NET_STREAMS_MAX];
static bool news;
/// Of the newest connection, as the log has it.
static struct {
  const struct net_path *path;
  int interface;
} connected;

uint32_t sys_now(void);
uint32_t sys_now(void) { return board_clock_ms(); }

// Streams

static void forget(struct lwip_stream *stream) {
  if (stream->received != NULL) pbuf_free(stream->received);
  *stream = (struct lwip_stream){0};
}

static err_t on_connected(void *argument, struct tcp_pcb *pcb, err_t error) {
  struct lwip_stream *stream = argument;
  (void)pcb;
  if (error == ERR_OK) stream->state = NET_OPEN;
  if (error == ERR_OK && (connected.path != stream->path || connected.interface != stream->interface)) {
    runtime_log(LOG_INFO, "network %d: connected to %s port %u", stream->interface, stream->path->address, stream->path->port);
    connected.path = stream->path;
    connected.interface = stream->interface;
  }
  news = true;
  return ERR_OK;
}

static err_t on_received(void *argument, struct tcp_pcb *pcb, struct pbuf *data, err_t error) {
  struct lwip_stream *stream = argument;
  (void)pcb;
  (void)error;
  news = true;
  if (data == NULL) stream->ended = true;
  else if (stream->received == NULL) stream->received = data;
  else pbuf_cat(stream->received, data);
  return ERR_OK;
}

static err_t on_sent(void *argument, struct tcp_pcb *pcb, uint16_t length) {
  (void)argument;
  (void)pcb;
  (void)length;
  news = true;
  return ERR_OK;
}

/// lwIP has freed the connection already.
static void on_error(void *argument, err_t error) {
  struct lwip_stream *stream = argument;
  runtime_log(LOG_WARNING, "network: connection lost: %s",
              error == ERR_RST ? "reset by the server" : error == ERR_ABRT ? "no answer" : "lwIP error");
  stream->pcb = NULL;
  stream->ended = true;
  news = true;
}

static bool is_usable(const struct netif *netif) {
  return netif_is_link_up(netif) && !ip4_addr_isany(netif_ip4_addr(netif));
}

/// The one whose network the address is in, or else the first with a gateway. What is in the network of an interface without a link is not
/// looked for behind the gateway of another.
int network_route(const uint8_t wanted[4]) {
  ip4_addr_t address;
  bool is_near = false;
  memcpy(&address.addr, wanted, 4); // both as on the wire
  for (unsigned i = 0; i < interface_count; i++) {
    const struct netif *netif = &interfaces[i];
    if (ip4_addr_isany(netif_ip4_addr(netif)) || !ip4_addr_netcmp(&address, netif_ip4_addr(netif), netif_ip4_netmask(netif))) continue;
    if (is_usable(netif)) return (int)i;
    is_near = true;
  }
  for (unsigned i = 0; !is_near && i < interface_count; i++) {
    if (is_usable(&interfaces[i]) && !ip4_addr_isany(netif_ip4_gw(&interfaces[i]))) return (int)i;
  }
  return NO_INTERFACE;
}

struct netif *network_interface(unsigned interface) { return &interfaces[interface]; }

/// The interface that leads to the path's server.
static int route(const struct net_path *path) {
  ip4_addr_t server;
  if (path->kind != PATH_TCP || !ip4addr_aton(path->address, &server)) return NO_INTERFACE;
  return network_route((const uint8_t *)&server.addr);
}

static bool any_route(void) {
  for (unsigned i = 0; i < NET_PATHS_MAX; i++) {
    const struct net_path *path = paths_get(i);
    if (path != NULL && route(path) != NO_INTERFACE) return true;
  }
  return false;
}

static void connect_stream(struct lwip_stream *stream, int interface) {
  ip_addr_t server;
  struct tcp_pcb *pcb = tcp_new();
  if (pcb == NULL || !ipaddr_aton(stream->path->address, &server)) {
    if (pcb != NULL) tcp_abort(pcb);
    forget(stream);
    return;
  }
  tcp_arg(pcb, stream);
  tcp_recv(pcb, on_received);
  tcp_sent(pcb, on_sent);
  tcp_err(pcb, on_error);
  tcp_nagle_disable(pcb);
  tcp_bind_netif(pcb, &interfaces[interface]);
  stream->pcb = pcb;
  stream->interface = interface;
  if (tcp_connect(pcb, &server, stream->path->port, on_connected) != ERR_OK) {
    // No route. The firmware tries again.
    tcp_err(pcb, NULL); // nothing was sent: nobody hears of it
    tcp_abort(pcb);
    forget(stream);
  }
}

static void cut(struct lwip_stream *stream) {
  tcp_err(stream->pcb, NULL); // we know
  tcp_abort(stream->pcb);
  stream->pcb = NULL;
  news = true;
}

/// Puts a stream on the interface that leads to its server, if it is not there yet, or ends it if only another path leads to one.
static void move_stream(struct lwip_stream *stream) {
  if (stream->path == NULL || stream->ended) return;
  const bool is_open = stream->state == NET_OPEN;
  if (is_open && is_usable(&interfaces[stream->interface])) return;
  const int interface = route(stream->path);
  if (!is_open && interface != NO_INTERFACE) {
    if (interface == stream->interface) return;
    if (stream->pcb != NULL) cut(stream);
    connect_stream(stream, interface);
    news = true;
  } else if (interface != NO_INTERFACE || any_route()) {
    if (is_open) runtime_log(LOG_WARNING, "network %d: its connection is given up, there is another way", stream->interface);
    if (stream->pcb != NULL) cut(stream);
    stream->ended = true;
    news = true;
  }
}

void transport_open(unsigned number, const struct net_path *path) {
  struct lwip_stream *stream = &streams[number];
  ip4_addr_t address;
  transport_close(number);
  if (path->kind != PATH_TCP || !ip4addr_aton(path->address, &address)) {
    runtime_log(LOG_WARNING, "network: \"%s\" is not an IPv4 address", path->address);
    return;
  }
  // At power-on an address takes a moment: a failure for the log and a back-off would make it longer.
  *stream = (struct lwip_stream){.state = NET_CONNECTING, .path = path, .interface = NO_INTERFACE};
  move_stream(stream);
}

void transport_close(unsigned number) {
  struct lwip_stream *stream = &streams[number];
  struct tcp_pcb *pcb = stream->pcb;
  forget(stream);
  if (pcb == NULL) return;
  tcp_arg(pcb, NULL);
  tcp_recv(pcb, NULL);
  tcp_sent(pcb, NULL);
  tcp_err(pcb, NULL);
  // Without memory for the FIN the connection is cut off: better than one that stays.
  if (tcp_close(pcb) != ERR_OK) tcp_abort(pcb);
}

enum net_state transport_state(unsigned number) {
  const struct lwip_stream *stream = &streams[number];
  return stream->ended && stream->received == NULL ? NET_CLOSED : stream->state;
}

size_t transport_receive(unsigned number, void *target, size_t capacity) {
  struct lwip_stream *stream = &streams[number];
  size_t moved = 0;
  while (stream->received != NULL && moved < capacity) {
    struct pbuf *first = stream->received;
    size_t count = first->len - stream->offset;
    if (count > capacity - moved) count = capacity - moved;
    memcpy((uint8_t *)target + moved, (uint8_t *)first->payload + stream->offset, count);
    moved += count;
    stream->offset = (uint16_t)(stream->offset + count);
    if (stream->offset < first->len) break;
    stream->received = first->next;
    if (stream->received != NULL) pbuf_ref(stream->received);
    pbuf_free(first);
    stream->offset = 0;
  }
  // The window opens as far as the firmware has read: what it leaves holds the server back.
  for (size_t left = moved; left > 0 && stream->pcb != NULL;) {
    const uint16_t part = left > 0xffff ? 0xffff : (uint16_t)left;
    tcp_recved(stream->pcb, part);
    left -= part;
  }
  return moved;
}

size_t transport_send(unsigned number, const void *source, size_t length) {
  struct lwip_stream *stream = &streams[number];
  if (stream->state != NET_OPEN || stream->pcb == NULL) return 0;
  size_t sent = 0;
  while (sent < length) {
    const size_t room = tcp_sndbuf(stream->pcb);
    size_t part = length - sent < room ? length - sent : room;
    if (part > 16 * TCP_MSS) part = 16 * TCP_MSS;
    if (part == 0) break;
    const bool more = sent + part < length;
    if (tcp_write(stream->pcb, (const uint8_t *)source + sent, (uint16_t)part,
                  (uint8_t)(TCP_WRITE_FLAG_COPY | (more ? TCP_WRITE_FLAG_MORE : 0))) != ERR_OK) {
      break;
    }
    sent += part;
  }
  return sent;
}

// Interfaces

static err_t send_frame(struct netif *netif, struct pbuf *frame) {
  const unsigned interface = (unsigned)(netif - interfaces);
  return ethernet_send(interface, frame) ? ERR_OK : ERR_MEM;
}

/// What is no stream's (ICMP, resets) and no network covers goes out on the first interface that has a link and an address.
static void choose_default(void) {
  if (netif_default != NULL && is_usable(netif_default)) return;
  for (unsigned i = 0; i < interface_count; i++) {
    if (!is_usable(&interfaces[i])) continue;
    netif_set_default(&interfaces[i]);
    return;
  }
}

static void on_address(struct netif *netif) {
  const unsigned interface = (unsigned)(netif - interfaces);
  const bool has_address = !ip4_addr_isany(netif_ip4_addr(netif));
  if (has_address) {
    char address[16], gateway[16];
    ip4addr_ntoa_r(netif_ip4_addr(netif), address, sizeof address);
    ip4addr_ntoa_r(netif_ip4_gw(netif), gateway, sizeof gateway);
    runtime_log(LOG_INFO, "network %u: address=%s gateway=%s %s", interface, address, gateway,
                paths_interface(interface)->is_static ? "static" : "dhcp");
  } else if (reported[interface].has_address) {
    runtime_log(LOG_WARNING, "network %u: its address is no longer valid", interface);
  }
  reported[interface].has_address = has_address;
  reported[interface].complained = false;
  reported[interface].waiting_since_ms = board_clock_ms();
  choose_default();
  news = true;
}

static void report_missing_address(unsigned interface) {
  const struct netif *netif = &interfaces[interface];
  if (reported[interface].complained || !netif_is_link_up(netif) || reported[interface].has_address) return;
  if (board_clock_ms() - reported[interface].waiting_since_ms < ADDRESS_PATIENCE_MS) return;
  reported[interface].complained = true;
  runtime_log(LOG_WARNING, "network %u: no DHCP server has given an address for %d s", interface, ADDRESS_PATIENCE_MS / 1000);
}

static err_t init_interface(struct netif *netif) {
  const unsigned interface = (unsigned)(netif - interfaces);
  netif->name[0] = 'e';
  netif->name[1] = (char)('0' + interface);
  netif->hostname = "ribbon";
  netif->output = etharp_output;
  netif->linkoutput = send_frame;
  netif->mtu = 1500;
  netif->hwaddr_len = 6;
  ethernet_address(interface, netif->hwaddr);
  netif->flags = NETIF_FLAG_BROADCAST | NETIF_FLAG_ETHARP | NETIF_FLAG_ETHERNET;
  return ERR_OK;
}

static void report_overflows(unsigned interface) {
  const uint32_t overflows = ethernet_overflows(interface), now_ms = board_clock_ms();
  if (overflows == reported[interface].overflows) return;
  if (reported[interface].overflows != 0 && now_ms - reported[interface].overflows_at_ms < OVERFLOW_REPORT_MS) return;
  runtime_log(LOG_WARNING, "network %u: receive ring full %lu times since power-on", interface, (unsigned long)overflows);
  reported[interface].overflows = overflows;
  reported[interface].overflows_at_ms = now_ms;
}

static void poll_links(void) {
  if (board_clock_ms() - link_polled_ms < LINK_POLL_MS) return;
  link_polled_ms = board_clock_ms();
  for (unsigned i = 0; i < interface_count; i++) {
    struct netif *netif = &interfaces[i];
    const bool is_up = ethernet_link_up(i);
    report_missing_address(i);
    report_overflows(i);
    if (is_up == (netif_is_link_up(netif) != 0)) continue;
    runtime_log(is_up ? LOG_INFO : LOG_WARNING, "network %u: link %s", i, is_up ? "up" : "down");
    if (is_up) {
      reported[i].complained = false;
      reported[i].waiting_since_ms = board_clock_ms();
      netif_set_link_up(netif); // DHCP starts again by itself
    } else {
      netif_set_link_down(netif);
    }
    choose_default();
    news = true;
  }
}

static void start_address(unsigned interface) {
  const struct net_interface *wanted = paths_interface(interface);
  if (!wanted->is_static) {
    dhcp_start(&interfaces[interface]);
    return;
  }
  ip4_addr_t address, mask, gateway;
  memcpy(&address.addr, wanted->address, 4); // both as on the wire
  memcpy(&gateway.addr, wanted->gateway, 4);
  mask.addr = lwip_htonl(UINT32_MAX << (32 - wanted->prefix));
  netif_set_addr(&interfaces[interface], &address, &mask, &gateway);
}

void network_init(unsigned count) {
  interface_count = count;
  lwip_init();
  for (unsigned i = 0; i < count; i++) {
    struct netif *netif = &interfaces[i];
    netif_add_noaddr(netif, NULL, init_interface, ethernet_input);
    netif_set_status_callback(netif, on_address);
    netif_set_up(netif);
    start_address(i);
  }
  link_polled_ms = board_clock_ms() - LINK_POLL_MS;
  poll_links();
}

bool network_poll(void) {
  for (unsigned i = 0; i < interface_count; i++) {
    for (unsigned frames = 0;; frames++) {
      if (frames == FRAMES_AT_ONCE) {
        news = true; // more may wait: no sleep before the next look
        break;
      }
      struct pbuf *frame = ethernet_receive(i);
      if (frame == NULL) break;
      if (interfaces[i].input(frame, &interfaces[i]) != ERR_OK) pbuf_free(frame);
    }
  }
  sys_check_timeouts();
  poll_links();
  syslog_poll();
  for (unsigned i = 0; i < NET_STREAMS_MAX; i++) {
    move_stream(&streams[i]);
    if (streams[i].pcb != NULL && streams[i].state == NET_OPEN) tcp_output(streams[i].pcb);
  }
  const bool had_news = news;
  news = false;
  return had_news;
}

uint32_t network_timeout_ms(void) {
  const uint32_t timer = sys_timeouts_sleeptime();
  return timer < LINK_POLL_MS ? timer : LINK_POLL_MS;
}
