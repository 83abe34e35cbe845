// Runs one command as one step of the set-up: a line with a turning mark on a terminal, one line when it is done elsewhere;
// what the command printed is shown only when it fails.

import { spawn } from 'node:child_process';
import process from 'node:process';

/** An error that was foreseen: shown without a stack. */
export class SetupFailure extends Error {
  constructor(message, exitCode = 1) {
    super(message);
    this.exitCode = exitCode;
  }
}

const MARKS = ['|', '/', '-', '\\'];
const INTERRUPTED = 130;

/**
 * `environment` is added to ours. `progress` reads the command's descriptor 3 line by line and gives a percentage or null.
 * `silent`: no line when it is done.
 * `uninterruptible`: Ctrl-C waits for the command to end, since half of it is worse than all or nothing.
 */
export async function runStep(
  name,
  command,
  { environment = {}, progress = null, silent = false, uninterruptible = false } = {},
) {
  const started = Date.now();
  const child = spawn(command[0], command.slice(1), {
    env: { ...process.env, ...environment },
    stdio: ['ignore', 'pipe', 'pipe', progress === null ? 'ignore' : 'pipe'],
    // A group of its own: the terminal's Ctrl-C reaches only us, and we decide.
    detached: true,
  });
  let output = '';
  for (const stream of [child.stdout, child.stderr]) {
    stream.setEncoding('utf8').on('data', (text) => {
      output += text;
    });
  }
  let percent = null;
  if (progress !== null) {
    child.stdio[3].setEncoding('utf8').on('data', (text) => {
      for (const line of text.split('\n')) percent = progress(line) ?? percent;
    });
  }
  let interrupted = false;
  const interrupt = () => {
    interrupted = true;
    if (!uninterruptible) killGroup(child);
  };
  process.on('SIGINT', interrupt).on('SIGTERM', interrupt);
  const show = showProgress(name, started, () => (interrupted ? 'stopping after this step' : percentText(percent)));
  const code = await new Promise((resolve) => {
    child.on('error', (error) => {
      output += `${error.message}\n`;
      resolve(-1);
    });
    child.on('close', resolve);
  });
  process.off('SIGINT', interrupt).off('SIGTERM', interrupt);
  show.end(code === 0 && !silent);
  if (interrupted) throw new SetupFailure(`stopped during "${name}"; the next run goes on from there`, INTERRUPTED);
  if (code !== 0) throw new SetupFailure(`${name}: "${command.join(' ')}" failed\n${output.trimEnd()}`);
}

function killGroup(child) {
  try {
    process.kill(-child.pid, 'SIGTERM');
  } catch {
    // It has just ended.
  }
}

function percentText(percent) {
  return percent === null ? '' : `${Math.floor(percent)} %`;
}

/** Keeps one line of the terminal up to date until end(). */
function showProgress(name, started, detail) {
  const terminal = process.stderr.isTTY === true;
  const seconds = () => `${((Date.now() - started) / 1000).toFixed(0)} s`;
  let turn = 0;
  const draw = () => {
    turn = (turn + 1) % MARKS.length;
    process.stderr.write(`\r\x1b[K${MARKS[turn]} ${name} ${detail()} ${seconds()}`);
  };
  if (terminal) draw();
  const timer = terminal ? setInterval(draw, 100) : null;
  return {
    end(announce) {
      if (timer !== null) clearInterval(timer);
      if (terminal) process.stderr.write('\r\x1b[K');
      if (announce) process.stderr.write(`setup: ${name}, ${seconds()}\n`);
    },
  };
}
