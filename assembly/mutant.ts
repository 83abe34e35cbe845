// Known bugs, planted one at a time into test builds, to show that the simulator finds them (`ribbon soak --mutants`). A build
// for cards has MUTANT = 0: every branch on it is decided at compile time, and nothing of it is left.
//
// host/soak/mutants.ts replaces the constant and says what each of them breaks.

export const MUTANT: i32 = 0;

export enum Mutant {
  NONE = 0,
  /** A write is done when it is in the card's RAM, before it is stored. */
  ACKNOWLEDGE_EARLY = 1,
  /** FLUSH CACHE is answered at once. */
  FORGET_FLUSH = 2,
  /** A FLUSH CACHE that has timed out counts as done. */
  FLUSH_TIME_OUT_SUCCEEDS = 3,
  /** STANDBY IMMEDIATE is answered without a flush. */
  STANDBY_UNFLUSHED = 4,
  /** The write cache stays on although the PC has switched it off. */
  WRITE_CACHE_STAYS_ON = 5,
  /** A record counts as stored when it is written, before the store has flushed it. */
  STORED_WITHOUT_FLUSH = 6,
  /** The log is free again when the server has received it; nothing is committed. */
  NEVER_COMMIT = 7,
  /** After a reconnect what was sent before is not sent again. */
  RESEND_NOTHING = 8,
  /** An epoch may end inside a command. */
  TEAR_COMMANDS = 9,
  /** Records are sent before they are stored. */
  SEND_UNSTORED = 10,
  /** After a power-on the first epoch may end anywhere. */
  SHORT_FIRST_EPOCH = 11,
  /** A command that a loss of power cut off counts as far as it came. */
  KEEP_CUT_COMMANDS = 12,
  /** Recovery believes a record without looking at its data. */
  SKIP_REPLAY_CHECKSUM = 13,
  /** A block read from the store is believed. */
  SKIP_READ_CHECKSUM = 14,
  /** A segment is given up although the server does not have all of it. */
  REUSE_DIRTY_SEGMENT = 15,
  /** After a merge an epoch may end before what was merged. */
  FORGET_MERGE_RULE = 16,
  /** A short write makes its whole block valid. */
  PARTIAL_BLOCK_VALID = 17,
  /** Every write counts a sector less in the lag. */
  LAG_TOO_SMALL = 18,
  /** A fill that a write has overtaken is used. */
  STALE_FILL = 19,
  /** A fill whose connection broke counts as complete. */
  LOST_FILL = 20,
  /** A write does not reach the copy in the cache. */
  CACHE_NOT_UPDATED = 21,
  /** A command that waits for a server out of reach waits for ever. */
  NO_TIME_OUT = 22,
  /** Of several copies in the log the first one found counts after a power-on. */
  OLDEST_COPY_WINS = 23,
  /** What lies behind the torn end of the log is not outdated at power-on. */
  NO_MARK = 24,
  /** What others have changed is not asked for. */
  IGNORE_CHANGES = 25,
  /** A block that both sides have changed goes on top. */
  MERGE_CONFLICTS = 26,
  /** What the server says to have committed is sent again. */
  RESEND_COMMITTED = 27,
  /** What was forgotten comes back with the next power-on. */
  FORGET_NOTHING = 28,
  /** A command that a power-on has undone comes back with the next one. */
  VOID_RETURNS = 29,
  /** Something is committed in a session of which the store does not know yet. */
  SESSION_UNKNOWN = 30,
}
