// Raw DEFLATE by zlib, in memory of its own: nothing is allocated, and a stream is made once and used again.

#include <string.h>
#include <zlib.h>

#include "accelerators.h"

// zlib's own arithmetic (zconf.h): deflate takes (1 << (window bits + 2)) + (1 << (memory level + 9)) bytes, 256 KiB, and its
// state; inflate 32 KiB of window and its state.
enum { WINDOW_BITS = 15, MEMORY_LEVEL = 8, LEVEL = 3 };

struct arena {
  _Alignas(16) uint8_t bytes[(1 << (WINDOW_BITS + 2)) + (1 << (MEMORY_LEVEL + 9)) + 16 * 1024];
  size_t used;
};

struct small_arena {
  _Alignas(16) uint8_t bytes[(1 << WINDOW_BITS) + 16 * 1024];
  size_t used;
};

static struct arena deflate_arena;
static struct small_arena inflate_arena;
static z_stream deflater, inflater;
static int deflater_made, inflater_made;

static void *take(uint8_t *bytes, size_t size, size_t *used, size_t want) {
  want = (want + 15) & ~(size_t)15;
  if (size - *used < want) return Z_NULL;
  void *place = bytes + *used;
  *used += want;
  return place;
}

static void *take_deflate(void *opaque, unsigned items, unsigned size) {
  (void)opaque;
  return take(deflate_arena.bytes, sizeof deflate_arena.bytes, &deflate_arena.used, (size_t)items * size);
}

static void *take_inflate(void *opaque, unsigned items, unsigned size) {
  (void)opaque;
  return take(inflate_arena.bytes, sizeof inflate_arena.bytes, &inflate_arena.used, (size_t)items * size);
}

static void keep(void *opaque, void *place) {
  (void)opaque;
  (void)place;
}

static void ready(z_stream *stream, const void *source, uint32_t length, void *target, uint32_t capacity) {
  stream->next_in = (z_const Bytef *)source;
  stream->avail_in = length;
  stream->next_out = target;
  stream->avail_out = capacity;
}

uint32_t deflate_bytes(const void *source, uint32_t length, void *target, uint32_t capacity) {
  if (!deflater_made) {
    deflater.zalloc = take_deflate;
    deflater.zfree = keep;
    if (deflateInit2(&deflater, LEVEL, Z_DEFLATED, -WINDOW_BITS, MEMORY_LEVEL, Z_DEFAULT_STRATEGY) != Z_OK) return 0;
    deflater_made = 1;
  } else if (deflateReset(&deflater) != Z_OK) {
    return 0;
  }
  ready(&deflater, source, length, target, capacity);
  if (capacity == 0 || deflate(&deflater, Z_FINISH) != Z_STREAM_END) return 0;
  return capacity - deflater.avail_out;
}

uint32_t inflate_bytes(const void *source, uint32_t length, void *target, uint32_t capacity) {
  if (!inflater_made) {
    inflater.zalloc = take_inflate;
    inflater.zfree = keep;
    if (inflateInit2(&inflater, -WINDOW_BITS) != Z_OK) return UINT32_MAX;
    inflater_made = 1;
  } else if (inflateReset(&inflater) != Z_OK) {
    return UINT32_MAX;
  }
  ready(&inflater, source, length, target, capacity);
  if (inflate(&inflater, Z_FINISH) != Z_STREAM_END) return UINT32_MAX;
  return capacity - inflater.avail_out;
}
