// Tools that a test runs: without one of them it is skipped, with the reason.

import { execFileSync } from 'node:child_process';

export function has(tool: string): boolean {
  try {
    execFileSync('sh', ['-c', `command -v ${tool}`], { stdio: 'ignore' });
    return true;
  } catch {
    return false;
  }
}

export function needs(...tools: string[]): { skip?: string } {
  const missing = tools.filter((tool) => !has(tool));
  return missing.length === 0 ? {} : { skip: `not installed: ${missing.join(', ')}` };
}
