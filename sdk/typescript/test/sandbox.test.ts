import assert from 'node:assert/strict';
import { test } from 'node:test';
import type { TestContext } from 'node:test';
import { inspect } from 'node:util';

import {
  CommandFailedError,
  Image,
  InsufficientCapacityError,
  NotFoundError,
  Sandbox,
  SporeError,
} from '../src/index.js';
import { execResult, fail, fakeDaemon, imageInfo, json, sandboxInfo } from './support/fake.js';
import type { FakeDaemon, Handler } from './support/fake.js';

/** A daemon and a sandbox of it; `handler` answers what is asked after that. */
async function withSandbox(
  t: TestContext,
  handler: Handler,
): Promise<{ daemon: FakeDaemon; sandbox: Sandbox }> {
  const daemon = await fakeDaemon(t, handler);
  return { daemon, sandbox: new Sandbox(daemon.client, sandboxInfo('sb') as never) };
}

test('a sandbox is made as it was asked for', async (t) => {
  const { client, seen } = await fakeDaemon(t, (_, response) => {
    json(response, 201, { ...sandboxInfo('sb-1'), exec: execResult('hi\n') });
  });
  const sandbox = await Sandbox.create({
    client,
    image: 'app',
    memoryMB: 4096,
    cpus: 2,
    diskMB: 8192,
    env: { A: '1' },
    metadata: { owner: 'me' },
    timeoutSeconds: 60,
    network: { allow: ['example.com:443'] },
    exec: 'echo hi',
  });
  assert.equal(sandbox.id, 'sb-1');
  assert.equal(sandbox.memory.grantedMB, 512);
  assert.equal(sandbox.firstResult?.stdout, 'hi\n');
  assert.ok(!('exec' in sandbox.info));
  assert.equal(JSON.stringify(sandbox), JSON.stringify(sandboxInfo('sb-1')));
  assert.deepEqual(seen[0]?.json, {
    image: 'app',
    memoryMB: 4096,
    env: { A: '1' },
    metadata: { owner: 'me' },
    timeoutSeconds: 60,
    network: { allow: ['example.com:443'] },
    cpus: 2,
    diskMB: 8192,
    exec: { cmd: ['/bin/sh', '-c', 'echo hi'], encoding: 'base64' },
  });
  await Sandbox.create({ client, image: 'app' });
  assert.deepEqual(seen[1]?.json, { image: 'app' }, 'what is not said is not sent');
  assert.notEqual(seen[0].headers['idempotency-key'], seen[1].headers['idempotency-key']);
});

test('an image that is no more than words is built first', async (t) => {
  const { client, seen } = await fakeDaemon(t, (request, response) => {
    if (request.path === '/v1/images') {
      response.write(`data: ${JSON.stringify({ type: 'phase', phase: 'booting', message: '' })}\n\n`);
      response.end(`data: ${JSON.stringify({ type: 'image', image: imageInfo('img-7') })}\n\n`);
    } else json(response, 201, sandboxInfo('sb-1'));
  });
  const lines: string[] = [];
  const image = Image.base('busybox').runCommands('true');
  await Sandbox.create({ client, image, memoryMB: 4096, onBuildLog: (line) => lines.push(line) });
  assert.deepEqual(lines, ['booting']);
  assert.deepEqual(
    seen.map((request) => request.json),
    [{ manifest: image.manifest() }, { image: 'img-7', memoryMB: 4096 }],
  );
  const built = await image.build({ client });
  await Sandbox.create({ client, image: built });
  assert.deepEqual(seen.at(-1)?.json, { image: 'img-7' });
});

test('a sandbox is made of a checkpoint, by its name or as it was given', async (t) => {
  const { client, seen } = await fakeDaemon(t, (_, response) => {
    json(response, 201, sandboxInfo('sb-1'));
  });
  await Sandbox.fromCheckpoint('cp', { client, memoryMB: 1024 });
  await Sandbox.fromCheckpoint({ id: 'cp-id', floorMB: 256 }, { client });
  assert.deepEqual(
    seen.map((request) => request.json),
    [{ checkpoint: 'cp', memoryMB: 1024 }, { checkpoint: 'cp-id' }],
  );
});

