// Writes a cpio archive in the "newc" format, as the Linux kernel unpacks it (Documentation/driver-api/early-userspace/
// buffer-format.rst): device nodes and owners need no privileges this way, and the same input gives the same bytes.

const TYPE_FOLDER = 0o040000;
const TYPE_FILE = 0o100000;
const TYPE_LINK = 0o120000;
const TYPE_CHARACTER_DEVICE = 0o020000;

export class CpioArchive {
  readonly #parts: Buffer[] = [];
  readonly #folders = new Set<string>();
  #entries = 0;

  /** `name` is relative to the root; the folders above it are added by themselves. */
  addFile(name: string, content: Buffer | string, mode = 0o644): void {
    this.#addParents(name);
    this.#add(name, TYPE_FILE | mode, Buffer.from(content as string));
  }

  addFolder(name: string, mode = 0o755): void {
    if (this.#folders.has(name)) return;
    this.#addParents(name);
    this.#folders.add(name);
    this.#add(name, TYPE_FOLDER | mode, Buffer.alloc(0));
  }

  addLink(name: string, target: string): void {
    this.#addParents(name);
    this.#add(name, TYPE_LINK | 0o777, Buffer.from(target));
  }

  addCharacterDevice(name: string, major: number, minor: number, mode = 0o600): void {
    this.#addParents(name);
    this.#add(name, TYPE_CHARACTER_DEVICE | mode, Buffer.alloc(0), major, minor);
  }

  finish(): Buffer {
    this.#add('TRAILER!!!', 0, Buffer.alloc(0));
    return Buffer.concat(this.#parts);
  }

  #addParents(name: string): void {
    const slash = name.lastIndexOf('/');
    if (slash > 0) this.addFolder(name.slice(0, slash));
  }

  /** Header fields are 8 hexadecimal digits each; name and content are padded to 4 bytes. */
  #add(name: string, mode: number, content: Buffer, major = 0, minor = 0): void {
    this.#entries++;
    const links = (mode & TYPE_FOLDER) !== 0 ? 2 : 1;
    const nameBytes = Buffer.from(`${name}\0`);
    const fields = [this.#entries, mode, 0, 0, links, 0, content.length, 0, 0, major, minor, nameBytes.length, 0];
    const header = Buffer.from(`070701${fields.map((field) => field.toString(16).padStart(8, '0')).join('')}`);
    this.#parts.push(pad(Buffer.concat([header, nameBytes])), pad(content));
  }
}

function pad(part: Buffer): Buffer {
  return Buffer.concat([part, Buffer.alloc(-part.length & 3)]);
}
