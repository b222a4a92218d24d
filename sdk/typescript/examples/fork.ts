/**
 * A sandbox is forked as it runs: its children go on from the same instant, each on its own.
 *
 *     node fork.js IMAGE
 */

import { Sandbox } from 'spore-sdk';

await using parent = await Sandbox.create({ image: process.argv[2] ?? 'debian-tools' });
await parent.exec('echo prepared > /tmp/state', { check: true });

await using children = await parent.fork(2);
console.log(`the parent stood still for ${(children.pausedUs ?? 0) / 1000} ms`);

await Promise.all(
  children.map((child, number) => child.exec(`echo child ${number} >> /tmp/state`, { check: true })),
);
for (const sandbox of [parent, ...children]) {
  console.log(JSON.stringify(await sandbox.files.readText('/tmp/state')));
}
