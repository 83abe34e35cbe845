// Work on bulk data that the firmware leaves to C (DESIGN.md decision 1).
#ifndef RIBBON_ACCELERATORS_H
#define RIBBON_ACCELERATORS_H

#include <stddef.h>
#include <stdint.h>

/// CRC-32C (Castagnoli, reflected, as in SPEC.md), going on from `seed`: an earlier result, or 0.
uint32_t crc32c(uint32_t seed, const void *source, size_t length);

void sha256(const void *source, size_t length, uint8_t digest[32]);

/// Raw DEFLATE; returns its length, 0 when it is more than `capacity`.
uint32_t deflate_bytes(const void *source, uint32_t length, void *target, uint32_t capacity);

/// What raw DEFLATE stands for; returns its length, UINT32_MAX when it is nothing or more than `capacity` bytes.
uint32_t inflate_bytes(const void *source, uint32_t length, void *target, uint32_t capacity);

#endif
