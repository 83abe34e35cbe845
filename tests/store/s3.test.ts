// Requests to an object store that does not answer, or late: what is asked twice, and what must not be.

import assert from 'node:assert/strict';
import http from 'node:http';
import type { AddressInfo } from 'node:net';
import { test } from 'node:test';
import { Bucket, type BucketError } from '../../host/store/bucket/s3.js';

type Handler = (number: number, request: http.IncomingMessage, response: http.ServerResponse) => void;

/** An object store that does with its first, second, … request what `handle` says. */
async function withStore(handle: Handler, work: (bucket: Bucket, counts: { requests: number }) => Promise<void>) {
  const counts = { requests: 0 };
  const server = http.createServer((request, response) => {
    request.resume();
    handle(++counts.requests, request, response);
  });
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  const url = `http://127.0.0.1:${(server.address() as AddressInfo).port}/b`;
  const keys = { region: 'r', accessKeyId: 'a', secretAccessKey: 's' };
  const bucket = new Bucket({ url, ...keys, secondMs: 200, timeoutMs: 1500 });
  try {
    await work(bucket, counts);
  } finally {
    bucket.close();
    server.closeAllConnections();
    await new Promise((resolve) => server.close(resolve));
  }
}

test('a GET that is not answered is sent again over another connection; the first answer counts', async () => {
  const ports = new Set<number>();
  let aborted = 0;
  const handle: Handler = (number, request, response) => {
    ports.add(request.socket.remotePort!);
    response.on('close', () => {
      if (!response.writableEnded) aborted++;
    });
    if (number !== 2) response.end(`answer ${number}`);
  };
  await withStore(handle, async (bucket, counts) => {
    assert.equal((await bucket.get('x'))!.toString(), 'answer 1');
    const begin = performance.now();
    assert.equal((await bucket.get('x'))!.toString(), 'answer 3');
    assert.ok(performance.now() - begin < 1400, 'it did not wait until the first was given up');
    assert.equal(ports.size, 2);
    assert.deepEqual([counts.requests, bucket.statistics.seconds], [3, 1]);
    while (aborted === 0) await new Promise((resolve) => setTimeout(resolve, 5));
    assert.equal((await bucket.get('x'))!.toString(), 'answer 4', 'and it goes on');
  });
});

test('an answer that has begun is waited for, a slow first one may still be the first', async () => {
  const slow: Handler = (number, _request, response) => {
    if (number === 1) {
      response.write('slow');
      setTimeout(() => response.end(' but whole'), 600);
    } else if (number === 2) setTimeout(() => response.end('late'), 500);
    // The third, which is the second one's other half, gets no answer at all.
  };
  await withStore(slow, async (bucket, counts) => {
    assert.equal((await bucket.get('x'))!.toString(), 'slow but whole');
    assert.equal(counts.requests, 1);
    assert.equal((await bucket.get('x'))!.toString(), 'late');
    assert.equal(counts.requests, 3);
  });
});

test('both fail: one error. What changes something is sent once', async () => {
  await withStore(
    () => {},
    async (bucket, counts) => {
      const noAnswer = (error: BucketError) => error.status === 0;
      await assert.rejects(bucket.get('x'), noAnswer);
      assert.equal(counts.requests, 2);
      await assert.rejects(bucket.put('x', Buffer.from('y')), noAnswer);
      await assert.rejects(bucket.create('x', Buffer.from('y')), noAnswer);
      await assert.rejects(bucket.remove('x'), noAnswer);
      assert.equal(counts.requests, 5);
    },
  );
});
