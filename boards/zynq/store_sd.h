// The local store on an SD card in SDHCI0: board_store_start() and its kind (store.h), and what the main loop needs.
#ifndef RIBBON_ZYNQ_STORE_SD_H
#define RIBBON_ZYNQ_STORE_SD_H

#include <stdbool.h>
#include <stdint.h>

/// Initialises the controller, and the card if there is one. At most 2 s.
void store_sd_init(void);
/// Takes what the controller has done and goes on; true when an operation has ended.
bool store_sd_poll(void);
/// True when an interrupt wants store_sd_poll(). With interrupts masked: nothing gets lost before a WFI.
bool store_sd_interrupted(void);
/// Milliseconds until store_sd_poll() is to be called without an interrupt, UINT32_MAX: not at all.
uint32_t store_sd_timeout_ms(void);

#endif
