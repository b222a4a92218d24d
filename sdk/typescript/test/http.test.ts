import assert from 'node:assert/strict';
import { createServer } from 'node:net';
import path from 'node:path';
import { Readable } from 'node:stream';
import { test } from 'node:test';

import {
  BadAnswerError,
  BuildFailedError,
  BuildOomError,
  Client,
  ConnectionLostError,
  DaemonUnreachableError,
  NotFoundError,
  Sandbox,
  SporeError,
  TooLargeError,
} from '../src/index.js';
import { execResult, fail, fakeDaemon, json, sandboxInfo, temporary } from './support/fake.js';

test('errors are of the class for their code, with all that came', async (t) => {
  const { client } = await fakeDaemon(t, (_, response) => {
    const details = { step: 2, field: 'path' };
    json(response, 422, { error: { code: 'build_oom', message: 'step 2 ran out of memory', details } });
  });
  await assert.rejects(client.host(), (error) => {
    assert.ok(
      error instanceof BuildOomError && error instanceof BuildFailedError && error instanceof SporeError,
    );
    assert.equal(error.name, 'BuildOomError');
    assert.equal(error.code, 'build_oom');
    assert.equal(error.status, 422);
    assert.equal(error.message, 'step 2 ran out of memory');
    assert.deepEqual(error.details, { step: 2, field: 'path' });
    return true;
  });
});

test('a code of a newer daemon is an error all the same', async (t) => {
  for (const code of ['quota_exceeded', 'constructor', '__proto__']) {
    const { client } = await fakeDaemon(t, (_, response) => {
      fail(response, 402, code, 'no more');
    });
    await assert.rejects(client.host(), (error) => {
      assert.ok(error instanceof SporeError);
      assert.deepEqual(
        [error.code, error.status, error.message, error.name],
        [code, 402, 'no more', 'SporeError'],
      );
      return true;
    });
  }
});

test('an answer that is not of Spore is told as that', async (t) => {
  const answers = [
    [500, 'text/plain', 'oops'],
    [500, 'application/json', '{"error":{"message":"no code"}}'],
    [500, 'application/json', '[]'],
    [502, 'application/json', '{"error":null}'],
    [200, 'text/html', '<html>'],
  ] as const;
  for (const [status, type, body] of answers) {
    const { client } = await fakeDaemon(t, (_, response) => {
      response.writeHead(status, { 'content-type': type }).end(body);
    });
    await assert.rejects(client.host(), BadAnswerError, body);
  }
});

test('where no daemon is, that is said at once and with what to do', async (t) => {
  const socketPath = path.join(temporary(t), 'nothing');
  const begun = Date.now();
  await assert.rejects(new Client({ socketPath }).host(), (error) => {
    assert.ok(error instanceof DaemonUnreachableError);
    assert.match(error.message, /nothing: there is no such socket; is `spore serve` running\?/);
    return true;
  });
  assert.ok(Date.now() - begun < 1000);
});

test('a path too long for a socket is refused', () => {
  assert.throws(() => new Client({ socketPath: `/${'x'.repeat(107)}` }), RangeError);
  assert.doesNotThrow(() => new Client({ socketPath: `/${'x'.repeat(106)}` }));
});

test('a create whose answer was lost is made again with the same key, and so made once', async (t) => {
  const made = new Map<string, object>();
  let lost = 0;
  const { client, seen } = await fakeDaemon(t, (request, response, incoming) => {
    const key = String(request.headers['idempotency-key']);
    if (!made.has(key)) made.set(key, sandboxInfo(`sb-${made.size}`));
    if (lost < 2) {
      lost += 1;
      incoming.socket.destroy();
      return;
    }
    json(response, 201, made.get(key));
  });
  const sandbox = await Sandbox.create({ client, image: 'img' });
  assert.equal(sandbox.id, 'sb-0');
  assert.equal(seen.length, 3);
  assert.equal(made.size, 1);
  await Sandbox.create({ client, image: 'img' });
  assert.equal(made.size, 2, 'another call has another key');
  await Sandbox.create({ client, image: 'img', idempotencyKey: 'mine' });
  assert.ok(made.has('mine'));
});

test('an answer cut off in the middle is lost too', async (t) => {
  let cut = false;
  const { client, seen } = await fakeDaemon(t, (_, response, incoming) => {
    if (cut) {
      json(response, 200, { images: [] });
      return;
    }
    cut = true;
    response.writeHead(200, { 'content-length': '100' }).write('{"images"');
    setTimeout(() => incoming.socket.destroy(), 20);
  });
  assert.deepEqual(await client.listImages(), []);
  assert.equal(seen.length, 2);
});

test('retries end, and can be switched off', async (t) => {
  const daemon = await fakeDaemon(t, (_, __, incoming) => {
    incoming.socket.destroy();
  });
  await assert.rejects(daemon.client.host(), ConnectionLostError);
  assert.equal(daemon.seen.length, 4);
  await assert.rejects(new Client({ socketPath: daemon.socketPath, retries: 0 }).host(), ConnectionLostError);
  assert.equal(daemon.seen.length, 5);
});

