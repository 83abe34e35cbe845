#include "firmware.h"

#include <mbedtls/ecdsa.h>
#include <string.h>

#include "accelerators.h"

enum { SIGNED_SIZE = offsetof(struct firmware_head, signature), COORDINATE_SIZE = 32 };

const char *firmware_head_check(const struct firmware_head *head, size_t room) {
  if (head->magic != FIRMWARE_MAGIC) return "not a firmware package";
  if (head->version == 1) return "not signed (a package of version 1)";
  if (head->version != FIRMWARE_VERSION || head->size != FIRMWARE_HEAD_SIZE) return "a firmware package of an unknown version";
  if (room < FIRMWARE_HEAD_SIZE || head->length > room - FIRMWARE_HEAD_SIZE) return "the firmware package is cut off";
  return NULL;
}

/// Any failure, out of memory too, counts as a wrong signature.
static int verify(const uint8_t digest[32], const uint8_t key[FIRMWARE_KEY_SIZE], const uint8_t signature[64]) {
  mbedtls_ecp_group group;
  mbedtls_ecp_point point;
  mbedtls_mpi r, s;
  uint8_t encoded[1 + FIRMWARE_KEY_SIZE] = {4}; // uncompressed [SEC 1] 2.3.3
  memcpy(encoded + 1, key, FIRMWARE_KEY_SIZE);
  mbedtls_ecp_group_init(&group);
  mbedtls_ecp_point_init(&point);
  mbedtls_mpi_init(&r);
  mbedtls_mpi_init(&s);
  int error = mbedtls_ecp_group_load(&group, MBEDTLS_ECP_DP_SECP256R1);
  if (error == 0) error = mbedtls_ecp_point_read_binary(&group, &point, encoded, sizeof encoded);
  if (error == 0) error = mbedtls_ecp_check_pubkey(&group, &point); // a point off the curve proves nothing
  if (error == 0) error = mbedtls_mpi_read_binary(&r, signature, COORDINATE_SIZE);
  if (error == 0) error = mbedtls_mpi_read_binary(&s, signature + COORDINATE_SIZE, COORDINATE_SIZE);
  if (error == 0) error = mbedtls_ecdsa_verify(&group, digest, 32, &point, &r, &s);
  mbedtls_mpi_free(&s);
  mbedtls_mpi_free(&r);
  mbedtls_ecp_point_free(&point);
  mbedtls_ecp_group_free(&group);
  return error;
}

const char *firmware_package_check(const struct firmware_head *head, const uint8_t *module,
                                   const uint8_t keys[][FIRMWARE_KEY_SIZE], unsigned key_count) {
  static const uint8_t UNSIGNED[sizeof head->signature];
  uint8_t digest[32];
  // The hash first: it is what tells damage from a stranger's package.
  sha256(module, head->length, digest);
  if (memcmp(digest, head->hash, sizeof digest) != 0) return "damaged: its hash is wrong";
  if (memcmp(head->signature, UNSIGNED, sizeof UNSIGNED) == 0) return "not signed";
  if (key_count == 0) return "this card has no key to check its signature with";
  sha256(head, SIGNED_SIZE, digest);
  for (unsigned i = 0; i < key_count; i++) {
    if (verify(digest, keys[i], head->signature) == 0) return NULL;
  }
  return "not signed with a key that this card trusts";
}