test('several are made at once, and end together', async (t) => {
  const { client, seen } = await fakeDaemon(t, (request, response) => {
    if (request.method === 'DELETE') {
      response.writeHead(204).end();
      return;
    }
    const errors = [{ code: 'insufficient_capacity', message: 'no room', details: { largestFitMB: 64 } }];
    json(response, 201, {
      sandboxes: [sandboxInfo('a'), { ...sandboxInfo('b'), exec: execResult('x') }],
      errors,
    });
  });
  {
    await using group = await Sandbox.createMany(3, { client, image: 'app', partial: true });
    assert.deepEqual(
      group.map((sandbox) => sandbox.id),
      ['a', 'b'],
    );
    assert.ok(Array.isArray(group) && group.filter(Boolean).constructor === Array);
    assert.equal(group[1]?.firstResult?.stdout, 'x');
    assert.ok(group.errors[0] instanceof InsufficientCapacityError);
    assert.deepEqual(group.errors[0].details, { largestFitMB: 64 });
    assert.deepEqual(seen[0]?.json, { image: 'app', count: 3, partial: true });
  }
  assert.deepEqual(
    seen.slice(1).map(({ method, path }) => `${method} ${path}`),
    ['DELETE /v1/sandboxes/a', 'DELETE /v1/sandboxes/b'],
  );
  await Sandbox.createMany(2, { client, checkpoint: 'cp' });
  assert.deepEqual(seen.at(-1)?.json, { checkpoint: 'cp', count: 2 });
});

test('a group ends all that it can, and then tells what went wrong', async (t) => {
  const { client, seen } = await fakeDaemon(t, (request, response) => {
    if (request.method === 'POST')
      json(response, 201, { sandboxes: ['a', 'b', 'c'].map((id) => sandboxInfo(id)) });
    else if (request.path.endsWith('/a')) fail(response, 500, 'internal');
    else if (request.path.endsWith('/b')) fail(response, 404, 'not_found');
    else response.writeHead(204).end();
  });
  const group = await Sandbox.createMany(3, { client, image: 'app' });
  await assert.rejects(group[Symbol.asyncDispose](), { code: 'internal' });
  assert.equal(seen.length, 4);
});

test('sandboxes are found by id and by metadata', async (t) => {
  const { client, seen } = await fakeDaemon(t, (request, response) => {
    if (request.path === '/v1/sandboxes')
      json(response, 200, { sandboxes: [sandboxInfo('b'), sandboxInfo('a')] });
    else if (request.path === '/v1/sandboxes/a') json(response, 200, sandboxInfo('a'));
    else fail(response, 404, 'not_found');
  });
  assert.equal((await Sandbox.connect('a', { client })).id, 'a');
  await assert.rejects(Sandbox.connect('x', { client }), NotFoundError);
  const found = await Sandbox.list({ client, metadata: { owner: 'a&b', run: '=' } });
  assert.deepEqual(
    found.map((sandbox) => sandbox.id),
    ['b', 'a'],
  );
  assert.equal(seen.at(-1)?.query.get('metadata.owner'), 'a&b');
  assert.equal(seen.at(-1)?.query.get('metadata.run'), '=');
});

test('a command is a line for a shell or a program and its arguments', async (t) => {
  const { daemon, sandbox } = await withSandbox(t, (_, response) => {
    json(
      response,
      200,
      execResult(Buffer.from([0xff, 0x41]), { stderr: Buffer.from('ü').toString('base64') }),
    );
  });
  const result = await sandbox.exec('ls -l');
  assert.deepEqual([result.stdout, result.stderr, result.ok, result.exitCode], ['\ufffdA', 'ü', true, 0]);
  assert.deepEqual([...result.stdoutBytes], [0xff, 0x41]);
  assert.match(inspect(result), /exitCode: 0,\n[^]*stdout: '\ufffdA'/);
  await sandbox.exec(['printf', '%s', 'a b'], {
    env: { A: '1' },
    cwd: '/',
    user: '1:1',
    stdin: Buffer.from([0, 1]),
    timeoutSeconds: 5,
  });
  await sandbox.exec([], { stdin: 'ü' });
  assert.deepEqual(
    daemon.seen.map((request) => request.json),
    [
      { cmd: ['/bin/sh', '-c', 'ls -l'], encoding: 'base64' },
      {
        cmd: ['printf', '%s', 'a b'],
        encoding: 'base64',
        env: { A: '1' },
        cwd: '/',
        user: '1:1',
        timeoutSeconds: 5,
        stdin: 'AAE=',
      },
      { cmd: [], encoding: 'base64', stdin: 'w7w=' },
    ],
  );
  await assert.rejects(sandbox.exec({} as never), TypeError);
  await assert.rejects(sandbox.exec([1 as never]), TypeError);
});

test('a command that fails is an error only if it is checked', async (t) => {
  const stderr = Array.from({ length: 30 }, (_, line) => `line ${line}`).join('\n');
  const { sandbox } = await withSandbox(t, (_, response) => {
    json(response, 200, execResult('', { exitCode: 2, stderr: Buffer.from(stderr).toString('base64') }));
  });
  assert.equal((await sandbox.exec('false')).ok, false);
  await assert.rejects(sandbox.exec(['make', 'it so'], { check: true }), (error) => {
    assert.ok(error instanceof CommandFailedError && error instanceof SporeError);
    assert.equal(error.code, 'command_failed');
    assert.equal(error.result.stderr, stderr);
    assert.match(error.message, /^"make 'it so'" ended with exit code 2:\n…\nline 10\n/);
    assert.match(error.message, /\nline 29$/);
    return true;
  });
});

