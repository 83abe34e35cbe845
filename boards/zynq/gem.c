// [UG585 16, appendix B.18]. One ring of descriptors each way, in memory that is not cached, so that the order of barrier()s
// is all that the hardware needs [UG585 16.3.3].

#include "gem.h"

#include <lwip/pbuf.h>
#include <string.h>

#include "board_config.h"
#include "flash.h"
#include "irq.h"
#include "registers.h"
#include "timer.h"
#include "transport_lwip.h"

enum {
  NWCTRL = 0x00, NWCFG = 0x04, NWSR = 0x08, DMACFG = 0x10, TXSR = 0x14, RXQBASE = 0x18, TXQBASE = 0x1c, RXSR = 0x20,
  ISR = 0x24, IER = 0x28, IDR = 0x2c, PHYMNTNC = 0x34, SPADDR1LO = 0x88, SPADDR1HI = 0x8c,
};
enum { NWCTRL_RECEIVE = 1 << 2, NWCTRL_SEND = 1 << 3, NWCTRL_MDIO = 1 << 4, NWCTRL_START_SEND = 1 << 9 };
enum {
  NWCFG_100M = 1 << 0,
  NWCFG_FULL_DUPLEX = 1 << 1,
  NWCFG_1000M = 1 << 10,
  NWCFG_DROP_FCS = 1 << 17,
  NWCFG_MDC_DIVIDE_64 = 4 << 18, // cpu_1x is at most 167 MHz: 2.6 MHz, above the 2.5 MHz of clause 22 but as U-Boot has it
  NWCFG_CHECKSUM = 1 << 24,
};
enum { DMACFG_BURST_16 = 16, DMACFG_PACKET_MEMORY = 3 << 8 | 1 << 10, DMACFG_CHECKSUM = 1 << 11 };
enum { NWSR_MDIO_IDLE = 1 << 2 };
enum { RXSR_NO_BUFFER = 1 << 0 };
enum { INTERRUPT_RECEIVED = 1 << 1, INTERRUPT_RECEIVE_USED = 1 << 2, INTERRUPT_SENT = 1 << 7, INTERRUPT_OVERRUN = 1 << 10 };

enum { RECEIVE_USED = 1 << 0, RECEIVE_WRAP = 1 << 1, RECEIVE_LENGTH = 0x1fff, RECEIVE_WHOLE = 3 << 14 };
enum { SEND_LAST = 1 << 15, SEND_WRAP = 1 << 30 };
#define SEND_USED (1u << 31)

enum { RECEIVE_COUNT = 128, SEND_COUNT = 64, FRAME_SIZE = 1536 };

struct descriptor {
  volatile uint32_t address, control;
};

struct rings {
  struct descriptor receive[RECEIVE_COUNT], send[SEND_COUNT];
  uint8_t received[RECEIVE_COUNT][FRAME_SIZE] __attribute__((aligned(32)));
  uint8_t sent[SEND_COUNT][FRAME_SIZE] __attribute__((aligned(32)));
};

static struct rings rings[NETWORK_INTERFACES_MAX] __attribute__((section(".dma"), aligned(64)));

static struct mac {
  uint32_t base;
  uint8_t phy;
  bool has_phy;
  volatile bool interrupted; // since the receive ring was last found empty
  unsigned next_receive, next_send;
  uint32_t overflows; // times that the receive ring was full
} macs[NETWORK_INTERFACES_MAX] = {{.base = GEM0_BASE}, {.base = GEM1_BASE}};

// PHY: IEEE 802.3 clause 22 registers

enum { BMCR = 0, BMSR = 1, PHYID1 = 2, ADVERTISE = 4, PARTNER = 5, GIGABIT_CONTROL = 9, GIGABIT_STATUS = 10 };
enum { BMCR_NEGOTIATE = 1 << 12 | 1 << 9, BMSR_LINK = 1 << 2 };

static uint16_t phy_access(const struct mac *mac, uint32_t operation, uint8_t phy, uint8_t number, uint16_t value) {
  register_write(mac->base, PHYMNTNC,
                 1u << 30 | operation << 28 | (uint32_t)phy << 23 | (uint32_t)number << 18 | 2u << 16 | value);
  const uint64_t start = timer_ticks();
  while ((register_read(mac->base, NWSR) & NWSR_MDIO_IDLE) == 0) {
    // A frame takes 26 us; a MAC without clock never ends.
    if (timer_ticks() - start > BOARD_PERIPHCLK_HZ / 1000) return 0xffff;
  }
  return (uint16_t)register_read(mac->base, PHYMNTNC);
}

