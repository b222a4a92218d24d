import assert from 'node:assert/strict';
import { createReadStream, readFileSync, readdirSync, writeFileSync } from 'node:fs';
import path from 'node:path';
import { test } from 'node:test';
import type { TestContext } from 'node:test';

import { ConnectionLostError, GuestRefusedError, Sandbox } from '../src/index.js';
import type { Files } from '../src/index.js';
import { fail, fakeDaemon, json, sandboxInfo, temporary } from './support/fake.js';
import type { Handler, Seen } from './support/fake.js';

async function files(t: TestContext, handler: Handler): Promise<{ files: Files; seen: Seen[] }> {
  const { client, seen } = await fakeDaemon(t, handler);
  return { files: new Sandbox(client, sandboxInfo('sb') as never).files, seen };
}

test('files are read as bytes and as text', async (t) => {
  const { files: of, seen } = await files(t, (request, response) => {
    if (request.query.get('path') === '/no') fail(response, 422, 'guest_refused', 'no such file');
    else response.end(Buffer.from([0xef, 0xbb, 0xbf, 0xc3, 0xbc, 0xff]));
  });
  assert.deepEqual([...(await of.read('/a b&c'))], [0xef, 0xbb, 0xbf, 0xc3, 0xbc, 0xff]);
  assert.equal(seen[0]?.query.get('path'), '/a b&c');
  assert.equal(await of.readText('/t'), '\ufeffü\ufffd');
  await assert.rejects(of.read('/no'), GuestRefusedError);
});

test('files are written from text, bytes and streams', async (t) => {
  const { files: of, seen } = await files(t, (request, response) => {
    json(response, 200, { path: request.query.get('path'), sizeBytes: request.body.length });
  });
  const local = path.join(temporary(t), 'local');
  writeFileSync(local, Buffer.alloc(300_000, 'file'));
  assert.deepEqual(await of.write('/t', 'grüße', { mode: 0o755 }), { path: '/t', sizeBytes: 7 });
  assert.equal(seen[0]?.query.get('mode'), '0755');
  await of.write('/b', Buffer.from([0, 1]), { mode: '600' });
  await of.write('/s', createReadStream(local));
  await of.upload(local, '/u');
  await of.write('/empty', '');
  assert.deepEqual(
    seen.map(({ query, body }) => [query.get('path'), query.get('mode'), body.length]),
    [
      ['/t', '0755', 7],
      ['/b', '600', 2],
      ['/s', null, 300_000],
      ['/u', null, 300_000],
      ['/empty', null, 0],
    ],
  );
  assert.ok(seen[3]?.body.equals(readFileSync(local)));
  await assert.rejects(of.upload('/no/such/file', '/x'), { code: 'ENOENT' });
});

test('a write that was lost is made again, but one of a stream cannot be', async (t) => {
  let lost = 0;
  const { files: of, seen } = await files(t, (_, response, incoming) => {
    if (lost++ % 2 === 0) incoming.socket.destroy();
    else json(response, 200, { path: '/x', sizeBytes: 1 });
  });
  await of.write('/x', 'x');
  assert.equal(seen.length, 2);
  await assert.rejects(
    of.write(
      '/x',
      (async function* () {
        await Promise.resolve();
        yield 'x';
      })(),
    ),
    ConnectionLostError,
  );
  assert.equal(seen.length, 3);
});

test('a large file is read and kept piece by piece', async (t) => {
  const directory = temporary(t);
  const content = Buffer.alloc(3 * 1024 * 1024, 'large');
  let broken = false;
  const { files: of } = await files(t, (_, response, incoming) => {
    response.writeHead(200, { 'x-spore-mode': '0644', 'content-length': String(content.length) });
    if (broken) response.write(content.subarray(0, 100), () => incoming.socket.destroy());
    else response.end(content);
  });
  const stream = await of.readStream('/large');
  assert.equal(stream.mode, '0644');
  let [size, pieces] = [0, 0];
  for await (const piece of stream) [size, pieces] = [size + piece.length, pieces + 1];
  assert.equal(size, content.length);
  assert.ok(pieces > 1);

  const local = path.join(directory, 'kept');
  assert.equal(await of.download('/large', local), content.length);
  assert.ok(readFileSync(local).equals(content));
  broken = true;
  await assert.rejects(of.download('/large', local), ConnectionLostError);
  assert.ok(readFileSync(local).equals(content), 'what was there before stays');
  assert.deepEqual(readdirSync(directory), ['kept']);
});

test('leaving a stream early closes its connection', { timeout: 60_000 }, async (t) => {
  let closed: () => void = () => undefined;
  const hungUp = new Promise<void>((resolve) => {
    closed = resolve;
  });
  const { files: of } = await files(t, (_, response, incoming) => {
    incoming.socket.on('close', closed);
    response.writeHead(200).write(Buffer.alloc(100));
  });
  for await (const piece of await of.readStream('/endless')) {
    assert.equal(piece.length, 100);
    break;
  }
  await hungUp;
});

test('directories are listed, made and removed', async (t) => {
  const entries = [{ name: 'a', kind: 'file', sizeBytes: 1, mode: '0644', modifiedAt: 5 }];
  const { files: of, seen } = await files(t, (request, response) => {
    if (request.method === 'GET') json(response, 200, { entries });
    else response.writeHead(204).end();
  });
  assert.deepEqual(await of.list('/d'), entries);
  await of.mkdir('/d/e', { mode: 0o700 });
  await of.mkdir('/f');
  await of.remove('/d', { recursive: true });
  await of.remove('/g');
  assert.deepEqual(
    seen.map(({ method, path: at, query }) => `${method} ${at}?${query.toString()}`),
    [
      'GET /v1/sandboxes/sb/ls?path=%2Fd',
      'POST /v1/sandboxes/sb/mkdir?path=%2Fd%2Fe&mode=0700',
      'POST /v1/sandboxes/sb/mkdir?path=%2Ff',
      'DELETE /v1/sandboxes/sb/files?path=%2Fd&recursive=1',
      'DELETE /v1/sandboxes/sb/files?path=%2Fg',
    ],
  );
});
