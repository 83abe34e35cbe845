// Where changed blocks come from: the journal, a file being imported, another store.

export interface BlockSource {
  /** Fills `target` with the content of the changed blocks number `first` to `first + count - 1`, 4096 bytes each. */
  read(first: number, count: number, target: Buffer): void;
}
