/**
 * What a scheduler asks a host, and hears from it.
 *
 *     node host.js IMAGE
 */

import { Client, Sandbox } from 'spore-sdk';

const client = new Client();
const host = await client.host();
const { committedMB, limitMB, largestFitMB } = host.memory;
console.log(`${host.sandboxes} sandboxes, ${committedMB} of ${limitMB} MiB promised`);
console.log(`a sandbox of ${largestFitMB} MiB would still fit`);

const ended = new Map<string, string>();
const stop = new AbortController();
const hearing = (async () => {
  for await (const event of client.events({ signal: stop.signal })) {
    if (event.type === 'sandboxEnded') ended.set(event.sandbox, event.cause);
  }
})().catch(() => undefined); // That it was stopped.

const image = process.argv[2] ?? 'debian-tools';
const sandbox = await Sandbox.create({ client, image, metadata: { job: '7' } });
const found = await Sandbox.list({ client, metadata: { job: '7' } });
console.log(`found ${found.length}`);
await sandbox.kill();

while (!ended.has(sandbox.id)) await new Promise((resolve) => setTimeout(resolve, 10));
console.log(`ended: ${ended.get(sandbox.id) ?? ''}`);
stop.abort();
await hearing;
