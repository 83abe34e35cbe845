// CRC-32C (Castagnoli polynomial 1EDC6F41h, reflected), as the firmware's `crc32c` import gives it.

const TABLE = new Int32Array(256 * 4);
for (let i = 0; i < 256; i++) {
  let crc = i;
  for (let bit = 0; bit < 8; bit++) crc = crc & 1 ? (crc >>> 1) ^ 0x82f63b78 : crc >>> 1;
  TABLE[i] = crc;
}
for (let i = 0; i < 256; i++) {
  for (let slice = 1; slice < 4; slice++) {
    const crc = TABLE[(slice - 1) * 256 + i];
    TABLE[slice * 256 + i] = (crc >>> 8) ^ TABLE[crc & 0xff];
  }
}

/** CRC of `data`, going on from `seed`, which is an earlier result or 0. */
export function crc32c(data: Uint8Array, seed = 0): number {
  let crc = ~seed;
  let i = 0;
  for (const end = data.length - 3; i < end; i += 4) {
    crc ^= data[i] | (data[i + 1] << 8) | (data[i + 2] << 16) | (data[i + 3] << 24);
    crc =
      TABLE[768 + (crc & 0xff)] ^
      TABLE[512 + ((crc >>> 8) & 0xff)] ^
      TABLE[256 + ((crc >>> 16) & 0xff)] ^
      TABLE[crc >>> 24];
  }
  for (; i < data.length; i++) crc = TABLE[(crc ^ data[i]) & 0xff] ^ (crc >>> 8);
  return ~crc >>> 0;
}
