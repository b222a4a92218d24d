import assert from 'node:assert/strict';
import type { ServerResponse } from 'node:http';
import { test } from 'node:test';

import {
  BuildFailedError,
  Client,
  ConnectionLostError,
  DaemonUnreachableError,
  Image,
  InvalidManifestError,
} from '../src/index.js';
import type { BuildMessage, Event } from '../src/index.js';
import { fail, fakeDaemon, imageInfo, json } from './support/fake.js';

const MESSAGES = [
  { type: 'build', buildId: 'b1' },
  { type: 'phase', phase: 'booting', message: '1024 MiB' },
  { type: 'stepCached', step: 0, of: 2, label: 'apt_install curl' },
  { type: 'stepStarted', step: 1, of: 2, label: 'run make' },
  { type: 'output', text: 'one\r\ntw' },
  { type: 'output', text: 'o\nthree' },
  { type: 'newerThanThis', what: 'ever' },
  { type: 'stepDone', step: 1, tookMs: 1234 },
  { type: 'image', image: imageInfo('img-1') },
];

const LINES = [
  'booting: 1024 MiB',
  '[1/2] apt_install curl (cached)',
  '[2/2] run make',
  'one',
  'two',
  'three',
  '[2] done in 1.2 s',
];

function events(response: ServerResponse, messages: readonly object[]): void {
  response.writeHead(200, { 'content-type': 'text/event-stream' });
  for (const message of messages) {
    const { type } = message as { type: string };
    response.write(`event: ${type}\ndata: ${JSON.stringify(message)}\n\n`);
  }
}

test('a build is heard line by line and comes to an image', async (t) => {
  const { client, seen } = await fakeDaemon(t, (_, response) => {
    events(response, MESSAGES); // And no end: the image is the last.
  });
  const lines: string[] = [];
  const messages: BuildMessage[] = [];
  const built = await Image.base('busybox')
    .runCommands('make')
    .build({
      client,
      onLog: (line) => lines.push(line),
      onMessage: (message) => messages.push(message),
      noCache: true,
      stepTimeoutSeconds: 60,
      network: 'none',
    });
  assert.deepEqual(built, imageInfo('img-1'));
  assert.deepEqual(lines, LINES);
  assert.deepEqual(messages, MESSAGES);
  assert.equal(seen[0]?.method, 'POST');
  assert.equal(seen[0].path, '/v1/images');
  assert.deepEqual(seen[0].json, {
    manifest: { base: 'busybox', steps: [{ type: 'run', args: { commands: ['make'] } }] },
    noCache: true,
    stepTimeoutSeconds: 60,
    network: 'none',
  });
});

test('a build that fails says so, after what it wrote', async (t) => {
  const { client } = await fakeDaemon(t, (_, response) => {
    const error = { code: 'build_failed', message: 'step 1 failed: exit 2', details: { step: 1 } };
    events(response, [
      { type: 'build', buildId: 'b' },
      { type: 'output', text: 'cut off' },
      { type: 'error', error },
    ]);
    response.end();
  });
  const lines: string[] = [];
  await assert.rejects(
    Image.base()
      .runCommands('false')
      .build({ client, onLog: (line) => lines.push(line) }),
    (error) => {
      assert.ok(error instanceof BuildFailedError);
      assert.deepEqual(
        [error.message, error.details, error.status],
        ['step 1 failed: exit 2', { step: 1 }, undefined],
      );
      return true;
    },
  );
  assert.deepEqual(lines, ['cut off']);
});

test('a manifest that is refused is told before the stream begins', async (t) => {
  const { client } = await fakeDaemon(t, (_, response) => {
    fail(response, 400, 'invalid_manifest', 'steps[0].args.path is missing');
  });
  const manifest = { base: 'x', steps: [{ type: 'workdir', args: {} }] };
  await assert.rejects(client.buildImage(manifest), InvalidManifestError);
});

