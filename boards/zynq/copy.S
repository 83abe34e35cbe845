// Memory by NEON, 128 bytes a round: what newlib's memcpy() and memset() do in three and twelve times as many instructions.
// d16-d31 are the caller's to lose. Both addresses are word-aligned [V7 A3.2.1], the length is a multiple of 128 and not 0.

  .syntax unified
  .arm
  .fpu neon

  .section .text.copy_rounds, "ax"
  .global copy_rounds
  .type copy_rounds, %function
copy_rounds:                  // r0 target, r1 source, r2 length
  pld [r1, #256]
  pld [r1, #288]
  pld [r1, #320]
  pld [r1, #352]
  vldmia r1!, {d16-d31}
  subs r2, r2, #128
  vstmia r0!, {d16-d31}
  bne copy_rounds
  bx lr
  .size copy_rounds, . - copy_rounds

  .section .text.fill_rounds, "ax"
  .global fill_rounds
  .type fill_rounds, %function
fill_rounds:                  // r0 target, r1 four times the byte, r2 length
  vdup.32 q8, r1
  vmov q9, q8
  vmov q10, q8
  vmov q11, q8
  vmov q12, q8
  vmov q13, q8
  vmov q14, q8
  vmov q15, q8
1:
  subs r2, r2, #128
  vstmia r0!, {d16-d31}
  bne 1b
  bx lr
  .size fill_rounds, . - fill_rounds
