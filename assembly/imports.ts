// The firmware's whole view of the world. Time, chance and I/O come through here and through nothing else, so that one
// binary runs on a board, in QEMU and in the simulator, and a simulated run depends on its seed alone.
//
// boards/runtime/imports.c and host/card/imports.ts implement the same list in the same order. Arguments are scalars and
// (pointer, length) pairs into linear memory; the runtime checks every pair. No import calls back into the firmware.

// Clock

/** Milliseconds since an arbitrary start; wraps at 2^32, so compare by subtraction. Never runs backwards. */
export declare function clock_ms(): u32;

// Chance

/** 32 random bits. */
export declare function random_u32(): u32;

// Log

/** One line of UTF-8 text without a line end; `level` is a LogLevel. */
export declare function log_write(level: u32, text: usize, length: u32): void;

// Settings

/** Copies the settings record (SPEC.md "Settings") to `target`; returns its length in bytes, 0 when there is none. */
export declare function settings_read(target: usize, capacity: u32): u32;

// Front end

/** Rings the front end's doorbell: the register block holds a new order (SPEC.md "Front end"). */
export declare function front_end_ring(): void;

// Network: byte streams. `path` is an index into the runtime's table of network paths, which also holds the keys.

export enum NetState {
  /** Not open, or closed by the peer and everything received is taken. */
  CLOSED = 0,
  CONNECTING = 1,
  OPEN = 2,
}

/** Starts to open a stream. Any earlier stream of that number is closed first. CLOSED at once: there is no such path, or nothing leads there
 * while another path can be used. */
export declare function net_open(stream: u32, path: u32): void;

/** Closes a stream and drops whatever was not sent or received yet. */
export declare function net_close(stream: u32): void;

/** The stream's state, a NetState. */
export declare function net_state(stream: u32): u32;

/** Starts the TLS handshake on an open stream: its state is CONNECTING until the peer is authenticated. */
export declare function net_start_tls(stream: u32): void;

/** Moves up to `capacity` received bytes to `target`; returns how many, 0 when there are none now. */
export declare function net_receive(stream: u32, target: usize, capacity: u32): u32;

/** Takes up to `length` bytes to send; returns how many, 0 when the stream's send buffer is full. */
export declare function net_send(stream: u32, source: usize, length: u32): u32;

// Local store: a block device, in blocks of 4096 bytes (SPEC.md "Local store"). Every operation has a tag, 0 to 31, that no
// other one in flight has, and ends by being reported once. The memory belongs to the operation until then.

/** The device's size in blocks; 0 when there is none. It does not change while the card has power. */
export declare function store_size(): u32;

/** Starts to read `count` blocks from `block` on to `target`. */
export declare function store_read(tag: u32, block: u32, count: u32, target: usize): void;

/** Starts to write. Reads that start after it has ended see it; it is durable once a flush that started after that has ended. */
export declare function store_write(tag: u32, block: u32, count: u32, source: usize): void;

/** Starts to make durable every write that has ended. */
export declare function store_flush(tag: u32): void;

/** Says that nobody needs the content of these blocks any more. */
export declare function store_trim(tag: u32, block: u32, count: u32): void;

/** Reports one operation that has ended since: its tag, plus 256 when it failed. 0xFFFFFFFF when there is none. */
export declare function store_completed(): u32;

// Accelerators

/** CRC-32C (Castagnoli) of `length` bytes, going on from `seed` (0 to start). */
export declare function crc32c(seed: u32, source: usize, length: u32): u32;

/** SHA-256 of `length` bytes, 32 bytes to `target`. */
export declare function sha256(source: usize, length: u32, target: usize): void;

/** Raw DEFLATE (RFC 1951) of `length` bytes, at most 128 KiB, to `target`; returns its length, 0 when it is more than
 * `capacity`. */
export declare function deflate(source: usize, length: u32, target: usize, capacity: u32): u32;

/** What `length` bytes of raw DEFLATE stand for; returns its length, 0xFFFFFFFF when they stand for nothing or for more than
 * `capacity` bytes. */
export declare function inflate(source: usize, length: u32, target: usize, capacity: u32): u32;
