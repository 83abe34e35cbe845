// Reads go through the linear window: the controller turns a load into a read command [UG585 12.2.4].

#include "flash.h"

#include <stdlib.h>
#include <string.h>

#include "accelerators.h"
#include "board.h"
#include "firmware.h"
#include "registers.h"
#include "runtime.h"

enum { CONFIG = 0x00, ENABLE = 0x14, LINEAR_CONFIG = 0xa0 };
/// Flash interface, hold pin driven, chip select 0 alone (bits 13 to 10 are the selects, low active), 32-bit FIFO, clock / 4,
/// master [UG585 B.20 Config_reg].
#define CONFIG_VALUE 0x800838c9u
/// Linear mode with the one-lane READ 03h, which every flash has and which needs no dummy cycles.
#define LINEAR_VALUE 0x80000003u

enum {
  FLASH_SETTINGS = 0x800000,
  FLASH_NETWORK = 0x810000,
  FLASH_IDENTITY = 0x820000,
  FLASH_KEYS = 0x830000,
  FLASH_FIRMWARE = 0x900000,
  FLASH_FIRMWARE_SIZE = 0x200000,
  FLASH_FIRMWARE_SLOTS = 2,
  NETWORK_TEXT_MAX = 4096,
};

/// SPEC.md "Flash layout": what stands before the network text and the identity.
struct record_head {
  uint32_t magic;
  uint16_t version;
  uint16_t reserved;
  uint32_t length;   // of what follows
  uint32_t checksum; // CRC-32C of it
};

struct identity {
  uint8_t ethernet_address[6]; // of interface 0; the next one has the next address
  uint8_t reserved[2];
  uint8_t seed[FLASH_SEED_SIZE];
};

_Static_assert(sizeof(struct record_head) == 16 && sizeof(struct identity) == 40, "SPEC.md");
enum { MAGIC_NETWORK = 0x544e4252, MAGIC_IDENTITY = 0x44494252, MAGIC_KEYS = 0x4b464252, VERSION = 1 };

static struct identity identity;
static bool has_identity;

void flash_init(void) {
  register_write(QSPI_BASE, ENABLE, 0);
  register_write(QSPI_BASE, CONFIG, CONFIG_VALUE);
  register_write(QSPI_BASE, LINEAR_CONFIG, LINEAR_VALUE);
  register_write(QSPI_BASE, ENABLE, 1);
  struct record_head head;
  flash_read(FLASH_IDENTITY, &head, sizeof head);
  flash_read(FLASH_IDENTITY + sizeof head, &identity, sizeof identity);
  has_identity = head.magic == MAGIC_IDENTITY && head.version == VERSION && head.length == sizeof identity &&
                 head.checksum == crc32c(0, &identity, sizeof identity);
}

void flash_read(uint32_t offset, void *target, size_t length) {
  // Words only: the window answers 8-byte loads, which memcpy() would use, with zeros.
  uint8_t *to = target;
  while (length > 0) {
    const uint32_t word = *(volatile uint32_t *)(uintptr_t)(QSPI_LINEAR_BASE + (offset & ~3u));
    const size_t skip = offset & 3, count = 4 - skip < length ? 4 - skip : length;
    memcpy(to, (const uint8_t *)&word + skip, count);
    to += count;
    offset += (uint32_t)count;
    length -= count;
  }
}

size_t flash_settings(void *target, size_t capacity) {
  const size_t length = capacity < 512 ? capacity : 512;
  uint32_t first;
  flash_read(FLASH_SETTINGS, &first, sizeof first);
  if (first == UINT32_MAX) return 0; // erased: there is none
  flash_read(FLASH_SETTINGS, target, length);
  return length;
}

