// The output of one connection: replies collect in a buffer until the batch of requests that they answer is worked off.
//
// What has been sent lies in the buffer until the transport has done with it; the replies after it go behind it, so that one buffer
// serves a transport that takes its time, and from the start again when nothing of it is under way.

const OUTPUT_SIZE = 256 * 1024;
const SPARES_MAX = 2;

interface OutputBuffer {
  bytes: Buffer;
  /** Parts that the transport still has. */
  underWay: number;
  /** Replies go into it; else it is given back when nothing is under way. */
  open: boolean;
}

export class NbdOutput {
  /** Where reserve() has made room; another one after each reserve(). */
  buffer: Buffer = NONE.bytes;
  private current: OutputBuffer = NONE;
  /** What is to be sent begins and ends here. */
  private begin = 0;
  private fill = 0;
  private readonly spare: OutputBuffer[] = [];
  private readonly spareLarge: OutputBuffer[] = [];

  /** `large`: the size of the buffers for replies that do not fit the usual ones. */
  constructor(
    private readonly large: number,
    private readonly send: (bytes: Buffer, sent: () => void) => void,
  ) {}

  /** Bytes that wait to be sent. */
  get length(): number {
    return this.fill - this.begin;
  }

  /** Makes room for `length` bytes and returns where in `buffer` they begin. */
  reserve(length: number): number {
    if (this.fill + length > this.buffer.length) this.replace(length);
    const at = this.fill;
    this.fill += length;
    return at;
  }

  /** Takes back the last `length` reserved bytes. */
  takeBack(length: number): void {
    this.fill -= length;
  }

  flush(): void {
    if (this.fill === this.begin) return;
    const sending = this.current;
    const bytes = sending.bytes.subarray(this.begin, this.fill);
    this.begin = this.fill;
    sending.underWay++;
    this.send(bytes, () => {
      sending.underWay--;
      this.checkDone(sending);
    });
  }

  /** Keeps what is there back until the returned function is called, while other replies leave; it sends those first. */
  hold(): () => void {
    const { current, begin, fill } = this;
    this.use(NONE, 0, 0);
    return () => {
      this.flush();
      this.close();
      this.use(current, begin, fill);
    };
  }

  private replace(length: number): void {
    this.flush();
    this.close();
    const size = length > OUTPUT_SIZE ? this.large : OUTPUT_SIZE;
    const spare = (size === OUTPUT_SIZE ? this.spare : this.spareLarge).pop();
    const next = spare ?? { bytes: Buffer.allocUnsafeSlow(Math.max(size, length)), underWay: 0, open: true };
    next.open = true;
    this.use(next, 0, 0);
  }

  private use(buffer: OutputBuffer, begin: number, fill: number): void {
    this.current = buffer;
    this.buffer = buffer.bytes;
    this.begin = begin;
    this.fill = fill;
  }

  /** Nothing more goes into the current buffer. */
  private close(): void {
    if (this.current === NONE) return;
    this.current.open = false;
    this.checkDone(this.current);
  }

  private checkDone(buffer: OutputBuffer): void {
    if (buffer.underWay > 0) return;
    if (buffer.open) {
      if (buffer === this.current && this.fill === this.begin) {
        this.begin = 0;
        this.fill = 0;
      }
      return;
    }
    const pool = buffer.bytes.length === OUTPUT_SIZE ? this.spare : this.spareLarge;
    if (pool.length < SPARES_MAX && buffer.bytes.length <= this.large) pool.push(buffer);
  }
}

const NONE: OutputBuffer = { bytes: Buffer.alloc(0), underWay: 0, open: false };