test('a build whose connection is lost is asked for again, and nothing is heard twice', async (t) => {
  const { client, seen } = await fakeDaemon(t, (_, response, incoming) => {
    if (seen.length === 1) {
      events(response, MESSAGES.slice(0, 5));
      setTimeout(() => incoming.socket.destroy(), 20);
    } else events(response, MESSAGES);
  });
  const lines: string[] = [];
  const image = await client.buildImage(Image.base(), { onLog: (line) => lines.push(line) });
  assert.equal(image.id, 'img-1');
  assert.deepEqual(lines, LINES);
  assert.equal(seen.length, 2);
});

test('another build in its place is heard from its beginning', async (t) => {
  const { client, seen } = await fakeDaemon(t, (_, response) => {
    if (seen.length === 1) {
      events(response, MESSAGES.slice(0, 4));
      response.end(); // A daemon that is stopped.
    } else events(response, [{ type: 'build', buildId: 'b2' }, ...MESSAGES.slice(1)]);
  });
  const lines: string[] = [];
  await client.buildImage(Image.base(), { onLog: (line) => lines.push(line) });
  assert.deepEqual(lines, [...LINES.slice(0, 3), ...LINES]);
});

test('a build that never ends well is given up', async (t) => {
  const { client, seen } = await fakeDaemon(t, (_, response) => {
    response.writeHead(200).end();
  });
  await assert.rejects(client.buildImage(Image.base()), ConnectionLostError);
  assert.equal(seen.length, 4);
});

test('what a callback throws ends the build and is what the caller hears', { timeout: 60_000 }, async (t) => {
  let closed: () => void = () => undefined;
  const hungUp = new Promise<void>((resolve) => {
    closed = resolve;
  });
  const { client } = await fakeDaemon(t, (_, response, incoming) => {
    incoming.socket.on('close', closed);
    events(response, MESSAGES.slice(0, 5));
  });
  const mine = new Error('mine');
  const onLog = (): void => {
    throw mine;
  };
  await assert.rejects(client.buildImage(Image.base(), { onLog }), mine);
  await hungUp;
});

test('a build that goes on by itself is begun, looked at, followed and cancelled', async (t) => {
  const build = { id: 'b1', state: 'running', startedAt: 1, tookMs: 2 };
  const { client, seen } = await fakeDaemon(t, (request, response) => {
    if (request.method === 'POST') json(response, 202, { buildId: 'b1' });
    else if (request.method === 'DELETE') response.writeHead(204).end();
    else if (request.path.endsWith('/logs')) events(response, MESSAGES.slice(1));
    else json(response, 200, build);
  });
  assert.equal(await client.startBuild(Image.base()), 'b1');
  assert.equal(seen[0]?.query.get('async'), '1');
  assert.deepEqual(await client.getBuild('b1'), build);
  const lines: string[] = [];
  assert.equal((await client.followBuild('b1', { onLog: (line) => lines.push(line) })).id, 'img-1');
  assert.deepEqual(lines, LINES);
  await client.cancelBuild('b1');
  assert.deepEqual(
    seen.map(({ method, path }) => `${method} ${path}`),
    ['POST /v1/images', 'GET /v1/builds/b1', 'GET /v1/builds/b1/logs', 'DELETE /v1/builds/b1'],
  );
});

test('images, checkpoints and the host', async (t) => {
  const host = { draining: true, images: ['i'] };
  const answers: Record<string, [number, unknown]> = {
    'GET /v1/images': [200, { images: [imageInfo('i')] }],
    'GET /v1/images/i': [200, imageInfo('i')],
    'DELETE /v1/images/i': [204, undefined],
    'GET /v1/checkpoints': [200, { checkpoints: [{ id: 'c' }] }],
    'GET /v1/checkpoints/c': [200, { id: 'c' }],
    'DELETE /v1/checkpoints/c': [204, undefined],
    'GET /v1/host': [200, host],
    'POST /v1/host/drain': [200, host],
    'GET /v1/openapi.json': [200, { openapi: '3.1.0' }],
  };
  const { client, seen } = await fakeDaemon(t, (request, response) => {
    if (request.path === '/healthz') response.end('ok');
    else if (request.path === '/metrics') response.end('spore_up 1\n');
    else {
      const [status, body] = answers[`${request.method} ${request.path}`] ?? [404, undefined];
      if (body === undefined) response.writeHead(status).end();
      else json(response, status, body);
    }
  });
  assert.deepEqual(await client.listImages(), [imageInfo('i')]);
  assert.deepEqual(await client.getImage('i'), imageInfo('i'));
  await client.deleteImage('i');
  assert.deepEqual(await client.listCheckpoints(), [{ id: 'c' }]);
  assert.deepEqual(await client.getCheckpoint('c'), { id: 'c' });
  await client.deleteCheckpoint('c');
  assert.deepEqual(await client.host(), host);
  assert.deepEqual(await client.drain(), host);
  assert.deepEqual(seen.at(-1)?.json, { draining: true });
  await client.drain(false);
  assert.deepEqual(seen.at(-1)?.json, { draining: false });
  assert.equal((await client.openapi())['openapi'], '3.1.0');
  assert.equal(await client.isHealthy(), true);
  assert.equal(await client.metrics(), 'spore_up 1\n');
});

