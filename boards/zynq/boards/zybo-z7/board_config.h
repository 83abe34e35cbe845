// Digilent Zybo Z7-10/Z7-20, and with the same clocks the Arty Z7: CPU 667 MHz (PERIPHCLK is half of it), UART reference
// 100 MHz, as Digilent's ps7_init sets them.
#ifndef RIBBON_BOARD_CONFIG_H
#define RIBBON_BOARD_CONFIG_H

#define BOARD_NAME "digilent-zybo-z7"
#define BOARD_PERIPHCLK_HZ 333333343
/// SLCR SDIO_CLK_CTRL, as the boot loader leaves it [UG585 25.7.4]. At most this: a slower one only makes the card slower.
#define BOARD_SDIO_REF_HZ 100000000
/// CPU_1x: what the system watchdog counts.
#define BOARD_CPU_1X_HZ 111111115
#define BOARD_UART_REF_HZ 100000000
#define BOARD_UART_BAUD 115200
/// Ethernet MACs that have a PHY.
#define BOARD_GEM_COUNT 1

#endif
