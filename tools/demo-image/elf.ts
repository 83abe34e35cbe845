// The little that is needed of the ELF format: which shared libraries a 32-bit program asks for, and which other modules
// and kernel a kernel module asks for.

const PROGRAM_HEADER_SIZE = 32;
const PT_LOAD = 1;
const PT_DYNAMIC = 2;
const DT_NULL = 0;
const DT_NEEDED = 1;
const DT_STRTAB = 5;

/** The sonames in DT_NEEDED of a 32-bit little-endian program or library; none for a static one. */
export function neededLibraries(file: Buffer): string[] {
  if (file.readUInt32BE(0) !== 0x7f454c46 || file[4] !== 1 || file[5] !== 1) throw new Error('not a 32-bit ELF file');
  const programHeaders = file.readUInt32LE(28);
  const programHeaderCount = file.readUInt16LE(44);
  const loads: { address: number; offset: number; size: number }[] = [];
  let dynamic: { offset: number; size: number } | null = null;
  for (let i = 0; i < programHeaderCount; i++) {
    const header = programHeaders + i * PROGRAM_HEADER_SIZE;
    const segment = {
      offset: file.readUInt32LE(header + 4),
      address: file.readUInt32LE(header + 8),
      size: file.readUInt32LE(header + 16),
    };
    const type = file.readUInt32LE(header);
    if (type === PT_LOAD) loads.push(segment);
    if (type === PT_DYNAMIC) dynamic = segment;
  }
  if (dynamic === null) return [];
  const names: number[] = [];
  let stringTable = 0;
  for (let at = dynamic.offset; at < dynamic.offset + dynamic.size; at += 8) {
    const tag = file.readUInt32LE(at);
    if (tag === DT_NULL) break;
    if (tag === DT_NEEDED) names.push(file.readUInt32LE(at + 4));
    if (tag === DT_STRTAB) stringTable = file.readUInt32LE(at + 4);
  }
  const load = loads.find((segment) => stringTable >= segment.address && stringTable < segment.address + segment.size);
  if (load === undefined) throw new Error('the string table lies in no segment');
  const strings = stringTable - load.address + load.offset;
  return names.map((name) => file.toString('latin1', strings + name, file.indexOf(0, strings + name)));
}

/** The modules that must be loaded before this one: `depends=` in its .modinfo section. */
export function moduleDependencies(file: Buffer): string[] {
  const key = '\0depends=';
  const at = file.indexOf(key, 0, 'latin1');
  if (at < 0) return [];
  const text = file.toString('latin1', at + key.length, file.indexOf(0, at + key.length));
  return text.split(',').filter((name) => name !== '');
}
