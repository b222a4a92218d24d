import assert from 'node:assert/strict';
import path from 'node:path';
import { test } from 'node:test';
import type { TestContext } from 'node:test';
import { Worker } from 'node:worker_threads';

import { Client, GuestRefusedError, Sandbox } from '../src/index.js';
import { sandboxInfo, temporary } from './support/fake.js';

const limit = { timeout: 60_000 };

/** A sandbox of a daemon that hangs up while it is written to. */
async function rudeSandbox(t: TestContext): Promise<Sandbox> {
  const socketPath = path.join(temporary(t), 's');
  const worker = new Worker(new URL('support/rude-server.js', import.meta.url), { workerData: socketPath });
  t.after(() => worker.terminate());
  await new Promise((resolve) => worker.once('message', resolve));
  return new Sandbox(new Client({ socketPath, retries: 0 }), sandboxInfo('sb') as never);
}

/** Pieces without end, by somebody who works for them: what comes meanwhile has to wait. */
async function* endless(): AsyncGenerator<Uint8Array> {
  for (;;) {
    await new Promise((resolve) => setImmediate(resolve));
    const until = Date.now() + 15;
    while (Date.now() < until);
    yield Buffer.alloc(1024);
  }
}

test('a command that has ended is heard of although it has not read its input', limit, async (t) => {
  const sandbox = await rudeSandbox(t);
  for (let round = 0; round < 20; round += 1) {
    const stream = await sandbox.execStream('true', { stdin: endless() });
    assert.equal((await stream.wait()).exitCode, 7);
  }
});

test('a body that is refused in its middle is refused with the reason', limit, async (t) => {
  const sandbox = await rudeSandbox(t);
  for (let round = 0; round < 20; round += 1) {
    await assert.rejects(sandbox.files.write('/full', endless()), GuestRefusedError);
  }
});
