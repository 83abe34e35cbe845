// From reset, or from a boot loader, to main(). [A9] = ARM Cortex-A9 TRM (DDI 0388), [V7] = ARM ARM v7-A/R (DDI 0406),
// [UG585] = Zynq-7000 TRM.
//
// Nothing is taken from the boot loader but DDR and clocks that run (ps7_init, by FSBL or U-Boot's SPL): caches and MMU may be on or off.

  .syntax unified
  .arm

  .section .vectors, "ax"
  .balign 32
  .global vectors
vectors:
  ldr pc, =_start
  ldr pc, =undefined_entry
  ldr pc, =_start             // SVC is never used
  ldr pc, =prefetch_entry
  ldr pc, =data_entry
  b .
  ldr pc, =irq_entry
  b .                         // FIQ is never enabled
  .ltorg

  .section .text.startup, "ax"
  .global _start
_start:
  cpsid if, #0x13             // SVC mode, whatever the mode was

  // One core runs; the other waits for an event that never comes [UG585 6.1.10].
  mrc p15, 0, r0, c0, c0, 5
  tst r0, #3
1:
  wfene
  bne 1b

  // Caches off first: what a boot loader left dirty in L1 must reach memory, what a cold reset left undefined must not
  // [A9 4.3.9, 7.1]: clean and invalidate by set and way if the data cache was on, invalidate only if it was off.
  mrc p15, 0, r4, c1, c0, 0
  bic r0, r4, #0x1000         // I
  bic r0, r0, #0x0800         // Z
  bic r0, r0, #0x0005         // C, M
  bic r0, r0, #0x2000         // V: vectors where VBAR says
  mcr p15, 0, r0, c1, c0, 0
  isb
  mov r1, #0                  // set, way: 32 KiB, 4 ways, 32-byte lines = 256 sets [A9 4.3.4]
2:
  mov r2, #0
3:
  orr r3, r1, r2, lsl #30
  tst r4, #4
  mcreq p15, 0, r3, c7, c6, 2   // DCISW
  mcrne p15, 0, r3, c7, c14, 2  // DCCISW
  add r2, r2, #1
  cmp r2, #4
  blo 3b
  add r1, r1, #32
  cmp r1, #0x2000
  blo 2b
  dsb
  mov r0, #0
  mcr p15, 0, r0, c7, c5, 0   // ICIALLU
  mcr p15, 0, r0, c7, c5, 6   // BPIALL
  mcr p15, 0, r0, c8, c7, 0   // TLBIALL
  dsb
  isb

  ldr r0, =vectors
  mcr p15, 0, r0, c12, c0, 0  // VBAR

  // Stacks: the abort modes get one each, so that a stack overflow of the main program can still be reported. IRQ saves to
  // the main stack (see irq_entry).
  cps #0x17
  ldr sp, =abort_stack_top
  cps #0x1b
  ldr sp, =abort_stack_top
  cps #0x12
  ldr sp, =irq_stack_top
  cps #0x13
  ldr sp, =stack_top

  // VFP and NEON: full access for the privileged modes, then enable [V7 B4.1.40, B6.1.39].
  mrc p15, 0, r0, c1, c0, 2
  orr r0, r0, #0x00f00000
  mcr p15, 0, r0, c1, c0, 2
  isb
  mov r0, #0x40000000
  vmsr fpexc, r0

  ldr r0, =bss_start
  ldr r1, =bss_end
  mov r2, #0
4:
  cmp r0, r1
  strlo r2, [r0], #4
  blo 4b

  bl mmu_enable
  bl main
5:
  wfi
  b 5b

// IRQ: saved on the main stack, so that the watchdog can turn the interrupted program elsewhere by changing the saved pc.
// The frame is struct irq_frame in irq.h.
irq_entry:
  sub lr, lr, #4
  srsdb sp!, #0x13
  cps #0x13
  push {r0-r3, r12, lr}
  mov r0, sp
  and r1, sp, #4              // the ABI wants the stack 8-byte aligned at a call
  sub sp, sp, r1
  push {r1, lr}
  bl irq_dispatch
  pop {r1, lr}
  add sp, sp, r1
  pop {r0-r3, r12, lr}
  rfeia sp!

undefined_entry:
  mov r0, #1
  sub r1, lr, #4
  b fault
prefetch_entry:
  mov r0, #2
  sub r1, lr, #4
  b fault
data_entry:
  mov r0, #3
  sub r1, lr, #8
fault:
  bl native_fault             // records and resets
  b .
  .ltorg
