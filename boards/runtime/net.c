// Streams with optional TLS (mbedTLS). A TLS stream is: transport open -> net_start_tls -> CONNECTING until the peer has proved
// that it knows the path's key -> OPEN. Any TLS error closes the stream; the reason goes to the log.

#include "net.h"

#include <mbedtls/error.h>
#include <mbedtls/ssl.h>
#include <mbedtls/ssl_internal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "board.h"
#include "transport.h"

struct tls {
  mbedtls_ssl_context ssl;
  mbedtls_ssl_config config;
  bool established;
};

static struct stream {
  const struct net_path *path;
  struct tls *tls; // NULL: plain
  bool failed;     // closed by us after a TLS error, until the firmware opens it again
} streams[NET_STREAMS_MAX];

static int random_bytes(void *context, unsigned char *target, size_t length) {
  (void)context;
  board_random(target, length);
  return 0;
}

// TLS

static int tls_transport_send(void *context, const unsigned char *source, size_t length) {
  const unsigned stream = (unsigned)((struct stream *)context - streams);
  const size_t sent = transport_send(stream, source, length);
  if (sent > 0) return (int)sent;
  return transport_state(stream) == NET_OPEN ? MBEDTLS_ERR_SSL_WANT_WRITE : MBEDTLS_ERR_SSL_INTERNAL_ERROR;
}

static int tls_transport_receive(void *context, unsigned char *target, size_t capacity) {
  const unsigned stream = (unsigned)((struct stream *)context - streams);
  const size_t received = transport_receive(stream, target, capacity);
  if (received > 0) return (int)received;
  return transport_state(stream) == NET_OPEN ? MBEDTLS_ERR_SSL_WANT_READ : 0;
}

static void tls_free(struct stream *stream) {
  if (stream->tls == NULL) return;
  mbedtls_ssl_free(&stream->tls->ssl);
  mbedtls_ssl_config_free(&stream->tls->config);
  free(stream->tls);
  stream->tls = NULL;
}

static void tls_fail(struct stream *stream, const char *what, int error) {
  char line[160];
  char reason[96];
  mbedtls_strerror(error, reason, sizeof reason);
  const int length = snprintf(line, sizeof line, "network: tls %s failed: %s (-0x%04x)", what, reason, (unsigned)-error);
  board_log(LOG_WARNING, line, (size_t)length);
  tls_free(stream);
  transport_close((unsigned)(stream - streams));
  stream->failed = true;
}

static bool is_retry(int result) { return result == MBEDTLS_ERR_SSL_WANT_READ || result == MBEDTLS_ERR_SSL_WANT_WRITE; }

static void tls_handshake(struct stream *stream) {
  const int result = mbedtls_ssl_handshake(&stream->tls->ssl);
  if (result == 0) stream->tls->established = true;
  else if (!is_retry(result)) tls_fail(stream, "handshake", result);
}

static int tls_configure(struct tls *tls, struct stream *stream) {
  // AEAD and 128-bit keys only: what the image server offers, and what a Cortex-A9 can do at the rate of the link.
  static const int SUITES[] = {MBEDTLS_TLS_PSK_WITH_AES_128_GCM_SHA256, 0};
  const struct net_path *path = stream->path;
  mbedtls_ssl_init(&tls->ssl);
  mbedtls_ssl_config_init(&tls->config);
  int error = mbedtls_ssl_config_defaults(&tls->config, MBEDTLS_SSL_IS_CLIENT, MBEDTLS_SSL_TRANSPORT_STREAM,
                                          MBEDTLS_SSL_PRESET_DEFAULT);
  if (error != 0) return error;
  mbedtls_ssl_conf_rng(&tls->config, random_bytes, NULL);
  mbedtls_ssl_conf_ciphersuites(&tls->config, SUITES);
  mbedtls_ssl_conf_min_version(&tls->config, MBEDTLS_SSL_MAJOR_VERSION_3, MBEDTLS_SSL_MINOR_VERSION_3);
  error = mbedtls_ssl_conf_psk(&tls->config, path->psk, path->psk_length, (const unsigned char *)path->psk_identity,
                               strlen(path->psk_identity));
  if (error != 0) return error;
  error = mbedtls_ssl_setup(&tls->ssl, &tls->config);
  if (error != 0) return error;
  mbedtls_ssl_set_bio(&tls->ssl, stream, tls_transport_send, tls_transport_receive, NULL);
  return 0;
}

