// One command to a running QEMU through its QMP socket: JSON lines; a greeting, the capabilities, then commands.

import net from 'node:net';
import { createInterface } from 'node:readline';

interface Reply {
  QMP?: unknown;
  return?: unknown;
  error?: { desc: string };
}

export async function qmp(
  socketPath: string,
  command: string,
  parameters: Record<string, unknown> = {},
): Promise<unknown> {
  const socket = net.connect(socketPath);
  try {
    const replies = createInterface({ input: socket })[Symbol.asyncIterator]();
    const next = async (): Promise<Reply> => {
      for (;;) {
        const { value, done } = await replies.next();
        if (done) throw new Error('QEMU has closed its QMP socket');
        const reply = JSON.parse(value) as Reply;
        // Events come in between and are not for us.
        if (reply.QMP !== undefined || reply.return !== undefined || reply.error !== undefined) return reply;
      }
    };
    const ask = async (execute: string, args: Record<string, unknown>): Promise<unknown> => {
      socket.write(`${JSON.stringify({ execute, arguments: args })}\n`);
      const reply = await next();
      if (reply.error !== undefined) throw new Error(`QEMU refuses ${execute}: ${reply.error.desc}`);
      return reply.return;
    };
    await next();
    await ask('qmp_capabilities', {});
    return await ask(command, parameters);
  } finally {
    socket.destroy();
  }
}
