// Programs that a benchmark runs beside ribbon.

import { execFileSync } from 'node:child_process';
import { Failure } from '../failure.js';

/** Throws a Failure that names the first tool that is not installed, and the Debian packages that have them all. */
export function needTools(tools: readonly string[], packages: string): void {
  for (const tool of tools) {
    try {
      execFileSync('sh', ['-c', `command -v ${tool}`], { stdio: 'ignore' });
    } catch {
      throw new Failure(`this benchmark needs ${tool}: install it (Debian packages ${packages})`);
    }
  }
}
