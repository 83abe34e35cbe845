// Runs node on a file of ours, for the test runner.

import { spawn } from 'node:child_process';

export interface Run {
  code: number;
  /** stdout and stderr as they came. */
  output: string;
}

/** Process groups that are running. */
const groups = new Set<number>();

/** In a process group of its own: at the time-out, what the program started ends with it. */
export function runNode(command: string[], cwd: string, timeoutMs: number): Promise<Run> {
  const child = spawn(process.execPath, command, { cwd, stdio: ['ignore', 'pipe', 'pipe'], detached: true });
  const group = child.pid as number;
  groups.add(group);
  let output = '';
  for (const stream of [child.stdout, child.stderr]) {
    stream.setEncoding('utf8').on('data', (text: string) => {
      output += text;
    });
  }
  const timer = setTimeout(() => {
    output += `\nstopped after ${timeoutMs / 1000} s\n`;
    endGroup(group);
  }, timeoutMs);
  return new Promise((resolve) => {
    child.on('close', (code) => {
      clearTimeout(timer);
      groups.delete(group);
      resolve({ code: code ?? 1, output });
    });
  });
}

/** Ends all that is running: for Ctrl-C, which does not reach other process groups. */
export function endRuns(): void {
  groups.forEach(endGroup);
}

function endGroup(group: number): void {
  try {
    process.kill(-group, 'SIGKILL');
  } catch {
    // It has just ended.
  }
}
