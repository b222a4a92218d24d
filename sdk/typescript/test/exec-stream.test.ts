import assert from 'node:assert/strict';
import { test } from 'node:test';

import {
  BadAnswerError,
  ConnectionLostError,
  GuestRefusedError,
  NotFoundError,
  Sandbox,
  StdinClosedError,
} from '../src/index.js';
import { exit, output } from './support/exec-messages.js';
import { execDaemon } from './support/exec-server.js';
import { sandboxInfo } from './support/fake.js';

const limit = { timeout: 60_000 };

test('output is iterated as it comes, and the end is the result', limit, async (t) => {
  const { sandbox, opened } = await execDaemon(t, ({ socket }) => {
    socket.send(output(1, 'out'));
    socket.send(output(2, Buffer.from([0xff, 0])));
    socket.send(output(1, 'more'));
    socket.send(exit({ exitCode: 3 }));
  });
  await using stream = await sandbox.execStream('make', {
    env: { A: '1' },
    cwd: '/app',
    user: 'app',
    timeoutSeconds: 9,
  });
  const heard: [string, string][] = [];
  for await (const { stream: name, data } of stream) heard.push([name, Buffer.from(data).toString('latin1')]);
  assert.deepEqual(heard, [
    ['stdout', 'out'],
    ['stderr', '\xff\0'],
    ['stdout', 'more'],
  ]);
  const result = await stream.wait();
  assert.deepEqual([result.exitCode, result.ok, result.tookMs, result.stdout], [3, false, 5, '']);
  assert.deepEqual(opened[0]?.request, {
    cmd: ['/bin/sh', '-c', 'make'],
    env: { A: '1' },
    cwd: '/app',
    user: 'app',
    timeoutSeconds: 9,
  });
});

test('callbacks get whole characters, also where the bytes are cut', limit, async (t) => {
  const euro = Buffer.from('€');
  const { sandbox } = await execDaemon(t, ({ socket }) => {
    socket.send(output(1, euro.subarray(0, 1)));
    socket.send(output(2, 'warning'));
    socket.send(output(1, euro.subarray(1)));
    socket.send(output(1, euro.subarray(0, 2)));
    socket.send(exit());
  });
  const out: string[] = [];
  const err: string[] = [];
  const stream = await sandbox.execStream(['x'], {
    onStdout: (text) => out.push(text),
    onStderr: (text) => err.push(text),
  });
  const result = await stream.wait();
  assert.deepEqual([out, err], [['€', '\ufffd'], ['warning']]);
  assert.equal(result.stdout + result.stderr, '');
});

test('what nobody listens to is in the result', limit, async (t) => {
  const { sandbox } = await execDaemon(t, ({ socket }) => {
    socket.send(output(1, 'out'));
    socket.send(output(2, 'err'));
    socket.send(exit({ signal: 9, exitCode: 137 }));
  });
  const out: string[] = [];
  const stream = await sandbox.execStream('x', { onStdout: (text) => out.push(text) });
  const result = await stream.wait();
  assert.deepEqual([out, result.stdout, result.stderr, result.signal], [['out'], '', 'err', 9]);
  assert.deepEqual(await stream.wait(), result);
});

test('of output that nobody listens to 8 MiB are kept', limit, async (t) => {
  const piece = output(1, Buffer.alloc(1024 * 1024, 'x'));
  const { sandbox } = await execDaemon(t, ({ socket }) => {
    for (let sent = 0; sent < 9; sent += 1) socket.send(piece);
    socket.send(output(2, 'end'));
    socket.send(exit());
  });
  const result = await (await sandbox.execStream('x')).wait();
  assert.equal(result.stdoutBytes.length, 8 * 1024 * 1024);
  assert.deepEqual([result.stderr, result.truncated], ['end', true]);
});

