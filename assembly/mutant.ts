// Known bugs, planted one at a time into test builds, to show that the simulator finds them (`ribbon soak --mutants`). A build
// for cards has MUTANT = 0: every branch on it is decided at compile time, and nothing of it is left.
//
// host/soak/mutants.ts replaces the constant and says what each of them breaks.

export const MUTANT: i32 = 0;

export enum Mutant {
  NONE = 0,
  /** A write is done when it is in the card's RAM, before the server has it. */
  ACKNOWLEDGE_EARLY = 1,
  /** FLUSH CACHE is answered at once. */
  FORGET_FLUSH = 2,
  /** A FLUSH CACHE that has timed out counts as done. */
  FLUSH_TIME_OUT_SUCCEEDS = 3,
  /** STANDBY IMMEDIATE is answered without a flush. */
  STANDBY_UNFLUSHED = 4,
  /** The write cache stays on although the PC has switched it off. */
  WRITE_CACHE_STAYS_ON = 5,
  /** The log is free again when the commit was asked for. */
  RELEASE_BEFORE_COMMIT = 6,
  /** The log is free again when the server has received it; nothing is committed. */
  NEVER_COMMIT = 7,
  /** After a reconnect the two oldest writes are sent in the wrong order. */
  RESEND_REORDERED = 8,
  /** After a reconnect what was sent before is not sent again. */
  RESEND_NOTHING = 9,
  /** An epoch may end inside a command. */
  TEAR_COMMANDS = 10,
  /** An epoch may end before what the server has received already. */
  EPOCH_BEHIND_SENT = 11,
  /** The ring wraps into what is not released yet. */
  RING_OVERRUN = 12,
  /** Every entry counts a sector less in the lag. */
  LAG_TOO_SMALL = 13,
  /** The lag's age is that of the newest write. */
  LAG_TOO_YOUNG = 14,
  /** An epoch's age is wrong after the clock has wrapped. */
  CLOCK_WRAP = 15,
  /** A fill that a write has overtaken is used. */
  STALE_FILL = 16,
  /** Right after a reconnect blocks are fetched before the log has been sent again. */
  STALE_AFTER_RECONNECT = 17,
  /** Blocks are fetched while the server has not received every write. */
  FETCH_EARLY = 18,
  /** A fill whose connection broke counts as complete. */
  LOST_FILL = 19,
  /** A write does not reach the copy in the cache. */
  CACHE_NOT_UPDATED = 20,
  /** A partial write makes its whole block valid. */
  CACHE_PARTIAL_BLOCK = 21,
  /** A command that waits for a server out of reach waits for ever. */
  NO_TIME_OUT = 22,
  /** The last sector of a command of several chunks is not logged. */
  DROP_LAST_SECTOR = 23,
  /** The block behind a failed read is delivered. */
  UNREADABLE_AS_READ = 24,
}
