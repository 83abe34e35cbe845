// Reads records from standard input, each a length (u32) and so many bytes, and prints the CRC-32C of each, taken from every alignment
// and in two parts.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "accelerators.h"

int main(void) {
  uint32_t length;
  while (fread(&length, sizeof length, 1, stdin) == 1) {
    uint8_t *memory = malloc(length + 8u);
    uint8_t *bytes = memory;
    if (memory == NULL || fread(bytes, 1, length, stdin) != length) return 1;
    const uint32_t whole = crc32c(0, bytes, length);
    for (unsigned at = 1; at < 8; at++) {
      memmove(memory + at, memory + at - 1, length);
      if (crc32c(0, memory + at, length) != whole) return 2;
      if (crc32c(crc32c(0, memory + at, length / 3), memory + at + length / 3, length - length / 3) != whole) return 3;
    }
    printf("%u\n", (unsigned)whole);
    free(memory);
  }
  return 0;
}
