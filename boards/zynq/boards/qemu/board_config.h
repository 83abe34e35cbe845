// QEMU's xilinx-zynq-a9: its clocks do not follow the SLCR's settings but are fixed.
#ifndef RIBBON_BOARD_CONFIG_H
#define RIBBON_BOARD_CONFIG_H

#define BOARD_NAME "qemu-xilinx-zynq-a9"
#define BOARD_PERIPHCLK_HZ 100000000
/// SLCR SDIO_CLK_CTRL, as the boot loader leaves it [UG585 25.7.4].
#define BOARD_SDIO_REF_HZ 50000000
/// CPU_1x: what the system watchdog counts.
#define BOARD_CPU_1X_HZ 100000000
#define BOARD_UART_REF_HZ 50000000
#define BOARD_UART_BAUD 115200
/// Ethernet MACs that have a PHY.
#define BOARD_GEM_COUNT 2

#endif