test('a command is never run twice', async (t) => {
  const { client, seen } = await fakeDaemon(t, (request, response, incoming) => {
    if (request.method === 'GET') json(response, 200, sandboxInfo('sb'));
    else incoming.socket.destroy();
  });
  const sandbox = await Sandbox.connect('sb', { client });
  await assert.rejects(sandbox.exec('rm -rf build'), ConnectionLostError);
  assert.deepEqual(
    seen.map((request) => request.path),
    ['/v1/sandboxes/sb', '/v1/sandboxes/sb/exec'],
  );
});

test('a command has a connection of its own: an idle one might be closing', async (t) => {
  const { client, connections } = await fakeDaemon(t, (request, response) => {
    json(response, 200, request.method === 'GET' ? sandboxInfo('sb') : execResult(''));
  });
  const sandbox = await Sandbox.connect('sb', { client });
  await sandbox.refresh();
  await sandbox.refresh();
  assert.equal(connections(), 1);
  await sandbox.exec('true');
  assert.equal(connections(), 2);
});

test('a sandbox that is gone after a lost delete was deleted by it', async (t) => {
  let deleted = false;
  const { client } = await fakeDaemon(t, (request, response, incoming) => {
    if (request.method === 'GET') json(response, 200, sandboxInfo('sb'));
    else if (deleted) fail(response, 404, 'not_found');
    else {
      deleted = true;
      incoming.socket.destroy();
    }
  });
  const sandbox = await Sandbox.connect('sb', { client });
  assert.equal(await sandbox.kill(), true);
  assert.equal(await sandbox.kill(), false);
  await assert.rejects(client.deleteImage('img'), NotFoundError);
});

test('a daemon that is busy is asked again', async (t) => {
  let busy = 2;
  const { client, seen } = await fakeDaemon(t, (request, response) => {
    if (request.method === 'GET') json(response, 200, sandboxInfo('sb'));
    else if (busy-- > 0) fail(response, 429, 'busy');
    else json(response, 200, execResult('done'));
  });
  const sandbox = await Sandbox.connect('sb', { client });
  assert.equal((await sandbox.exec('true')).stdout, 'done');
  assert.equal(seen.length, 4);
});

test('a daemon that is started anew is found again', async (t) => {
  const { server, client, socketPath } = await fakeDaemon(t, (_, response) => {
    json(response, 200, { images: [] });
  });
  await client.listImages();
  client.close();
  server.closeAllConnections();
  await new Promise((resolve) => server.close(resolve));
  setTimeout(() => server.listen(socketPath), 150);
  assert.deepEqual(await client.listImages(), []);
});

test('aborting ends a call with the reason that was given, and hangs up', { timeout: 60_000 }, async (t) => {
  let hungUp: () => void = () => undefined;
  const closed = new Promise<void>((resolve) => {
    hungUp = resolve;
  });
  const { client } = await fakeDaemon(t, (_, __, incoming) => {
    incoming.socket.on('close', hungUp);
  });
  const controller = new AbortController();
  const reason = new Error('had enough');
  setTimeout(() => {
    controller.abort(reason);
  }, 30);
  await assert.rejects(client.listImages({ signal: controller.signal }), reason);
  await closed;
  await assert.rejects(client.host({ signal: controller.signal }), reason);
  await assert.rejects(client.host({ signal: AbortSignal.timeout(20) }), { name: 'TimeoutError' });
});

// The daemon carries out what has a key, whoever hangs up.
test('what a call makes that was aborted is undone', { timeout: 60_000 }, async (t) => {
  for (const what of ['create', 'createMany', 'fork', 'checkpoint']) {
    const deleted: string[] = [];
    let undone: () => void = () => undefined;
    const done = new Promise<void>((resolve) => {
      undone = resolve;
    });
    const answers: Record<string, object> = {
      create: sandboxInfo('made-1'),
      createMany: { sandboxes: [sandboxInfo('made-1'), sandboxInfo('made-2')] },
      fork: { sandboxes: [sandboxInfo('made-1'), sandboxInfo('made-2')] },
      checkpoint: { id: 'made-1', floorMB: 1 },
    };
    const expected = what === 'create' || what === 'checkpoint' ? ['made-1'] : ['made-1', 'made-2'];
    const { client, seen } = await fakeDaemon(t, (request, response) => {
      if (request.method === 'DELETE') {
        deleted.push(request.path.split('/').at(-1) ?? '');
        response.writeHead(204).end();
        if (deleted.length === expected.length) undone();
      } else if (seen.length > 1) json(response, 201, answers[what]);
      // The first is not answered in time.
    });
    const sandbox = new Sandbox(client, sandboxInfo('sb') as never);
    const signal = AbortSignal.timeout(50);
    const call = {
      create: () => Sandbox.create({ client, image: 'img', signal }),
      createMany: () => Sandbox.createMany(2, { client, image: 'img', signal }),
      fork: () => sandbox.fork(2, { signal }),
      checkpoint: () => sandbox.checkpoint({ signal }),
    }[what];
    assert.ok(call !== undefined);
    await assert.rejects(call(), { name: 'TimeoutError' });
    await done;
    assert.deepEqual(deleted.sort(), expected);
    const [first, again] = seen;
    assert.equal(first?.headers['idempotency-key'], again?.headers['idempotency-key']);
    assert.deepEqual(first?.json, again?.json);
  }
});

