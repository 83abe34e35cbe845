// As much of GDB's remote protocol as it takes to put a core somewhere else: packets `$text#checksum`, answered with `+` and a packet.

import net from 'node:net';

const PC = 15;
const CPSR = 25;

/** Makes the core of a running QEMU go on at `address` with the given CPSR. */
export async function jump(socketPath: string, address: number, cpsr: number): Promise<void> {
  const socket = net.connect(socketPath);
  let received = '';
  let wake = (): void => {};
  socket.on('data', (data) => {
    received += data.toString('latin1');
    wake();
  });
  const failed = new Promise<never>((_, reject) => socket.once('error', reject));
  const ask = async (text: string): Promise<string> => {
    const sum = [...text].reduce((total, character) => (total + character.charCodeAt(0)) & 0xff, 0);
    received = '';
    socket.write(`$${text}#${sum.toString(16).padStart(2, '0')}`);
    for (;;) {
      const answer = /\$([^#]*)#[0-9a-f]{2}/.exec(received);
      if (answer !== null) {
        socket.write('+');
        return answer[1];
      }
      await Promise.race([
        failed,
        new Promise<void>((done) => {
          wake = done;
        }),
      ]);
    }
  };
  const register = async (number: number, value: number): Promise<void> => {
    const bytes = Buffer.alloc(4);
    bytes.writeUInt32LE(value);
    const answer = await ask(`P${number.toString(16)}=${bytes.toString('hex')}`);
    if (answer !== 'OK') throw new Error(`QEMU does not set register ${number}: ${answer}`);
  };
  try {
    // The machine stands from the connection on, and goes on at the detaching.
    await ask('?');
    await ask('qXfer:features:read:target.xml:0,40'); // QEMU takes single registers only from who has asked
    await register(CPSR, cpsr);
    await register(PC, address);
    await ask('D');
  } finally {
    socket.destroy();
  }
}