test('events go on where they were when the connection is lost', { timeout: 60_000 }, async (t) => {
  const all: Event[] = [1, 2, 3, 4, 5].map((id) => ({
    id,
    timeMs: id,
    type: 'sandboxCreated',
    sandbox: `sb-${id}`,
  }));
  const { client, seen } = await fakeDaemon(t, (request, response, incoming) => {
    const after = Number(request.headers['last-event-id'] ?? 0);
    response.writeHead(200, { 'content-type': 'text/event-stream' });
    response.write(': hello\n\n');
    for (const event of all.filter(({ id }) => id > after).slice(0, 2)) {
      response.write(`id: ${event.id}\nevent: ${event.type}\ndata: ${JSON.stringify(event)}\n\n`);
    }
    if (seen.length === 1) setTimeout(() => incoming.socket.destroy(), 10);
    else if (seen.length === 2) response.end();
  });
  const heard: Event[] = [];
  for await (const event of client.events()) {
    heard.push(event);
    if (event.id === 5) break;
  }
  assert.deepEqual(heard, all);
  assert.deepEqual(
    seen.map((request) => request.headers['last-event-id']),
    [undefined, '2', '4'],
  );
});

test('events begin where they are asked to, and end with the signal', { timeout: 60_000 }, async (t) => {
  const { client, seen } = await fakeDaemon(t, (_, response) => {
    response.writeHead(200).flushHeaders();
  });
  const reason = new Error('enough');
  const controller = new AbortController();
  setTimeout(() => {
    controller.abort(reason);
  }, 50);
  await assert.rejects(client.events({ lastEventId: 41, signal: controller.signal }).next(), reason);
  assert.equal(seen[0]?.headers['last-event-id'], '41');
});

test('events of a daemon that stays away are given up', { timeout: 60_000 }, async (t) => {
  const { client, server } = await fakeDaemon(t, (_, response) => {
    response.writeHead(200).end('id: 1\ndata: {"id":1,"timeMs":1,"type":"started","adopted":0}\n\n');
    server.close();
    server.closeIdleConnections();
  });
  const events = client.events({ reconnectSeconds: 0.5 });
  assert.deepEqual((await events.next()).value, { id: 1, timeMs: 1, type: 'started', adopted: 0 });
  await assert.rejects(events.next(), DaemonUnreachableError);
  await assert.rejects(new Client({ socketPath: '/nowhere/s' }).events().next(), DaemonUnreachableError);
});

test('the shared client is of the socket that the environment names', (t) => {
  const before = process.env['SPORE_SOCKET'];
  t.after(() => {
    if (before === undefined) delete process.env['SPORE_SOCKET'];
    else process.env['SPORE_SOCKET'] = before;
  });
  delete process.env['SPORE_SOCKET'];
  assert.equal(Client.shared().socketPath, '/run/spore/spore.sock');
  assert.equal(Client.shared(), Client.shared());
  process.env['SPORE_SOCKET'] = '/tmp/other.sock';
  assert.equal(Client.shared().socketPath, '/tmp/other.sock');
  assert.equal(new Client({ socketPath: '/x' }).socketPath, '/x');
});
