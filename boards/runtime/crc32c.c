// CRC-32C for cores without an instruction for it (a Cortex-A9 has none). Most of what a write to the local store costs is here, so:
//   - eight bytes a step, by eight tables of 1 KiB, made at the first call;
//   - zeroes at the end are skipped: n of them multiply the state by x^(8n), which takes one step for each bit of n. The head of a record
//     in the local store is a block that is nearly empty.

#include <string.h>

#include "accelerators.h"

enum {
  POLYNOMIAL = 0x82f63b78, // 1EDC6F41h, reflected
  SLICES = 8,
  /// Shorter runs of zeroes cost more to find than to step over.
  ZEROES_MIN = 256,
};

static uint32_t table[SLICES][256];
/// x^(8 * 2^i), reflected as the state is.
static uint32_t power[32];

_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "linear memory and every record are little-endian");

/// Product of two polynomials modulo the CRC's, all reflected: bit 31 is x^0.
static uint32_t multiply(uint32_t a, uint32_t b) {
  uint32_t product = 0;
  for (; a != 0; a <<= 1) {
    if (a & 1u << 31) product ^= b;
    b = b >> 1 ^ (b & 1 ? (uint32_t)POLYNOMIAL : 0);
  }
  return product;
}

static void make_tables(void) {
  for (uint32_t i = 0; i < 256; i++) {
    uint32_t crc = i;
    for (int bit = 0; bit < 8; bit++) crc = (crc >> 1) ^ (crc & 1 ? (uint32_t)POLYNOMIAL : 0);
    table[0][i] = crc;
  }
  for (uint32_t i = 0; i < 256; i++) {
    for (int slice = 1; slice < SLICES; slice++) {
      const uint32_t crc = table[slice - 1][i];
      table[slice][i] = table[0][crc & 0xff] ^ (crc >> 8);
    }
  }
  power[0] = 1u << 23; // x^8
  for (int i = 1; i < 32; i++) power[i] = multiply(power[i - 1], power[i - 1]);
}

/// Length without the zeroes at the end, as far as whole steps of 32 bytes go.
static size_t without_zeroes(const uint8_t *bytes, size_t length) {
  while (length >= 32) {
    uint64_t words[4];
    memcpy(words, bytes + length - 32, 32);
    if ((words[0] | words[1] | words[2] | words[3]) != 0) break;
    length -= 32;
  }
  return length;
}

uint32_t crc32c(uint32_t seed, const void *source, size_t length) {
  const uint8_t *byte = source;
  uint32_t crc = ~seed;
  if (table[0][1] == 0) make_tables();
  const size_t kept = length >= ZEROES_MIN ? without_zeroes(byte, length) : length;
  size_t zeroes = length - kept;
  length = kept;
  for (; length >= 8; length -= 8, byte += 8) {
    uint32_t low, high;
    memcpy(&low, byte, 4);
    memcpy(&high, byte + 4, 4);
    low ^= crc;
    crc = table[7][low & 0xff] ^ table[6][low >> 8 & 0xff] ^ table[5][low >> 16 & 0xff] ^ table[4][low >> 24] ^
          table[3][high & 0xff] ^ table[2][high >> 8 & 0xff] ^ table[1][high >> 16 & 0xff] ^ table[0][high >> 24];
  }
  for (; length > 0; length--, byte++) crc = table[0][(crc ^ *byte) & 0xff] ^ (crc >> 8);
  for (unsigned bit = 0; zeroes != 0; bit++, zeroes >>= 1) {
    if (zeroes & 1) crc = multiply(power[bit & 31], crc);
  }
  return ~crc;
}
