// as-pect's configuration: `asp --config build/tests/as-pect/config.js --as-config tests/as-pect/asconfig.json SPEC…`.
// The command line names the specs; tools/firmware-specs.ts finds them.

import type { instantiate as Instantiate } from '@assemblyscript/loader';
import { World } from './world.js';

/** As tests/as-pect/asconfig.json: 0 to 32 MiB for the firmware's arenas and the spec's scratch, the heap above. */
const MEMORY_PAGES = 768;

type Imports = Record<string, unknown>;

export default {
  entries: [],
  include: [],
  disclude: [],
  reporter: 'build/tests/as-pect/reporter.js',
  async instantiate(
    _memory: WebAssembly.Memory,
    createImports: (imports: Imports) => WebAssembly.Imports,
    instantiate: typeof Instantiate,
    binary: Uint8Array<ArrayBuffer>,
  ) {
    const memory = new WebAssembly.Memory({ initial: MEMORY_PAGES });
    const world = new World(memory);
    const imports = createImports({
      env: { memory },
      imports: world.firmwareImports(),
      world: world.specImports(),
    });
    return instantiate(binary, imports);
  },
};
