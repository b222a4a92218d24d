import assert from 'node:assert/strict';
import { readFileSync, writeFileSync } from 'node:fs';
import path from 'node:path';
import { test } from 'node:test';

import {
  Client,
  CommandFailedError,
  GuestRefusedError,
  InvalidManifestError,
  InvalidRequestError,
  NotFoundError,
  Sandbox,
} from '../src/index.js';
import type { Event } from '../src/index.js';
import { image, noDaemon } from './support/daemon.js';
import { temporary } from './support/fake.js';

const mark = { 'spore-sdk-test': `${process.pid}-${Date.now()}` };

// One sandbox for most, and a few forks of it: forks are cheap, and it is what they are for.
test('all that the SDK can do is done to a real daemon', { skip: noDaemon, timeout: 600_000 }, async (t) => {
  const client = new Client();
  t.after(async () => {
    for (const left of await Sandbox.list({ client, metadata: mark })) await left.kill();
    client.close();
  });

  await t.test('the host is there, and has the image', async () => {
    assert.equal(await client.isHealthy(), true);
    const found = await client.getImage(image);
    const host = await client.host();
    assert.ok(host.images.includes(found.id) && host.memory.totalMB > 0);
    assert.ok((await client.listImages()).some(({ id }) => id === found.id));
    assert.match(await client.metrics(), /^# (HELP|TYPE) /m);
    assert.match(String((await client.openapi())['openapi']), /^3\.1/);
  });

  const events: Event[] = [];
  const stop = new AbortController();
  const hearing = (async () => {
    for await (const event of client.events({ signal: stop.signal })) events.push(event);
  })().catch((error: unknown) => {
    if (!stop.signal.aborted) throw error;
  });

  const sandbox = await Sandbox.create({
    client,
    image,
    env: { FROM: 'create' },
    metadata: mark,
    timeoutSeconds: 3600,
    idleTimeoutSeconds: 1800,
    exec: 'echo first; echo "$FROM" >&2',
  });

  await t.test('it is there as it was asked for, with its first result', async () => {
    assert.deepEqual([sandbox.firstResult?.stdout, sandbox.firstResult?.stderr], ['first\n', 'create\n']);
    const { state, memory, metadata, createdAt, expiresAt, idleTimeoutSeconds } = sandbox.info;
    assert.equal(idleTimeoutSeconds, 1800);
    assert.equal((await sandbox.setIdleTimeout(null)).idleTimeoutSeconds, undefined);
    assert.deepEqual([state, metadata], ['running', mark]);
    assert.equal(memory.grantedMB, memory.floorMB);
    assert.ok(expiresAt !== undefined && Math.abs(expiresAt - createdAt - 3600) <= 2);
    assert.equal((await Sandbox.connect(sandbox.id, { client })).id, sandbox.id);
    const found = await Sandbox.list({ client, metadata: mark });
    assert.deepEqual(
      found.map(({ id }) => id),
      [sandbox.id],
    );
    assert.deepEqual(await Sandbox.list({ client, metadata: { ...mark, more: 'x' } }), []);
  });

  await t.test('commands', async () => {
    const options = { env: { A: 'ü b' }, cwd: '/tmp', stdin: Buffer.from([0, 255, 10]) };
    const result = await sandbox.exec('pwd; printf %s "$A"; cat >&2; exit 3', options);
    assert.deepEqual([result.stdout, result.exitCode, result.ok], ['/tmp\nü b', 3, false]);
    assert.deepEqual([...result.stderrBytes], [0, 255, 10]);
    await assert.rejects(sandbox.exec(['sh', '-c', 'echo no >&2; exit 4'], { check: true }), (error) => {
      assert.ok(error instanceof CommandFailedError);
      assert.equal(error.result.exitCode, 4);
      return true;
    });
    assert.equal((await sandbox.exec(['/no/such/program'])).exitCode, 127);
    await assert.rejects(sandbox.exec('true', { cwd: '/no/such/directory' }), GuestRefusedError);
    const late = await sandbox.exec('sleep 100', { timeoutSeconds: 1 });
    assert.deepEqual([late.timedOut, late.exitCode], [true, 124]);
  });

  await t.test('a command is killed when its call is aborted', async () => {
    const call = sandbox.exec('echo $$ > /tmp/pid; exec sleep 1000', { signal: AbortSignal.timeout(3000) });
    await assert.rejects(call, { name: 'TimeoutError' });
    let alive = true;
    for (let tries = 0; alive && tries < 20; tries += 1) {
      alive = (await sandbox.exec('kill -0 "$(cat /tmp/pid)"')).ok;
    }
    assert.equal(alive, false);
  });

  await t.test('files', async (t) => {
    const bytes = Buffer.alloc(400_000, Buffer.from([0, 1, 254, 255, 10]));
    const local = path.join(temporary(t), 'local');
    writeFileSync(local, bytes);
    await sandbox.files.upload(local, '/tmp/new dir/ü&?', { mode: 0o640 });
    assert.ok(bytes.equals(await sandbox.files.read('/tmp/new dir/ü&?')));
    assert.equal(await sandbox.files.download('/tmp/new dir/ü&?', `${local}-back`), bytes.length);
    assert.ok(readFileSync(`${local}-back`).equals(bytes));
    await sandbox.files.mkdir('/tmp/new dir/d', { mode: 0o700 });
    const entries = await sandbox.files.list('/tmp/new dir');
    assert.deepEqual(
      entries.map(({ name, kind, mode }) => [name, kind, mode]),
      [
        ['d', 'directory', '0700'],
        ['ü&?', 'file', '0640'],
      ],
    );
    assert.equal(entries[1]?.sizeBytes, bytes.length);
    await assert.rejects(sandbox.files.remove('/tmp/new dir'), GuestRefusedError);
    await sandbox.files.remove('/tmp/new dir', { recursive: true });
    await assert.rejects(sandbox.files.readText('/tmp/new dir/ü&?'), GuestRefusedError);
    await assert.rejects(sandbox.files.read('relative'));
  });

  await t.test('streams', async () => {
    const data = Buffer.alloc(300_000, 'spore');
    const cat = await sandbox.execStream('cat; echo end >&2', { stdin: data });
    const copied = await cat.wait();
    assert.ok(data.equals(copied.stdoutBytes));
    assert.deepEqual([copied.stderr, copied.exitCode], ['end\n', 0]);

    await using shell = await sandbox.execStream(['/bin/sh'], { tty: { rows: 33, cols: 101 } });
    await shell.sendStdin('stty size; exit 7\n');
    let screen = '';
    for await (const piece of shell) screen += Buffer.from(piece.data).toString();
    assert.match(screen, /33 101/);
    assert.equal((await shell.wait()).exitCode, 7);

    await using sleeping = await sandbox.execStream(['sleep', '1000']);
    await sleeping.sendSignal('SIGTERM');
    assert.equal((await sleeping.wait()).signal, 15);
    const homeless = await sandbox.execStream('true', { user: 'nobody-here' });
    await assert.rejects(homeless.wait(), GuestRefusedError);
  });

  await t.test('it is paused and goes on', async () => {
    assert.equal((await sandbox.pause()).state, 'paused');
    assert.equal((await sandbox.refresh()).state, 'paused');
    assert.equal((await sandbox.resume()).state, 'running');
    assert.equal((await sandbox.exec('echo on')).stdout, 'on\n');
  });

  await t.test('it grows and shrinks', async () => {
    const { floorMB } = sandbox.memory;
    assert.equal((await sandbox.resize(floorMB + 64)).memory.grantedMB, floorMB + 64);
    assert.ok((await sandbox.usage()).pluggedBytes >= 64 * 1024 * 1024);
    assert.equal((await sandbox.resize(floorMB)).memory.grantedMB, floorMB);
    await assert.rejects(sandbox.resize(1 << 20));
  });

  await t.test('its children are like it, and apart from it', async () => {
    await sandbox.exec('echo parent > /tmp/who', { check: true });
    await using children = await sandbox.fork(2, { env: { FROM: 'fork' }, metadata: mark });
    assert.ok(children.pausedUs !== undefined && children.pausedUs > 0);
    const [one, two] = children;
    assert.equal(one?.info.parent, sandbox.id);
    await one.exec('echo child > /tmp/who', { check: true });
    assert.equal((await two?.exec('cat /tmp/who; echo "$FROM"'))?.stdout, 'parent\nfork\n');
    assert.equal(await sandbox.files.readText('/tmp/who'), 'parent\n');
  });

  await t.test('it is kept, and another begins there', async () => {
    const checkpoint = await sandbox.checkpoint({ name: `sdk-test-${process.pid}` });
    try {
      assert.ok((await client.listCheckpoints()).some(({ id }) => id === checkpoint.id));
      assert.equal((await client.getCheckpoint(`sdk-test-${process.pid}`)).id, checkpoint.id);
      await using later = await Sandbox.fromCheckpoint(checkpoint, { client, metadata: mark });
      assert.equal(await later.files.readText('/tmp/who'), 'parent\n');
    } finally {
      await client.deleteCheckpoint(checkpoint.id);
    }
    await assert.rejects(client.getCheckpoint(checkpoint.id), NotFoundError);
  });

  await t.test('the same key makes the same', async () => {
    const options = { client, image, metadata: mark, idempotencyKey: `sdk-${process.pid}-${Date.now()}` };
    const [one, other] = await Promise.all([Sandbox.create(options), Sandbox.create(options)]);
    assert.equal(one.id, other.id);
    assert.equal(await one.kill(), true);
    assert.equal(await other.kill(), false);
  });

  await t.test('a create that is aborted leaves nothing', async () => {
    const controller = new AbortController();
    const making = Sandbox.create({ client, image, metadata: mark, signal: controller.signal });
    const gone = assert.rejects(making, { name: 'AbortError' });
    // It has gone out, and a sandbox is not made so fast.
    setImmediate(() => {
      setImmediate(() => {
        controller.abort();
      });
    });
    await gone;
    let found: Sandbox[] = [];
    for (let quiet = 0; quiet < 10; quiet += 1) {
      await new Promise((resolve) => setTimeout(resolve, 100));
      found = await Sandbox.list({ client, metadata: mark });
      if (found.length > 1) quiet = 0;
    }
    assert.deepEqual(
      found.map(({ id }) => id),
      [sandbox.id],
    );
  });

  await t.test('what is wrong is said in the words of its code', async () => {
    const manifest = { base: 'busybox', steps: [{ type: 'workdir', args: { path: 'app' } }] };
    await assert.rejects(client.buildImage(manifest), (error) => {
      assert.ok(error instanceof InvalidManifestError);
      assert.match(error.message, /steps\[0\]\.args\.path/);
      return true;
    });
    await assert.rejects(Sandbox.create({ client, image: 'no-such-image' }), NotFoundError);
    await assert.rejects(Sandbox.connect('no-such-sandbox', { client }), NotFoundError);
    await assert.rejects(Sandbox.create({ client, image, cpus: 1000 }), InvalidRequestError);
  });

  await t.test('it has a console, and ends', async () => {
    assert.equal(typeof (await sandbox.logs()), 'string');
    await sandbox.setMetadata({ ...mark, last: 'word' });
    assert.equal((await Sandbox.list({ client, metadata: { ...mark, last: 'word' } })).length, 1);
    assert.equal((await sandbox.setTimeout(null)).expiresAt, undefined);
    assert.equal(await sandbox.kill(), true);
    assert.equal(await sandbox.kill(), false);
    await assert.rejects(sandbox.exec('true'), NotFoundError);
  });

  await t.test('all that was heard of', async () => {
    const about = (id: string): string[] =>
      events.filter((event) => 'sandbox' in event && event.sandbox === id).map(({ type }) => type);
    for (let tries = 0; !about(sandbox.id).includes('sandboxEnded') && tries < 50; tries += 1) {
      await new Promise((resolve) => setTimeout(resolve, 100));
    }
    assert.deepEqual(about(sandbox.id), [
      'sandboxCreated',
      'sandboxResized',
      'sandboxResized',
      'sandboxEnded',
    ]);
    const ids = events.map(({ id }) => id);
    assert.deepEqual(
      ids,
      ids.map((_, index) => (ids[0] ?? 0) + index),
    );
    stop.abort();
    await hearing;
    assert.deepEqual(await Sandbox.list({ client, metadata: mark }), []);
  });
});
