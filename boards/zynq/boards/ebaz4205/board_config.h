// EBAZ4205, a former miner's control board: XC7Z010, 256 MB DDR3, CPU 667 MHz as its U-Boot leaves it.
#ifndef RIBBON_BOARD_CONFIG_H
#define RIBBON_BOARD_CONFIG_H

#define BOARD_NAME "ebaz4205"
#define BOARD_PERIPHCLK_HZ 333333343
/// SLCR SDIO_CLK_CTRL, as the boot loader leaves it [UG585 25.7.4]. At most this: a slower one only makes the card slower.
#define BOARD_SDIO_REF_HZ 100000000
/// CPU_1x: what the system watchdog counts.
#define BOARD_CPU_1X_HZ 111111115
#define BOARD_UART_REF_HZ 100000000
#define BOARD_UART_BAUD 115200
/// Ethernet MACs that have a PHY: its one 100 Mbit/s PHY (IP101GA) hangs on GEM0 through the programmable logic.
#define BOARD_GEM_COUNT 1

#endif
