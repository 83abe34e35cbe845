// CRC-32C for cores without an instruction for it (a Cortex-A9 has none). Most of what a write to the local store costs is here, so:
//
//   - long runs are folded before they are summed up. A multiple of the CRC's polynomial is congruent to 0, and this one is sparse:
//
//       x^209 + x^144 + x^54 + x^39 + x^14 + 1      [tests/boards/crc32c.test.ts divides it]
//
//     It stays a multiple when x^8 is put in for x (T(x^8) = T(x)^8 where 1 + 1 = 0), and x^8 is a byte: any byte may be taken out of
//     a message when it is added to those 65, 155, 170, 195 and 209 places behind it. With 64 bytes at a time all but the last
//     256 go like that, at half an instruction a byte, and the tables are for these. (Kadatch and Jenkins, "Everything we know
//     about CRC but afraid to forget", have the theory; S. Russell's "Chorba" uses it so.)
//   - zeroes at the end are skipped: n of them multiply the state by x^(8n). The head of a record in the local store is a block
//     that is nearly empty.
//   - the rest goes through four tables of 1 KiB, made at the first call, four bytes a step.

#include <stdbool.h>
#include <string.h>

#include "accelerators.h"

enum {
  POLYNOMIAL = 0x82f63b78, // 1EDC6F41h, reflected
  SLICES = 4,
  /// Bytes that a fold leaves: more than 209, so that what is taken out has all its places.
  REST = 256,
  /// Bytes folded at once, and in one step: the nearest place is 65 bytes on.
  CHUNK_MAX = 4096,
  STEP = 64,
  /// Shorter runs cost more to fold than to step over.
  FOLD_MIN = 2 * REST,
  /// Zeroes are skipped in units of 128 bytes, up to 127 units at once.
  ZEROES = 128,
  ZEROES_MAX = 128,
};

static uint32_t table[SLICES][256];
/// x^(8 * ZEROES * i), reflected as the state is.
static uint32_t power[ZEROES_MAX];

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
  uint32_t unit = 1u << 23; // x^8
  for (unsigned bytes = 1; bytes < ZEROES; bytes *= 2) unit = multiply(unit, unit);
  power[0] = 1u << 31;
  for (unsigned i = 1; i < ZEROES_MAX; i++) power[i] = multiply(power[i - 1], unit);
}

static uint32_t sum_up(uint32_t crc, const uint8_t *byte, size_t length) {
  const uint32_t *first = table[3], *second = table[2], *third = table[1], *fourth = table[0];
  // As if the compiler did not know where they are: from one address it would compute the others at every use.
  __asm__("" : "+r"(first), "+r"(second), "+r"(third), "+r"(fourth));
  for (; length >= 4; length -= 4, byte += 4) {
    uint32_t word;
    memcpy(&word, byte, 4);
    word ^= crc;
    crc = first[word & 0xff] ^ second[word >> 8 & 0xff] ^ third[word >> 16 & 0xff] ^ fourth[word >> 24];
  }
  for (; length > 0; length--, byte++) crc = fourth[(crc ^ *byte) & 0xff] ^ (crc >> 8);
  return crc;
}

#if defined(__ARM_NEON) && !defined(__aarch64__)

/// target[i] = source[i] ^ taken[i - 65] ^ taken[i - 155] ^ taken[i - 170] ^ taken[i - 195] ^ taken[i - 209], a multiple of STEP
/// bytes. `target` may be `taken`. GCC has no words for loads of 32 bytes at any address, which is what this is about.
static void fold(uint8_t *target, const uint8_t *taken, const uint8_t *source, size_t length) {
  const uint8_t *a = taken - 65, *b = taken - 155, *c = taken - 170, *d = taken - 195, *e = taken - 209;
  const uint8_t *const end = source + length;
#define ADD(at)                       \
  "vld1.8 {d8-d11}, [%[" #at "]]!\n"  \
  "vld1.8 {d12-d15}, [%[" #at "]]!\n" \
  "veor q0, q0, q4\n"                 \
  "veor q1, q1, q5\n"                 \
  "veor q2, q2, q6\n"                 \
  "veor q3, q3, q7\n"
  __asm__ volatile("1:\n"
                   "vld1.8 {d0-d3}, [%[source]]!\n"
                   "vld1.8 {d4-d7}, [%[source]]!\n" ADD(a) ADD(b) ADD(c) ADD(d) ADD(e)
                   "vst1.8 {d0-d3}, [%[target]]!\n"
                   "vst1.8 {d4-d7}, [%[target]]!\n"
                   "cmp %[source], %[end]\n"
                   "bne 1b\n"
                   : [target] "+r"(target), [source] "+r"(source), [a] "+r"(a), [b] "+r"(b), [c] "+r"(c), [d] "+r"(d), [e] "+r"(e)
                   : [end] "r"(end)
                   : "q0", "q1", "q2", "q3", "q4", "q5", "q6", "q7", "cc", "memory");
#undef ADD
}