test('input, its end, signals and sizes are said in order', limit, async (t) => {
  const { sandbox, opened } = await execDaemon(t, async ({ socket, saidSoMany }) => {
    await saidSoMany(6);
    socket.send(exit());
  });
  const stream = await sandbox.execStream('cat', { tty: { rows: 24, cols: 80 } });
  await stream.sendStdin('text €');
  await stream.sendStdin(Buffer.from([0, 255]));
  await stream.sendStdin('');
  await stream.resize({ rows: 50, cols: 132 });
  await stream.sendSignal('SIGINT');
  await stream.sendSignal(64);
  await stream.closeStdin();
  await stream.closeStdin();
  await assert.rejects(stream.sendStdin('too late'), StdinClosedError);
  await stream.wait();
  assert.deepEqual(opened[0]?.request.tty, { rows: 24, cols: 80 });
  assert.deepEqual(opened[0].said, [
    Buffer.from('text €'),
    Buffer.from([0, 255]),
    { type: 'resize', rows: 50, cols: 132 },
    { type: 'signal', signal: 2 },
    { type: 'signal', signal: 64 },
    { type: 'stdinEnd' },
  ]);
  await assert.rejects(stream.sendSignal('SIGNOTHING'), TypeError);
});

test('input may be given whole or in pieces, and ends by itself', limit, async (t) => {
  async function* pieces(): AsyncGenerator<string | Uint8Array> {
    yield 'a';
    await Promise.resolve();
    yield Buffer.from('b');
  }
  const { sandbox, opened } = await execDaemon(t, async ({ socket, said, saidSoMany }) => {
    const end = (): boolean => said.some((one) => !Buffer.isBuffer(one));
    for (let count = 1; !end(); count += 1) await saidSoMany(count);
    socket.send(exit());
  });
  for (const stdin of ['ab', Buffer.from('ab'), pieces()]) {
    await (await sandbox.execStream('cat', { stdin })).wait();
    const said = opened.at(-1)?.said ?? [];
    assert.deepEqual(said.at(-1), { type: 'stdinEnd' });
    assert.equal(Buffer.concat(said.slice(0, -1) as Buffer[]).toString(), 'ab');
  }
});

test('input of any size arrives whole, in messages that the daemon takes', limit, async (t) => {
  const sent = Buffer.alloc(5 * 1024 * 1024 + 7, 'spore');
  const { sandbox, opened } = await execDaemon(t, async ({ socket, said, saidSoMany }) => {
    for (let count = 1; !said.some((one) => !Buffer.isBuffer(one)); count += 1) await saidSoMany(count);
    for (const message of said.slice(0, -1)) socket.send(output(1, message as Buffer));
    socket.send(exit());
  });
  const result = await (await sandbox.execStream('cat', { stdin: sent })).wait();
  assert.ok(sent.equals(result.stdoutBytes));
  assert.ok(opened[0]?.said.every((message) => !Buffer.isBuffer(message) || message.length <= 1024 * 1024));
});

test('a command need not read all its input', limit, async (t) => {
  async function* endless(): AsyncGenerator<Uint8Array> {
    for (;;) {
      await new Promise((resolve) => setImmediate(resolve));
      yield Buffer.alloc(1024);
    }
  }
  const { sandbox } = await execDaemon(t, ({ socket }) => {
    socket.send(exit());
  });
  const stream = await sandbox.execStream('true', { stdin: endless() });
  assert.equal((await stream.wait()).exitCode, 0);
});

test('input that breaks ends the command with its error', limit, async (t) => {
  const broken = new Error('the disk is gone');
  // eslint-disable-next-line require-yield
  async function* pieces(): AsyncGenerator<string> {
    await Promise.resolve();
    throw broken;
  }
  const { sandbox, opened } = await execDaemon(t, () => undefined);
  const stream = await sandbox.execStream('cat', { stdin: pieces() });
  await assert.rejects(stream.wait(), broken);
  await opened[0]?.closed;
});