test('how a command was ended is in the message', async (t) => {
  const ends: [object, RegExp][] = [
    [{ exitCode: 124, signal: 9, timedOut: true }, /was ended at its time limit/],
    [{ exitCode: 137, signal: 9, oomKills: 1 }, /was ended by signal 9, and the sandbox ran out of memory/],
  ];
  for (const [more, expected] of ends) {
    const { sandbox } = await withSandbox(t, (_, response) => {
      json(response, 200, execResult('', more));
    });
    await assert.rejects(sandbox.exec('x', { check: true }), expected);
  }
});

test('it is forked, checkpointed, resized, paused and looked at', async (t) => {
  const usage = { cpuMs: 1, rssBytes: 2, uniqueBytes: 3, pluggedBytes: 4, diskBytes: 5 };
  const { daemon, sandbox } = await withSandbox(t, (request, response) => {
    const answers: Record<string, () => void> = {
      'POST /fork': () => {
        json(response, 201, { sandboxes: [sandboxInfo('c1'), sandboxInfo('c2')], pausedUs: 1500 });
      },
      'POST /checkpoints': () => {
        json(response, 201, { id: 'cp', floorMB: 512 });
      },
      'POST /pause': () => {
        json(response, 200, sandboxInfo('sb', { state: 'paused' }));
      },
      'POST /resume': () => {
        json(response, 200, sandboxInfo('sb'));
      },
      'PATCH ': () => {
        json(response, 200, sandboxInfo('sb', { expiresAt: 5 }));
      },
      'GET ': () => {
        json(response, 200, sandboxInfo('sb', request.query.has('usage') ? { usage } : { cpus: 3 }));
      },
      'GET /logs': () => {
        response.end('Linux version 6.1');
      },
      'DELETE ': () => {
        response.writeHead(204).end();
      },
    };
    answers[`${request.method} ${request.path.replace('/v1/sandboxes/sb', '')}`]?.();
  });
  const last = (): unknown => daemon.seen.at(-1)?.json;

  const [one, two] = await sandbox.fork(2, { memoryMB: 1024, env: { B: '2' }, network: 'nat' });
  assert.deepEqual([one?.id, two?.id], ['c1', 'c2']);
  assert.deepEqual(last(), { count: 2, memoryMB: 1024, env: { B: '2' }, network: 'nat' });
  assert.equal((await sandbox.fork()).pausedUs, 1500);
  assert.deepEqual(last(), { count: 1 });
  assert.ok(daemon.seen.at(-1)?.headers['idempotency-key']);

  assert.equal((await sandbox.checkpoint({ name: 'cp', finalizeMemoryMB: 512 })).floorMB, 512);
  assert.deepEqual(last(), { name: 'cp', finalizeMemoryMB: 512 });
  await sandbox.checkpoint();
  assert.deepEqual(last(), {});
  assert.ok(daemon.seen.at(-1)?.headers['idempotency-key']);

  await sandbox.resize(2048);
  assert.deepEqual(last(), { memoryMB: 2048 });
  assert.equal(sandbox.info.expiresAt, 5);
  await sandbox.setTimeout(60);
  assert.deepEqual(last(), { timeoutSeconds: 60 });
  await sandbox.setTimeout(null);
  assert.deepEqual(last(), { timeoutSeconds: 0 });
  await sandbox.setMetadata({ a: 'b' });
  assert.deepEqual(last(), { metadata: { a: 'b' } });

  await sandbox.pause();
  assert.equal(sandbox.info.state, 'paused');
  await sandbox.resume();
  assert.equal(sandbox.info.state, 'running');
  assert.equal((await sandbox.refresh()).cpus, 3);
  assert.deepEqual(await sandbox.usage(), usage);
  assert.ok(!('usage' in sandbox.info));
  assert.equal(await sandbox.logs(), 'Linux version 6.1');
});

test('leaving its scope ends a sandbox, also one that is gone already', async (t) => {
  let gone = false;
  const { daemon } = await withSandbox(t, (request, response) => {
    if (request.method === 'POST') json(response, 201, sandboxInfo('sb'));
    else if (gone) fail(response, 404, 'not_found');
    else response.writeHead(204).end();
  });
  const work = async (): Promise<never> => {
    await using sandbox = await Sandbox.create({ client: daemon.client, image: 'app' });
    throw new Error(`work on ${sandbox.id} failed`);
  };
  await assert.rejects(work(), /work on sb failed/);
  gone = true;
  await assert.rejects(work(), /work on sb failed/);
  assert.equal(daemon.seen.filter((request) => request.method === 'DELETE').length, 2);
});
