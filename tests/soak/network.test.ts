// The simulated network has the manners of TCP: bytes arrive whole and in order, or the connection breaks.

import assert from 'node:assert/strict';
import { test } from 'node:test';
import { type Connection, NetState, type NetworkSettings, SimulatedNetwork } from '../../host/soak/network.js';
import { MS, SECOND, World } from '../../host/soak/world.js';

const SETTINGS: NetworkSettings = {
  latencyUs: 5 * MS,
  jitterUs: 2 * MS,
  bytesPerSecond: 1_000_000,
  delivery: 'pieces',
  windowBytes: 16 << 10,
};

/** A network whose server keeps what it gets and sends `reply` at once. */
function rig(settings: Partial<NetworkSettings> = {}, reply: Uint8Array = new Uint8Array(0)) {
  const world = new World(7);
  const network = new SimulatedNetwork(world, { ...SETTINGS, ...settings });
  const server = { connection: null as Connection | null, got: [] as Buffer[], ended: 0, sent: 0 };
  const push = (): void => {
    while (server.sent < reply.length) {
      const count = server.connection!.send(reply.subarray(server.sent));
      if (count === 0) return;
      server.sent += count;
    }
  };
  network.onAccept = (connection) => {
    server.connection = connection;
    push();
    return {
      onInput: () => {
        const { toServer } = connection;
        const bytes = Buffer.alloc(toServer.arrivedBytes);
        toServer.take(bytes);
        server.got.push(bytes);
        if (toServer.ended) server.ended += 1;
      },
      onDrain: push,
    };
  };
  const card = { got: [] as Buffer[] };
  network.onChange = () => {
    const bytes = Buffer.alloc(1000);
    for (let count = network.receive(bytes); count > 0; count = network.receive(bytes)) {
      card.got.push(Buffer.from(bytes.subarray(0, count)));
    }
  };
  return { world, network, server, card };
}

function pattern(length: number): Uint8Array {
  return Uint8Array.from({ length }, (_, index) => (index * 7 + (index >> 8)) & 0xff);
}

for (const delivery of ['whole', 'frames', 'pieces'] as const) {
  test(`bytes arrive whole and in order: ${delivery}`, async () => {
    const bytes = pattern(200_000);
    const { world, network, server, card } = rig({ delivery }, bytes);
    network.open();
    let sent = 0;
    const send = (): void => {
      if (network.state() === NetState.OPEN) sent += network.send(bytes.subarray(sent));
      if (sent < bytes.length) world.schedule(MS, send);
    };
    send();
    world.schedule(10 * SECOND, () => world.stop());
    await world.run();
    assert.deepEqual(Buffer.concat(server.got), Buffer.from(bytes));
    assert.deepEqual(Buffer.concat(card.got), Buffer.from(bytes));
  });
}

test('a blocked direction holds bytes and lets them go in order', async () => {
  const { world, network, server } = rig();
  network.open();
  world.schedule(100 * MS, () => {
    network.up.setBlocked(true);
    network.send(pattern(3000));
  });
  world.schedule(5 * SECOND, () => {
    assert.equal(Buffer.concat(server.got).length, 0);
    network.up.setBlocked(false);
    network.send(pattern(6000).subarray(3000));
  });
  world.schedule(10 * SECOND, () => world.stop());
  await world.run();
  assert.deepEqual(Buffer.concat(server.got), Buffer.from(pattern(6000)));
});

test('a break closes both sides, a refused connection closes at once', async () => {
  const { world, network, server } = rig();
  network.open();
  world.schedule(100 * MS, () => network.breakConnections());
  world.schedule(200 * MS, () => {
    assert.equal(network.state(), NetState.CLOSED);
    assert.equal(server.ended, 1);
    network.onAccept = () => 'refused';
    network.open();
    assert.equal(network.state(), NetState.CONNECTING);
  });
  world.schedule(300 * MS, () => {
    assert.equal(network.state(), NetState.CLOSED);
    world.stop();
  });
  await world.run();
});

test('a server that has forgotten a connection resets it when bytes come', async () => {
  const { world, network, server } = rig();
  network.open();
  world.schedule(100 * MS, () => {
    server.connection!.vanish();
    network.setMachine(false);
    network.send(pattern(100));
  });
  world.schedule(5 * SECOND, () => {
    assert.equal(network.state(), NetState.OPEN);
    network.setMachine(true);
  });
  world.schedule(6 * SECOND, () => {
    assert.equal(network.state(), NetState.CLOSED);
    world.stop();
  });
  await world.run();
});
