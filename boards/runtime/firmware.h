// Firmware packages: a wasm module with a signed head (SPEC.md "Firmware package"). A board that keeps its firmware where somebody
// else may write runs only what firmware_package_check() lets through.
#ifndef RIBBON_FIRMWARE_H
#define RIBBON_FIRMWARE_H

#include <stddef.h>
#include <stdint.h>

enum {
  FIRMWARE_MAGIC = 0x57464252, // "RBFW"
  FIRMWARE_VERSION = 2,
  FIRMWARE_HEAD_SIZE = 128,
  FIRMWARE_KEYS_MAX = 4,
  /// A public key: the coordinates of its point on NIST P-256, big-endian.
  FIRMWARE_KEY_SIZE = 64,
};

struct firmware_head {
  uint32_t magic;
  uint16_t version;
  uint16_t size;     // of this head
  uint32_t length;   // of the module, which follows
  uint32_t sequence; // the newer package has the higher one
  uint8_t reserved[16];
  uint8_t hash[32];      // SHA-256 of the module
  uint8_t signature[64]; // ECDSA over P-256 and SHA-256 of everything before: r, s
};

_Static_assert(sizeof(struct firmware_head) == FIRMWARE_HEAD_SIZE, "SPEC.md");

/// Whether a head can be one, before anything behind it is read: `room` is what there is for head and module. NULL, or why
/// not.
const char *firmware_head_check(const struct firmware_head *head, size_t room);
/// Whether the module is the one that the head names, and one of the keys has signed the head. NULL, or why not.
const char *firmware_package_check(const struct firmware_head *head, const uint8_t *module,
                                   const uint8_t keys[][FIRMWARE_KEY_SIZE], unsigned key_count);

#endif