test('output that nobody takes makes the command wait', limit, async (t) => {
  const piece = output(1, Buffer.alloc(64 * 1024));
  const total = 512; // 32 MiB
  let written = 0;
  const { sandbox, opened } = await execDaemon(t, async ({ socket }) => {
    for (; written < total; written += 1) {
      await new Promise((resolve) => {
        socket.send(piece, resolve);
      });
    }
    socket.send(exit());
  });
  const stream = await sandbox.execStream('yes');
  await new Promise((resolve) => setTimeout(resolve, 500));
  assert.ok(opened.length === 1 && written > 8 && written < 128, `${written} pieces were taken`);
  let size = 0;
  for await (const { data } of stream) size += data.length;
  assert.equal(size, total * 64 * 1024);
});

test('leaving the scope hangs up, which kills the command', limit, async (t) => {
  const { sandbox, opened } = await execDaemon(t, ({ socket }) => {
    socket.send(output(1, 'begun'));
  });
  {
    await using stream = await sandbox.execStream('sleep 1000');
    for await (const piece of stream) {
      assert.equal(piece.data.length, 5);
      break;
    }
  }
  await opened[0]?.closed;
});

test('aborting kills the command, and its reason is what everyone hears', limit, async (t) => {
  const { sandbox, opened } = await execDaemon(t, () => undefined);
  const controller = new AbortController();
  const reason = new Error('enough');
  const stream = await sandbox.execStream('sleep 1000', { signal: controller.signal });
  setTimeout(() => {
    controller.abort(reason);
  }, 30);
  await assert.rejects(stream.wait(), reason);
  await assert.rejects(stream[Symbol.asyncIterator]().next(), reason);
  await assert.rejects(stream.sendStdin('x'), StdinClosedError);
  await opened[0]?.closed;
  await assert.rejects(sandbox.execStream('x', { signal: controller.signal }), reason);
});

test('a command that cannot be started is an error of its code', limit, async (t) => {
  const { sandbox } = await execDaemon(t, ({ socket }) => {
    socket.send(JSON.stringify({ type: 'error', code: 'guest_refused', message: 'no such program' }));
    socket.close();
  });
  await assert.rejects((await sandbox.execStream(['/nothing'])).wait(), GuestRefusedError);
});

test('a sandbox that is not there is told when the stream is opened', limit, async (t) => {
  const { daemon } = await execDaemon(t, () => undefined);
  const gone = new Sandbox(daemon.client, sandboxInfo('gone') as never);
  await assert.rejects(gone.execStream('true'), NotFoundError);
});

test('a stream that breaks off is no end of a command', limit, async (t) => {
  const { sandbox } = await execDaemon(t, ({ socket, request }) => {
    if (request.cmd?.[0] === 'close') socket.close(1011, 'shutting down');
    else if (request.cmd?.[0] === 'end') socket.close();
    else socket.terminate();
  });
  for (const how of ['close', 'end', 'terminate']) {
    const stream = await sandbox.execStream([how]);
    await assert.rejects(stream.wait(), ConnectionLostError, how);
    await assert.rejects(async () => {
      for await (const piece of stream) assert.fail(`there is no ${piece.stream}`);
    }, ConnectionLostError);
  }
});

test('what is no message of a stream is told as that, and what is new is left alone', limit, async (t) => {
  const { sandbox } = await execDaemon(t, ({ socket, request }) => {
    const how = request.cmd?.[0];
    if (how === 'channel') socket.send(Buffer.from([3, 65]));
    else if (how === 'empty') socket.send(Buffer.alloc(0));
    else if (how === 'json') socket.send('no json');
    else {
      socket.send('{"type":"newer","x":1}');
      socket.send(exit());
    }
  });
  for (const how of ['channel', 'empty', 'json']) {
    await assert.rejects((await sandbox.execStream([how])).wait(), BadAnswerError, how);
  }
  assert.equal((await (await sandbox.execStream(['newer'])).wait()).ok, true);
});

test('what a callback throws ends the command and is what wait() throws', limit, async (t) => {
  const { sandbox, opened } = await execDaemon(t, ({ socket }) => {
    socket.send(output(1, 'x'));
  });
  const mine = new Error('mine');
  const stream = await sandbox.execStream('x', {
    onStdout: () => {
      throw mine;
    },
  });
  await assert.rejects(stream.wait(), mine);
  await opened[0]?.closed;
});