/// ZEROES bytes are 0.
static bool is_zero(const uint8_t *bytes) {
  uint32_t low, high;
  __asm__("vld1.8 {d0-d3}, [%[at]]!\n"
          "vld1.8 {d4-d7}, [%[at]]!\n"
          "vld1.8 {d8-d11}, [%[at]]!\n"
          "vld1.8 {d12-d15}, [%[at]]!\n"
          "vorr q0, q0, q1\n"
          "vorr q2, q2, q3\n"
          "vorr q4, q4, q5\n"
          "vorr q6, q6, q7\n"
          "vorr q0, q0, q2\n"
          "vorr q4, q4, q6\n"
          "vorr q0, q0, q4\n"
          "vorr d0, d0, d1\n"
          "vmov %[low], %[high], d0\n"
          : [at] "+r"(bytes), [low] "=r"(low), [high] "=r"(high)
          :
          : "q0", "q1", "q2", "q3", "q4", "q5", "q6", "q7", "memory");
  return (low | high) == 0;
}

#else

static uint64_t word(const uint8_t *bytes) {
  uint64_t value;
  memcpy(&value, bytes, sizeof value);
  return value;
}

static void fold(uint8_t *target, const uint8_t *taken, const uint8_t *source, size_t length) {
  for (size_t i = 0; i < length; i += 8) {
    const uint8_t *at = taken + i;
    const uint64_t sum =
        word(source + i) ^ word(at - 65) ^ word(at - 155) ^ word(at - 170) ^ word(at - 195) ^ word(at - 209);
    memcpy(target + i, &sum, sizeof sum);
  }
}

static bool is_zero(const uint8_t *bytes) {
  uint64_t any = 0;
  for (size_t i = 0; i < ZEROES; i += 8) any |= word(bytes + i);
  return any == 0;
}

#endif

/// `length` bytes, a multiple of STEP from FOLD_MIN to CHUNK_MAX.
static uint32_t sum_up_chunk(uint32_t crc, const uint8_t *bytes, size_t length) {
  // What is taken out, between bytes that are 0: nothing is before it, and nothing of the rest is.
  static uint8_t taken[REST + CHUNK_MAX];
  uint8_t rest[REST], first[STEP];
  uint8_t *const begin = taken + REST, *const end = begin + length - REST;
  memcpy(first, bytes, STEP);
  for (int i = 0; i < 4; i++) first[i] ^= (uint8_t)(crc >> 8 * i);
  fold(begin, begin, first, STEP);
  if (end - begin > STEP) fold(begin + STEP, begin + STEP, bytes + STEP, (size_t)(end - begin) - STEP);
  memset(end, 0, REST);
  fold(rest, end, bytes + length - REST, REST);
  return sum_up(0, rest, REST);
}

uint32_t crc32c(uint32_t seed, const void *source, size_t length) {
  const uint8_t *byte = source;
  uint32_t crc = ~seed;
  if (table[0][1] == 0) make_tables();
  size_t zeroes = 0;
  for (; length >= ZEROES && is_zero(byte + length - ZEROES); length -= ZEROES) zeroes++;
  if (length >= FOLD_MIN + STEP) {
    const size_t odd = length % STEP;
    crc = sum_up(crc, byte, odd);
    byte += odd;
    length -= odd;
    for (size_t chunk; length >= FOLD_MIN; byte += chunk, length -= chunk) {
      chunk = length < CHUNK_MAX ? length : CHUNK_MAX;
      crc = sum_up_chunk(crc, byte, chunk);
    }
  }
  crc = sum_up(crc, byte, length);
  for (size_t skip; zeroes > 0; zeroes -= skip) {
    skip = zeroes < ZEROES_MAX ? zeroes : ZEROES_MAX - 1;
    crc = multiply(power[skip], crc);
  }
  return ~crc;
}
