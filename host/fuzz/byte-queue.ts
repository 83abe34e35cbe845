// Bytes in at one end and out at the other, without a copy of all of them for every few that come.

export class ByteQueue {
  #bytes = Buffer.allocUnsafe(4096);
  #start = 0;
  #end = 0;

  get length(): number {
    return this.#end - this.#start;
  }

  push(bytes: Uint8Array): void {
    const needed = this.length + bytes.length;
    if (this.#end + bytes.length > this.#bytes.length) {
      const larger = Buffer.allocUnsafe(Math.max(this.#bytes.length, needed * 2));
      this.#bytes.copy(larger, 0, this.#start, this.#end);
      this.#bytes = larger;
      this.#end -= this.#start;
      this.#start = 0;
    }
    this.#bytes.set(bytes, this.#end);
    this.#end += bytes.length;
  }

  /** The first `length` bytes, which stay; valid until the next push. */
  peek(length: number): Buffer {
    return this.#bytes.subarray(this.#start, this.#start + Math.min(length, this.length));
  }

  /** Takes the first `length` bytes off; valid until the next push. */
  take(length: number): Buffer {
    const bytes = this.peek(length);
    this.#start += bytes.length;
    return bytes;
  }

  clear(): void {
    this.#start = this.#end = 0;
  }
}
