// The memory map that the core sees: 1 MB sections [V7 B3.5.1]. Code and data cached, DMA memory not, peripherals as
// Device memory, and everything that nobody should touch not mapped at all, so that it faults.
//
// Who else reads and writes DDR, and why they see what the core sees:
//   - Ethernet's DMA: memory that is not cached.
//   - SD's DMA: goes past the caches; the driver cleans and invalidates what it moves (store_sd.c).
//   - the front end in programmable logic: linear memory, through the accelerator coherency port. Its accesses are looked up in
//     L1 by the snoop control unit when they are marked as cached and shared [UG585 3.5.1, A9-MP 2.4]; for that the SCU is on, the
//     core takes part (ACTLR.SMP), and the region is shareable: with ACTLR.SMP clear a shareable region would not be cached at
//     all [A9 4.3.10], without the attribute nothing would be looked up.
//   - L2 (PL310): off, and cleaned first should a boot loader have left it on. The port would go through it, the other engines do
//     not [UG585 3.4], and L1 with what a card does is enough: the budget of `ribbon bench arm` is met without it.

#include "mmu.h"

#include "registers.h"

enum section {
  FAULT = 0,
  // Section, domain 0, AP[2:0] = 011 (full access), as [V7 B3.5.1] has the bits; TEX, C, B as [V7 B3.8.2].
  SECTION = 0x2 | 3 << 10,
  NEVER_EXECUTE = 1 << 4,
  SHAREABLE = 1 << 16,
  WRITE_BACK = 1 << 12 | 1 << 3 | 1 << 2,       // TEX 001, C 1, B 1: normal, write-back, write-allocate
  NOT_CACHED = 1 << 12,                         // TEX 001, C 0, B 0: normal, not cached
  DEVICE = 1 << 2,                              // TEX 000, C 0, B 1: shareable Device
};

enum {
  MB = 1 << 20,
  PROGRAM = SECTION | WRITE_BACK,
  DATA = SECTION | WRITE_BACK | NEVER_EXECUTE,
  DMA = SECTION | NOT_CACHED | NEVER_EXECUTE,
  SHARED = SECTION | WRITE_BACK | SHAREABLE | NEVER_EXECUTE,
  PERIPHERAL = SECTION | DEVICE | NEVER_EXECUTE,
};

enum { SCU_CONTROL = 0x00, SCU_INVALIDATE = 0x0c };
enum { L2_CONTROL = 0x100, L2_SYNC = 0x730, L2_CLEAN_INVALIDATE_WAY = 0x7fc, L2_WAYS = 0xff };

static uint32_t table[4096] __attribute__((aligned(16384)));
extern uint8_t shared_start[], shared_end[];

static void map(uint32_t first, uint32_t last, uint32_t attributes) {
  for (uint32_t megabyte = first / MB; megabyte <= last / MB; megabyte++) table[megabyte] = megabyte * MB | attributes;
}

/// [PL310] 3.3.10: clean and invalidate every way, wait, sync, then off.
static void l2_disable(void) {
  if ((register_read(L2_BASE, L2_CONTROL) & 1) == 0) return;
  register_write(L2_BASE, L2_CLEAN_INVALIDATE_WAY, L2_WAYS);
  while (register_read(L2_BASE, L2_CLEAN_INVALIDATE_WAY) & L2_WAYS) continue;
  register_write(L2_BASE, L2_SYNC, 0);
  barrier();
  register_write(L2_BASE, L2_CONTROL, 0);
  barrier();
}

/// Before caches and MMU [A9 4.3.10]: the SCU's copies of the L1 tags invalidated, the SCU on, then the core into its domain.
static void coherency_enable(void) {
  uint32_t auxiliary;
  register_write(SCU_BASE, SCU_INVALIDATE, 0xffff);
  register_write(SCU_BASE, SCU_CONTROL, register_read(SCU_BASE, SCU_CONTROL) | 1);
  __asm__ volatile("mrc p15, 0, %0, c1, c0, 1" : "=r"(auxiliary));
  __asm__ volatile("mcr p15, 0, %0, c1, c0, 1; isb" ::"r"(auxiliary | 1 << 6 | 1 << 0)); // SMP, FW
}

void mmu_enable(void) {
  l2_disable();
  coherency_enable();
  // zynq.ld has the reasons.
  map(0x00100000, 0x003fffff, PROGRAM);
  map(0x00400000, 0x007fffff, DATA);
  map(0x00900000, 0x009fffff, DATA);
  map(0x00a00000, 0x00bfffff, DMA);
  map((uint32_t)shared_start, (uint32_t)shared_end - 1, SHARED);
  map(0xe0000000, 0xe02fffff, PERIPHERAL);
  map(0xf8000000, 0xf8ffffff, PERIPHERAL);
  map(0xfc000000, 0xfdffffff, PERIPHERAL);

  __asm__ volatile("mcr p15, 0, %0, c3, c0, 0" ::"r"(1));                    // DACR: domain 0 is checked against AP
  __asm__ volatile("mcr p15, 0, %0, c2, c0, 2" ::"r"(0));                    // TTBCR: TTBR0 for all
  __asm__ volatile("mcr p15, 0, %0, c2, c0, 0" ::"r"((uint32_t)table));      // TTBR0; walks are not cached
  __asm__ volatile("dsb; mcr p15, 0, %0, c8, c7, 0; dsb; isb" ::"r"(0));     // TLBIALL
  uint32_t control;
  __asm__ volatile("mrc p15, 0, %0, c1, c0, 0" : "=r"(control));
  // I, Z (branch prediction), C, M on; A off: the compiler may use unaligned accesses to normal memory; TRE off; EE off.
  control |= 1 << 12 | 1 << 11 | 1 << 2 | 1 << 0;
  control &= ~(1u << 28 | 1u << 25 | 1u << 1);
  __asm__ volatile("mcr p15, 0, %0, c1, c0, 0; isb" ::"r"(control));
}

// Maintenance by address [V7 B4.2.1]: L1 lines are 32 bytes. A range that a device fills must own its lines whole, or what
// lies beside it would be lost.

void cache_clean(const void *start, uint32_t length) {
  const uint32_t end = (uint32_t)start + length;
  // Eight lines a round. Cleaning a few beside the range does no harm.
  for (uint32_t line = (uint32_t)start & ~31u; line < end;) {
    __asm__ volatile(".rept 8\n mcr p15, 0, %0, c7, c10, 1\n add %0, %0, #32\n .endr" : "+r"(line)::"memory"); // DCCMVAC
  }
  barrier();
}

void cache_invalidate(const void *start, uint32_t length) {
  const uint32_t end = (uint32_t)start + length;
  for (uint32_t line = (uint32_t)start & ~31u; line < end; line += 32) {
    __asm__ volatile("mcr p15, 0, %0, c7, c14, 1" ::"r"(line) : "memory"); // DCCIMVAC: clean too, for a shared first line
  }
  barrier();
}
