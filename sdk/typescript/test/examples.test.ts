import assert from 'node:assert/strict';
import { execFile } from 'node:child_process';
import path from 'node:path';
import { test } from 'node:test';
import { promisify } from 'node:util';

import { base, image, noBase, noDaemon } from './support/daemon.js';
import { packageRoot } from './support/places.js';

/** Runs an example as a user does, and gives its lines. */
async function run(name: string, ...args: string[]): Promise<string[]> {
  const program = path.join(packageRoot, 'build/examples', `${name}.js`);
  const { stdout } = await promisify(execFile)(process.execPath, [program, ...args], { timeout: 300_000 });
  return stdout.trimEnd().split('\n');
}

const skip = noDaemon;

test('quickstart', { skip }, async () => {
  const [ready, greeting, sorted] = await run('quickstart', image);
  assert.match(ready ?? '', /was ready in [\d.]+ ms/);
  assert.deepEqual([greeting, sorted], ['hello from Linux', '1 2 3']);
});

test('stream', { skip }, async () => {
  const lines = await run('stream', image);
  // Two outputs are two: which comes first is not said.
  assert.deepEqual(lines.slice(0, 4).sort(), ['done', 'line 1', 'line 2', 'line 3']);
  assert.deepEqual(lines.slice(4), ['42', 'ended by signal 15']);
});

test('fork', { skip }, async () => {
  const [still, ...states] = await run('fork', image);
  assert.match(still ?? '', /stood still for [\d.]+ ms/);
  assert.deepEqual(states, ['"prepared\\n"', '"prepared\\nchild 0\\n"', '"prepared\\nchild 1\\n"']);
});

test('grow', { skip }, async () => {
  const [range, more, plugged] = await run('grow', image, '64');
  assert.match(range ?? '', /^from \d+ to \d+ MiB$/);
  const grown = Number(/has (\d+) MiB more/.exec(more ?? '')?.[1]);
  assert.ok(grown > 48 && grown <= 64, more);
  assert.equal(plugged, '0 bytes are plugged beyond the floor');
});

test('checkpoint', { skip }, async () => {
  const [floor, note] = await run('checkpoint', image);
  assert.match(floor ?? '', /^\d+ MiB is the least/);
  assert.equal(note, 'kept in memory');
});

test('host', { skip }, async () => {
  const lines = await run('host', image);
  assert.match(lines[0] ?? '', /^\d+ sandboxes, \d+ of \d+ MiB promised$/);
  assert.deepEqual(lines.slice(2), ['found 1', 'ended: deleted']);
});

test('build', { skip: noBase }, async () => {
  const lines = await run('build', base);
  assert.match(lines[0] ?? '', /^content hash [0-9a-f]{64}$/);
  assert.deepEqual(lines.slice(1), ['demo runs in /app', 'demo runs in /app']);
});