static size_t tls_receive(struct stream *stream, uint8_t *target, size_t capacity) {
  size_t received = 0;
  while (received < capacity) {
    const int result = mbedtls_ssl_read(&stream->tls->ssl, target + received, capacity - received);
    if (result > 0) {
      received += (size_t)result;
      continue;
    }
    if (is_retry(result)) break;
    if (received > 0) break; // the error, or the end, comes back at the next call
    if (result == 0 || result == MBEDTLS_ERR_SSL_PEER_CLOSE_NOTIFY) {
      tls_free(stream);
      transport_close((unsigned)(stream - streams));
      stream->failed = true;
    } else {
      tls_fail(stream, "read", result);
    }
    break;
  }
  return received;
}

/// False while an encrypted record is still on its way into the transport: nothing else can be sent before it.
static bool tls_flush(struct stream *stream) {
  if (stream->tls->ssl.out_left == 0) return true;
  const int result = mbedtls_ssl_flush_output(&stream->tls->ssl);
  if (result != 0 && !is_retry(result)) tls_fail(stream, "write", result);
  return result == 0;
}

static size_t tls_send(struct stream *stream, const uint8_t *source, size_t length) {
  size_t sent = 0;
  while (sent < length && tls_flush(stream)) {
    const size_t record_max = (size_t)mbedtls_ssl_get_max_out_record_payload(&stream->tls->ssl);
    const size_t record = length - sent < record_max ? length - sent : record_max;
    const int result = mbedtls_ssl_write(&stream->tls->ssl, source + sent, record);
    if (result > 0) {
      sent += (size_t)result;
    } else if (result == MBEDTLS_ERR_SSL_WANT_WRITE) {
      // The record is encrypted and in mbedTLS's buffer, in part: it counts as taken, tls_flush() sends the rest.
      return sent + record;
    } else {
      if (!is_retry(result)) tls_fail(stream, "write", result);
      break;
    }
  }
  return sent;
}

// Imports

static struct stream *get(uint32_t number) { return number < NET_STREAMS_MAX ? &streams[number] : NULL; }

void net_open(uint32_t number, uint32_t path) {
  struct stream *stream = get(number);
  if (stream == NULL) return;
  net_close(number);
  stream->path = paths_get(path);
  stream->failed = false;
  if (stream->path != NULL) transport_open(number, stream->path);
}

void net_close(uint32_t number) {
  struct stream *stream = get(number);
  if (stream == NULL || stream->path == NULL) return;
  if (stream->tls != NULL && stream->tls->established) mbedtls_ssl_close_notify(&stream->tls->ssl);
  tls_free(stream);
  if (!stream->failed) transport_close(number);
  stream->path = NULL;
}

void net_close_all(void) {
  for (uint32_t i = 0; i < NET_STREAMS_MAX; i++) net_close(i);
}

uint32_t net_state(uint32_t number) {
  struct stream *stream = get(number);
  if (stream == NULL || stream->path == NULL || stream->failed) return NET_CLOSED;
  if (stream->tls != NULL) {
    if (mbedtls_ssl_get_bytes_avail(&stream->tls->ssl) > 0) return NET_OPEN;
    if (!stream->tls->established && transport_state(number) == NET_OPEN) return NET_CONNECTING;
  }
  return transport_state(number);
}

void net_start_tls(uint32_t number) {
  struct stream *stream = get(number);
  if (stream == NULL || stream->path == NULL || stream->tls != NULL || net_state(number) != NET_OPEN) return;
  if (!stream->path->has_psk) {
    static const char LINE[] = "network: the settings ask for TLS, but this path has no key";
    board_log(LOG_WARNING, LINE, sizeof LINE - 1);
    transport_close(number);
    stream->failed = true;
    return;
  }
  stream->tls = calloc(1, sizeof *stream->tls);
  if (stream->tls == NULL) {
    transport_close(number);
    stream->failed = true;
    return;
  }
  const int error = tls_configure(stream->tls, stream);
  if (error != 0) tls_fail(stream, "setup", error);
  else tls_handshake(stream);
}

uint32_t net_receive(uint32_t number, void *target, uint32_t capacity) {
  struct stream *stream = get(number);
  if (stream == NULL || stream->path == NULL || stream->failed) return 0;
  if (stream->tls == NULL) return (uint32_t)transport_receive(number, target, capacity);
  return stream->tls->established ? (uint32_t)tls_receive(stream, target, capacity) : 0;
}

uint32_t net_send(uint32_t number, const void *source, uint32_t length) {
  struct stream *stream = get(number);
  if (stream == NULL || stream->path == NULL || stream->failed) return 0;
  if (stream->tls == NULL) return (uint32_t)transport_send(number, source, length);
  return stream->tls->established ? (uint32_t)tls_send(stream, source, length) : 0;
}

void net_poll(void) {
  for (uint32_t i = 0; i < NET_STREAMS_MAX; i++) {
    struct stream *stream = &streams[i];
    if (stream->tls == NULL) continue;
    if (!stream->tls->established) tls_handshake(stream);
    else tls_flush(stream);
  }
}