size_t flash_network_text(char *target, size_t capacity) {
  struct record_head head;
  flash_read(FLASH_NETWORK, &head, sizeof head);
  if (head.magic != MAGIC_NETWORK || head.version != VERSION) return 0;
  if (head.length > capacity || head.length > NETWORK_TEXT_MAX) return 0;
  flash_read(FLASH_NETWORK + sizeof head, target, head.length);
  return crc32c(0, target, head.length) == head.checksum ? head.length : 0;
}

void flash_ethernet_address(unsigned interface, uint8_t address[6]) {
  // Without an identity an address that is marked as given locally: good enough to be found on a bench.
  static const uint8_t FALLBACK[6] = {0x02, 'R', 'i', 'b', 'b', 0};
  memcpy(address, has_identity ? identity.ethernet_address : FALLBACK, 6);
  address[5] = (uint8_t)(address[5] + interface);
}

bool flash_seed(uint8_t seed[FLASH_SEED_SIZE]) {
  memcpy(seed, identity.seed, FLASH_SEED_SIZE);
  return has_identity;
}

// Firmware slots

static struct slot {
  const uint8_t *image; // NULL: empty or damaged
  struct firmware_head head;
} slots[FLASH_FIRMWARE_SLOTS];
static bool slots_read;

/// The keys whose packages this card runs; none when the record is missing or damaged.
static unsigned read_keys(uint8_t keys[FIRMWARE_KEYS_MAX][FIRMWARE_KEY_SIZE]) {
  struct record_head head;
  flash_read(FLASH_KEYS, &head, sizeof head);
  if (head.magic != MAGIC_KEYS || head.version != VERSION) return 0;
  if (head.length % FIRMWARE_KEY_SIZE != 0 || head.length > FIRMWARE_KEYS_MAX * FIRMWARE_KEY_SIZE) return 0;
  flash_read(FLASH_KEYS + sizeof head, keys, head.length);
  return crc32c(0, keys, head.length) == head.checksum ? head.length / FIRMWARE_KEY_SIZE : 0;
}

static const char *read_slot(unsigned number, const uint8_t keys[][FIRMWARE_KEY_SIZE], unsigned key_count) {
  struct slot *slot = &slots[number];
  const uint32_t offset = FLASH_FIRMWARE + number * FLASH_FIRMWARE_SIZE;
  flash_read(offset, &slot->head, sizeof slot->head);
  if (slot->head.magic == UINT32_MAX) return NULL; // erased
  const char *objection = firmware_head_check(&slot->head, FLASH_FIRMWARE_SIZE);
  if (objection != NULL) return objection;
  uint8_t *image = malloc(slot->head.length);
  if (image == NULL) return "no memory for it";
  flash_read(offset + sizeof slot->head, image, slot->head.length);
  objection = firmware_package_check(&slot->head, image, keys, key_count);
  if (objection == NULL) slot->image = image;
  else free(image);
  return objection;
}

static void read_slots(void) {
  uint8_t keys[FIRMWARE_KEYS_MAX][FIRMWARE_KEY_SIZE] = {0};
  const unsigned key_count = read_keys(keys);
  if (key_count == 0) runtime_log(LOG_ERROR, "flash: no firmware keys");
  for (unsigned i = 0; i < FLASH_FIRMWARE_SLOTS; i++) {
    const char *objection = read_slot(i, (const uint8_t(*)[FIRMWARE_KEY_SIZE])keys, key_count);
    if (objection != NULL) runtime_log(LOG_ERROR, "firmware slot %u: %s", i, objection);
  }
}

const uint8_t *flash_firmware(unsigned index, size_t *length) {
  if (!slots_read) {
    read_slots();
    slots_read = true;
  }
  const bool second_is_newer = slots[1].image != NULL && slots[1].head.sequence > slots[0].head.sequence;
  const bool swapped = slots[0].image == NULL || second_is_newer;
  if (index >= FLASH_FIRMWARE_SLOTS) return NULL;
  const struct slot *slot = &slots[swapped ? 1 - index : index];
  *length = slot->head.length;
  return slot->image;
}