test('what was aborted before it was sent, or has a key of the caller, is left alone', async (t) => {
  const { client, seen } = await fakeDaemon(t, () => undefined);
  await assert.rejects(Sandbox.create({ client, image: 'img', signal: AbortSignal.abort() }), {
    name: 'AbortError',
  });
  assert.equal(seen.length, 0);
  const options = { client, image: 'img', signal: AbortSignal.timeout(30), idempotencyKey: 'mine' };
  await assert.rejects(Sandbox.create(options), { name: 'TimeoutError' });
  await new Promise((resolve) => setTimeout(resolve, 100));
  assert.equal(seen.length, 1);
});

test('aborting while the answer comes ends the call too', async (t) => {
  const { client } = await fakeDaemon(t, (_, response) => {
    response.writeHead(200, { 'content-length': '100' }).write('{');
  });
  await assert.rejects(client.host({ signal: AbortSignal.timeout(50) }), { name: 'TimeoutError' });
});

test('a large body is not sent to a daemon that does not want it', async (t) => {
  let received = 0;
  const directory = temporary(t);
  const socketPath = path.join(directory, 's');
  // A server that answers by the head alone, and counts what comes after it.
  const server = createServer((socket) => {
    socket.on('error', () => undefined);
    socket.on('data', (bytes) => {
      const text = bytes.toString('latin1');
      const end = text.indexOf('\r\n\r\n');
      received += text.startsWith('PUT') ? text.length - end - 4 : text.length;
      if (!text.startsWith('PUT')) return;
      assert.match(text, /expect: 100-continue/i);
      const body = '{"error":{"code":"too_large","message":"too large"}}';
      socket.write(`HTTP/1.1 413 Payload Too Large\r\ncontent-length: ${body.length}\r\n\r\n${body}`);
    });
  });
  await new Promise<void>((resolve) => server.listen(socketPath, resolve));
  t.after(() => server.close());
  const client = new Client({ socketPath });
  const sandbox = new Sandbox(client, sandboxInfo('sb') as never);
  await assert.rejects(sandbox.files.write('/big', Buffer.alloc(8 * 1024 * 1024)), TooLargeError);
  await assert.rejects(sandbox.files.write('/big', Readable.from([Buffer.alloc(1024)])), TooLargeError);
  assert.equal(received, 0);
});

test('a daemon that does not say whether it wants a body gets it', async (t) => {
  const { server, client, seen } = await fakeDaemon(t, (request, response) => {
    json(response, 200, { path: '/big', sizeBytes: request.body.length });
  });
  server.on('checkContinue', (incoming, response) => server.emit('request', incoming, response));
  const sandbox = new Sandbox(client, sandboxInfo('sb') as never);
  const data = Buffer.alloc(3 * 1024 * 1024, 'spore');
  assert.equal((await sandbox.files.write('/big', data)).sizeBytes, data.length);
  assert.ok(seen[0]?.body.equals(data));
});

test('what breaks while a body is made is what the caller hears', async (t) => {
  const { client } = await fakeDaemon(t, (_, response) => {
    json(response, 200, {});
  });
  const sandbox = new Sandbox(client, sandboxInfo('sb') as never);
  const broken = new Error('the disk is gone');
  async function* pieces(): AsyncGenerator<string> {
    yield 'some';
    await new Promise((resolve) => setTimeout(resolve, 5));
    throw broken;
  }
  await assert.rejects(sandbox.files.write('/f', pieces()), broken);
});

test('names and ids are parts of a path, and nothing else', async (t) => {
  const { client, seen } = await fakeDaemon(t, (_, response) => {
    json(response, 200, {});
  });
  await client.getImage('a/b?c#d%e ü');
  assert.equal(seen[0]?.path, '/v1/images/a%2Fb%3Fc%23d%25e%20%C3%BC');
  for (const name of ['', '.', '..']) assert.throws(() => client.getImage(name), TypeError);
});

test('a client that is idle does not keep the process alive', async (t) => {
  const { socketPath } = await fakeDaemon(t, (_, response) => {
    json(response, 200, { images: [] });
  });
  const { execFile } = await import('node:child_process');
  const index = new URL('../src/index.js', import.meta.url).href;
  const program = `import { Client } from '${index}';
    await new Client({ socketPath: process.argv[1] }).listImages();
    console.log('asked');`;
  const output = await new Promise<string>((resolve, reject) => {
    execFile(
      process.execPath,
      ['--input-type=module', '-e', program, socketPath],
      { timeout: 60_000 },
      (error, stdout) => {
        if (error) reject(new Error(error.message, { cause: error }));
        else resolve(stdout);
      },
    );
  });
  assert.equal(output, 'asked\n');
});
