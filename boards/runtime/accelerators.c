#include "accelerators.h"

#include <mbedtls/sha256.h>
#include <string.h>

// Slice-by-4: four tables, one step for each aligned word. 4 KiB of tables, made once at the first call: the same code runs
// on cores with and without CRC instructions (a Cortex-A9 has none).
static uint32_t table[4][256];

static void make_table(void) {
  for (uint32_t i = 0; i < 256; i++) {
    uint32_t crc = i;
    for (int bit = 0; bit < 8; bit++) crc = (crc >> 1) ^ (crc & 1 ? 0x82f63b78u : 0);
    table[0][i] = crc;
  }
  for (uint32_t i = 0; i < 256; i++) {
    for (int slice = 1; slice < 4; slice++) {
      const uint32_t crc = table[slice - 1][i];
      table[slice][i] = table[0][crc & 0xff] ^ (crc >> 8);
    }
  }
}

uint32_t crc32c(uint32_t seed, const void *source, size_t length) {
  const uint8_t *byte = source;
  uint32_t crc = ~seed;
  if (table[0][1] == 0) make_table();
  for (; length >= 4; length -= 4, byte += 4) {
    uint32_t word;
    memcpy(&word, byte, 4);
    crc ^= word; // little-endian, as every board so far
    crc = table[3][crc & 0xff] ^ table[2][(crc >> 8) & 0xff] ^ table[1][(crc >> 16) & 0xff] ^ table[0][crc >> 24];
  }
  for (; length > 0; length--, byte++) crc = table[0][(crc ^ *byte) & 0xff] ^ (crc >> 8);
  return ~crc;
}

_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "linear memory and every record are little-endian");

void sha256(const void *source, size_t length, uint8_t digest[32]) { mbedtls_sha256_ret(source, length, digest, 0); }
