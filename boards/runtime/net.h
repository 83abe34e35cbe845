// The network group of the imports: streams over transport.h, with TLS where the firmware asks for it.
#ifndef RIBBON_NET_H
#define RIBBON_NET_H

#include <stdint.h>

/// The firmware uses streams 0 up to here.
enum { NET_STREAMS_MAX = 4 };

void net_open(uint32_t stream, uint32_t path);
void net_close(uint32_t stream);
uint32_t net_state(uint32_t stream);
void net_start_tls(uint32_t stream);
uint32_t net_receive(uint32_t stream, void *target, uint32_t capacity);
uint32_t net_send(uint32_t stream, const void *source, uint32_t length);

/// Moves handshakes on and sends what TLS holds back. Called before every step.
void net_poll(void);
void net_close_all(void);

#endif
