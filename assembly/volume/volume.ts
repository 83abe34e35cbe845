// The volume: the PC's LBA space, above whatever holds the sectors. `ata` has one request at a time here, as an IDE disk
// without queued commands has one command; the volume answers by state, never by callback.

export enum VolumeState {
  IDLE = 0,
  PENDING = 1,
  DONE = 2,
  /** The sectors cannot be had now: the server is out of reach and they are not on the card. `volumeFailedLba()` is the first. */
  UNCORRECTABLE = 3,
  /** The write cannot be kept safe: device fault. */
  FAULT = 4,
}
