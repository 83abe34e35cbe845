// UART0 is the console; UART1 is the doorbell where no programmable logic gives an interrupt line (SPEC.md "Doorbells").
#ifndef RIBBON_ZYNQ_UART_H
#define RIBBON_ZYNQ_UART_H

#include <stdbool.h>
#include <stdint.h>

void uart_init(void);
void console_write(const char *text, uint32_t length);
void doorbell_write(uint8_t byte);
/// True when the front end has rung since the last call.
bool doorbell_take(void);
/// The same without taking it; for a last look with interrupts masked.
bool doorbell_pending(void);

#endif
