// The output of one connection: replies collect in a buffer until the batch of requests that they answer is worked off.

const OUTPUT_SIZE = 256 * 1024;

export class NbdOutput {
  /** Where reserve() has made room; another one after each reserve() and flush(). */
  buffer: Buffer = NONE;
  private fill = 0;
  private readonly spare: Buffer[] = [];
  private readonly spareLarge: Buffer[] = [];

  /** `large`: the size of the buffers for replies that do not fit the usual ones. */
  constructor(
    private readonly large: number,
    private readonly send: (bytes: Buffer, sent: () => void) => void,
  ) {}

  /** Bytes that wait to be sent. */
  get length(): number {
    return this.fill;
  }

  /** Makes room for `length` bytes and returns where in `buffer` they begin. */
  reserve(length: number): number {
    if (this.fill + length > this.buffer.length) {
      this.flush();
      if (length > OUTPUT_SIZE) this.buffer = this.spareLarge.pop() ?? Buffer.allocUnsafeSlow(this.large);
      else this.buffer = this.spare.pop() ?? Buffer.allocUnsafeSlow(OUTPUT_SIZE);
      if (length > this.buffer.length) this.buffer = Buffer.allocUnsafeSlow(length);
    }
    const at = this.fill;
    this.fill += length;
    return at;
  }

  /** Takes back the last `length` reserved bytes. */
  takeBack(length: number): void {
    this.fill -= length;
  }

  flush(): void {
    const buffer = this.buffer;
    if (this.fill === 0) return;
    const bytes = buffer.subarray(0, this.fill);
    this.buffer = NONE;
    this.fill = 0;
    this.send(bytes, () => {
      const pool = buffer.length === OUTPUT_SIZE ? this.spare : this.spareLarge;
      if (pool.length < 2 && buffer.length <= this.large) pool.push(buffer);
    });
  }

  /** Keeps what is there back until the returned function is called, while other replies leave; it sends those first. */
  hold(): () => void {
    const { buffer, fill } = this;
    this.buffer = NONE;
    this.fill = 0;
    return () => {
      this.flush();
      this.buffer = buffer;
      this.fill = fill;
    };
  }
}

const NONE = Buffer.alloc(0);
