// What sectors hold in a simulated run: every sector names the write command that wrote it and its own address, and is filled
// with a pattern that follows from the two. So any sector that turns up anywhere tells where it belongs, and a single wrong
// byte shows. The pattern repeats itself within a sector, so that it can be compressed.
//
//   (magic u32 | command u32 | sector u32 | check u32 | pattern to 128 bytes), four times
//
// Command 0 is the image as it was before the run.

export const SECTOR_SIZE = 512;
export const WORDS = SECTOR_SIZE / 4;
const MAGIC = 0x6e626972; // "ribn"
const PERIOD = WORDS / 4;

let zeroFrom = 192;

/** What the image holds before the run: a pattern with runs of zeroes (every fourth run of 64 sectors), or zeroes alone. */
export function setBase(base: 'pattern' | 'zeroes'): void {
  zeroFrom = base === 'pattern' ? 192 : 0;
}

/** Is a sector that nobody wrote all zeroes? */
export function isBaseZero(lba: number): boolean {
  return (lba & 0xff) >= zeroFrom;
}

function seedOf(command: number, lba: number): number {
  let x = Math.imul(command ^ 0x9e3779b9, 0x85ebca6b) ^ Math.imul(lba + 1, 0xc2b2ae35);
  x ^= x >>> 15;
  x = Math.imul(x, 0x2c1b3c6d);
  return (x ^ (x >>> 13)) | 1;
}

/** Fills 128 words at `at` with the content of a sector. */
export function fillSector(words: Uint32Array, at: number, command: number, lba: number): void {
  if (command === 0 && isBaseZero(lba)) {
    words.fill(0, at, at + WORDS);
    return;
  }
  let x = seedOf(command, lba);
  words[at] = MAGIC;
  words[at + 1] = command;
  words[at + 2] = lba;
  words[at + 3] = x;
  for (let i = at + 4; i < at + PERIOD; i++) {
    x ^= x << 13;
    x ^= x >>> 17;
    x ^= x << 5;
    words[i] = x;
  }
  for (let done = PERIOD; done < WORDS; done *= 2) words.copyWithin(at + done, at, at + done);
}

/** The command that wrote the sector at `at`, by what it says itself: 0 for the base image, -1 when it says nothing that makes
 * sense for this address. The pattern is not looked at. */
export function commandOf(words: Uint32Array, at: number, lba: number): number {
  if (words[at] === MAGIC && words[at + 2] === lba) return words[at + 1];
  return words[at] === 0 && isBaseZero(lba) ? 0 : -1;
}

/** Is the sector, byte for byte, what `command` wrote? */
export function isSector(words: Uint32Array, at: number, command: number, lba: number): boolean {
  if (command === 0 && isBaseZero(lba)) {
    for (let i = at; i < at + WORDS; i++) if (words[i] !== 0) return false;
    return true;
  }
  let x = seedOf(command, lba);
  if (words[at] !== MAGIC || words[at + 1] !== command || words[at + 2] !== lba || words[at + 3] !== x >>> 0)
    return false;
  for (let i = at + 4; i < at + PERIOD; i++) {
    x ^= x << 13;
    x ^= x >>> 17;
    x ^= x << 5;
    if (words[i] !== x >>> 0) return false;
  }
  for (let i = at + PERIOD; i < at + WORDS; i++) if (words[i] !== words[i - PERIOD]) return false;
  return true;
}

/** For messages: what a wrong sector looks like. */
export function describeSector(words: Uint32Array, at: number, lba: number): string {
  if (words[at] !== MAGIC) {
    const zero = words.subarray(at, at + WORDS).every((word) => word === 0);
    return zero ? 'zeroes' : `unknown bytes ${words[at].toString(16)} ${words[at + 1].toString(16)}…`;
  }
  const command = words[at + 1];
  const where = words[at + 2];
  const whole = isSector(words, at, command, where) ? '' : ', damaged';
  return `${command === 0 ? 'the base image' : `write #${command}`}${where === lba ? '' : `, of sector ${where}`}${whole}`;
}

/** A view of bytes as words; they must lie at a multiple of 4. */
export function wordsOf(bytes: Uint8Array): Uint32Array {
  return new Uint32Array(bytes.buffer, bytes.byteOffset, bytes.byteLength >> 2);
}