static uint16_t phy_read(const struct mac *mac, uint8_t number) { return phy_access(mac, 2, mac->phy, number, 0); }
static void phy_write(const struct mac *mac, uint8_t number, uint16_t value) {
  phy_access(mac, 1, mac->phy, number, value);
}

static void phy_find(struct mac *mac) {
  for (uint8_t phy = 1; phy < 32; phy++) {
    const uint16_t id = phy_access(mac, 2, phy, PHYID1, 0);
    if (id == 0 || id == 0xffff) continue;
    mac->phy = phy;
    mac->has_phy = true;
    phy_write(mac, BMCR, BMCR_NEGOTIATE);
    return;
  }
}

/// SLCR GEM{0,1}_CLK_CTRL: 125, 25 or 2.5 MHz out of the IO PLL's 1000 MHz [UG585 25.7.3].
static void set_clock(unsigned interface, unsigned megabits) {
  const uint32_t divisor0 = 8, divisor1 = megabits == 1000 ? 1 : megabits == 100 ? 5 : 50;
  register_write(SLCR_BASE, 0x008, 0xdf0d); // unlock
  register_write(SLCR_BASE, 0x140 + 4 * interface, divisor1 << 20 | divisor0 << 8 | 1);
  register_write(SLCR_BASE, 0x004, 0x767b); // lock
}

static void set_speed(unsigned interface) {
  const struct mac *mac = &macs[interface];
  const uint16_t gigabit = (uint16_t)(phy_read(mac, GIGABIT_CONTROL) << 2 & phy_read(mac, GIGABIT_STATUS));
  const uint16_t common = phy_read(mac, ADVERTISE) & phy_read(mac, PARTNER);
  unsigned megabits = 10;
  bool full_duplex = common & 1 << 6;
  if (gigabit & 3 << 10) {
    megabits = 1000;
    full_duplex = gigabit & 1 << 11;
  } else if (common & 3 << 7) {
    megabits = 100;
    full_duplex = common & 1 << 8;
  }
  uint32_t config = register_read(mac->base, NWCFG) & ~(uint32_t)(NWCFG_100M | NWCFG_FULL_DUPLEX | NWCFG_1000M);
  if (megabits == 1000) config |= NWCFG_1000M;
  if (megabits == 100) config |= NWCFG_100M;
  if (full_duplex) config |= NWCFG_FULL_DUPLEX;
  set_clock(interface, megabits);
  register_write(mac->base, NWCFG, config);
}

bool ethernet_link_up(unsigned interface) {
  static bool was_up[NETWORK_INTERFACES_MAX];
  struct mac *mac = &macs[interface];
  mac->interrupted = true; // the ring is looked at so often in any case: a lost interrupt costs no more than that
  if (!mac->has_phy) return false;
  (void)phy_read(mac, BMSR); // link status latches low: the second read is the present [802.3 22.2.4.2.13]
  const bool is_up = phy_read(mac, BMSR) & BMSR_LINK;
  if (is_up && !was_up[interface]) set_speed(interface);
  was_up[interface] = is_up;
  return is_up;
}

// Interrupts: only wake the main loop, which looks at the rings itself.

static void on_interrupt(struct mac *mac) {
  register_write(mac->base, ISR, register_read(mac->base, ISR));
  mac->interrupted = true;
}
static void on_gem0(struct irq_frame *frame) {
  (void)frame;
  on_interrupt(&macs[0]);
}
static void on_gem1(struct irq_frame *frame) {
  (void)frame;
  on_interrupt(&macs[1]);
}

static void make_rings(unsigned interface) {
  struct rings *ring = &rings[interface];
  for (unsigned i = 0; i < RECEIVE_COUNT; i++) {
    ring->receive[i].control = 0;
    ring->receive[i].address = (uint32_t)ring->received[i] | (i == RECEIVE_COUNT - 1 ? RECEIVE_WRAP : 0);
  }
  for (unsigned i = 0; i < SEND_COUNT; i++) {
    ring->send[i].address = (uint32_t)ring->sent[i];
    ring->send[i].control = SEND_USED | (i == SEND_COUNT - 1 ? SEND_WRAP : 0);
  }
  macs[interface].next_receive = macs[interface].next_send = 0;
  barrier();
}

void ethernet_address(unsigned interface, uint8_t address[6]) { flash_ethernet_address(interface, address); }

