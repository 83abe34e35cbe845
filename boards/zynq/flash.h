// The QSPI flash: settings, network, identity and firmware slots (SPEC.md "Flash layout").
#ifndef RIBBON_ZYNQ_FLASH_H
#define RIBBON_ZYNQ_FLASH_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum { FLASH_SEED_SIZE = 32 };

void flash_init(void);
/// Copies from the flash; both offset and length are rounded to words inside.
void flash_read(uint32_t offset, void *target, size_t length);

/// The text of SPEC.md "Network paths" into `target`; returns its length, 0 when there is none that can be trusted.
size_t flash_network_text(char *target, size_t capacity);
/// What makes this card unlike any other: an Ethernet address for each interface, a seed for random numbers.
void flash_ethernet_address(unsigned interface, uint8_t address[6]);
bool flash_seed(uint8_t seed[FLASH_SEED_SIZE]);
/// The firmware images that are whole and signed with one of this card's keys, the newest first, in memory of their own. NULL when there are no more.
const uint8_t *flash_firmware(unsigned index, size_t *length);
size_t flash_settings(void *target, size_t capacity);

#endif
