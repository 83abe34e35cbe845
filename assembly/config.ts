// Every limit of the firmware, with the assertions that tie them together.

export const SECTOR_SIZE: u32 = 512;
export const BLOCK_SIZE: u32 = 4096;
export const SECTORS_PER_BLOCK: u32 = BLOCK_SIZE / SECTOR_SIZE;

/** The most sectors in one DRQ data block of READ/WRITE MULTIPLE ([ATA-6] 8.15, word 47). */
export const MULTIPLE_SECTORS_MAX: u32 = 16;

/** 2^29 blocks of 4 KiB = 2 TiB, the largest image. */
export const IMAGE_BLOCKS_MAX: u32 = 1 << 29;

/** NBD requests in flight. Enough to fill 100 Mbit/s * 40 ms = 500 KB with requests of 64 KiB. */
export const NBD_REQUESTS_MAX: u32 = 16;
/** The largest NBD request that the card sends: one half of the data buffer. */
export const NBD_REQUEST_SIZE_MAX: u32 = 131072;

/** Network paths to the image server that the runtime may have (SPEC.md "Network paths"). */
export const NET_PATHS_MAX: u32 = 4;

/** Back-off between connection attempts: doubles from the first to the second, with up to 50 % of chance added. */
export const RECONNECT_MIN_MS: u32 = 100;
export const RECONNECT_MAX_MS: u32 = 10000;
/** A connection that lasted this long before the server ended it does not lengthen the back-off. */
export const RECONNECT_TOLD_MS: u32 = 1000;
/** How long a card that is switched on waits to learn what others have changed before it shows its disk. PCs wait 10 s and more for
 * theirs. */
export const LEARN_PATIENCE_MS: u32 = 3000;
/** After so many attempts that failed it does not wait any longer: the first may have been the path that is down. */
export const LEARN_ATTEMPTS: u32 = 2;
/** A connection that brings nothing for this long although something is outstanding is given up. */
export const NBD_SILENCE_TIMEOUT_MS: u32 = 10000;

assert(BLOCK_SIZE % SECTOR_SIZE == 0);
assert(NBD_REQUEST_SIZE_MAX % BLOCK_SIZE == 0);
