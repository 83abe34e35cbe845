// [UG585 19, appendix B.33]

#include "uart.h"

#include "board_config.h"
#include "irq.h"
#include "registers.h"

enum { CR = 0x00, MR = 0x04, IER = 0x08, IDR = 0x0c, ISR = 0x14, BAUDGEN = 0x18, RXWM = 0x20, SR = 0x2c, FIFO = 0x30, BAUDDIV = 0x34 };
enum { CR_RESET_BOTH = 3, CR_RECEIVE = 1 << 2, CR_SEND = 1 << 4 };
enum { MR_8N1 = 4 << 3 };
enum { SR_RECEIVE_EMPTY = 1 << 1, SR_SEND_FULL = 1 << 4 };
enum { INTERRUPT_RECEIVE_TRIGGER = 1 };

static volatile bool rung;

static void init(uint32_t base) {
  register_write(base, IDR, 0xffffffff);
  register_write(base, CR, CR_RESET_BOTH);
  while (register_read(base, CR) & CR_RESET_BOTH) continue;
  register_write(base, MR, MR_8N1);
  // baud = UART_REF_CLK / (CD * (BDIV + 1)) [UG585 19.2.3]
  register_write(base, BAUDDIV, 5);
  register_write(base, BAUDGEN, BOARD_UART_REF_HZ / (6 * BOARD_UART_BAUD));
  register_write(base, RXWM, 1);
  register_write(base, CR, CR_RECEIVE | CR_SEND);
}

static void on_doorbell(struct irq_frame *frame) {
  (void)frame;
  // Clear, then empty the FIFO: a byte that comes in between raises the interrupt again, for nothing at worst.
  register_write(UART1_BASE, ISR, INTERRUPT_RECEIVE_TRIGGER);
  while ((register_read(UART1_BASE, SR) & SR_RECEIVE_EMPTY) == 0) {
    (void)register_read(UART1_BASE, FIFO);
    rung = true;
  }
}

void uart_init(void) {
  init(UART0_BASE);
  init(UART1_BASE);
  irq_enable(IRQ_UART1, on_doorbell);
  register_write(UART1_BASE, IER, INTERRUPT_RECEIVE_TRIGGER);
}

static void send(uint32_t base, uint8_t byte) {
  while (register_read(base, SR) & SR_SEND_FULL) continue;
  register_write(base, FIFO, byte);
}

void console_write(const char *text, uint32_t length) {
  for (uint32_t i = 0; i < length; i++) send(UART0_BASE, (uint8_t)text[i]);
}

void doorbell_write(uint8_t byte) { send(UART1_BASE, byte); }

bool doorbell_take(void) {
  if (!rung) return false;
  rung = false;
  return true;
}

bool doorbell_pending(void) { return rung; }