void gem_init(unsigned count) {
  for (unsigned i = 0; i < count; i++) {
    struct mac *mac = &macs[i];
    uint8_t address[6];
    register_write(mac->base, NWCTRL, 0);
    register_write(mac->base, IDR, 0xffffffff);
    register_write(mac->base, TXSR, 0xff);
    register_write(mac->base, RXSR, 0x0f);
    make_rings(i);
    register_write(mac->base, NWCFG, NWCFG_FULL_DUPLEX | NWCFG_100M | NWCFG_DROP_FCS | NWCFG_MDC_DIVIDE_64 | NWCFG_CHECKSUM);
    register_write(mac->base, DMACFG, DMACFG_BURST_16 | DMACFG_PACKET_MEMORY | DMACFG_CHECKSUM | FRAME_SIZE / 64 << 16);
    ethernet_address(i, address);
    register_write(mac->base, SPADDR1LO, address[0] | address[1] << 8 | address[2] << 16 | (uint32_t)address[3] << 24);
    register_write(mac->base, SPADDR1HI, address[4] | (uint32_t)address[5] << 8);
    register_write(mac->base, RXQBASE, (uint32_t)rings[i].receive);
    register_write(mac->base, TXQBASE, (uint32_t)rings[i].send);
    irq_enable(i == 0 ? IRQ_GEM0 : IRQ_GEM1, i == 0 ? on_gem0 : on_gem1);
    register_write(mac->base, NWCTRL, NWCTRL_MDIO | NWCTRL_RECEIVE | NWCTRL_SEND);
    phy_find(mac);
    register_write(mac->base, IER, INTERRUPT_RECEIVED | INTERRUPT_RECEIVE_USED | INTERRUPT_OVERRUN);
  }
}

/// After the ring has overflowed the MAC goes on only when the control register is written again (FACTS.md; on silicon it
/// goes on by itself, and this costs nothing).
static void restart_receive(struct mac *mac) {
  const uint32_t status = register_read(mac->base, RXSR);
  if (status == 0) return;
  if (status & RXSR_NO_BUFFER) mac->overflows++;
  register_write(mac->base, RXSR, status);
  register_write(mac->base, NWCTRL, NWCTRL_MDIO | NWCTRL_RECEIVE | NWCTRL_SEND);
}

uint32_t ethernet_overflows(unsigned interface) { return macs[interface].overflows; }

bool ethernet_pending(void) { return macs[0].interrupted || macs[1].interrupted; }

struct pbuf *ethernet_receive(unsigned interface) {
  struct mac *mac = &macs[interface];
  if (!mac->interrupted) return NULL;
  mac->interrupted = false; // before the look: an interrupt from here on asks for another
  for (;;) {
    struct descriptor *descriptor = &rings[interface].receive[mac->next_receive];
    if ((descriptor->address & RECEIVE_USED) == 0) {
      restart_receive(mac);
      return NULL;
    }
    barrier(); // the frame only after its descriptor
    const uint32_t control = descriptor->control;
    const uint16_t length = control & RECEIVE_LENGTH;
    struct pbuf *frame = NULL;
    // A frame in several buffers is longer than any that we take.
    if ((control & RECEIVE_WHOLE) == RECEIVE_WHOLE && length >= 14 && length <= FRAME_SIZE) {
      frame = pbuf_alloc(PBUF_RAW, length, PBUF_POOL);
      if (frame != NULL) pbuf_take(frame, rings[interface].received[mac->next_receive], length);
    }
    barrier(); // done with the buffer before the MAC has it again
    descriptor->address &= ~(uint32_t)RECEIVE_USED;
    mac->next_receive = (mac->next_receive + 1) % RECEIVE_COUNT;
    if (frame == NULL) continue;
    mac->interrupted = true; // there may be more
    return frame;
  }
}

bool ethernet_send(unsigned interface, const struct pbuf *frame) {
  struct mac *mac = &macs[interface];
  struct descriptor *descriptor = &rings[interface].send[mac->next_send];
  if ((descriptor->control & SEND_USED) == 0 || frame->tot_len > FRAME_SIZE) return false;
  pbuf_copy_partial(frame, rings[interface].sent[mac->next_send], frame->tot_len, 0);
  const uint32_t wrap = mac->next_send == SEND_COUNT - 1 ? SEND_WRAP : 0;
  barrier(); // the frame before the descriptor
  descriptor->control = frame->tot_len | SEND_LAST | wrap;
  barrier(); // the descriptor before the start
  register_write(mac->base, NWCTRL, NWCTRL_MDIO | NWCTRL_RECEIVE | NWCTRL_SEND | NWCTRL_START_SEND);
  mac->next_send = (mac->next_send + 1) % SEND_COUNT;
  return true;
}
