// What a person is told when something fails: a Failure is an error that was foreseen, its message names the value and the
// way out, and it is shown without a stack. Anything else is a bug and keeps its stack.

export class Failure extends Error {
  override name = 'Failure';
}

/** A reader that has seen enough, `| head`, ends the program as it ends others (SIGPIPE), without a trace of calls. */
export function endWithReader(): void {
  process.stdout.on('error', (error: NodeJS.ErrnoException) => {
    if (error.code !== 'EPIPE') throw error;
    process.exit(128 + 13);
  });
}

export function failureText(error: unknown): string {
  if (error instanceof Failure) return error.message;
  if (error instanceof Error) return error.stack ?? error.message;
  return String(error);
}
